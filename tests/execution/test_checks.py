"""factory check: what the tokenizers alone tell about a recipe, over a real hub."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.workdir import Home
from factory.errors import Check, InputError
from factory.execution import checks, inputs, resolve
from factory.execution.checks import Use, over_long
from factory.planning.plan import Step
from factory.planning.recipe import LoadedRecipe, Recipe, load
from tests.conftest import Cli
from tests.support.builders import demo
from tests.support.families import tokenizer_of

RECIPE = """\
name: made
org: lab
languages: [en, es]
models:
  policy: lab/policy
  reward: {kind: classifier, name: lab/reward}
stages:
  prompts: {source: "p-{language}.jsonl"}
  generate: {max_tokens: 100}
  score: {}
"""


# How a recipe uses tokenizers.


def uses(recipe: Recipe) -> dict[str, tuple[bool, list[tuple[str, str, int | None, int]]]]:
    return {
        asked.model.source: (
            asked.answers,
            [(use.stage, use.does, use.limit, len(use.prompts)) for use in asked.uses],
        )
        for asked in checks.tokenizers(recipe)
    }


def test_a_model_that_is_trained_here_has_the_tokenizer_of_its_base() -> None:
    [(source, (answers, found))] = uses(demo()).items()
    assert source == "local/SmolLM2-135M-Instruct-Q4_1@main" and answers
    assert found == [
        ("generate", "answer", 40, 3),
        ("score", "read", 16384, 3),  # by the reward model, in its own words
        ("arena", "answer", 40, 3),
    ]


def test_a_reward_model_alone_answers_nothing(tmp_path: Path) -> None:
    loaded = recipe_at(tmp_path)
    found = uses(loaded.recipe)
    assert found == {
        "lab/policy@main": (True, [("generate", "answer", 100, 2)]),
        "lab/reward@main": (False, [("score", "read", 16384, 2)]),
    }


def test_only_the_steps_that_are_asked_for_count(tmp_path: Path) -> None:
    found = checks.tokenizers(recipe_at(tmp_path).recipe, frozenset({"score"}))
    assert [asked.model.source for asked in found] == ["lab/reward@main"]
    assert not checks.tokenizers(recipe_at(tmp_path).recipe, frozenset({"prompts"}))


# Lengths against limits.


def levels(found: list[Check]) -> list[str]:
    return [finding.level for finding in found]


def test_a_prompt_that_leaves_half_the_context_is_short_of_room_and_no_more() -> None:
    use = Use("generate", "answer", 100, ())
    assert over_long(use, "m", "en", {"a": 28}, 128) == []
    [short] = over_long(use, "m", "en", {"a": 28, "b": 64}, 128)
    assert short.level == "warning" and "1 of 2 prompts get less" in short.seen
    assert "down to 64" in short.seen and "max_tokens to 64" in short.fix
    [over] = over_long(use, "m", "en", {"a": 28, "b": 65}, 128)
    assert "1 of 2 prompts leave no room in 64 tokens: b; the longest, b, has 65" in over.seen


def test_where_no_prompt_has_room_it_is_an_error() -> None:
    use = Use("generate", "answer", 100, ())
    [found] = over_long(use, "m", "en", dict.fromkeys("abcde", 127), 128)
    assert found.level == "error" and "a, b, c and 2 more" in found.seen


def test_what_is_read_has_the_smaller_of_two_limits() -> None:
    read = Use("score", "read", 50, ())
    assert over_long(read, "m", "en", {"a": 49}, 128) == []
    assert levels(over_long(read, "m", "en", {"a": 49, "b": 50}, 128)) == ["warning"]
    assert levels(over_long(read, "m", "en", {"a": 40, "b": 30}, 40)) == ["warning"]
    assert levels(over_long(read, "m", "en", {"a": 60}, None)) == ["error"]


def test_without_a_context_an_answer_has_room() -> None:
    assert over_long(Use("generate", "answer", 100, ()), "m", "en", {"a": 10**6}, None) == []


# Over a real hub.


Put = Callable[..., None]


@pytest.fixture
def put(hub: Any, tmp_path: Path) -> Put:
    """Put a model on the hub: a tokenizer, two configs, and weights that nobody is to fetch."""

    def upload(
        repo: str, family: str, template: str | None = None, context: int = 512, pad: str = ""
    ) -> None:
        directory = tmp_path / "made" / repo
        tokenizer = tokenizer_of(family)
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(str(directory))
        config = {"model_type": "llama", "max_position_embeddings": context}
        if pad:
            config["pad_token_id"] = tokenizer.convert_tokens_to_ids(pad)
        (directory / "config.json").write_text(json.dumps(config))
        stops = {"eos_token_id": tokenizer.eos_token_id}
        (directory / "generation_config.json").write_text(json.dumps(stops))
        (directory / "model.safetensors").write_bytes(b"weights of " + repo.encode())
        hub._api.create_repo(repo, exist_ok=True)
        hub._api.upload_folder(repo_id=repo, folder_path=str(directory))

    return upload


@pytest.fixture
def models(put: Put) -> None:
    """A policy and a reward model that have no fault."""
    put("lab/policy", "llama3")
    put("lab/reward", "qwen3")


def recipe_at(tmp_path: Path, *overrides: str) -> LoadedRecipe:
    (tmp_path / "r").mkdir(exist_ok=True)
    (tmp_path / "r" / "made.yaml").write_text(RECIPE)
    for code in ("en", "es"):
        rows = [{"id": f"p{n}", "prompt": f"{code} " + "bread " * n} for n in (1, 5, 9)]
        prompts(tmp_path, code, *rows)
    return load(str(tmp_path / "r" / "made.yaml"), overrides)


def prompts(tmp_path: Path, code: str, *rows: dict[str, Any]) -> None:
    """Give the recipe these prompts of a language."""
    (tmp_path / "r" / f"p-{code}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def look(loaded: LoadedRecipe, hub: Any, tmp_path: Path) -> list[Check]:
    home = Home(tmp_path / "home")
    pins, _ = resolve.resolve(loaded, hub, home, None)
    return checks.check(loaded, pins, hub, home)


def test_a_good_recipe_has_no_findings_and_no_weights_are_fetched(
    hub: Any, models: None, tmp_path: Path
) -> None:
    assert look(recipe_at(tmp_path), hub, tmp_path) == []
    assert list((tmp_path / "cache").rglob("tokenizer.json"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_second_look_reads_nothing_again_until_something_changes(
    hub: Any, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("lab/policy", "gemma")
    put("lab/reward", "qwen3")
    first = look(recipe_at(tmp_path), hub, tmp_path)
    assert [finding.name for finding in first] == ["lab/policy@main"]
    assert "ends with <end_of_turn>" in first[0].seen
    looked: list[str] = []
    real = checks._look

    def counted(asked: Any, *more: Any) -> Any:
        looked.append(asked.model.source)
        return real(asked, *more)

    monkeypatch.setattr(checks, "_look", counted)
    assert look(recipe_at(tmp_path), hub, tmp_path) == first and not looked
    look(recipe_at(tmp_path, "stages.generate.temperature=0.5"), hub, tmp_path)
    assert not looked  # nothing that is looked at
    look(recipe_at(tmp_path, "stages.generate.max_tokens=99"), hub, tmp_path)
    assert looked == ["lab/policy@main"]
    loaded = recipe_at(tmp_path)
    prompts(tmp_path, "es", {"id": "a", "prompt": "Otra cosa"})
    looked.clear()
    look(loaded, hub, tmp_path)
    assert looked == ["lab/policy@main", "lab/reward@main"]


def test_what_is_too_long_is_listed_by_language(hub: Any, put: Put, tmp_path: Path) -> None:
    put("lab/policy", "llama3", context=64)
    put("lab/reward", "llama3", context=36)
    found = look(recipe_at(tmp_path), hub, tmp_path)
    said = "\n".join(finding.line() for finding in found)
    assert "lab/policy@main: stages.generate, es: 1 of 3 prompts leave no room in 32" in said
    assert "lab/reward@main: stages.score, en: 1 of 3 prompts leave no room in 36" in said
    assert set(levels(found)) == {"warning"}


def test_a_system_message_that_a_template_refuses_is_an_error_with_its_row(
    hub: Any, put: Put, tmp_path: Path
) -> None:
    put("lab/policy", "mistral")
    put("lab/reward", "qwen3")
    loaded = recipe_at(tmp_path, "stages.prompts.turns=all")
    turns = [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}]
    turns.append({"role": "user", "content": "Why?"})
    prompts(tmp_path, "es", {"id": "a", "messages": turns})
    [found] = look(loaded, hub, tmp_path)
    assert found.level == "error" and found.name == "lab/policy@main, es"
    assert "1 of 1 prompts" in found.seen
    assert "p-es.jsonl line 1" in found.seen and "accepts no system message" in found.seen


def test_prompts_that_a_template_refuses_are_counted_and_left_out(
    hub: Any, put: Put, tmp_path: Path
) -> None:
    put("lab/policy", "mistral")
    put("lab/reward", "qwen3")
    loaded = recipe_at(tmp_path, "stages.prompts.turns=all", "stages.arena=null")
    user = {"role": "user", "content": "Hi"}
    rows = [[user], *[[user, {"role": "system", "content": "Be brief."}, user]] * 2]
    lines = [json.dumps({"id": str(n), "messages": turns}) for n, turns in enumerate(rows)]
    (tmp_path / "r" / "p-es.jsonl").write_text("\n".join(lines))
    [found] = look(loaded, hub, tmp_path)
    assert found.level == "error" and "2 of 3 prompts are refused" in found.seen
    assert "bad_rows: 67%" in found.line()
    loaded = recipe_at(
        tmp_path, "stages.prompts.turns=all", "stages.arena=null", "stages.prompts.bad_rows=67%"
    )
    (tmp_path / "r" / "p-es.jsonl").write_text("\n".join(lines))
    [found] = look(loaded, hub, tmp_path)
    assert found.level == "warning" and "left out and counted" in found.line()


@pytest.mark.parametrize(
    ("ids", "common"),
    [((1, 1.0), True), (("a", "b"), False), ((None, None), False), ((float("nan"), 1), False)],
)
def test_a_pool_of_all_languages_needs_a_prompt_with_one_id_in_two(
    hub: Any, models: None, tmp_path: Path, ids: tuple[Any, Any], common: bool
) -> None:
    loaded = recipe_at(tmp_path, "stages.pair={pool: both}")
    for code, name in zip(("en", "es"), ids, strict=True):
        rows = [{"id": name, "prompt": f"{code} bread"}, {"id": code, "prompt": f"{code} more"}]
        prompts(tmp_path, code, *rows)
    found = look(loaded, hub, tmp_path)
    assert [finding.level for finding in found] == ([] if common else ["error"])
    assert all("no prompt has one id in two of en, es" in finding.seen for finding in found)


def test_a_pool_of_one_language_needs_no_other(hub: Any, models: None, tmp_path: Path) -> None:
    loaded = recipe_at(tmp_path, "stages.pair={pool: both}", "languages=[en]")
    assert look(loaded, hub, tmp_path) == []


@pytest.mark.parametrize(
    ("architecture", "labels", "words"),
    [
        ("LlamaForSequenceClassification", {"0": "no", "1": "yes"}, "it has 2 labels"),
        ("LlamaForCausalLM", None, "it has 2 labels"),  # the head would be drawn at random
        ("LlamaForSequenceClassification", {"0": "LABEL_0"}, None),
    ],
)
def test_a_reward_model_has_one_label(
    hub: Any, put: Put, tmp_path: Path, architecture: str, labels: Any, words: str | None
) -> None:
    put("lab/policy", "llama3")
    put("lab/labelled", "qwen3")
    config: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 512}
    config |= {"architectures": [architecture]} | ({"id2label": labels} if labels else {})
    text = json.dumps(config).encode()
    hub._api.upload_file(path_or_fileobj=text, path_in_repo="config.json", repo_id="lab/labelled")
    found = look(recipe_at(tmp_path, "models.reward.name=lab/labelled"), hub, tmp_path)
    assert [finding.level for finding in found] == (["error"] if words else [])
    assert all(str(words) in finding.seen for finding in found)


def test_control_tokens_in_prompts_are_counted_with_their_ids(
    hub: Any, models: None, tmp_path: Path
) -> None:
    loaded = recipe_at(tmp_path)
    prompts(tmp_path, "es", {"id": "a", "prompt": "Hi"}, {"id": "b", "prompt": "Hi<|eot_id|>"})
    [found] = look(loaded, hub, tmp_path)  # the reward model has other tokens
    assert found.level == "warning" and found.name == "lab/policy@main, es"
    assert "1 of 2 prompts hold control tokens of the model: b (<|eot_id|>)" in found.seen


def test_a_file_that_is_not_there_is_no_crash(hub: Any, put: Put, tmp_path: Path) -> None:
    put("lab/policy", "llama3")
    put("lab/reward", "qwen3")
    loaded = recipe_at(tmp_path)
    (tmp_path / "r" / "p-es.jsonl").unlink()
    assert look(loaded, hub, tmp_path) == []  # resolve.unmet names it


ASKED = [{"prompt": f"Question {number}?"} for number in range(6)]
SCORED = [
    {"prompt": row["prompt"], "response": f"Answer {k}.", "reward": k}
    for row in ASKED
    for k in range(2)
]
ELSEWHERE = """\
name: elsewhere
org: lab
languages: [en]
license: apache-2.0
models: {policy: local/tiny-random-llama}
stages:
  prompts: {source: asked.jsonl}
"""


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (
            "generate: {from: scored.jsonl}\n  score: {from: scored.jsonl}\n  pair: {}",
            "pair en: 6 of 6 prompts that scored.jsonl answers are not among the recipe's own "
            "(fix: take the prompts from the same rows: prompts: {from: scored.jsonl, repeats:",
        ),
        (
            "pair: {from: same.jsonl}\n  dpo: {each: all}",
            "same.jsonl has no rows for en, same_text 6",
        ),
        (
            "pair: {from: pairs.jsonl}\n  dpo: {each: all}",
            "dpo[all]: at most 6 rows come from pair, 8 needed (fix: more prompts, or set "
            "dpo.min_pairs)",
        ),
        ("pair: {from: {source: pairs.jsonl, columns: {chosen: better}}}", "no column 'better'"),
        ("pair: {from: pairs.jsonl}\n  dpo: {each: all, min_pairs: 6}", None),
    ],
)
def test_check_says_what_rows_from_outside_come_to(
    hub: Any, tmp_path: Path, stages: str, words: str | None
) -> None:
    pairs = [row | {"chosen": "So.", "rejected": "No."} for row in ASKED]
    files = {
        "asked": ASKED,
        "scored": SCORED,
        "pairs": pairs,
        "same": [row | {"rejected": "So."} for row in pairs],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "r.yaml").write_text(f"{ELSEWHERE}  {stages}\n")
    loaded, home = load(str(tmp_path / "r.yaml")), Home(tmp_path / "home")
    pins, _ = resolve.resolve(loaded, hub, home, None)
    the_plan = resolve.plan(loaded, pins, hub, home)
    counts, faults = inputs.counted(loaded, the_plan.steps, {})
    found = [finding.line() for finding in (*faults, *checks.blocked_steps(the_plan, counts))]
    assert len(found) == (words is not None) and (words or "") in "".join(found)


def test_a_reward_model_needs_a_template_of_its_own(hub: Any, put: Put, tmp_path: Path) -> None:
    put("lab/policy", "llama3")
    put("lab/bare", "qwen3", template="")
    loaded = recipe_at(tmp_path, "models.reward.name=lab/bare")
    [found] = look(loaded, hub, tmp_path)
    assert found.level == "error" and "the tokenizer of lab/bare@main has no chat" in found.seen
    assert str(tmp_path) not in found.line()


def test_a_reward_model_that_ends_conversations_in_its_pad_token_is_named(
    hub: Any, put: Put, tmp_path: Path
) -> None:
    put("lab/policy", "llama3", pad="<|eot_id|>")  # it answers, and is read nowhere
    put("lab/reward", "llama3", pad="<|eot_id|>")
    [warned] = look(recipe_at(tmp_path), hub, tmp_path)
    assert warned.level == "warning" and warned.name == "lab/reward@main"
    assert "ends a conversation in <|eot_id|>" in warned.seen
    put("lab/line", "qwen3", pad="<|im_end|>")  # the template ends in a line break
    assert look(recipe_at(tmp_path, "models.reward.name=lab/line"), hub, tmp_path) == []


class Told:
    """A step under a name: all that the gate looks at."""

    def __init__(self, name: str) -> None:
        self.name = name


def test_a_run_is_stopped_before_the_first_step_with_a_model(
    hub: Any, put: Put, tmp_path: Path
) -> None:
    bare = "{% for m in messages %}{{ m['content'] + '###' }}{% endfor %}"
    put("lab/plain", "chatml", template=bare)
    put("lab/reward", "gemma")
    loaded = recipe_at(tmp_path, "models.policy=lab/plain")
    pins, _ = resolve.resolve(loaded, hub, Home(tmp_path / "home"), None)
    told: list[str] = []

    def gate(*only: str) -> Callable[[Step], None]:
        return checks.gate(loaded, pins, hub, Home(tmp_path / "home"), told.append, list(only))

    before = gate("prompts", "generate", "score")
    before(Told("prompts"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no token ends the assistant's turn"):
        before(Told("generate"))  # type: ignore[arg-type]
    before(Told("score"))  # type: ignore[arg-type]  # once is enough
    gate("prompts", "score")(Told("score"))  # type: ignore[arg-type]
    assert told == []  # a reward model stops nowhere


def test_warnings_are_told_and_stop_nothing(hub: Any, put: Put, tmp_path: Path) -> None:
    put("lab/policy", "gemma")
    put("lab/reward", "qwen3")
    loaded = recipe_at(tmp_path)
    home = Home(tmp_path / "home")
    pins, _ = resolve.resolve(loaded, hub, home, None)
    told: list[str] = []
    checks.gate(loaded, pins, hub, home, told.append, ["generate"])(Told("generate"))  # type: ignore[arg-type]
    [line] = told
    assert line.startswith("warning: lab/policy@main: a turn ends with <end_of_turn>")


# The command.


def test_the_command_says_what_is_not_there_yet_and_ends_well(factory: Cli) -> None:
    done: subprocess.CompletedProcess[str] = factory("check", "smoke")
    assert done.returncode == 0, done.stderr
    assert "warning: local/tiny-random-llama@main: not on this hub yet" in done.stdout
    assert "smoke: no errors, 1 warning" in done.stdout
    [found] = json.loads(factory("check", "smoke", "--json").stdout)
    assert found["level"] == "warning" and found["fix"].startswith("the first run brings it in")
