"""No token is in any file that is made, nor in anything that is printed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import HIDDEN, HubError, redact
from tests.conftest import Cli

PLANTED = {
    "HF_TOKEN": "hf_plantedPlantedPlantedPlantedPlan",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedOldPlantedOldPlantedOld",
    "OPENAI_API_KEY": "sk-planted-0123456789abcdef",
    "WANDB_API_KEY": "planted0wandb0key0planted",
}


def everything(root: Path) -> dict[Path, bytes]:
    """Every file below `root` but those that only their owner may read: where tokens belong."""
    return {
        path: path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
        if not (path.name == "token" and stat.S_IMODE(path.stat().st_mode) == 0o600)
    }


def assert_clean(root: Path, *printed: str) -> None:
    for secret in PLANTED.values():
        assert not any(secret in text for text in printed)
        for path, content in everything(root).items():
            assert secret.encode() not in content, path


def run_with_secrets(factory: Cli, *arguments: str) -> str:
    done = factory(*arguments, **PLANTED)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_sources_are_read_and_published_without_a_trace(factory: Cli, home: Path) -> None:
    said = run_with_secrets(factory, "run", "smoke", "--only", "prompts", "--only", "questions")
    assert "prompts: done" in said
    card = run_with_secrets(factory, "card", "local/smoke-prompts")
    assert "# local/smoke-prompts" in card
    assert (home / "hub" / "token").exists()
    assert len(everything(home)) > 10
    assert_clean(home, said, card)


@pytest.mark.slow
def test_the_whole_line_leaves_no_trace_and_neither_does_a_defect(factory: Cli, home: Path) -> None:
    said = run_with_secrets(factory, "run", "smoke")
    assert_clean(home, said)
    assert len([path for path in everything(home) if path.name == "README.md"]) > 10


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


@settings(deadline=None)
@given(st.text(alphabet="abc hf_sk-:/@0", max_size=40))
def test_redaction_is_done_after_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_an_ordinary_text_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "the")
    text = "the sky-blue hf_hub_download of org/name@main at https://huggingface.co/a/b, sk-learn"
    assert redact(text) == text
    assert "HF_TOKEN" not in os.environ
