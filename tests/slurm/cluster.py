"""A real SLURM of two nodes with eight pretend GPUs each, from Debian's packages: its own munged,
slurmctld and two slurmds, in a directory of its own, ended with the block. Tasks are bound to their
cores (task/affinity); both nodes are this machine, and share them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
NODES = ("one", "two")
_COUNTS = ("CPUs", "Boards", "SocketsPerBoard", "CoresPerSocket", "ThreadsPerCore")
_PATIENCE = 60.0
CONFIG = """
ClusterName=pretend
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
GresTypes=gpu
MaxArraySize=4
KillWait=5
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName=DEFAULT {cores} RealMemory=8000 Gres=gpu:8
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=standard-g Nodes=one,two Default=YES State=UP MaxTime=INFINITE
"""


def why_not() -> str | None:
    """Why no cluster can be started here; None where one can."""
    missing = [name for name in PROGRAMS if _found(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurm-wlm munge (make install-system)"
    return None if os.geteuid() == 0 else "SLURM's daemons start jobs as other users: only as root"


def _found(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Cluster:
    """A cluster that runs, and how to speak to it."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)  # since when a job is pending

    def ask(self, *command: str) -> str:
        """What one of SLURM's commands says."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True,
            timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    def jobs(self) -> list[tuple[str, str, str]]:
        """(id, state, name) of what is in the queue."""
        said = self.ask("squeue", "--noheader", "--array", "--format=%i|%T|%j")
        return [tuple(line.split("|", 2)) for line in said.splitlines()]  # type: ignore[misc]

    def hurry(self) -> None:
        """Let requeued jobs start after two seconds and not after SLURM's two minutes, which are
        there for the node to be done with them."""
        for job, state, _ in self.jobs():
            since = self.seen.setdefault(job, time.monotonic())
            if state != "PENDING":
                del self.seen[job]
            elif time.monotonic() - since > 2:
                subprocess.run(
                    ["scontrol", "update", f"jobid={job}", "starttime=now"],
                    env={**os.environ, **self.environment}, capture_output=True, check=False,
                )  # fmt: skip

    def empty(self, timeout: float = 600) -> None:
        """Wait until nothing is in the queue."""
        end = time.monotonic() + timeout
        while left := self.jobs():
            if time.monotonic() > end:
                raise AssertionError(f"still in the queue: {left}")
            self.hurry()
            time.sleep(0.5)


@contextmanager
def cluster(root: Path) -> Iterator[Cluster]:
    """Start one, and end it with the block."""
    for name in ("gpu", "state", "spool/one", "spool/two", "munge"):
        (root / name).mkdir(parents=True)
    for number in range(8):
        (root / "gpu" / str(number)).touch()
    host = socket.gethostname().split(".")[0]
    ports = _free_ports()
    (root / "slurm.conf").write_text(
        CONFIG.format(root=root, host=host, ports=ports, cores=_cores())
    )
    (root / "gres.conf").write_text(f"NodeName=one,two Name=gpu File={root}/gpu/[0-7]\n")
    key = root / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    (root / "munge").chmod(0o755)
    environment = {"SLURM_CONF": str(root / "slurm.conf")}
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={key}", "--num-threads=2",
         f"--socket={root}/munge/socket", f"--pid-file={root}/munge/pid",
         f"--seed-file={root}/munge/seed", f"--log-file={root}/munge/log"],
        ["slurmctld", "-D", "-f", f"{root}/slurm.conf"],
        *(["slurmd", "-D", "-f", f"{root}/slurm.conf", "-N", name] for name in NODES),
    ]  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    found = Cluster(root, environment)
    try:
        for daemon in daemons:
            running.append(_start(daemon, root, environment))
            if daemon[0] == "munged":
                _until(lambda: (root / "munge" / "socket").exists(), root)
        idle = lambda: _said(found, "sinfo", "--noheader", "--Node", "--format=%T")  # noqa: E731
        _until(lambda: idle().split() == ["idle"] * len(NODES), root)
        yield found
    finally:
        if running:
            subprocess.run(
                ["scancel", "--user=root"], env={**os.environ, **environment}, timeout=60,
                capture_output=True, check=False,
            )  # fmt: skip
            time.sleep(1)
        for process in reversed(running):
            process.terminate()
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(
    command: list[str], root: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    program = _found(command[0])
    assert program is not None
    with (root / f"{command[0]}-{command[-1].strip('/').replace('/', '-')[-40:]}.out").open(
        "wb"
    ) as out:
        return subprocess.Popen(
            [program, *command[1:]], env={**os.environ, **environment}, stdout=out, stderr=out
        )


def _said(found: Cluster, *command: str) -> str:
    try:
        return found.ask(*command)
    except subprocess.CalledProcessError:
        return ""


def _until(true, root: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while not true():
        if time.monotonic() > end:
            logs = "\n".join(
                path.read_text(errors="replace")[-2000:] for path in sorted(root.glob("*.out"))
            )
            raise AssertionError(f"the cluster did not start:\n{logs}")
        time.sleep(0.2)


def _free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _cores() -> str:
    """The cores of this machine, as slurmd finds them."""
    program = _found("slurmd")
    assert program is not None
    done = subprocess.run([program, "-C"], capture_output=True, text=True, check=True)
    words = done.stdout.split()
    return " ".join(word for word in words if word.partition("=")[0] in _COUNTS)


def program(path: Path, text: str) -> Path:
    """A script of bash that can be run."""
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def record_in(home: Path) -> Path:
    """The directory of a submission, as `factory submit` leaves it to its jobs."""
    record = home / "slurm" / "o-r" / "1"
    for name in ("logs", "ends"):
        (record / name).mkdir(parents=True)
    return record


def site(root: Path, **changed: str) -> Path:
    """A site file for this cluster: the factory of this checkout, two tasks a step, no container.
    `changed` are lines of YAML by their key."""
    source = Path(__file__).parents[2]
    command = f'export PYTHONPATH={source}\nexec {sys.executable} -m factory "$@"'
    factory = program(root / "factory", command)
    each = f"partition: standard-g, time: '1:00:00', cpus: 1, factory: {factory}"
    lines = {
        "gpu": "rocm",
        "limits": "{array: 4, at_once: 2, requeue: 3, warn: 60}",
        "generate": f"{{{each}, tasks: 2, shards: 1}}",
        "train": f"{{{each}}}",
        "cpu": f"{{{each}}}",
        **changed,
    }
    path = root / f"site-{secrets.token_hex(3)}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path
