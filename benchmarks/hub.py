"""The local hub beside a plain copy: files up and down, small commits, readers at once, memory.

    python benchmarks/hub.py [--size MB] [--machine NAME] [--json]
    python benchmarks/hub.py --history [--commits N]      long histories and large folders instead

Both sides of each comparison run one after the other, on the same disk. "Server alone" is a raw PUT
or GET, the client of huggingface_hub is printed beside it: what it adds is its own hashing. With
--json the last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download

from factory.localhub.launcher import Connection, connect

CHUNK = 1024 * 1024
SMALL_FILES, SMALL_SIZE = 200, 100_000
COMMITS = 100
READERS = 4
REPEATS = 3  # of what is done with the big file; the best counts, on a machine that others use


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_and_hash(source: Path, target: Path) -> None:
    """What any verified transfer has to do at least: write, read for the hash, and sync."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    sha256(target)


class Raw:
    """The server alone: requests without a Hub client."""

    def __init__(self, hub: Connection) -> None:
        self._hub = hub

    def ask(self, method: str, path: str, body: Any = None, size: int | None = None) -> bytes:
        address = urlsplit(self._hub.url)
        client = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=300, blocksize=CHUNK
        )
        headers = {"Authorization": f"Bearer {self._hub.token}"}
        if size is not None:
            headers["Content-Length"] = str(size)
        client.request(method, path, body, headers)
        reply = client.getresponse()
        found = b""
        while chunk := reply.read(CHUNK):
            if method != "GET":
                found += chunk
        client.close()
        if reply.status != 200:
            raise RuntimeError(f"{method} {path}: {reply.status} {found!r}")
        return found

    def link(self, repo: str, digest: str, size: int) -> str:
        body = {"operation": "upload", "transfers": ["basic"],
                "objects": [{"oid": digest, "size": size}]}  # fmt: skip
        path = f"/{repo}.git/info/lfs/objects/batch"
        found = json.loads(self.ask("POST", path, json.dumps(body)))
        return str(found["objects"][0]["actions"]["upload"]["href"])[len(self._hub.url) :]

    def put(self, link: str, path: Path) -> None:
        with path.open("rb") as file:
            self.ask("PUT", link, file, path.stat().st_size)


def resident(pid: int, what: str) -> float:
    """Memory of a process in MB, now (VmRSS) or at most so far (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1000
    return 0.0


def big_file(folder: Path, hub: Connection, api: HfApi, size: int) -> Iterator[tuple[str, float]]:
    file = folder / "big.bin"
    with file.open("wb") as out:
        for _ in range(size // CHUNK):
            out.write(os.urandom(CHUNK))
    raw = Raw(hub)
    api.create_repo("org/big")
    megabytes = file.stat().st_size / 1e6

    def fresh() -> str:
        """Other content, and its link: what the hub has already is not sent again."""
        with file.open("r+b") as out:
            out.write(os.urandom(CHUNK))
        return raw.link("org/big", sha256(file), file.stat().st_size)

    def upload() -> None:
        api.upload_file(repo_id="org/big", path_in_repo="b.bin", path_or_fileobj=file)

    def download() -> None:
        hf_hub_download(
            "org/big",
            "b.bin",
            endpoint=hub.url,
            token=hub.token,
            cache_dir=folder / "cache",
            force_download=True,
        )

    path = "/org/big/resolve/main/b.bin"
    get = partial(raw.ask, "GET", path)

    def read_all() -> None:
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda _: get(), range(READERS)))

    for what, begin, call in (
        ("copy + sha256 + fsync", None, lambda _: copy_and_hash(file, folder / "copy")),
        ("server alone, PUT", fresh, lambda link: raw.put(link, file)),
        ("huggingface_hub, upload_file", fresh, lambda _: upload()),
        ("copy", None, lambda _: shutil.copyfile(file, folder / "copy")),
        ("server alone, GET", None, lambda _: get()),
        ("huggingface_hub, hf_hub_download", None, lambda _: download()),
    ):
        times = []
        for _ in range(REPEATS):
            given = begin() if begin else None
            times.append(timed(partial(call, given)))
        yield what, megabytes / min(times)
    yield f"{READERS} readers at once, together", READERS * megabytes / timed(read_all)


def small_files(folder: Path, hub: Connection, api: HfApi) -> Iterator[tuple[str, float]]:
    source = folder / "small"
    source.mkdir()
    for number in range(SMALL_FILES):
        (source / f"part-{number:05d}.parquet").write_bytes(os.urandom(SMALL_SIZE))

    def copy_all() -> None:
        (folder / "smallcopy").mkdir()
        for path in source.iterdir():
            copy_and_hash(path, folder / "smallcopy" / path.name)

    api.create_repo("org/small")
    yield "copy + sha256 + fsync", timed(copy_all)
    yield (
        "huggingface_hub, upload_folder",
        timed(lambda: api.upload_folder(repo_id="org/small", folder_path=source)),
    )
    yield (
        "huggingface_hub, snapshot_download",
        timed(
            lambda: snapshot_download(
                "org/small", endpoint=hub.url, token=hub.token, cache_dir=folder / "cache"
            )
        ),
    )


def write_safely(folder: Path, number: int) -> None:
    """The least that a write has to do if it is to outlive a power cut: sync file and folder."""
    path = folder / f"safe-{number}"
    with path.open("wb") as file:
        file.write(str(number).encode())
        os.fsync(file.fileno())
    path.rename(folder / f"safe-{number}.done")
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def committer(api: HfApi) -> Callable[[int], object]:
    """Commits of one small file each, by the real client: two requests."""
    api.create_repo("org/commits")

    def commit(number: int) -> object:
        operations = [CommitOperationAdd("n.txt", str(number).encode())]
        return api.create_commit("org/commits", operations, commit_message="c")

    return commit


def spread(call: Callable[[int], object]) -> tuple[float, float]:
    """Median and 95th percentile of a call, in ms."""
    times = [1000 * timed(partial(call, number)) for number in range(COMMITS)]
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]


class Writer:
    """One connection that commits, without a Hub client: what is left is the server's own time."""

    def __init__(self, hub: Connection) -> None:
        address = urlsplit(hub.url)
        self._client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=600)
        self._headers = {"Authorization": f"Bearer {hub.token}"}

    def ask(self, method: str, path: str, body: str | None = None) -> Any:
        self._client.request(method, path, body, self._headers)
        reply = self._client.getresponse()
        found = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{method} {path}: {reply.status} {found[:200]!r}")
        return json.loads(found)

    def commit(self, repo: str, paths: list[str]) -> float:
        """Put files of a few bytes at these paths. Answers milliseconds."""
        lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "c"}}]
        lines += [{"key": "file", "value": {"path": path, "content": f"{path} {time.time()}"}}
                  for path in paths]  # fmt: skip
        body = "\n".join(json.dumps(line) for line in lines)
        path = f"/api/models/{repo}/commit/main"
        return 1000 * timed(lambda: self.ask("POST", path, body))


def history(hub: Connection, api: HfApi, commits: int, pid: int) -> Iterator[tuple[str, float]]:
    """Figures of long histories and large folders, each with its unit."""
    writer, database = Writer(hub), hub.root / "hub.sqlite"

    def megabytes() -> float:
        return sum(path.stat().st_size for path in hub.root.glob("hub.sqlite*")) / 1e6

    def page(repo: str, folder: str) -> float:
        path = f"/api/models/{repo}/tree/main/{folder}?expand=true"
        return 1000 * timed(lambda: writer.ask("GET", path))

    api.create_repo("org/long")
    before = megabytes()
    times = [writer.commit("org/long", [f"f/{number:05d}.txt"]) for number in range(commits)]
    yield f"{commits} commits into one folder: the first 100, ms", statistics.median(times[:100])
    yield "  the last 100, ms", statistics.median(times[-100:])
    yield "  hub.sqlite, MB", megabytes() - before
    yield "  a page of 50 with last commits, the first, ms", page("org/long", "f")
    yield "  and again, ms", page("org/long", "f")
    api.create_repo("org/wide")
    writer.commit("org/wide", [f"f/{number:05d}.txt" for number in range(10_000)])
    before = megabytes()
    times = [writer.commit("org/wide", [f"f/{number:05d}.txt"]) for number in range(0, 10_000, 100)]
    yield "100 commits into a folder of 10,000, ms each", statistics.median(times)
    yield "  hub.sqlite, MB", megabytes() - before
    api.create_repo("org/deep")
    paths = [f"{number // 100}/{number % 100}.txt" for number in range(20_000)]
    yield "a commit of 20,000 files in 200 folders, s", writer.commit("org/deep", paths) / 1000
    times = [writer.commit("org/deep", [path]) for path in paths[::200]]
    yield "  then one file, ms", statistics.median(times)
    listed = timed(lambda: writer.ask("GET", "/api/models/org/deep/revision/main?blobs=true"))
    yield "  info with blobs, s", listed
    yield "memory of the server so far, MB", resident(pid, "VmHWM")
    for repo in ("org/long", "org/wide"):
        api.super_squash_history(repo)
    for path in (hub.root / "blobs").glob("??/*"):
        os.utime(path, (0, 0))
    writer.ask("POST", "/api/local/gc", json.dumps({"grace": 60}))
    for what in ("fsck", "gc"):
        body = json.dumps({"grace": 60, "remove": True})
        with ThreadPoolExecutor(1) as pool:
            begun = time.perf_counter()
            work = pool.submit(Writer(hub).ask, "POST", f"/api/local/{what}", body)
            waits = [0.0]
            while not work.done():
                waits.append(1000 * timed(lambda: writer.ask("GET", "/api/models/org/deep")))
                time.sleep(0.01)
            work.result()
            yield f"{what}, s", time.perf_counter() - begun
        yield "  the longest that another waited, ms", max(waits)
    yield "hub.sqlite after gc, MB", database.stat().st_size / 1e6
    yield "memory of the server, at most, MB", resident(pid, "VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=500, help="of the big file, in MB")
    parser.add_argument("--json", action="store_true", help="print JSON as the last line")
    parser.add_argument("--machine", default="", help="what to call this one in the JSON")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--history", action="store_true", help="long histories instead")
    parser.add_argument("--commits", type=int, default=3000, help="of the long history")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": options.machine, "big_file_mb": options.size}
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as name,
        connect(Path(name) / "hub") as hub,
    ):
        folder, api = Path(name), HfApi(endpoint=hub.url, token=hub.token)
        pid = json.loads((hub.root / "server.json").read_text())["pid"]
        if options.history:
            found = {"machine": options.machine, "history": {}}
            for what, figure in history(hub, api, options.commits, pid):
                found["history"][what.strip()] = round(figure, 2)
                print(f"  {what:<60}{figure:10.1f}", flush=True)
            if options.json:
                print(json.dumps(found))
            return
        found["memory_before_mb"] = resident(pid, "VmRSS")
        print(f"one file of {options.size} MB, MB/s, the best of {REPEATS}")
        found["big_mb_per_s"] = {}
        for what, rate in big_file(folder, hub, api, options.size * CHUNK):
            found["big_mb_per_s"][what] = round(rate, 1)
            print(f"  {what:<38}{rate:8.0f}", flush=True)
        print(f"{SMALL_FILES} files of {SMALL_SIZE // 1000} kB, s")
        found["small_s"] = {}
        for what, seconds in small_files(folder, hub, api):
            found["small_s"][what] = round(seconds, 2)
            print(f"  {what:<38}{seconds:8.2f}", flush=True)
        print("a small commit, ms: median, 95 % under")
        found["commit_ms"] = {}
        for what, (median, slow) in (
            ("a file written, synced and renamed", spread(partial(write_safely, folder))),
            ("huggingface_hub, create_commit", spread(committer(api))),
        ):
            found["commit_ms"][what] = {"median": round(median, 1), "p95": round(slow, 1)}
            print(f"  {what:<38}{median:8.1f}{slow:8.1f}", flush=True)
        found["memory_most_mb"] = resident(pid, "VmHWM")
        print(
            f"memory of the server, MB\n  before {found['memory_before_mb']:.0f}, "
            f"at most {found['memory_most_mb']:.0f}"
        )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
