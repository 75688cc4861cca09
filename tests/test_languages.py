"""The table of languages, and the detector's labels against it."""

from __future__ import annotations

import pytest

from factory.errors import RecipeError
from factory.language_id import detect, matches
from factory.languages import LANGUAGES, language


def test_every_code_is_its_own_row_and_accepts_itself():
    for code, row in LANGUAGES.items():
        assert row.code == code
        assert code in row.accepted
        assert language(code) is row


@pytest.mark.parametrize(
    ("word", "right"),
    [("Danish", "da"), ("danish", "da"), ("WELSH", "cy"), ("ena", "en"), ("EN", "en")],
)
def test_an_unknown_code_is_an_error_with_the_nearest_right_one(word, right):
    with pytest.raises(RecipeError, match=rf"unknown language '{word}' \(did you mean '{right}'"):
        language(word)


@pytest.mark.parametrize("code", ["nb", "nn"])
def test_who_writes_one_of_the_two_norwegians_is_sent_to_norwegian(code):
    with pytest.raises(RecipeError, match="did you mean 'no'"):
        language(code)


@pytest.mark.parametrize("word", [None, 5, ["en"], {"en": 1}, "", "zz-Latn"])
def test_what_is_no_code_at_all_is_the_same_error(word):
    with pytest.raises(RecipeError, match="unknown language"):
        language(word)


@pytest.mark.parametrize("label", ["da", "no", "nb", "nn"])
def test_danish_and_norwegian_accept_one_another(label):
    assert matches(label, "da")
    assert matches(label, "no")


@pytest.mark.parametrize(("label", "wanted"), [("sv", "da"), ("pt", "gl"), ("en", "ga")])
def test_other_neighbours_do_not(label, wanted):
    assert not matches(label, wanted)


def test_no_label_matches_nothing():
    assert not matches(None, "en")


SENTENCES = {
    "da": "Jeg kunne ikke sove i nat, fordi naboens hund gøede hele tiden udenfor mit vindue.",
    "nl": "Gisteren heb ik mijn fiets naar de werkplaats gebracht omdat de ketting kapot was.",
    "en": "Yesterday I took my bicycle to the workshop because the chain had broken again.",
    "fr": "Hier, j'ai apporté mon vélo à l'atelier parce que la chaîne était encore cassée.",
    "de": "Gestern habe ich mein Fahrrad in die Werkstatt gebracht, weil die Kette gerissen war.",
    "it": "Ieri ho portato la bicicletta in officina perché la catena si era rotta di nuovo.",
    "es": "Ayer llevé mi bicicleta al taller porque la cadena se había roto otra vez.",
    "no": "Jeg fikk ikke sove i natt fordi hunden til naboen bjeffet utenfor vinduet mitt.",
    "sv": "I går lämnade jag cykeln på verkstaden eftersom kedjan hade gått av igen.",
    "pt": "Ontem levei a minha bicicleta à oficina porque a corrente tinha partido outra vez.",
    "fi": "Eilen vein polkupyöräni korjaamolle, koska ketju oli taas katkennut.",
    "gl": "Onte levei a miña bicicleta ao taller porque a cadea rompera outra vez.",
    "ga": "Thug mé mo rothar chuig an siopa inné mar gur bhris an slabhra arís.",
    "mt": "Ilbieraħ ħadt ir-rota tiegħi għand il-mekkanik għax il-katina reġgħet inqatgħet.",
    "cy": "Ddoe es i â fy meic i'r gweithdy oherwydd bod y gadwyn wedi torri eto.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_clear_sentence_is_found_to_be_in_its_language(code):
    assert matches(detect(SENTENCES[code]), code)


@pytest.mark.parametrize("text", ["", "   ", "ok", "Ja, tak.", " \n short one \t"[:12]])
def test_a_very_short_text_gets_no_label(text):
    assert detect(text) is None
