"""Record a finished step as a manifest: files hashed, inputs named, counts checked, environment
noted."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
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
from factory.planning.lock import Lock
from factory.planning.plan import ArtifactRef, Step, content
from factory.planning.recipe import Recipe
from factory.stage.inputs import ExternalInput, Need, ServedModel, StepInput
from factory.stage.job import Place
from factory.stage.outcome import Outcome, gpus
from factory.stage.readers import is_file, named
from factory.stage.stage import How, stage_of

_MODEL_ROLES = ("base", "start", "model", "adapter", "reward", "policy", "reference")
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
    reused: Mapping[str, dict[str, int]],
    licenses_of: Mapping[Need, License | None],
) -> Manifest:
    """Return the manifest of a finished step; `reused` counts rows by slice and artifact. Raises
    StageError if row counts do not add up, RecipeError for licences that do not go together."""
    records = files(out)
    slices = {}
    for part in step.slices:
        name = part.spec.name
        rows = outcome.rows[name]
        if not rows.balanced():
            raise StageError(
                f"{step.name} {name}: {rows.into} rows in, {rows.out} out, "
                f"{sum(rows.dropped.values())} dropped",
                "rows went missing without a reason: this is a defect, please report it",
            )
        slices[name] = SliceRecord(
            fingerprint=part.fingerprint,
            row_key=part.row_key,
            identity=part.identity,
            inputs=[inputs(need, lock, done, licenses_of) for need in part.spec.needs],
            rows=rows,
            digest=_digest(step, name, records),
            taken_over=reused.get(name, {}),
        )
    languages = {part.spec.language for part in step.slices}
    read = [record for part in slices.values() for record in part.inputs]
    fields = step.stage.model_dump(mode="json", exclude={"how"}, by_alias=True)
    how = step.stage.how.model_dump(mode="json")
    upstream = {record.step for record in read if record.step}
    answers_of = _answers_of(read, done)
    return Manifest(
        repo=step.repo,
        license=license_of(recipe, step, licenses_of),
        recipe=recipe.name,
        step=step.name,
        stage=stage_of(step.stage.name),
        kind=step.stage.kind,
        fingerprint=step.fingerprint,
        languages=[
            *(x for x in recipe.languages if x in languages or None in languages),
            *sorted(x for x in languages if x and x not in recipe.languages),
        ],
        fields=fields,
        how=how,
        seed=recipe.seed,
        slices=slices,
        files=records,
        models=_models(step, lock, done, licenses_of),
        stats=outcome.stats | ({"answers_of": answers_of} if answers_of else {}),
        samples=samples.take(out, list(slices)) if step.repo_type == "dataset" else [],
        references=citations.citation_keys(
            stage_of(step.stage.name),
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


def _answers_of(read: Iterable[InputRecord], done: Mapping[str, ArtifactRef]) -> list[str]:
    """Return whose answers the rows of a step come from, where they are not drawn from the model
    that it trains: outside sources of rows, and other models."""
    bases = {record.digest for record in read if record.role == "base"}
    sources: dict[str, None] = {}
    steps = [record.step for record in read if record.step and record.role not in _MODEL_ROLES]
    for name in steps:  # grows by what these steps read
        upstream = done[name].manifest if name in done else None
        if upstream is None or upstream.kind not in ("samples", "scores", "pairs", "sft"):
            continue
        for record in (record for part in upstream.slices.values() for record in part.inputs):
            drawn_from = upstream.kind == "samples" and record.role.startswith("model")
            foreign = record.role == "source" and upstream.kind != "scores"
            if foreign or (drawn_from and bases and record.digest not in bases):
                sources[str(record.source or record.repo)] = None
            if record.step and record.step not in steps and record.role not in _MODEL_ROLES:
                steps.append(record.step)
    return list(sources)


def _cost(outcome: Outcome, seconds: float) -> Cost:
    spent = outcome.spent
    gpu_seconds = None if spent is None else spent.gpu_seconds
    cost = Cost(
        wall_seconds=round(seconds, 1),
        gpu_hours=(seconds * gpus() if gpu_seconds is None else gpu_seconds) / 3600,
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
    """Return where the recipe departs from the method it follows, and why, for the stage of a step
    and the stages that it builds on."""
    reads: dict[str, set[str]] = {}
    for stage, spec in recipe.slices():
        stages = reads.setdefault(stage.name, {stage.name})
        for need in spec.needs:
            if isinstance(
                need, StepInput
            ):  # in the order of the line: what is read is there already
                stages |= reads[need.step.partition("[")[0]]
    concerned = reads[step.stage.name]
    concerned |= {stage_of(name) for name in concerned}
    return {at: why for at, why in recipe.departures.items() if at.partition(".")[0] in concerned}


def imported(repo: str, origin: Mapping[str, Any], out: Path, **more: Any) -> Manifest:
    """Return the manifest of a model imported from a package; `more` is license, base_model and
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
    """List every file below `out` with its hash; tables with their number of rows."""
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
    licenses_of: Mapping[Need, License | None] | None = None,
) -> InputRecord:
    """Return the record of one input, with its licence."""
    license = (licenses_of or {}).get(need)
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
    artifact = done[need.step]
    record = artifact.manifest.slices[need.slice]
    return InputRecord(
        role=need.role,
        digest=content(artifact.manifest, need),
        step=need.step,
        slice=need.slice,
        fingerprint=record.fingerprint,
        repo=artifact.manifest.repo,
        tag=artifact.tag or artifact.manifest.tag,
        license=license,
        checkpoint=need.checkpoint,
    )


def stated(
    recipe: Recipe,
    needs: Iterable[Need],
    places: Mapping[Need, Place],
    done: Mapping[str, ArtifactRef],
) -> dict[Need, License | None]:
    """Return the licence of each input: from its manifest, the recipe, or its card.

    A local file has the licence of the recipe. For a served model only the recipe can state one.
    """
    own = {
        named(key, code): license
        for key, license in recipe.licenses.items()
        for code in recipe.languages
    }
    licenses_of: dict[Need, License | None] = {}
    for need in needs:
        if isinstance(need, ServedModel):
            licenses_of[need] = own.get(need.model)
        elif isinstance(need, StepInput):
            licenses_of[need] = done[need.step].manifest.license
        elif license := own.get(need.source) or own.get(need.source.partition("@")[0]):
            licenses_of[need] = license
        elif is_file(need.source):
            licenses_of[need] = recipe.license
        else:
            card = places[need].path / "README.md"
            try:
                licenses_of[need] = licenses.stated_license(card.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, InputError):
                licenses_of[need] = None
    return licenses_of


def license_of(recipe: Recipe, step: Step, licenses_of: Mapping[Need, License | None]) -> License:
    """Return the licence of a step's artifact. Benchmark scores hold no data of the benchmark, so
    its licence does not bind them; nor do rows hold anything of the prompts that they were left out
    for being seen in. Raises RecipeError."""
    read = [
        (_called(need), license)
        for need, license in licenses_of.items()
        if need.role != "seen_in"
        and (
            step.stage.kind != "results"
            or not isinstance(need, ExternalInput)
            or need.kind == "model"
        )
    ]
    return licenses.settle(step.repo, step.stage.kind, read, recipe.license)


def _called(need: Need) -> str:
    if isinstance(need, ServedModel):
        return need.model
    return need.source if isinstance(need, ExternalInput) else need.step


def _models(
    step: Step,
    lock: Lock,
    done: Mapping[str, ArtifactRef],
    licenses_of: Mapping[Need, License | None],
) -> list[InputRecord]:
    """Return the models that a step used, each once."""
    models: dict[str, InputRecord] = {}
    for need in step.needs:
        if isinstance(need, StepInput):
            model = done[need.step].manifest.kind in ("model", "adapter")
        else:
            model = isinstance(need, ServedModel) or need.kind == "model"
        if model:
            record = inputs(need, lock, done, licenses_of)
            models.setdefault(record.digest, record)
    return list(models.values())


def _digest(step: Step, name: str, records: list[FileRecord]) -> str:
    """Return the content digest of one slice: the files of its folder, or all files of a model."""
    prefix = f"data/{name}"
    in_slice = [
        record
        for record in records
        if step.repo_type == "model" or record.path.rpartition("/")[0] == prefix
    ]
    return content_digest((record.path, record.sha256) for record in in_slice)


def environment(device: bool = False) -> dict[str, str]:
    """Return package versions and machine type, with the GPU if one was used (`device`). Holds no
    names, paths or variables of the machine."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if commit := _commit():
        versions["commit"] = commit
    if device and (torch := sys.modules.get("torch")):
        gpu = torch.cuda.is_available()
        versions["device"] = torch.cuda.get_device_name(0) if gpu else f"cpu ({_processor()})"
    return versions


@cache
def _commit() -> str:
    """Return the commit of the code, marked where files differ from it; empty for a package from
    an index. A clone states it by git, an installation from a repo in its metadata."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        direct = importlib.metadata.distribution("croco-factory").read_text("direct_url.json")
        vcs = json.loads(direct or "{}").get("vcs_info") or {}
        return str(vcs.get("commit_id", ""))
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True,
                           check=True, timeout=10).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno", "factory"))
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{head}, with changes" if changes else head


def _processor() -> str:
    """Return the name of the CPU's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
