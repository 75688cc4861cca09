"""Example pairs of manifests, for reading side by side. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import Manifest
from factory.reports import values


@dataclass(frozen=True)
class ExampleSide:
    """One answer of a pair, with its detected language."""

    name: str  # chosen or rejected
    text: str
    language: str
    score: float | None
    tokens: int | None


@dataclass(frozen=True)
class ExamplePair:
    """A prompt and two answers to it; `turns` are (role, text)."""

    step: str
    prompt_id: str
    language: str
    turns: tuple[tuple[str, str], ...]
    sides: tuple[ExampleSide, ExampleSide]


def pairs(manifests: Iterable[Manifest]) -> list[ExamplePair]:
    """Read the examples of every artifact of pairs, in their order."""
    examples = []
    for manifest in manifests:
        if manifest.kind != "pairs":
            continue
        for sample in manifest.samples:
            cells = sample.cells
            turns = _turns(cells.get("prompt"))
            language = _word(cells.get("prompt_language")) or sample.slice
            examples.append(
                ExamplePair(
                    step=manifest.step,
                    prompt_id=_word(cells.get("prompt_id")),
                    language=language,
                    turns=turns,
                    sides=(_side("chosen", cells), _side("rejected", cells)),
                )
            )
    return examples


def _side(name: str, cells: dict[str, Any]) -> ExampleSide:
    tokens = values.number(cells.get(f"{name}_tokens"))
    return ExampleSide(
        name=name,
        text="\n\n".join(text for _, text in _turns(cells.get(name))),
        language=_word(cells.get(f"{name}_language")),
        score=values.number(cells.get(f"score_{name}")),
        tokens=None if tokens is None else int(tokens),
    )


def _turns(value: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str):
        return (("user", value),)
    if not isinstance(value, list):
        return ()
    return tuple(
        (_word(turn.get("role")), _word(turn.get("content")))
        for turn in value
        if isinstance(turn, dict)
    )


def _word(value: Any) -> str:
    return "" if value is None else str(value)
