"""Languages: those that CLDR names, by BCP 47, and those that a recipe defines."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

from factory.errors import RecipeError


@dataclass(frozen=True)
class Language:
    """One language: its `code` of BCP 47, its name in English and in itself, its script (ISO
    15924), its `direction` (`ltr`, `rtl`), and the labels that a language identifier may give to
    text that is right in it (`accepted`)."""

    code: str
    name: str
    own_name: str
    script: str
    direction: str
    accepted: frozenset[str]


# Languages that are right for one another, and why. docs/languages.md has what was measured.
ALIKE: tuple[tuple[str, str], ...] = (
    ("da no nb nn", "detectors mix them up on short text; EuroEval accepts them alike"),
    ("bs hr sr sh", "standards of one language; Serbian is written in Latin script too"),
    ("id ms", "standards of one language, Malay"),
    ("fil tl", "one language under two codes"),
)
_ALIKE = {code: frozenset(codes.split()) for codes, _ in ALIKE for code in codes.split()}
# Scripts that the detector knows a language in, where it or one like it has several; measured.
SCRIPTS = {
    "bs": "Latn Cyrl", "hr": "Latn", "sr": "Cyrl Latn", "uz": "Latn Cyrl", "zh": "Hans Hant",
}  # fmt: skip
_RTL = frozenset(("Adlm", "Arab", "Hebr", "Mand", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa", "Yezi"))
_USUAL = {"bn": "Bengali"}  # CLDR says Bangla, which models know less well
_NO_LANGUAGE = frozenset({"und", "mul", "mis", "zxx"})
_NORWEGIAN = frozenset({"no", "nb", "nn"})
_TWO_CODES = {"tl": "fil"}  # FLORES and ISO 639-3 say tgl, which CLDR reads as Filipino

# language, script, region, and variants or extensions that are no words
_TAG = re.compile(
    r"([a-z]{2,3})(?:[-_]([a-z]{4}))?(?:[-_]([a-z]{2}|[0-9]{3}))?"
    r"(?:[-_](?:[0-9][a-z0-9]{3}|[ux][-_].+))*",
    re.IGNORECASE,
)
_CODE = re.compile(r"[a-z]{2,8}(-[A-Za-z0-9]{1,8})*")  # that a recipe may define

_defined: dict[str, Mapping[str, Any]] = {}


def define(definitions: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the languages that the recipe of this process adds or corrects: by code, its `name`,
    `own_name`, `script` and the labels to `detect` it by. Those of an earlier recipe are forgotten.
    """
    if definitions == _defined:
        return
    _defined.clear()
    _defined.update(definitions)
    for cached in (find, speaks, scripts):
        cached.cache_clear()


def defined(code: str | None) -> Mapping[str, Any]:
    """Return what the recipe says of a language; empty where it says nothing."""
    return _defined.get(code or "", {})


def language(code: str) -> Language:
    """Return the language of a code as BCP 47 writes it (`da`, `pt-BR`, `zh-Hans`). Raises
    RecipeError, with the right code where one can be meant, for anything else."""
    if isinstance(code, str) and (row := find(code)):
        return row
    meant = _meant(code) if isinstance(code, str) else None
    raise RecipeError(
        f"unknown language {code!r}" + (f" (did you mean {meant!r}?)" if meant else ""),
        "use a code of BCP 47 that CLDR names, as da, pt-BR or zh-Hans, or define it: "
        "languages: {code: {name: its name}}",
    )


def name_of(code: str) -> str:
    """Return the English name of a language; the code itself where it has none."""
    row = find(code)
    return row.name if row else code


def alike(label: str) -> frozenset[str]:
    """Return the labels that are right for the same languages as a label, itself among them."""
    return _ALIKE.get(label, frozenset({label}))


def states_script(code: str) -> bool:
    """Return whether a code, or the recipe, says the script of a language that the detector knows
    in several: `zh-Hant`, `zh-TW`, `sr-Latn`."""
    tag = tag_of(code)
    if tag is None or tag.base not in SCRIPTS:
        return False
    by_region = tag.region and (
        tag.base == "zh" or _full(tag).script != _full(Tag(tag.base)).script
    )
    return bool("script" in defined(code) or tag.script or by_region)


@lru_cache(maxsize=1024)
def scripts(code: str) -> tuple[str, ...]:
    """Return the scripts that text in a language may be in; empty where the detector does not know
    the language in the one that it is to be in. Labels that a recipe states are taken as they are.
    """
    row, tag = language(code), tag_of(code)
    if tag is None or "detect" in defined(code):
        return (row.script,)
    usual = _full(Tag(tag.base)).script
    scripts = tuple(SCRIPTS.get(tag.base, usual).split())
    if not states_script(code) and tag.base in SCRIPTS:
        return scripts
    return (row.script,) if row.script in scripts else ()


def script_name(script: str) -> str:
    """Return the English name of a script of ISO 15924; the code itself where CLDR has none."""
    return str(_english().scripts.get(script, script))


def hub_code(code: str) -> str:
    """Return the code by which the Hub lists a language: without script and region."""
    tag = tag_of(code)
    return tag.base if tag else code


@lru_cache(maxsize=4096)
def find(code: str) -> Language | None:
    """Return the language of a code as BCP 47 writes it; None where there is none."""
    stated = defined(code)
    tag = _read(code)
    if not stated and (tag is None or str(tag) != code):
        return None
    if tag is not None:
        row = _from_cldr(code, tag)
    elif "name" in stated and _CODE.fullmatch(code):
        row = Language(code, "", stated["name"], "Latn", "ltr", frozenset())
    else:
        return None
    script = stated.get("script", row.script)
    return replace(
        row,
        name=stated.get("name", row.name),
        own_name=stated.get("own_name", row.own_name or row.name),
        script=script,
        direction="rtl" if script in _RTL else "ltr",
        accepted=frozenset(stated.get("detect", row.accepted)),
    )


def _from_cldr(code: str, tag: Tag) -> Language:
    from babel import Locale, UnknownLocaleError

    try:
        own_name = _name(Locale.parse(str(tag), sep="-", resolve_likely_subtags=False), tag)
    except UnknownLocaleError:  # CLDR names it, and has nothing written in it
        own_name = ""
    script = _full(tag).script
    name = _USUAL.get(str(tag)) or _name(_english(), tag)
    return Language(
        code,
        name,
        own_name or name,
        script,
        "rtl" if script in _RTL else "ltr",
        alike(tag.base),
    )


class Tag(NamedTuple):
    """A language, the script and the region that a tag of BCP 47 states; empty if none."""

    base: str
    script: str = ""
    region: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, self))


@lru_cache(maxsize=4096)
def tag_of(label: str) -> Tag | None:
    """Return what a label of a dataset names; None for what names no language. Labels are BCP 47
    (`en-US`), ISO 639-1, 639-2 and 639-3, FLORES codes (`eng_Latn`), English names and a
    language's own (`español`), in any case. By CLDR."""
    if _TAG.fullmatch(label.strip()):
        return _read(label)
    mark = re.search(r"\((.*?)\)|,(.*)", label)  # Chinese (Traditional); Chinese, Traditional
    name, more = _plain(label), _plain(mark[1] or mark[2] or "") if mark else ""
    spellings = [f"{more} {name}".strip(), f"{name} {more}".strip()]
    for text in spellings if mark and mark[2] else [*spellings, name]:
        for names in (_names, _own_names):
            if tag := names().get(text):
                return tag._replace(**_qualifiers().get(more, {})) if text == name else tag
    return None


def likely(label: str) -> Tag | None:
    """Return what a label of a dataset names with its likely script and region: the same for
    labels of one written language (`sr-ME`, `sr-Latn-ME`)."""
    tag = tag_of(label)
    return tag and _full(tag)


def code_of(label: str) -> str | None:
    """Return the code of the language that a label of a dataset names, without script and region;
    None for what names no language. The two written Norwegians are `no`, and Tagalog is `fil`."""
    tag = tag_of(label)
    return tag and ("no" if tag.base in _NORWEGIAN else _TWO_CODES.get(tag.base, tag.base))


@lru_cache(maxsize=4096)
def speaks(label: str, code: str) -> bool:
    """Return whether a label of a dataset names a language, and whatever script and region its code
    states: `pt-BR` is `pt`, and `zh-TW` is `zh-Hant` but not `zh-Hans`."""
    label_tag, code_tag = tag_of(label), tag_of(code)
    if label == code or label_tag is None or code_tag is None:
        return label == code
    label_tag, code_tag = (
        tag._replace(base=_TWO_CODES.get(tag.base, tag.base)) for tag in (label_tag, code_tag)
    )
    if code_tag.base == "no" and label_tag.base in _NORWEGIAN:
        label_tag = label_tag._replace(base="no")
    if code_tag.base == "nb" and label_tag.base == "no":
        label_tag = label_tag._replace(base="nb")
    return all(
        not part or part == is_ for part, is_ in zip(code_tag, _full(label_tag), strict=True)
    )


def _read(text: str) -> Tag | None:
    """Return the tag that a text is, in any case and by any code of ISO 639; None where CLDR names
    no such language, script or region."""
    from babel.core import get_global

    match = _TAG.fullmatch(text.strip())
    if match is None:
        return None
    first = match[1].lower()
    if first not in _english().languages:
        first = str(get_global("language_aliases").get(first, first))
    base, *more = first.split("_")
    script = (match[2] or "").title() or next((part for part in more if len(part) == 4), "")
    region = (match[3] or "").upper() or next((part for part in more if len(part) < 4), "")
    is_named = (
        (base in _english().languages and base not in _NO_LANGUAGE)
        and (not script or script in _english().scripts)
        and (not region or region in _english().territories)
    )
    return Tag(base, script, region) if is_named else None


def _full(tag: Tag) -> Tag:
    """Return a tag with its likely script and region."""
    from babel.core import get_global

    base, script, region = tag
    likely = get_global("likely_subtags")
    for key in (f"{base}_{script}", f"{base}_{region}", base):
        if key in likely:
            _, usual, place = likely[key].split("_")
            return Tag(base, script or usual, region or place)
    return Tag(base, script or "Latn", region)


def _meant(code: str) -> str | None:
    """Return the code that a wrong one may stand for: of the same language, of the language of a
    country (`dk`), or of a misspelt name. Never one for a right code of ISO 639 without a name."""
    from babel.core import get_global

    if tag := tag_of(code):
        usual = _full(Tag(tag.base)).script == tag.script  # eng_Latn
        return str(tag._replace(script="") if usual else tag)
    likely = get_global("likely_subtags")
    if code.lower() in likely:
        return None
    if f"und_{code.upper()}" in likely:
        return str(likely[f"und_{code.upper()}"]).partition("_")[0]
    near = difflib.get_close_matches(_plain(code), _names(), n=1, cutoff=0.75)
    return str(_names()[near[0]]) if near else None


def _plain(name: str) -> str:
    """Return the name of a language in lower case, without accents, marks and what is in brackets
    or after a comma."""
    letters = unicodedata.normalize("NFKD", re.sub(r"\(.*?\)|[;,].*", " ", name))
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.findall(r"\w+", text.lower().replace("_", " ")))


@cache
def _english() -> Any:
    from babel import Locale

    return Locale("en")


def _name(locale: Any, tag: Tag) -> str:
    """Return the name of a language in the language of a locale; empty where CLDR has none."""
    base, script, region = tag
    for key, rest in ((f"{base}_{script}", region), (f"{base}_{region}", script), (base, "")):
        if name := locale.languages.get(key):
            parts = [script, region] if key == base else [rest]
            more = [locale.scripts.get(part) or locale.territories.get(part) for part in parts]
            stated = ", ".join(part for part in more if part)
            return f"{name} ({stated})" if stated else str(name)
    return ""


@cache
def _names() -> dict[str, Tag]:
    """Return each language by its English name as `_plain` gives it."""
    more = {
        "mandarin": "zh", "mandarin chinese": "zh", "castilian": "es", "bengali": "bn",
        "farsi": "fa", "slovene": "sl", "haitian": "ht", "panjabi": "pa", "modern greek": "el",
    }  # fmt: skip
    rows = {_plain(name): _read(code) for code, name in _english().languages.items()}
    rows |= {name: _read(code) for name, code in more.items()}
    return {name: tag for name, tag in rows.items() if tag}


@cache
def _own_names() -> dict[str, Tag]:
    """Return each language by its own name as `_plain` gives it. Reads 340 files, for a second:
    whole, since babel keeps what it has read for whoever asks for that locale next."""
    from babel.localedata import load, locale_identifiers

    by_name: dict[str, Tag] = {}
    for code in sorted(locale_identifiers()):
        first, _, more = code.partition("_")
        if len(more) in (0, 4):  # a language, or one in a script: 繁體中文
            for key, name in load(code).get("languages", {}).items():
                if key.partition("_")[0] == first and (tag := _read(key)):
                    by_name.setdefault(_plain(name), tag)
    return by_name


@cache
def _qualifiers() -> dict[str, dict[str, str]]:
    """Return what a script or a country says of a tag, by its English name."""
    english = _english()
    places = {_plain(name): {"region": code} for code, name in english.territories.items()}
    return places | {_plain(name): {"script": code} for code, name in english.scripts.items()}


# the second codes of ISO 639-2, which ISO 639-3 does not have
_BIBLIOGRAPHIC = "alb arm baq bur chi cze dut fre geo ger gre ice mac mao may per rum slo tib wel"


@cache
def iso3(code: str) -> str:
    """Return the code of ISO 639-3 of a language, itself where it has no longer one. By CLDR."""
    from babel.core import get_global

    aliases = get_global("language_aliases").items()
    longer = [alias for alias, of in aliases if of == code and len(alias) == 3]
    longer = [alias for alias in longer if alias not in _BIBLIOGRAPHIC.split()]
    # of several the one of the whole language, which begins like the code and comes last
    return ([alias for alias in longer if alias.startswith(code)] or longer or [code])[-1]
