"""The directory that EuroEval runs in: everything it would fetch lies where it looks first."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from factory.artifacts.hashing import content_digest, file_sha256
from factory.errors import InputError
from factory.evaluation.euroeval import own as owns
from factory.evaluation.euroeval.environment import INSIDE
from factory.evaluation.euroeval.own import OwnBenchmark
from factory.evaluation.euroeval.suites import Benchmark, Version, registry, scripts

RESULTS = "euroeval_benchmark_results.jsonl"  # EuroEval has no option for it
CUSTOM = "custom_datasets.py"  # EuroEval looks for it where it runs
MODEL = "model"  # what the model is called in it, whoever it is
_DATA = (".parquet", ".csv", ".jsonl", ".json")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
           "test": "test"}  # fmt: skip
_SPLIT = re.compile(rf"(?:^|[/._-])({'|'.join(_SPLITS)})(?=[/._-]|$)")


def prepare(
    directory: Path,
    datasets: Mapping[str, Path],
    own: Mapping[str, OwnBenchmark],
    language: str,
    version: Version,
) -> None:
    """Put the data of these benchmarks and the metric scripts they need into `directory`; of
    benchmarks of one's `own` what EuroEval has to know of them too.

    A run that was cut off is gone on with: EuroEval keeps a model's answers beside the model.
    Raises InputError for data that it could not read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    benchmarks, described = [], []
    for name, source in datasets.items():
        if name in own:
            to = directory / "own" / name
            shutil.rmtree(to, ignore_errors=True)
            described.append(owns.place(own[name], source, to, language, version))
            benchmarks.append(own[name].benchmark(language, version))
            continue
        benchmarks.append(registry(version)[name])
        place_dataset(source, directory / benchmarks[-1].source, name)
    if described:
        (directory / owns.FILE).write_text(json.dumps(described), encoding="utf-8")
        shutil.copyfile(INSIDE / CUSTOM, directory / CUSTOM)
    for script in scripts(benchmarks):
        to = directory / script / f"{script}.py"
        to.parent.mkdir(exist_ok=True)
        shutil.copyfile(metric(script), to)


def metric(script: str) -> Path:
    """Return our script for one of Hugging Face's metrics."""
    return INSIDE / "metrics" / f"{script}.py"


def unshipped(benchmarks: Iterable[Benchmark]) -> list[str]:
    """Return the metric scripts that these benchmarks need and we do not have."""
    return [script for script in scripts(benchmarks) if not metric(script).exists()]


def place_dataset(source: Path, to: Path, name: str) -> None:
    """Lay a dataset as EuroEval finds it without a hub: files, and a README that names its splits
    (by file names alone, `val` would become `validation`)."""
    if to.exists():
        shutil.rmtree(to)
    for path in sorted(source.rglob("*")):
        if path.is_file() and ".git" not in path.parts:
            target = to / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    readme = to / "README.md"
    if not readme.exists() or not _names_splits(readme.read_text(encoding="utf-8")):
        readme.write_text(_splits(to, name), encoding="utf-8")


def digest(source: Path) -> str:
    """Return the digest of a dataset on disk, the same wherever it lies."""
    files = [path for path in source.rglob("*") if path.is_file()]
    named = [(path.relative_to(source).as_posix(), path) for path in files]
    return content_digest((name, file_sha256(path)) for name, path in named)


def _names_splits(readme: str) -> bool:
    """Return whether a card's metadata says which file is which split."""
    head = readme.split("\n---", 1)[0] if readme.startswith("---") else ""
    return "\nconfigs:" in head and "data_files:" in head


def _splits(directory: Path, name: str) -> str:
    by_split: dict[str, list[str]] = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory).as_posix()
        if path.suffix in _DATA and (named := _SPLIT.search(relative)):
            by_split.setdefault(_SPLITS[named.group(1)], []).append(relative)
    if "test" not in by_split and "val" not in by_split:
        raise InputError(
            f"the data of {name} has neither a test nor a val split",
            "name a dataset in EuroEval's form under sources:",
        )
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, files in by_split.items():
        lines += [f"  - split: {split}", "    path:", *(f"    - {file}" for file in files)]
    return "\n".join([*lines, "---", ""])
