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
# Where libraries keep compiled kernels, below the site's `caches`: on a shared disk many processes
# would wait for one lock.
CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "VLLM_CACHE_ROOT": "vllm",
    "MIOPEN_USER_DB_PATH": "miopen",
    "MIOPEN_CUSTOM_CACHE_DIR": "miopen",
}


@dataclass(frozen=True)
class ScriptJob:
    """One job of a step: an array of `tasks`, the whole step, its seal, or the fetch before all.
    `engines` processes on a node share a task, each on `gpus` GPUs. `minutes`: time to ask for,
    where less than the family's is enough."""

    kind: Kind
    step: str
    name: str
    family: FamilyName
    record: Path  # the submission's directory: provisions, scripts, logs
    home: Path
    tasks: int = 1
    engines: int = 1
    gpus: int = 0
    minutes: int | None = None
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
    return environment.get_template("job.sh.j2").render(
        version=__version__,
        site=site,
        job={
            "name": work.name,
            "step": work.step,
            "what": _what(work),
            "log": _log(work),
            "ends": work.record / "ends" / work.file,
            "secrets": site.secrets if work.kind == "fetch" or work.served else None,
            "meets": work.kind == "whole" and family.nodes > 1,
            "caches": quoted(site.caches) if site.caches and _works(work) else None,
            "each_node": _on_each_node(work, family),
        },
        options=_options(site, run_family, work),
        setup=[*site.setup, *family.setup],
        environment=_environment(site, family, work),
        command=_command(site, family, run_family, work),
        requeue=site.limits.requeue if work.kind in ("array", "whole") else 0,
    )


def _works(work: ScriptJob) -> bool:
    """Return whether a job does the work of a step, on its GPUs."""
    return work.kind in ("array", "whole")


def _log(work: ScriptJob) -> str:
    """Return the path of a log as sbatch reads it, which takes % for the start of a pattern."""
    directory = re.sub(r'(["\\])', r"\\\1", str(work.record / "logs")).replace("%", "%%")
    return f'"{directory}/{work.file}-{"%A_%a" if work.kind == "array" else "%j"}.log"'


def _on_each_node(work: ScriptJob, family: Family) -> str:
    """Return the start of a command that runs once on each node of a job."""
    if work.kind != "whole" or family.nodes == 1:
        return ""
    return f"srun --nodes={family.nodes} --ntasks={family.nodes} --ntasks-per-node=1 "


def _what(work: ScriptJob) -> str:
    return {
        "fetch": "What every step reads, brought to the shared disk",
        "array": f"{work.step}: {work.tasks} tasks",
        "whole": work.step,
        "seal": f"{work.step}, when all its shards are there",
    }[work.kind]


def _options(site: Site, family: Family, work: ScriptJob) -> list[str]:
    """Return the options of sbatch, a line each."""
    gpus = family.gpus if _works(work) else 0
    # of sbatch's own: a seal works on one node, whatever its steps were spread over
    nodes = family.nodes if work.kind == "whole" else 1
    tasks = work.engines if work.kind == "array" else 1
    options = {
        "account": site.account,
        "partition": family.partition,
        "qos": family.qos,
        "time": work.minutes or family.time,
        "mem": family.memory,
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": family.cores(tasks),
        "constraint": family.constraint,
    }
    lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
    if gpus:
        request = "--gpus-per-node=" if site.gpu_request == "gpus-per-node" else "--gres=gpu:"
        lines.append(f"{request}{gpus}")
    if family.exclusive:
        lines.append("--exclusive")
    if _works(work):
        lines.append(f"--signal=B:USR1@{site.limits.warn}")
        lines.append("--requeue" if site.limits.requeue else "--no-requeue")
    else:
        lines.append("--no-requeue")
    return [*lines, *family.options]


def _environment(site: Site, family: Family, work: ScriptJob) -> dict[str, str]:
    offline = OFFLINE if work.kind != "fetch" else {"PYTHONUNBUFFERED": "1"}
    caches = {name: f"{site.caches}/{folder}" for name, folder in CACHES.items()}
    variables = {**offline, **(caches if site.caches and _works(work) else {})}
    variables |= {**site.environment, **family.environment}
    exported = {name: quoted(value) for name, value in variables.items()}
    return {**exported, "FACTORY_HOME": shlex.quote(str(work.home))}


def quoted(value: str) -> str:
    """Quote a value for bash: `$NAME` is expanded on the node, commands are not run."""
    return '"' + re.sub(r'(["\\`]|\$\()', r"\\\1", value) + '"'


def _command(site: Site, family: Family, run_family: Family, work: ScriptJob) -> list[str]:
    """Return the command of each node or engine, a line for each part."""
    lines = []
    if work.kind == "array" and work.engines > 1:
        masks = family.masks(work.engines)
        bind = f" --cpu-bind=mask_cpu:{','.join(f'0x{m}' for m in masks)}" if masks else ""
        cores = _cores(family, work.engines)
        lines.append(f"srun --nodes=1 --ntasks={work.engines}{cores} --kill-on-bad-exit=0{bind}")
    elif each_node := _on_each_node(work, family):
        lines.append(f"{each_node}{_cores(family, 1).strip()} --kill-on-bad-exit=1")
    if family.container is not None:
        gpus = run_family.gpus > 0 and _works(work)
        lines += container(site, family, [str(work.home)], gpus)
    words = ["task", str(work.record), work.step]
    options = {
        "fetch": ["--fetch"],
        "array": ["--engines", str(work.engines), "--gpus", str(work.gpus)],
        "whole": ["--gpus", str(work.gpus)] if work.gpus else [],
        "seal": ["--seal"],
    }[work.kind]
    part = [f'--shard "$index/{work.tasks}"'] if work.kind == "array" else []
    return [*lines, " ".join([*map(shlex.quote, [family.factory, *words]), *part, *options])]


def _cores(family: Family, processes: int) -> str:
    """Return srun's option for the cores of each process: from SLURM 22.05 on it need not take that
    of sbatch."""
    cores = family.cores(processes)
    return f" --cpus-per-task={cores}" if cores else ""


def container(site: Site, family: Family, binds: Sequence[str], gpus: bool) -> list[str]:
    """Return the command that runs a program in a family's image, a line for each part."""
    by_vendor = {"rocm": ("--rocm",), "cuda": ("--nv",), "none": ()}[site.gpu]
    options = site.gpu_options if site.gpu_options is not None else by_vendor
    flag = "".join(f" {shlex.quote(option)}" for option in options if gpus)
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
