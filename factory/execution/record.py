"""What ran becomes a manifest: files hashed, inputs named, counts checked, circumstances noted."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from factory.artifacts import citations, licenses, samples
from factory.artifacts.hashing import content_digest, file_sha256, fingerprint
from factory.artifacts.manifest import (
    Cost,
    FileRecord,
    InputRecord,
    License,
    Manifest,
    Rows,
    SliceRecord,
)
from factory.errors import InputError, StageError
from factory.language.languages import LANGUAGES
from factory.planning.lock import Lock
from factory.planning.plan import ArtifactRef, Step, content
from factory.planning.recipe import Recipe
from factory.stage.inputs import ExternalInput, Need, ServedModel, StepInput
from factory.stage.job import Place
from factory.stage.outcome import Outcome, gpus
from factory.stage.readers import is_file
from factory.stage.stage import How

# What may explain a difference between two runs; recorded, never hashed.
_PACKAGES = (
    "croco-factory", "torch", "transformers", "trl", "peft", "accelerate", "datasets",
    "huggingface_hub", "vllm", "polars", "pyarrow", "py3langid",
)  # fmt: skip


def manifest(
    recipe: Recipe,
    lock: Lock,
    step: Step,
    outcome: Outcome,
    done: Mapping[str, ArtifactRef],
    out: Path,
    seconds: float,
    taken: Mapping[str, dict[str, int]],
    under: Mapping[Need, License | None],
) -> Manifest:
    """The manifest of a step that ran; `taken` are rows taken over, by slice and artifact, `under`
    says under what each input is. Raises StageError when its counts do not add up, RecipeError for
    licences that do not go together."""
    records = files(out)
    slices = {}
    for made in step.slices:
        name = made.spec.name
        rows = outcome.rows[name]
        if not rows.balanced():
            raise StageError(
                f"{step.name} {name}: {rows.into} rows in, {rows.out} out, "
                f"{sum(rows.dropped.values())} dropped",
                "rows went missing without a reason: this is a defect, please report it",
            )
        slices[name] = SliceRecord(
            fingerprint=made.fingerprint,
            row_key=made.row_key,
            identity=made.identity,
            inputs=[inputs(need, lock, done, under) for need in made.spec.needs],
            rows=rows,
            digest=_digest(step, name, records),
            taken_over=taken.get(name, {}),
        )
    languages = {made.spec.language for made in step.slices}
    read = [record for made in slices.values() for record in made.inputs]
    fields = step.stage.model_dump(mode="json", exclude={"how"}, by_alias=True)
    how = step.stage.how.model_dump(mode="json")
    upstream = {record.step for record in read if record.step}
    return Manifest(
        repo=step.repo,
        license=license_of(recipe, step, under),
        recipe=recipe.name,
        step=step.name,
        stage=step.stage.name,
        kind=step.stage.kind,
        fingerprint=step.fingerprint,
        languages=[
            *(x for x in recipe.languages if x in languages or None in languages),
            *(x for x in LANGUAGES if x in languages and x not in recipe.languages),
        ],
        fields=fields,
        how=how,
        seed=recipe.seed,
        slices=slices,
        files=records,
        models=_models(step, lock, done, under),
        stats=outcome.stats,
        samples=samples.take(out, list(slices)) if step.repo_type == "dataset" else [],
        references=citations.citation_keys(
            step.stage.name,
            fields | {"kind": outcome.stats.get("kind")},  # of a reward: what made it
            how,
            dict.fromkeys(record.source for record in read if record.source),
            [key for name in done if name in upstream for key in done[name].manifest.references],
        ),
        departures=departures(recipe, step),
        determinism=outcome.determinism,
        template=outcome.template,
        cost=_cost(outcome, seconds),
        environment=environment(type(step.stage.how) is not How),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cost(outcome: Outcome, seconds: float) -> Cost:
    spent = outcome.spent
    held = None if spent is None else spent.gpu_seconds
    cost = Cost(
        wall_seconds=round(seconds, 1),
        gpu_hours=(seconds * gpus() if held is None else held) / 3600,
        tokens=outcome.tokens,
    )
    if spent is None:
        return cost
    return cost.model_copy(
        update={
            "engines": spent.engines,
            "working_seconds": round(spent.working, 3),
            "loading_seconds": round(spent.loading, 3),
        }
    )


def departures(recipe: Recipe, step: Step) -> dict[str, str]:
    """Where the recipe departs from what it follows, and why: at the stage of a step, or at one
    that it rests on."""
    reads: dict[str, set[str]] = {}
    for stage, spec in recipe.slices():
        found = reads.setdefault(stage.name, {stage.name})
        for need in spec.needs:
            if isinstance(
                need, StepInput
            ):  # in the order of the line: what is read is there already
                found |= reads[need.step.partition("[")[0]]
    concerned = reads[step.stage.name]
    return {at: why for at, why in recipe.departures.items() if at.partition(".")[0] in concerned}


def imported(repo: str, origin: Mapping[str, Any], out: Path, **more: Any) -> Manifest:
    """The manifest of a model brought in from a package; `more` is license, base_model and
    relation."""
    records = files(out)
    digest = content_digest((record.path, record.sha256) for record in records)
    fields = {"origin": dict(origin), **{k: more[k] for k in ("base_model", "relation")}}
    identity = {"kind": "model", "stage": "import", "origin": dict(origin), "content": digest}
    mark = fingerprint(identity)
    return Manifest(
        repo=repo,
        license=more["license"],
        recipe="",
        step="import",
        stage="import",
        kind="model",
        fingerprint=mark,
        languages=[],
        fields=fields,
        how={},
        seed=0,
        slices={
            "model": SliceRecord(
                fingerprint=mark,
                row_key=mark,
                identity=identity,
                inputs=[],
                rows=Rows(into=0, out=0),
                digest=digest,
            )
        },
        files=records,
        determinism="exact",
        cost=Cost(wall_seconds=0),
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def files(out: Path) -> list[FileRecord]:
    """Every file below `out`, hashed; tables with their number of rows."""
    return [
        FileRecord(
            path=path.relative_to(out).as_posix(),
            sha256=file_sha256(path),
            size=path.stat().st_size,
            rows=pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None,
        )
        for path in sorted(out.rglob("*"))
        if path.is_file()
    ]


def inputs(
    need: Need,
    lock: Lock,
    done: Mapping[str, ArtifactRef],
    under: Mapping[Need, License | None] | None = None,
) -> InputRecord:
    """What a need turned out to be, and `under` what."""
    license = (under or {}).get(need)
    if isinstance(need, ServedModel):
        return InputRecord(
            role=need.role, digest=need.digest, source=need.model, license=license, served=True
        )
    if isinstance(need, ExternalInput):
        pin = lock.pins[need.source]
        return InputRecord(
            role=need.role,
            digest=pin.digest,
            source=need.source,
            revision=pin.revision,
            license=license,
        )
    found = done[need.step]
    record = found.manifest.slices[need.slice]
    return InputRecord(
        role=need.role,
        digest=content(found.manifest, need),
        step=need.step,
        slice=need.slice,
        fingerprint=record.fingerprint,
        repo=found.manifest.repo,
        tag=found.tag or found.manifest.tag,
        license=license,
        checkpoint=need.checkpoint,
    )


def stated(
    recipe: Recipe,
    needs: Iterable[Need],
    places: Mapping[Need, Place],
    done: Mapping[str, ArtifactRef],
) -> dict[Need, License | None]:
    """Under what each need is: what its manifest says, or the recipe, or the card beside it. A
    file is the recipe's own, so it is under what the recipe says of itself; of a served model
    nobody but the recipe can say it."""
    own = {
        key.replace("{language}", code): license
        for key, license in recipe.licenses.items()
        for code in recipe.languages
    }
    found: dict[Need, License | None] = {}
    for need in needs:
        if isinstance(need, ServedModel):
            found[need] = own.get(need.model)
        elif isinstance(need, StepInput):
            found[need] = done[need.step].manifest.license
        elif said := own.get(need.source) or own.get(need.source.partition("@")[0]):
            found[need] = said
        elif is_file(need.source):
            found[need] = recipe.license
        else:
            card = places[need].path / "README.md"
            try:
                found[need] = licenses.stated_license(card.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, InputError):
                found[need] = None
    return found


def license_of(recipe: Recipe, step: Step, under: Mapping[Need, License | None]) -> License:
    """Under what a step's artifact is. Scores on a benchmark hold nothing of its data, so its
    licence binds nobody who reads them. Raises RecipeError."""
    read = [
        (_called(need), license)
        for need, license in under.items()
        if step.stage.kind != "results"
        or not isinstance(need, ExternalInput)
        or need.kind == "model"
    ]
    return licenses.settle(step.repo, step.stage.kind, read, recipe.license)


def _called(need: Need) -> str:
    if isinstance(need, ServedModel):
        return need.model
    return need.source if isinstance(need, ExternalInput) else need.step


def _models(
    step: Step, lock: Lock, done: Mapping[str, ArtifactRef], under: Mapping[Need, License | None]
) -> list[InputRecord]:
    """The models a step used, each once."""
    found: dict[str, InputRecord] = {}
    for made in step.slices:
        for need in made.spec.needs:
            if isinstance(need, StepInput):
                model = done[need.step].manifest.kind in ("model", "adapter")
            else:
                model = isinstance(need, ServedModel) or need.kind == "model"
            if model:
                record = inputs(need, lock, done, under)
                found.setdefault(record.digest, record)
    return list(found.values())


def _digest(step: Step, name: str, records: list[FileRecord]) -> str:
    """Content of one slice: the files of its own folder, or all of them for a model."""
    prefix = f"data/{name}"
    mine = [
        record
        for record in records
        if step.repo_type == "model" or record.path.rpartition("/")[0] == prefix
    ]
    return content_digest((record.path, record.sha256) for record in mine)


def environment(device: bool = False) -> dict[str, str]:
    """Versions and machine kind, and the device where one was used: torch may also be there for
    another step of the same process. No names, paths or variables of the machine."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device and (torch := sys.modules.get("torch")):
        gpu = torch.cuda.is_available()
        found["device"] = torch.cuda.get_device_name(0) if gpu else "cpu"
    return found
