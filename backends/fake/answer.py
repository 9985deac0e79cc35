"""What the fake engine says, in the words of OpenAI's chats and completions, and what it says when it breaks."""

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from backends.fake.words import Prompt


class EngineDied(Exception):
    """``report``: whether the stream says so."""

    def __init__(self, *, report: bool) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")
        self.report = report

    def error(self) -> dict[str, Any]:
        """As vLLM 0.32 writes it."""
        return {"error": {"message": str(self), "type": "InternalServerError", "param": None, "code": 500}}


ChoiceMaker = Callable[[str, str | None, bool], dict[str, Any]]
"""(text, finish reason, whether it is one piece of a stream) -> a choice object."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The JSON objects of one answer, of a chat or a completion."""

    model: str
    prompt: Prompt
    kind: str
    choice: ChoiceMaker
    usage: bool  # whether a stream ends with it
    continuous_usage: bool  # whether each chunk has it

    async def stream(self, tokens: AsyncIterator[str]) -> AsyncIterator[bytes]:
        count = 0
        try:
            async for word in tokens:
                count += 1
                yield sse(self.chunk(word, None, count))
            yield sse(self.chunk("", "stop", count))
            if self.usage:
                yield sse(self.usage_chunk(count))
        except EngineDied as death:
            if death.report:
                yield sse(death.error())
        yield b"data: [DONE]\n\n"

    def chunk(self, text: str, finish: str | None, tokens: int) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        usage = {"usage": self._usage(tokens)} if self.continuous_usage else {}
        return {**self._head(kind), "choices": [self.choice(text, finish, True)], **usage}

    def usage_chunk(self, tokens: int) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.kind == "chat.completion" else self.kind
        return {**self._head(kind), "choices": [], "usage": self._usage(tokens)}

    def whole(self, words: list[str]) -> dict[str, Any]:
        choice = self.choice("".join(words), "stop", False)
        return {**self._head(self.kind), "choices": [choice], "usage": self._usage(len(words))}

    def _head(self, kind: str) -> dict[str, Any]:
        begun = f" + {self.prompt.said}" if self.prompt.said else ""  # it is another request
        identity = hashlib.sha256(f"{self.prompt.text}{begun}".encode()).hexdigest()[:24]
        return {"id": f"fake-{identity}", "object": kind, "created": int(time.time()), "model": self.model}

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = self.prompt.tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def chat_choice(text: str, finish: str | None, piece: bool) -> dict[str, Any]:
    message = {"content": text} if piece else {"role": "assistant", "content": text}
    return {"index": 0, "delta" if piece else "message": message, "finish_reason": finish}


def text_choice(text: str, finish: str | None, _: bool) -> dict[str, Any]:
    return {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}


def sse(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"
