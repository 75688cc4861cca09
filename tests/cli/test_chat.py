"""`factory chat` on a terminal: commands, Ctrl-C, line editing and history. The model is a stand-in
that repeats what it was asked."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.terminal import clean_environment, on_terminal, plain

CHAT = """
import time
from factory.cli.chat import _interactive
from factory.release.chat import ChatAnswer

class Echo:
    speakers = ("model",)
    def say(self, text):
        for word in [*text.split(), "END"]:
            time.sleep(20 if word == "slowly" else 0)
            yield "model", word.upper() + " "
        yield "model", ChatAnswer("model", text, "en", 3, "stop", 0.1)
    def forget(self):
        print("FORGOTTEN")

_interactive(Echo())
"""
UP = "\x1b[A"


def chat(home: Path, *keys: str, interrupt: str | None = None) -> str:
    environment = clean_environment(FACTORY_HOME=str(home))
    shown, code = on_terminal(
        [sys.executable, "-c", CHAT], home, environment,
        keys=[("> ", key) for key in keys], interrupt=interrupt, timeout=15,
    )  # fmt: skip
    assert code == 0, shown
    return plain(shown)


def test_commands_are_listed_and_an_unknown_one_is_not_asked_of_the_model(home: Path) -> None:
    home.mkdir()
    shown = chat(home, "/help\r", "/nwe\r", "/new\r", "\r")
    assert "/new    start a new conversation" in shown and "Ctrl-C  stop the answer" in shown
    assert "/nwe is no command; /help lists them" in shown
    assert "FORGOTTEN" in shown and "END" not in shown


def test_ctrl_c_stops_the_answer_and_not_the_chat(home: Path) -> None:
    home.mkdir()
    shown = chat(home, "first slowly\r", "again\r", "\x04", interrupt="FIRST")
    assert "stopped; this question is left out of the conversation" in shown
    assert "AGAIN END" in shown and "Traceback" not in shown


def test_lines_are_edited_and_recalled_in_the_next_chat(home: Path) -> None:
    home.mkdir()
    assert "ABC END" in chat(home, "acc\x1b[D\x7fb\r", "\x04")
    assert "ABC D END" in chat(home, f"{UP} d\r", "\x04")
    assert (home / "chat_history").stat().st_mode & 0o777 == 0o600


def test_a_stopped_answer_is_left_out_of_the_conversation() -> None:
    from types import SimpleNamespace

    from factory.engines import Sampling
    from factory.release import chat as module

    prompts: list[list[dict[str, str]]] = []

    def answer(*_: object, **__: object) -> object:
        yield "yes"
        return SimpleNamespace(token_ids=[1], finish_reason="stop")

    talk = module.Conversation(
        SimpleNamespace(tokenizer=None, say=answer), Sampling(0.0, 1.0, 8), 0, ("base", "tuned")
    )  # type: ignore[arg-type]
    module.chat_template, real = (
        SimpleNamespace(prompt_ids=lambda _, turns: prompts.append(turns)), module.chat_template
    )  # fmt: skip
    try:
        stopped = talk.say("one")
        next(stopped)
        stopped.close()
        list(talk.say("two"))
        list(talk.say("three"))
    finally:
        module.chat_template = real
    assert [len(turns) for turns in prompts] == [1, 1, 1, 3, 3]
    assert [turns[0]["content"] for turns in prompts[1:]] == ["two"] * 4
