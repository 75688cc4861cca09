"""Translating a text: what is said to the translator, piece by piece, and when it is not believed.

Pure. Code is not sent unless asked for, long texts are cut at the ends of sentences, and the pieces
joined are the text again, to the last space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from factory.errors import RecipeError
from factory.language.detect import detect, differs, matches
from factory.language.languages import language, likely
from factory.language.prose import INLINE, LETTER, fenced, prose
from factory.language.words import segments

Format = Literal["chat", "translategemma", "completion"]

# What a translator is told. TranslateGemma's is the one user message of its chat template as
# served by vLLM; a completion model goes on writing after the colon.
TEMPLATES: dict[Format, str] = {
    "chat": "Translate the following text from {source} into {target}. "
    "Answer with the translation alone.\n\n{text}",
    "translategemma": "<<<source>>>{source}<<<target>>>{target}<<<text>>>{text}",
    "completion": "{source}: {text}\n{target}:",
}
_MARKERS: dict[Format, re.Pattern[str]] = {
    "translategemma": re.compile(r"<<<\s*(source|target|text)\s*>>>", re.IGNORECASE)
}
_PUBLISHED = {"pt": "pt-PT"}  # that the published runs ask TranslateGemma for

# Characters of a translation for one of English, where that is far from 1: the median over the
# 1,000 prompts that Implicit Cross-Lingual Rewarding published in English and Chinese.
_DENSITY = {"zh": 0.4}
_SMOOTH = 20  # characters added to both sides of a length ratio: short texts vary most

_END = "。！？｡؟۔।॥։።។၊။༎"  # of a sentence, beside . ! ? …
_SENTENCE = re.compile(rf"[.!?…{_END}]+[\"'”’»)\]」』]*\s+|\n\s*|[。！？｡]+[」』）]*|[။།]+")
_SPACE = re.compile(r"\s+")
# Thai, Lao, Tibetan, Burmese, Khmer, kana and Han: written without spaces
_UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")


@dataclass(frozen=True)
class Piece:
    """A part of a text; `translatable` when it is to be translated, else it stays as it is."""

    text: str
    translatable: bool

    def around(self, translation: str) -> str:
        """The translation with the white space that stood around the piece."""
        body = self.text.strip()
        at = self.text.index(body)
        return self.text[:at] + translation.strip() + self.text[at + len(body) :]


def pieces(
    text: str,
    most: int,
    length: Callable[[str], int],
    paragraphs: bool = False,
    everything: bool = False,
) -> list[Piece]:
    """Cut a text into what is sent to a translator and what is not.

    Fenced code is not sent, nor is what holds no letter, unless `everything` is. Prose longer than
    `most` (as `length` counts) is cut at the ends of sentences, never inside code; a sentence that
    is too long by itself is cut between words, and one word or one span of code is never cut. With
    `paragraphs`, every paragraph is a piece of its own. The texts of the pieces, joined, are
    `text`.
    """
    parts: list[Piece] = []
    for part, code in [(text, False)] if everything else fenced(text):
        if code:
            parts.append(Piece(part, translatable=False))
            continue
        for block in _split(part, _PARAGRAPH) if paragraphs else [part]:
            for chunk in _packed(block, most, length):
                sent = bool(chunk.strip() if everything else LETTER.search(chunk))
                parts.append(Piece(chunk, translatable=sent))
    return parts


def _packed(text: str, most: int, length: Callable[[str], int]) -> Iterator[str]:
    """Return as few runs of whole sentences as fit into `most` each."""
    if length(text) <= most:
        if text:
            yield text
        return
    run = ""
    for sentence in _split(text, _SENTENCE):
        for word in [sentence] if length(sentence) <= most else _words(sentence, most, length):
            if run and length(run + word) > most:
                yield run
                run = ""
            run += word
    if run:
        yield run


def _words(sentence: str, most: int, length: Callable[[str], int]) -> Iterator[str]:
    """Yield the words of a sentence with the space after them; of one that is too long, as a whole
    sentence of Thai is, the words that ICU finds in it."""
    for word in _split(sentence, _SPACE):
        unspaced = length(word) > most and _UNSPACED.search(word) and not INLINE.search(word)
        yield from segments(word) if unspaced else [word]


def _split(text: str, border: re.Pattern[str]) -> list[str]:
    """Parts that end where `border` does. No cut lies inside code, and what looks like the end of
    a sentence is none when a small letter follows (`e.g. this`)."""
    spans = [match.span() for match in INLINE.finditer(text)]
    cuts = [0]
    for match in border.finditer(text):
        end = match.end()
        inside = any(low < end < high for low, high in spans)
        goes_on = border is _SENTENCE and "\n" not in match[0] and text[end : end + 1].islower()
        if not inside and not goes_on:
            cuts.append(end)
    ends = [*cuts[1:], len(text)]
    return [text[low:high] for low, high in zip(cuts, ends, strict=True) if low < high]


@dataclass(frozen=True)
class TranslationPrompt:
    """Prompt of one translator: its format, and its names of the two languages."""

    format: Format
    source: str
    target: str

    def ask(self, text: str) -> str:
        """Return the prompt for one piece of text."""
        values = {"source": self.source, "target": self.target, "text": text}
        return TEMPLATES[self.format].format(**values)

    def markers(self, text: str, special: Sequence[str]) -> list[str]:
        """Return the parts of a text that would be read as the format's own: its markers, and the
        `special` tokens of the translator."""
        own = _MARKERS.get(self.format)
        tokens = [match[0] for match in own.finditer(text)] if own else []
        return tokens + [token for token in special if token in text]

    def answer(self, text: str) -> tuple[str, bool]:
        """Return the translation in a completion, and whether it ended before the completion did:
        a completion model that is done with a paragraph goes on with the next one."""
        if self.format != "completion":
            return text.strip(), False
        ends = [at for mark in ("\n\n", f"\n{self.source}:") if (at := text.find(mark, 1)) > 0]
        return text[: min(ends, default=len(text))].strip(), bool(ends)


def wording(form: Format, source: str, target: str, names: Mapping[str, str]) -> TranslationPrompt:
    """Return the prompt for two language codes. `names` are the translator's own names of
    languages; TranslateGemma goes by codes, the others by names. Raises RecipeError for an unknown
    code, and for one that TranslateGemma has none for."""

    def name(code: str) -> str:
        usual = language(code).name
        return _gemma_code(code, names) if form == "translategemma" else names.get(code, usual)

    return TranslationPrompt(form, name(source), name(target))


@cache
def _gemma_codes() -> dict[str, str]:
    """Return the codes of TranslateGemma by themselves, and by their likely script and region."""
    text = (Path(__file__).parent / "translategemma.txt").read_text("utf-8")
    codes = text.partition("\n")[2].split()
    written = {str(tag): code for code in reversed(codes) if (tag := likely(code))}
    return written | {code: code for code in codes}


def _gemma_code(code: str, names: Mapping[str, str]) -> str:
    codes = _gemma_codes()
    if code in names:
        if names[code].replace("_", "-") in codes.values():
            return names[code]
        raise RecipeError(
            f"names: {code}: {names[code]!r} is no code of TranslateGemma",
            "it goes by codes such as pt-BR or zh-Hant",
        )
    meant = _PUBLISHED.get(code) or codes.get(code) or codes.get(str(likely(code)))
    if meant is None:
        raise RecipeError(
            f"TranslateGemma has no code for {code} ({language(code).name})",
            f"say which of its languages to ask for (names: {{{code}: …}}), leave the language out "
            "of translate, or take another translator (format: chat)",
        )
    return meant


def length_ratio(source: str, translation: str, target: str) -> float:
    """Return the length of a translation for its source; 1 is usual in the target language. Of
    8,000 published prompts in eight languages all lie between 0.4 and 2.6."""
    expected = (len(source) + _SMOOTH) * _DENSITY.get(target.partition("-")[0], 1.0)
    return (len(translation) + _SMOOTH) / expected


def copied(source: str, translation: str) -> bool:
    """Whether a text came back as it was, but for case, space and marks. What has no letters is
    right as it is."""
    first, second = (re.sub(r"[\W_]+", "", text).casefold() for text in (source, translation))
    return bool(LETTER.search(source)) and first == second


def flaw(
    source: str, translation: str, languages: tuple[str, str], most_ratio: float | None
) -> str | None:
    """Why a translation is not believed: `empty`, `copied`, `length_ratio` or `wrong_language`;
    None when nothing speaks against it. `languages` are those of source and target.

    A text too short to tell its language is not dropped for it, nor is one that is found to be in
    the same third language as its source: the prompt holds text that it asks something about.
    """
    source_language, target_language = languages
    if source.strip() and not translation.strip():
        return "empty"
    if copied(prose(source), prose(translation)):
        return "copied"
    ratio = length_ratio(source, translation, target_language)
    if most_ratio is not None and not 1 / most_ratio <= ratio <= most_ratio:
        return "length_ratio"
    label = detect(translation, target_language)
    if differs(label, target_language) and (
        matches(label, source_language) or label != detect(source, target_language)
    ):
        return "wrong_language"
    return None
