"""Paths of a step's inputs on this disk, fetched from the hub if needed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from factory.artifacts import checkpoints
from factory.artifacts.reuse import ReusableSlice
from factory.artifacts.tables import slice_directory
from factory.errors import Check, FactoryError, RecipeError
from factory.execution import external
from factory.hub.client import Hub
from factory.planning.lock import Lock
from factory.planning.plan import Plan, Slice, State, Step
from factory.planning.recipe import LoadedRecipe
from factory.sampling.sources import Preferences, Prompts, Questions
from factory.stage.inputs import ExternalInput, Need, ServedModel, StepInput
from factory.stage.job import Place
from factory.stage.readers import DistinctIds, Row, View, is_file

_COUNTED = 16 * 2**20  # bytes of a dataset whose rows a plan counts


def find(
    loaded: LoadedRecipe,
    pins: Lock,
    plan: Plan,
    hub: Hub,
    needs: Sequence[Need],
    reader: str,
) -> dict[Need, Place]:
    """Return the paths of inputs on this disk, fetched if needed. A served model has none.

    `reader` is named in the error for an artifact that is not made yet. Raises RecipeError for
    that, HubError for what cannot be fetched.
    """
    for need in needs:
        if isinstance(need, StepInput) and need.step not in plan.done:
            raise RecipeError(
                f"{reader} needs {need.step}, which is not made yet: {plan.step(need.step).reason}",
                f"run factory run {loaded.called} --until {need.step} first",
            )
    return {
        need: _place(need, loaded, pins, plan, hub)
        for need in needs
        if not isinstance(need, ServedModel)
    }


def _place(
    need: StepInput | ExternalInput, loaded: LoadedRecipe, pins: Lock, plan: Plan, hub: Hub
) -> Place:
    """Return the path of one input on this disk, fetched from the hub if needed."""
    if isinstance(need, StepInput):
        artifact, step = plan.done[need.step], plan.step(need.step)
        tag = artifact.tag or artifact.manifest.tag
        root = artifact.directory or hub.fetch(step.repo, step.repo_type, tag)
        inside = checkpoints.folder(need.checkpoint) if need.checkpoint else ""
        return Place(root / inside, step.repo, tag, inside)
    if is_file(need.source):
        return Place(loaded.file(need.source))
    name, revision = need.source.partition("@")[0], pins.pins[need.source].revision
    assert revision is not None
    return Place(hub.fetch(name, need.kind, revision), name, revision)


def earlier(part: Slice, kind: str, hub: Hub) -> tuple[ReusableSlice, ...]:
    """Return the paths of earlier artifacts with rows for a slice, fetched if needed."""
    reusable = []
    for rows in part.earlier:
        manifest = rows.found.manifest
        tag = rows.found.tag or manifest.tag
        root = rows.found.directory or hub.fetch(manifest.repo, kind, tag)
        path = slice_directory(root, part.spec.name)
        reusable.append(ReusableSlice(path, f"{manifest.repo}@{tag}", rows.whole))
        if rows.whole:
            break  # nothing more is asked for
    return tuple(reusable)


def datasets_here(
    steps: Sequence[Step], pins: Lock, hub: Hub, most: int | None = _COUNTED
) -> dict[str, Path]:
    """Return the directories of datasets of the local hub that due steps have rows from, by source.
    Those of over `most` bytes are left out, and all where the home is only read: the run counts
    them. Raises HubError."""
    here: dict[str, Path] = {}
    for step in steps if hub.local else ():
        for part in step.slices if step.state is State.RUN else ():
            need = (step.stage.outside_rows(part.spec) or (None,))[0]
            pin = pins.pins.get(need.source) if need else None
            if need is None or pin is None or pin.revision is None:
                continue
            name = need.source.partition("@")[0]
            if need.source in here:
                continue
            if most is None or (hub.size(name, need.kind, pin.revision) or 0) <= most:
                with suppress(OSError):
                    here[need.source] = hub.fetch(name, need.kind, pin.revision)
    return here


def counted(
    loaded: LoadedRecipe,
    steps: Sequence[Step],
    here: Mapping[str, Path],
    first: int | None = None,
) -> tuple[dict[tuple[str, str], int], list[Check]]:
    """Count the rows that come from outside, by step and slice. Return also what is wrong with
    them: rows that cannot be read, slices without any, and answers to prompts that are not there.

    Only for steps that must run, and for files that can be read here: beside the recipe, or in
    `here` by the source or the name of their repo. Of these `first` rows are read at most (None:
    all), and of what a step takes in as many as show what it is; the rows of what has more are not
    counted.
    """
    counts: dict[tuple[str, str], int] = {}
    faults: list[Check] = []
    ids: dict[tuple[str, str], set[str]] = {}  # of prompts, by slice of prompts or answers
    answers = any(step.stage.from_ and step.stage.kind in _ANSWERS for step in steps)
    for step in steps:
        of_prompts = answers and isinstance(step.stage, Prompts)
        for part in step.slices if step.state is State.RUN or of_prompts else ():
            outside = step.stage.outside_rows(part.spec)
            if outside is None:
                continue
            need, view = outside
            local = is_file(need.source)
            name = need.source.partition("@")[0]
            path = loaded.file(need.source) if local else here.get(need.source, here.get(name))
            if path is None or (local and not path.is_file()):
                continue
            where = loaded.places.get(need.source, loaded.path.name)
            most = _ENOUGH if step.stage.from_ else None if local else first
            key, names = (step.name, part.spec.name), Counter[str]()
            try:
                rows = _outside_rows(step, part, view, path, need.source)
                names.update(row.get("prompt_id", "") for row in itertools.islice(rows, most))
            except FactoryError as error:
                if step.state is State.RUN:
                    faults.append(Check(where, "failed", error.what, error.fix))
                continue
            if most is None or names.total() < most:
                counts[key] = names.total()
            if key in counts or step.stage.from_:
                ids[key] = set(names)
    return counts, faults + _unasked(loaded, ids)


_ANSWERS = ("samples", "scores")
_ENOUGH = 1000  # rows of what a step takes in that are looked at before a run


def _outside_rows(step: Step, part: Slice, view: View, path: Path, source: str) -> Iterator[Row]:
    """Yield the rows that a slice will take from a file. Raises FactoryError."""
    stage, language = step.stage, str(part.spec.language)
    convert: Callable[[Row, str], Row | str] = lambda row, where: row  # noqa: E731
    if isinstance(stage, Prompts | Questions | Preferences):
        convert = stage.converter(source, language, DistinctIds())
    elif stage.from_:
        taken_in = external.converter(stage.kind, source, language, DistinctIds())
        unsaid = dict.fromkeys(
            ("detected_language", "chosen_language", "rejected_language"), language
        )  # detecting it takes most of the time, and changes nothing here
        convert = lambda row, where: taken_in(unsaid | row, where)  # noqa: E731
    outside = {str(other.spec.language): stage.outside_rows(other.spec) for other in step.slices}
    languages = [code for code, read in outside.items() if read and read[0].source == source]
    first = getattr(stage, "first", None)
    return view.converted_rows(
        path, language, convert, Counter(), name=source, languages=languages, first=first
    )


def _unasked(loaded: LoadedRecipe, ids: Mapping[tuple[str, str], set[str]]) -> list[Check]:
    """Return answers that steps take in whose prompts are others than those of the recipe."""
    findings = {}
    steps = loaded.recipe.steps()
    for stage, spec in loaded.recipe.slices():
        reads = [need for need in spec.needs if isinstance(need, StepInput)]
        prompts = {n.slice: ids.get((n.step, n.slice)) for n in reads if n.role == "prompts"}
        for need in reads:
            prompt_ids, answered = prompts.get(need.slice), ids.get((need.step, need.slice), set())
            if need.role not in _ANSWERS or not prompt_ids or answered <= prompt_ids:
                continue
            taken_in = steps[need.step].from_
            source = taken_in.source if taken_in else need.step
            findings[source, need.slice] = Check(
                f"stages.{need.step}",
                "failed",
                f"{stage.name} {need.slice}: {len(answered - prompt_ids)} of {len(answered)} "
                f"prompts that {source} answers are not among the recipe's own",
                "take the prompts from the same rows: prompts: "
                f"{{from: {source}, repeats: drop}}; or give both the same ids",
            )
    return list(findings.values())
