"""The doctor: what it says of versions, GPUs, disks and hubs, and that a fault ends it with 1."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path

import pytest

from factory.artifacts.resources import install_command
from factory.errors import Check
from factory.execution import doctor
from factory.localhub.launcher import Connection
from tests.conftest import Cli

NVIDIA = "NVIDIA H100 80GB HBM3, 81559 MiB, 550.90.07\n" * 2
AMD = {
    "card0": {"Card series": "AMD Instinct MI250X", "Card model": "0x740c"},
    "card1": {"Card series": "AMD Instinct MI250X", "Card model": "0x740c"},
    "system": {"Driver version": "6.3.6"},
}


def packages(*requires: str, **known: str) -> list[Check]:
    return list(doctor.check_packages(requires, known))


def test_a_package_below_its_floor_is_failed_with_the_command_that_mends_it() -> None:
    there = importlib.metadata.version("numpy")
    [low] = packages("numpy>=999")
    assert (low.name, low.state) == ("numpy", "failed")
    assert there in low.seen and low.fix == "pip install 'numpy>=999'"
    [high] = packages("numpy<1")
    assert high.state == "failed"
    [gone] = packages("no-such-package>=1")
    assert gone.state == "failed" and gone.fix == install_command()


def test_another_version_than_the_tested_one_is_said_and_is_no_fault() -> None:
    there = importlib.metadata.version("numpy")
    [same] = packages("numpy>=1", numpy=there)
    assert same.seen == "1 of 1 as tested"
    [other] = packages("numpy>=1", numpy="0.0.1")
    assert (other.state, other.seen) == (
        "ok", f"0 of 1 as tested, numpy {there} (tested 0.0.1)",
    )  # fmt: skip
    assert packages("numpy>=0", "numpy>=1", numpy="0.0.1") == [other], "one package in two lines"
    [low] = packages("numpy>=1", "numpy>=999")
    assert low.state == "failed"


def test_an_extra_that_is_not_installed_is_a_warning() -> None:
    extra = '; extra == "train"'
    [_, none] = packages("numpy>=1", f"no-such-package>=1{extra}")
    assert none.state == "warning" and none.fix == install_command("train")
    [_, part, low] = packages("numpy>=1", f"no-such-package>=1{extra}", f"pytest>=999{extra}")
    assert part.seen.startswith("no no-such-package")
    assert (low.name, low.state) == ("pytest", "failed")


def test_the_tested_set_names_what_the_package_needs() -> None:
    needed = importlib.metadata.requires("croco-factory") or []
    names = {line.split(">")[0].split("<")[0].split(";")[0].strip() for line in needed}
    names -= {"vllm", "croco-factory", "types-pyyaml", "types-PyYAML"}
    assert {doctor._normal(name) for name in names if "[" not in name} <= doctor.tested().keys()


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Puts a program on the path that prints a text: a vendor's tool, on a machine without GPUs."""

    def put(name: str, text: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    return put


@pytest.mark.parametrize(
    ("name", "text", "seen", "vendor"),
    [
        ("nvidia-smi", NVIDIA, "2 x NVIDIA H100 80GB HBM3, 81559 MiB each, driver 550", "CUDA"),
        ("rocm-smi", json.dumps(AMD), "2 x AMD Instinct MI250X, driver 6.3.6", "ROCm"),
    ],
)
def test_gpus_that_torch_does_not_find_are_a_fault(
    tool: object, name: str, text: str, seen: str, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.engines.transformers.gpu_count", lambda: 0)
    tool(name, text)  # type: ignore[operator]
    [cards, torch] = doctor.check_gpus()
    assert cards.state == "ok" and seen in cards.seen
    assert torch.state == "failed" and "finds 0 of 2" in torch.seen and vendor in torch.fix


def test_a_disk_is_looked_at_and_left_as_it_was(tmp_path: Path) -> None:
    found = {check.name: check for check in doctor.check_disk(tmp_path / "not" / "yet")}
    assert found["file locks"].state == found["clock"].state == "ok"
    assert "GB free" in found["disk"].seen
    assert not list(tmp_path.iterdir())


def test_a_token_is_known_by_its_role_and_never_shown(connection: Connection) -> None:
    [answers, token] = doctor.check_hub(connection.url, connection.token, True)
    assert (answers.state, token.state) == ("ok", "ok"), token
    assert ", write" in token.seen or ", admin" in token.seen
    [_, none] = doctor.check_hub(connection.url, None, True)
    assert none.state == "warning" and "hf auth login" in none.fix
    [_, wrong] = doctor.check_hub(connection.url, "hf_" + "x" * 30, True)
    assert wrong.state == "failed" and "401" in wrong.seen
    for check in (token, none, wrong):
        assert connection.token not in repr(check) and "xxx" not in repr(check)


@pytest.mark.parametrize(("asked", "state"), [(True, "failed"), (False, "warning")])
def test_a_hub_out_of_reach_is_a_fault_only_where_it_was_asked_for(asked: bool, state: str) -> None:
    [hub] = doctor.check_hub("http://127.0.0.1:9", None, asked)
    assert hub.state == state and "factory hub export" in hub.fix


def test_the_command_prints_a_line_and_a_fix_for_each_and_fails_with_one(
    factory: Cli, home: Path
) -> None:
    done = factory("doctor", "--hub", "http://127.0.0.1:9")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       Python: 3.")
    [at] = [n for n, line in enumerate(lines) if line.startswith("failed   hub: http://127.0.0.1")]
    assert lines[at + 1].startswith("         fix: check the network")
    assert any(line.startswith("ok       local hub: started") for line in lines)
    assert not home.exists() and not list(home.parent.glob(".doctor*"))
