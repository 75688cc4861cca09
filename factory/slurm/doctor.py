"""Whether a site is as its file says, as far as can be told from a login node, and in a job of a
minute for what cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from factory.errors import Check, WorkError
from factory.slurm.queue import call
from factory.slurm.script import container
from factory.slurm.site import Family, FamilyName, Site

Run = Callable[[Sequence[str]], str]

# What each family of stages imports on a node.
PACKAGES: dict[FamilyName, tuple[str, ...]] = {
    "generate": ("factory", "torch", "transformers", "vllm"),
    "train": ("factory", "torch", "transformers", "trl", "peft", "accelerate"),
    "euroeval": ("factory",),
    "cpu": ("factory", "torch", "transformers", "peft"),
}
_WHOSE = "look yourself: sacctmgr show associations user=$USER format=account"
_GPUS = "import torch; print(torch.cuda.device_count())"


def check(site: Site, home: Path, job: bool = False, run: Run = call) -> list[Check]:
    """A line for each thing that a submission needs. With `job`, each family is also given a node
    for a minute, to see whether packages and GPUs are there: that waits in the queue."""
    found = [
        *_commands(site),
        *_account(site, run),
        *_partitions(site, run),
        *_limits(site, run),
        *_images(site),
        *_secrets(site),
        _scratch(home, site),
    ]
    if job and not any(one.state == "failed" for one in found):
        found += [one for name, family in _families(site) for one in _job(site, name, family, run)]
    return found


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
        yield Check(
            name,
            "ok" if path else "failed",
            path or "not here",
            "" if path else "run this on a login node of the cluster",
        )
    if any(family.container for _, family in _families(site)) and not shutil.which(site.runtime):
        yield Check(
            site.runtime,
            "warning",
            "not on this node",
            "on many clusters only compute nodes have it: doctor --site NAME --job looks there; "
            "where a module brings it, put module load into setup:",
        )
    if not shutil.which("sacct"):
        yield Check("sacct", "warning", "not here", "factory status will know no cost")


def _account(site: Site, run: Run) -> Iterator[Check]:
    if site.account is None:
        return
    try:
        said = run(["sacctmgr", "--noheader", "--parsable2", "show", "associations",
                    f"user={os.environ.get('USER', '')}", "format=account"])  # fmt: skip
    except WorkError as error:
        yield Check("account", "warning", f"{site.account}, not looked up: {error.what}", _WHOSE)
        return
    mine = set(said.split())
    if site.account in mine:
        yield Check("account", "ok", site.account)
    else:
        has = ", ".join(sorted(mine)) or "none"
        yield Check("account", "failed", f"{site.account} is not yours", f"you have {has}")


def _partitions(site: Site, run: Run) -> Iterator[Check]:
    try:
        said = run(["sinfo", "--noheader", "--format=%R|%l|%G|%a"])
    except WorkError as error:
        wants = ", ".join(dict.fromkeys(family.partition for _, family in _families(site)))
        yield Check("partitions", "failed", f"{wants}, not looked up: {error.what}", error.fix)
        return
    there: dict[str, list[str]] = {}
    for line in said.splitlines():
        name, *facts = line.strip().split("|")
        there[name] = [*there.get(name, []), *facts]
    for name, family in _families(site):
        has = there.get(family.partition)
        if has is None:
            yield Check(
                f"{name}: partition", "failed", f"no {family.partition} here",
                f"there are {', '.join(sorted(there))}",
            )  # fmt: skip
        elif family.gpus and not any("gpu" in fact for fact in has):
            yield Check(
                f"{name}: partition", "failed", f"{family.partition} has no GPUs",
                "name another partition, or set gpus: 0",
            )  # fmt: skip
        else:
            yield Check(f"{name}: partition", "ok", f"{family.partition}, up to {has[0]}")


def _limits(site: Site, run: Run) -> Iterator[Check]:
    try:
        said = run(["scontrol", "show", "config"])
    except WorkError as error:
        yield Check(
            "limits.array", "warning", f"{site.limits.array}, not looked up: {error.what}",
            "look yourself: scontrol show config | grep MaxArraySize",
        )  # fmt: skip
        return
    for line in said.splitlines():
        if line.split("=")[0].strip() == "MaxArraySize":
            most = int(line.split("=")[1])
            fits = site.limits.array <= most
            yield Check(
                "limits.array", "ok" if fits else "failed",
                f"{site.limits.array}, and MaxArraySize is {most}",
                "" if fits else f"set limits.array to {most} or less",
            )  # fmt: skip


def _images(site: Site) -> Iterator[Check]:
    for name, family in _families(site):
        image = family.container
        if image is None:
            continue
        there = image.is_file() and os.access(image, os.R_OK)
        yield Check(
            f"{name}: container", "ok" if there else "failed", str(image),
            "" if there else _built(site, name, image),
        )  # fmt: skip


def _built(site: Site, name: FamilyName, image: Path) -> str:
    """How to come by an image that is not there."""
    if name == "euroeval":
        return (
            "an image with EuroEval's own environment (docs/euroeval.md); without that stage, none"
        )
    of = "train" if name == "cpu" else name
    return (
        f"where there is a network, from a checkout: {site.runtime} build {image.name} "
        f"slurm/containers/{of}.def; then lay it at {image.parent}/"
    )


def _secrets(site: Site) -> Iterator[Check]:
    if site.secrets is None:
        return
    try:
        mode = site.secrets.stat().st_mode & 0o777
    except OSError:
        yield Check("secrets", "failed", f"no {site.secrets}", "write it, then chmod 600")
        return
    state = mode == 0o600
    fix = "" if state else f"chmod 600 {site.secrets}"
    yield Check("secrets", "ok" if state else "failed", f"{site.secrets}, mode {mode:o}", fix)


def _scratch(home: Path, site: Site) -> Check:
    """Whether state can be written, and locks hold there: tasks on several nodes rely on them."""
    import fcntl

    if site.scratch is not None and site.scratch not in home.parents:
        return Check(
            "home", "warning", f"{home} is not below {site.scratch}",
            f"export FACTORY_HOME={site.scratch}/…/factory: nodes must see it, and it grows",
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
    """What a node of a family has, seen in a job."""
    python = f"{Path(family.factory).parent}/python" if "/" in family.factory else "python3"
    code = "; ".join(f"import {package}" for package in PACKAGES[name])
    gpus = family.gpus
    inside = " ".join(container(site, family, [], gpus > 0)) if family.container else ""
    lines = [*site.setup, *family.setup, f'{inside} {python} -c "{code}"']
    if gpus:
        lines.append(f'{inside} {python} -c "{_GPUS}"')
    asked = {"account": site.account, "partition": family.partition, "qos": family.qos}
    request = "--gpus-per-node=" if site.gpu_request == "gpus-per-node" else "--gres=gpu:"
    command = [
        "srun", "--time=5", "--ntasks=1", "--quiet",
        *(f"--{key}={value}" for key, value in asked.items() if value),
        *([f"{request}{gpus}"] if gpus else []),
        "bash", "-lc", "set -e\n" + "\n".join(lines),
    ]  # fmt: skip
    try:
        said = run(command).split()
    except (WorkError, subprocess.SubprocessError) as error:
        what = error.what if isinstance(error, WorkError) else str(error)
        yield Check(f"{name}: job", "failed", what, "run that line in a job of your own and look")
        return
    yield Check(f"{name}: packages", "ok", ", ".join(PACKAGES[name]))
    if gpus:
        seen = int(said[-1]) if said and said[-1].isdecimal() else 0
        yield Check(
            f"{name}: GPUs", "ok" if seen == gpus else "failed", f"{seen} of {gpus} are seen",
            "" if seen == gpus else "look at gpu:, gpu_request: and the container's ROCm or CUDA",
        )  # fmt: skip
