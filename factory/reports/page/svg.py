"""SVG as text: elements with escaped values, and scales. Pure.

Colours are CSS classes, so that the page's theme sets them. Positions that fit any width are in
percent; curves, which SVG cannot place so, are stretched in a box of their own.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from factory.errors import visible
from factory.reports.formatting import signed


def text_of(value: object) -> str:
    """Return any value as text for the page: invisible characters are written out, line ends
    stay."""
    lines = str(value).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(visible(line) for line in lines)


def element(name: str, *inside: Markup, **attributes: object) -> Markup:
    """Return `<name …>inside</name>`. Attributes that are None are left out; `class_` is
    `class`, and `_` inside a name is `-`. `inside` is markup: `text_node` makes it from text."""
    markup = "".join(
        f' {_attribute(key)}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    body = "".join(inside)
    return Markup(f"<{name}{markup}>{body}</{name}>" if inside else f"<{name}{markup}/>")


def text_node(text: object) -> Markup:
    """Return text as markup."""
    return Markup(escape(text_of(text)))


def line(class_: str, x1: str, y1: float, x2: str, y2: float, *inside: Markup) -> Markup:
    """Return a line from (x1, y1) to (x2, y2)."""
    return element("line", *inside, class_=class_, x1=x1, x2=x2, y1=y1, y2=y2)


def tip(text: object) -> Markup:
    """Return a tooltip."""
    return element("title", text_node(text))


def _attribute(key: str) -> str:
    return {"view_box": "viewBox", "keep": "preserveAspectRatio"}.get(
        key, key.rstrip("_").replace("_", "-")
    )


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return text_of(value)


def width_of(text: str, size: float) -> float:
    """Estimate the width in px of a text in a sans serif of `size` px; wide letters count
    double."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return (0.54 * (len(text) - wide) + wide) * size


def cut(text: str, room: float, size: float) -> str:
    """Return as much of a text as fits, with an ellipsis where something is missing."""
    most = int(room / size * 4)  # no letter is that narrow
    joined = " ".join(text[: 2 * most].split())
    text = joined[:most]
    if len(text) == len(joined) and width_of(text, size) <= room:
        return text
    while text and width_of(text, size) + size > room:
        text = text[:-1]
    return text.rstrip() + "…"


@dataclass(frozen=True)
class Scale:
    """Scale of values from `low` to `high` over the width of a chart."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the position of a value in percent; values beyond the ends are at the ends."""
        if self.high <= self.low:
            return 50.0
        return min(max(100 * (value - self.low) / (self.high - self.low), 0.0), 100.0)

    def x(self, value: float) -> str:
        """Return the position as an attribute."""
        return f"{self.at(value):.3f}".rstrip("0").rstrip(".") + "%"

    def ticks(self, most: int = 4, integers: bool = False) -> list[float]:
        """Return at most `most` round values inside the scale; integers only with `integers`."""
        reach = self.high - self.low
        if not reach > 0 or not math.isfinite(reach):
            return [self.low]
        rough = 10 ** math.floor(math.log10(reach / most))
        sizes = [rough * nice for nice in (1, 2, 2.5, 5, 10, 20)]
        if integers:
            sizes = [float(size) for size in sizes if size >= 1 and size == int(size)] or [1.0]
        step = next((size for size in sizes if reach / size <= most), sizes[-1])
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def over(values: list[float], margin: float = 0.04) -> Scale:
    """Return a scale that holds these values with a margin at both ends."""
    low, high = min(values), max(values)
    air = (high - low) * margin or abs(high) * 0.1 or 1.0
    return Scale(low - air, high + air)


def spacing(values: Sequence[float]) -> float:
    """Return the distance between ticks; of a single tick its size."""
    return values[1] - values[0] if len(values) > 1 else abs(values[0]) if values else 1.0


def tick_label(value: float, step: float) -> str:
    """Format a tick's value with just the digits that distinguish it from the next."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return signed(f"{value:.1e}")
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    if places < 4 and abs(step * 10**places - round(step * 10**places)) > 1e-6:
        places += 1  # 2.5
    label = f"{value:,.{min(places, 5)}f}"
    return signed("0" if float(label.replace(",", "")) == 0 else label)


def picture(height: float, name: str, *inside: Markup, class_: str = "plot") -> Markup:
    """Return a chart as wide as its container, with an accessible name."""
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
    """Draw the numbers of a scale at some of its values, as text at height `y`."""
    step = spacing(values)
    labels = []
    for value in values:
        at = scale.at(value)
        anchor = "start" if at < 6 else "end" if at > 94 else "middle"
        label = tick_label(value, step) + unit
        labels.append(
            element(
                "text", text_node(label), class_="tick", x=scale.x(value), y=y, text_anchor=anchor
            )
        )
    return Markup("").join(labels)
