"""The pool of a prompt: every answer with its reward, and which became chosen and rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from factory.artifacts.manifest import InputRecord, SliceRecord
from factory.pages import rows
from factory.pages.visit import Version, Visit, languages
from factory.reports import values

_PAIR = ("prompt_id", "id", "prompt", "chosen", "rejected", "chosen_k", "rejected_k",
         "score_chosen", "score_rejected", "chosen_language", "rejected_language")  # fmt: skip
_SAMPLE = ("prompt_id", "k", "response", "n_tokens", "finish_reason", "detected_language")
_SCORE = ("prompt_id", "k", "reward", "status")


@dataclass(frozen=True)
class PoolAnswer:
    """One answer of a pool. `role` is chosen, rejected or neither; `width` the length of its bar in
    percent: rewards from the lowest of the pool to the highest."""

    k: int | None
    text: str
    reward: float | None
    width: float
    role: str
    language: str
    tokens: int | None
    cut_off: bool
    status: str


@dataclass(frozen=True)
class Pool:
    """A prompt with its pool, best first. `elsewhere` are the languages that have it too, with the
    number of the prompt there; `pair` is the row of the pair, if it made one."""

    prompt_id: str
    turns: tuple[tuple[str, str], ...]
    answers: tuple[PoolAnswer, ...]
    elsewhere: tuple[tuple[str, int], ...]
    pair: dict[str, Any] | None


@dataclass(frozen=True)
class Pools:
    """The prompts of one language of an artifact of pairs: those of the scores it was made from, or
    of the pairs alone where the scores are not here."""

    version: Version
    language: str
    ids: tuple[str, ...]


def open_pools(visit: Visit, version: Version, language: str) -> Pools:
    """Return the prompts of a language. Raises NotFound."""
    scores = _input(visit, version, language, "scores")
    files = scores[1] if scores else visit.slice(version, language)
    return Pools(version, language, _ids(tuple(files)))


def read(visit: Visit, pools: Pools, number: int) -> Pool:
    """Read the pool of the prompt with this number, from 0."""
    version, language, key = pools.version, pools.language, pools.ids[number]
    pairs = rows.lookup(visit.slice(version, language), "prompt_id", key, _PAIR)
    pair = pairs[0] if pairs else None
    samples = _of(visit, version, language, "samples", key, _SAMPLE)
    rewards = {str(r["k"]): r for r in _of(visit, version, language, "scores", key, _SCORE)}
    roles = {
        str(pair[f"{role}_k"]): role
        for pair in pairs
        for role in ("rejected", "chosen")
        if pair.get(f"{role}_k") is not None
    }
    texts = samples or _sides(pair)
    shown = (values.number(row.get("reward")) for row in (*rewards.values(), *texts))
    finite = [reward for reward in shown if reward is not None]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    answers = []
    for row in texts:
        score = rewards.get(str(row["k"]), {})
        reward = values.number(score.get("reward", row.get("reward")))
        width = 100.0 if high == low else 4 + 96 * ((reward or low) - low) / (high - low)
        answers.append(
            PoolAnswer(
                k=row["k"],
                text=str(row["response"]),
                reward=reward,
                width=0.0 if reward is None else width,
                role=row.get("role") or roles.get(str(row["k"]), ""),
                language=str(row.get("detected_language") or ""),
                tokens=row.get("n_tokens"),
                cut_off=row.get("finish_reason") == "length",
                status=str(score.get("status") or "ok"),
            )
        )
    answers.sort(key=lambda a: (a.reward is None, -(a.reward or 0.0)))
    prompts = _of(visit, version, language, "prompts", key, ("prompt_id", "messages"))
    talk = prompts[0]["messages"] if prompts else pair["prompt"] if pair else []
    return Pool(key, turns(talk), tuple(answers), tuple(_elsewhere(visit, pools, key)), pair)


def turns(talk: Any) -> tuple[tuple[str, str], ...]:
    """Return a conversation as (role, text)."""
    return tuple((str(t.get("role")), str(t.get("content"))) for t in values.mappings(talk))


def _sides(pair: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the answers of a pair whose pool is not here."""
    return [
        {"k": pair.get(f"{role}_k"), "response": "\n\n".join(t for _, t in turns(pair[role])),
         "detected_language": pair.get(f"{role}_language"), "role": role,
         "reward": pair.get(f"score_{role}")}
        for role in ("chosen", "rejected")
    ] if pair else []  # fmt: skip


def _elsewhere(visit: Visit, pools: Pools, key: str) -> list[tuple[str, int]]:
    manifest = pools.version.manifest
    places = []
    for language in languages(manifest.slices if manifest else ()):
        ids = open_pools(visit, pools.version, language).ids
        if language != pools.language and key in ids:
            places.append((language, ids.index(key)))
    return places


def _record(version: Version, name: str) -> SliceRecord | None:
    return version.manifest.slices.get(name) if version.manifest else None


def _input(
    visit: Visit, version: Version, name: str, role: str
) -> tuple[InputRecord, list[Path]] | None:
    """Return an input of a slice with its files, where they are here."""
    record = _record(version, name)
    for read in record.inputs if record else ():
        source = visit.source(read) if read.role == role else None
        files = visit.tables(source).get(read.slice or "") if source else None
        if files:
            return read, files
    return None


def _of(
    visit: Visit, version: Version, name: str, role: str, key: str, columns: Sequence[str]
) -> list[dict[str, Any]]:
    source = _input(visit, version, name, role)
    return rows.lookup(source[1], "prompt_id", key, columns) if source else []


@lru_cache(maxsize=64)
def _ids(files: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the ids of the prompts in their order, each once."""
    return tuple(rows.distinct(files, "prompt_id"))
