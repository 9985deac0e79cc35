"""A language model in a few lines: one answer, told as vLLM or SGLang tell it, from its beginning or from anywhere."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from relay.streams.unresumable import CHAT
from utils.sse import SSEParser

PROMPT_TOKENS = 7
DONE = b"data: [DONE]\n\n"
DIED = (
    b'data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", '
    b'"type": "InternalServerError", "param": null, "code": 500}}\n\n'
)
REFUSED = b'data: {"error": {"message": "too long", "type": "BadRequestError", "param": null, "code": 400}}\n\n'


def sse(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclass(frozen=True)
class Model:
    """``tokens`` are bytes: a character may take several. ``is_vllm``: an event for every token, and the finish reason
    in that of the last; SGLang has events for texts only, and one more for the finish reason. ``joined``: so many
    tokens come in one event, as they do where an HTTP server is slower than its engine."""

    tokens: list[bytes]
    is_vllm: bool = True
    joined: int = 1

    def count(self, text: str) -> int:
        """How many tokens this beginning of the answer has."""
        return next(count for count in range(len(self.tokens) + 1) if b"".join(self.tokens[:count]) == text.encode())

    def answer(self, route: str, asked: dict[str, Any], run: int, begun: str = "") -> bytes:
        """The stream that answers the ``run``th request. ``begun``: what the client itself had put as the beginning."""
        return b"".join(sse(event) for event in self._events(route, asked, run, begun)) + DONE

    def _events(self, route: str, asked: dict[str, Any], run: int, begun: str) -> Iterator[dict[str, Any]]:
        said = self._said(route, asked, begun)
        tokens = self.tokens[said:]
        limit = asked.get("max_tokens") or len(tokens) + 1
        finish = "length" if limit <= len(tokens) else "stop"
        tokens = tokens[:limit]
        kind = "chat.completion.chunk" if route == CHAT else "text_completion"
        head = {"id": f"run-{run}", "object": kind, "created": 1000 + run, "model": f"replica-{run}"}
        options = asked.get("stream_options") or {}

        def chunk(delta: dict[str, Any], count: int, finish: str | None) -> dict[str, Any]:
            what = {"delta": delta} if route == CHAT else {"text": delta["content"] or "", "logprobs": None}
            usage = {"usage": usage_of(said, count)} if options.get("continuous_usage_stats") else {}
            return {**head, "choices": [{"index": 0, **what, "finish_reason": finish}], **usage}

        if route == CHAT:
            yield chunk({"role": "assistant", "content": ""}, 0, None)
        held = ""
        for count, text in enumerate(texts(tokens), 1):
            held += text
            is_last = self.is_vllm and count == len(tokens)
            if is_last or (count % self.joined == 0 and (self.is_vllm or held)):
                yield chunk({"content": held}, count, finish if is_last else None)
                held = ""
        if not (self.is_vllm and tokens):
            yield chunk({"content": None}, len(tokens), finish)
        if options.get("include_usage"):
            yield {**head, "choices": [], "usage": usage_of(said, len(tokens)), "system_fingerprint": f"fp-{run}"}

    def _said(self, route: str, asked: dict[str, Any], begun: str) -> int:
        """How many tokens of the answer the request brings."""
        if route == CHAT:
            given = asked["messages"][-1]["content"] if asked.get("continue_final_message") else begun
        else:
            given = asked["prompt"]
        assert given.startswith(begun)
        said = given[len(begun) :].encode()
        count = 0
        while len(b"".join(self.tokens[:count])) < len(said):
            count += 1
        assert b"".join(self.tokens[:count]) == said, "the answer was not taken up where it ended"
        return count


def usage_of(said: int, count: int) -> dict[str, Any]:
    prompt = PROMPT_TOKENS + said
    return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


def texts(tokens: list[bytes]) -> Iterator[str]:
    """The text that each token adds: none until the last of a character is there."""
    held = b""
    for token in tokens:
        held += token
        try:
            yield held.decode()
            held = b""
        except UnicodeDecodeError:
            yield ""


@dataclass
class View:
    """What a client makes of a stream."""

    heads: set[tuple[str, int, str]]
    fingerprints: set[str]
    roles: list[str]
    text: str
    finishes: list[str]
    usage: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    done: int

    @classmethod
    def of(cls, stream: bytes) -> "View":
        view = cls(set(), set(), [], "", [], [], [], 0)
        for event in SSEParser().feed(stream):
            if event.data == "[DONE]":
                view.done += 1
            else:
                view._add(json.loads(event.data))
        return view

    def _add(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.errors.append(chunk["error"])
            return
        self.heads.add((chunk["id"], chunk["created"], chunk["model"]))
        self.fingerprints |= {chunk["system_fingerprint"]} if "system_fingerprint" in chunk else set()
        self.usage += [chunk["usage"]] if chunk.get("usage") else []
        for choice in chunk["choices"]:
            delta = choice.get("delta", {})
            self.roles += [delta["role"]] if delta.get("role") else []
            self.text += choice.get("text") or delta.get("content") or ""
            self.finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
