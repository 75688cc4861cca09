"""Resolve a released model: its base, the revision of that, and its chat template.

An adapter of ours says so in its manifest, with the digest of the base's content; anybody else's
in its adapter_config.json. Whatever uses a released model asks here, so that chat, serve, merge
and the Python API can never differ in what they load.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.artifacts import checkpoints, untrusted
from factory.artifacts.hashing import MANIFEST, content_digest, file_sha256, text_hash
from factory.artifacts.manifest import InputRecord, Manifest, read_manifest
from factory.errors import HubError, InputError, nearest
from factory.training import adapters

if TYPE_CHECKING:
    from factory.hub.client import Hub

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Released:
    """Released model on this disk.

    `name` is what it was asked for by; `base` the directory of a whole checkpoint, which hubs
    know as `base_name` (`org/name@commit`, or a path); `adapter` the directory of the LoRA on it,
    None where the checkpoint is the model; `speech` where tokenizer and template lie; `manifest`
    what is known of the making, None for what others made.
    """

    name: str
    base: Path
    base_name: str
    adapter: Path | None
    speech: Path
    manifest: Manifest | None
    pinned: str = ""  # the name, with the commit where it is of a hub

    @property
    def dtype(self) -> str:
        """Number format of the training; for external models that of the weights. Raises
        InputError."""
        fields = self.manifest.fields if self.manifest is not None else {}
        config = fields if "dtype" in fields else _config(self.base)
        return adapters.dtype_of(config.get("dtype") or config.get("torch_dtype"), self.name)


def find(name: str, hub: Hub, base: str | None = None) -> Released:
    """Return the model that `org/name[@revision]` or a directory stands for, fetched with its base;
    for a checkpoint of an adapter `org/name[@revision]:checkpoints/0.5`.

    An adapter is put on the base that it was made on and on no other: `base` may say where that
    lies, not replace it. Raises InputError for a wrong base and for what cannot be talked to,
    HubError for what the hub lacks.
    """
    repo, folder = (name, "") if Path(name).is_dir() else _parts(name)
    place, called = _fetch(repo, hub)
    manifest = _manifest(place)
    adapter = _inside(name, place, folder)
    if (adapter / adapters.CONFIG).is_file():
        below, below_name = _base(name, adapter, manifest, hub, base)
        # a re-saved tokenizer goes with the adapter: others add words or another template to it
        own = (place / "tokenizer_config.json").is_file()
        speech = place if own else below
        released = Released(name, below, below_name, adapter, speech, manifest, called)
    else:
        if base is not None:
            raise InputError(f"{name} is a whole model and has no base", "leave out --base")
        released = Released(name, place, called, None, place, manifest, called)
    _check_answers(released)
    _check_template(released)
    return released


def _parts(name: str) -> tuple[str, str]:
    """Split a name into repo (with its revision) and folder."""
    repo, _, folder = name.partition(":")
    return repo, folder


def _inside(name: str, place: Path, folder: str) -> Path:
    """Return the directory of an adapter in a repo. Raises InputError for a missing checkpoint."""
    available = sorted(
        f"{checkpoints.FOLDER}/{path.parent.name}"
        for path in place.glob(f"{checkpoints.FOLDER}/*/{adapters.CONFIG}")
    )
    if folder and folder not in available:
        raise InputError(
            f"{name}: there is no adapter in {folder}{nearest(folder, available)}",
            f"it has {', '.join(available)}"
            if available
            else "it keeps no checkpoints: leave that out",
        )
    return place / folder


def _fetch(name: str, hub: Hub) -> tuple[Path, str]:
    """Return a model's directory, and its name with the commit. Raises HubError."""
    if Path(name).is_dir():
        return Path(name).resolve(), str(Path(name).resolve())
    repo, _, revision = name.partition("@")
    if not _REPO.fullmatch(repo):
        raise InputError(
            f"{name!r} is neither a repo nor a directory", "write org/name, org/name@revision"
        )
    pinned = hub.pin(repo, "model", revision or "main")
    if pinned is None:
        if hub.has(repo, "dataset", revision or "main"):
            raise InputError(f"{repo} is a dataset", "name a model or a LoRA adapter")
        raise HubError(
            f"{hub.called} has no model {repo}",
            f"fetch it with factory pull {name}, or name its hub: --hub https://huggingface.co",
        )
    return hub.fetch(repo, "model", pinned[0]), f"{repo}@{pinned[0]}"


def _manifest(place: Path) -> Manifest | None:
    if not (place / MANIFEST).is_file():
        return None
    try:
        return read_manifest(place)
    except ValueError:
        raise InputError(
            f"the {MANIFEST} in {place} cannot be read",
            "it is damaged or of a newer croco-factory: update that, or fetch the repo again",
        ) from None


@dataclass(frozen=True)
class BaseReference:
    """Base that an adapter was trained on, as far as the adapter states it."""

    repo: str | None
    revision: str | None
    digest: str | None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else str(self.repo)


def _base(
    name: str, place: Path, manifest: Manifest | None, hub: Hub, base: str | None
) -> tuple[Path, str]:
    """Return the directory and the name of an adapter's base. Raises InputError and HubError."""
    config = adapters.read_config(place)
    named = config.get("base_model_name_or_path") or None
    expected = BaseReference(named, config.get("revision") or None, None)
    made_on = _made_on(manifest)
    if made_on is not None:
        repo = (made_on.source or "").partition("@")[0]
        expected = BaseReference(repo or named, made_on.revision, made_on.digest)
    if base is not None:
        return _check_base(name, base, expected, hub)
    if expected.repo is None:
        raise InputError(f"{name} does not say which base it was made on", "give --base")
    if not _REPO.fullmatch(expected.repo):
        if Path(expected.repo).is_dir():
            return Path(expected.repo), expected.repo
        raise InputError(
            f"{name} was made on {expected.repo}, a path of another machine",
            "give --base org/name@revision, or a directory",
        )
    commit = _commit(name, expected.repo, expected, hub)
    return hub.fetch(expected.repo, "model", commit), f"{expected.repo}@{commit}"


def _check_base(name: str, base: str, expected: BaseReference, hub: Hub) -> tuple[Path, str]:
    """Return the base that the user named, if its content is that of the adapter's own base. If
    that content is unknown, only names and shapes of weights are compared, at loading."""
    digest = expected.digest
    if digest is None and expected.repo and _REPO.fullmatch(expected.repo):
        digest = _content(hub, expected.repo, expected.revision)
    repo, _, revision = base.partition("@")
    here = Path(base).is_dir()
    content = _digest(Path(base)) if here else _content(hub, repo, revision)
    if content is None:
        raise HubError(f"{hub.called} has no {base}", f"fetch it: factory pull {base}")
    if digest is not None and content != digest:
        raise InputError(
            f"{base} is not the base that {name} was made on: its content is another",
            f"leave out --base, which takes {expected}",
        )
    if here:
        return Path(base).resolve(), base
    return _fetch(base, hub)


def _content(hub: Hub, repo: str, revision: str | None) -> str | None:
    """Return the content digest of a model on the hub; None if it is not there."""
    if not hub.has(repo, "model", revision or "main"):
        return None
    pinned = hub.pin(repo, "model", revision or "main")
    return pinned[1] if pinned else None


def _commit(name: str, repo: str, expected: BaseReference, hub: Hub) -> str:
    """Return the commit of the base with the content that an adapter was trained on. Another hub
    may have the same content under another commit; other content under that name is refused."""
    revision = expected.revision or "main"
    pull = f"fetch it: factory pull {expected}"
    if hub.has(repo, "model", revision):
        pinned = hub.pin(repo, "model", revision)
        if pinned is not None and expected.digest in (None, pinned[1]):
            return pinned[0]
    now = hub.pin(repo, "model", "main") if hub.has(repo, "model", "main") else None
    if now is None:
        raise HubError(f"{hub.called} has no {repo}, the base of {name}", pull)
    if now[1] != expected.digest:
        raise InputError(
            f"{hub.called} has {repo}, but not the content that {name} was made on", pull
        )
    return now[0]


def _made_on(manifest: Manifest | None) -> InputRecord | None:
    """Return the base model in a manifest, with its content digest."""
    if manifest is None:
        return None
    inputs = (read for record in manifest.slices.values() for read in record.inputs)
    return next((read for read in inputs if read.role == "base"), None)


def _digest(directory: Path) -> str:
    """Compute the content digest of a checkpoint in a directory, as the hub has it."""
    files = (path for path in directory.rglob("*") if path.is_file())
    inside = ((path.relative_to(directory), path) for path in files)
    return content_digest(
        (path.as_posix(), file_sha256(file))
        for path, file in inside
        if not any(part.startswith(".") for part in path.parts)
    )


def _config(directory: Path) -> dict[str, Any]:
    try:
        return untrusted.fields((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        raise InputError(
            f"{directory} holds no model: no config.json that can be read",
            "name a model or a LoRA adapter, in safetensors",
        ) from None


def _check_answers(released: Released) -> None:
    """Raise InputError for a classifier."""
    if "SequenceClassification" in str(_config(released.base).get("architectures")):
        raise InputError(
            f"{released.name} is a classifier: it scores conversations and answers none",
            "see its card for how to ask it for scores",
        )


def _check_template(released: Released) -> None:
    """Raise InputError if the chat template is not the one of training."""
    digest = (released.manifest.template or {}).get("template_hash") if released.manifest else None
    path = released.speech / "chat_template.jinja"
    if digest is None or not path.is_file():
        return
    if text_hash(path.read_text(encoding="utf-8")) != digest:
        raise InputError(
            f"the chat template beside {released.name} is not the one it was trained with",
            "fetch it again at its tag: a template belongs to the weights",
        )
