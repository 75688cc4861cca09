"""Render a page: escaped, without scripts, under a policy that forbids all but its own style."""

from __future__ import annotations

import time
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup
from starlette.responses import HTMLResponse

from factory.artifacts.resources import shipped
from factory.pages.rows import as_text
from factory.pages.visit import Visit
from factory.reports import formatting
from factory.reports.learning import Curve
from factory.reports.page import charts, panels
from factory.reports.page import page as results
from factory.reports.page.svg import text_of

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
}


def page(name: str, visit: Visit | None, /, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page from its template."""
    text = _environment().get_template(f"{name}.html.j2").render(visit=visit, **values)
    return HTMLResponse(text, status, HEADERS)


@cache
def style() -> str:
    """Return the style: that of the results page, and what the pages add to it."""
    return "\n".join(
        (shipped("cards") / name).read_text(encoding="utf-8")
        for name in ("report/style.css", "pages/style.css")
    )


@cache
def _environment() -> jinja2.Environment:
    environment = results.html_environment("pages", _shown)
    environment.globals.update(
        words=formatting,
        draw=charts,
        lang=results.lang,
        curve=_curve,
        query=_query,
        part=_part,
        cell=as_text,
    )
    environment.filters.update(day=_day, size=_size, sentence=_sentence)
    return environment


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, Markup | int) else text_of(value).replace("\\u0009", "\t")


def _curve(points: tuple[tuple[float, float], ...], title: str) -> Markup:
    return panels.curve(Curve("loss", points, ()), title)


def _query(**values: Any) -> str:
    """Return a query of an address, without what is empty; lists repeat their key."""
    return "?" + urlencode({k: v for k, v in values.items() if v not in (None, "", [])}, doseq=True)


def _part(text: str) -> str:
    """Return a text as a part of a path."""
    return quote(text, safe="/")


def _sentence(message: str) -> str:
    """Return a message with a capital letter, unless it begins with a name."""
    first, *_ = message.split() or [""]
    return message[:1].upper() + message[1:] if first.isalpha() else message


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""
