"""Job scripts for sbatch, from a site and one job of a step. Pure but for the template; tokens
are no part of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from factory import __version__
from factory.artifacts.resources import shipped
from factory.slurm.site import Family, FamilyName, Site

Kind = Literal["fetch", "array", "whole", "seal"]

# Where there is no network, nobody may wait for one; nothing is reported to anybody.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class ScriptJob:
    """One job of a step: an array of `tasks`, the whole step, its seal, or the fetch before all.
    `engines` processes on a node share a task, each on `gpus` GPUs."""

    kind: Kind
    step: str
    name: str
    family: FamilyName
    record: Path  # the submission's directory: provisions, scripts, logs
    home: Path
    tasks: int = 1
    engines: int = 1
    gpus: int = 1
    served: bool = False  # it asks a model that runs elsewhere, which may want a key

    @property
    def file(self) -> str:
        """Stem of its script, logs and exit files."""
        return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', self.step).strip('-')}-{self.kind}"


def render(work: ScriptJob, site: Site) -> str:
    """Return the script. Raises RecipeError for a family that the site does not have."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    family = site.family(work.family)
    run_family = site.cpu if work.kind in ("seal", "fetch") else family  # these need no GPU
    environment = Environment(
        loader=FileSystemLoader(shipped("slurm")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    array = work.kind == "array"
    return environment.get_template("job.sh.j2").render(
        version=__version__,
        site=site,
        job={
            "name": work.name,
            "step": work.step,
            "what": _what(work),
            "log": work.record / "logs" / f"{work.file}-{'%A_%a' if array else '%j'}.log",
            "ends": work.record / "ends" / work.file,
            "secrets": site.secrets if work.kind == "fetch" or work.served else None,
            "meets": work.kind == "whole" and family.nodes > 1,
        },
        options=_options(site, run_family, work),
        setup=[*site.setup, *family.setup],
        environment=_environment(site, family, work),
        command=_command(site, family, run_family, work),
        requeue=site.limits.requeue if work.kind in ("array", "whole") else 0,
    )


def _what(work: ScriptJob) -> str:
    return {
        "fetch": "What every step reads, brought to the shared disk",
        "array": f"{work.step}: {work.tasks} tasks",
        "whole": work.step,
        "seal": f"{work.step}, when all its shards are there",
    }[work.kind]


def _options(site: Site, family: Family, work: ScriptJob) -> list[str]:
    """Return the options of sbatch, a line each."""
    gpus = family.gpus if work.kind in ("array", "whole") else 0
    # of sbatch's own: a seal works on one node, whatever its steps were spread over
    nodes = family.nodes if work.kind == "whole" else 1
    tasks = work.engines if work.kind == "array" else 1
    options = {
        "account": site.account,
        "partition": family.partition,
        "qos": family.qos,
        "time": family.time,
        "mem": family.memory,
        "nodes": nodes,
        "ntasks-per-node": tasks,
        # of the node's cores each engine gets its share
        "cpus-per-task": max(1, family.cpus // tasks) if family.cpus else None,
        "constraint": family.constraint,
    }
    lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
    if gpus:
        request = "--gpus-per-node=" if site.gpu_request == "gpus-per-node" else "--gres=gpu:"
        lines.append(f"{request}{gpus}")
    if family.exclusive:
        lines.append("--exclusive")
    if work.kind in ("array", "whole"):
        lines.append(f"--signal=B:USR1@{site.limits.warn}")
        lines.append("--requeue" if site.limits.requeue else "--no-requeue")
    else:
        lines.append("--no-requeue")
    return [*lines, *family.options]


def _environment(site: Site, family: Family, work: ScriptJob) -> dict[str, str]:
    offline = OFFLINE if work.kind != "fetch" else {"PYTHONUNBUFFERED": "1"}
    home = {"FACTORY_HOME": str(work.home)}
    variables = {**offline, **site.environment, **family.environment, **home}
    return {name: quoted(value) for name, value in variables.items()}


def quoted(value: str) -> str:
    """Quote a value for bash: `$NAME` is expanded on the node, commands are not run."""
    return '"' + re.sub(r'(["\\`]|\$\()', r"\\\1", value) + '"'


def _command(site: Site, family: Family, run_family: Family, work: ScriptJob) -> list[str]:
    """Return the command of each node or engine, a line for each part."""
    lines = []
    if work.kind == "array" and work.engines > 1:
        masks = family.masks(work.engines)
        bind = f" --cpu-bind=mask_cpu:{','.join(f'0x{m}' for m in masks)}" if masks else ""
        lines.append(f"srun --nodes=1 --ntasks={work.engines} --kill-on-bad-exit=0{bind}")
    elif work.kind == "whole" and family.nodes > 1:
        nodes = family.nodes
        lines.append(
            f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --kill-on-bad-exit=1"
        )
    if family.container is not None:
        gpus = run_family.gpus > 0 and work.kind in ("array", "whole")
        lines += container(site, family, [str(work.home)], gpus)
    words = ["task", str(work.record), work.step]
    options = {
        "fetch": ["--fetch"],
        "array": ["--engines", str(work.engines), "--gpus", str(work.gpus)],
        "whole": [],
        "seal": ["--seal"],
    }[work.kind]
    part = [f'--shard "$index/{work.tasks}"'] if work.kind == "array" else []
    return [*lines, " ".join([family.factory, *map(shlex.quote, words), *part, *options])]


def container(site: Site, family: Family, binds: Sequence[str], gpus: bool) -> list[str]:
    """Return the command that runs a program in a family's image, a line for each part."""
    flag = {"rocm": " --rocm", "cuda": " --nv", "none": ""}[site.gpu if gpus else "none"]
    all_binds = dict.fromkeys([*binds, *site.binds, *family.binds])
    bind_option = f" --bind {shlex.quote(','.join(all_binds))}" if all_binds else ""
    return [f"{site.runtime} exec{flag}{bind_option}", shlex.quote(str(family.container))]


def dependency(after: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the options for dependencies on jobs, by condition (afterok, afterany). A job whose
    condition cannot be met any more is cancelled."""
    conditions = [f"{condition}:{':'.join(jobs)}" for condition, jobs in after.items() if jobs]
    return (
        [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"] if conditions else []
    )
