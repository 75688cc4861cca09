"""What a plan is likely to take: rows, shards and time, by what the last runs took. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory.plan import Holdings, Slice, State, Step
from factory.stages.contract import Read


@dataclass(frozen=True)
class Estimate:
    """What is left of a step: rows to be made, rows of earlier artifacts that may stand, shards,
    and seconds by the rate of the last run of its stage. None where nobody can tell yet."""

    rows: int | None = None
    there: int | None = None
    shards: int | None = None
    seconds: float | None = None


_NOTHING = Estimate(0, 0, 0, 0.0)


def estimate(
    steps: Sequence[Step],
    holdings: Holdings,
    counted: Mapping[tuple[str, str], int] | None = None,
) -> dict[str, Estimate]:
    """For each step, by name, what is left of it. `steps` are in the order of the line; `counted`
    says of what comes from outside how many rows a slice has, by step and slice, where somebody
    has looked."""
    rows: dict[tuple[str, str], int | None] = {}  # by slice, as far as anybody can tell
    found = {}
    for step in steps:
        asked = {
            made.spec.name: (counted or {}).get((step.name, made.spec.name))
            or _asked(step, made, rows, holdings)
            for made in step.slices
        }
        for name, count in asked.items():
            done = step.found.manifest.slices[name].rows.out if step.found else None
            rows[step.name, name] = count if done is None else done
        found[step.name] = _left(step, asked, holdings) if step.state is State.RUN else _NOTHING
    return found


def _asked(
    step: Step, made: Slice, rows: dict[tuple[str, str], int | None], holdings: Holdings
) -> int | None:
    """Rows that a slice is asked for. What comes from outside is as long as it was last."""
    if (said := step.stage.length(made.spec)) is not None:
        return said
    reads = [need for need in made.spec.needs if isinstance(need, Read)]
    if not reads:
        last = [f.manifest.slices for f in holdings.found if f.manifest.repo == step.repo]
        counts = [slices[made.spec.name].rows.out for slices in last if made.spec.name in slices]
        return counts[-1] if counts else None
    by_role: dict[str, int] = {}
    for read in reads:
        there = rows.get((read.step, read.slice))
        if there is None:
            return None
        by_role[read.role] = by_role.get(read.role, 0) + there
    return step.stage.asks(by_role, made.spec)


def _left(step: Step, asked: dict[str, int | None], holdings: Holdings) -> Estimate:
    left, stand = {}, 0
    for made in step.slices:
        wanted = asked[made.spec.name]
        if wanted is None:
            return Estimate()
        have = [s.found.manifest.slices[made.spec.name].rows.out for s in made.earlier]
        there = min(wanted, max(have, default=0))
        left[made.spec.name] = wanted - there
        stand += there
    rows = sum(left.values())
    rate = _rate(step, holdings)
    shards = sum(step.stage.shards(left[made.spec.name], made.spec) for made in step.slices)
    return Estimate(rows, stand, shards, None if rate is None else rate * rows)


def _rate(step: Step, holdings: Holdings) -> float | None:
    """Seconds a row, as the last run of this stage took: of this repo, else of any."""
    made = [f.manifest for f in holdings.found if f.manifest.stage == step.stage.name]
    for manifest in sorted(made, key=lambda m: (m.repo == step.repo, m.created), reverse=True):
        taken = sum(sum(s.taken_over.values()) for s in manifest.slices.values())
        if (anew := manifest.rows().into - taken) > 0:
            return manifest.cost.wall_seconds / anew
    return None
