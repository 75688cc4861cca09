"""Render the page: a collection's data to self-contained HTML.

All values are escaped, and the page's policy forbids all other scripts and styles: a hostile
prompt cannot run.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Callable
from functools import cache
from typing import Any
from unicodedata import bidirectional
from urllib.parse import urlsplit

import jinja2
from markupsafe import Markup

from factory.artifacts import citations
from factory.artifacts.resources import shipped
from factory.reports import formatting
from factory.reports.cards import card, markdown
from factory.reports.page import charts, lineage, lineage_graph, panels
from factory.reports.page.gather import Report
from factory.reports.page.svg import element, text_node, text_of

_LANG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*", re.ASCII)
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[\w./-]*)?", re.ASCII)
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"[\w.-]+", re.ASCII)
_LOCAL = ("127.0.0.1", "localhost", "::1")


def render(report: Report) -> str:
    """Return the page as text; the same report gives the same bytes."""
    style, script = _asset("style.css"), _asset("script.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    text = _environment().get_template("page.html.j2").render(
        r=report,
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        picture=lineage_graph.draw(report.steps) if report.steps else None,
        bibliography="\n\n".join(_cited(report)),
        again=_again(report),
        linked=lambda name, kind, revision=None: _linked(report, name, kind, revision),
        quoted=lambda value: str(markdown.quoted(value)),
    )  # fmt: skip
    return text.strip() + "\n"


def _asset(name: str) -> str:
    return (shipped("cards/report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def html_environment(folder: str, finalize: Callable[[Any], Any]) -> jinja2.Environment:
    """Return an environment for the HTML templates of a folder of `cards`, which escapes all that
    `finalize` does not return as markup."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped("cards") / folder),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _environment() -> jinja2.Environment:
    environment = html_environment("report", _shown)
    environment.globals.update(words=formatting, draw=charts, panels=panels, lang=lang)
    environment.filters.update(
        words_language=formatting.language,
        rows_out=lambda manifest: manifest.rows().out,
        reads_of=lineage.read_by,
        base_of=card.base,
    )
    return environment


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, Markup | int) else text_of(value)


def lang(code: str, text: str) -> Markup:
    """Return the attributes of a text in a language: its code, and its direction. An Arabic text
    that begins with a Latin word is still set from the right; elsewhere its letters say."""
    shown = f' lang="{code}"' if _LANG.fullmatch(code) else ""
    letters = [bidirectional(letter) for letter in text]
    from_right = letters.count("R") + letters.count("AL") > letters.count("L") / 4
    direction = "rtl" if from_right and formatting.is_rtl(code) else "auto"
    return Markup(f' dir="{direction}"{shown}')


def _linked(report: Report, name: str, kind: str, revision: str | None) -> Markup:
    """Return a repo's name, as a link to its hub where others can reach that."""
    hub = report.hub or markdown.HUB
    reached = _ADDRESS.fullmatch(hub) and urlsplit(hub).hostname not in _LOCAL
    if not reached or not _REPO.fullmatch(name) or name.startswith("local/"):
        return text_node(name)
    prefix = "datasets/" if kind == "dataset" else ""
    end = f"/tree/{revision}" if revision and _REVISION.fullmatch(revision) else ""
    return element("a", text_node(name), href=f"{hub}/{prefix}{name}{end}", rel="noopener")


def _cited(report: Report) -> list[str]:
    text = (shipped("cards/report").parent / "references.bib").read_text(encoding="utf-8")
    return [entry for key, entry in citations.entries(text).items() if key in report.references]


def _again(report: Report) -> str | None:
    if report.slug is None:
        return None
    at = ["--at", report.hub] if report.hub else []
    return shlex.join(["factory", "reproduce", report.slug, *at])
