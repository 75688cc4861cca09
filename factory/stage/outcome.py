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

AS_BEFORE = (
    "as_before"  # dropped when a reused slice was first made; the reasons are in its manifest
)


def gpus() -> int:
    """Return the number of GPUs that this process holds: none before torch is imported."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.device_count()) if torch else 0


@dataclass
class Outcome:
    """Results of a stage beside its files: row counts by slice, figures for the card, tokens, time.

    `determinism` says what a second run would give: equal bytes (`exact`), equal but for the last
    digits and the tokens that depend on them (`rounding`), or another draw (`distribution`)."""

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
    """Time of a step, from which larger ones are estimated: seconds of work and of loading models,
    summed over `engines` parallel processes, and GPU seconds (None where this process held all
    GPUs)."""

    working: float
    loading: float = 0.0
    engines: int = 1
    gpu_seconds: float | None = None


def spent(totals: Mapping[str, ShardTotals]) -> ResourceUse:
    """Return the resources of a step that is made in shards.

    The first shards of an engine are slower: it warms up, and its lanes fill. Where there are
    others, these set the pace per token, and the excess of the first counts as loading."""
    sums = totals.values()
    seconds, tokens = sum(total.seconds for total in sums), sum(total.tokens for total in sums)
    steady = seconds - sum(total.first_seconds for total in sums)
    of = tokens - sum(total.first_tokens for total in sums)
    working = tokens * steady / of if of > 0 and steady > 0 else seconds
    return ResourceUse(
        working=working,
        loading=sum(total.loading for total in sums) + max(0.0, seconds - working),
        engines=len(set().union(*(total.makers for total in sums))),
        gpu_seconds=sum(total.gpu_seconds for total in sums),
    )


def greedy(totals: Mapping[str, ShardTotals]) -> Literal["exact", "rounding"]:
    """Return the determinism of greedy answers. Batches of transformers are the same each time.
    Other engines form them as requests come and go, which may decide between two tokens of all
    but equal probability."""
    ordinary = re.compile(r"transformers [^,]*")
    return "exact" if all(map(ordinary.fullmatch, engines(totals))) else "rounding"


def counted(into: int, out: int, totals: ShardTotals) -> Rows:
    """Return the row counts of a slice: drops by reason from its shards, and the rest, which was
    dropped when reused rows were first made, as AS_BEFORE."""
    dropped = Counter(totals.dropped)
    dropped[AS_BEFORE] = into - out - dropped.total()
    return Rows(into=into, out=out, dropped=dict(+dropped))


def engines(totals: Mapping[str, ShardTotals]) -> dict[str, int]:
    """Count shards by engine: there are several where a job was resumed elsewhere."""
    counts: Counter[str] = Counter()
    for total in totals.values():
        counts.update(total.engines)
    return dict(sorted(counts.items()))
