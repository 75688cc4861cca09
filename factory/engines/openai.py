"""The openai engine: any server that speaks OpenAI's HTTP protocol, ours or somebody's.

`OpenAISampler` sends token ids to /v1/completions and wants token ids back, which vLLM's server
does; `OpenAIChat` sends messages to /v1/chat/completions, which all of them take. The address and
the key come from OPENAI_BASE_URL and OPENAI_API_KEY: they belong to a site, not to a recipe, and
are written down nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import tenacity

from factory.engines import Completion, Sampling, checkpoint, rooms_of
from factory.engines.chat_template import Message, as_text
from factory.engines.pipelining import release_turn
from factory.errors import StageError

ADDRESS = "OPENAI_BASE_URL"  # the variable that says where the server is
LANES = 2
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # states that pass
_ATTEMPTS = 10
_LONGEST_WAIT = 120.0  # seconds; also for what Retry-After asks
# Reasons for no answer, of one request alone
TOO_LONG, REFUSED = "too_long", "refused"
# vLLM's server takes what a request leaves open from the model's generation config
_NEUTRAL = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def address() -> str:
    """Return the server's address. Raises StageError without OPENAI_BASE_URL."""
    url = os.environ.get(ADDRESS)
    if not url:
        raise StageError(
            f"a served model needs {ADDRESS}, the address of its server",
            f"export {ADDRESS}=http://localhost:8000/v1 (and OPENAI_API_KEY if it needs one)",
        )
    return url


class _Refused(Exception):
    """A reply with a status that may pass; worth a retry."""

    def __init__(self, status: int, text: str, after: float | None) -> None:
        super().__init__(f"{status}: {text}")
        self.after = after


class _NotThis(StageError):
    """A reply that refuses this one request for good, by the `reason`."""

    def __init__(self, reason: str, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.reason = reason


class OpenAIServer:
    """One server and the name of the model there. Safe for many threads."""

    def __init__(
        self, model: str, concurrency: int = 64, timeout: float = 1800, patience: float = 1.0
    ) -> None:
        """Connect to the server. `timeout`: seconds that one answer may take; `patience`: seconds
        of the first backoff, doubled with each attempt. Raises StageError without OPENAI_BASE_URL.
        """
        http, url = _http(), address()
        self.model, self._patience = model, patience
        self._key = os.environ.get("OPENAI_API_KEY", "")
        self._client: Any = http.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=http.Timeout(timeout, connect=30),
            limits=http.Limits(max_connections=concurrency),
        )
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="request")

    def post_all(
        self, path: str, bodies: Sequence[Mapping[str, Any]], each: bool = False
    ) -> list[dict[str, Any]]:
        """Send all requests, some at once, and return their replies in order. With `each`, a
        request that is too long for the server or refused for its content is no error, as the
        others may be answered: its reply is `{"no_answer": reason}`. Raises StageError."""
        post = self._post_each if each else self.post
        jobs = [self._pool.submit(post, path, body) for body in bodies]
        try:
            with release_turn():
                return [job.result() for job in jobs]
        finally:
            for job in jobs:  # after the first failure the others are not worth their price
                job.cancel()

    def _post_each(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.post(path, body)
        except _NotThis as error:
            return {"no_answer": error.reason}

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request. Retries a busy or broken server, after the time in its Retry-After.
        Raises StageError."""
        http = _http()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((_Refused, http.TransportError)),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=self._wait,
            reraise=True,
        )
        try:
            reply: dict[str, Any] = retrying(self._once, path, {"model": self.model, **body})
        except _Refused as error:
            raise StageError(
                f"the server still refuses after {_ATTEMPTS} attempts: {self._clean(str(error))}",
                "finished shards are kept: run again when it has recovered",
            ) from None
        except http.TransportError as error:
            raise StageError(
                f"no answer from the server at OPENAI_BASE_URL: {self._clean(repr(error))}",
                "check that it runs; finished shards are kept, so run again",
            ) from None
        return reply

    def close(self) -> None:
        """Cancel requests in progress and close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _once(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        reply = self._client.post(path, json=body)
        if reply.status_code in _AGAIN:
            raise _Refused(reply.status_code, reply.text[:300], _after(reply.headers))
        if reply.status_code != 200:
            what = (
                f"the server refused {path} with {reply.status_code}: "
                f"{self._clean(reply.text[:300])}"
            )
            fix = _FIXES.get(reply.status_code, "see its log: it rejected the request")
            if reply.status_code in _UNFIT:
                for reason, pattern in _REASONS.items():
                    if pattern.search(reply.text):
                        raise _NotThis(reason, what, fix)
            raise StageError(what, fix)
        try:
            answer: dict[str, Any] = reply.json()
        except ValueError:
            raise StageError(
                f"the server's answer to {path} is not JSON",
                "set OPENAI_BASE_URL to an address that ends in /v1",
            ) from None
        return answer

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        pause = error.after if isinstance(error, _Refused) else None
        backoff = tenacity.wait_random_exponential(multiplier=self._patience, max=_LONGEST_WAIT)
        return min(pause, _LONGEST_WAIT) if pause is not None else backoff(state)

    def _clean(self, text: str) -> str:
        """Return `text` without the key, which some servers quote."""
        return text.replace(self._key, "[key]") if self._key else text


# Patterns of messages, with a status of _UNFIT, that refuse one request alone.
_UNFIT = (400, 413, 422)
_REASONS = {
    TOO_LONG: re.compile(
        r"context_length_exceeded|maximum (context|model) length|prompt is too long|"
        r"(exceeds?|longer than) the .{0,40}context",
        re.IGNORECASE,
    ),
    REFUSED: re.compile(r"content_filter|content_policy_violation|content management policy"),
}
_FIXES = {
    400: "see what it says; of a served judge, ask.max_tokens and ask.request change the request",
    401: "set OPENAI_API_KEY to a key of this server",
    403: "set OPENAI_API_KEY to a key that may use this model",
    404: "name the model as the server does with how.served_model, and end OPENAI_BASE_URL in /v1",
}


class OpenAISampler:
    """A served causal model. See engines.Sampler. The tokenizer and the limits are those of the
    checkpoint in `directory`, which the server must serve too."""

    lanes = LANES

    def __init__(self, directory: Path, server: OpenAIServer) -> None:
        local = checkpoint.read(directory)
        self.name = f"openai, served as {server.model}"
        self.tokenizer, self.stop_ids = local.tokenizer, local.stop_ids
        self.max_context = local.max_context
        self.tokens = 0
        self._server = server

    def set_adapter(self, adapter: Path | None) -> None:
        """Do nothing: the server's name stands for one model."""

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        """Sample as engines.Sampler; request i has seed + i."""
        rooms = rooms_of(prompts, sampling, self.max_context)
        bodies = [
            {
                "prompt": list(prompt),
                "max_tokens": room,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": seed + number,
                "stop_token_ids": self.stop_ids,
                "return_token_ids": True,
                **_NEUTRAL,
            }
            for number, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
        ]
        stops, samples = frozenset(self.stop_ids), []
        for number, reply in enumerate(self._server.post_all("/completions", bodies)):
            [choice] = reply["choices"]
            if choice.get("token_ids") is None:
                raise StageError(
                    f"the server of {self._server.model} returns text instead of token ids",
                    "serve the model with vllm serve, or use another engine",
                )
            if choice["finish_reason"] not in ("stop", "length"):
                raise StageError(
                    f"the server ended an answer with {choice['finish_reason']!r}", "see its log"
                )
            samples.append(Completion.cut(choice["token_ids"], stops, seed + number))
        self.tokens += sum(len(sample.token_ids) for sample in samples)
        return samples

    def close(self) -> None:
        self._server.close()


@dataclass(frozen=True)
class Answer:
    """Reply of a served model: text, finish reason (`stop`, `length`, `too_long` or `refused` where
    there is no answer to this request, or a word of the server's), its tokens and those of prompt
    and answer, where the server counts them; `top`: log-probabilities of the likeliest tokens at
    each place, where they were asked for."""

    text: str
    finish_reason: str
    n_tokens: int | None
    n_all: int | None = None
    top: tuple[dict[str, float], ...] = ()


class OpenAIChat:
    """A served chat model, messages in and text out, for judges without public weights. `options`
    are added to every request, such as `chat_template_kwargs`; null removes one."""

    lanes = LANES

    def __init__(self, server: OpenAIServer, options: Mapping[str, Any] | None = None) -> None:
        self.name = f"openai, served as {server.model}"
        self.tokens = 0
        self._server, self._options = server, dict(options or {})

    def answer(
        self, conversations: Sequence[Sequence[Message]], sampling: Sampling, seed: int
    ) -> list[Answer]:
        """Return one answer to each conversation, in order, all with the same seed: the position of
        a request among others changes nothing. Raises StageError."""
        words = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            **self._options,
        }
        words = {key: value for key, value in words.items() if value is not None}
        bodies = [
            {"messages": as_text(None, conversation), **words} for conversation in conversations
        ]
        replies = self._server.post_all("/chat/completions", bodies, each=True)
        answers = [_answer(reply) for reply in replies]
        self.tokens += sum(answer.n_tokens or 0 for answer in answers)
        return answers

    def close(self) -> None:
        self._server.close()


def _answer(reply: Mapping[str, Any]) -> Answer:
    if "no_answer" in reply:
        return Answer("", reply["no_answer"], None)
    try:
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        raise StageError(
            f"the server's reply holds no answer, but {', '.join(reply) or 'nothing'}",
            "check that the server speaks OpenAI's protocol, and its log",
        ) from None
    end = choice.get("finish_reason") or "stop"
    if end == "content_filter" or message.get("refusal"):
        end = REFUSED
    text = message.get("content") or message.get("refusal") or ""
    content = (choice.get("logprobs") or {}).get("content") or []
    top = tuple(
        {
            alternative["token"]: alternative["logprob"]
            for alternative in place.get("top_logprobs") or ()
        }
        for place in content
    )
    return Answer(text, end, usage.get("completion_tokens"), usage.get("total_tokens"), top)


def _after(headers: Mapping[str, str]) -> float | None:
    """Parse Retry-After, seconds or a date, as seconds from now; None without one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _http() -> Any:
    """Return the HTTP library that huggingface_hub uses."""
    try:
        import httpx2 as http  # huggingface_hub 2
    except ImportError:
        import httpx as http  # huggingface_hub 1
    return http
