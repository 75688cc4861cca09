"""Build an image of slurm/containers for real, and submit the smoke recipe to run in it.

    python -m tools.containers DIRECTORY [--volume PATH]…

For a machine without GPUs, as root, with Debian's debootstrap, podman, runc and SLURM. The base is
Debian's own with torch for the CPU in /opt/venv, where LUMI's images have theirs. podman runs the
script of train.def over it, and a stand-in of `singularity exec` runs the image for each task of a
SLURM of two nodes. So the lock, PATH, `pip check` and the whole way of a submission are tried in an
image; the real bases and GPUs are not. `--volume` names what pip needs of this machine: settings,
wheels. Variables of pip are passed on, such as PIP_EXTRA_INDEX_URL for a torch without CUDA.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# torch has this in every build; torch.version.hip and cuda are what the shipped bases are held to
VALUES = {"bootstrap": "docker", "train": "localhost/base", "gpu": "__version__"}
BASE = """
FROM scratch
ADD base.tar /
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --quiet --no-cache-dir {packages}
"""
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
generate: {{{each}, tasks: 2, shards: 1}}
train: {{{each}}}
cpu: {{{each}}}
"""
EACH = "partition: standard-g, time: '1:00:00', cpus: 1, container: /train.sif"


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


def base(directory: Path, volumes: list[str]) -> None:
    """Make the base: Debian with Python, and torch in /opt/venv."""
    context = directory / "base"
    context.mkdir(parents=True, exist_ok=True)
    if not (context / "base.tar").exists():
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates",
             "bookworm", directory / "os"],
            check=True,
        )  # fmt: skip
        subprocess.run(
            ["tar", "-C", directory / "os", "--exclude=./proc/*", "--exclude=./sys/*",
             "--exclude=./dev/*", "-cf", context / "base.tar", "."],
            check=True,
        )  # fmt: skip
        shutil.rmtree(directory / "os")
    tested = (ROOT / "requirements/tested.txt").read_text()
    packages = " ".join(re.findall(r"^(?:torch|numpy)==.*", tested, re.MULTILINE))
    (context / "Containerfile").write_text(BASE.format(packages=packages))
    build(directory, context, "base", volumes)


def build(directory: Path, context: Path, name: str, volumes: list[str]) -> None:
    """Build an image from a Containerfile, without a container of its own for each line."""
    options = [f"--volume={volume}:{volume}" for volume in volumes]
    settings = [f"--env={key}={os.environ[key]}" for key in os.environ if key.startswith("PIP_")]
    subprocess.run(
        [*podman(directory), "build", "--isolation=chroot", "--network=host", "--quiet", *options,
         *settings, f"--tag={name}", context],
        check=True,
    )  # fmt: skip


def image(directory: Path, volumes: list[str]) -> None:
    """Build the image for training: what its recipe copies, runs and sets, over the base."""
    context = directory / "train"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir()
    wheel = ["wheel", "--quiet", "--no-deps", "-w", context / "dist", ROOT]
    subprocess.run([sys.executable, "-m", "pip", *wheel], check=True)
    text = (ROOT / "slurm/containers/train.def").read_text()
    for key, value in VALUES.items():
        text = text.replace("{{ " + key + " }}", value)
    parts = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", text, re.MULTILINE | re.DOTALL))
    lines = ["FROM localhost/base"]
    for source, target in (line.split() for line in parts["files"].splitlines() if line.strip()):
        if "*" not in source:
            (context / source).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, context / source)
        lines.append(f"COPY {source} {target}")
    (context / "post.sh").write_text(parts["post"])
    (context / "environment.sh").write_text(parts["environment"])
    lines += ["COPY post.sh /", "COPY environment.sh /.environment", "RUN sh /post.sh"]
    (context / "Containerfile").write_text("\n".join(lines) + "\n")
    build(directory, context, "train", volumes)


def submit(directory: Path) -> int:
    """Submit the smoke recipe to a SLURM of two nodes whose tasks run in the image; return the exit
    code of `factory publish` afterwards."""
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
    """Build and run; return 0 when every step was made in the image."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("directory", type=Path)
    options.add_argument("--volume", action="append", default=[])
    asked = options.parse_args()
    directory, began = asked.directory.resolve(), time.monotonic()
    for what, work in (
        ("base", lambda: base(directory, asked.volume)),
        ("image", lambda: image(directory, asked.volume)),
        ("recipe", lambda: submit(directory)),
    ):
        code = work()
        print(f"{what}: done after {time.monotonic() - began:.0f} s", flush=True)
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
