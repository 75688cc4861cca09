"""Real objects that several tests start from: the demo recipe, its lock, and what runs leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from factory.artifacts.hashing import text_hash
from factory.artifacts.manifest import Cost, FileRecord, Manifest, Rows, SliceRecord
from factory.artifacts.shards import Shard
from factory.execution.record import inputs
from factory.planning.lock import Lock, Pin, outside
from factory.planning.plan import ArtifactRef, Inventory, Plan, State, Step
from factory.planning.recipe import Recipe, load
from factory.stage.readers import is_file

ASKED = 12  # rows that every slice of a pretended step was asked for


def demo(*overrides: str) -> Recipe:
    """The demo recipe, with `key.path=value` overrides."""
    return load("demo", overrides).recipe


def lock_of(recipe: Recipe, **pins: Pin) -> Lock:
    """A lock with everything pinned to a digest made of its name; `pins` go over it."""
    found = {
        need.source: Pin(
            digest=text_hash(need.source), revision=None if is_file(need.source) else "a" * 40
        )
        for need in outside(recipe)
    }
    return Lock(recipe=recipe.name, pins=found | pins)


def repinned(lock: Lock, source: str, digest: str, revision: str | None = None) -> Lock:
    """`lock` with one source at another content."""
    assert source in lock.pins, f"{source} is not among {sorted(lock.pins)}"
    pin = Pin(digest=digest, revision=revision)
    return lock.model_copy(update={"pins": {**lock.pins, source: pin}})


def by_name(steps: list[Step]) -> dict[str, Step]:
    """Steps by their names."""
    return {step.name: step for step in steps}


def done(steps: list[Step]) -> dict[str, ArtifactRef]:
    """What is there of these steps."""
    return {step.name: step.found for step in steps if step.found}


def manifest_of(
    recipe: Recipe,
    lock: Lock,
    step: Step,
    there: Mapping[str, ArtifactRef],
    left: Mapping[str, int] | None = None,
    draw: str = "",
    stats: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest that running `step` would leave. `left` says how many of the `ASKED` rows a
    slice kept, `draw` tells two runs of the same step apart."""
    slices = {}
    for made in step.slices:
        out = (left or {}).get(made.spec.name, ASKED)
        slices[made.spec.name] = SliceRecord(
            fingerprint=made.fingerprint,
            row_key=made.row_key,
            identity=made.identity,
            inputs=[inputs(need, lock, there) for need in made.spec.needs],
            rows=Rows(into=ASKED, out=out, dropped={"lost": ASKED - out} if out < ASKED else {}),
            digest=text_hash(made.fingerprint + draw),
        )
    languages = {made.spec.language for made in step.slices}
    reads = [record for made in slices.values() for record in made.inputs]
    roles = ("model", "base", "reward", "adapter", "judge", "llm_judge")
    models = [record for record in reads if record.role in roles]
    return Manifest(
        repo=step.repo,
        license=recipe.license,
        recipe=recipe.name,
        step=step.name,
        stage=step.stage.name,
        kind=step.stage.kind,
        fingerprint=step.fingerprint,
        languages=[
            *(x for x in recipe.languages if x in languages or None in languages),
            *sorted(x for x in languages if x and x not in recipe.languages),
        ],
        fields=step.stage.model_dump(mode="json", exclude={"how"}),
        how=step.stage.how.model_dump(mode="json"),
        seed=recipe.seed,
        slices=slices,
        files=[FileRecord(path=f"data/{n}/part-00000.parquet", sha256="0", size=1) for n in slices],
        models=list({record.digest: record for record in models}.values()),
        stats=dict(stats or {}),
        determinism="exact",
        cost=Cost(wall_seconds=1.0),
        environment={"python": "3.11"},
        created="2026-01-01T00:00:00+00:00",
    )


def walked(
    recipe: Recipe,
    lock: Lock,
    until: str | None = None,
    left: Mapping[str, Mapping[str, int]] | None = None,
    published: bool = True,
) -> Inventory:
    """What is there after every step before `until` was made in turn. `left` says by step and
    slice how many rows were kept; what cannot be run is passed over."""
    line = Plan(recipe, lock, Inventory())
    for name in [step.name for step in line.steps]:
        if name == until:
            break
        step = line.step(name)
        if step.state is State.RUN:
            manifest = manifest_of(recipe, lock, step, line.done, (left or {}).get(name))
            line.add(ArtifactRef(manifest, tag=manifest.tag if published else None))
    return line.inventory


def with_stats(manifest: Manifest, **more: Any) -> Manifest:
    """`manifest` with these figures too, or in the place of its own of the same name."""
    return manifest.model_copy(update={"stats": {**manifest.stats, **more}})


def imported() -> Manifest:
    """The manifest of a model brought in from a package."""
    return Manifest(
        repo="local/small",
        license="apache-2.0",
        recipe="",
        step="import",
        stage="import",
        kind="model",
        fingerprint="0123456789ab",
        languages=[],
        fields={
            "origin": {
                "package": "llm-small",
                "package_version": "1.0",
                "file": "small.gguf",
                "file_sha256": "f" * 64,
            },
            "base_model": "org/small",
            "relation": "quantized",
        },
        how={},
        seed=0,
        slices={
            "model": SliceRecord(
                fingerprint="0123456789ab",
                row_key="0123456789ab",
                identity={"kind": "model"},
                inputs=[],
                rows=Rows(into=0, out=0),
                digest="0" * 64,
            )
        },
        files=[],
        determinism="exact",
        cost=Cost(wall_seconds=0),
        environment={},
        created="2026-01-01T00:00:00+00:00",
    )


def nobody(done: int, total: int) -> None:
    """Is told how many shards are done and does not care."""


def numbers(shard: Shard) -> pa.Table:
    """The rows of a shard: one a unit, its number."""
    return pa.table({"unit": pa.array(range(shard.start, shard.stop), pa.int64())})
