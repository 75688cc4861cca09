"""Format figures for people: counts, shares, spans of time. Pure."""

from __future__ import annotations

import math
from typing import Any

from factory.language.languages import find, name_of
from factory.reports.values import number

MISSING = "–"


def count(value: float) -> str:
    """Format a count: 12,345."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """Format to three digits: 12.3 k, 4.56 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return count(value)


def figure(value: Any, digits: int = 3) -> str:
    """Format a measured number to so many digits, without an exponent where possible."""
    finite = number(value)
    if finite is None:
        return MISSING
    if finite == 0:
        return "0"
    if 1e-3 <= abs(finite) < 1e6:
        places = max(digits - 1 - math.floor(math.log10(abs(finite))), 0)
        return signed(f"{finite:,.{min(places, 6)}f}")
    return signed(f"{finite:.{digits - 1}e}")


def signed(text: str) -> str:
    """Return a number's text with a true minus sign."""
    return text.replace("-", "−")


def gain(value: float, digits: int = 1) -> str:
    """Format a difference with its sign."""
    return signed(f"{value:+.{digits}f}")


def change(value: Any) -> str:
    """Format a measured difference with its sign."""
    text = figure(value)
    return f"+{text}" if (number(value) or 0.0) > 0 else text


def share(part: float, total: float) -> str:
    """Format a share in percent."""
    if not total:
        return MISSING
    return "<1 %" if 0 < part / total < 0.005 else f"{100 * part / total:.0f} %"


def points(value: float | None) -> str:
    """Format a percentage to a tenth, without the percent sign."""
    return MISSING if value is None else f"{value:.1f}"


def percent(value: float | None) -> str:
    """Format a number that is a percentage already."""
    return MISSING if value is None else f"{value:.0f} %"


def span(seconds: float) -> str:
    """Format seconds: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 0.5 or not seconds else "under 1 s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def listed(words: list[str]) -> str:
    """Join words: a, b and c."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def plural(n: int, word: str) -> str:
    """Format a count with its noun: 1 pair, 2 pairs."""
    return f"{count(n)} {word}{'' if n == 1 else 's'}"


def language(code: str) -> str:
    """Return a language's English name; other slices keep their own name."""
    if code in ("all", "all_lang"):
        return "All languages"
    return name_of(code)


def is_rtl(code: str) -> bool:
    """Return whether a language is written from right to left."""
    return (row := find(code)) is not None and row.direction == "rtl"


def model_name(label: str) -> str:
    """Return what a model is called for readers: recipes call the base model `policy`."""
    return "base model" if label == "policy" else label
