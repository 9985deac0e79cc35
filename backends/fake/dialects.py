"""What the fake engine says, in the words of OpenAI's responses and of Anthropic's messages: plain text, no tools.

Events: https://platform.openai.com/docs/api-reference/responses-streaming and
https://docs.anthropic.com/en/api/messages-streaming
"""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from backends.fake.words import Prompt

ITEM_ID = "msg_fake"
AT = {"item_id": ITEM_ID, "output_index": 0, "content_index": 0}  # where text belongs


@dataclass(frozen=True, slots=True)
class ResponseAnswer:
    """An answer of ``/v1/responses``."""

    model: str
    prompt: Prompt

    def whole(self, words: list[str]) -> dict[str, Any]:
        prompt, answer = self.prompt.tokens, len(words)
        usage = {"input_tokens": prompt, "output_tokens": answer, "total_tokens": prompt + answer}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        return self._response("completed", [item("completed", [part("".join(words))])], {**usage, **details})

    async def stream(self, tokens: AsyncIterator[str]) -> AsyncIterator[bytes]:
        words: list[str] = []
        yield event("response.created", sequence_number=0, response=self._response("in_progress", [], None))
        yield event("response.output_item.added", sequence_number=1, output_index=0, item=item("in_progress", []))
        yield event("response.content_part.added", sequence_number=2, **AT, part=part(""))
        async for word in tokens:
            words.append(word)
            yield event("response.output_text.delta", sequence_number=2 + len(words), **AT, delta=word, logprobs=[])
        number, text = 3 + len(words), "".join(words)
        yield event("response.output_text.done", sequence_number=number, **AT, text=text, logprobs=[])
        yield event("response.content_part.done", sequence_number=number + 1, **AT, part=part(text))
        closed = item("completed", [part(text)])
        yield event("response.output_item.done", sequence_number=number + 2, output_index=0, item=closed)
        yield event("response.completed", sequence_number=number + 3, response=self.whole(words))

    def _response(self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        head = {"id": "resp_fake", "object": "response", "created_at": int(time.time()), "model": self.model}
        tools = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
        return {**head, "status": status, "error": None, "output": output, "usage": usage, **tools}


@dataclass(frozen=True, slots=True)
class MessageAnswer:
    """An answer of ``/v1/messages``."""

    model: str
    prompt: Prompt

    def whole(self, words: list[str]) -> dict[str, Any]:
        return self._message([{"type": "text", "text": "".join(words)}], "end_turn", len(words))

    async def stream(self, tokens: AsyncIterator[str]) -> AsyncIterator[bytes]:
        count = 0
        yield event("message_start", message=self._message([], None, 0))
        yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        async for word in tokens:
            count += 1
            yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        yield event("content_block_stop", index=0)
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        yield event("message_delta", delta=end, usage={"output_tokens": count})
        yield event("message_stop")

    def _message(self, content: list[dict[str, Any]], stop: str | None, tokens: int) -> dict[str, Any]:
        usage = {"input_tokens": self.prompt.tokens, "output_tokens": tokens}
        head = {"id": ITEM_ID, "type": "message", "role": "assistant", "model": self.model}
        return {**head, "content": content, "stop_reason": stop, "stop_sequence": None, "usage": usage}


def item(status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": ITEM_ID, "type": "message", "role": "assistant", "status": status, "content": content}


def part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def event(name: str, **fields: Any) -> bytes:
    """Both APIs name their events, in the event's line and in its JSON."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()
