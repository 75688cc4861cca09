"""transfer: which reward model, trained on which language, ranks pairs of which language well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from factory.artifacts import schemas, shards
from factory.artifacts.manifest import Rows
from factory.artifacts.shards import Shard
from factory.config import REFERENCE
from factory.engines import Scorer, choose
from factory.engines.chat_template import Message
from factory.engines.choose import EngineCache, EngineKnobs
from factory.errors import RecipeError
from factory.rewards import preferences
from factory.rewards.backends import Classifier
from factory.rewards.preferences import Known, Pairs
from factory.stage.inputs import Need, SliceSpec, StepInput, model_of
from factory.stage.job import Job
from factory.stage.outcome import Outcome
from factory.stage.readers import given_id, unlike
from factory.stage.stage import How, Scope, Stage

Named = tuple[str, list[Message], str, str]  # id, prompt, better answer, worse


class TransferHow(How, EngineKnobs):
    """`shard`: pairs in a shard."""

    shard: int = Field(1024, ge=1)


class Transfer(Stage):
    """Every reward model in `of` (classifiers under models:, or the stage that trains them) ranks
    the `pairs` of every language of the recipe that has any: one source for all, or one each."""

    name: ClassVar[str] = "transfer"
    kind: ClassVar[str] = "rankings"
    repo: ClassVar[str] = "transfer"
    row_wise: ClassVar[bool] = True

    of: Annotated[tuple[str, ...], REFERENCE, Field(min_length=1)] = ("reward",)
    pairs: Annotated[dict[str, Pairs], REFERENCE, Field(min_length=1)]
    max_tokens: int = Field(16384, ge=1)  # of prompt and answer; longer ones get no reward
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    how: TransferHow = TransferHow()

    @field_validator("pairs", mode="before")
    @classmethod
    def _for_all(cls, value: Any) -> Any:
        return preferences.for_all(value)

    def slices(self, scope: Scope) -> list[SliceSpec]:
        found = []
        for label, reward in self._models(scope).items():
            for code in scope.languages:
                if pairs := preferences.of_language(self.pairs, code):
                    needs = (pairs.need("pairs", code), reward)
                    found.append(SliceSpec(self.name, f"{code}/{label}", code, needs))
        if not found:
            raise RecipeError(
                f"stages.transfer.pairs are of {', '.join(self.pairs)}, none of the languages here",
                "add those to languages:, or give one source for all",
            )
        return found

    def _models(self, scope: Scope) -> dict[str, Need]:
        """Reward models by their labels: a stage's are called by the language they learned from."""
        found: dict[str, Need] = {}
        for name in self.of:
            if name in scope.models:
                found[name] = scope.classifier(name, "reward", self.name)
                continue
            if scope.stage(name, self.name).kind != "model":
                raise RecipeError(
                    f"stages.transfer.of: {name} trains no reward models",
                    "name reward, or a classifier under models:",
                )
            for spec in scope.slices(name, self.name):
                found[f"{name}-{spec.name}"] = StepInput("reward", spec.step, spec.name)
        return found

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        pairs = preferences.of_language(self.pairs, str(spec.language))
        read = preferences.how_read(pairs) if pairs else {}
        return super().identity_fields(spec) | ({"pairs": read} if read else {})

    def shards(self, rows: int, spec: SliceSpec) -> int:
        return -(-rows // self.how.shard)

    def run(self, job: Job) -> Outcome:
        specs = {spec.name: spec for spec in job.slices}
        read: dict[str, list[Named]] = {}  # by language: every model ranks the same
        for spec in job.slices:
            code = str(spec.language)
            pairs = preferences.of_language(self.pairs, code)
            if pairs and code not in read:
                read[code] = _named(pairs.read(job.place(spec, "pairs").path, code))
        mine = {name: read[str(spec.language)] for name, spec in specs.items()}
        models = {model_of(name): spec for name, spec in specs.items()}

        def opened(label: str) -> Scorer:
            return choose.scorer(self.how, job.place(models[label], "reward").path, self.dtype)

        with EngineCache(opened) as engine:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                pairs = mine[shard.slice][shard.start : shard.stop]
                scorer = engine(model_of(shard.slice))  # slices of one model follow one another
                rows = self._rank(scorer, specs[shard.slice], pairs)
                table = shards.with_metadata(schemas.from_rows(rows, self.kind), engine=scorer.name)
                return table, sum(row["n_tokens"] for row in rows)

            sizes = {name: len(pairs) for name, pairs in mine.items()}
            tables = job.make_rows(self.kind, sizes, self.how.shard, make)
        counts = {name: Rows(into=sizes[name], out=len(table)) for name, table in tables.items()}
        matrix = [
            {"reward_model": model_of(name), "language": specs[name].language}
            | cell(table.column("reward_chosen").to_pylist(),
                   table.column("reward_rejected").to_pylist())
            for name, table in tables.items()
        ]  # fmt: skip
        return Outcome(
            counts,
            determinism="rounding",
            stats={"matrix": matrix},
            tokens=sum(sum(table.column("n_tokens").to_pylist()) for table in tables.values()),
        )

    def _rank(
        self, scorer: Scorer, spec: SliceSpec, pairs: Sequence[Named]
    ) -> list[dict[str, Any]]:
        """What one model makes of some pairs in one language."""
        reward = Classifier(scorer, self.max_tokens)
        values = reward([(prompt, text) for _, prompt, *both in pairs for text in both])
        return [
            {
                "reward_model": model_of(spec.name),
                "pair_id": name,
                "language": spec.language,
                "reward_chosen": chosen.value,
                "reward_rejected": rejected.value,
                "status": rejected.status if chosen.status == "ok" else chosen.status,
                "n_tokens": chosen.n_tokens + rejected.n_tokens,
            }
            for (name, *_), chosen, rejected in zip(pairs, values[::2], values[1::2], strict=True)
        ]


def cell(chosen: Sequence[float | None], rejected: Sequence[float | None]) -> dict[str, Any]:
    """One field of the matrix, from the rewards of both sides: a tie is not right, and a pair
    without a reward counts on neither side."""
    known = [(c, r) for c, r in zip(chosen, rejected, strict=True) if None not in (c, r)]
    right = sum(c > r for c, r in known)  # type: ignore[operator]
    found: dict[str, Any] = {
        "pairs": len(known),
        "right": right,
        "tied": sum(c == r for c, r in known),
        "without": len(chosen) - len(known),
        "shown": "no pair has rewards",
    }
    if known:
        low, high = wilson(right, len(known))
        share = right / len(known)
        found |= {"share": share, "low": low, "high": high}
        found["shown"] = f"{share:.1%} [{low:.1%}, {high:.1%}]"
    return found


def wilson(right: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (J. Am. Stat. Assoc. 22, 1927)."""
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / of / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _named(pairs: Iterable[Known]) -> list[Named]:
    """Pairs with an id each: their own, or their place."""
    found: list[Named] = []
    seen: set[str] = set()
    for number, (row, prompt, better, worse) in enumerate(pairs):
        name = unlike(seen, given_id(row) or str(number))
        seen.add(name)
        found.append((name, prompt, better, worse))
    return found
