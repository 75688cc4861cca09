"""Runs: one plan for each, and signals in the main thread and in any other."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest

from factory.artifacts.workdir import Home
from factory.errors import Interrupted
from factory.execution import run
from factory.execution.log import LogReporter
from factory.execution.run import _stoppable
from factory.planning.plan import Plan, State
from factory.planning.recipe import load

RECIPE = """
name: planned-once
org: local
languages: [en]
license: apache-2.0
models: {}
stages:
  prompts: {from: scored.jsonl, repeats: drop}
  generate: {from: scored.jsonl}
  score: {from: scored.jsonl}
  pair: {keep: {chosen: {finished: false, language: any}}}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_run_and_the_handler_before_it_is_back_afterwards(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="interrupted by"), _stoppable():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_run_in_another_thread_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with _stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.fixture
def recipe(tmp_path):
    """A recipe that pairs scored answers of a file."""
    answers = [f"Answer {k}" + " again" * k for k in range(6)]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {q}?"},
                {"role": "assistant", "content": answer},
            ],
            "reward_score": float(k - q % 3),
        }
        for q in range(12)
        for k, answer in enumerate(answers)
    ]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return load(str(tmp_path / "recipe.yaml"))


def test_a_run_of_two_steps_makes_one_plan(recipe, tmp_path, hub, monkeypatch):
    home, reporter = Home(tmp_path / "home"), LogReporter(quiet=True)
    run.run(recipe, hub, home, reporter, until="generate")
    made = []
    original = Plan.__init__

    def counted(self, *arguments):
        made.append(self)
        original(self, *arguments)

    monkeypatch.setattr(Plan, "__init__", counted)
    steps = run.run(recipe, hub, home, reporter, until="pair")
    assert len(made) == 1
    assert [step.state for step in steps] == [State.REUSE] * 4
    assert steps == Plan(recipe.recipe, made[0]._lock, made[0].inventory).steps
