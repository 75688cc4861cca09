"""Seconds of a page of rows: the first views of a table of a million rows, one row group or many,
and of the reader of as many scores.

    python benchmarks/pages.py [--rows N]

The first request for a page also builds all pages, once for a server; it is printed by itself.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from factory.localhub.hub import LocalHub
from factory.localhub.launcher import connect
from tests.support.story import publish, put

TEXT = "The quick brown fox jumps over the lazy dog. " * 6
REPEATS = 5


def table(rows: int) -> pa.Table:
    """Rows like those of samples, with texts of 270 characters."""
    return pa.table(
        {
            "prompt_id": [f"prompt-{n // 8}" for n in range(rows)],
            "language": ["en"] * rows,
            "k": [n % 8 for n in range(rows)],
            "response": [f"{n} {TEXT}" for n in range(rows)],
            "finish_reason": ["length" if n % 10 == 0 else "stop" for n in range(rows)],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    whole = table(options.rows)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "hub"
        hub = LocalHub(root)
        for name, size in (("many-groups", 4096), ("one-group", options.rows)):
            sink = io.BytesIO()
            pq.write_table(whole, sink, compression="zstd", row_group_size=size)
            put(hub, "dataset", f"local/{name}", {"data/en/part-0.parquet": sink.getvalue()})
        names = [f"prompt-{n:06d}" for n in range(options.rows // 8)]
        scores = publish(hub, "score", "scores", {"en": [
            {"prompt_id": name, "language": "en", "k": k, "response_hash": f"{k}{name}",
             "reward": float(k), "status": "ok"} for name in names for k in range(8)
        ]}, {})  # fmt: skip
        turn = [{"role": "user", "content": TEXT}]
        pairs = [
            {"prompt_id": name, "prompt": turn, "chosen": turn, "rejected": turn,
             "prompt_language": "en", "chosen_language": "en", "rejected_language": "en"}
            for name in names
        ]  # fmt: skip
        publish(hub, "pair", "pairs", {"en": pairs}, {"en": [("scores", scores, "en")]})
        hub.close()
        with connect(root, "factory.pages") as connection:
            address = urlsplit(connection.url)

            def ask(path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
                client = http.client.HTTPConnection(address.hostname or "", address.port)
                client.request(method, path, headers=headers)
                answer = client.getresponse()
                answer.body = answer.read()  # type: ignore[attr-defined]
                return answer

            def measure(what: str, path: str) -> None:
                times = []
                for _ in range(REPEATS):
                    began = time.perf_counter()
                    answer = ask(path, Accept="text/html", Cookie=cookie)
                    assert answer.status == 200, answer.status
                    times.append(time.perf_counter() - began)
                print(f"{what}: {times[0]:.3f} s, then {min(times[1:]):.3f} s")

            began = time.perf_counter()
            reply = ask("/-/login", "POST", Authorization=f"Bearer {connection.token}")
            print(f"pages built: {time.perf_counter() - began:.2f} s")
            once = json.loads(reply.body)["once"]  # type: ignore[attr-defined]
            cookie = (ask(f"/-/login?once={once}").headers["set-cookie"] or "").partition(";")[0]
            for name in ("many-groups", "one-group"):
                for what, query in (
                    ("first", ""),
                    ("last", f"start={options.rows - 25}"),
                    ("cut off", "filter=cut+off"),
                    ("text at the end", "search=" + quote(f"{options.rows - 1} The")),
                ):
                    measure(f"{name}, {what}", f"/datasets/local/{name}/viewer/main?{query}")
            for what, number in (("first", 1), ("last", len(names))):
                measure(f"reader, {what}", f"/datasets/local/story-pair/read/main?n={number}")


if __name__ == "__main__":
    main()
