"""Rounds of a recipe: the stages from generate to dpo again, each time from the last adapter.

Pure: the copies are written into the recipe's data before it is read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import deepcopy
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from factory.config import Document, Knobs
from factory.errors import RecipeError
from factory.pairs.pair import Best, Pair
from factory.planning.stages import STAGES
from factory.rewards.score import Score
from factory.sampling.dedup import Dedup
from factory.sampling.generate import Generate
from factory.stage.stage import Stage, round_name, round_of
from factory.training import losses
from factory.training.train import Dpo

REPEATED: tuple[type[Stage], ...] = (Generate, Dedup, Score, Pair, Best, Dpo)


class Rounds(Knobs):
    """`rounds: 3`, or `{n: 3}` with more. In round 2 the model with the adapter of round 1 samples
    (`generate-2`), its answers are scored and paired (`score-2`, `pair-2`), and training goes on
    with that adapter (`dpo-2`); and so on. `reference`: what dpo is held against: the adapter of
    the round before, or the model before the first round. `refresh`: after how many rounds an
    implicit or generative reward of the same model as the policy gets the newest adapter."""

    n: int = Field(1, ge=1, le=99)
    reference: Literal["previous", "initial"] = "previous"
    refresh: int | Literal["never"] = Field(1)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return value if isinstance(value, dict | Rounds) else {"n": value}

    @model_validator(mode="after")
    def _refreshes(self) -> Rounds:
        if isinstance(self.refresh, int) and self.refresh < 1:
            raise ValueError("refresh: a number of rounds, 1 or more, or never")
        return self


@cache
def in_round(stage: type[Stage], number: int) -> type[Stage]:
    """Return the stage of a later round: the same work under the name `dpo-2`."""
    if number == 1:
        return stage
    names = {"name": round_name(stage.name, number), "repo": round_name(stage.repo, number)}
    annotations = dict.fromkeys(names, ClassVar[str])
    space = {"__module__": stage.__module__, "__doc__": stage.__doc__}
    return type(stage.__name__, (stage,), {**space, "__annotations__": annotations, **names})


def line(names: Collection[str]) -> tuple[type[Stage], ...]:
    """Return every stage that there is, in order, with as many rounds as the `names` of stages
    have."""
    at = STAGES.index(Dpo) + 1
    n = max((round_of(str(name)) for name in names), default=1)
    later = (in_round(stage, number) for number in range(2, n + 1) for stage in REPEATED)
    return (*STAGES[:at], *later, *STAGES[at:])


def unroll(document: Document, merge: Callable[[Any, Any], Any]) -> None:
    """Write the stages and models of later rounds into a recipe's data. `merge` lays over them what
    the recipe says of them itself. Raises RecipeError. What is no recipe stays as it is, for its
    reader."""
    data = document.data
    try:
        rounds = Rounds.model_validate(data.get("rounds", 1))
    except ValidationError:
        return
    stages, models = data.get("stages"), data.get("models")
    if rounds.n == 1 or not isinstance(stages, dict) or not isinstance(models, dict):
        return
    at = document.place(("rounds",))
    for name in ("generate", "score", "dpo"):
        if name not in stages:
            raise RecipeError(
                f"{at}: a round samples, scores and trains, and the recipe has no {name}",
                f"add {name} under stages:, or leave rounds out",
            )
    dpo = stages["dpo"] if isinstance(stages["dpo"], dict) else {}
    base = str(dpo.get("base", "policy"))
    if base not in models:
        return
    rewards = (stages["score"] or {}).get("reward", "reward")
    rewards = rewards if isinstance(rewards, list) else [rewards]
    fresh = [name for name in rewards if _is_policy(models.get(name), models.get(base))]
    if not fresh and "refresh" in (data["rounds"] if isinstance(data["rounds"], dict) else {}):
        raise RecipeError(
            f"{at}: rounds.refresh is for an implicit or generative reward of {base}'s own model, "
            f"and {', '.join(map(str, rewards))} is none",
            "leave refresh out",
        )
    learned = losses.TRIPLE & set(dpo["loss"] if isinstance(dpo.get("loss"), dict) else
                                  [dpo.get("loss")])  # fmt: skip
    for number in range(2, rounds.n + 1):
        trained = round_name("dpo", number - 1)
        changes: dict[str, dict[str, Any]] = {"generate": {}, "score": {}, "dpo": {}}
        policy = round_name(base, number)
        _lay(document, merge, ("models", policy), ("models", base), {"adapter": trained})
        drawing = stages["generate"] or {}
        if drawing.get("model", "policy") == base:
            changes["generate"]["model"] = policy
        if base in drawing.get("also", {}):
            renamed = {policy if k == base else k: n for k, n in drawing["also"].items()}
            changes["generate"]["also"] = renamed
        every = rounds.refresh if isinstance(rounds.refresh, int) else rounds.n
        since = number - (number - 1) % every  # the round in which rewards were refreshed
        newest = [round_name(name, since) if name in fresh else name for name in rewards]
        if since == number:
            for name in fresh:
                _lay(document, merge, ("models", round_name(name, number)), ("models", name),
                     {"adapter": trained})  # fmt: skip
        if newest != rewards:
            changes["score"]["reward"] = newest if len(newest) > 1 else newest[0]
        changes["dpo"] |= {"base": policy, "start_from": None}
        if rounds.reference == "initial":
            changes["dpo"]["reference"] = base
        for stage in REPEATED:
            if stage.name not in stages or (stage is Best and not learned):
                continue
            place = ("stages", round_name(stage.name, number))
            _lay(document, merge, place, ("stages", stage.name), changes.get(stage.name, {}))
    if isinstance(merged := stages.get("merge"), dict):
        names = [str(name) for name in merged.get("of", ["dpo"])]
        if not any(name.startswith("dpo-") for name in names):  # the last, where none is named
            merged["of"] = [_in_last(name, rounds.n) for name in names]
            if isinstance(weights := merged.get("weights"), dict):
                merged["weights"] = {_in_last(str(k), rounds.n): w for k, w in weights.items()}
    del data["rounds"]  # the stages say it now, and come back so from the recipe of a collection


def _in_last(name: str, last: int) -> str:
    """Return the name of adapters of dpo in the last round; other names as they are."""
    stage, bracket, group = name.partition("[")
    return f"{round_name(stage, last)}{bracket}{group}" if stage == "dpo" else name


def _is_policy(reward: Any, policy: Any) -> bool:
    """Return whether a reward is of the same model as the policy, both as a recipe writes them."""
    if not isinstance(reward, dict) or reward.get("kind") not in ("implicit", "generative"):
        return False
    names = policy if isinstance(policy, dict) else {"name": str(policy).partition("@")[0]}
    return reward.get("name") is not None and reward["name"] == names.get("name")


def _lay(
    document: Document,
    merge: Callable[[Any, Any], Any],
    to: tuple[str, str],
    source: tuple[str, str],
    changes: dict[str, Any],
) -> None:
    """Lay a copy of an entry, with changes (None takes a key away), under what is at `to`. Raises
    RecipeError for a stage that is taken in, unless the recipe says what the later one is."""
    parent = document.data[to[0]]
    own, copied = parent.get(to[1]), deepcopy(parent.get(source[1]))
    if isinstance(copied, str):
        copied = dict(zip(("name", "revision"), copied.split("@", 1), strict=False))
    copied = copied if isinstance(copied, dict) else {}
    if copied.pop("from", None) is not None and own is None:
        raise RecipeError(
            f"{document.place(source)}: {source[1]} is taken in, and a later round makes its own",
            f"say what: {to[0]}.{to[1]}: {{…}}",
        )
    laid = {key: value for key, value in (copied | changes).items() if value is not None}
    parent[to[1]] = laid if own is None else merge(laid, own)
    for path in [path for path in document.places if path[: len(source)] == source]:
        document.places.setdefault((*to, *path[len(source) :]), document.places[path])
