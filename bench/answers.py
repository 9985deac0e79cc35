"""What the load asks and what the mock engine answers: pure functions, so that both sides know every byte."""

import functools
import hashlib
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

MODEL: Final = "bench-model"
CREATED: Final = 1_700_000_000
PROMPT: Final = "The quick brown fox jumps over the lazy dog. " * 6
SENTENCE: Final = "Every token that a client reads has gone through the gateway once. "
WORDS: Final = (" the", " quick", " brown", " fox", " jumps", " over", " lazy", " dog")
MAX_CACHED: Final = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """``writes``: what goes on the wire, a write each. ``body``: what a client must have read in the end."""

    writes: tuple[bytes, ...]
    body: bytes
    status: int = 200


def request_body(seed: int, chunks: int, **more: Any) -> bytes:
    """An OpenAI chat request for an answer of so many chunks; 0 asks for one that is not streamed.

    ``bench_status=400`` asks the mock engine for an error.
    """
    question: dict[str, Any] = {
        "messages": [{"role": "user", "content": PROMPT}],
        "model": MODEL,
        "max_tokens": chunks or 100,
        "seed": seed,
        "temperature": 0.7,
        **more,
    }
    return json.dumps(question | {"stream": True} if chunks else question).encode()


@functools.lru_cache(MAX_CACHED)
def answer_to(body: bytes) -> Answer:
    """The one answer to a request body. A hash of what was asked stands in it: a changed question changes it.

    Raises ValueError, LookupError or TypeError for a body that ``request_body`` did not make.
    """
    question = json.loads(body)
    mark = _mark_of(question)
    if "bench_status" in question:
        return _error(mark, question["bench_status"])
    return _stream(mark, _limit_of(question)) if question.get("stream") else _whole(mark)


def text_of(body: bytes) -> str:
    """What an answer says, streamed or not. Raises ValueError, LookupError or TypeError for what is no answer."""
    if not body.startswith(b"data:"):
        return str(json.loads(body)["choices"][0]["message"]["content"])
    events = [line[5:] for line in body.split(b"\n") if line.startswith(b"data:")]
    if events.pop().strip() != b"[DONE]":
        raise ValueError("a stream without an end")
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def _mark_of(question: dict[str, Any]) -> str:
    # Of the fields that we send: some peers write the body anew, and add defaults of their own.
    asked = [question["model"], question["messages"], question["seed"], _limit_of(question)]
    return hashlib.blake2b(_json(asked), digest_size=8).hexdigest()


def _limit_of(question: dict[str, Any]) -> int:
    # The field has a newer name, which sglang-router puts in place of the old one.
    return int(question["max_tokens"] if "max_tokens" in question else question["max_completion_tokens"])


def _error(mark: str, status: int) -> Answer:
    body = _json({"error": {"message": f"asked for: {mark}", "type": "bench", "param": None, "code": status}})
    head = _head(b"application/json", b"content-length: %d" % len(body), status)
    return Answer((head + body,), body, status)


def _whole(mark: str) -> Answer:
    message: dict[str, Any] = {"role": "assistant", "content": SENTENCE * 3, "refusal": None, "tool_calls": []}
    body = _json(
        {
            "id": f"chatcmpl-{mark}", "object": "chat.completion", "created": CREATED, "model": MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 61, "completion_tokens": 39, "total_tokens": 100},
            "system_fingerprint": mark,
        }
    )  # fmt: skip
    return Answer((_head(b"application/json", b"content-length: %d" % len(body)) + body,), body)


def _stream(mark: str, chunks: int) -> Answer:
    events = [_event(mark, {"content": WORDS[number % len(WORDS)]}, None) for number in range(chunks)]
    events[0] = _event(mark, {"role": "assistant", "content": ""}, None)
    events[-1] = _event(mark, {"content": ""}, "stop") + b"data: [DONE]\n\n"
    writes = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    writes[0] = _head(b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked") + writes[0]
    writes[-1] += b"0\r\n\r\n"
    return Answer(tuple(writes), b"".join(events))


def _event(mark: str, delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk = {
        "id": f"chatcmpl-{mark}", "object": "chat.completion.chunk", "created": CREATED, "model": MODEL,
        "choices": [choice],
    }  # fmt: skip
    return b"data: " + _json(chunk) + b"\n\n"


def _head(content_type: bytes, framing: bytes, status: int = 200) -> bytes:
    phrase = HTTPStatus(status).phrase.encode()
    return (
        b"HTTP/1.1 %d %b\r\ndate: Sat, 31 Jan 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
        b"content-type: %b\r\n%b\r\n\r\n" % (status, phrase, content_type, framing)
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
