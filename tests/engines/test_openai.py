"""The openai engine against a server that fails on purpose, and against vLLM's own."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from factory.engines import Sampling
from factory.engines.openai import Answer, OpenAIChat, OpenAISampler, OpenAIServer
from factory.errors import StageError
from factory.execution.builtin_models import POCKET
from tests.support.openai_server import KEY

GREEDY = Sampling(0, 1, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    POCKET["local/tiny-random-llama"].build(out)
    return out


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < end, "the server does not answer"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """The server of tests.support.openai_server in a process of its own, and its address."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI")}
    command = [sys.executable, "-m", "tests.support.openai_server", str(port), str(log)]
    process = subprocess.Popen(command, env=environment)
    try:
        wait_for(port, process, 30)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    log = tmp_path_factory.mktemp("served") / "log"
    with serving(log) as url:
        yield url, log


@pytest.fixture
def log(served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's log, emptied, and the environment that leads to the server."""
    url, path = served
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    path.write_text("")
    return path


def asked(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_token_ids_go_in_and_come_out_in_order(log: Path, model: Path) -> None:
    sampler = OpenAISampler(model, OpenAIServer("tiny", concurrency=4))
    samples = sampler.sample([[7, 8], [9] * 6, [10]], Sampling(0.7, 0.9, 4), 100)
    assert [s.token_ids for s in samples] == [(8, 7), (9, 9, 9, 9), (10,)]
    assert [s.finish_reason for s in samples] == ["length", "length", "length"]
    assert [s.seed for s in samples] == [100, 101, 102]
    body = next(line["body"] for line in asked(log) if line["body"]["prompt"] == [7, 8])
    assert body["stop_token_ids"] == sampler.stop_ids and body["max_tokens"] == 4
    # nothing of the model's generation config may slip in on the server
    neutral = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "temperature": 0.7, "top_p": 0.9}
    assert {key: body[key] for key in neutral} == neutral


def test_an_answer_of_a_server_ends_before_its_stop_token(log: Path, model: Path) -> None:
    sampler = OpenAISampler(model, OpenAIServer("tiny"))
    stop = sampler.stop_ids[0]
    [sample] = sampler.sample([[9, stop, 8, 7]], Sampling(0, 1, 8), 0)
    assert sample.token_ids == (7, 8) and sample.finish_reason == "stop"


@pytest.mark.parametrize("fault", ["busy-2", "broken-2", "cut-2"])
def test_what_passes_is_asked_again(fault: str, log: Path) -> None:
    chat = OpenAIChat(OpenAIServer(fault, patience=0.01))
    assert chat.answer([[{"role": "user", "content": "hi"}]], GREEDY, 0) == [
        Answer("hi", "stop", 2)
    ]
    assert [line["attempt"] for line in asked(log)] == [1, 2, 3]


def test_a_busy_server_is_given_the_time_it_asks_for(log: Path) -> None:
    chat = OpenAIChat(OpenAIServer("busy-1", patience=0.001))
    chat.answer([[{"role": "user", "content": "now"}]], GREEDY, 0)
    first, second = asked(log)
    assert second["at"] - first["at"] >= 0.4


def test_requests_are_made_at_once_and_no_more_than_allowed(log: Path) -> None:
    chat = OpenAIChat(OpenAIServer("tiny", concurrency=5))
    texts = [str(number) for number in range(30)]
    answers = chat.answer([[{"role": "user", "content": text}] for text in texts], GREEDY, 3)
    assert [answer.text for answer in answers] == texts
    assert 2 <= max(line["open"] for line in asked(log)) <= 5
    assert {line["body"]["seed"] for line in asked(log)} == {3}


def test_options_reach_the_server(log: Path) -> None:
    options = {"chat_template_kwargs": {"enable_thinking": False}}
    OpenAIChat(OpenAIServer("tiny"), options).answer(
        [[{"role": "user", "content": "a"}]], GREEDY, 0
    )
    assert asked(log)[0]["body"]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_server_that_never_recovers_is_an_error_without_the_key(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.engines.openai._ATTEMPTS", 3)
    with pytest.raises(StageError, match="still refuses after 3 attempts") as caught:
        OpenAIChat(OpenAIServer("never", patience=0.001)).answer(
            [[{"role": "user", "content": "a"}]], GREEDY, 0
        )
    assert KEY not in str(caught.value) and "[key]" in str(caught.value)


def test_a_wrong_key_and_a_wrong_name_are_not_tried_again(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageError, match="404") as caught:
        OpenAIChat(OpenAIServer("unknown")).answer([[{"role": "user", "content": "a"}]], GREEDY, 0)
    assert "served_model" in caught.value.fix
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(StageError, match="401") as caught:
        OpenAIChat(OpenAIServer("tiny")).answer([[{"role": "user", "content": "a"}]], GREEDY, 0)
    assert "sk-wrong" not in str(caught.value) and "OPENAI_API_KEY" in caught.value.fix
    assert len(asked(log)) == 2


@pytest.mark.parametrize(
    ("model", "what"), [("elsewhere", "is not JSON"), ("empty", "holds no answer, but error")]
)
def test_what_is_no_answer_is_said_in_two_lines(log: Path, model: str, what: str) -> None:
    with pytest.raises(StageError, match=what):
        OpenAIChat(OpenAIServer(model)).answer([[{"role": "user", "content": "a"}]], GREEDY, 0)


def test_a_server_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.engines.openai._ATTEMPTS", 2)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(StageError, match="no answer from the server"):
        OpenAIChat(OpenAIServer("tiny", patience=0.001)).answer(
            [[{"role": "user", "content": "a"}]], GREEDY, 0
        )
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(StageError, match="needs OPENAI_BASE_URL"):
        OpenAIServer("tiny")


def test_text_in_place_of_token_ids_is_an_error(log: Path, model: Path) -> None:
    with pytest.raises(StageError, match="text instead of token ids"):
        OpenAISampler(model, OpenAIServer("text")).sample([[7, 8]], GREEDY, 0)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed")
def test_vllms_own_server_answers_as_transformers_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of vLLM on this CPU: 40 s to start; what it says is what transformers say."""
    from factory.engines import chat_template
    from factory.engines.transformers import TransformersSampler

    port = free_port()
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    serve = (
        "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32",
        "--served-model-name", "tiny", "--enforce-eager", "--host", "127.0.0.1",
        "--port", str(port), "--api-key", KEY,
    )  # fmt: skip
    with (tmp_path / "log").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *serve], env=environment, stdout=out, stderr=out
        )
    try:
        wait_for(port, process, 240)
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        engine, ours = (
            OpenAISampler(model, OpenAIServer("tiny")),
            TransformersSampler(model, "float32"),
        )
        prompts = [
            chat_template.prompt_ids(ours.tokenizer, [{"role": "user", "content": text}])
            for text in ("Hello", "Bread and water and salt")
        ]
        theirs = engine.sample(prompts, Sampling(0, 1, 12), 0)
        mine = ours.sample(prompts, Sampling(0, 1, 12), 0)
        assert [s.token_ids for s in theirs] == [s.token_ids for s in mine]
        assert [s.finish_reason for s in theirs] == [s.finish_reason for s in mine]
        drawn = engine.sample(prompts * 3, Sampling(1, 1, 8), 7)
        assert len({sample.token_ids for sample in drawn}) == 6
        assert drawn == engine.sample(prompts * 3, Sampling(1, 1, 8), 7)
        [answer] = OpenAIChat(OpenAIServer("tiny")).answer(
            [[{"role": "user", "content": "Hello"}]], Sampling(0, 1, 12), 0
        )
        assert answer.text.strip() == ours.tokenizer.decode(list(mine[0].token_ids)).strip()
        assert answer.n_tokens == 12
    finally:
        process.terminate()
        process.wait(60)
