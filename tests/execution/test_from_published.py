"""Data in the shapes of CroCo's published scripts, as a dataset on the local hub, read through its
client: a line of recipe for each stage that it can go in at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import Manifest, read_manifest
from factory.artifacts.tables import read_slice
from factory.artifacts.workdir import Home
from factory.execution import run
from factory.execution.log import LogReporter
from factory.localhub.launcher import Connection
from factory.planning.recipe import load
from tests.support.trainings import adapter_of, tiny_model

NAMES = {"da": "danish", "en": "english", "mt": "maltese"}
TINY = (
    "org=lab", "license=apache-2.0", "languages=[da, en, mt]",
    "models.policy=local/tiny-random-llama",
    "models.reward={kind: implicit, name: local/tiny-random-llama, reference: policy}",
)  # fmt: skip
BASE = "EuroLLM-9B-Instruct-2512"


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def files() -> dict[str, list[dict[str, Any]]]:
    """By name: the rows of the scripts' files, four prompts with three answers in each language."""
    made: dict[str, list[dict[str, Any]]] = {"dpo_all_lang.jsonl": []}
    for name in NAMES.values():
        asked = [f"Question {n}, in {name}: how is bread made?" for n in range(4)]
        said = [[f"Answer {k} to {n} in {name}, with flour." for k in range(3)] for n in range(4)]
        about = [{"id": f"p{n}", "source_dataset": "their set", "domain": "food"} for n in range(4)]
        made[f"{name}.jsonl"] = [
            {**about[n], "messages": talk(asked[n], said[n][0]), "language": name.title()}
            for n in range(4)
        ]
        made[f"temp_{BASE}_{name}.jsonl"] = [
            {"messages": talk(asked[n], text)} for n in range(4) for text in said[n]
        ]
        made[f"temp_{BASE}_{name}_scored.jsonl"] = [
            {"id": None, "source_dataset": None, "domain": None,
             "messages": talk(asked[n], text), "reward_score": -999.0 if n == k == 2 else n + k / 2,
             "token_length": 40, "model": "Skywork/Skywork-Reward-V2-Qwen3-8B"}
            for n in range(4) for k, text in enumerate(said[n])
        ]  # fmt: skip
        pairs = [
            {**about[n], "prompt": asked[n], "prompt_language": name, "chosen": said[n][2],
             "rejected": said[n][0], "chosen_score": n + 1.0, "rejected_score": float(n),
             "chosen_language": name, "rejected_language": "english", "pool_size": 3}
            for n in range(4)
        ]  # fmt: skip
        made[f"dpo_in_lang_{name}.jsonl"] = pairs
        made["dpo_all_lang.jsonl"] += pairs[: 2 if name == "danish" else 1]
        made[f"sft_in_lang_max_r_{name}.jsonl"] = [
            {**about[n], "prompt": asked[n], "language": name, "completion": said[n][2],
             "reward_score": n + 1.0}
            for n in range(4)
        ]  # fmt: skip
    return made


@pytest.fixture(scope="module")
def hub(connection: Connection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from huggingface_hub import constants

    from factory.hub.client import Hub

    root = tmp_path_factory.mktemp("published")
    before = constants.HF_HUB_CACHE
    constants.HF_HUB_CACHE = str(root / "cache")
    client = Hub(connection.url, connection.token)
    (root / "data").mkdir()
    (root / "data" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for name, rows in files().items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / "data" / name).write_text(lines, encoding="utf-8")
    client._api.create_repo("my-org/croco", repo_type="dataset", exist_ok=True)
    client._api.upload_folder(
        repo_id="my-org/croco", repo_type="dataset", folder_path=str(root / "data")
    )
    for name in NAMES.values():
        folder = adapter_of(tiny_model(), root / name, r=4)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        repo = f"my-org/{BASE}-dpo_in_lang_{name}"
        client._api.create_repo(repo, repo_type="model")
        client._api.upload_folder(repo_id=repo, repo_type="model", folder_path=str(folder))
    yield client
    constants.HF_HUB_CACHE = before


def made(hub: Any, home: Path, until: str, *lines: str) -> dict[str, tuple[Path, Manifest]]:
    """Artifacts by step of a run of the packaged recipe with these lines in it."""
    found = load("from-published", [*TINY, *(f"stages.{line}" for line in lines)])
    run.run(found, hub, Home(home), LogReporter(quiet=True), until=until)
    roots = [path.parent for path in home.glob("work/lab/*/artifact/factory.json")]
    return {manifest.step: (root, manifest) for root in roots for manifest in [read_manifest(root)]}


def rows(artifact: tuple[Path, Manifest], language: str) -> list[dict[str, Any]]:
    root, manifest = artifact
    found: list[dict[str, Any]] = read_slice(root, language, manifest.kind).to_pylist()
    return found


def test_scored_answers_become_pairs_and_a_score_that_failed_is_none(
    hub: Any, tmp_path: Path
) -> None:
    steps = made(hub, tmp_path, "pair")
    scores = rows(steps["score"], "mt")
    assert [row["status"] for row in scores].count("failed") == 1
    assert not any(row["reward"] == -999 for row in scores)
    pairs = rows(steps["pair"], "mt")
    sides = sorted((row["chosen_k"], row["rejected_k"]) for row in pairs)
    assert sides == [(1, 0), (2, 0), (2, 0), (2, 0)], "of the third prompt the best score failed"
    assert all("maltese" in row["chosen"][0]["content"] for row in pairs)
    assert steps["prompts"][1].slices["da"].rows.out == 4


def test_translations_are_read_as_prompts_and_answered(hub: Any, tmp_path: Path) -> None:
    steps = made(
        hub, tmp_path, "generate",
        'prompts={source: my-org/croco, file: "{Language}.jsonl"}',
        "generate={n: 2, max_tokens: 4, dtype: float32}", "score=null", "pair=null", "dpo=null",
    )  # fmt: skip
    for code, name in NAMES.items():
        asked = rows(steps["prompts"], code)
        assert [row["prompt_id"] for row in asked] == ["p0", "p1", "p2", "p3"]
        assert name in asked[0]["messages"][0]["content"] and asked[0]["domain"] == "food"
        assert len(rows(steps["generate"], code)) == 8


def test_answers_without_rewards_are_read_with_their_prompts(hub: Any, tmp_path: Path) -> None:
    file = f'source: my-org/croco, file: "temp_{BASE}_{{Language}}.jsonl"'
    steps = made(
        hub, tmp_path, "score",
        f"prompts={{{file}, repeats: drop}}", f"generate={{from: {{{file}}}}}",
        "score={dtype: float32, max_tokens: 512, prompt: own}", "pair=null", "dpo=null",
    )  # fmt: skip
    for code in NAMES:
        samples = rows(steps["generate"], code)
        assert [row["k"] for row in samples] == [0, 1, 2] * 4
        ids = {row["prompt_id"] for row in rows(steps["prompts"], code)}
        assert {row["prompt_id"] for row in samples} == ids and len(ids) == 4
        assert [row["status"] for row in rows(steps["score"], code)] == ["ok"] * 12


ALONE = ("prompts=null", "generate=null", "score=null", "dpo=null")


def test_pairs_of_a_language_and_of_all_are_read(hub: Any, tmp_path: Path) -> None:
    line = 'pair={from: {source: my-org/croco, file: "dpo_in_lang_{Language}.jsonl"}}'
    pairs = rows(made(hub, tmp_path / "one", "pair", line, *ALONE)["pair"], "da")
    assert [(row["score_chosen"], row["reward_rejected"]) for row in pairs] == [
        (n + 1.0, float(n)) for n in range(4)
    ]
    assert {(row["prompt_language"], row["rejected_language"]) for row in pairs} == {("da", "en")}
    line = (
        "pair={from: {source: my-org/croco, file: dpo_all_lang.jsonl, "
        "columns: {language: prompt_language}}}"
    )
    step = made(hub, tmp_path / "all", "pair", line, *ALONE)["pair"]
    assert {code: len(rows(step, code)) for code in NAMES} == {"da": 2, "en": 1, "mt": 1}


def test_best_answers_are_read_with_their_rewards(hub: Any, tmp_path: Path) -> None:
    line = 'best={from: {source: my-org/croco, file: "sft_in_lang_max_r_{Language}.jsonl"}}'
    best = rows(made(hub, tmp_path, "best", line, "pair=null", *ALONE)["best"], "mt")
    assert [row["reward"] for row in best] == [1.0, 2.0, 3.0, 4.0]
    assert best[0]["completion"][0]["content"] == "Answer 2 to 0 in maltese, with flour."


def test_adapters_are_read_by_the_names_of_their_languages(hub: Any, tmp_path: Path) -> None:
    line = f'dpo={{from: {{source: "my-org/{BASE}-dpo_in_lang_{{Language}}", base: BASE}}}}'
    line = line.replace("base: BASE", "base: local/tiny-random-llama")
    steps = made(hub, tmp_path, "dpo[mt]", line, "pair=null", *ALONE[:3])
    assert set(steps) == {f"dpo[{code}]" for code in NAMES}
    assert (steps["dpo[mt]"][0] / "adapter_model.safetensors").is_file()
