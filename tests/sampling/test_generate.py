"""generate and score on the tiny model: every answer at its address, whoever made which shard."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from factory.artifacts.hashing import fingerprint
from factory.artifacts.manifest import Rows
from factory.artifacts.reuse import ReusableSlice
from factory.artifacts.shards import ShardTotals
from factory.artifacts.tables import read_slice, slice_directory, write_slice
from factory.cli import tables
from factory.engines import chat_template, choose, transformers
from factory.errors import RecipeError
from factory.execution.builtin_models import POCKET
from factory.planning.plan import Step
from factory.planning.recipe import load
from factory.rewards.score import Score
from factory.sampling.generate import Generate
from factory.stage.inputs import SliceSpec
from factory.stage.job import PartDone
from factory.stage.models import ModelRef
from factory.stage.outcome import greedy
from factory.stage.stage import StageContext
from tests.support.jobs import MODEL, REWARD, job, made, prompts
from tests.support.trainings import model_of_family

TEXTS = {
    "en": ["Hello", "Bread and water", "What is the capital of France?", "Salt", "Why?"],
    "es": ["Hola", "Pan y agua", "Sal"],
}
LANGUAGES = ["en", "es"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    POCKET["local/tiny-random-llama"].build(out)
    return out


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompts(tmp_path_factory.mktemp("prompts"), TEXTS)


def stage(**more: Any) -> Generate:
    how = {"shard": 2, "engine": "transformers"}
    return Generate(**{"n": 3, "max_tokens": 6, "dtype": "float32", "how": how, **more})


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.parquet")}


def test_every_prompt_is_answered_n_times_at_its_address(
    model: Path, asked: Path, tmp_path: Path
) -> None:
    told: list[tuple[int, int, int]] = []
    outcome = stage().run(job(tmp_path, LANGUAGES, {"prompts": asked}, {MODEL: model}, told=told))
    rows = made(tmp_path, "en", "samples")
    assert [(row["prompt_id"], row["k"]) for row in rows] == [
        (f"p{number}", k) for number in range(5) for k in range(3)
    ]
    assert outcome.rows["en"].balanced() and outcome.rows["es"].out == 9
    assert all(row["finish_reason"] in ("stop", "length") for row in rows)
    assert all(row["n_tokens"] <= 6 for row in rows)
    assert any(row["detected_language"] for row in rows)
    assert len({row["seed"] for row in rows}) == 3, "a seed a shard"
    assert [name.split()[0] for name in outcome.stats["engines"]] == ["transformers"]
    assert sum(outcome.stats["engines"].values()) == 5
    assert told[-1][:2] == (5, 5) and told[-1][2] == outcome.tokens > 0
    assert outcome.determinism == "distribution"


@pytest.mark.parametrize("stops", ["all", "config"])
def test_an_answer_ends_at_all_that_ends_a_turn_or_where_the_configs_say(
    stops: str, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cohere's template prints two tokens after an answer that no config of the model names."""
    model = model_of_family("aya", tmp_path / "aya", max_position_embeddings=4096)
    handed: list[list[int]] = []
    real = transformers.generation

    def watched(sampling: Any, room: int, ids: list[int]) -> Any:
        handed.append(ids)
        return real(sampling, room, ids)

    monkeypatch.setattr(transformers, "generation", watched)
    outcome = stage(stops=stops).run(job(tmp_path, ["es"], {"prompts": asked}, {MODEL: model}))
    tokenizer = chat_template.load_tokenizer(str(model))
    closing = set(chat_template.closing_ids(tokenizer)) - {tokenizer.eos_token_id}
    assert len(closing) == 2
    for ids in handed:
        assert tokenizer.eos_token_id in ids
        assert closing <= set(ids) if stops == "all" else not closing & set(ids)
    assert outcome.template is not None and set(outcome.template["stop_ids"]) == set(handed[0])


def test_parts_made_apart_are_the_whole_byte_for_byte(
    model: Path, asked: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stage().run(job(whole, LANGUAGES, {"prompts": asked}, {MODEL: model}))
    for number, there in ((1, 2), (0, 5)):
        with pytest.raises(PartDone) as done:
            stage().run(job(parts, LANGUAGES, {"prompts": asked}, {MODEL: model}, part=(number, 2)))
        assert (done.value.done, done.value.total) == (there, 5)
    assert not files(parts / "out")
    # what is left to do needs no model
    outcome = stage().run(job(parts, LANGUAGES, {"prompts": asked}, {MODEL: model}))
    assert files(parts / "out") == files(whole / "out")
    assert sum(outcome.stats["engines"].values()) == 5


def test_rows_of_different_engines_are_told_of_at_the_end_of_a_run(
    model: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = choose.sampler

    def renamed(*given: Any) -> Any:
        sampler: Any = real(*given)
        sampler.name = "vllm 0.32.0"
        return sampler

    def told(outcome: Any) -> list[str]:
        found = SimpleNamespace(manifest=SimpleNamespace(stats=outcome.stats))
        return tables.alarms([cast(Step, SimpleNamespace(name="generate", found=found))])

    whole = stage().run(job(tmp_path / "whole", LANGUAGES, {"prompts": asked}, {MODEL: model}))
    assert told(whole) == []
    with pytest.raises(PartDone):
        stage().run(job(tmp_path, LANGUAGES, {"prompts": asked}, {MODEL: model}, part=(1, 2)))
    monkeypatch.setattr(choose, "sampler", renamed)
    [line] = told(stage().run(job(tmp_path, LANGUAGES, {"prompts": asked}, {MODEL: model})))
    assert line.startswith("look at generate: different engines made its rows, in shards: transf")
    assert line.endswith(" 2, vllm 0.32.0 3; how.engine names one of them")


def test_sealing_needs_no_engine(
    model: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PartDone):
        stage().run(job(tmp_path, LANGUAGES, {"prompts": asked}, {MODEL: model}, part=(0, 1)))
    monkeypatch.setattr("factory.engines.choose.sampler", None)
    how = {"shard": 2, "engine": "vllm"}
    outcome = stage(how=how).run(job(tmp_path, LANGUAGES, {"prompts": asked}, {MODEL: model}))
    assert outcome.rows["en"].out == 15


def test_prompts_that_the_template_refuses_are_dropped_and_counted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tokenizer: Any, messages: Any) -> list[int]:
        if messages[-1]["content"] == "Salt":
            raise chat_template.TemplateRefusal("roles must alternate", "x")
        return [1, 2]

    monkeypatch.setattr("factory.engines.chat_template.prompt_ids", refuse)
    asked = prompts(tmp_path / "asked", {"en": ["Hello", "Salt", "Why?"]})
    outcome = stage().run(job(tmp_path, ["en"], {"prompts": asked}, {MODEL: model}))
    rows = outcome.rows["en"]
    assert (rows.into, rows.out, rows.dropped) == (9, 6, {"refused_by_template": 3})


def test_gold_answers_stand_beside_those_that_are_drawn(model: Path, tmp_path: Path) -> None:
    asked = prompts(tmp_path / "asked", {"en": ["Hello", "Salt", "Why?"]})
    table = read_slice(asked, "en", "prompts")
    gold = pa.array([None, "Sodium chloride.", "So."])
    write_slice(slice_directory(asked, "en"), table.append_column("gold", gold))
    outcome = stage(n=2).run(job(tmp_path, ["en"], {"prompts": asked}, {MODEL: model}))
    rows = made(tmp_path, "en", "samples")
    written = {row["prompt_id"]: row for row in rows if row["k"] == -1}
    assert {name: row["response"] for name, row in written.items()} == {
        "p1": "Sodium chloride.", "p2": "So."
    }  # fmt: skip
    assert written["p1"]["finish_reason"] == "stop" and written["p1"]["n_tokens"] > 0
    assert sum(row["k"] != -1 for row in rows) == outcome.stats["by_language"]["en"]["samples"] == 6
    assert outcome.rows["en"] == Rows(into=8, out=8)
    again = job(tmp_path / "again", ["en"], {"prompts": asked}, {MODEL: model})
    assert stage(n=2).run(again).rows["en"].out == 8


def test_a_prompt_without_room_is_dropped_with_all_its_answers_and_counted(
    model: Path, tmp_path: Path
) -> None:
    asked = prompts(tmp_path / "asked", {"en": ["Hello", "salt " * 600, "Why?"]})
    outcome = stage().run(job(tmp_path, ["en"], {"prompts": asked}, {MODEL: model}))
    rows = outcome.rows["en"]
    assert (rows.into, rows.out, rows.dropped) == (9, 6, {"prompt_too_long": 3})
    assert {row["prompt_id"] for row in made(tmp_path, "en", "samples")} == {"p0", "p2"}


def test_a_slice_that_is_taken_over_whole_still_says_what_it_dropped(
    model: Path, tmp_path: Path
) -> None:
    asked = prompts(tmp_path / "asked", {"en": ["Hello", "salt " * 600, "Why?"]})
    stage().run(job(tmp_path / "one", ["en"], {"prompts": asked}, {MODEL: model}))
    whole = ReusableSlice(
        slice_directory(tmp_path / "one" / "out", "en"), "org/old@fp-1", whole=True
    )
    again = job(tmp_path / "two", ["en"], {"prompts": asked}, {MODEL: model})
    rows = stage().run(replace(again, earlier={"en": (whole,)})).rows["en"]
    assert (rows.into, rows.out, rows.dropped) == (9, 6, {"as_before": 3})
    assert rows.balanced()


def test_a_shard_of_nothing_but_long_prompts_is_a_shard(model: Path, tmp_path: Path) -> None:
    asked = prompts(tmp_path / "asked", {"en": ["salt " * 600, "bread " * 700, "Why?"]})
    outcome = stage().run(job(tmp_path, ["en"], {"prompts": asked}, {MODEL: model}))
    assert outcome.rows["en"].dropped == {"prompt_too_long": 6} and outcome.rows["en"].out == 3


def test_a_system_message_goes_before_prompts_that_have_none(model: Path) -> None:
    asked = [{"role": "user", "content": "Hello"}]
    own = [{"role": "system", "content": "Mine."}, *asked]
    told = stage(system="Be brief.")
    assert told._messages({"messages": asked}) == [
        {"role": "system", "content": "Be brief."}, *asked
    ]  # fmt: skip
    assert told._messages({"messages": own}) == own
    assert stage()._messages({"messages": asked}) == asked
    tokenizer = chat_template.load_tokenizer(str(model))
    text = tokenizer.decode(
        chat_template.prompt_ids(tokenizer, told._messages({"messages": asked}))
    )
    assert "Be brief." in text


def test_a_system_message_is_part_of_what_is_made_and_the_engine_is_not() -> None:
    plain, system = stage(), stage(system="Be brief.")
    spec = SliceSpec("generate", "en", "en", ())
    assert plain.identity_fields(spec) != system.identity_fields(spec)
    assert "system" not in plain.identity_fields(spec)
    assert plain.identity_fields(spec) == stage(
        how={"engine": "vllm", "max_num_seqs": 4}
    ).identity_fields(spec)


def test_an_adapter_on_the_policy_is_read_beside_it() -> None:
    model = ModelRef(name="org/base", adapter="org/tuned@v1")
    scope = StageContext(("en",), {"policy": model}, {})
    base, adapter = scope.policy("policy", "model", "generate")
    assert (base.source, adapter.role, adapter.source) == (
        "org/base@main",
        "adapter",
        "org/tuned@v1",
    )
    with pytest.raises(RecipeError, match="cannot put an adapter"):
        scope.model("policy", "base", "dpo")
    with pytest.raises(ValueError, match="org/name"):
        ModelRef(name="org/base", adapter="tuned")


def test_an_adapter_changes_the_identity_of_what_is_drawn() -> None:
    def needs(*overrides: str) -> str:
        recipe = load("smoke", overrides).recipe
        [first, *_] = [spec for _, spec in recipe.slices() if spec.step == "generate"]
        return fingerprint([repr(need) for need in first.needs])

    plain = needs()
    tuned = needs(
        "models.tuned={name: local/tiny-random-llama, adapter: org/tuned}",
        "stages.generate.model=tuned",
    )
    assert plain != tuned


def test_scores_keep_the_order_of_their_samples(model: Path, asked: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward = tmp_path / "reward"
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_pretrained(str(model), num_labels=1)
    torch.nn.init.normal_(classifier.score.weight)
    classifier.save_pretrained(str(reward))
    AutoTokenizer.from_pretrained(str(model)).save_pretrained(str(reward))
    drawn, scored = tmp_path / "drawn", tmp_path / "scored"
    stage().run(job(drawn, LANGUAGES, {"prompts": asked}, {MODEL: model}))
    reads = {"samples": drawn / "out", "prompts": asked}
    score = Score(dtype="float32", how={"shard": 4, "engine": "transformers"})
    outcome = score.run(job(scored, LANGUAGES, reads, {REWARD: reward}))
    samples, scores = made(drawn, "en", "samples"), made(scored, "en", "scores")
    address = ("prompt_id", "k", "response_hash")
    assert [[row[key] for key in address] for row in samples] == [
        [row[key] for key in address] for row in scores
    ]
    assert outcome.rows["en"].balanced() and outcome.rows["en"].out == 15
    assert outcome.stats["by_language"]["en"]["scored"] == 15


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ({"transformers 5.19.0": 3}, "exact"),
        ({}, "exact"),
        ({"transformers 5.19.0": 2, "vllm 0.32.0": 1}, "rounding"),
        ({"openai, served as m": 1}, "rounding"),
    ],
)
def test_greedy_answers_are_called_exact_where_batches_are_the_same_each_time(
    engines: dict[str, int], said: str
) -> None:
    assert greedy({"es": ShardTotals(engines=Counter(engines))}) == said
