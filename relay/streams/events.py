"""The events of a chat's or a completion's stream, as bytes and as what they say.

Chunks: https://platform.openai.com/docs/api-reference/chat-streaming and .../completions; error events as vLLM and
SGLang send them: ``data: {"error": {"message", "type", "code", ...}}``.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from utils.errors import ApiError
from utils.sse import SSEParser

DONE: Final = "[DONE]"
REASONING: Final = ("reasoning_content", "reasoning")
BOM: Final = b"\xef\xbb\xbf"
CUT_SHORT: Final = frozenset({"abort", "error"})
"""Finish reasons of an engine that did not finish: it stops, or failed on this request."""
OWN_ERRORS: Final = frozenset({"invalid_request_error", "BadRequestError"})
"""Types of errors that say that the request is wrong, where no numeric code does."""
NOT_IMPLEMENTED: Final = 501

_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r|\n)")
_SURE_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?!\Z)|\n)")
"""Not with a CR at the end of what has come: the LF that may follow belongs to it."""
_LOOK_BACK: Final = 3
"""A blank line of at most four bytes that the end of a piece cuts has at most this many before the cut."""


class Choice(msgspec.Struct):
    """What a chunk has of one answer: ``delta`` in chats, ``text`` in completions."""

    index: int | None = 0
    delta: dict[str, Any] | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> str:
        content = (self.delta or {}).get("content") if self.text is None else self.text
        return content if isinstance(content, str) else ""

    @property
    def role(self) -> str | None:
        return (self.delta or {}).get("role")

    @property
    def reasoning(self) -> bool:
        return any((self.delta or {}).get(name) for name in REASONING)

    @property
    def other(self) -> list[str]:
        """What it holds beside text and reasoning: tool calls, refusals, audio."""
        known = ("role", *REASONING)
        given = [name for name, value in (self.delta or {}).items() if value and name not in known]
        return [name for name in given if name != "content" or not self.said]


class Usage(msgspec.Struct):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0


class Chunk(msgspec.Struct):
    """An event's object. What is to be repeated byte for byte stays raw."""

    id: msgspec.Raw = msgspec.Raw()
    object: msgspec.Raw = msgspec.Raw()
    created: msgspec.Raw = msgspec.Raw()
    model: msgspec.Raw = msgspec.Raw()
    system_fingerprint: msgspec.Raw = msgspec.Raw()
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


_chunk: Final = msgspec.json.Decoder(Chunk)


def read_chunk(event: str) -> Chunk | None:
    """The object of an event's data; None for what is no chunk, such as ``[DONE]``."""
    try:
        return _chunk.decode(event)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def events_in(pieces: Iterable[bytes]) -> Iterator[str]:
    """The data of the events in these pieces of one stream. Raises ValueError as ``SSEParser.feed`` does."""
    parser = SSEParser()
    for block in b"".join(pieces).split(b"\n\n"):
        # What engines send, event by event; the parser takes what is written in another way.
        if block.startswith(b"data: ") and not (b"\n" in block or b"\r" in block):
            yield block[6:].decode("utf-8", "replace")
        else:
            yield from (event.data for event in parser.feed(block + b"\n\n"))


def data_of(block: bytes) -> str | None:
    """The data of one event's bytes; None for a comment, or where there are none. Raises as ``events_in`` does."""
    return next(events_in([block, b"\n\n"]), None)


class Blocks:
    """Bytes in as they arrive; out come the same bytes, but only up to where an event ends. CR, LF and CRLF may mix."""

    __slots__ = ("_tail", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._tail = b""

    def feed(self, piece: bytes) -> bytes:
        if not piece:
            return b""
        window = self._tail + piece
        end = last_end(window, _SURE_BLANK_LINE)
        if end <= len(self._tail):  # the tail itself holds no whole blank line: it would have gone out
            self._waiting.append(piece)
            self._tail = window[-_LOOK_BACK:]
            return b""
        cut = end - len(self._tail)
        ready = b"".join([*self._waiting, piece[:cut]])
        rest = piece[cut:]
        self._waiting, self._tail = [rest] if rest else [], rest[-_LOOK_BACK:]
        return ready

    def end(self) -> tuple[bytes, bytes]:
        """Nothing more comes: what was waiting, whole events and what is left of another."""
        rest, self._waiting, self._tail = b"".join(self._waiting), [], b""
        end = last_end(rest, _BLANK_LINE)
        return rest[:end], rest[end:]

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting)


def last_end(block: bytes, blank_line: re.Pattern[bytes]) -> int:
    """Where the last whole event in these bytes ends; 0 without any."""
    end = 0
    for match in blank_line.finditer(block):
        end = match.end()
    return end


def split_events(block: bytes) -> list[bytes]:
    """The bytes of whole events, one by one; what is left after the last of them comes last."""
    ends = [match.end() for match in _BLANK_LINE.finditer(block)]
    blocks = [block[start:end] for start, end in zip([0, *ends], [*ends, len(block)], strict=True)]
    return [block for block in blocks if block]


def is_engines_fault(error: Any) -> bool:
    """Whether an error event says that the engine failed, so that another one may do better.

    By the code, an HTTP status in vLLM and SGLang: 4xx is the request's own, as is "not implemented". Without a numeric
    code, by the type. vLLM reports a dead engine as 500 (``EngineDeadError``), a request to be tried again as 503.
    """
    if not isinstance(error, dict):
        return True
    code = error.get("code")
    if isinstance(code, int):
        return not (400 <= code < 500 or code == NOT_IMPLEMENTED)
    return error.get("type") not in OWN_ERRORS


def message_of(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:300]


def error_event(error: ApiError) -> bytes:
    """The event with which a stream ends that cannot go on. No ``[DONE]`` follows: nobody may take it for whole."""
    return b"data: %b\n\n" % error.body()
