"""Figures as people say them: counts, shares, spans of time. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from factory.language.languages import LANGUAGES

MISSING = "–"


def real(value: Any) -> float | None:
    """`value` if it is a finite number; a manifest may hold anything under `stats`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def whole(value: Any) -> int:
    """A count; 0 for what is none."""
    number = real(value)
    return 0 if number is None else int(number)


def table(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def tables(value: Any) -> Sequence[Mapping[str, Any]]:
    """The mappings in a list; none of what is no list."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def texts(value: Any) -> tuple[str, ...]:
    """What is in a list, as text; nothing of what is no list."""
    return tuple(str(one) for one in value) if isinstance(value, list | tuple) else ()


def count(value: float) -> str:
    """12,345."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """12.3 k, 4.56 M: three digits."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return count(value)


def figure(value: Any, digits: int = 3) -> str:
    """A measured number to so many digits, without an exponent where it can be done."""
    number = real(value)
    if number is None:
        return MISSING
    if number == 0:
        return "0"
    if 1e-3 <= abs(number) < 1e6:
        places = max(digits - 1 - math.floor(math.log10(abs(number))), 0)
        return signed(f"{number:,.{min(places, 6)}f}")
    return signed(f"{number:.{digits - 1}e}")


def signed(text: str) -> str:
    """A number's text with a true minus sign."""
    return text.replace("-", "−")


def gain(value: float, digits: int = 1) -> str:
    """A difference, with its sign."""
    return signed(f"{value:+.{digits}f}")


def change(value: Any) -> str:
    """A measured difference, with its sign."""
    shown = figure(value)
    return f"+{shown}" if (real(value) or 0.0) > 0 else shown


def share(part: float, whole_: float) -> str:
    """A share in percent."""
    if not whole_:
        return MISSING
    return "<1 %" if 0 < part / whole_ < 0.005 else f"{100 * part / whole_:.0f} %"


def points(value: float | None) -> str:
    """A number in percent, to a tenth, without the sign for it."""
    return MISSING if value is None else f"{value:.1f}"


def percent(value: float | None) -> str:
    """A number that is a percentage already."""
    return MISSING if value is None else f"{value:.0f} %"


def span(seconds: float) -> str:
    """40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 0.5 or not seconds else "under 1 s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def listed(words: list[str]) -> str:
    """a, b and c."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def plural(number: int, word: str) -> str:
    """1 pair, 2 pairs."""
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def language(code: str) -> str:
    """A language's English name; a slice that is none keeps its own word."""
    if code in ("all", "all_lang"):
        return "All languages"
    return LANGUAGES[code].name if code in LANGUAGES else code
