"""External rows or an external adapter in place of a step: read, checked, converted.

Reads scored samples as CroCo's scripts write them (`messages`, `reward_score`), TRL's preference
and prompt-completion datasets, UltraFeedback's format, and our own artifacts. Missing facts (which
model sampled an answer, why it ended) stay empty and are never invented.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from factory.artifacts import schemas, tables
from factory.artifacts.manifest import Rows
from factory.artifacts.tables import slice_directory
from factory.errors import InputError, nearest
from factory.language.detect import detect
from factory.language.languages import code_of
from factory.sampling import answers
from factory.stage.job import Job, Place
from factory.stage.outcome import Outcome
from factory.stage.preference_pairs import SIDES, read_number, read_pair
from factory.stage.readers import (
    BadRow,
    DistinctIds,
    Row,
    address,
    given_id,
    numeric,
)
from factory.stage.stage import Stage
from factory.training import adapters

_REWARD = ("reward", "reward_score", "score")
_FAILED = -999.0  # what CroCo's scripts write for a score that they could not read
Talk = list[dict[str, str]]


def take_in(stage: Stage, job: Job) -> Outcome:
    """Do the work of a step with `from:`. Raises InputError that names the column and the row."""
    assert stage.from_ is not None
    if stage.kind == "adapter":
        return _take_adapter(job)
    counts: dict[str, Rows] = {}
    alarms: list[str] = []
    languages: dict[Place, list[str]] = {}  # that are read from one source
    for spec in job.slices:
        languages.setdefault(job.place(spec, "source"), []).append(str(spec.language))
    for number, spec in enumerate(job.slices):
        place, language = job.place(spec, "source"), str(spec.language)
        name = place.name or place.path.name
        dropped: Counter[str] = Counter()
        ids = DistinctIds()
        output_rows = list(
            stage.from_.converted_rows(
                place.path,
                language,
                converter(stage.kind, name, language, ids),
                dropped,
                name=name,
                languages=languages[place],
            )
        )
        alarms += ids.alarms(name)
        table = schemas.from_rows(output_rows, stage.kind)
        tables.write_slice(slice_directory(job.out, spec.name), table)
        counts[spec.name] = Rows(
            into=len(output_rows) + dropped.total(), out=len(output_rows), dropped=dict(dropped)
        )
        job.progress(number + 1, len(job.slices), "languages")
    return Outcome(counts, determinism="exact", stats={"alarms": alarms} if alarms else {})


def converter(
    kind: str, source: str, language: str, ids: DistinctIds
) -> Callable[[Row, str], Row | str]:
    """Return a function that returns an external row as one of `kind`, or the reason to leave it
    out."""
    shape = _SHAPES[kind]
    draws: Counter[str] = Counter()  # how many answers a prompt has so far

    def convert(row: Row, where: str) -> Row | str:
        output = shape(row, where, source, language)
        if isinstance(output, str):
            return output
        output["language"] = output["prompt_language"] = language
        if kind in ("samples", "scores"):
            output["k"] = _number(row, "k", where, draws[output["prompt_id"]])
            draws[output["prompt_id"]] += 1
        else:
            output["id"] = ids(given_id({"id": row.get("id")}) or output["prompt_id"])
        checked = {name: output.get(name) for name in schemas.SCHEMAS[kind].names}
        _check_types(checked, kind, where)
        return checked

    return convert


_TYPES: Mapping[pa.DataType, tuple[type, str]] = {
    pa.string(): (str, "text"),
    pa.int64(): (int, "a whole number"),
    pa.float64(): (float, "a number"),
}


def _check_types(row: Row, kind: str, where: str) -> None:
    """Raise BadRow for a value that a column of `kind` does not hold."""
    for field in schemas.SCHEMAS[kind]:
        value = row[field.name]
        if value is None or field.type not in _TYPES:
            continue
        python_type, word = _TYPES[field.type]
        fits = isinstance(value, python_type) and not isinstance(value, bool)
        if not fits or (python_type is int and abs(value) >= 2**63):
            what = f"{field.name} {str(value)[:40]!r} is not {word}"
            raise BadRow(where, what, "fix that row", "wrong_type")


def _score(row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
    sample = answers.sample(row, where, source, language)
    name = next((name for name in _REWARD if name in row), None)
    if name is None:
        raise InputError(
            f"{where}: no column 'reward'{nearest('reward', row)}",
            f"set columns: {{reward: theirs}}; it has {', '.join(row)}",
        )
    value = numeric(row[name])
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{where}: {name} {value!r} is not a number", "fix that row")
    reward: Row
    if value is None:
        reward = {"reward": None, "status": "absent"}
    elif not math.isfinite(value):
        reward = {"reward": None, "status": "not_finite"}
    elif name == "reward_score" and value == _FAILED:
        reward = {"reward": None, "status": "failed"}
    else:
        reward = {"reward": float(value), "status": "ok"}
    return sample if isinstance(sample, str) else sample | reward


def _pair(row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
    pair = read_pair(row, where)
    if isinstance(pair, str):
        return pair
    output: Row = {
        "prompt_id": address(row, pair.prompt, source)["prompt_id"],
        "prompt": pair.prompt,
    }
    texts, scores = (pair.chosen, pair.rejected), pair.scores or (None, None)
    for side, text, score in zip(SIDES, texts, scores, strict=True):
        output[side] = [{"role": "assistant", "content": text}]
        label = row.get(f"{side}_language")
        code = code_of(label) if isinstance(label, str) else None
        output[f"{side}_language"] = code or label or detect(text) or "und"
        theirs = read_number(row, f"{side}_score", where)  # CroCo's: the reward, as it is
        stated = read_number(row, f"score_{side}", where)
        known = (value for value in (stated, score, theirs) if value is not None)
        output[f"score_{side}"] = next(known, None)
        reward = read_number(row, f"reward_{side}", where)
        output[f"reward_{side}"] = theirs if reward is None else reward
        for name in (f"{side}_k", f"{side}_tokens"):
            output[name] = _number(row, name, where, None)
    return output


def _completion(row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
    prompt, response = answers.conversation_of(row, where)
    if not response.strip():
        return "empty"
    return {
        "prompt_id": address(row, prompt, source)["prompt_id"],
        "prompt": prompt,
        "completion": [{"role": "assistant", "content": response}],
        "reward": next((read_number(row, name, where) for name in _REWARD if name in row), None),
        "k": _number(row, "k", where, None),
    }


_SHAPES: dict[str, Callable[[Mapping[str, Any], str, str, str], Row | str]] = {
    "samples": answers.sample,
    "scores": _score,
    "pairs": _pair,
    "sft": _completion,
}


def _number(row: Mapping[str, Any], name: str, where: str, default: int | None) -> int | None:
    value = numeric(row.get(name))
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: {name} {value!r} is not a whole number", "fix that row")
    return value


def _take_adapter(job: Job) -> Outcome:
    """Copy an adapter as it was published, with the base that it is for here by name."""
    [spec] = job.slices
    place, base = job.place(spec, "source"), job.place(spec, "base")
    named = adapters.read_config(place.path).get("base_model_name_or_path")
    if not (place.path / adapters.WEIGHTS).is_file():
        raise InputError(f"{place.name} holds no {adapters.WEIGHTS}", "pickles are not read")
    for file in place.path.rglob("*"):
        ours = file.name in ("README.md", "factory.json", "recipe.yaml", "recipe.lock.yaml")
        if file.is_file() and not ours and not file.name.startswith("."):
            to = job.out / file.relative_to(place.path)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
    if named != base.name:  # the same content under another name: see adapter_checks
        adapters.name_base(job.out, base.name, base.revision)
    return Outcome({spec.name: Rows(into=0, out=0)}, determinism="exact")
