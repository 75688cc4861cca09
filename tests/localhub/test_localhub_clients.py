"""Programs that know of the hub only by their environment: datasets and the hf command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CARD = """---
configs:
- config_name: da
  data_files: [{split: train, path: data/da/*.parquet}]
- config_name: mt
  data_files: [{split: train, path: data/mt/*.parquet}]
---
"""


def run(env: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
from datasets import Dataset, get_dataset_config_names, load_dataset
print(get_dataset_config_names({repo!r}, revision="fp-1"))
print(load_dataset({repo!r}, "mt", split="train", revision="fp-1")["prompt"][3])
stream = load_dataset({repo!r}, "da", split="train", revision="fp-1", streaming=True)
print([row["prompt"] for row in stream][-1])
Dataset.from_dict({{"a": list(range(10))}}).push_to_hub("org/pushed", config_name="x", private=True)
print(sum(load_dataset("org/pushed", "x", split="train")["a"]))
"""
    out = run(client_env, sys.executable, "-c", code).splitlines()
    assert out == ["['da', 'mt']", "mt-3", "da-4", "45"]


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
