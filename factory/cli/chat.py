"""factory chat: chat with a released model, beside its base."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl
from factory.cli.serve import Base, Model

if TYPE_CHECKING:
    from factory.release.chat import Conversation


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

    The detected language follows each answer. /new starts a new conversation, an empty line ends
    it.
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
    from factory.errors import InputError

    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not text:
            return
        if text == "/new":
            talk.forget()
            continue
        try:
            _show(talk, text)
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
