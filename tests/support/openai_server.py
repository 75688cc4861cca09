"""A server that speaks OpenAI's protocol and fails on purpose, in a process of its own.

    python -m tests.support.openai_server PORT LOG

It answers prompts of token ids with the same ids in reverse, and messages with their last text.
What it is to do wrong comes with the request, as words in the model's name: `busy-2` refuses each
request twice with 429, `broken-2` with 500, `cut-2` drops the connection, `text` leaves the token
ids out, `never` always fails. `judge` prefers the longer of two answers, wherever it stands, and
takes no word that OpenAI's own server does not; `judge-thinks` takes those of vLLM's. `elsewhere`
answers with a page of HTML, `empty` with no choice.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KEY = "sk-not-for-any-log"
_seen: Counter[str] = Counter()
_open = 0


async def complete(request: Request) -> Response:
    global _open
    body = await request.json()
    _open += 1
    try:
        return await _complete(request, body)
    finally:
        _open -= 1


async def _complete(request: Request, body: dict[str, Any]) -> Response:
    model = body["model"]
    name = json.dumps([model, body.get("prompt"), body.get("messages"), body.get("seed")])
    _seen[name] += 1
    with Path(sys.argv[2]).open("a") as log:
        line = {"at": time.time(), "open": _open, "attempt": _seen[name], "path": request.url.path}
        log.write(json.dumps({**line, "body": body}) + "\n")
    if request.headers.get("authorization") != f"Bearer {KEY}":
        said = f"Incorrect API key provided: {request.headers.get('authorization')}"
        return JSONResponse({"error": {"message": said}}, 401)
    for word, status in (("busy", 429), ("broken", 500), ("cut", 0)):
        if (found := re.search(rf"{word}-(\d+)", model)) and _seen[name] <= int(found[1]):
            if not status:
                request.scope["transport"].abort()
                return Response()
            headers = {"retry-after": "0.4"} if status == 429 else {}
            return JSONResponse({"error": {"message": f"{word}, {KEY}"}}, status, headers)
    if "never" in model:
        return JSONResponse({"error": {"message": f"no: {KEY}"}}, 503)
    if "elsewhere" in model:
        return Response("<html>a page</html>", media_type="text/html")
    if "empty" in model:
        return JSONResponse({"error": {"message": "overloaded"}, "choices": []})
    if "unknown" in model:
        return JSONResponse({"error": {"message": "no such model"}}, 404)
    await asyncio.sleep(0.05)
    if model.startswith("judge"):
        return _judge(model, body)
    if "messages" in body:
        text = body["messages"][-1]["content"]
        choice: dict[str, Any] = {"message": {"content": text}, "finish_reason": "stop"}
        return JSONResponse({"choices": [choice], "usage": {"completion_tokens": len(text)}})
    ids = list(reversed(body["prompt"]))[: body["max_tokens"]]
    end = "length" if len(ids) == body["max_tokens"] else "stop"
    choice = {"text": "", "finish_reason": end, "token_ids": None if "text" in model else ids}
    return JSONResponse({"choices": [choice]})


_OPENAI = {"model", "messages", "max_completion_tokens", "temperature", "top_p", "seed"}
_CONTEXT = 4000  # characters that `judge` takes


def _judge(model: str, body: dict[str, Any]) -> JSONResponse:
    text = body["messages"][-1]["content"]
    known = _OPENAI | ({"max_tokens", "chat_template_kwargs"} if "thinks" in model else set())
    if other := sorted(body.keys() - known):
        said = {"message": f"Unsupported parameter: '{other[0]}' is not supported with this model."}
        return JSONResponse({"error": said}, 400)
    if len(text) > _CONTEXT:
        said = {"message": "This model's maximum context length is exceeded.",
                "code": "context_length_exceeded"}  # fmt: skip
        return JSONResponse({"error": said}, 400)
    if "forbidden" in text:
        said = {"message": "The prompt was filtered.", "code": "content_filter"}
        return JSONResponse({"error": said}, 400)
    first, second = (
        len(text.split(f"[Answer {side}]\n")[1].split(f"\n[End of answer {side}]")[0])
        for side in "AB"
    )
    verdict = "[[TIE]]" if first == second else "[[A]]" if first > second else "[[B]]"
    said = f"Answer A has {first} characters, answer B {second}.\n{verdict}"
    message: dict[str, Any] = {"content": said}
    end = "length" if "endless" in text else "stop"
    if "improper" in text:
        message, end = {"content": None, "refusal": "I will not judge this."}, "stop"
    usage = {"completion_tokens": 10, "total_tokens": 10 + len(text) // 4}
    choice = {"message": message, "finish_reason": end}
    return JSONResponse({"choices": [choice], "usage": usage})


class _Transport:
    """Puts the connection's transport within reach of the handler, so that it can be cut."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["transport"] = getattr(receive, "__self__", None).transport
        await self.app(scope, receive, send)


def main() -> None:
    """Serve until killed."""
    routes = [
        Route(f"/v1/{path}", complete, methods=["POST"])
        for path in ("completions", "chat/completions")
    ]
    app = _Transport(Starlette(routes=routes))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", http="h11")


if __name__ == "__main__":
    assert os.environ.get("OPENAI_API_KEY") is None
    main()
