"""EuroEval: the table of benchmarks, what a run reads and leaves, and how a stage asks for it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.resources import shipped
from factory.errors import InputError, RecipeError, StageError, WorkError
from factory.evaluation.euroeval import checkpoint, directory, environment, process, suites
from factory.evaluation.euroeval.stage import Euroeval
from factory.planning.recipe import load
from tests.support.stand_ins import LANGUAGES

ROOT = Path(__file__).parents[3]
DATA = Path(__file__).parents[2] / "data"
REGISTRY = Path(suites.__file__).with_name("registry.json")


# the table


def test_the_papers_list_is_in_the_registry_and_each_in_its_language() -> None:
    said = {
        name: suites.complaint(name, language)
        for language, names in suites.PAPER.items()
        for name in names
    }
    assert not [why for why in said.values() if why]
    assert not [n for n in said if directory.unshipped((suites.registry()[n],))]


def test_the_papers_two_wrong_entries_are_corrected() -> None:
    assert "multi-wiki-qa-pt" in suites.PAPER["pt"]
    assert suites.complaint("multi-wiki-qa-sv", "pt") == (
        "multi-wiki-qa-sv is in sv, not in pt (did you mean 'multi-wiki-qa-pt'?)"
    )
    assert "tydiqa-fi" in suites.PAPER["fi"]
    said = suites.complaint("tidyqa-fi", "fi")
    assert said == "EuroEval 17.0.0 has no benchmark 'tidyqa-fi' (did you mean 'tydiqa-fi'?)"


def test_the_official_suites_are_euroevals() -> None:
    assert set(suites.suite("da", "official")) == {
        "angry-tweets", "scala-da", "dansk", "multi-wiki-qa-da", "nordjylland-news",
        "danske-talemaader", "danish-citizen-tests", "hellaswag-da", "ifeval-da", "valeu-da",
    }  # fmt: skip
    assert suites.registry()["sst5"].source == "EuroEval/sst5-mini"
    assert "speed" not in suites.registry()


def test_four_of_the_arenas_languages_have_no_suite() -> None:
    choices: tuple[suites.Choice, ...] = ("paper", "official")
    for choice in choices:
        without = {code for code in LANGUAGES if not suites.suite(code, choice)}
        assert {"gl", "ga", "cy", "mt"} <= without
        assert not without & {"da", "nl", "en", "fr", "de", "it", "es", "no", "sv", "pt", "fi"}


def test_the_pinned_versions_are_the_registries() -> None:
    for backend, version in environment.LOCKS.values():
        pins = environment.lock(backend, version).read_text()
        assert f"euroeval=={version}\n" in pins.lower()
        assert not re.search(r"^flash.attn", pins, re.MULTILINE | re.IGNORECASE)
    for version in suites.VERSIONS:
        pins = environment.lock("openai", version).read_text()
        # what is for CUDA alone, or makes EuroEval refuse to run
        assert not re.search(r"^(flash.attn|vllm|bitsandbytes)", pins, re.MULTILINE | re.IGNORECASE)


# recipes


def recipe(tmp_path: Path, text: str, languages: str = "[en, es]") -> Any:
    path = tmp_path / "r.yaml"
    demo = shipped("recipes") / "demo.yaml"
    (tmp_path / "demo.yaml").write_text(demo.read_text())
    path.write_text(
        f"extends: demo.yaml\nname: r\nlanguages: {languages}\nstages:\n  euroeval: {text}\n"
    )
    return load(str(path))


def checked_slices(loaded: Any) -> list[Any]:
    return [spec for stage, spec in loaded.recipe.slices() if stage.name == "euroeval"]


def test_a_recipe_asks_for_every_model_in_its_languages(tmp_path: Path) -> None:
    found = checked_slices(recipe(tmp_path, "{of: [policy, dpo]}"))
    names = [spec.name for spec in found]
    assert names[:2] == ["en/policy", "es/policy"]
    assert all(re.fullmatch(r"(en|es)/dpo-.*", name) for name in names[2:]) and names[2:]
    roles = {need.role for need in found[0].needs}
    assert roles == {"model", *suites.PAPER["en"]}
    tuned = next(spec for spec in found if "dpo" in spec.name)
    assert {need.role for need in tuned.needs} == {"model", "adapter", *suites.PAPER["en"]}


def test_a_language_may_be_asked_for_that_nothing_was_trained_in(tmp_path: Path) -> None:
    found = checked_slices(recipe(tmp_path, "{of: [policy], languages: [da, mt]}"))
    assert [spec.name for spec in found] == ["da/policy"]
    assert found[0].notes == ("mt",)  # told on the card


def test_languages_without_any_suite_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no benchmarks for gl, cy"):
        recipe(tmp_path, "{of: [policy], languages: [gl, cy]}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{benchmarks: {en: [scala-eng]}}", "did you mean 'scala-en'"),
        ("{benchmarks: {en: [scala-da]}}", "scala-da is in da, not in en"),
        ("{languages: [xx]}", "unknown language 'xx'"),
        ("{sources: {scala-eng: a/b}}", "did you mean 'scala-en'"),
        ("{sources: {scala-en: here}}", "org/name"),
        ("{backend: vlm}", "backend"),
        ("{iteration: 3}", "did you mean 'iterations'"),
    ],
)
def test_an_impossible_wish_is_an_error_with_the_line_and_the_right_word(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, text)
    assert said in caught.value.what and caught.value.what.startswith("r.yaml:5: ")


def test_the_backend_and_the_version_are_part_of_what_a_score_is(tmp_path: Path) -> None:
    spec = checked_slices(recipe(tmp_path, "{of: [policy]}"))[0]
    one, other = Euroeval(), Euroeval(backend="openai")
    assert one.identity_fields(spec) == {"tool_version": "17.0.0"}
    assert other.identity_fields(spec) == {"tool_version": "17.0.0", "backend": "openai"}
    how = Euroeval.model_validate({"how": {"parallel": 8, "limit": 60, "environment": "/x"}})
    assert how.identity_fields(spec) == one.identity_fields(spec)


# the model's directory


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "max_position_embeddings": 4096,
    "dtype": "float32",
}


def test_a_config_of_transformers_5_keeps_its_rotary_base(tmp_path: Path) -> None:
    new = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}
    old = checkpoint.older(new, "m")
    assert old["rope_theta"] == 100000.0 and old["rope_scaling"] is None
    assert "rope_parameters" not in old and "dtype" not in old
    scaled = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
    old = checkpoint.older({**LLAMA, "rope_parameters": scaled}, "m")
    assert old["rope_theta"] == 5000.0
    assert old["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_a_config_of_transformers_4_stays_as_it_is() -> None:
    config = {**LLAMA, "rope_theta": 1e6, "rope_scaling": None}
    assert checkpoint.older(config, "m") == {k: v for k, v in config.items() if k != "dtype"}


@pytest.mark.parametrize(
    "said",
    [
        {"rope_type": "longrope", "rope_theta": 1.0, "short_factor": [1.0]},
        {"rope_type": "linear", "rope_theta": 1.0, "factor": 2.0, "unheard_of": 1},
        {"full_attention": {"rope_type": "default", "rope_theta": 1.0}},
    ],
)
def test_rotary_embeddings_that_cannot_be_translated_are_refused(said: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="rotary embeddings") as caught:
        checkpoint.older({**LLAMA, "rope_parameters": said}, "m")
    assert "backend: openai" in caught.value.fix


def test_template_and_generation_config_come_along_and_weights_are_not_copied(
    tmp_path: Path,
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(LLAMA))
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "generation_config.json").write_text("{}")
    (source / "factory.json").write_text("{}")
    (source / "evil.py").write_text("")
    tokenizer = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"]}
    (source / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    checkpoint.write(source, tmp_path / "old", "bfloat16")
    there = {path.name for path in (tmp_path / "old").iterdir()}
    assert there == {
        "config.json", "model.safetensors", "chat_template.jinja", "generation_config.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert (tmp_path / "old/model.safetensors").samefile(source / "model.safetensors")
    assert json.loads((tmp_path / "old/config.json").read_text())["torch_dtype"] == "bfloat16"
    read = json.loads((tmp_path / "old/tokenizer_config.json").read_text())
    assert read["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read["additional_special_tokens"] == ["<a>"]


# the directory it runs in


def test_a_run_directory_has_data_with_named_splits_and_metrics(tmp_path: Path) -> None:
    directory.prepare(tmp_path / "run", {"scala-en": DATA / "scala-en"}, {}, "en", "17.0.0")
    there = tmp_path / "run/EuroEval/scala-en"
    readme = (there / "README.md").read_text()
    assert "- split: val\n    path:\n    - val.csv" in readme
    for name in ("matthews_correlation", "f1"):
        assert (tmp_path / f"run/{name}/{name}.py").exists()
    # asked again, after a run that was cut off
    directory.prepare(tmp_path / "run", {"scala-en": DATA / "scala-en"}, {}, "en", "17.0.0")


def test_the_splits_that_a_dataset_names_itself_stand(tmp_path: Path) -> None:
    source = tmp_path / "own"
    (source / "data").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (source / f"data/{split}-00000-of-00001.parquet").write_bytes(b"")
    directory.place_dataset(source, tmp_path / "a", "x")
    assert "- split: val\n" in (tmp_path / "a/README.md").read_text()
    card = "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files: []\n---\nhello"
    (source / "README.md").write_text(card)
    directory.place_dataset(source, tmp_path / "b", "x")
    assert (tmp_path / "b/README.md").read_text() == card
    assert directory.digest(source) == directory.digest(tmp_path / "a")


def test_data_without_a_split_to_evaluate_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/train.csv").write_text("text,label\n")
    with pytest.raises(InputError, match="neither a test nor a val split"):
        directory.place_dataset(tmp_path / "x", tmp_path / "y", "x")


# without a network

PROBE = """
import socket, sys, time
began = time.monotonic()
try:
    socket.create_connection(("1.1.1.1", 80))  # as EuroEval asks whether there is a network
    print("connected")
except OSError as error:
    print(type(error).__name__)
try:
    socket.create_connection(("huggingface.co", 443))
    print("connected")
except OSError as error:
    print(type(error).__name__)
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(("localhost", server.getsockname()[1])).close()
print("seconds", round(time.monotonic() - began))
"""


def probe(*before: str) -> list[str]:
    env = environment.clean_environment({"PYTHONPATH": str(environment.INSIDE)})
    command = [*before, sys.executable, "-c", PROBE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split("\n")[:3]


def test_only_this_machine_can_be_reached_from_a_run() -> None:
    assert probe() == ["ConnectionRefusedError", "gaierror", "seconds 0"]


# 1.1.1.1 as this machine sees it here: a server whose queue is full, so that the system drops what
# asks for a connection, as a firewall does
SWALLOWED = """
ip link set lo up && ip addr add 1.1.1.1/32 dev lo || exit 99
python3 - >/dev/null 2>&1 <<'END' &
import socket, time
server = socket.socket(); server.bind(("1.1.1.1", 80)); server.listen(0)
held = [socket.socket() for _ in range(4)]
for one in held:
    one.setblocking(False); one.connect_ex(("1.1.1.1", 80))
time.sleep(6)
END
sleep 0.5
exec "$@"
"""


def test_a_firewall_that_drops_packets_makes_nobody_wait() -> None:
    apart = ["unshare", "-n", "sh", "-c", SWALLOWED, "sh"]
    ask = "import socket; socket.create_connection(('1.1.1.1', 80))"
    try:
        bare = subprocess.run([*apart, "timeout", "2", "python3", "-c", ask], check=False,
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              stdout=subprocess.DEVNULL, text=True)  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if bare.returncode == 99 or "unshare" in bare.stderr:
        pytest.skip(f"no network namespace here: {bare.stderr.strip()}")
    assert bare.returncode == 124, "without the guard it hangs, or this test shows nothing"
    assert probe(*apart) == ["ConnectionRefusedError", "gaierror", "seconds 0"]


def test_a_run_is_given_no_token_and_no_path_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "OPENAI_API_KEY", "PYTHONDONTWRITEBYTECODE"):
        monkeypatch.setenv(name, "secret-of-ours")
    found = environment.clean_environment()
    assert "secret-of-ours" not in found.values()
    assert found["HF_HUB_OFFLINE"] == "1" and found["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"


# processes

LONG = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); print('up', flush=True); time.sleep(99)"  # noqa: E501


def group(pid: int) -> list[int]:
    """The processes that are left in a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_run_over_its_time_is_ended_with_all_it_started(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with process.running([sys.executable, "-c", LONG], tmp_path, log, os.environ) as started:
        while "up" not in log.read_text():
            time.sleep(0.05)
        assert len(group(started.pid)) == 2
        assert process.finish(started, 0.3, threading.Event()) == "ended after 0.3 s, the limit"
    assert group(started.pid) == []
    assert process.tail(log) == "up"


def test_a_run_does_not_outlive_a_kill_of_the_factory(tmp_path: Path) -> None:
    program = (
        "import os, sys, time, pathlib; from factory.evaluation.euroeval import process\n"
        f"where = pathlib.Path({str(tmp_path)!r})\n"
        f"with process.running([sys.executable, '-c', {LONG!r}], where, where / 'log', os.environ)"
        " as p:\n    print(p.pid, flush=True); time.sleep(99)\n"
    )
    ours = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert ours.stdout is not None
    pid = int(ours.stdout.readline())
    while len(group(pid)) < 2:
        time.sleep(0.05)
    ours.send_signal(signal.SIGKILL)
    ours.wait()
    end = time.monotonic() + 10
    while group(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert group(pid) == []


# the environment


def test_without_an_environment_the_error_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTORY_EUROEVAL", str(tmp_path / "none"))
    with pytest.raises(StageError) as caught:
        environment.python("openai")
    assert "factory doctor --install euroeval " in caught.value.fix
    checks = environment.check()
    assert [check.state for check in checks] == ["warning", "warning"]
    assert all("how.environment" in check.fix for check in checks)
    with pytest.raises(RecipeError, match="did you mean 'euroeval'"):
        environment.install("euroval", print)


def test_an_environment_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    listing = {"version": "18.3.0", "benchmarks": {}}
    (tmp_path / "benchmarks.json").write_text(json.dumps(listing))
    with pytest.raises(StageError, match=r"EuroEval 18\.3\.0, not 17\.0\.0"):
        environment.python("openai", tmp_path)
    listing["version"] = "17.0.0"
    (tmp_path / "benchmarks.json").write_text(json.dumps(listing))
    with pytest.raises(StageError, match="knows other benchmarks"):
        environment.python("openai", tmp_path)


def test_the_backend_vllm_needs_an_environment_with_vllm(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to("/usr/bin/env")  # says no to every question
    (tmp_path / "benchmarks.json").write_text(REGISTRY.read_text())
    assert environment.python("openai", tmp_path)
    with pytest.raises(StageError, match="has no vLLM"):
        environment.python("vllm", tmp_path)


def test_an_environment_of_ones_own_is_kept_and_half_of_one_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the image for ROCm has one, over the vLLM of its base: nothing marks it as installed."""
    made: list[Path] = []
    monkeypatch.setattr(environment, "_make", lambda *told: made.append(told[2]))
    binary = tmp_path / "own/bin/python"
    binary.parent.mkdir(parents=True)
    listing = tmp_path / "listing"
    listing.write_text(json.dumps(json.loads(REGISTRY.read_text())))
    binary.write_text(f"#!/bin/sh\ncat {listing}\n")
    binary.chmod(0o755)
    monkeypatch.setenv("FACTORY_EUROEVAL", str(tmp_path / "own"))
    assert environment.install("euroeval", print) == tmp_path / "own" and not made
    (tmp_path / "own/benchmarks.json").unlink()
    listing.write_text("ModuleNotFoundError")
    environment.install("euroeval", print)
    assert made == [tmp_path / "own"]


def test_an_environment_without_euroeval_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    with pytest.raises(StageError, match="No module named 'euroeval'"):
        environment.python("openai", tmp_path)


def test_the_place_of_the_environment_hangs_on_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FACTORY_EUROEVAL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    found = environment.default_place("openai")
    assert re.fullmatch(r"euroeval-[0-9a-f]{12}", found.name)
    assert environment.default_place("vllm").name.startswith("euroeval-vllm-")
    assert found.parent == Path("/somewhere/croco-factory")
    assert not found.is_relative_to(ROOT)


def test_without_a_python_of_3_12_the_error_names_ways_to_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(WorkError, match=r"needs Python 3\.12") as caught:
        environment._interpreter(["/bin/false"])
    assert "pyenv install 3.12" in caught.value.fix
