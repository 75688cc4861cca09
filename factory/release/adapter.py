"""A model as somebody released it: which base belongs to it, at which revision, which template.

An adapter of ours says so in its manifest, with the digest of the base's content; anybody else's
in its adapter_config.json. Whatever uses a released model asks here, so that chat, serve, merge
and the Python API can never differ in what they load.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.artifacts import checkpoints
from factory.artifacts.hashing import MANIFEST, content_digest, file_sha256, text_hash
from factory.artifacts.manifest import InputRecord, Manifest, read_manifest
from factory.errors import HubError, InputError, nearest
from factory.training import adapters

if TYPE_CHECKING:
    from factory.hub.client import Hub

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Released:
    """A released model on this disk.

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

    @property
    def dtype(self) -> str:
        """The number format it was trained in; for others' models that of their weights."""
        if self.manifest is not None and "dtype" in self.manifest.fields:
            return str(self.manifest.fields["dtype"])
        config = _config(self.base)
        return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def find(name: str, hub: Hub, base: str | None = None) -> Released:
    """The model that `org/name[@revision]` or a directory stands for, fetched with its base; of an
    adapter that was kept on the way, `org/name[@revision]:checkpoints/0.5`.

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
        found = Released(name, below, below_name, adapter, place if own else below, manifest)
    else:
        if base is not None:
            raise InputError(f"{name} is a whole model and goes on no base", "leave out --base")
        found = Released(name, place, called, None, place, manifest)
    _speaks(found)
    _same_template(found)
    return found


def _parts(name: str) -> tuple[str, str]:
    """A name as repo (with its revision) and folder."""
    repo, _, folder = name.partition(":")
    return repo, folder


def _inside(name: str, place: Path, folder: str) -> Path:
    """Where in a repo an adapter lies. Raises InputError for a checkpoint that was not kept."""
    there = sorted(
        f"{checkpoints.FOLDER}/{path.parent.name}"
        for path in place.glob(f"{checkpoints.FOLDER}/*/{adapters.CONFIG}")
    )
    if folder and folder not in there:
        raise InputError(
            f"{name}: there is no adapter in {folder}{nearest(folder, there)}",
            f"it has {', '.join(there)}" if there else "it keeps no checkpoints: leave that out",
        )
    return place / folder


def _fetch(name: str, hub: Hub) -> tuple[Path, str]:
    """A model's directory, and its name with the commit. Raises HubError."""
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
            f"{hub.endpoint} has no model {repo}",
            f"bring it in with factory pull {name}, or say where it is: "
            "--hub https://huggingface.co",
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
class _Wanted:
    """The base that an adapter was made on, as far as it says so."""

    repo: str | None
    revision: str | None
    digest: str | None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else str(self.repo)


def _base(
    name: str, place: Path, manifest: Manifest | None, hub: Hub, given: str | None
) -> tuple[Path, str]:
    """Where an adapter's base lies, and its name. Raises InputError and HubError."""
    config = adapters.read_config(place)
    named = config.get("base_model_name_or_path") or None
    wanted = _Wanted(named, config.get("revision") or None, None)
    made_on = _made_on(manifest)
    if made_on is not None:
        repo = (made_on.source or "").partition("@")[0]
        wanted = _Wanted(repo or named, made_on.revision, made_on.digest)
    if given is not None:
        return _given(name, given, wanted, hub)
    if wanted.repo is None:
        raise InputError(f"{name} does not say which base it was made on", "give --base")
    if not _REPO.fullmatch(wanted.repo):
        if Path(wanted.repo).is_dir():
            return Path(wanted.repo), wanted.repo
        raise InputError(
            f"{name} was made on {wanted.repo}, a path of another machine",
            "give --base org/name@revision, or a directory",
        )
    commit = _commit(name, wanted.repo, wanted, hub)
    return hub.fetch(wanted.repo, "model", commit), f"{wanted.repo}@{commit}"


def _given(name: str, given: str, wanted: _Wanted, hub: Hub) -> tuple[Path, str]:
    """The base that a person named, if it is of the content that the adapter was made on. Where
    nobody knows that, only the names and shapes of weights are held against it, at loading."""
    digest = wanted.digest
    if digest is None and wanted.repo and _REPO.fullmatch(wanted.repo):
        digest = _content(hub, wanted.repo, wanted.revision)
    repo, _, revision = given.partition("@")
    here = Path(given).is_dir()
    content = _digest(Path(given)) if here else _content(hub, repo, revision)
    if content is None:
        raise HubError(f"{hub.endpoint} has no {given}", f"bring it in: factory pull {given}")
    if digest is not None and content != digest:
        raise InputError(
            f"{given} is not the base that {name} was made on: its content is another",
            f"leave out --base, which takes {wanted}",
        )
    if here:
        return Path(given).resolve(), given
    return _fetch(given, hub)


def _content(hub: Hub, repo: str, revision: str | None) -> str | None:
    """The content digest of a model on the hub; None when it is not there."""
    if not hub.has(repo, "model", revision or "main"):
        return None
    pinned = hub.pin(repo, "model", revision or "main")
    return pinned[1] if pinned else None


def _commit(name: str, repo: str, wanted: _Wanted, hub: Hub) -> str:
    """The commit of a base that is the very one an adapter was made on. Another hub may have the
    same content under another commit; other content under that name is refused."""
    revision = wanted.revision or "main"
    pull = f"bring it in: factory pull {wanted}"
    if hub.has(repo, "model", revision):
        pinned = hub.pin(repo, "model", revision)
        if pinned is not None and wanted.digest in (None, pinned[1]):
            return pinned[0]
    now = hub.pin(repo, "model", "main") if hub.has(repo, "model", "main") else None
    if now is None:
        raise HubError(f"{hub.endpoint} has no {repo}, the base of {name}", pull)
    if now[1] != wanted.digest:
        raise InputError(
            f"{hub.endpoint} has {repo}, but not the content that {name} was made on", pull
        )
    return now[0]


def _made_on(manifest: Manifest | None) -> InputRecord | None:
    """The base model that a manifest names, with the digest of its content."""
    if manifest is None:
        return None
    inputs = (one for record in manifest.slices.values() for one in record.inputs)
    return next((one for one in inputs if one.role == "base"), None)


def _digest(directory: Path) -> str:
    """The content digest of a checkpoint on this disk, as the hub would have it."""
    files = (path for path in directory.rglob("*") if path.is_file())
    inside = ((path.relative_to(directory), path) for path in files)
    return content_digest(
        (path.as_posix(), file_sha256(file))
        for path, file in inside
        if not any(part.startswith(".") for part in path.parts)
    )


def _config(directory: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{directory} holds no model: no config.json that can be read",
            "name a model or a LoRA adapter, in safetensors",
        ) from None
    return found


def _speaks(found: Released) -> None:
    """Raises InputError for a model that gives scores and no answers."""
    names = _config(found.base).get("architectures") or []
    if any("SequenceClassification" in str(one) for one in names):
        raise InputError(
            f"{found.name} is a classifier: it scores conversations and answers none",
            "see its card for how to ask it for scores",
        )


def _same_template(found: Released) -> None:
    """Raises InputError where the chat template is not the one that it was trained with."""
    said = (found.manifest.template or {}).get("template_hash") if found.manifest else None
    path = found.speech / "chat_template.jinja"
    if said is None or not path.is_file():
        return
    if text_hash(path.read_text(encoding="utf-8")) != said:
        raise InputError(
            f"the chat template beside {found.name} is not the one it was trained with",
            "fetch it again at its tag: a template belongs to the weights",
        )
