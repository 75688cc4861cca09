"""Run the loop of every row-wise stage: skip shards that exist, make and write the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from factory.artifacts.shards import Grid, Shard
from factory.artifacts.tables import write_table
from factory.engines import pipelining as running


def run(
    work: Path,
    todo: Grid,
    make: Callable[[Shard], pa.Table],
    finished: Callable[[int, int], None],
    lanes: Callable[[Shard], int] = lambda shard: 1,
    apart: Callable[[Shard], object] = lambda shard: None,
) -> None:
    """Make every shard that does not exist yet; call `finished(done, total)` after each.

    `lanes` of them run at once (see engines/pipelining.py), but never two for which `apart`
    returns different values: a model is changed when all answers of the last one are in. `lanes`
    is called with the first shard of each such group, so it may load the engine. Shards without
    units need no engine.
    """
    total, done = len(todo.shards), todo.done(work)
    finished(done, total)
    pending = [shard for shard in todo.shards if not shard.file(work).exists()]
    for shard in pending:
        if shard.start == shard.stop:
            write_table(shard.file(work), make(shard))
            done += 1
            finished(done, total)
    filled = (shard for shard in pending if shard.start < shard.stop)
    for _, alike in itertools.groupby(filled, apart):
        first = next(alike)
        for shard, table in running.run(itertools.chain([first], alike), make, lanes(first)):
            write_table(shard.file(work), table)
            done += 1
            finished(done, total)
