"""The code on the cards, taken from the READMEs on the hub and run as a reader would run it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.conftest import FACTORY, run_factory

pytestmark = pytest.mark.slow

HOST = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_USE_V1": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


@pytest.fixture
def made(smoke: Path) -> Path:
    """A home with everything up to adapters and answers."""
    return smoke


def snippets(made: Path, repo: str) -> list[str]:
    """The Python on the card of a repo, as `factory card` shows it."""
    done = run_factory("card", repo, home=made)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^```python\n(.*?)^```$", done.stdout, re.DOTALL | re.MULTILINE)


def execute(made: Path, code: str, name: str) -> str:
    """Run it from a file, with the environment that `factory hub exec` gives."""
    script = made.parent / f"{name}.py"
    script.write_text(code)
    done = run_factory("hub", "exec", "--", FACTORY[0], str(script), home=made, **HOST)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_every_dataset_loads_as_its_card_says(made: Path) -> None:
    done = run_factory("plan", "smoke", "--json", home=made)
    code, expected = "", []
    for step in json.loads(done.stdout):
        if step["step"].startswith(("reward", "sft", "dpo", "merge", "translate")):
            continue  # models; and of random text no translation is kept, so there are no rows
        [snippet] = snippets(made, f"datasets/{step['repo']}")
        code += f"{snippet}\nprint({step['step']!r}, len(rows) > 0)\n"
        expected.append(f"{step['step']} True")
    assert len(expected) == 9
    assert execute(made, code, "datasets_").splitlines() == expected


@pytest.mark.parametrize(
    "repo", ["local/smoke-dpo-es", "local/smoke-reward", "local/tiny-random-llama"]
)
def test_every_model_loads_and_answers_as_its_card_says(made: Path, repo: str) -> None:
    said = execute(made, snippets(made, repo)[0], repo.replace("/", "-"))
    if repo.endswith("reward"):
        float(said.strip().splitlines()[-1])
    else:
        assert said.strip(), "it said something"


# Over a minute: vLLM takes 45 to 60 s to start on a CPU, whatever the size of the model.
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_an_adapter_answers_in_vllm_as_its_card_says(made: Path) -> None:
    [_, snippet] = snippets(made, "local/smoke-dpo-all")
    assert execute(made, snippet, "with_vllm").strip()


def test_after_the_judge_the_cards_of_adapters_show_what_it_found(made: Path) -> None:
    for repo in ("local/smoke-dpo-all", "local/smoke-dpo-es"):
        exported = run_factory(
            "hub", "exec", "--", FACTORY[0], "-c",
            "import sys; from huggingface_hub import ModelCard, HfApi\n"
            f"card = ModelCard.load({repo!r}); print(len(card.data.eval_results))\n"
            f"print('## Evaluation' in card.text, len(HfApi().list_repo_refs({repo!r}).tags))",
            home=made,
        )  # fmt: skip
        assert exported.returncode == 0, exported.stderr
        assert exported.stdout.split()[1:] == ["True", "1"]
        assert int(exported.stdout.split()[0]) == (4 if repo.endswith("all") else 1)
        checked = run_factory("card", repo, "--check", home=made)
        assert checked.returncode == 0, checked.stdout
