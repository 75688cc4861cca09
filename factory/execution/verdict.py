"""Verdict of a reproduction on the original's numbers: which fall within the intervals measured
again, which do not, and which were not tested. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from factory.artifacts.manifest import Manifest
from factory.reports.results import Result, tidy

Finding = Literal["within", "outside", "not tested"]


@dataclass(frozen=True)
class Claim:
    """A number of the original that compares: of `model` in `language` (`all`: over all), with its
    95 % interval, and the same number as it was measured `again`. `within`: the original's number
    lies in the interval of the new one, or, where that has none, the new one in the original's.
    `why` it was not tested."""

    step: str
    model: str
    language: str
    evaluation: str
    metric: str
    against: str
    value: float
    low: float | None
    high: float | None
    again: float | None
    again_low: float | None
    again_high: float | None
    finding: Finding
    why: str = ""

    @property
    def reversed(self) -> bool:
        """Whether both intervals exclude no difference, on opposite sides."""
        even = 0.0 if self.metric.endswith("delta") else 50.0
        sides = [
            None if low is None or high is None else 1 if low > even else -1 if high < even else 0
            for low, high in ((self.low, self.high), (self.again_low, self.again_high))
        ]
        return sides in ([1, -1], [-1, 1])


def claims(pairs: Iterable[tuple[Manifest, Manifest | None]]) -> list[Claim]:
    """Return every claim of these artifacts, in order. pairs: an artifact as published, and as it
    was made again, or None where its step did not run."""
    return [claim for first, second in pairs for claim in _of_artifact(first, second)]


def _of_artifact(first: Manifest, second: Manifest | None) -> Iterator[Claim]:
    again = {_key(row): row for row in tidy([second] if second else [])}
    for row in tidy([first]):
        if row.value is None or not (row.against or first.kind == "rankings"):
            continue  # a score alone claims nothing
        here = again.get(_key(row))
        finding, why = _finding(row, row.value, here, second is not None)
        yield Claim(
            first.step, row.model, row.language, _key(row)[2], row.metric, row.against,
            row.value, row.ci_low, row.ci_high,
            here.value if here else None, here.ci_low if here else None,
            here.ci_high if here else None, finding, why,
        )  # fmt: skip


def _key(row: Result) -> tuple[str, str, str, str, str]:
    """Return what a number is of, whichever org it lies in."""
    return row.model, row.language, _bare(row.evaluation), row.metric, row.against


def _bare(name: str) -> str:
    return name.rpartition("/")[2]


def _finding(row: Result, value: float, here: Result | None, ran: bool) -> tuple[Finding, str]:
    if not ran:
        return "not tested", "its step stayed as published"
    if here is None:
        return "not tested", "it was not measured again"
    if here.value is None:
        return "not tested", here.note or "there is no value"
    if _bare(here.by) != _bare(row.by):  # a judge that was trained again lies in another org
        return "not tested", f"by {row.by} there, by {here.by} here"
    for number, low, high in (
        (value, here.ci_low, here.ci_high),
        (here.value, row.ci_low, row.ci_high),
    ):
        if low is not None and high is not None:
            return ("within" if low <= number <= high else "outside"), ""
    return "not tested", "neither has an interval"


def counted(judged: Iterable[Claim]) -> Mapping[str, Mapping[Finding, int]]:
    """Return the number of claims of each finding by language, over all languages (`all`) first."""
    counts: dict[str, dict[Finding, int]] = {"all": {}}
    for claim in judged:
        of = counts.setdefault(claim.language, {})
        of[claim.finding] = of.get(claim.finding, 0) + 1
    return {language: of for language, of in counts.items() if of}


def sentence(found: Iterable[Claim]) -> str:
    """Return the verdict in a sentence or two."""
    every = list(found)
    n = {
        finding: sum(c.finding == finding for c in every)
        for finding in ("within", "outside", "not tested")
    }
    tested = n["within"] + n["outside"]
    if not every:
        return "The original compares no models, so there is nothing to confirm."
    if not tested:
        return f"None of the {len(every)} claims of the original was tested."
    turned = sum(claim.reversed for claim in every)
    more = f", {turned} of them reversed" if turned else ""
    text = (
        f"Of {len(every)} claims of the original {tested} were tested: {n['within']} within the "
        f"intervals measured here, {n['outside']} not{more}."
    )
    if not n["outside"]:
        return text
    # of 95 % intervals one in twenty misses by chance, and more, since the original varies too
    expected = tested / 20
    if n["outside"] > 2 * max(expected, 0.5):
        return f"{text} Chance alone would leave out some {max(expected, 1):.0f}."
    return f"{text} Chance alone may leave out that many."
