"""No token is in anything that is printed. What the smoke recipe makes is looked through in
tests/execution/test_smoke.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import HIDDEN, HubError, redact
from tests.conftest import Cli
from tests.support.secrets import PLANTED, assert_clean


def test_a_token_in_an_address_is_refused_and_not_said_again(factory: Cli, home: Path) -> None:
    secret = PLANTED["HF_TOKEN"]
    for address in (f"https://me:{secret}@hub.example", f"https://{secret}@hub.example"):
        done = factory("plan", "smoke", "--hub", address)
        assert done.returncode == 1
        assert "must not contain a user or password" in done.stderr
        assert secret not in done.stdout + done.stderr
    done = factory("plan", "smoke", "--hub", "http://127.0.0.1:9", **PLANTED)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert_clean(home.parent, done.stdout, done.stderr)


def test_errors_hide_what_is_shaped_like_a_secret_or_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct horse battery")
    for secret in (*PLANTED.values(), "correct horse battery"):
        monkeypatch.setenv("SOME_TOKEN", secret)
        error = HubError(f"it said {secret}", f"look at https://u:{secret}@host/x")
        assert secret not in str(error)
        assert HIDDEN in error.what
    assert redact("Authorization: Bearer abc.def-123456") == f"Authorization: Bearer {HIDDEN}"
    assert redact(f"no hf_local_{'a-_B' * 8} here") == f"no {HIDDEN} here"


@settings(deadline=None)
@given(st.text(alphabet="abc hf_sk-:/@0", max_size=40))
def test_redaction_is_done_after_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_an_ordinary_text_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "the")
    text = "the sky-blue hf_hub_download of org/name@main at https://huggingface.co/a/b, sk-learn"
    assert redact(text) == text
    assert "HF_TOKEN" not in os.environ
