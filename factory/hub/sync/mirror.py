"""Write to the local hub by its import route, which keeps the ids of commits."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError

from factory.hub.connection import status_of
from factory.hub.sync.destination import (
    AT_ONCE,
    ConcurrentUpdate,
    Destination,
    contradiction,
    retry_corrupt,
)
from factory.hub.sync.plan import CommitStep
from factory.hub.sync.side import (
    Copies,
    Damaged,
    File,
    FileProgress,
    Moved,
    RepoId,
    retry_transient,
)

_CHUNK = 1024 * 1024
_BATCH = 100


class Mirror(Destination):
    """The local hub of the factory, whose import route keeps the ids of the commits."""

    keeps_ids = True

    def replay(
        self,
        repo: RepoId,
        branch: str | None,
        parent: str | None,
        step: CommitStep,
        copies: Copies,
        moved: Moved,
    ) -> str:
        """Write a commit under its own id. Content that this hub has is not downloaded again."""
        large = {file.sha256: file for file in step.put if file.sha256 is not None}
        links = retry_transient(lambda: self._links(repo, list(large.values())))
        inline: dict[str, Path] = {}

        def bring(file: File) -> None:
            progress = FileProgress(file.size, moved)
            if file.sha256 is None:
                inline[file.path] = copies.fetch(file, progress.add)
            elif (link := links.get(file.sha256)) and large[file.sha256] is file:
                retry_corrupt(lambda: self._send(copies, file, link, progress.add))
            progress.finish()

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(bring, step.put))

        def commit() -> None:
            response = get_session().post(
                f"{self.endpoint}/api/{repo.kind}s/{repo.name}/mirror",
                headers=self._headers(),
                content=_lines(step, branch, parent, inline),
            )
            hf_raise_for_status(response)

        try:
            retry_transient(commit)
        except HfHubHTTPError as error:
            if status_of(error) == 412:
                raise ConcurrentUpdate from None
            if status_of(error) == 409:
                raise contradiction(repo, step.commit.id) from None
            raise
        return step.commit.id

    def _links(self, repo: RepoId, files: list[File]) -> dict[str, str]:
        """Return the upload link of each content, by sha256; none for content that this hub has."""
        links = {}
        for start in range(0, len(files), _BATCH):
            objects = [{"oid": f.sha256, "size": f.size} for f in files[start : start + _BATCH]]
            response = get_session().post(
                f"{self.endpoint}/{repo}.git/info/lfs/objects/batch",
                headers=self._headers(),
                json={"operation": "upload", "transfers": ["basic"], "objects": objects},
            )
            hf_raise_for_status(response)
            for item in response.json()["objects"]:
                if "actions" in item:
                    links[item["oid"]] = item["actions"]["upload"]["href"]
        return links

    def _send(self, copies: Copies, file: File, link: str, moved: Moved) -> None:
        path = copies.fetch(file, moved)

        def chunks() -> Iterator[bytes]:
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk

        def put() -> None:
            headers = {"Content-Length": str(file.size)}
            response = get_session().put(link, content=chunks(), headers=headers)
            if response.status_code == 400:  # this hub computed another hash
                copies.discard(path)
                raise Damaged(f"{file.path} did not arrive as it should")
            hf_raise_for_status(response)

        retry_transient(put)
        copies.discard(path)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def _lines(
    step: CommitStep, branch: str | None, parent: str | None, inline: dict[str, Path]
) -> Iterator[bytes]:
    """Yield the body of a mirrored commit: its header, then a line for each change."""
    commit = step.commit
    header: dict[str, object] = {
        "commit": commit.id,
        "branch": branch,
        "parentCommit": parent,
        "author": commit.author,
        "date": commit.date,
        "summary": commit.title,
        "description": commit.message,
    }
    yield _line("header", header)
    for path in step.drop:
        yield _line("deletedFile", {"path": path})
    for file in step.put:
        if file.sha256 is not None:
            value: dict[str, object] = {"path": file.path, "oid": file.sha256, "size": file.size}
            yield _line("lfsFile", {**value, "algo": "sha256"})
        else:
            content = base64.b64encode(inline[file.path].read_bytes()).decode()
            yield _line("file", {"path": file.path, "content": content, "encoding": "base64"})


def _line(key: str, value: dict[str, object]) -> bytes:
    return json.dumps({"key": key, "value": value}).encode() + b"\n"
