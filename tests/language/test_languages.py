"""The table of languages, and the detector's labels against it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import RecipeError
from factory.language.detect import detect, detect_line, differs, matches
from factory.language.languages import code_of, language
from tests.support.stand_ins import LANGUAGES


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_code_is_its_own_row_and_accepts_itself(code):
    row = language(code)
    assert row.code == code
    assert code in row.accepted
    assert language(code) is row


@pytest.mark.parametrize(
    ("word", "right"),
    [("Danish", "da"), ("danish", "da"), ("WELSH", "cy"), ("Swahilli", "sw"), ("EN", "en")],
)
def test_an_unknown_code_is_an_error_with_the_nearest_right_one(word, right):
    with pytest.raises(RecipeError, match=rf"unknown language '{word}' \(did you mean '{right}'"):
        language(word)


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


@pytest.mark.parametrize(
    ("code", "labels"),
    [
        ("en", "en EN en-US en_GB eng eng_Latn English english ENGLISH en-US-x-twain"),
        ("no", "no nb nn nor nob nno nob_Latn Norwegian nb-NO"),
        ("zh", "zh zho chi cmn zho_Hans zh-Hant-TW Chinese Mandarin"),
        ("pt", "pt pt-BR por por_Latn Portuguese"),
        ("de", "de deu ger deu_Latn German de-1996"),
        ("sw", "sw swa swh swh_Latn Swahili"),
        ("cy", "cy cym wel Welsh"),
        ("pl", "pl pol pol_Latn Polish"),
    ],
)
def test_a_language_is_known_by_its_codes_and_its_english_name(code, labels):
    assert {code_of(label) for label in labels.split()} == {code}


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("no", "Norwegian Bokmål"), ("no", "norwegian bokmal"), ("no", "Norwegian (Nynorsk)"),
        ("pt", "Brazilian Portuguese"), ("pt", "Portuguese (Brazil)"), ("es", "Spanish; Castilian"),
        ("zh", "Simplified Chinese"), ("zh", "Chinese, Simplified"), ("nl", " Dutch "),
    ],
)  # fmt: skip
def test_a_language_is_known_by_other_english_names(code, label):
    assert code_of(label) == code


@pytest.mark.parametrize("code", LANGUAGES)
def test_each_of_our_languages_is_known_by_its_code_and_name(code):
    assert code_of(code) == code_of(language(code).name) == code_of(code.upper()) == code


@pytest.mark.parametrize(
    "label",
    ["", "und", "mul", "zxx", "none", "N/A", "unknown", "xx", "python", "java", "c++",
     "no_language", "en or fr", "English, French", "all", "1", "\ud83d"],
)  # fmt: skip
def test_what_names_no_one_language_is_none(label):
    assert code_of(label) is None


@given(st.text())
def test_any_label_is_a_code_or_none(label):
    assert code_of(label) is None or code_of(label).isalpha()


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


@pytest.mark.parametrize("text", ["", "   ", "ok", "Ja, tak.", "Paris", "42", "?!"])
def test_too_little_to_go_by_gets_no_label(text):
    assert detect(text) is None
    assert not matches(detect(text), "en")
    assert not differs(detect(text), "en")


# Short messages as programs show them, which several languages share words of.
MESSAGES = {
    "gl": (
        "Escolle unha data válida.", "O ficheiro non existe.", "Gardar os cambios",
        "Nome de usuario", "Eliminar a conta", "Engadir outro contacto", "Data de inicio",
        "Total de páxinas",
    ),
    "es": (
        "Elige una fecha válida.", "El archivo no existe.", "Guardar los cambios",
        "Nombre de usuario", "Eliminar la cuenta", "Añadir otro contacto", "Fecha de inicio",
        "Total de páginas",
    ),
    "pt": (
        "Escolha uma data válida.", "O ficheiro não existe.", "Guardar as alterações",
        "Nome de utilizador", "Eliminar a conta", "Adicionar outro contacto", "Data de início",
        "Total de páginas",
    ),
    "nl": (
        "Kies een geldige datum.", "Het bestand bestaat niet.", "Bewaar de wijzigingen",
        "Naam van de gebruiker", "Verwijder het account", "Voeg een contact toe",
        "Datum van begin", "Aantal pagina's",
    ),
}  # fmt: skip


def test_a_short_message_that_may_be_of_two_languages_gets_no_label():
    labels = {code: [detect(text) for text in texts] for code, texts in MESSAGES.items()}
    wrong = [label for code, found in labels.items() for label in found if differs(label, code)]
    right = [label for code, found in labels.items() for label in found if matches(label, code)]
    assert len(wrong) <= len(right) / 10 and len(right) >= 16, labels
    assert detect("Eliminar a conta") is None and detect_line("Eliminar a conta") is not None
    assert detect(" ".join(MESSAGES["gl"])) == "gl", "together they are long enough"


@pytest.mark.parametrize(
    "text",
    [
        "12345 67890 + 17 = 85235",
        "```python\nfor row in rows:\n    print(row['name'], 'is here and there')\n```",
        "`SELECT name FROM users WHERE the_name IS NOT NULL;`",
        "https://example.org/this/is/the/name/of/a/page?and=more",
        "import numpy as np",
    ],
)
def test_code_links_and_numbers_are_in_no_language(text):
    assert detect(text) is None


def test_code_does_not_decide_what_language_the_prose_around_it_is_in():
    code = "```python\n" + "# this function returns the name of the user\n" * 20 + "```\n"
    assert detect(f"{SENTENCES['da']}\n\n{code}") == "da"


OTHERS = {
    "ca": "Ahir vaig portar la bicicleta al taller perquè la cadena s'havia tornat a trencar.",
    "af": "Gister het ek my fiets na die werkswinkel geneem omdat die ketting weer gebreek het.",
    "is": "Í gær fór ég með hjólið mitt á verkstæðið af því að keðjan hafði slitnað aftur.",
    "gd": "An-dè thug mi am baidhsagal agam dhan bhùth oir bha an t-slabhraidh air briseadh.",
    "ro": "Ieri mi-am dus bicicleta la atelier pentru că lanțul se rupsese din nou.",
}


@pytest.mark.parametrize("code", OTHERS)
def test_a_neighbour_of_our_languages_is_called_by_its_own_name(code):
    assert detect(OTHERS[code]) == code
    assert not any(matches(code, ours) for ours in LANGUAGES)


def test_of_a_very_long_text_both_ends_are_read():
    long = SENTENCES["fi"] * 400
    assert detect(long) == "fi"
    assert detect(" " * 4000 + SENTENCES["fi"] * 20) == "fi"


@given(st.text(max_size=60))
def test_any_text_has_a_label_or_none(text):
    assert detect(text) is None or detect(text).isalpha()
