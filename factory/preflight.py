"""What can be known before a model is loaded: how a recipe uses each tokenizer, and which prompts
are too long for it. Pure: lengths and limits come in as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from factory.engines import Sampling
from factory.recipe import Recipe
from factory.stages.contract import Stage
from factory.stages.needs import Need, Outside, Read, Served, SliceSpec

_READS_WHOLE = ("reward", "judge")  # roles of classifiers
_PROMPTS = ("prompts", "questions")
_ADAPTERS = ("adapter", "start", "source")  # what comes from outside and goes with its base


@dataclass(frozen=True)
class Finding:
    """Something that a recipe will run into: `about` a model or a language, and the fix."""

    level: Literal["error", "warning"]
    about: str
    what: str
    fix: str

    def line(self) -> str:
        """As one line."""
        return f"{self.level}: {self.about}: {self.what} (fix: {self.fix})"


@dataclass(frozen=True)
class Use:
    """How one stage uses a tokenizer: to `answer` with up to `limit` tokens, or to `read` up to
    `limit` tokens, in the languages of these slices of prompts; no limit where it is trained."""

    stage: str
    does: Literal["answer", "read"]
    limit: int | None
    prompts: tuple[SliceSpec, ...]


@dataclass(frozen=True)
class Asked:
    """A tokenizer: the model that it comes with, whether that one answers (a classifier does not),
    and its uses."""

    model: Outside
    answers: bool
    uses: tuple[Use, ...]


def asked(recipe: Recipe, only: frozenset[str] | None = None) -> list[Asked]:
    """Every tokenizer that the steps of a recipe need (or `only` those), each once.

    A model that is trained here has the tokenizer of its base.
    """
    laid = recipe.slices()
    specs = {(spec.step, spec.name): spec for _, spec in laid}
    found: dict[str, Asked] = {}
    for stage, spec in laid:
        if only is not None and spec.step not in only:
            continue
        for need in spec.needs:
            model = _origin(need, specs)
            if model is None:
                continue
            # a translator is asked single turns in a format of its own, and never read again
            reads = (
                need.role in _READS_WHOLE
                or stage.kind == "prompts"
                or (need.role == "base" and stage.kind == "model")
            )
            before = found.get(model.source, Asked(model, False, ()))
            uses = _with(before.uses, _use(stage, spec, specs))
            found[model.source] = Asked(before.model, before.answers or not reads, uses)
    return list(found.values())


def _origin(need: Need, specs: Mapping[tuple[str, str], SliceSpec]) -> Outside | None:
    """The outside model whose tokenizer a need comes with; None for what is no model."""
    if isinstance(need, Outside):
        return need if need.kind == "model" and need.role not in _ADAPTERS else None
    if isinstance(need, Served) or need.role == "adapter":
        return None  # no tokenizer is here; or it goes with its base, which is a need of its own
    base = specs[need.step, need.slice].need("base")
    return None if base is None else _origin(base, specs)


def _use(stage: Stage, spec: SliceSpec, specs: Mapping[tuple[str, str], SliceSpec]) -> Use | None:
    limit = getattr(stage, "max_tokens", None)
    if stage.kind not in ("samples", "answers", "scores") or limit is None:
        return None
    sources = tuple(
        specs[need.step, need.slice]
        for need in spec.needs
        if isinstance(need, Read) and need.role in _PROMPTS
    )
    return Use(stage.name, "read" if stage.kind == "scores" else "answer", limit, sources)


def _with(uses: tuple[Use, ...], new: Use | None) -> tuple[Use, ...]:
    """`uses` with one more, whose prompts join those of the same use in another language."""
    if new is None:
        return uses
    for number, old in enumerate(uses):
        if (old.stage, old.does, old.limit) == (new.stage, new.does, new.limit):
            more = tuple(dict.fromkeys((*old.prompts, *new.prompts)))
            return (*uses[:number], Use(*_key(old), more), *uses[number + 1 :])
    return (*uses, new)


def _key(use: Use) -> tuple[str, Literal["answer", "read"], int | None]:
    return use.stage, use.does, use.limit


def over_long(
    use: Use, about: str, language: str, lengths: Mapping[str, int], context: int | None
) -> list[Finding]:
    """What a use's limits mean for prompts of these lengths (tokens, by id) in one language."""
    if use.limit is None or not lengths:
        return []
    longest = max(lengths, key=lambda name: lengths[name])
    where = f"stages.{use.stage}, {language}"
    if use.does == "read":
        most = min(use.limit, context or use.limit)
        over = [name for name, size in lengths.items() if size >= most]
        return _too_long(over, lengths, longest, about, where, most)
    if context is None:
        return []
    sampling = Sampling(temperature=1, top_p=1, max_tokens=use.limit)
    rooms = {name: sampling.room(size, context) for name, size in lengths.items()}
    over = [name for name, room in rooms.items() if not room]
    least = min(use.limit, context // 2)  # what room() leaves at the least
    found = _too_long(over, lengths, longest, about, where, context - least)
    short = [room for room in rooms.values() if 0 < room < use.limit]
    if short:
        left = min(short)
        found.append(
            Finding(
                "warning",
                about,
                f"{where}: answers to {len(short)} of {len(lengths)} prompts get less than "
                f"max_tokens {use.limit}, down to {left}, in a context of {context}",
                f"set stages.{use.stage}.max_tokens to {left} for all to get the same",
            )
        )
    return found


def _too_long(
    over: list[str], lengths: Mapping[str, int], longest: str, about: str, where: str, most: int
) -> list[Finding]:
    if not over:
        return []
    every = len(over) == len(lengths)
    listed = ", ".join(over[:3]) + (f" and {len(over) - 3} more" if len(over) > 3 else "")
    return [
        Finding(
            "error" if every else "warning",
            about,
            f"{where}: {len(over)} of {len(lengths)} prompts leave no room in {most} tokens: "
            f"{listed}; the longest, {longest}, has {lengths[longest]}",
            "no row comes of them: shorten them, or name a model with a longer context"
            if every
            else "they are counted and get no answer or reward; shorten them to keep them",
        )
    ]
