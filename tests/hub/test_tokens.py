"""`factory hub token`: tokens of the local hub are listed, made and revoked while it runs."""

from __future__ import annotations

import json
from pathlib import Path

from factory.localhub.launcher import Connection, connect, request
from tests.conftest import run_factory


def test_tokens_are_made_listed_and_revoked_while_the_hub_runs(home: Path) -> None:
    with connect(home / "hub") as hub:
        made = run_factory("hub", "token", "--new", "eve", "--write", home=home)
        eve = made.stdout.strip()
        assert made.returncode == 0 and eve.startswith("hf_local_")
        assert request(Connection(hub.url, eve, hub.root), "GET", "/api/whoami-v2")[0] == 200
        rob = json.loads(run_factory("hub", "token", "--new", "rob", "--json", home=home).stdout)
        assert [(t["user"], t["role"]) for t in rob["tokens"]] == [
            ("eve", "write"), ("local", "write"), ("rob", "read")]  # fmt: skip

        listed = run_factory("hub", "token", home=home)
        assert [line.split()[1:] for line in listed.stdout.splitlines()] == [
            ["write", "eve"], ["write", "local"], ["read", "rob"]]  # fmt: skip
        assert eve not in listed.stdout

        status, reply = request(
            Connection(hub.url, eve, hub.root), "POST", "/api/local/tokens", {"create": "mallory"}
        )
        assert status == 403 and "owner" in reply["error"]
        number = listed.stdout.split()[0]
        assert run_factory("hub", "token", "--revoke", number, home=home).stdout == "1 revoked\n"
        assert request(Connection(hub.url, eve, hub.root), "GET", "/api/whoami-v2")[0] == 401
        for words in (("--revoke", "local"), ("--revoke", "eve"), ("--new", "local"),
                      ("--new", "../x")):  # fmt: skip
            refused = run_factory("hub", "token", *words, home=home)
            assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 2, words
            assert "fix: factory hub token lists them" in refused.stderr
    with connect(home / "hub") as again:  # and it stays so
        assert request(Connection(again.url, eve, again.root), "GET", "/api/whoami-v2")[0] == 401
