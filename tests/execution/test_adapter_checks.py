"""Adapters that somebody else trained, checked over a real hub before anything is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.workdir import Home
from factory.errors import Check, RecipeError
from factory.execution import resolve
from factory.execution.adapter_checks import check_adapters
from factory.planning.plan import State
from factory.planning.recipe import load
from tests.support.trainings import adapter_of, tiny_model

TARGETS: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
DREW = "models: {{policy: {{name: lab/base, adapter: them/{0}{1}}}}}\n" + (
    "stages: {{prompts: {{source: p.jsonl}}, generate: {{}}}}\n"
)
TAKEN = (
    "models: {{policy: lab/base}}\nstages: {{questions: {{source: p.jsonl}}, "
    "dpo: {{each: all, from: {{source: them/{0}{1}}}}}, arena: {{of: [policy, dpo]}}}}\n"
)
FURTHER = (
    "models: {{policy: {{name: lab/base, adapter: them/{0}{1}}}}}\n"
    "stages: {{pair: {{from: p.jsonl}}, dpo: {{each: all, "
    "lora: {{r: 4, alpha: 8, targets: [q_proj, v_proj]}}}}}}\n"
)
Look = Callable[..., list[Check]]


@pytest.fixture
def look(hub: Any, tmp_path: Path) -> Look:
    """The findings about an adapter in a recipe, published with what its config says."""

    def publish(repo: str, directory: Path) -> None:
        hub._api.create_repo(repo, exist_ok=True)
        hub._api.upload_folder(repo_id=repo, folder_path=str(directory))

    def run(
        recipe: str,
        says: Any,
        more: str = "",
        of: Path | None = None,
        weights: bytes | None = None,
        **config: Any,
    ) -> list[Check]:
        publish("lab/base", tiny_model())
        publish("lab/copy", tiny_model())
        path = adapter_of(of or tiny_model(), tmp_path / "adapter", **{**TARGETS, **config})
        fields = json.loads((path / "adapter_config.json").read_text())
        text = says if isinstance(says, str) else json.dumps(fields | says)
        (path / "adapter_config.json").write_text(text)
        if weights is not None:
            (path / "adapter_model.safetensors").write_bytes(weights)
        publish("them/tuned", path)
        (tmp_path / "p.jsonl").write_text('{"prompt": "Hi?"}\n')
        text = "name: r\norg: me\nlanguages: [en]\n" + recipe.format("tuned", more)
        (tmp_path / "r.yaml").write_text(text)
        loaded, home = load(str(tmp_path / "r.yaml")), Home(tmp_path / "home")
        pins, _ = resolve.resolve(loaded, hub, home, None)
        steps = resolve.plan(loaded, pins, hub, home).steps
        assert {step.state for step in steps} == {State.RUN}
        return check_adapters(loaded.recipe, pins, hub)

    return run


ELSEWHERE = ("/scratch/them/base", "", "it was trained on /scratch/them/base, not on lab/base")
STATED = ("them/base-bnb-4bit", ", base: lab/base", None)


@pytest.mark.parametrize(
    ("recipe", "says", "more", "words"),
    [
        (DREW, "lab/base", "", None),
        (DREW, "lab/copy", "", None),  # the same content under another name
        (DREW, "them/base-bnb-4bit", "", "it was trained on them/base-bnb-4bit, not on lab/base"),
        *((recipe, *case) for recipe in (DREW, TAKEN, FURTHER) for case in (ELSEWHERE, STATED)),
    ],
)
def test_the_base_that_an_adapter_names_must_be_the_model_it_is_put_on(
    look: Look, recipe: str, says: str, more: str, words: str | None
) -> None:
    findings = look(recipe, {"base_model_name_or_path": says}, more)
    assert [finding.seen for finding in findings] == ([words] if words else [])
    assert all("base: lab/base beside" in finding.fix for finding in findings)


@pytest.mark.parametrize(
    ("config", "engine", "state", "words"),
    [
        ({"use_dora": True}, "auto", "warning", "it has DoRA, which vLLM does not take"),
        ({"use_dora": True}, "vllm", "failed", "it has DoRA, which vLLM does not take"),
        ({"modules_to_save": ["lm_head"]}, "vllm", "failed", "whole layers (lm_head, modules_to_s"),
        ({"use_dora": True}, "transformers", None, ""),
        ({"use_rslora": True}, "vllm", None, ""),
    ],
)
def test_what_an_engine_does_not_take_is_named(
    look: Look, config: dict[str, Any], engine: str, state: str | None, words: str
) -> None:
    recipe = TAKEN.replace("[policy, dpo]", f"[policy, dpo], how: {{{{engine: {engine}}}}}")
    findings = look(recipe, {"base_model_name_or_path": "lab/base"}, **config)
    assert [finding.state for finding in findings] == ([state] if state else [])
    assert all(words in finding.seen for finding in findings)
    assert all("stages.arena.how.engine: transformers" in finding.fix for finding in findings)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n"


@pytest.mark.parametrize(
    ("says", "weights", "words"),
    [
        ({}, LFS, "adapter_model.safetensors of them/tuned cannot be read"),
        ({}, b"", "adapter_model.safetensors of them/tuned cannot be read"),
        ({}, b"\2\0\0\0\0\0\0\0{}", "adapter_model.safetensors of them/tuned "),
        ("[" * 100_000, None, "them/tuned holds an unreadable adapter_config.json"),
        ({"base_model_name_or_path": None}, None, "its config names no base"),
        ({"base_model_name_or_path": "https://huggingface.co/Lab/base/"}, None, None),
        ({"task_type": "SEQ_CLS"}, None, "it makes a classifier of its base (SEQ_CLS)"),
    ],
)
def test_an_adapter_that_cannot_be_one_is_refused_with_the_reason(
    look: Look, says: Any, weights: bytes | None, words: str | None
) -> None:
    if isinstance(says, dict):
        says = {"base_model_name_or_path": "lab/base"} | says
    findings = look(DREW, says, weights=weights)
    assert len(findings) == (words is not None)
    assert all(finding.seen.startswith(str(words)) for finding in findings)


@pytest.mark.parametrize("saved", [None, ["embed_tokens", "lm_head"]])
def test_an_adapter_of_a_resized_vocabulary_is_refused_for_that(
    look: Look, tmp_path: Path, saved: list[str] | None
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny_model()))
    model.resize_token_embeddings(model.config.vocab_size + 3)
    model.save_pretrained(str(tmp_path / "resized"))
    says = {"base_model_name_or_path": "lab/base"}
    targets = ["q_proj", "embed_tokens"] if saved is None else ["q_proj"]
    config = {"modules_to_save": saved, "target_modules": targets}
    [finding] = look(DREW, says, of=tmp_path / "resized", **config)
    assert finding.state == "failed" and "on a resized base" in finding.seen
    assert "merge_and_unload" in finding.fix


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_rslora": True}, "them/tuned has rslora True, and the recipe rslora False"),
        ({"r": 2}, "them/tuned has r 2, and the recipe r 4"),
    ],
)
def test_an_adapter_that_is_trained_further_has_the_lora_of_the_recipe(
    look: Look, config: dict[str, Any], words: str
) -> None:
    [finding] = look(FURTHER, {"base_model_name_or_path": "lab/base"}, **config)
    assert finding.seen == words


def test_a_base_that_is_another_model_is_refused_when_the_recipe_is_read(look: Look) -> None:
    with pytest.raises(RecipeError, match=r"from\.base is lab/other, the model it is put on lab/b"):
        look(TAKEN, {}, ", base: lab/other")
    with pytest.raises(RecipeError, match="base is that of an adapter, and the same as name"):
        look(DREW, {}, ", base: lab/other")
    with pytest.raises(RecipeError, match=r"from\.base is for adapters"):
        look(FURTHER.replace("p.jsonl", "{{source: p.jsonl, base: lab/base}}"), {})
