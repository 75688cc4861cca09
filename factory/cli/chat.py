"""factory chat: chat with a released model, beside its base."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.artifacts.resources import home_path
from factory.cli.app import app
from factory.cli.run import HubUrl
from factory.cli.serve import Base, Model

if TYPE_CHECKING:
    from factory.release.chat import Conversation


_HELP = """/new    start a new conversation
/help   show this
Ctrl-C  stop the answer
An empty line or Ctrl-D ends the chat. Arrow keys edit a line and recall earlier ones."""
_HISTORY = 1000  # lines
# What would move a terminal's cursor or change its title: a model may say anything.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b]")


@app.command()
def chat(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Ask this, print the answer and exit.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the answer of the base model beside it.")
    ] = False,
    base: Base = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy decoding.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens in an answer.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    hub: HubUrl = None,
    json_: Annotated[bool, typer.Option("--json", help="With --prompt: print JSON.")] = False,
) -> None:
    """Chat with a model, or an adapter on its base.

    The detected language follows each answer. /help lists what can be typed beside questions, and
    Ctrl-C stops an answer.
    """
    from factory.errors import InputError
    from factory.hub.session import session

    if json_ and prompt is None:
        raise InputError("--json is for one answer", "give --prompt TEXT too")
    with session(hub) as (_, the_hub):
        from factory.engines import Sampling
        from factory.release import adapter
        from factory.release import chat as conversation

        released = adapter.find(model, the_hub, base)
        if compare and released.adapter is None:
            raise InputError(
                f"{model} is a whole model, so there is no base to compare", "leave out --compare"
            )
        on = f" on {released.base_name}" if released.adapter else ""
        typer.echo(f"{model}{on}, {released.dtype}", err=True)
        sampling = Sampling(temperature, 1.0, max_tokens)
        talk = conversation.open_with(released, sampling, seed, compare)
        if prompt is None:
            _interactive(talk)
        elif json_:
            done = [piece for _, piece in talk.say(prompt) if not isinstance(piece, str)]
            answers = [asdict(piece) for piece in done]
            head = {"model": model, "base": released.base_name if released.adapter else None}
            typer.echo(json.dumps({**head, "prompt": prompt, "answers": answers}, indent=1,
                                  ensure_ascii=False))  # fmt: skip
        else:
            _show(talk, prompt)


def _interactive(talk: Conversation) -> None:
    """Read and answer until an empty line or the end of the input."""
    with _line_editing():
        while (text := _question()) is not None:
            match text:
                case "/new":
                    talk.forget()
                case "/help":
                    typer.echo(_HELP)
                case _ if re.fullmatch(r"/[a-z]+", text):
                    typer.echo(f"{text} is no command; /help lists them")
                case _:
                    _answer(talk, text)


def _question() -> str | None:
    """Read a question; None at an empty line or the end of the input. Ctrl-C drops the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip() or None
        except EOFError:
            return None
        except KeyboardInterrupt:
            typer.echo("\nan empty line or Ctrl-D ends the chat")


@contextmanager
def _line_editing() -> Iterator[None]:
    """Let lines be edited on a terminal, and those of earlier chats be recalled."""
    try:
        import readline
    except ImportError:  # some builds of Python have none
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    history = home_path() / "chat_history"
    with suppress(OSError):
        readline.read_history_file(history)
    try:
        yield
    finally:
        readline.set_history_length(_HISTORY)
        with suppress(OSError):
            history.touch(mode=0o600)
            readline.write_history_file(history)


def _answer(talk: Conversation, text: str) -> None:
    from factory.errors import InputError

    try:
        _show(talk, text)
    except KeyboardInterrupt:
        typer.echo("\nstopped; this question is left out of the conversation", err=True)
    except InputError as error:  # too long by now: what was said before can be forgotten
        typer.echo(f"error: {error.what}\n  fix: /new starts a new conversation", err=True)


def _show(talk: Conversation, text: str) -> None:
    """Show one turn: side by side on a terminal, one after another elsewhere."""
    if len(talk.speakers) > 1 and sys.stdout.isatty():
        _side_by_side(talk, text)
        return
    begun = None
    for who, piece in talk.say(text):
        if len(talk.speakers) > 1 and who != begun:
            typer.echo(f"{who}:")
            begun = who
        if isinstance(piece, str):
            typer.echo(_CONTROL.sub("", piece), nl=False)
            sys.stdout.flush()
        else:
            typer.echo()
            typer.echo(f"  {piece.about()}", err=True)


def _side_by_side(talk: Conversation, text: str) -> None:
    from rich.live import Live

    from factory.cli.console import console

    texts = dict.fromkeys(talk.speakers, "")
    notes: dict[str, str] = {}
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for who, piece in talk.say(text):
            if isinstance(piece, str):
                texts[who] += _CONTROL.sub("", piece)
            else:
                notes[who] = piece.about()
            live.update(_columns(texts, notes), refresh=True)


def _columns(texts: dict[str, str], notes: dict[str, str]) -> Any:
    """Return a table with a column for each model, details of its answer below."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True, expand=True)
    for who in texts:
        table.add_column(who, ratio=1, footer=notes.get(who, ""))
    table.show_footer = True
    table.add_row(*map(Text, texts.values()))
    return table
