"""SGLang's app, with what it answers otherwise than the field put right: reranking, adapters, unreadable tools."""

import json
import math
from collections.abc import Callable, Collection
from typing import Any, Final

from backends.base import ASGIApp
from utils.asgi import read_body, replay
from utils.errors import BadRequest

NO_TOOL_PARSER: Final = (
    "this worker was started without --tool-call-parser: it cannot read what the model says of tools. "
    'Start it with one, or send tool_choice "required" or a tool by name'
)
RERANK: Final = frozenset({"/rerank", "/v1/rerank", "/v2/rerank"})


class SGLangApp:
    """Raw ASGI. All else is SGLang's own. ``adapters``: those that can be asked for now."""

    def __init__(
        self,
        app: ASGIApp,
        tasks: Collection[str],
        adapters: Callable[[], Collection[str]] = tuple,
        *,
        has_tool_parser: bool = True,
    ) -> None:
        self._has_tool_parser = has_tool_parser
        self._app = app
        self._adapters = adapters
        self._is_cross_encoder = "score" in tasks
        self._tasks = tasks

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif scope["path"] not in RERANK:
            await self._serve(scope, receive, send)
        elif self._is_cross_encoder or "generate" in self._tasks:  # some generating models are rerankers too
            await self._rerank(scope, receive, send)
        else:
            # SGLang would answer with numbers that mean nothing.
            kinds = ", ".join(sorted(self._tasks))
            error = BadRequest(f"this model cannot rerank, it can {kinds}: ask one that was made for reranking")
            await answer(send, 400, error.body())

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """SGLang knows an adapter as ``MODEL:NAME``, or by a field of its own; a client asks for the model ``NAME``."""
        request = await read_body(receive)
        if request is None:
            return
        if not self._has_tool_parser and wants_tools(request):
            # SGLang would show the model the tools, and pass on whatever it says as if it were meant for the user.
            error = BadRequest(NO_TOOL_PARSER, param="tools")
            await answer(send, 400, error.body())
            return
        body = with_adapter(request, self._adapters())
        length = (b"content-length", b"%d" % len(body))
        headers = [*(each for each in scope["headers"] if each[0] != b"content-length"), length]
        await self._app({**scope, "headers": headers}, replay(body, receive), send)

    async def _rerank(self, scope: Any, receive: Any, send: Any) -> None:
        """SGLang answers a bare list; Cohere's and Jina's clients, and vLLM, know ``results``."""
        request = await read_body(receive)
        if request is None:
            return
        head: dict[str, Any] = {}
        pieces: list[bytes] = []

        async def keep(message: Any) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
            else:
                pieces.append(message.get("body", b""))

        scope = {**scope, "path": "/v1/rerank", "raw_path": b"/v1/rerank"}
        await self._app(scope, replay(request, receive), keep)
        body = b"".join(pieces)
        await answer(
            send, head["status"], reshape(request, body, self._is_cross_encoder) if head["status"] == 200 else body
        )


def wants_tools(request: bytes) -> bool:
    """Whether the model may choose a tool; one that must be called needs no parser, its call is forced."""
    asked = object_in(request) if b'"tools"' in request else {}
    return bool(asked.get("tools")) and asked.get("tool_choice") in (None, "auto", {"type": "auto"})


def with_adapter(request: bytes, adapters: Collection[str]) -> bytes:
    """The request as SGLang wants it, if it names an adapter as its model; else as it is."""
    asked = object_in(request) if adapters else {}
    model = asked.get("model")
    if not isinstance(model, str) or model not in adapters:
        return request
    return json.dumps({**asked, "lora_path": model}).encode()


def object_in(request: bytes) -> dict[str, Any]:
    """The request's JSON object; {} for anything else, about which SGLang will say what is wrong."""
    try:
        asked = json.loads(request)
    except (ValueError, RecursionError):
        return {}
    return asked if isinstance(asked, dict) else {}


def reshape(request: bytes, body: bytes, are_logits: bool) -> bytes:
    """``[{"score", "index", "document"}]`` as ``{"results": [{"index", "relevance_score", "document"}]}``.

    A cross-encoder's scores come as logits; relevance is between 0 and 1, as vLLM and transformers' pipeline have it.
    """
    rows = json.loads(body)
    if not isinstance(rows, list):
        return body
    asked = json.loads(request)
    documents = asked.get("documents") or []
    results = [
        {
            "index": row["index"],
            "relevance_score": sigmoid(row["score"]) if are_logits else row["score"],
            "document": {"text": documents[row["index"]]},
        }
        for row in sorted(rows, key=lambda row: -float(row["score"]))
    ]
    top = asked.get("top_n")
    return json.dumps({"model": asked.get("model"), "results": results[:top] if top else results}).encode()


def sigmoid(logit: float) -> float:
    """Without an overflow at either end."""
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


async def answer(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
