"""SVG as plain text: elements whose values are escaped, and scales. Pure.

Colours are classes, so that the page's theme gives them. What has to fit any width is placed in
percent; only curves, which SVG cannot place so, are stretched in a box of their own.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from factory.reports.cards.markdown import visible
from factory.reports.page.formatting import signed


def text_of(value: object) -> str:
    """Anything as text that a page may hold: what cannot be seen is written out, but for line
    ends."""
    lines = str(value).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(visible(line) for line in lines)


def element(name: str, *inside: Markup, **attributes: object) -> Markup:
    """`<name …>inside</name>`. Attributes that are None are left out; `class_` is `class`, and
    `_` inside a name is `-`. `inside` is markup already: `said` makes it from text."""
    shown = "".join(
        f' {_attribute(key)}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    body = "".join(inside)
    return Markup(f"<{name}{shown}>{body}</{name}>" if inside else f"<{name}{shown}/>")


def said(text: object) -> Markup:
    """Text as markup."""
    return Markup(escape(text_of(text)))


def tip(text: object) -> Markup:
    """What a pointer is told."""
    return element("title", said(text))


def _attribute(key: str) -> str:
    return {"view_box": "viewBox", "keep": "preserveAspectRatio"}.get(
        key, key.rstrip("_").replace("_", "-")
    )


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return text_of(value)


def width_of(text: str, size: float) -> float:
    """About how wide a text is in a sans serif of `size` px; wide letters count double."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return (0.54 * (len(text) - wide) + wide) * size


def cut(text: str, room: float, size: float) -> str:
    """As much of a text as fits, with an ellipsis where something is missing."""
    most = int(room / size * 4)  # no letter is that narrow
    whole = " ".join(text[: 2 * most].split())
    text = whole[:most]
    if len(text) == len(whole) and width_of(text, size) <= room:
        return text
    while text and width_of(text, size) + size > room:
        text = text[:-1]
    return text.rstrip() + "…"


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` over the width of a drawing."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where a value stands, in percent; values beyond the ends stand at the ends."""
        if self.high <= self.low:
            return 50.0
        return min(max(100 * (value - self.low) / (self.high - self.low), 0.0), 100.0)

    def x(self, value: float) -> str:
        """The same as an attribute."""
        return f"{self.at(value):.3f}".rstrip("0").rstrip(".") + "%"

    def ticks(self, most: int = 4, whole: bool = False) -> list[float]:
        """Round values inside it, at most so many; with `whole` no fractions."""
        reach = self.high - self.low
        if not reach > 0 or not math.isfinite(reach):
            return [self.low]
        rough = 10 ** math.floor(math.log10(reach / most))
        sizes = [rough * nice for nice in (1, 2, 2.5, 5, 10, 20)]
        if whole:
            sizes = [float(size) for size in sizes if size >= 1 and size == int(size)] or [1.0]
        step = next((size for size in sizes if reach / size <= most), sizes[-1])
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def over(values: list[float], margin: float = 0.04) -> Scale:
    """A scale that holds these values with some air at both ends."""
    low, high = min(values), max(values)
    air = (high - low) * margin or abs(high) * 0.1 or 1.0
    return Scale(low - air, high + air)


def tick_label(value: float, step: float) -> str:
    """A tick's value with just the digits that tell it from the next."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return signed(f"{value:.1e}")
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    if places < 4 and abs(step * 10**places - round(step * 10**places)) > 1e-6:
        places += 1  # 2.5
    shown = f"{value:,.{min(places, 5)}f}"
    return signed("0" if float(shown.replace(",", "")) == 0 else shown)


def picture(height: float, name: str, *inside: Markup, class_: str = "plot") -> Markup:
    """A drawing as wide as its place is, with a name for those who do not see it."""
    return element(
        "svg",
        *inside,
        class_=class_,
        width="100%",
        height=height,
        role="img",
        aria_label=name,
    )


def ticks(scale: Scale, values: Sequence[float], y: float, unit: str = "") -> Markup:
    """The numbers of a scale at some of its values, on a line of text at `y`."""
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) if values else 1.0
    shown = []
    for value in values:
        at = scale.at(value)
        anchor = "start" if at < 6 else "end" if at > 94 else "middle"
        label = tick_label(value, step) + unit
        shown.append(
            element("text", said(label), class_="tick", x=scale.x(value), y=y, text_anchor=anchor)
        )
    return Markup("").join(shown)
