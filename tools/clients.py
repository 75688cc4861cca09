"""Run the test suite of a Hub client against a fresh local hub.

    python -m tools.clients CHECKOUT [TEST FILE OR OPTION…]

CHECKOUT is a source tree of `huggingface_hub` or `datasets` with its tests, and the environment has
that version installed, with what its tests import (pytest-mock, vcrpy, jedi, decorator). Tests that
ask for huggingface.co or for Xet are left out. Of the others those count that reach the hub. Prints
one line for each failure, and the number that passed, failed, or are out of scope: clients.json
lists those, with a reason each, some for a range of versions alone. Exits 1 after a failure that is
in scope.

The module is also the pytest plugin that points a suite at the hub.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
OUT_OF_SCOPE = Path(__file__).with_name("clients.json")
# The module of each suite that holds its constants, and the tests that talk to a hub.
SUITES = {
    "huggingface_hub": ("tests.testing_constants", ["tests"]),
    "datasets": ("tests.fixtures.hub", ["tests/test_upstream_hub.py"]),
}
_PLUGIN = "CLIENT_SUITE"  # the environment variable by which the plugin knows its hub


def main() -> int:
    """Run the suite and print what came out. Returns the exit status."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    checkout, options = Path(sys.argv[1]).resolve(), sys.argv[2:]
    client = next((name for name in SUITES if (checkout / "src" / name).is_dir()), None)
    if client is None:
        print(f"{checkout} holds no src/ of {' or '.join(SUITES)}")
        return 2
    with tempfile.TemporaryDirectory() as directory:
        results = _run(client, checkout, Path(directory), options)
    reasons = out_of_scope(client, importlib.metadata.version(client))
    counts: Counter[str] = Counter()
    for test, outcome in sorted(results.items()):
        if outcome != "passed":
            reason = next((why for name, why in reasons.items() if fnmatch(test, name)), None)
            outcome = "out of scope" if reason else "failed"
            print(f"{outcome}: {test}" + (f" ({reason})" if reason else ""))
        counts[outcome] += 1
    print(f"{client}: {counts['passed']} passed, {counts['failed']} failed, "
          f"{counts['out of scope']} out of scope, of the tests that reach the hub")  # fmt: skip
    return 1 if counts["failed"] or not counts["passed"] else 0


def out_of_scope(client: str, version: str) -> dict[str, str]:
    """Return the reasons by pattern of test that hold for this version of a client."""
    listed: dict[str, dict[str, str]] = json.loads(OUT_OF_SCOPE.read_text())
    reasons: dict[str, str] = {}
    for versions, tests in listed.items():
        requirement = Requirement(versions)
        if requirement.name == client and requirement.specifier.contains(version, prereleases=True):
            reasons |= tests
    return reasons


def _run(client: str, checkout: Path, home: Path, options: list[str]) -> dict[str, str]:
    """Run the suite in a process of its own; return outcomes of the tests that reach the hub."""
    from factory.localhub.launcher import await_end, connect, environment

    root = home / "hub"
    server = [sys.executable, "-m", "factory.localhub.server", "--root", str(root)]
    with connect(root):
        pass
    await_end(root)
    other = subprocess.run(
        [*server, "--new-token", "other", "--role", "write"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    ).stdout.split()[-1]  # fmt: skip
    # Suites also read public repos without a token.
    serving = subprocess.Popen(
        [*server, "--stay", "--anonymous"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert serving.stdout is not None
    serving.stdout.readline()  # printed when it listens
    with connect(root) as hub:
        facts = {"client": client, "url": hub.url, "token": hub.token, "other": other,
                 "results": str(home / "results.json")}  # fmt: skip
        settings = os.environ | environment(hub, home / "cache")
        settings |= {_PLUGIN: json.dumps(facts), "HF_TOKEN": "", "HF_ENDPOINT": hub.url,
                     "PYTHONPATH": os.pathsep.join(filter(None, (
                         str(checkout), str(ROOT), os.environ.get("PYTHONPATH"))))}  # fmt: skip
        del settings["HF_HUB_CACHE"], settings["HF_ASSETS_CACHE"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tools.clients", "--tb=short",
                   "-o", "addopts=", "-o", "log_cli=false", "-o", "env=", "-p", "no:cacheprovider",
                   "--continue-on-collection-errors", *(options or SUITES[client][1])]  # fmt: skip
        with Path(tempfile.gettempdir(), f"{client}-tests.log").open("w") as log:
            print(f"its output: {log.name}")
            subprocess.run(command, cwd=checkout, env=settings, stdout=log, stderr=log, check=False)
    serving.terminate()
    serving.wait()
    if not (home / "results.json").exists():
        sys.exit(f"the suite did not start: see {log.name}")
    results: dict[str, str] = json.loads((home / "results.json").read_text())
    return results


# The plugin


class _Suite:
    """Points a suite at the hub, and notes which of its tests reached it."""

    def __init__(self, facts: dict[str, str]) -> None:
        self.facts = facts
        self.port = int(facts["url"].rsplit(":", 1)[1])
        self.current: str | None = None
        self.reached: set[str] = set()
        self.outcomes: dict[str, str] = {}

    def watch_sockets(self) -> None:
        """Note the current test whenever a socket sends to the hub."""
        for name in ("send", "sendall"):
            setattr(socket.socket, name, self._noting(getattr(socket.socket, name)))

    def _noting(self, send: Any) -> Any:
        def noting(connection: socket.socket, *arguments: Any) -> Any:
            try:
                to_hub = connection.getpeername()[1] == self.port
            except (OSError, IndexError):
                to_hub = False
            if to_hub and self.current:
                self.reached.add(self.current)
            return send(connection, *arguments)

        return noting

    def set_constants(self) -> None:
        """Give the suite's own constants the values of this hub."""
        import importlib

        module: Any = importlib.import_module(SUITES[self.facts["client"]][0])
        url = self.facts["url"]
        for name, value in {
            "ENDPOINT_STAGING": url, "USER": "local", "FULL_NAME": "local",
            "TOKEN": self.facts["token"], "OTHER_USER": "other", "OTHER_TOKEN": self.facts["other"],
            "CI_HUB_ENDPOINT": url, "CI_HUB_USER": "local", "CI_HUB_USER_FULL_NAME": "local",
            "CI_HUB_USER_TOKEN": self.facts["token"],
            "CI_HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "CI_HFH_HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        }.items():  # fmt: skip
            if hasattr(module, name):
                setattr(module, name, value)

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what asks for huggingface.co, Xet or an inference service."""
        elsewhere = {"production", "xet", "inference"}
        kept = [
            item for item in items if not elsewhere & {mark.name for mark in item.iter_markers()}
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Name the test that runs."""
        self.current = item.nodeid
        yield
        self.current = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst outcome of set-up and call."""
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
        elif report.when == "call" and report.passed:
            self.outcomes.setdefault(report.nodeid, "passed")

    def pytest_sessionfinish(self) -> None:
        """Write the outcomes of the tests that reached the hub."""
        outcomes = {test: self.outcomes[test] for test in self.reached if test in self.outcomes}
        Path(self.facts["results"]).write_text(json.dumps(outcomes))


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Register the plugin where main() started pytest, before the suite reads its constants."""
    if _PLUGIN in os.environ:
        suite = _Suite(json.loads(os.environ[_PLUGIN]))
        suite.set_constants()
        suite.watch_sockets()
        early_config.pluginmanager.register(suite)


if __name__ == "__main__":
    sys.exit(main())
