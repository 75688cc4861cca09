"""The checks for a first quarter of an hour on a GPU, dry, with tiny shapes."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from factory.engines.guard import descendants

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_checks.py"


def checked(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the lines that the checks print."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_part_that_takes_too_long_is_ended_and_counts_as_failed() -> None:
    code, [figures] = checked("--parts", "b", "--alarm", "1")
    assert code == 1 and "ok" not in figures
    assert (figures["part"], figures["ended"]) == ("b", "after 1 s")


def test_a_part_ends_with_whoever_started_it() -> None:
    process = subprocess.Popen([sys.executable, SCRIPT, "--tiny", "--parts", "b"])
    while not (part := descendants(process.pid)):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not [pid for pid in part if (Path("/proc") / str(pid)).exists()]


@pytest.mark.slow  # a process for each part, with torch and TRL
def test_training_and_the_transformers_engine_are_checked() -> None:
    code, lines = checked("--parts", "a", "b", "c", "--alarm", "300")
    assert code == 0, lines
    a, b, c = lines
    assert a["steps"] == 2 and a["tokens_a_second"] > 0
    assert b["stopped_after"] == 3 and b["largest_difference"] < 1e-4
    assert c["answers_without_memory"] == 4 and c["different_scores"] == 4


@pytest.mark.slow  # starts vLLM three times: once for the sampler, twice for the scorer
@pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="make install-vllm")
def test_vllms_answers_and_scores_are_timed() -> None:
    code, [d, e] = checked("--parts", "d", "e", "--alarm", "500")
    assert code == 0, (d, e)
    assert d["engine"].startswith("vllm ") and d["tokens_a_second_at_2"] > 0
    assert d["tokens_a_second_at_4"] > 0
    assert e["tokens_a_second_16384"] > 0 and e["tokens_a_second_2048"] > 0


@pytest.mark.slow  # starts vLLM twice
@pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="make install-vllm")
def test_vllm_is_checked_against_transformers_and_a_kill() -> None:
    code, [f] = checked("--parts", "f", "--alarm", "500")
    assert code == 0, f
    assert f["same_greedy_answers_base"] == f["same_greedy_answers_lora"] == "8 of 8"
    assert f["killed_while_up"]
