"""A site: one cluster, in one YAML file.

It holds the resources of each family of stages, the cluster's limits, and the settings of a job
script. Nothing here changes the results.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from factory import config
from factory.artifacts.resources import shipped
from factory.config import Knobs
from factory.engines.choose import EngineKnobs
from factory.errors import RecipeError, nearest
from factory.planning.recipe import explain, merge
from factory.stage.stage import Stage
from factory.training.settings import Running

FamilyName = Literal["generate", "train", "euroeval", "cpu"]
_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY", re.IGNORECASE)


class TaskLimits(Knobs):
    """Limits of the cluster. `array`: tasks in one array (its MaxArraySize; more are submitted
    as several arrays). `at_once`: tasks of a step that may run at the same time. `submitted`:
    jobs a user may have in the queue, each task of an array counted. `requeue`: how often a job
    that runs out of time requeues itself; 0 where jobs may not. `warn`: seconds before its time
    limit at which a job gets a signal; enough for a shard or a checkpoint."""

    array: int = Field(1000, ge=1)
    at_once: int | None = Field(None, ge=1)
    submitted: int | None = Field(None, ge=1)
    requeue: int = Field(5, ge=0)
    warn: int = Field(300, ge=10)


class Shell(Knobs):
    """Shell commands before the factory starts. `setup`: lines of bash, such as `module load`;
    `environment`: exported variables, `$NAME` is expanded on the node; `binds`: directories
    bound into a container beside the factory's home."""

    setup: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    binds: tuple[str, ...] = ()

    @field_validator("environment", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if not _VARIABLE.fullmatch(str(name)):
                raise ValueError(f"{name!r} is not a variable name")
            if _SECRET.search(str(name)):
                raise ValueError(
                    f"{name} would be readable in every script: put it into the file of secrets:"
                )
        return value


class Family(Shell):
    """Resources of one family of stages: `gpus` on each of `nodes`, or the whole node if
    `exclusive`. `container` is an image file; without it, `factory` runs on the node itself.
    `cpu_masks`: for each GPU of a whole node, in order, the nearest cores (hexadecimal). `tasks`
    is the most tasks of a step, `shards` the shards for each engine of a task."""

    partition: str
    time: str
    qos: str | None = None
    memory: str | None = None
    nodes: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)
    cpus: int | None = Field(None, ge=1)
    exclusive: bool = False
    constraint: str | None = None
    options: tuple[str, ...] = ()  # more lines for sbatch, such as --reservation=name
    container: Path | None = None
    factory: str = "factory"
    cpu_masks: tuple[str, ...] = ()
    tasks: int = Field(16, ge=1)
    shards: int = Field(4, ge=1)

    @field_validator("time")
    @classmethod
    def _a_time(cls, value: str) -> str:
        if not _TIME.fullmatch(value):
            raise ValueError("write minutes, hours:minutes:seconds or days-hours:minutes:seconds")
        return value

    @field_validator("memory")
    @classmethod
    def _an_amount(cls, value: str | None) -> str | None:
        if value is not None and not _MEMORY.fullmatch(value):
            raise ValueError("write an amount such as 480G; 0 asks for all of a node")
        return value

    @field_validator("cpu_masks")
    @classmethod
    def _masks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for mask in value:
            if not re.fullmatch(r"[0-9a-f]+", mask):
                raise ValueError(f"{mask!r} is not a hexadecimal mask")
        return value

    @model_validator(mode="after")
    def _a_mask_each(self) -> Family:
        if self.cpu_masks and len(self.cpu_masks) != self.gpus:
            raise ValueError(f"{len(self.cpu_masks)} cpu_masks for {self.gpus} gpus")
        return self

    @property
    def minutes(self) -> int:
        """Return `time` in minutes, rounded up."""
        days, _, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if not days and len(parts) < 3:  # minutes[:seconds]; after days and else hours come first
            parts.insert(0, 0)
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)

    def cores(self, processes: int) -> int | None:
        """Return the cores of each of so many processes on a node; None without `cpus`."""
        return max(1, self.cpus // processes) if self.cpus else None

    def masks(self, engines: int) -> list[str]:
        """Return the cores near the GPUs of each engine on a node; none where the site has no
        masks, or the engines do not divide its GPUs evenly."""
        per_engine, remainder = divmod(len(self.cpu_masks), engines)
        if remainder or not per_engine:
            return []
        groups = (self.cpu_masks[n * per_engine : (n + 1) * per_engine] for n in range(engines))
        masks = []
        for group in groups:
            cores = 0
            for mask in group:
                cores |= int(mask, 16)
            masks.append(f"{cores:x}")
        return masks


class Site(Shell):
    """A cluster. Its own `setup`, `environment` and `binds` go before those of a family."""

    name: str
    description: str = ""
    account: str | None = None
    gpu: Literal["rocm", "cuda", "none"] = "none"
    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    runtime: Literal["singularity", "apptainer"] = "singularity"
    # of `runtime exec` where a job has GPUs; by default --rocm or --nv, by `gpu`
    gpu_options: tuple[str, ...] | None = None
    # A directory of a job for caches of compiled kernels on each node, removed when the job ends
    caches: str | None = None
    network: Literal["login", "job"] = "login"  # where files are laid on the shared disk
    # A file of 0600 with NAME=value lines, for that job and for one that asks a served model
    secrets: Path | None = None
    scratch: Path | None = None  # where the factory's home should lie; doctor looks at it
    limits: TaskLimits = TaskLimits()
    generate: Family
    train: Family
    euroeval: Family | None = None
    cpu: Family

    @field_validator("caches")
    @classmethod
    def _of_one_job(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"/.*\$\{?SLURM_JOB_ID\b.*", value):
            raise ValueError(
                "write an absolute path with $SLURM_JOB_ID in it: it is removed with its job"
            )
        return value

    def family(self, name: FamilyName) -> Family:
        """Return a family's resources. Raises RecipeError for one that the site does not have."""
        family: Family | None = getattr(self, name)
        if family is None:
            raise RecipeError(
                f"the site {self.name} has no resources for {name}", f"add {name}: to its file"
            )
        return family

    def differs(self, name: FamilyName, variables: Sequence[str]) -> bool:
        """Return whether tasks of a family may have another disk, another factory or other
        values of these variables than the login node."""
        family = self.family(name)
        if family.container is not None or family.factory != "factory":
            return True
        return any(self.says(name, variable) for variable in variables)

    def says(self, name: FamilyName, variable: str) -> bool:
        """Return whether tasks of a family get this variable."""
        family = self.family(name)
        text = "\n".join((*self.setup, *family.setup, *self.environment, *family.environment))
        return variable in text


def family_of(stage: Stage, served: bool = False) -> FamilyName:
    """Return the family whose resources a stage uses; `served`: its model runs on a server
    elsewhere."""
    if stage.name == "euroeval":
        return "euroeval"
    if stage.from_ is not None or served:
        return "cpu"
    if isinstance(stage.how, EngineKnobs):
        return "generate"
    return "train" if isinstance(stage.how, Running) else "cpu"


def places(home: Path) -> list[Path]:
    """Return the directories with sites, in order of search."""
    return [Path("sites"), home / "sites", shipped("slurm/sites")]


def find(name: str, home: Path) -> Path:
    """Return the file for a path or a name. Raises RecipeError."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(f"no site at {name}", "check the path")
        return path
    sites: dict[str, Path] = {}
    for place in places(home):
        for file in sorted(place.glob("*.yaml")):
            sites.setdefault(file.stem, file)
    if name not in sites:
        raise RecipeError(
            f"no site called {name!r}{nearest(name, sites)}",
            f"give a path to a .yaml file, or one of {', '.join(sorted(sites))}",
        )
    return sites[name]


def load(name: str, home: Path) -> Site:
    """Load the site at a path or of a name; `extends:` names the site that it changes. Raises
    RecipeError with the line and the nearest valid key."""
    path = find(name, home)
    document = _read(path, home, ())
    _fill_in(document)
    document.data.setdefault("name", path.stem)
    try:
        return Site.model_validate(document.data)
    except ValidationError as error:
        raise explain(error, document, Site, "the site") from None


def _read(path: Path, home: Path, chain: tuple[Path, ...]) -> config.Document:
    if path.resolve() in chain:
        raise RecipeError(f"{path} extends itself", "remove extends: from one of them")
    document = config.parse(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(document.data, dict):
        raise RecipeError(f"{path} is not a site file", "start from one of slurm/sites/")
    if "extends" not in document.data:
        return document
    parent = find(str(document.data.pop("extends")), home)
    base = _read(parent, home, (*chain, path.resolve()))
    merged = merge(base.data, document.data)
    return config.Document(merged, {**base.places, **document.places})


def _fill_in(document: config.Document) -> None:
    """Expand `$NAME` in values that are needed at submission, not on a node. Raises RecipeError
    for a variable that is not set."""

    def expand(value: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(value, dict):
            return {
                key: item
                if key in ("environment", "setup", "caches")
                else expand(item, (*path, key))
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [expand(item, (*path, number)) for number, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        full = os.path.expanduser(os.path.expandvars(value))  # noqa: PTH111  (also in binds)
        if unset := re.search(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)", full):
            raise RecipeError(
                f"{document.place(path)}: {unset[1]} is not set",
                f"export {unset[1]}=…, or write the value into a site of your own",
            )
        return full

    document.data = expand(document.data, ())
