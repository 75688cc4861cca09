"""What people do with what was released: chat, serve, merge and load it, on the smoke adapters."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FACTORY, run_factory

pytestmark = pytest.mark.slow

ADAPTER = "local/smoke-dpo-all"


def said(smoke: Path, *arguments: str) -> str:
    done = run_factory(*arguments, home=smoke)
    assert done.returncode == 0, done.stderr
    return done.stdout


def model_of(words: list[str]) -> str:
    """The base in a command that serves, by the program or by the module."""
    return words[words.index("serve" if "serve" in words else "--model") + 1]


def test_one_answer_is_streamed_and_its_language_is_told_beside_it(smoke: Path) -> None:
    done = run_factory("chat", ADAPTER, "--prompt", "Hola", "--max-tokens", "8", home=smoke)
    assert done.returncode == 0, done.stderr
    head, about = done.stderr.strip().splitlines()
    assert head.startswith(f"{ADAPTER} on local/tiny-random-llama@")
    assert "8 tokens in" in about and about.endswith(", cut off")
    assert done.stdout.strip(), "the answer alone, for a script to read"


def test_compare_gives_base_and_tuned_and_each_is_what_the_engine_draws(smoke: Path) -> None:
    found = json.loads(
        said(smoke, "chat", ADAPTER, "--prompt", "Hola", "--max-tokens", "24", "--compare",
             "--json")
    )  # fmt: skip
    base, tuned = found["answers"]
    assert (base["who"], tuned["who"]) == ("base", "tuned")
    assert base["text"] != tuned["text"], "the adapter makes a difference"
    alone = json.loads(
        said(smoke, "chat", found["base"], "--prompt", "Hola", "--max-tokens", "24", "--json")
    )
    assert alone["base"] is None and alone["answers"][0]["who"] == "model"
    assert base["text"] == alone["answers"][0]["text"], "with the adapter off it is the base"


def test_on_a_terminal_it_talks_until_an_empty_line_with_columns_side_by_side(smoke: Path) -> None:
    here, there = pty.openpty()
    process = subprocess.Popen(
        [*FACTORY, "chat", ADAPTER, "--max-tokens", "4", "--compare"],
        cwd=smoke.parent,
        env={**os.environ, "FACTORY_HOME": str(smoke), "COLUMNS": "100", "NO_COLOR": "1"},
        stdin=there, stdout=there, stderr=there,
    )  # fmt: skip
    os.close(there)
    shown, asked, deadline = "", 0, time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([here], [], [], 0.2)[0]:
            try:
                shown += os.read(here, 4096).decode(errors="replace")
            except OSError:
                break
        if shown.count("> ") > asked:
            asked = shown.count("> ")
            os.write(here, [b"Hola\n", b"/new\n", b"\n"][asked - 1] if asked < 4 else b"\n")
    assert process.wait(timeout=20) == 0, shown
    os.close(here)
    assert "base" in shown and "tuned" in shown and "4 tokens in" in shown
    assert "\x1b[3" not in shown.replace("\x1b[3m", ""), "no colour where NO_COLOR is set"


def test_a_wrong_base_is_refused_by_all_and_a_copy_of_the_right_one_is_taken(
    smoke: Path, tmp_path: Path
) -> None:
    named = json.loads(said(smoke, "chat", ADAPTER, "--prompt", "x", "--max-tokens", "1", "--json"))
    words = shlex.split(said(smoke, "serve", named["base"], "--print"))
    copy = tmp_path / "base"
    shutil.copytree(model_of(words), copy)
    right = said(smoke, "serve", ADAPTER, "--base", str(copy), "--print")
    assert model_of(shlex.split(right)) == str(copy)
    (copy / "generation_config.json").write_text("{}")
    for command in (["chat", "--prompt", "x"], ["serve", "--print"], ["merge", "--to", "m"]):
        done = run_factory(command[0], ADAPTER, "--base", str(copy), *command[1:], home=smoke)
        assert done.returncode == 1
        assert f"is not the base that {ADAPTER} was made on" in done.stderr, done.stderr


def test_the_command_that_serves_says_everything_by_directory(smoke: Path) -> None:
    words = shlex.split(said(smoke, "serve", ADAPTER, "--print", "--", "--seed", "1"))
    options = dict(itertools.pairwise(words))
    name, _, adapter = options["--lora-modules"].partition("=")
    assert name == ADAPTER and json.loads((Path(adapter) / "adapter_config.json").read_text())
    assert options["--max-lora-rank"] == "16" and options["--host"] == "127.0.0.1"
    assert (Path(options["--chat-template"])).is_file() and options["--dtype"] == "float32"
    assert options["--served-model-name"] == "local/tiny-random-llama"
    assert words[-2:] == ["--seed", "1"]


# Half a minute and more: vLLM takes that long to start on a CPU, whatever the size of the model.
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_serves_the_adapter_beside_its_base(smoke: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (smoke.parent / "serve.log").open("wb")
    process = subprocess.Popen(
        [*FACTORY, "serve", ADAPTER, "--port", str(port), "--", "--enforce-eager",
         "--max-model-len", "128"],
        cwd=smoke.parent,
        env={**os.environ, "FACTORY_HOME": str(smoke), "VLLM_CPU_KVCACHE_SPACE": "1"},
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            time.sleep(0.5)
            assert process.poll() is None, (smoke.parent / "serve.log").read_text()[-3000:]
            try:
                names = {one["id"] for one in ask(f"{address}/v1/models")["data"]}
                break
            except OSError:
                continue
        assert names == {"local/tiny-random-llama", ADAPTER}
        answers = [
            ask(
                f"{address}/v1/chat/completions",
                model=name,
                messages=[{"role": "user", "content": "Hola"}],
                max_tokens=24,
                temperature=0,
            )["choices"][0]["message"]["content"]
            for name in ("local/tiny-random-llama", ADAPTER)
        ]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
        log.close()
    spoken = json.loads(
        said(smoke, "chat", ADAPTER, "--prompt", "Hola", "--max-tokens", "24", "--compare",
             "--json")
    )  # fmt: skip
    assert answers[0] != answers[1], "the adapter is applied"
    # two engines round differently, so the first words are compared and not the whole
    for served, own in zip(answers, spoken["answers"], strict=True):
        assert served.split()[:3] == own["text"].split()[:3]


def ask(address: str, **body: Any) -> dict[str, Any]:
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        found: dict[str, Any] = json.loads(response.read())
    return found


API = """
import os, sys
before = dict(os.environ)
import factory
assert not {"torch", "polars", "pydantic", "huggingface_hub"} & set(sys.modules)
model, tokenizer = factory.load_adapter("local/smoke-dpo-es")
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Hola"}], add_generation_prompt=True, return_tensors="pt",
    return_dict=True,
)
answer = model.generate(**prompt, max_new_tokens=4)
with model.disable_adapter():
    model.generate(**prompt, max_new_tokens=4)
merged, _ = factory.load_adapter("local/smoke-dpo-es", merge=True, dtype="float32")
pairs = factory.load_artifact("local/smoke-pair")
print(pairs.manifest.kind, pairs.table("es").num_rows, len(pairs.tables()))
assert factory.load_artifact("local/smoke-dpo-es").manifest.stats["chain"]["start"] == "policy"
for wrong in ("local/nothing", "local/smoke-dpo-es"):
    try:
        factory.load_artifact(wrong).table("es")
    except Exception as error:
        print(type(error).__name__)
made = factory.run("smoke", until="pair", quiet=True)
print(made["pair"].tag == pairs.manifest.tag, len(made))
assert dict(os.environ) == before, "the program's environment is as it was"
from huggingface_hub import constants
assert constants.ENDPOINT == "https://huggingface.co", "and so are its Hub clients"
os.environ["FACTORY_HOME"] = sys.argv[1]  # nothing there: models are brought in, rows published
factory.run("smoke", until="prompts", quiet=True)
print(factory.load_artifact("local/smoke-prompts").manifest.rows().out)
assert not constants.HF_HUB_DISABLE_XET and constants.HF_HUB_OFFLINE
"""


def test_the_python_api_loads_and_runs_and_leaves_the_program_as_it_was(
    smoke: Path, tmp_path: Path
) -> None:
    """As in a job on a cluster, where clients are told to stay off the internet."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [FACTORY[0], "-c", API, str(tmp_path / "home")],
        cwd=smoke.parent, capture_output=True, text=True, check=False,
        env={**environment, "FACTORY_HOME": str(smoke), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "pairs 12 4", "HubError", "InputError", "True 15", "42",
    ]  # fmt: skip
