"""chat: talk to a released model, and see what its base would have said."""

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
        str | None, typer.Option("--prompt", help="Ask this once, print the answer, and end.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show what the base model says beside it.")
    ] = False,
    base: Base = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; nothing is drawn.")
    ] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    hub: HubUrl = None,
    json_: Annotated[bool, typer.Option("--json", help="With --prompt: print JSON.")] = False,
) -> None:
    """Talk to a model or an adapter, which is put on the base that it was made on.

    Each answer is followed by the language that it is in. /new forgets what was said, an empty
    line ends it.
    """
    from factory.errors import InputError
    from factory.hub.session import session

    if json_ and prompt is None:
        raise InputError("--json is for one answer", "give --prompt TEXT too")
    with session(hub) as (_, the_hub):
        from factory.engines import Sampling
        from factory.release import adapter
        from factory.release import chat as conversation

        found = adapter.find(model, the_hub, base)
        if compare and found.adapter is None:
            raise InputError(
                f"{model} is a whole model, so there is no base to compare", "leave out --compare"
            )
        on = f" on {found.base_name}" if found.adapter else ""
        typer.echo(f"{model}{on}, {found.dtype}", err=True)
        sampling = Sampling(temperature, 1.0, max_tokens)
        talk = conversation.open_with(found, sampling, seed, compare)
        if prompt is None:
            _interactive(talk)
        elif json_:
            said = [one for _, one in talk.say(prompt) if not isinstance(one, str)]
            answers = [asdict(one) for one in said]
            head = {"model": model, "base": found.base_name if found.adapter else None}
            typer.echo(json.dumps({**head, "prompt": prompt, "answers": answers}, indent=1,
                                  ensure_ascii=False))  # fmt: skip
        else:
            _show(talk, prompt)


def _interactive(talk: Conversation) -> None:
    """Read, answer, until an empty line or the end of the input."""
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
            typer.echo(f"error: {error.what}\n  fix: /new begins anew", err=True)


def _show(talk: Conversation, text: str) -> None:
    """One turn: side by side on a terminal, one after another elsewhere."""
    if len(talk.speakers) > 1 and sys.stdout.isatty():
        _side_by_side(talk, text)
        return
    begun = None
    for who, one in talk.say(text):
        if len(talk.speakers) > 1 and who != begun:
            typer.echo(f"{who}:")
            begun = who
        if isinstance(one, str):
            typer.echo(_CONTROL.sub("", one), nl=False)
            sys.stdout.flush()
        else:
            typer.echo()
            typer.echo(f"  {one.about()}", err=True)


def _side_by_side(talk: Conversation, text: str) -> None:
    from rich.live import Live

    from factory.cli.console import console

    texts = dict.fromkeys(talk.speakers, "")
    notes: dict[str, str] = {}
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for who, one in talk.say(text):
            if isinstance(one, str):
                texts[who] += _CONTROL.sub("", one)
            else:
                notes[who] = one.about()
            live.update(_columns(texts, notes), refresh=True)


def _columns(texts: dict[str, str], notes: dict[str, str]) -> Any:
    """A column for each that speaks, with what is known of its answer below."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True, expand=True)
    for who in texts:
        table.add_column(who, ratio=1, footer=notes.get(who, ""))
    table.show_footer = True
    table.add_row(*map(Text, texts.values()))
    return table
