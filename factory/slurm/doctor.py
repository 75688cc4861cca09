"""Checks of a site from a login node, and of its nodes in a job of a minute."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from factory.artifacts.resources import shipped
from factory.errors import Check, WorkError
from factory.slurm.queue import call
from factory.slurm.script import container
from factory.slurm.site import Family, FamilyName, Site

Run = Callable[[Sequence[str]], str]

# What each family of stages imports on a node.
PACKAGES: dict[FamilyName, tuple[str, ...]] = {
    "generate": ("factory", "torch", "transformers", "vllm"),
    "train": ("factory", "torch", "transformers", "trl", "peft", "accelerate"),
    "euroeval": ("factory", "torch", "transformers", "peft"),  # merges adapters
    "cpu": ("factory", "torch", "transformers", "peft"),
}
_WHOSE = "check by hand: sacctmgr show associations user=$USER format=account"
_GPUS = "import torch; print(torch.cuda.device_count())"
# EuroEval has a Python of its own, and the factory beside it need not have torch.
_GPUS_OF_EUROEVAL = (
    "import subprocess; from factory.evaluation.euroeval.environment import python; "
    f"subprocess.run([python('vllm'), '-c', '{_GPUS}'], check=True)"
)


def check(site: Site, home: Path, job: bool = False, run: Run = call) -> list[Check]:
    """Return a line for each thing that a submission needs. With `job`, each family also gets a
    node for a minute, to check packages and GPUs: that job waits in the queue."""
    results = [
        *_commands(site),
        *_account(site, run),
        *_partitions(site, run),
        *_limits(site, run),
        *_images(site),
        *_secrets(site),
        _scratch(home, site),
    ]
    if job and not any(result.state == "failed" for result in results):
        results += [
            result for name, family in _families(site) for result in _job(site, name, family, run)
        ]
    return results


def _families(site: Site) -> list[tuple[FamilyName, Family]]:
    named: list[tuple[FamilyName, Family | None]] = [
        ("generate", site.generate),
        ("train", site.train),
        ("euroeval", site.euroeval),
        ("cpu", site.cpu),
    ]
    return [(name, family) for name, family in named if family is not None]


def _commands(site: Site) -> Iterator[Check]:
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        path = shutil.which(name)
        fix = "run this on a login node of the cluster"
        yield Check.of(name, path is not None, path or "not here", fix)
    if any(family.container for _, family in _families(site)) and not shutil.which(site.runtime):
        yield Check(
            site.runtime,
            "warning",
            "not on this node",
            "on many clusters only compute nodes have it: doctor --site NAME --job looks there; "
            "where a module brings it, put module load into setup:",
        )
    if not shutil.which("sacct"):
        yield Check("sacct", "warning", "not here", "factory status shows no GPU-hours")


def _account(site: Site, run: Run) -> Iterator[Check]:
    if site.account is None:
        return
    try:
        output = run(["sacctmgr", "--noheader", "--parsable2", "show", "associations",
                    f"user={os.environ.get('USER', '')}", "format=account"])  # fmt: skip
    except WorkError as error:
        yield Check("account", "warning", f"{site.account}, not looked up: {error.what}", _WHOSE)
        return
    accounts = set(output.split())
    known = site.account in accounts
    names = ", ".join(sorted(accounts)) or "none"
    account = site.account if known else f"{site.account} is not yours"
    yield Check.of("account", known, account, f"you have {names}")


def _partitions(site: Site, run: Run) -> Iterator[Check]:
    try:
        output = run(["sinfo", "--noheader", "--format=%R|%l|%G|%a"])
    except WorkError as error:
        names = ", ".join(dict.fromkeys(family.partition for _, family in _families(site)))
        yield Check("partitions", "failed", f"{names}, not looked up: {error.what}", error.fix)
        return
    partitions: dict[str, list[str]] = {}
    for line in output.splitlines():
        name, *columns = line.strip().split("|")
        partitions[name] = [*partitions.get(name, []), *columns]
    for name, family in _families(site):
        facts = partitions.get(family.partition)
        if facts is None:
            yield Check(
                f"{name}: partition", "failed", f"no {family.partition} here",
                f"there are {', '.join(sorted(partitions))}",
            )  # fmt: skip
        elif family.gpus and not any("gpu" in fact for fact in facts):
            yield Check(
                f"{name}: partition", "failed", f"{family.partition} has no GPUs",
                "name another partition, or set gpus: 0",
            )  # fmt: skip
        else:
            yield Check(f"{name}: partition", "ok", f"{family.partition}, up to {facts[0]}")


def _limits(site: Site, run: Run) -> Iterator[Check]:
    try:
        output = run(["scontrol", "show", "config"])
    except WorkError as error:
        yield Check(
            "limits.array", "warning", f"{site.limits.array}, not looked up: {error.what}",
            "check by hand: scontrol show config | grep MaxArraySize",
        )  # fmt: skip
        return
    for line in output.splitlines():
        if line.split("=")[0].strip() == "MaxArraySize":
            array_max = int(line.split("=")[1])
            yield Check.of(
                "limits.array", site.limits.array <= array_max,
                f"{site.limits.array}, and MaxArraySize is {array_max}",
                f"set limits.array to {array_max} or less",
            )  # fmt: skip


def _images(site: Site) -> Iterator[Check]:
    for name, family in _families(site):
        image = family.container
        if image is None:
            continue
        readable = image.is_file() and os.access(image, os.R_OK)
        yield Check.of(f"{name}: container", readable, str(image), _built(site, name, image))


def _built(site: Site, name: FamilyName, image: Path) -> str:
    """Return the command that builds a missing image, from the recipe of its family and the bases
    of that site, or else of its GPUs."""
    of = "train" if name == "cpu" else name
    own = shipped(f"slurm/containers/{site.name}.args").is_file()
    bases = site.name if own else "rocm" if site.gpu == "rocm" else "cuda"
    blank = "IMAGE.sif" in shipped(f"slurm/containers/{bases}.args").read_text(encoding="utf-8")
    named = f"write the names of your images into {bases}.args; then, " if blank else ""
    return (
        f"{named}where there is a network, from a checkout: pip wheel --no-deps -w dist . && "
        f"{site.runtime} build --build-arg-file slurm/containers/{bases}.args {image.name} "
        f"slurm/containers/{of}.def; then copy it to {image.parent}/"
    )


def _secrets(site: Site) -> Iterator[Check]:
    if site.secrets is None:
        return
    try:
        mode = site.secrets.stat().st_mode & 0o777
    except OSError:
        yield Check("secrets", "failed", f"no {site.secrets}", "write it, then chmod 600")
        return
    seen, fix = f"{site.secrets}, mode {mode:o}", f"chmod 600 {site.secrets}"
    yield Check.of("secrets", mode == 0o600, seen, fix)


def _scratch(home: Path, site: Site) -> Check:
    """Check that state can be written and locks hold: tasks on several nodes rely on them."""
    import fcntl

    if site.scratch is not None and site.scratch not in home.parents:
        return Check(
            "home", "warning", f"{home} is not below {site.scratch}",
            f"export FACTORY_HOME={site.scratch}/…/factory: nodes must reach it, and it grows",
        )  # fmt: skip
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / f".probe-{os.getpid()}"
        with probe.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        probe.unlink()
    except OSError as error:
        return Check(
            "home", "failed", f"{home}: {error}",
            "set FACTORY_HOME to a shared disk that can lock files (Lustre: mounted with flock)",
        )  # fmt: skip
    free = shutil.disk_usage(home).free // 2**30
    return Check("home", "ok", f"{home}, {free} GB free")


def _job(site: Site, name: FamilyName, family: Family, run: Run) -> Iterator[Check]:
    """Check the packages and GPUs of a node of a family, in a job."""
    python = f"{Path(family.factory).parent}/python" if "/" in family.factory else "python3"
    code = "; ".join(f"import {package}" for package in PACKAGES[name])
    gpus = family.gpus
    inside = " ".join(container(site, family, [], gpus > 0)) if family.container else ""
    start = f"{inside} {shlex.quote(python)} -c"
    lines = [*site.setup, *family.setup, f"{start} {shlex.quote(code)}"]
    if gpus:
        count = _GPUS_OF_EUROEVAL if name == "euroeval" else _GPUS
        lines.append(f"{start} {shlex.quote(count)}")
    options = {"account": site.account, "partition": family.partition, "qos": family.qos}
    request = "--gpus-per-node=" if site.gpu_request == "gpus-per-node" else "--gres=gpu:"
    command = [
        "srun", "--time=5", "--ntasks=1", "--quiet",
        *(f"--{key}={value}" for key, value in options.items() if value),
        *([f"{request}{gpus}"] if gpus else []),
        "bash", "-lc", "set -e\n" + "\n".join(lines),
    ]  # fmt: skip
    try:
        output = run(command).split()
    except (WorkError, subprocess.SubprocessError) as error:
        what = error.what if isinstance(error, WorkError) else str(error)
        yield Check(f"{name}: job", "failed", what, "run that command in a job of your own")
        return
    yield Check(f"{name}: packages", "ok", ", ".join(PACKAGES[name]))
    if gpus:
        n_gpus = int(output[-1]) if output and output[-1].isdecimal() else 0
        fix = "check gpu:, gpu_request: and the container's ROCm or CUDA"
        yield Check.of(f"{name}: GPUs", n_gpus == gpus, f"{n_gpus} of {gpus} visible", fix)
