"""The plan: for every step reuse, publish, run or blocked, and why. Values in, values out.

It reads the pins (the lock) and the existing artifacts (the inventory), and touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from factory.artifacts import checkpoints
from factory.artifacts.hashing import fingerprint
from factory.artifacts.manifest import Manifest, SliceRecord
from factory.language import languages
from factory.planning.lock import Lock
from factory.planning.recipe import Recipe
from factory.stage.inputs import ExternalInput, Need, ServedModel, SliceSpec, StepInput
from factory.stage.stage import Stage, stage_of

RepoType = Literal["model", "dataset"]


class State(Enum):
    """State of a planned step: reused, published, run, or blocked."""

    REUSE = "reuse"  # on the hub: nothing to do
    PUBLISH = "publish"  # done here, not on the hub yet
    RUN = "run"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class ArtifactRef:
    """An existing artifact: in a directory, on the hub at a tag, or both."""

    manifest: Manifest
    directory: Path | None = None
    tag: str | None = None


@dataclass
class Inventory:
    """Existing artifacts, newest last, and progress of unfinished work directories (shards done and
    in all, by fingerprint)."""

    found: list[ArtifactRef] = field(default_factory=list)
    partial: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, new: ArtifactRef) -> None:
        """Add one artifact. The same one on disk and on the hub becomes one entry."""
        for number, old in enumerate(self.found):
            if _same_artifact(old.manifest, new.manifest):
                self.found[number] = ArtifactRef(
                    new.manifest, new.directory or old.directory, new.tag or old.tag
                )
                return
        self.found.append(new)


def _same_artifact(first: Manifest, other: Manifest) -> bool:
    return (
        first.repo == other.repo
        and first.fingerprint == other.fingerprint
        and first.content() == other.content()
    )


@dataclass(frozen=True)
class Slice:
    """A slice with its identity, and the artifacts whose rows it may reuse."""

    spec: SliceSpec
    identity: dict[str, Any]
    fingerprint: str
    row_key: str
    earlier: tuple[ReusableRows, ...] = ()


@dataclass(frozen=True)
class ReusableRows:
    """An artifact that has rows for a slice; `whole` if it has the same slice, made from the same
    inputs."""

    found: ArtifactRef
    whole: bool


@dataclass(frozen=True)
class Step:
    """One planned instance of a stage."""

    name: str
    stage: Stage
    repo: str
    slices: tuple[Slice, ...]
    fingerprint: str
    state: State
    reason: str
    found: ArtifactRef | None = None
    knobs: str = ""  # what to change in the recipe, for a blocked step

    @property
    def repo_type(self) -> RepoType:
        """Return whether its repo is a dataset or a model on the Hub."""
        return repo_type(self.stage.kind)

    @property
    def needs(self) -> list[Need]:
        """Return the inputs of all its slices, each once."""
        return list(dict.fromkeys(need for piece in self.slices for need in piece.spec.needs))

    @property
    def served(self) -> list[str]:
        """Return the served models that it uses. It must run where their server can be reached."""
        needs = (need for need in self.needs if isinstance(need, ServedModel))
        return list(dict.fromkeys(need.model for need in needs))


def repo_type(kind: str) -> RepoType:
    """Return the type of repo for an artifact of a kind."""
    return "model" if kind in ("model", "adapter") else "dataset"


def repo_of(recipe: Recipe, stage: Stage, step: str) -> str:
    """Return the repo of a step: `{org}/{recipe}-{stage}`, with `-{group}` for one of several."""
    group = step.partition("[")[2].rstrip("]")
    return f"{recipe.org}/{recipe.name}-{stage.repo}" + (f"-{group}" if group else "")


def repos(recipe: Recipe) -> dict[str, RepoType]:
    """Return every repo of a recipe, with its type."""
    return {
        repo_of(recipe, stage, spec.step): repo_type(stage.kind) for stage, spec in recipe.slices()
    }


def plan(recipe: Recipe, lock: Lock, holdings: Inventory) -> list[Step]:
    """Return all steps in the order of the line.

    A source that the lock does not pin counts as new content, so steps that read it are run.
    """
    return Plan(recipe, lock, holdings).steps


class Plan:
    """Every step of a recipe in the order of the line; `add` follows what a run makes.

    Identities of slices hang on recipe and lock alone and are computed once.
    """

    def __init__(self, recipe: Recipe, lock: Lock, holdings: Inventory) -> None:
        self._recipe, self._lock = recipe, lock
        self._slices: dict[tuple[str, str], Slice] = {}
        self._done: dict[str, ArtifactRef] = {}  # by step, for those that need not run
        self._blocked: dict[tuple[str, str], str] = {}  # by slice, why
        self._knobs: dict[tuple[str, str], str] = {}  # by blocked slice, what to change
        self._row_wise: dict[str, bool] = {}  # by step
        self._groups: dict[str, tuple[Stage, list[SliceSpec]]] = {}
        for stage, spec in recipe.slices():
            self._groups.setdefault(spec.step, (stage, []))[1].append(spec)
        self.take(holdings)

    def take(self, holdings: Inventory) -> None:
        """Decide every step anew by another inventory."""
        self.inventory = holdings
        self._done.clear()
        self._blocked.clear()
        self._steps = {name: self._step(name, *group) for name, group in self._groups.items()}

    @property
    def steps(self) -> list[Step]:
        """Every step, as it stands now."""
        return list(self._steps.values())

    @property
    def done(self) -> Mapping[str, ArtifactRef]:
        """The artifacts of steps that need not run, by step."""
        return self._done

    def step(self, name: str) -> Step:
        """Return one step, as it stands now. Raises KeyError."""
        return self._steps[name]

    def add(self, artifact: ArtifactRef) -> None:
        """Take in an artifact, and decide anew the steps that it can change: those that made or
        may reuse it, and all that read one of them."""
        self.inventory.add(artifact)
        manifest = artifact.manifest
        self.inventory.partial.pop(manifest.fingerprint, None)
        keys = {record.row_key for record in manifest.slices.values()}
        changed: set[str] = set()
        for name, group in self._groups.items():
            step = self._steps[name]
            inputs = {n.step for spec in group[1] for n in spec.needs if isinstance(n, StepInput)}
            if (
                manifest.fingerprint == step.fingerprint
                or manifest.repo == repo_of(self._recipe, step.stage, name)
                or keys & {part.row_key for part in step.slices}
                or changed & inputs
            ):
                changed.add(name)
                self._done.pop(name, None)
                for spec in group[1]:
                    self._blocked.pop((name, spec.name), None)
                self._steps[name] = self._step(name, *group)

    def _step(self, name: str, stage: Stage, specs: list[SliceSpec]) -> Step:
        repo = repo_of(self._recipe, stage, name)
        self._row_wise[name] = stage.row_wise
        going: list[Slice] = []
        left_out: list[str] = []
        for spec in specs:
            piece = self._slices.get((name, spec.name)) or self._slice(stage, spec)
            self._slices[name, spec.name] = piece
            if why := self._why_blocked(stage, spec):
                self._blocked[name, spec.name] = why
                left_out.append(why)
            else:
                going.append(piece)
        if not going:
            mark = fingerprint({"blocked": name})
            knobs = self._knobs.get((name, specs[0].name), "")
            return Step(name, stage, repo, (), mark, State.BLOCKED, left_out[0], knobs=knobs)
        mark = fingerprint(
            {"kind": stage.kind, "slices": {s.spec.name: s.fingerprint for s in going}}
        )
        state, reason, artifact = self._decide(stage, repo, mark, going)
        if artifact:
            self._done[name] = artifact
            repo = artifact.manifest.repo  # another recipe's, when it made the very same thing
        elif state is State.RUN:
            going = [replace(piece, earlier=self._earlier(stage, piece)) for piece in going]
        if left_out:
            reason += f"; {len(left_out)} of {len(specs)} slices left out ({left_out[0]})"
        return Step(name, stage, repo, tuple(going), mark, state, reason, artifact)

    def _why_blocked(self, stage: Stage, spec: SliceSpec) -> str | None:
        for need in spec.needs:
            if isinstance(need, StepInput) and (need.step, need.slice) in self._blocked:
                why = self._blocked[need.step, need.slice]
                return why if why.endswith(" is blocked") else f"{need.step} is blocked"
        for role, fewest in stage.min_rows().items():
            reads = [n for n in spec.needs if isinstance(n, StepInput) and n.role == role]
            if any(read.step not in self._done for read in reads):
                continue  # not made yet: nobody can tell
            rows = [self._done[r.step].manifest.slices[r.slice].rows for r in reads]
            n_rows, total = sum(r.out for r in rows), sum(r.into for r in rows)
            if n_rows < fewest:
                why, knobs = self._shortage(reads)
                fewer = f"set {stage.name}.min_{'pairs' if stage.kind == 'adapter' else 'rows'}"
                self._knobs[spec.step, spec.name] = knobs or f"more prompts, or {fewer}"
                return f"{n_rows} of {total} left, {fewest} needed" + (f": {why}" if why else "")
        return None

    def _shortage(self, reads: list[StepInput]) -> tuple[str, str]:
        """Return why these inputs have few rows, and what to change."""
        whys: list[str] = []
        knobs: list[str] = []
        for read in reads:
            manifest = self._done[read.step].manifest
            figures = manifest.stats.get("by_slice", {}).get(read.slice, {})
            rows = manifest.slices[read.slice].rows
            why, knob = self._groups[read.step][0].shortage(rows, figures)
            whys, knobs = [*whys, why], [*knobs, knob]
        first, second = ("; ".join(dict.fromkeys(filter(None, t))) for t in (whys, knobs))
        return first, second

    def _slice(self, stage: Stage, spec: SliceSpec) -> Slice:
        identity: dict[str, Any] = {
            "kind": stage.kind,
            "stage": stage_of(stage.name),
            "version": stage.version,
            "slice": spec.name if stage.kind in ("model", "adapter") else spec.language,
            "fields": stage.identity_fields(spec),
        }
        if stated := languages.defined(spec.language):
            identity["language"] = dict(stated)
        if spec.language and languages.states_script(spec.language):  # labels say the script too
            identity["script"] = languages.language(spec.language).script
        if stage.uses_seed(spec):
            identity["seed"] = self._recipe.seed
        reads = [need for need in spec.needs if isinstance(need, StepInput)]
        content = [
            n
            for n in spec.needs
            if isinstance(n, ServedModel) or (isinstance(n, ExternalInput) and not n.extent)
        ]
        extent = [n for n in spec.needs if isinstance(n, ExternalInput) and n.extent]
        identity["outside"] = {need.role: self._content(need) for need in content}
        full = identity | {
            "inputs": _by_role(reads, lambda r: _at(r, self._slices[r.step, r.slice].fingerprint)),
            "extent": stage.extent() | {need.role: self._digest(need) for need in extent},
        }
        if not stage.row_wise:  # every row hangs on all of what was read
            return Slice(spec, full, fingerprint(full), fingerprint(full))
        key = fingerprint(
            identity
            | {"inputs": _by_role(reads, lambda r: _at(r, self._slices[r.step, r.slice].row_key))}
        )
        return Slice(spec, full, fingerprint(full), key)

    def _earlier(self, stage: Stage, piece: Slice) -> tuple[ReusableRows, ...]:
        """Return the artifacts with rows for this slice: the same slice of the same inputs first,
        then those made by the same rules and models, most rows first."""
        computed = any(
            not isinstance(n, ExternalInput) or n.kind == "model" for n in piece.spec.needs
        )
        if not stage.row_wise or not computed:
            return ()  # what comes from outside as it is, is read anew
        candidates = []
        for artifact in self.inventory.found:
            record = artifact.manifest.slices.get(piece.spec.name)
            if record is None or record.row_key != piece.row_key:
                continue
            if not self._same_models(record, piece):
                continue
            same = record.fingerprint == piece.fingerprint and self._read_the_same(
                artifact.manifest, piece
            )
            if stage.compares_rows and not same:
                continue
            candidates.append((same, record.rows.out, artifact))
        candidates.sort(key=lambda candidate: candidate[:2], reverse=True)
        return tuple(ReusableRows(artifact, same) for same, _, artifact in candidates)

    def _same_models(self, record: SliceRecord, piece: Slice) -> bool:
        """Return whether inputs that are read as a whole (models) have the content that they had
        then. Rows are compared one by one when they are reused."""
        then = {(read.role, read.digest) for read in record.inputs}
        for need in piece.spec.needs:
            if not isinstance(need, StepInput):
                continue  # its digest is in the row key
            artifact = self._done.get(need.step)
            if self._row_wise[need.step]:
                continue
            if artifact is None or (need.role, self._content(need)) not in then:
                return False
        return True

    def _digest(self, need: ExternalInput) -> str:
        pin = self._lock.pins.get(need.source)
        return pin.digest if pin else f"absent:{need.source}"

    def _decide(
        self, stage: Stage, repo: str, mark: str, going: list[Slice]
    ) -> tuple[State, str, ArtifactRef | None]:
        needs = [need for piece in going for need in piece.spec.needs]
        if waiting := [
            n.step for n in needs if isinstance(n, StepInput) and n.step not in self._done
        ]:
            return State.RUN, f"{waiting[0]} is made first", None
        if absent := [
            n.source
            for n in needs
            if isinstance(n, ExternalInput) and n.source not in self._lock.pins
        ]:
            return State.RUN, f"{absent[0]} is brought in first", None
        entries = [artifact for artifact in self.inventory.found if artifact.manifest.repo == repo]
        same = [
            artifact for artifact in self.inventory.found if artifact.manifest.fingerprint == mark
        ]
        for artifact in sorted(same, key=lambda f: (f.manifest.repo != repo, f.tag is None)):
            if all(self._read_the_same(artifact.manifest, piece) for piece in going):
                at = "" if artifact.manifest.repo == repo else f" of {artifact.manifest.repo}"
                if artifact.tag:
                    return State.REUSE, artifact.tag + at, artifact
                return State.PUBLISH, "done here, not on the hub yet" + at, artifact
        if mark in self.inventory.partial:
            done, total = self.inventory.partial[mark]
            return State.RUN, f"begun: {done} of {total} shards are there", None
        if same:
            return State.RUN, "same recipe, other draw of its inputs", None
        if entries:
            return State.RUN, _nearest([f.manifest for f in entries], stage, going), None
        return State.RUN, "nothing published yet", None

    def _read_the_same(self, manifest: Manifest, piece: Slice) -> bool:
        """Return whether a slice would read the same content now as it did then."""
        record = manifest.slices.get(piece.spec.name)
        if record is None or any(
            isinstance(need, StepInput) and need.step not in self._done for need in piece.spec.needs
        ):
            return False
        now = sorted((need.role, self._content(need)) for need in piece.spec.needs)
        return now == sorted((read.role, read.digest) for read in record.inputs)

    def _content(self, need: Need) -> str:
        if isinstance(need, ExternalInput):
            return self._digest(need)
        if isinstance(need, ServedModel):
            return need.digest
        return content(self._done[need.step].manifest, need)


def content(manifest: Manifest, read: StepInput) -> str:
    """Return the digest of what an input reads of an artifact."""
    if read.checkpoint:
        return manifest.digest_of(checkpoints.folder(read.checkpoint))
    return manifest.slices[read.slice].digest


def _at(read: StepInput, name: str) -> str:
    """Return the name of a slice, or of a checkpoint of its training."""
    return f"{name}@{read.checkpoint}" if read.checkpoint else name


def _by_role(reads: Iterable[StepInput], value: Any) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for read in reads:
        values.setdefault(read.role, []).append(value(read))
    return values


def _nearest(old: Iterable[Manifest], stage: Stage, going: list[Slice]) -> str:
    """Return why a step is not the published one that it is nearest to, as text. Of several
    equally near the newest is compared."""
    newest_first = sorted(old, key=lambda manifest: manifest.created, reverse=True)
    reasons = min((changes(manifest, stage, going) for manifest in newest_first), key=len)
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more if reasons else "made from other content"


def changes(old: Manifest, stage: Stage, going: Iterable[Slice]) -> list[str]:
    """Return the differences of a step from `old`, each with the old and the new value."""
    before, after = (
        _flat(old.fields),
        _flat(stage.model_dump(mode="json", exclude={"how"}, by_alias=True)),
    )
    knobs = type(stage).model_fields
    defaults = _flat({info.alias or name: info.default for name, info in knobs.items()})
    reasons = [
        f"{key} {before.get(key)} -> {after.get(key)}"
        for key in {**before, **after}
        # a knob at its default that older code did not have changes nothing
        if before.get(key, defaults.get(key)) != after.get(key)
    ]
    names = set()
    for piece in going:
        names.add(piece.spec.name)
        record = old.slices.get(piece.spec.name)
        if record is None:
            reasons.append(f"{piece.spec.name} is new")
            continue
        for part in ("seed", "version"):
            was, now = record.identity.get(part), piece.identity.get(part)
            if was != now:
                reasons.append(f"{part} {was} -> {now}")
        for part in ("inputs", "outside", "extent"):
            was, now = record.identity.get(part, {}), piece.identity.get(part, {})
            reasons += [
                f"{role} of {piece.spec.name} changed"
                for role in now
                if role not in stage.extent() and was.get(role) != now[role]
            ]
    reasons += [f"{name} is no longer asked for" for name in old.slices if name not in names]
    return list(dict.fromkeys(reasons))


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
