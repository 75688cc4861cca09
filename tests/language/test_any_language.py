"""Languages by BCP 47: what CLDR names, what labels of data name, what a recipe defines, and what
becomes of a language that no detector knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factory.errors import RecipeError
from factory.evaluation.euroeval import suites
from factory.language.detect import (
    detect,
    detect_line,
    detectable,
    differs,
    matches,
    right_labels,
    unfiltered,
)
from factory.language.languages import (
    define,
    hub_code,
    language,
    speaks,
    states_script,
    tag_of,
)
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import Recipe, load
from factory.sampling.translation import pieces, wording
from tests.conftest import run_factory
from tests.support.builders import lock_of

# EuroLLM, m-ArenaHard 2, and the official languages of the European Union
MODELS = (
    "ar", "bg", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "ga", "gl", "he",
    "hi", "hr", "hu", "id", "it", "ja", "ko", "lt", "lv", "mt", "nl", "no", "pl", "pt", "ro", "ru",
    "sk", "sl", "sv", "tr", "uk", "vi", "zh",
)  # fmt: skip


@pytest.mark.parametrize("code", MODELS)
def test_languages_of_models_and_benchmarks_are_known_and_can_be_detected(code: str) -> None:
    assert language(code).name != code
    assert detectable(code)


def test_languages_of_benchmarks_are_known() -> None:
    codes = {code for one in suites.registry().values() for code in one.languages}
    assert {"fo", "nb", "nn", "sq", "uk"} <= codes
    assert all(detectable(code) for code in codes - {"pt-pt"})


@pytest.mark.parametrize(
    ("code", "name", "own_name", "script", "direction"),
    [
        ("uk", "Ukrainian", "українська", "Cyrl", "ltr"),
        ("ar", "Arabic", "العربية", "Arab", "rtl"),
        ("he", "Hebrew", "עברית", "Hebr", "rtl"),
        ("pt-BR", "Brazilian Portuguese", "português (Brasil)", "Latn", "ltr"),
        ("zh-Hant", "Traditional Chinese", "繁體中文", "Hant", "ltr"),
        ("sr-Latn", "Serbian (Latin)", "srpski (latinica)", "Latn", "ltr"),
        ("nn", "Norwegian Nynorsk", "norsk nynorsk", "Latn", "ltr"),
        ("az-Arab", "Azerbaijani (Arabic)", "تۆرکجه", "Arab", "rtl"),
        ("bn", "Bengali", "বাংলা", "Beng", "ltr"),
        ("tlh", "Klingon", "Klingon", "Latn", "ltr"),
    ],
)
def test_a_language_has_names_a_script_and_a_direction(
    code: str, name: str, own_name: str, script: str, direction: str
) -> None:
    row = language(code)
    assert (row.name, row.own_name, row.script, row.direction) == (
        name, own_name, script, direction,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("dk", "da"), ("jp", "ja"), ("ua", "uk"), ("cz", "cs"), ("gr", "el"), ("eng_Latn", "en"),
        ("pt_BR", "pt-BR"), ("pt-br", "pt-BR"), ("zho_Hant", "zh-Hant"), ("sme", "se"),
        ("iw", "he"), ("español", "es"), ("Ukranian", "uk"), ("deu", "de"),
    ],
)  # fmt: skip
def test_a_wrong_code_is_refused_with_the_right_one(word: str, right: str) -> None:
    with pytest.raises(RecipeError, match=rf"'{word}' \(did you mean '{right}'\?\)"):
        language(word)


@pytest.mark.parametrize("word", ["ena", "rmc", "xx", "qaa", "zz-Latn", "da-XQ", "mul", "nordic"])
def test_no_other_language_is_suggested_for_a_code_without_a_name(word: str) -> None:
    with pytest.raises(RecipeError) as raised:
        language(word)
    assert raised.value.what == f"unknown language '{word}'"


@pytest.mark.parametrize(
    ("tag", "labels"),
    [
        ("es", "español|Castilian|spa_Latn|ES"), ("ja", "日本語|jpn_Jpan|Japanese"),
        ("hi", "हिन्दी|hin_Deva"), ("ga", "Gaeilge|gle"), ("uk", "Українська|ukr_Cyrl|UKRAINIAN"),
        ("zh-Hant", "Chinese (Traditional)|Chinese, Traditional|zho_Hant|繁體中文"),
        ("pt-BR", "Portuguese (Brazil)|Brazilian Portuguese|pt_BR"),
        ("sr-Latn", "Serbian (Latin)|hbs|srp_Latn"), ("nb", "nob_Latn|norsk bokmål"),
        ("fa", "Persian|Farsi|pes_Arab"), ("el", "Greek, Modern (1453-)|ell_Grek"),
    ],
)  # fmt: skip
def test_labels_of_data_name_languages(tag: str, labels: str) -> None:
    for label in labels.split("|"):
        assert str(tag_of(label)).startswith(tag), label


@pytest.mark.parametrize(
    ("code", "right", "wrong"),
    [
        ("pt", "pt pt-BR pt-PT por", "gl es"), ("pt-BR", "pt pt-BR Portuguese", "pt-PT"),
        ("zh-Hant", "zh-TW zho_Hant", "zh zh-CN zho_Hans"), ("zh-Hans", "zh zh-CN cmn", "zh-HK"),
        ("no", "no nb nn nob", "da sv"), ("nb", "no nb nob Norwegian", "nn"), ("nn", "nn", "no nb"),
        ("sr-Latn", "hbs sr-Latn", "sr sr-Cyrl"), ("sr", "sr sr-Latn srp", "hr"),
        ("tl", "tl tgl_Latn fil Tagalog", "ceb"), ("fil", "tl tgl fil_Latn Filipino", "ceb"),
    ],
)  # fmt: skip
def test_a_label_stands_for_a_variant_that_it_does_not_contradict(
    code: str, right: str, wrong: str
) -> None:
    assert all(speaks(label, code) for label in right.split())
    assert not any(speaks(label, code) for label in wrong.split())


@pytest.mark.parametrize(
    ("label", "code", "right"),
    [("hr", "bs", True), ("sr", "hr", True), ("ms", "id", True), ("tl", "fil", True),
     ("pt", "pt-BR", True), ("zh", "zh-Hant", True), ("no", "nn", True), ("gl", "pt-BR", False),
     ("cs", "sk", False), ("be", "uk", False)],
)  # fmt: skip
def test_close_standards_are_right_for_one_another_and_neighbours_are_not(
    label: str, code: str, right: bool
) -> None:
    assert matches(label, code) is right
    assert differs(label, code) is not right


def test_a_rare_language_is_looked_for_where_text_is_to_be_in_it() -> None:
    faroese = "Í gjár fór eg til arbeiðis við súkklu, tí bilurin hjá mær var farin sundur."
    assert detect(faroese, "fo") == "fo"
    assert detect(faroese) != "fo"


def test_a_language_that_no_detector_knows_has_no_label_and_no_filter() -> None:
    assert right_labels("mni") == frozenset()
    assert detect("This is plain English, whatever it should be.", "mni") is None
    assert not differs("en", "mni")


HANS = "我们应该先学习汉语，然后再讨论这个问题，因为时间还很长。"
HANT = "我們應該先學習漢語，然後再討論這個問題，因為時間還很長。"
CYRILLIC = "Данас је леп дан и деца се играју у парку поред реке док родитељи разговарају."
LATIN = "Danas je lep dan i deca se igraju u parku pored reke dok roditelji razgovaraju."


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        (HANS, "zh zh-Hans zh-CN zh-SG", "zh-Hant zh-TW zh-HK"),
        (HANT, "zh zh-Hant zh-TW zh-HK", "zh-Hans zh-CN"),
        (CYRILLIC, "sr sr-Cyrl sr-RS bs bs-Cyrl", "sr-Latn sr-ME hr bs-Latn"),
        (LATIN, "sr sr-Latn sr-ME sr-RS hr bs", "sr-Cyrl bs-Cyrl"),
        ("Бугун ҳаво жуда яхши, болалар боғда ўйнашмоқда ва кулишмоқда.", "uz uz-Cyrl", "uz-Latn"),
        ("中文", "zh", "da"),
    ],
)
def test_text_is_right_in_the_script_of_its_language_alone(
    text: str, right: str, wrong: str
) -> None:
    for code in right.split():
        assert matches(detect(text, code), code), code
    for code in wrong.split():
        assert differs(detect(text, code), code), code


def test_text_without_a_character_of_either_script_is_right_in_both() -> None:
    text = "我不知道你在哪里，天上下雨了，小河流水。".replace("里", "")
    assert matches(detect(text, "zh-Hans"), "zh-Hans") and matches(
        detect(text, "zh-Hant"), "zh-Hant"
    )


def test_the_script_of_text_is_that_of_its_prose() -> None:
    text = f"{HANT}\n\n```\n{HANS * 3}\n```"
    assert detect(text, "zh-Hant") == "zh" and detect(text, "zh-Hans") == "zh-Hant"
    assert detect_line(HANS, "zh-Hant") == "zh-Hans"


def test_a_label_of_one_script_is_right_where_the_code_states_none() -> None:
    assert matches("zh-Hans", "zh") and matches("zh-Hans", "zh-CN") and differs("zh-Hans", "zh-TW")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("mni", "does not know Manipuri"), ("az-Cyrl", "Azerbaijani in Cyrillic script"),
        ("pa-PK", "Punjabi in Arabic script"), ("hi-Latn", "Hindi in Latin script"),
        ("kk-Arab", "Kazakh in Arabic script"), ("zh-Latn", "Chinese in Latin script"),
    ],
)  # fmt: skip
def test_a_script_that_the_detector_does_not_know_is_not_filtered(code: str, why: str) -> None:
    assert detect("Afar, abkasisk og andre sprog skrives her i dag.", code) is None
    assert right_labels(code) == frozenset() and not detectable(code)
    [line] = unfiltered(["en", code, code, "zh-Hant", "sr-ME", "pt-BR"])
    assert line.startswith(f"No language filter for {code}: ") and why in line


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Callable[..., Recipe]]:
    def write(languages: str, *overrides: str) -> Recipe:
        path = tmp_path / "r.yaml"
        path.write_text(
            f"name: r\norg: me\nlanguages: {languages}\n"
            "models: {policy: org/policy@v2}\n"
            'stages:\n  prompts: {source: "p-{language}.jsonl"}\n  generate: {n: 2}\n'
        )
        return load(str(path), overrides).recipe

    yield write
    define({})


@pytest.mark.slow  # two commands, one of them a run
def test_a_plan_and_a_run_say_which_languages_are_not_filtered_and_why(tmp_path: Path) -> None:
    path, codes = tmp_path / "r.yaml", ["en", "mni", "az-Cyrl", "zh-Hant"]
    path.write_text(
        f"name: r\norg: local\nlanguages: {json.dumps(codes)}\nlicense: mit\n"
        "models: {policy: local/tiny-random-llama}\n"
        "stages:\n  prompts: {source: p.jsonl}\n  generate: {n: 1, max_tokens: 4}\n"
    )
    rows = [{"id": "1", "prompt": "Hello there", "language": code} for code in codes]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command in ("plan", "run"):
        done = run_factory(command, str(path), home=tmp_path / "home")
        assert done.returncode == 0, done.stdout + done.stderr
        printed = " ".join((done.stdout + done.stderr).split())
        assert "No language filter for mni: the detector does not know Manipuri." in printed
        assert "for az-Cyrl: the detector does not know Azerbaijani in Cyrillic script." in printed
        assert printed.count("No language filter") == 2


def test_a_recipe_adds_and_corrects_languages(recipe: Callable[..., Recipe]) -> None:
    read = recipe("{en: , sme: {name: Northern Sami, detect: [se]}, qaa: {name: Dothraki}}")
    assert read.languages == ("en", "sme", "qaa")
    assert language("sme").name == "Northern Sami"
    assert matches("se", "sme") and detectable("sme") and not detectable("qaa")
    assert hub_code("sme") == "se" and hub_code("qaa") == "qaa"
    dumped = read.model_dump(mode="json")["languages"]
    assert dumped["sme"] == {"name": "Northern Sami", "detect": ["se"]}
    again = recipe(json.dumps(dumped))
    assert again.model_dump(mode="json")["languages"] == dumped
    assert recipe("[en]").model_dump(mode="json")["languages"] == ["en"]
    with pytest.raises(RecipeError, match="unknown language 'qaa'"):
        language("qaa")


def test_the_recipe_that_plans_defines_its_languages(recipe: Callable[..., Recipe]) -> None:
    first = recipe("{qaa: {name: Dothraki}}")
    recipe("[en]")
    first.slices()
    assert language("qaa").name == "Dothraki"


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ("[en, sme]", "unknown language 'sme' .did you mean 'se'"),
        ("{qaa: {}}", "unknown language 'qaa'"),
        ("{en: {nam: X}}", r"en.nam: .*its keys are name, own_name, script, detect"),
        ("{'../x': {name: X}}", "unknown language '../x'"),
        ("{en: {script: arabic}}", "en.script"),
    ],
)
def test_a_wrong_definition_is_refused(
    recipe: Callable[..., Recipe], languages: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(languages)


def test_what_is_said_of_a_language_is_identity(recipe: Callable[..., Recipe]) -> None:
    def marks(languages: str) -> dict[str, str]:
        loaded = recipe(languages)
        steps = plan(loaded, lock_of(loaded), Inventory())
        return {f"{step.name} {s.spec.name}": s.fingerprint for step in steps for s in step.slices}

    plain, named = marks("[en, se]"), marks("{en: {}, se: {}}")
    assert plain == named
    other = marks("{en: {}, se: {detect: [se, fi]}}")
    assert {name for name in plain if plain[name] != other[name]} == {"prompts se", "generate se"}


def test_a_stated_script_is_identity(recipe: Callable[..., Recipe]) -> None:
    loaded = recipe("[zh, zh-CN, zh-Hant]")
    steps = plan(loaded, lock_of(loaded), Inventory())
    marks = {s.spec.language: s.fingerprint for step in steps for s in step.slices}
    assert len(set(marks.values())) == 3
    assert [states_script(code) for code in ("zh", "pt-BR", "sr-RS")] == [False] * 3


@pytest.mark.parametrize(
    ("code", "name"),
    [("zh-Hant", "Traditional Chinese"), ("pt-BR", "Brazilian Portuguese"), ("nb", "Norwegian B"),
     ("sr-Latn", "Serbian (Latin)"), ("bn", "Bengali"), ("zh-HK", "Chinese (Hong Kong SAR China)")],
)  # fmt: skip
def test_chat_translators_are_asked_by_name(code: str, name: str) -> None:
    assert f"from English into {name}" in wording("chat", "en", code, {}).ask("Hello")


@pytest.mark.parametrize(
    ("codes", "meant"),
    [
        ("pt", "pt-PT"), ("pt-BR", "pt-BR"), ("zh-HK", "zh-Hant-HK"), ("zh-CN", "zh"),
        ("zh-TW zh-Hant-TW", "zh-TW"), ("fil", "fil-PH"), ("sr-ME sr-Latn-ME", "sr-Latn-ME"),
        ("en-US en", "en"), ("uz-Cyrl", "uz-Cyrl"), ("gl", "gl"), ("cy", "cy"), ("nb", "nb"),
    ],
)  # fmt: skip
def test_translategemma_is_asked_by_a_code_of_its_template(codes: str, meant: str) -> None:
    for code in codes.split():
        assert f"<<<target>>>{meant}<<<" in wording("translategemma", "en", code, {}).ask("Hello")


def test_every_language_of_models_and_benchmarks_has_a_code_of_translategemma() -> None:
    codes = {code for one in suites.registry().values() for code in one.languages}
    for code in (codes - {"pt-pt"}) | set(MODELS):
        wording("translategemma", "en", code, {})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ("languages: [yue]", r"TranslateGemma has no code for yue \(Cantonese\)"),
        ("languages: [kk-Latn]", "no code for kk-Latn"),
        ("languages: [pt], names: {pt: portuguese}", "'portuguese' is no code of TranslateGemma"),
    ],
)
def test_a_language_without_a_code_of_translategemma_is_refused_before_anything_runs(
    recipe: Callable[..., Recipe], knobs: str, message: str
) -> None:
    translate = f"stages.translate={{model: policy, format: translategemma, {knobs}}}"
    with pytest.raises(RecipeError, match=message):
        recipe("[en]", translate).slices()
    assert recipe("[en]", translate.replace("format: translategemma", "format: chat")).slices()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("एक था राजा। एक थी रानी। दोनों मर गए।", 3),
        ("هل أنت بخير؟ نعم أنا بخير.", 2),
        ("今日は晴れです。明日は雨です。", 2),
        ("မိုးရွာသည်။ နေသာသည်။", 2),
    ],
)
def test_long_text_is_cut_at_the_ends_of_sentences_in_any_script(text: str, parts: int) -> None:
    found = [piece.text for piece in pieces(text, max(len(text) // parts + 4, 8), len)]
    assert len(found) == parts and "".join(found) == text


def test_a_sentence_without_spaces_is_cut_between_words() -> None:
    text = "เมื่อวานนี้ฉันเอาจักรยานไปซ่อมที่ร้านเพราะโซ่ขาดอีกแล้ว"
    found = [piece.text for piece in pieces(text, 20, len)]
    assert "".join(found) == text and max(map(len, found)) <= 20
    address = "https://example.org/" + "a" * 40
    assert [piece.text for piece in pieces(address, 20, len)] == [address]
