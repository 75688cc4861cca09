"""Pools of several models: who drew an answer, what is reused, what is paired with what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import Rows
from factory.artifacts.reuse import ReusableSlice
from factory.artifacts.schemas import from_rows
from factory.artifacts.tables import read_slice, slice_directory, write_slice
from factory.errors import RecipeError
from factory.execution import checks
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import load
from factory.sampling.generate import Generate
from factory.stage.inputs import ExternalInput, SliceSpec
from factory.stage.job import Job, PartDone, Place
from factory.stage.readers import address
from tests.sampling.test_generate import LANGUAGES, TEXTS, asked, files, model, stage
from tests.support.builders import by_name, lock_of
from tests.support.jobs import MODEL, job, made, prompts

__all__ = ["asked", "model"]  # fixtures
TEACHER = ExternalInput("model-2", "local/teacher@main", "model")
ROUND = ExternalInput("model-3", "local/model@main", "model")
LORA = ExternalInput("adapter-3", "local/round-1@main", "model")


@pytest.fixture(scope="module")
def others(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[ExternalInput, Path]:
    """A teacher with other weights, and an adapter on the model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = tmp_path_factory.mktemp("others")
    teacher = AutoModelForCausalLM.from_pretrained(str(model))
    torch.manual_seed(5)
    for weight in teacher.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.3)
    teacher.save_pretrained(str(root / "teacher"))
    AutoTokenizer.from_pretrained(str(model)).save_pretrained(str(root / "teacher"))
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(str(model))
    get_peft_model(base, lora).save_pretrained(str(root / "lora"))
    return {MODEL: model, TEACHER: root / "teacher", ROUND: model, LORA: root / "lora"}


def pooled(root: Path, asked: Path, models: dict[ExternalInput, Path], **more: Any) -> Job:
    of = job(root, LANGUAGES, {"prompts": asked}, models, **more)
    names = {need: need.source.partition("@")[0] for need in models}
    return replace(of, places={**of.places, **{n: Place(p, names[n]) for n, p in models.items()}})


def test_3_each_model_answers_each_prompt_under_its_own_numbers(
    asked: Path, others: dict[ExternalInput, Path], tmp_path: Path
) -> None:
    several = stage(n=2, also={"teacher": 1, "round1": 2})
    outcome = several.run(pooled(tmp_path, asked, others))
    rows = made(tmp_path, "en", "samples")
    ks = [0, 1, 1_000_000, 2_000_000, 2_000_001]
    assert sorted((row["prompt_id"], row["k"]) for row in rows) == [
        (f"p{number}", k) for number in range(5) for k in ks
    ]
    sources = {"local/model": {0, 1}, "local/teacher": {ks[2]}, "local/round-1": set(ks[3:])}
    for source, drawn in sources.items():
        assert {row["k"] for row in rows if row["source"] == source} == drawn
    assert outcome.rows["en"].balanced() and outcome.rows["en"].out == 25
    by_source = outcome.stats["by_language"]["en"]["by_source"]
    assert {name: one["samples"] for name, one in by_source.items()} == {
        "local/model": 10, "local/teacher": 5, "local/round-1": 10,
    }  # fmt: skip
    alone = tmp_path / "alone"  # the first model draws what it draws alone
    stage(n=2).run(pooled(alone, asked, {MODEL: others[MODEL]}))
    own = [row["response"] for row in rows if row["k"] < 2]
    assert own == [row["response"] for row in made(alone, "en", "samples")]
    assert "source" not in made(alone, "en", "samples")[0]
    answers = {s: [r["response"] for r in rows if r["source"] == s][:5] for s in sources}
    assert len(set(map(tuple, answers.values()))) == 3


def test_parts_of_a_pool_are_the_whole(
    asked: Path, others: dict[ExternalInput, Path], tmp_path: Path
) -> None:
    several = stage(n=2, also={"teacher": 1})
    models = {need: others[need] for need in (MODEL, TEACHER)}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    several.run(pooled(whole, asked, models))
    for number in (1, 0):
        with pytest.raises(PartDone) as done:
            several.run(pooled(parts, asked, models, part=(number, 2)))
        assert done.value.total == 10
    several.run(pooled(parts, asked, models))
    assert files(parts / "out") == files(whole / "out")


def test_more_answers_of_one_model_reuse_those_of_all(
    asked: Path, others: dict[ExternalInput, Path], tmp_path: Path
) -> None:
    models = {need: others[need] for need in (MODEL, TEACHER)}
    before = tmp_path / "before"
    stage(n=2, also={"teacher": 1}).run(pooled(before, asked, models))
    first = {code: ReusableSlice(slice_directory(before / "out", code), "a@b", False)
             for code in LANGUAGES}  # fmt: skip
    of = pooled(tmp_path / "after", asked, models)
    of = replace(of, earlier={code: (source,) for code, source in first.items()})
    outcome = stage(n=2, also={"teacher": 3}).run(of)
    old = {(r["prompt_id"], r["k"]): r["response"] for r in made(before, "en", "samples")}
    new = {(r["prompt_id"], r["k"]): r["response"] for r in made(of.out.parent, "en", "samples")}
    assert old.items() <= new.items() and len(new) == 25
    assert outcome.rows["en"].balanced()
    drawn = sum(row["k"] > 1_000_000 for row in made(of.out.parent, "en", "samples"))
    assert drawn == 10


def test_a_model_that_answers_nothing_leaves_the_others(
    model: Path, others: dict[ExternalInput, Path], tmp_path: Path
) -> None:
    """Prompts too long for the second model alone: dropped, counted, and the rest is a table."""
    import json
    import shutil

    short = tmp_path / "short"
    shutil.copytree(others[TEACHER], short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    asked = prompts(tmp_path / "asked", {code: [" ".join(TEXTS["en"] * 9)] for code in LANGUAGES})
    models = {MODEL: model, TEACHER: short}
    several = stage(n=2, also={"teacher": 3})
    outcome = several.run(pooled(tmp_path / "run", asked, models))
    assert outcome.rows["en"].dropped == {"prompt_too_long": 3}
    assert outcome.rows["en"].out == 2 and outcome.rows["en"].balanced()


RECIPE = """
name: pooled
org: local
languages: [en]
models:
  policy: local/tiny-random-llama
  teacher: local/tiny-random-qwen2
  round1: {name: local/tiny-random-llama, adapter: local/round-1}
  reward: {kind: classifier, name: local/rm}
stages:
  prompts: {source: p.jsonl}
  generate: {n: 4, also: {teacher: 2, round1: 1}}
  score: {}
  pair: {keep: {chosen: {source: others}, rejected: {source: own}}}
"""


def loaded(tmp_path: Path, *overrides: str) -> Any:
    path = tmp_path / "pooled.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return load(str(path), list(overrides)).recipe


def generated(recipe: Any) -> Any:
    return by_name(plan(recipe, lock_of(recipe), Inventory()))["generate"]


def test_the_models_are_the_identity_and_their_numbers_the_extent(tmp_path: Path) -> None:
    recipe = loaded(tmp_path)
    [spec] = [spec for stage, spec in recipe.slices() if isinstance(stage, Generate)]
    assert isinstance(spec, SliceSpec)
    roles = [need.role for need in spec.needs]
    assert roles == ["prompts", "model", "model-2", "model-3", "adapter-3"]
    first = generated(recipe)
    more = generated(loaded(tmp_path, "stages.generate.also.teacher=3"))
    assert more.fingerprint != first.fingerprint
    assert [s.row_key for s in more.slices] == [s.row_key for s in first.slices]
    fewer = generated(loaded(tmp_path, "stages.generate.also.round1=null"))
    assert [s.row_key for s in fewer.slices] != [s.row_key for s in first.slices]
    tokenizers = {use.model.source for use in checks.tokenizers(recipe)}
    assert tokenizers == {f"local/{name}@main" for name in
                          ("tiny-random-llama", "tiny-random-qwen2", "rm")}  # fmt: skip


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("stages.generate.also={policy: 2}", "names 'policy', the model that answers already"),
        ("stages.generate.also={nobody: 2}", "names the model 'nobody'"),
        ("stages.generate.also={reward: 2}", "'reward', a classifier, which answers nothing"),
        ("stages.generate.also={teacher: 0}", "must be at least 1"),
        ("stages.generate.also={}", "keep.source is for answers of several sources"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(tmp_path: Path, override: str, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        loaded(tmp_path, override).slices()


def test_3_answers_of_others_stand_in_the_pool_with_their_source(
    asked: Path, model: Path, tmp_path: Path
) -> None:
    """Two sets of others beside the policy's own answers: taken in by the text of the prompt."""
    ours = TEXTS["en"]
    sets = {
        "theirs.jsonl": [
            *({"prompt": text, "response": f"Their {text}"} for text in ours[:3]),
            {"prompt": ours[0], "response": "Their second"},
            {"prompt": ours[0], "response": "Their third"},
            {"prompt": "Not ours", "response": "x"},
        ],
        "more.jsonl": [
            {"messages": [{"role": "user", "content": ours[4]},
                          {"role": "assistant", "content": "Because."}]},
        ],
    }  # fmt: skip
    for name, rows in sets.items():
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    pool = stage(n=2, answers=[{"source": "theirs.jsonl", "most": 2}, "more.jsonl"])
    needs = {need: tmp_path / need.source for need in pool._taken("en")}
    texts = prompts(tmp_path / "asked", {"en": ours})
    rows_of = read_slice(texts, "en", "prompts").to_pylist()
    hashes = [address({}, row["messages"], "")["prompt_hash"] for row in rows_of]
    at_rest = [row | {"prompt_hash": h} for row, h in zip(rows_of, hashes, strict=True)]
    write_slice(slice_directory(texts, "en"), from_rows(at_rest, "prompts"))
    of = job(tmp_path, ["en"], {"prompts": texts}, {MODEL: model, **needs})
    places = {**of.places, **{need: Place(path) for need, path in needs.items()}}
    outcome = pool.run(replace(of, places=places))
    rows = made(tmp_path, "en", "samples")
    taken = [(r["prompt_id"], r["k"], r["response"], r["source"]) for r in rows if r["k"] >= 10**6]
    assert taken == [
        ("p0", 1_000_000, "Their Hello", "theirs.jsonl"),
        ("p1", 1_000_000, "Their Bread and water", "theirs.jsonl"),
        ("p2", 1_000_000, "Their What is the capital of France?", "theirs.jsonl"),
        ("p0", 1_000_001, "Their second", "theirs.jsonl"),
        ("p4", 2_000_000, "Because.", "more.jsonl"),
    ]
    assert {r["source"] for r in rows if r["k"] < 10**6} == {"local/model"}
    assert outcome.rows["en"] == Rows(
        into=17, out=15, dropped={"another_prompt": 1, "more_than_most": 1}
    )
    figures = outcome.stats["by_language"]["en"]
    assert figures["samples"] == 10 and figures["taken_in"] == {"theirs.jsonl": 4, "more.jsonl": 1}


def test_answers_of_others_are_extent_and_draw_no_own_answer_anew(tmp_path: Path) -> None:
    plain, some, more = (
        generated(loaded(tmp_path, f"stages.generate.answers={answers}"))
        for answers in ("[]", "[a.jsonl]", "[a.jsonl, {source: b.jsonl, most: 2}]")
    )
    assert len({step.fingerprint for step in (plain, some, more)}) == 3
    keys = [[s.row_key for s in step.slices] for step in (plain, some, more)]
    assert keys[1] == keys[2] != keys[0]
    assert plain.fingerprint == generated(loaded(tmp_path)).fingerprint
