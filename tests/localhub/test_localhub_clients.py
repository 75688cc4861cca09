"""Programs that know of the hub only by their environment, as they come from the registry."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

CARD = """---
configs:
- config_name: da
  data_files: [{split: train, path: data/da/*.parquet}]
- config_name: mt
  data_files: [{split: train, path: data/mt/*.parquet}]
---
"""


OLDEST = "1.31.0"


def run(env: dict[str, str], *command: str, timeout: float = 120, **options: Any) -> str:
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=timeout, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_load_dataset_at_a_tag(api, repo, client_env, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "repo"
    for language in ("da", "mt"):
        (folder / "data" / language).mkdir(parents=True)
        table = pa.table({"prompt": [f"{language}-{n}" for n in range(5)]})
        pq.write_table(table, folder / "data" / language / "part-00000.parquet")
    (folder / "README.md").write_text(CARD)
    api.upload_folder(repo_id=repo, folder_path=folder, repo_type="dataset")
    api.create_tag(repo, tag="fp-1", repo_type="dataset")
    api.delete_folder("data/mt", repo, repo_type="dataset")
    code = f"""
from huggingface_hub import HfApi
from datasets import Dataset, get_dataset_config_names, load_dataset
print(get_dataset_config_names({repo!r}, revision="fp-1"))
print(load_dataset({repo!r}, "mt", split="train", revision="fp-1")["prompt"][3])
stream = load_dataset({repo!r}, "da", split="train", revision="fp-1", streaming=True)
print([row["prompt"] for row in stream][-1])
for config, count in (("x", 10), ("y", 20)):
    Dataset.from_dict({{"a": list(range(count))}}).push_to_hub(
        "org/pushed", config_name=config, private=True)
HfApi().create_tag("org/pushed", tag="v1", repo_type="dataset")
Dataset.from_dict({{"a": [7]}}).push_to_hub("org/pushed", config_name="x")
print([sum(load_dataset("org/pushed", "x", split="train", revision=at)["a"])
       for at in ("v1", "main")])
print(sum(row["a"] for row in load_dataset("org/pushed", "y", split="train", streaming=True)))
"""
    out = run(client_env, sys.executable, "-c", code).splitlines()
    assert out == ["['da', 'mt']", "mt-3", "da-4", "[45, 7]", "190"]


def test_the_hf_command(api, client_env, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "w.safetensors").write_bytes(b"w" * 5000)
    (tmp_path / "up" / "config.json").write_text("{}")
    hf = str(Path(sys.executable).with_name("hf"))
    run(client_env, hf, "upload", "org/by-cli", str(tmp_path / "up"))
    run(client_env, hf, "download", "org/by-cli", "--local-dir", str(tmp_path / "down"))
    assert (tmp_path / "down" / "w.safetensors").read_bytes() == b"w" * 5000
    assert "local" in run(client_env, hf, "auth", "whoami")
    assert sorted(api.list_repo_files("org/by-cli")) == [
        ".gitattributes",
        "config.json",
        "w.safetensors",
    ]


@pytest.fixture(scope="session")
def oldest_python() -> str:
    """A Python with the oldest client we allow, installed once and kept from run to run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "croco-factory-tests" / f"huggingface_hub-{OLDEST}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "-q", f"huggingface_hub=={OLDEST}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"cannot install huggingface_hub {OLDEST}: {done.stderr[-200:]}")
        (home / "complete").touch()
    return str(python)


@pytest.mark.slow
def test_the_oldest_client(client_env, oldest_python, tmp_path):
    script = str(Path(__file__).with_name("old_client.py"))
    env = {key: value for key, value in client_env.items() if key != "PYTHONPATH"}
    assert run(env, oldest_python, script, OLDEST, str(tmp_path)).endswith("all of it\n")


TINY = """
import json, torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast)

def tiny():
    words = {f"w{n}": n + 3 for n in range(61)} | {"<s>": 0, "</s>": 1, "<unk>": 2}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=0, eos_token_id=1)
    return LlamaForCausalLM(config), tokenizer
"""


@pytest.mark.slow
def test_transformers_peft_and_trl(api, client_env, tmp_path):
    """Models and adapters go up and come back at a tag, by the libraries' own push and load."""
    code = f"""{TINY}
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
api = HfApi()
model, tokenizer = tiny()
model.push_to_hub("org/tiny"); tokenizer.push_to_hub("org/tiny")
api.create_tag("org/tiny", tag="v1")
weights = model.state_dict()["model.norm.weight"].clone()
with torch.no_grad():
    model.model.norm.weight.add_(1)
model.push_to_hub("org/tiny")
at_tag = AutoModelForCausalLM.from_pretrained("org/tiny", revision="v1")
assert torch.equal(at_tag.state_dict()["model.norm.weight"], weights)
assert AutoTokenizer.from_pretrained("org/tiny", revision="v1")("w1 w2").input_ids == [4, 5]

lora = get_peft_model(at_tag, LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights=False))
lora.push_to_hub("org/tiny-lora")
api.create_tag("org/tiny-lora", tag="v1")
again = PeftModel.from_pretrained(
    AutoModelForCausalLM.from_pretrained("org/tiny", revision="v1"), "org/tiny-lora",
    revision="v1")
ids = torch.tensor([[0, 4, 5, 6]])
assert torch.allclose(again(ids).logits, lora(ids).logits, atol=1e-5)

from datasets import Dataset
from trl import SFTConfig, SFTTrainer
trainer = SFTTrainer(
    model="org/tiny", train_dataset=Dataset.from_dict({{"text": ["w1 w2 w3"] * 8}}),
    args=SFTConfig(output_dir="out", max_steps=2, per_device_train_batch_size=2, use_cpu=True,
                   bf16=False, report_to="none", save_strategy="no", push_to_hub=True,
                   hub_model_id="org/tiny-sft", dataset_num_proc=None))
trainer.train()
trainer.push_to_hub(dataset_name="org/none")
assert "model.safetensors" in api.list_repo_files("org/tiny-sft")
assert "trl" in api.model_info("org/tiny-sft").tags
AutoModelForCausalLM.from_pretrained("org/tiny-sft")
print("all of it")
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    env = client_env | {"CUDA_VISIBLE_DEVICES": ""}
    assert run(env, sys.executable, str(script), timeout=400, cwd=tmp_path).endswith("all of it\n")
    assert "adapter_model.safetensors" in api.list_repo_files("org/tiny-lora")
