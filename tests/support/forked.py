"""Many commands from one process that has imported everything: each is a fork of it, so none sees
what another left in memory, and none pays for the imports."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.terminal import clean_environment

# Of the parent: it reads commands, forks, waits, and tells what came of it. Waiting between tries
# takes no time in a fork, but counts.
_PARENT = """
import json, os, sys, time
import factory.cli, factory.hub.client, factory.hub.sync.mirror, factory.hub.sync.transfer
import factory.execution.reproduce, factory.execution.diff, factory.reports.page.source
import factory.reports.page.page, factory.reports.cards.refresh, factory.release.adapter

for line in sys.stdin:
    order = json.loads(line)
    out, err = (os.open(order[name], os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
                for name in ("stdout", "stderr"))
    child = os.fork()
    if not child:
        from factory.hub import http_guard
        os.dup2(out, 1), os.dup2(err, 2)
        os.environ.update(order["environment"])
        os.chdir(order["cwd"])
        sys.argv = ["factory", *order["words"]]
        sleep, clock, slept = time.sleep, time.monotonic, [0.0]
        def doze(seconds):
            slept[0] += seconds if seconds > 1 else 0
            sleep(min(seconds, 0.02))
        time.sleep = doze
        http_guard.time = type("Clock", (), {"monotonic": staticmethod(lambda: clock() + slept[0])})
        code = 2
        try:
            factory.cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    os.close(out), os.close(err)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@contextlib.contextmanager
def forked_commands(folder: Path) -> Iterator[Run]:
    """Yield a function that runs `factory WORDS` in a home, as `run_factory` does."""
    files = {name: str(folder / name) for name in ("stdout", "stderr")}
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        env=clean_environment(COLUMNS="200"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None and parent.stdout is not None

    def run(*words: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        assert parent.stdin is not None and parent.stdout is not None
        environment = {"FACTORY_HOME": str(home), **environment}
        order = {"words": words, "cwd": str(home.parent), "environment": environment, **files}
        print(json.dumps(order), file=parent.stdin, flush=True)
        code = int(parent.stdout.readline())
        said = (Path(files[name]).read_text(errors="replace") for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(words, code, *said)

    try:
        yield run
    finally:
        parent.stdin.close()
        parent.wait(timeout=30)
