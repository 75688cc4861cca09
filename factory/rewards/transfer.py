"""transfer: rank pairs of each language with each reward model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from factory.artifacts import schemas, shards
from factory.artifacts.manifest import Rows
from factory.artifacts.shards import Shard
from factory.config import REFERENCE
from factory.engines.chat_template import Message
from factory.engines.choose import EngineCache, EngineKnobs
from factory.errors import FactoryError, RecipeError
from factory.rewards import preferences, rankings
from factory.rewards.backends import missing_server, open_reward
from factory.rewards.backends.backend import OpenReward, RewardSettings
from factory.rewards.backends.classifier import ClassifierBackend
from factory.rewards.preferences import Known, Pairs
from factory.stage.inputs import ExternalInput, RewardInput, SliceSpec, StepInput, model_of
from factory.stage.job import Job
from factory.stage.outcome import Outcome
from factory.stage.readers import DistinctIds, View, given_id
from factory.stage.stage import How, Stage, StageContext

# id, prompt, better answer, worse, subset
NamedPair = tuple[str, list[Message], str, str, str | None]


class TransferHow(How, EngineKnobs):
    """`shard`: pairs in a shard."""

    shard: int = Field(1024, ge=1)


class Transfer(Stage):
    """Every reward in `of` (of any kind under models:, or the stage that trains them) ranks the
    `pairs` of every language of the recipe that has any: one source for all, or one each."""

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

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        specs = []
        for label, reward in self._models(context).items():
            for code in context.languages:
                if pairs := preferences.of_language(self.pairs, code):
                    needs = (pairs.need("pairs", code), *reward.needs)
                    name = f"{code}/{label}"
                    specs.append(SliceSpec(self.name, name, code, needs, reward=reward))
        if not specs:
            raise RecipeError(
                f"stages.transfer.pairs are of {', '.join(self.pairs)}, none of the languages here",
                "add those to languages:, or give one source for all",
            )
        return specs

    def _models(self, context: StageContext) -> dict[str, RewardInput]:
        """Return the rewards by their labels; a stage's are called by the language they learned
        from."""
        rewards: dict[str, RewardInput] = {}
        for name in self.of:
            if name in context.models:
                rewards[name] = context.reward(name, self.name)
                continue
            if context.stage(name, self.name).kind != "model":
                raise RecipeError(
                    f"stages.transfer.of: {name} trains no reward models",
                    "name reward, or a reward under models:",
                )
            for spec in context.slices(name, self.name):
                trained = ClassifierBackend(kind="classifier", step=spec.step)
                need = StepInput("reward", spec.step, spec.name)
                rewards[f"{name}-{spec.name}"] = RewardInput(trained, (("reward", need),))
        return rewards

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        pairs = preferences.of_language(self.pairs, str(spec.language))
        read = pairs.how_read() if pairs else {}
        return super().identity_fields(spec) | ({"pairs": read} if read else {})

    def outside_rows(self, spec: SliceSpec) -> tuple[ExternalInput, View] | None:
        need, pairs = spec.need("pairs"), preferences.of_language(self.pairs, str(spec.language))
        return (need, pairs) if isinstance(need, ExternalInput) and pairs else None

    def missing_requirements(self, specs: Sequence[SliceSpec]) -> list[FactoryError]:
        return missing_server(specs)

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        return -(-rows // self.how.shard)

    def run(self, job: Job) -> Outcome:
        specs = {spec.name: spec for spec in job.slices}
        read: dict[str, list[NamedPair]] = {}  # by language: every model ranks the same
        dropped: dict[str, dict[str, int]] = {}
        for spec in job.slices:
            code = str(spec.language)
            pairs = preferences.of_language(self.pairs, code)
            if pairs and code not in read:
                known, dropped[code] = pairs.read(job.place(spec, "pairs").path, code)
                read[code] = _named(known)
        to_rank = {name: read[str(spec.language)] for name, spec in specs.items()}
        models = {model_of(name): spec for name, spec in specs.items()}

        settings = RewardSettings(self.how, self.dtype, self.max_tokens)

        with EngineCache(lambda label: open_reward(job, models[label], settings)) as engine:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                pairs = to_rank[shard.slice][shard.start : shard.stop]
                reward = engine(model_of(shard.slice))  # slices of one model follow one another
                rows = _rank(reward, specs[shard.slice], pairs)
                table = shards.with_metadata(schemas.from_rows(rows, self.kind), engine=reward.name)
                return table, sum(row["n_tokens"] for row in rows)

            sizes = {name: len(pairs) for name, pairs in to_rank.items()}
            tables = job.make_rows(self.kind, sizes, self.how.shard, make)
        counts = {}
        for name, table in tables.items():
            lost = dropped[str(specs[name].language)]
            into = sizes[name] + sum(lost.values())
            counts[name] = Rows(into=into, out=len(table), dropped=lost)
        matrix = [
            {"reward_model": model_of(name), "language": specs[name].language}
            | rankings.describe(table, tables.get(f"en/{model_of(name)}"))
            for name, table in tables.items()
        ]
        return Outcome(
            counts,
            determinism="rounding",
            stats={"matrix": matrix},
            tokens=sum(sum(table.column("n_tokens").to_pylist()) for table in tables.values()),
        )


def _rank(reward: OpenReward, spec: SliceSpec, pairs: Sequence[NamedPair]) -> list[dict[str, Any]]:
    """Return the rankings of some pairs in one language by one reward, as rows."""
    values = reward.reward([(prompt, text) for _, prompt, *both, _ in pairs for text in both])
    return [
        {
            "reward_model": model_of(spec.name),
            "pair_id": name,
            "language": spec.language,
            "reward_chosen": chosen.value,
            "reward_rejected": rejected.value,
            "status": rejected.status if chosen.status == "ok" else chosen.status,
            "n_tokens": chosen.n_tokens + rejected.n_tokens,
            "subset": subset,
        }
        for (name, *_, subset), chosen, rejected in zip(
            pairs, values[::2], values[1::2], strict=True
        )
    ]


def _named(pairs: Iterable[Known]) -> list[NamedPair]:
    """Return pairs with an id each (their own, or their number) and the subset they are of."""
    named: list[NamedPair] = []
    ids = DistinctIds()
    for number, (row, prompt, better, worse) in enumerate(pairs):
        name = ids(given_id(row) or str(number))
        named.append((name, prompt, better, worse, rankings.subset_of(row)))
    return named
