"""Results of a step beside its files: counts by slice, statistics, where the time went."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from factory.artifacts.manifest import Rows
from factory.artifacts.shards import ShardTotals

AS_BEFORE = "as_before"  # dropped when the slice was first made, which no longer says why


def gpus() -> int:
    """How many GPUs this process has a hold of: none before torch is there to ask."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.device_count()) if torch else 0


@dataclass
class Outcome:
    """What a stage reports beside its files: counts by slice, figures for the card, and what a
    second run would give: equal bytes (`exact`), equal but for the last digits and the tokens that
    hang on them (`rounding`), or another draw (`distribution`)."""

    rows: dict[str, Rows]
    determinism: Literal["exact", "rounding", "distribution"]
    stats: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] | None = None
    tokens: int = 0
    spent: ResourceUse | None = (
        None  # None where this process alone did all, and nobody looked closer
    )


@dataclass(frozen=True)
class ResourceUse:
    """Where the time of a step went, for those who want to know what a larger one would take:
    seconds that `engines` processes beside one another were at work, and that loading what they
    work with took, all of them together; and of GPUs, None where this process held all there
    were."""

    working: float
    loading: float = 0.0
    engines: int = 1
    gpu_seconds: float | None = None


def spent(made: Mapping[str, ShardTotals]) -> ResourceUse:
    """The same, of a step that is made in shards. The first that an engine makes are slower (it
    warms up, its lanes fill): where there are others, these say how fast it goes, token by token,
    and what the first took beyond that counts as loading."""
    sums = made.values()
    seconds, tokens = sum(found.seconds for found in sums), sum(found.tokens for found in sums)
    steady = seconds - sum(found.first_seconds for found in sums)
    of = tokens - sum(found.first_tokens for found in sums)
    working = tokens * steady / of if of > 0 and steady > 0 else seconds
    return ResourceUse(
        working=working,
        loading=sum(found.loading for found in sums) + max(0.0, seconds - working),
        engines=len(set().union(*(found.makers for found in sums))),
        gpu_seconds=sum(found.gpu_seconds for found in sums),
    )


def greedy(made: Mapping[str, ShardTotals]) -> Literal["exact", "rounding"]:
    """What a second run gives of greedy answers. Ordinary batches of transformers are the same ones
    each time; other engines form theirs as requests come and go, and of two tokens that are all but
    equal the other may be taken."""
    ordinary = re.compile(r"transformers [^,]*")
    return "exact" if all(map(ordinary.fullmatch, engines(made))) else "rounding"


def counted(into: int, out: int, found: ShardTotals) -> Rows:
    """The counts of a slice: what its shards say they dropped, and what was dropped before where
    it was taken over."""
    dropped = Counter(found.dropped)
    dropped[AS_BEFORE] = into - out - dropped.total()
    return Rows(into=into, out=out, dropped=dict(+dropped))


def engines(made: Mapping[str, ShardTotals]) -> dict[str, int]:
    """Shards by the engine that made them: more than one where a job went on elsewhere."""
    found: Counter[str] = Counter()
    for one in made.values():
        found.update(one.engines)
    return dict(sorted(found.items()))
