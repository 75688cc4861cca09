"""judge: tuned model against reference, question by question, and what the sum of it shows."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from factory import schemas, shards
from factory.artifact import Rows
from factory.engines import choose
from factory.engines.choose import EngineKnobs, Held
from factory.errors import InputError, RecipeError
from factory.knobs import REFERENCE
from factory.rewards import Classifier
from factory.shards import Shard
from factory.stages.arena import contestants
from factory.stages.contract import How, Read, Scope, SliceSpec, Stage
from factory.stages.job import Job, Outcome
from factory.stats import win_rate

_POINTS = {"model": 1.0, "tie": 0.5, "reference": 0.0}
NOT_INDEPENDENT = "training reward (not independent)"


class JudgeHow(How, EngineKnobs):
    """`shard`: questions in a shard."""

    shard: int = Field(64, ge=1)


class Judge(Stage):
    """Verdicts of a reward model: it reads each answer apart, so there is no order to balance."""

    name: ClassVar[str] = "judge"
    kind: ClassVar[str] = "verdicts"
    repo: ClassVar[str] = "verdicts"
    row_wise: ClassVar[bool] = True
    seeded: ClassVar[bool] = True  # the bootstrap

    model: Annotated[str, REFERENCE] = "dpo"
    reference: Annotated[str, REFERENCE] = "policy"
    judge: Annotated[str, REFERENCE] = "reward"
    max_tokens: int = Field(16384, ge=1)
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    how: JudgeHow = JudgeHow()

    def slices(self, scope: Scope) -> list[SliceSpec]:
        judge = scope.classifier(self.judge, "judge", self.name)
        answers = {spec.name: spec for spec in scope.slices("arena", self.name)}
        score = scope.stages.get("score")
        same = score is not None and getattr(score, "reward", None) == self.judge
        found = []
        for label, _, languages in contestants(scope, self.model, self.name):
            for language in languages:
                names = {
                    "answers": f"{language}/{label}",
                    "reference": f"{language}/{self.reference}",
                }
                for name in names.values():
                    if name not in answers:
                        raise RecipeError(
                            f"stages.judge compares {name!r}, which stages.arena does not answer",
                            "add the model to stages.arena.of",
                        )
                reads = tuple(Read(role, "arena", name) for role, name in names.items())
                notes = (NOT_INDEPENDENT,) if same else ()
                found.append(
                    SliceSpec(self.name, names["answers"], language, (*reads, judge), notes)
                )
        return found

    def shards(self, rows: int) -> int:
        return -(-rows // self.how.shard)

    def run(self, job: Job) -> Outcome:
        both = {spec.name: self._matched(job, spec) for spec in job.slices}
        place = job.place(job.slices[0], "judge")

        judge = place.name or place.path.name

        with Held(lambda _: choose.scorer(self.how, place.path, self.dtype)) as engine:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                pairs = both[shard.slice][shard.start : shard.stop]
                reward = Classifier(engine(), self.max_tokens)
                values = reward([(row["prompt"], row["answer"]) for pair in pairs for row in pair])
                rows = []
                for number, (row, reference) in enumerate(pairs):
                    ours, theirs = values[2 * number].value, values[2 * number + 1].value
                    rows.append(
                        {
                            "model": row["model"],
                            "reference": reference["model"],
                            "judge": judge,
                            "question_id": row["question_id"],
                            "language": row["language"],
                            "order": "apart",
                            "verdict": _verdict(ours, theirs),
                            "score_model": ours,
                            "score_reference": theirs,
                        }
                    )
                table = shards.noted(schemas.from_rows(rows, self.kind), engine=engine().name)
                return table, sum(value.n_tokens for value in values)

            sizes = {name: len(pairs) for name, pairs in both.items()}
            tables = job.make_rows(self.kind, sizes, self.how.shard, make)
        counts = {name: Rows(into=sizes[name], out=len(table)) for name, table in tables.items()}
        verdicts = [row for table in tables.values() for row in table.to_pylist()]
        stats = {
            "judge": judge,
            "notes": list(job.slices[0].notes),
            "comparisons": compare(verdicts, job.seed),
        }
        return Outcome(counts, determinism="rounding", stats=stats)

    @staticmethod
    def _matched(job: Job, spec: SliceSpec) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        ours = job.table(spec, "answers", "answers").to_pylist()
        theirs = {
            row["question_id"]: row for row in job.table(spec, "reference", "answers").to_pylist()
        }
        absent = [row["question_id"] for row in ours if row["question_id"] not in theirs]
        if absent or len(ours) != len(theirs):
            raise InputError(
                f"{spec.name}: the two models did not answer the same questions",
                f"answer again; first difference: {(absent or sorted(theirs))[0]}",
            )
        return [(row, theirs[row["question_id"]]) for row in ours]


def _verdict(ours: float | None, theirs: float | None) -> str:
    if ours is None or theirs is None:
        return "unparseable"
    return "tie" if ours == theirs else "model" if ours > theirs else "reference"


def compare(verdicts: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """For each model, over all its languages and in each: verdict counts, mean reward of both
    sides, and the win rate with its interval. Verdicts without a reward count in neither."""
    found = []
    for model in dict.fromkeys(row["model"] for row in verdicts):
        mine = [row for row in verdicts if row["model"] == model]
        languages = list(dict.fromkeys(row["language"] for row in mine))
        for language in ["all", *languages] if len(languages) > 1 else languages:
            rows = [row for row in mine if language in ("all", row["language"])]
            judged = [row for row in rows if row["verdict"] != "unparseable"]
            figures: dict[str, Any] = {
                "model": model,
                "reference": rows[0]["reference"],
                "language": language,
                "won": sum(row["verdict"] == "model" for row in rows),
                "tied": sum(row["verdict"] == "tie" for row in rows),
                "lost": sum(row["verdict"] == "reference" for row in rows),
                "unparseable": len(rows) - len(judged),
            }
            if judged:
                points = [_POINTS[row["verdict"]] for row in judged]
                rate = win_rate(points, [row["question_id"] for row in judged], seed)
                figures |= {
                    "mean_reward_model": sum(r["score_model"] for r in judged) / len(judged),
                    "mean_reward_reference": sum(r["score_reference"] for r in judged)
                    / len(judged),
                    "win_rate": rate.dump(),
                    "shown": rate.shown(),
                }
            found.append(figures)
    return found
