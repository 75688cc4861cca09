"""Rows that somebody else made, in the place of a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import Rows
from factory.artifacts.resources import shipped
from factory.artifacts.tables import read_slice
from factory.errors import InputError, RecipeError
from factory.execution import external, record
from factory.planning.plan import plan
from factory.planning.recipe import load
from factory.planning.stages import STAGES
from factory.reports.cards import card
from factory.stage.inputs import ExternalInput
from factory.stage.job import Job, Place
from factory.stage.stage import Stage, StageContext
from tests.support.builders import by_name, demo, done, lock_of, manifest_of, walked

PROBE = {
    "prompts": 16, "dtype": "float32", "tolerance": 1e-3, "applied": True,
    "base": {"max": 1.0, "mean": 0.5}, "merged": {"max": 0.0, "mean": 0.0},
    "engine": {"name": "transformers 5.19.0", "max": 0.0, "mean": 0.0},
}  # fmt: skip
BY_NAME = {stage.name: stage for stage in STAGES}
Take = Callable[..., tuple[list[dict[str, Any]], Rows]]

# CroCo's published scripts write a sample so, and its reward beside it.
CROCO = {
    "messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}],
    "reward_score": 1.5,
}
# UltraFeedback, binarized: whole conversations on both sides.
ULTRA = {
    "prompt": "Hi?",
    "prompt_id": "u1",
    "chosen": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}],
    "rejected": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "No."}],
    "score_chosen": 8.0,
    "score_rejected": 3.0,
}
# TRL: explicit prompt, and implicit.
TRL = {
    "prompt": [{"role": "user", "content": "Hi?"}],
    "chosen": [{"role": "assistant", "content": "Hello."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}
TRL_IMPLICIT = {"chosen": ULTRA["chosen"], "rejected": ULTRA["rejected"]}


@pytest.fixture
def take(tmp_path: Path) -> Take:
    """What a stage with `from:` makes of these rows of a JSONL file, and its counts."""

    def run(name: str, rows: list[Any], **more: Any) -> tuple[list[dict[str, Any]], Rows]:
        path = tmp_path / "theirs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        stage = BY_NAME[name].model_validate({"from": {"source": path.name, **more}})
        specs = stage.checked_slices(StageContext(("en",), {}, {name: stage}))
        places = {need: Place(path) for spec in specs for need in spec.needs}
        out = tmp_path / "out"
        job = Job(name, 0, tuple(specs), places, tmp_path, out, lambda *_: None)
        outcome = external.take_in(stage, job)
        assert outcome.rows["en"].balanced()
        return read_slice(out, "en", stage.kind).to_pylist(), outcome.rows["en"]

    return run


def test_scored_samples_of_the_published_scripts_are_taken_in_three_times(take: Take) -> None:
    other = {**CROCO, "messages": [*CROCO["messages"][:1], {"role": "assistant", "content": "Ho."}]}
    samples, _ = take("generate", [CROCO, other])
    scores, _ = take("score", [CROCO, other])
    key = ("prompt_id", "k", "response_hash")
    assert [[row[n] for n in key] for row in samples] == [[row[n] for n in key] for row in scores]
    assert [row["k"] for row in samples] == [0, 1]
    assert samples[0]["response"] == "Hello."
    assert samples[0]["finish_reason"] == "unknown"
    assert samples[0]["n_tokens"] is None
    assert [row["reward"] for row in scores] == [1.5, 1.5]
    assert {row["status"] for row in scores} == {"ok"}


@pytest.mark.parametrize("row", [ULTRA, TRL, TRL_IMPLICIT])
def test_preference_sets_become_pairs(take: Take, row: dict[str, Any]) -> None:
    [pair], counts = take("pair", [row])
    assert pair["prompt"] == [{"role": "user", "content": "Hi?"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "Hello."}]
    assert pair["rejected"] == [{"role": "assistant", "content": "No."}]
    assert pair["score_chosen"] == row.get("score_chosen")
    assert pair["prompt_language"] == "en"
    assert pair["pool_mean"] is None
    assert counts == Rows(into=1, out=1)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("EOS", "stop"), ("end_turn", "stop"), ("max_tokens", "length"), (None, "unknown"),
     ("content_filter", "content_filter")],
)  # fmt: skip
def test_why_an_answer_ended_is_said_in_our_words(take: Take, theirs: Any, ours: str) -> None:
    [row], _ = take("generate", [{**CROCO, "finish_reason": theirs}])
    assert row["finish_reason"] == ours


def test_prompt_and_completion_become_rows_for_sft(take: Take) -> None:
    [row], _ = take("best", [{"prompt": "Hi?", "completion": "Hello."}])
    assert row["completion"] == [{"role": "assistant", "content": "Hello."}]


def test_columns_may_be_called_otherwise_and_lie_deep(take: Take) -> None:
    row = {"q": {"text": "Hi?"}, "best": "Hello.", "worst": ["x", "No."], "marks": [9, 1]}
    [pair], _ = take(
        "pair",
        [row],
        columns={"prompt": "q.text", "chosen": "best", "rejected": "worst.1",
                 "score_chosen": "marks.0"},
    )  # fmt: skip
    assert pair["rejected"][0]["content"] == "No."
    assert pair["score_chosen"] == 9.0


def test_a_filter_counts_what_it_leaves_out(take: Take) -> None:
    rows = [{**TRL, "source": name} for name in ("a", "b", "c")]
    _, counts = take("pair", rows, where={"source": ["a", "c"]})
    assert counts == Rows(into=3, out=2, dropped={"filtered": 1})


def test_an_answer_without_text_is_counted(take: Take) -> None:
    empty = {"prompt": "Hi?", "response": "  ", "reward": 1}
    _, counts = take("score", [empty, {**empty, "response": "Yes"}])
    assert counts == Rows(into=2, out=1, dropped={"empty": 1})


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_reward_that_is_none_has_a_reason(take: Take, value: float | None) -> None:
    [row], _ = take("score", [{**CROCO, "reward_score": value}])
    assert row["reward"] is None
    assert row["status"] == ("absent" if value is None else "not_finite")


@pytest.mark.parametrize(
    ("stage", "row", "said"),
    [
        ("score", {k: v for k, v in CROCO.items() if k != "reward_score"}, "line 2: no column 're"),
        ("score", {**CROCO, "reward_score": "high"}, "line 2: reward_score 'high' is not a number"),
        ("pair", {"prompt": "a", "chosen": "b"}, "line 2: no column 'rejected'"),
        ("pair", {**TRL_IMPLICIT, "rejected": TRL["chosen"]}, "line 2: no column 'prompt'"),
        ("generate", {"messages": CROCO["messages"][:1]}, "line 2: no answer"),
        ("generate", {"messages": [{"role": "user"}]}, "line 2: a message without"),
        ("best", {"text": "a"}, "line 2: no messages"),
    ],
)
def test_what_does_not_fit_names_the_column_and_the_row(take, stage, row, said) -> None:
    good = {"generate": CROCO, "score": CROCO, "pair": TRL, "best": CROCO}[stage]
    with pytest.raises(InputError) as raised:
        take(stage, [good, row, row])  # one of several is left out and counted
    assert said in raised.value.what


def test_a_column_map_that_fits_no_column_says_what_there_is(take: Take) -> None:
    with pytest.raises(InputError) as raised:
        take("score", [CROCO], columns={"reward": "reward_scor"})
    assert "no column 'reward_scor' (did you mean 'reward_score'?)" in raised.value.what
    assert "messages" in raised.value.fix


def test_what_is_said_beside_from_is_refused() -> None:
    with pytest.raises(RecipeError, match="with from:, temperature has no meaning"):
        load("smoke", ["stages.generate.from=org/samples", "stages.generate.temperature=0.5"])


def test_a_misspelt_from_is_told_its_name() -> None:
    with pytest.raises(RecipeError, match=r"has no key 'form' \(did you mean 'from'\?\)") as raised:
        load("smoke", ["stages.pair.form=x"])
    assert "from_" not in raised.value.fix


def test_what_cannot_be_taken_in_says_what_to_do_instead() -> None:
    with pytest.raises(RecipeError, match="name the model under models: instead"):
        load("smoke", ["stages.reward.from=org/model"])


def test_the_content_and_not_the_name_is_in_the_identity() -> None:
    def spec(stage: Stage) -> tuple[Any, ...]:
        return stage.identity_fields(
            stage.checked_slices(StageContext(("en",), {}, {}))[0]
        ), stage.extent()

    one, other = BY_NAME["score"](**{"from": "org/a@v1"}), BY_NAME["score"](**{"from": "org/b"})
    assert spec(one) == spec(other) == ({"from": {}}, {})
    mapped = BY_NAME["score"](**{"from": {"source": "org/a", "columns": {"reward": "r"}}})
    assert spec(mapped)[0] == {"from": {"columns": {"reward": "r"}}}


def test_an_adapter_is_laid_out_a_group_each_and_its_base_is_read() -> None:
    recipe = load(
        "smoke", ["stages.dpo.from=org/{group}-adapter@v1", "stages.dpo.lr=null",
                  "stages.dpo.batch=null", "stages.dpo.max_length=null", "stages.dpo.dtype=null",
                  "stages.dpo.held_out=null", "stages.dpo.min_pairs=null", "stages.pair=null",
                  "stages.score=null", "stages.generate=null", "stages.best=null",
                  "stages.sft=null"],
    ).recipe  # fmt: skip
    specs = [spec for stage, spec in recipe.slices() if stage.name == "dpo"]
    assert [spec.step for spec in specs] == ["dpo[all]", "dpo[es]"]
    assert ExternalInput("source", "org/es-adapter@v1", "model") in specs[1].needs
    assert specs[1].need("base") is not None


@pytest.mark.parametrize(
    ("overrides", "unread"),
    [
        (["pair={from: p.jsonl}"], []),  # best reads the scores
        (["pair={from: p.jsonl}", "best=null", "sft=null"], ["generate", "score"]),
        (
            ["pair={from: p.jsonl}", "best=null", "sft=null", "judge=null"],
            ["preferences", "reward", "generate", "score"],
        ),
        (["score={from: p.jsonl}", "judge=null"], ["preferences", "reward"]),
        ([], []),
    ],
)
def test_steps_that_nothing_reads_beside_what_is_taken_in_are_not_made(
    overrides: list[str], unread: list[str]
) -> None:
    recipe = load("smoke", [f"stages.{override}" for override in overrides]).recipe
    assert recipe.unread() == unread
    steps = {spec.step for _, spec in recipe.slices()}
    assert not steps & set(unread) and "pair" in steps


@pytest.mark.parametrize(
    ("overrides", "whose"),
    [
        ((), []),
        (("stages.pair={from: org/pairs}",), ["org/pairs"]),
        (("stages.generate={from: org/samples}",), ["org/samples"]),
        (("models.teacher=org/teacher", "stages.generate.model=teacher"), ["org/teacher@main"]),
    ],
)
def test_whose_answers_an_adapter_learned_from_is_known_and_on_its_card(
    overrides: tuple[str, ...], whose: list[str]
) -> None:
    recipe = demo(*overrides)
    lock = lock_of(recipe)
    made = walked(recipe, lock, until="dpo[all]")
    steps = plan(recipe, lock, made)
    step, there = by_name(steps)["dpo[all]"], done(steps)
    read = [record.inputs(n, lock, there) for part in step.slices for n in part.spec.needs]
    assert record._answers_of(read, there) == whose
    stats = {"probe": PROBE, "chain": None, "answers_of": whose}
    text = card.render(manifest_of(recipe, lock, step, there, stats=stats))
    assert ("of the model's own answers" in text) == (not whose)
    for source in whose:
        assert "not the model's own answers, from `" in text
        assert source.partition("@")[0] in text


def test_prompts_of_a_file_of_samples_are_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps(CROCO) + "\n" for _ in range(3)))
    stage = BY_NAME["prompts"].model_validate({"from": path.name, "repeats": "drop"})
    [spec] = stage.checked_slices(StageContext(("en",), {}, {}))
    job = Job(
        "prompts", 0, (spec,), {spec.needs[0]: Place(path)}, tmp_path, tmp_path / "out",
        lambda *_: None,
    )  # fmt: skip
    assert stage.run(job).rows["en"] == Rows(into=3, out=1, dropped={"repeated": 2})


@pytest.mark.slow
def test_a_line_starts_from_somebody_elses_scored_samples(factory, tmp_path: Path) -> None:
    """Nothing but a file of scored samples: pairs and an adapter come of it."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {q}?"},
                {"role": "assistant", "content": f"Answer {k} to {q}" + " again" * k},
            ],
            "reward_score": float(k - q % 3),
        }
        for q in range(12)
        for k in range(6)
    ]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        "name: theirs\norg: local\nlanguages: [en]\nlicense: apache-2.0\n"
        "models: {policy: local/tiny-random-llama}\n"
        "stages:\n"
        "  prompts: {from: scored.jsonl, repeats: drop}\n"
        "  generate: {from: scored.jsonl}\n"
        "  score: {from: scored.jsonl}\n"
        "  pair: {keep: {chosen: {finished: false, language: any}}}\n"
        "  dpo: {each: all, batch: 4, max_length: 256, dtype: float32, min_pairs: 4}\n"
    )
    done = factory("run", str(tmp_path / "recipe.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dpo[all]: done" in done.stdout
    plan = {
        step["step"]: step
        for step in json.loads(factory("plan", str(tmp_path / "recipe.yaml"), "--json").stdout)
    }
    assert {step["state"] for step in plan.values()} == {"reuse"}
    assert not (shipped("recipes") / "scored.jsonl").exists()
