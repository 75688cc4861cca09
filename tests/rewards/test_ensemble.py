"""Several rewards as one: what is combined, what they disagree about, who is told."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from factory.errors import RecipeError
from factory.pairs.pair import Best, Pair
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import Recipe, load
from factory.rewards.ensemble import agreement, combined, combined_pairs
from tests.rewards import test_score
from tests.rewards.test_score import CLASSIFIER, job, roles, run, specs, values
from tests.support.builders import by_name, lock_of

models = test_score.models  # the fixture
RECIPE = """\
name: made
org: lab
languages: [en, es]
models:
  policy: lab/policy
  rm: {{kind: classifier, name: lab/classifier}}
  gap: {{kind: implicit, name: lab/tuned, reference: policy}}
stages:
  prompts: {{source: "p-{{language}}.jsonl"}}
  generate: {{n: 3}}
  score: {{reward: {reward}, dtype: float32{more}}}
"""


def recipe(tmp_path: Path, reward: str = "[rm, gap]", more: str = "", after: str = "") -> Recipe:
    path = tmp_path / "made.yaml"
    path.write_text(RECIPE.format(reward=reward, more=more) + after, encoding="utf-8")
    return load(str(path)).recipe


def z(values: Sequence[float]) -> list[float]:
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    return [(value - mean) / (std or 1.0) for value in values]


def frame(rows: Mapping[str, Sequence[Sequence[float | None]]]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"prompt_id": name, "k": k, "rewards": rewards}
            for name, answers in rows.items()
            for k, rewards in enumerate(answers)
        ]
    )


ROWS = {"a": [[1.0, 30.0], [2.0, 10.0], [3.0, 20.0]], "b": [[9.0, 0.0], [5.0, 0.0]]}


@pytest.mark.parametrize("combine", ["mean", "min", "vote"])
def test_47_rewards_are_combined_in_deviations_of_each(combine: Any) -> None:
    first, second = (z([row[n] or 0 for rows in ROWS.values() for row in rows]) for n in (0, 1))
    found = combined(frame(ROWS), combine)
    expected = {
        "mean": [(a + b) / 2 for a, b in zip(first, second, strict=True)],
        "min": [min(both) for both in zip(first, second, strict=True)],
        # ranks within a prompt, as shares of the other answers: (first + second) / 2
        "vote": [(0 + 1) / 2, (0.5 + 0) / 2, (1 + 0.5) / 2, (1 + 0.5) / 2, (0 + 0.5) / 2],
    }[combine]
    assert found["reward"].to_list() == pytest.approx(expected, abs=1e-9)
    apart = [abs(a - b) / 2 for a, b in zip(first, second, strict=True)]
    assert found["disagreement"].to_list() == pytest.approx(apart, abs=1e-9)


@pytest.mark.parametrize("combine", ["mean", "min", "vote"])
def test_an_answer_that_one_reward_could_not_read_has_none(combine: Any) -> None:
    rows: Any = {"a": [[1.0, None], [2.0, 10.0], [3.0, 20.0]], "b": [[4.0, 4.0]]}
    found = combined(frame(rows), combine)
    assert found["reward"][0] is None and found["disagreement"][0] is None
    assert found["reward"].null_count() == 1
    if combine == "vote":  # of one answer alone nothing is known
        assert found["reward"].to_list()[1:] == [0.0, 1.0, 0.5]


def test_rewards_that_never_differ_add_nothing() -> None:
    found = combined(frame({"a": [[1.0, 7.0], [2.0, 7.0]]}), "mean")
    assert found["reward"].to_list() == pytest.approx([-0.5, 0.5])


def test_pairs_of_an_audit_are_compared_in_deviations_of_the_answers() -> None:
    pairs: list[Any] = [([3.0, 0.0], [1.0, 30.0]), ([3.0, None], [1.0, 1.0])]
    scores = frame(ROWS)
    combine: Any
    for combine in ("mean", "min", "vote"):
        (chosen, rejected), nothing = combined_pairs(scores, pairs, combine)
        assert nothing == (None, None)
        assert chosen is not None and rejected is not None
        if combine == "vote":
            assert (chosen, rejected) == (0.5, 0.5)  # each reward prefers another side
    both = combined(frame({**ROWS, "c": [[3.0, 0.0], [1.0, 30.0]]}), "vote")
    assert both["reward"].to_list()[-2:] == [0.5, 0.5]


def test_agreement_in_order_is_within_a_prompt() -> None:
    far = {"a": [[1.0, 101.0], [2.0, 102.0]], "b": [[51.0, 1.0], [52.0, 2.0]]}
    assert agreement(frame(far), 0, 1) == pytest.approx(1.0)
    assert agreement(frame({"a": [[1.0, 1.0], [1.0, 2.0]]}), 0, 1) is None


# The stage.


def test_47_every_reward_reads_every_answer_and_one_is_made_of_them(
    models: dict[str, Path], tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No " * n}
        for n in range(1, 8)
    ]
    pairs.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    alone = {}
    for name in ("rm", "gap"):
        (tmp_path / name).mkdir()
        made = recipe(tmp_path / name, name)
        alone[name] = run(made, job(made, models, tmp_path / name))[1]
    made = recipe(tmp_path, more=f", audit: {{preferences: {{en: {pairs}}}}}")
    english, spanish = specs(made)
    assert roles(english) == [
        "samples", "prompts", "preferences", "reward", "policy-2", "reference-2",
    ]  # fmt: skip
    assert "english" in roles(spanish)
    of = job(made, models, tmp_path / "both")
    outcome, tables = run(made, of)
    for code, table in tables.items():
        each = [values(alone[name][code]) for name in ("rm", "gap")]
        rewards = table.column("rewards").to_pylist()
        assert [list(both) for both in zip(*each, strict=True)] == [
            pytest.approx(both, abs=1e-4) for both in rewards
        ]
        expected = [sum(both) / 2 for both in zip(*map(z, each), strict=True)]  # type: ignore[arg-type]
        assert values(table) == pytest.approx(expected, abs=1e-3)
        assert all(v is not None for v in table.column("disagreement").to_pylist())
        assert table.column("n_tokens") == alone["rm"][code].column("n_tokens")  # for budgets
        assert "offset" not in outcome.stats["audit"]["by_language"][code]
    spanish_hashes = tables["es"].column("prompt_hash").to_pylist()
    assert None not in spanish_hashes  # of the English prompts that one of them read
    assert outcome.stats["kind"] == "ensemble" and outcome.stats["combine"] == "mean"
    assert [one["name"] for one in outcome.stats["rewards"]] == ["rm", "gap"]
    audit = outcome.stats["audit"]["by_language"]
    assert audit["en"]["pairs"] == 7 and audit["en"]["disagreement"] > 0
    [two] = audit["en"]["alike_in_order"]
    assert two["rewards"] == ["rm", "gap"] and -1 <= two["correlation"] <= 1
    assert any("rm and gap" in sentence for sentence in audit["en"]["readings"])
    before = {p: p.read_bytes() for p in of.out.rglob("*.parquet")}
    again = run(made, of)[0]  # from its shards alone
    assert again.stats["audit"] == outcome.stats["audit"]
    assert {p: p.read_bytes() for p in of.out.rglob("*.parquet")} == before


def test_rewards_their_order_and_how_they_are_combined_are_an_identity(tmp_path: Path) -> None:
    marks = set()
    for reward, more in (
        ("rm", ""), ("[rm, gap]", ""), ("[gap, rm]", ""), ("[rm, gap]", ", combine: min"),
        ("[rm, gap]", ", combine: vote"), ("[rm, gap]", ", prompt: own"),
    ):  # fmt: skip
        made = recipe(tmp_path, reward, more)
        marks.add(by_name(plan(made, lock_of(made), Inventory()))["score"].fingerprint)
    assert len(marks) == 6
    one, listed = recipe(tmp_path, "rm"), recipe(tmp_path, "[rm]")
    steps = [by_name(plan(made, lock_of(made), Inventory()))["score"] for made in (one, listed)]
    assert steps[0].fingerprint == steps[1].fingerprint


@pytest.mark.parametrize(
    ("reward", "more", "after", "match"),
    [
        ("[rm, rm]", "", "", "different names"),
        ("[]", "", "", "different names"),
        ("rm", ", combine: min", "", "combine: min is for several rewards"),
        ("[rm, gap]", ", combine: max", "", "combine"),
        ("[rm, nobody]", "", "", "names the model 'nobody'"),
        ("[rm, policy]", "", "", "'policy' gives no rewards"),
        ("[rm, gap]", ", question: '{{prompt}}{{answer}}'", "", "'rm' and 'gap' are of kind"),
        ("rm", "", "  pair: {drop: {disagreement_above: 1}}\n", "for several rewards, and stages"),
        ("[rm, gap]", "", "  judge: {judge: [rm, gap]}\n", "judge"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(
    tmp_path: Path, reward: str, more: str, after: str, match: str
) -> None:
    with pytest.raises(RecipeError, match=match):
        recipe(tmp_path, reward, more.replace("{{", "{").replace("}}", "}"), after).slices()


def test_one_reward_has_no_column_for_several(models: dict[str, Path], tmp_path: Path) -> None:
    made = test_score.recipe(tmp_path, CLASSIFIER)
    _, tables = run(made, job(made, models, tmp_path))
    assert "rewards" not in tables["en"].column_names


# Pairs of it.


def test_pairs_and_bests_that_the_rewards_disagree_about_are_dropped(tmp_path: Path) -> None:
    from factory.artifacts import tables
    from factory.artifacts.schemas import conform
    from factory.rewards.score import Score
    from tests.support import pools

    drawn = {f"p{n}": [(float(k), f"{n} {k} word") for k in range(4)] for n in range(6)}
    pools.write(tmp_path, {"en": drawn})
    directory = tables.slice_directory(tmp_path / "scores", "en")
    scores = pl.DataFrame(tables.read_slice(tmp_path / "scores", "en", "scores"))
    apart = pl.col("prompt_id").str.slice(1).cast(pl.Float64) / 10
    table = scores.with_columns(disagreement=apart, rewards=pl.concat_list("reward", "reward"))
    tables.write_slice(directory, conform(table.to_arrow(), "scores", "here"))
    both = Score(reward=("reward", "other"))
    for stage in (
        Pair(drop={"disagreement_above": 0.25}),
        Best(drop={"disagreement_above": 0.25}),
    ):
        of = pools.job_of(tmp_path, stage, ["en"], score=both)
        rows = stage.run(of).rows["en"]
        assert (rows.into, rows.out, rows.dropped) == (6, 3, {"disagreement_above": 3})
        kept = [row["prompt_id"] for row in pools.read(tmp_path, stage, "en")]
        assert kept == ["p0", "p1", "p2"]
