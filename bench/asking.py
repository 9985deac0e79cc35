"""Clients that hold conversations with a gateway, and note how soon each answer began."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from bench.answers import MODEL
from bench.conversations import Conversation
from bench.questions import CLIENT_KEY

ANSWER_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer. ``cached``: of the prompt's tokens, those that the engine had. ``error``: "" for a whole answer."""

    first_token_s: float = 0.0
    prompt: int = 0
    cached: int = 0
    text: str = ""
    worker: str = ""
    error: str = ""


class Asker:
    """Holds conversations, ``together`` at a time, each turn as soon as the one before is answered."""

    def __init__(self, port: int, together: int, max_tokens: int) -> None:
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._room = asyncio.Semaphore(together)
        self._max_tokens = max_tokens

    async def hold(self, conversations: Sequence[Conversation]) -> list[Turn]:
        """All their turns. Nothing is raised: what went wrong is said in the turn."""
        async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            found = await asyncio.gather(*(self._converse(client, conversation) for conversation in conversations))
        return [turn for turns in found for turn in turns]

    async def _converse(self, client: httpx.AsyncClient, conversation: Conversation) -> list[Turn]:
        messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
        turns: list[Turn] = []
        async with self._room:
            for said in conversation.turns:
                messages.append({"role": "user", "content": said})
                turns.append(turn := await self._ask(client, conversation.name, messages))
                if turn.error:
                    break
                messages.append({"role": "assistant", "content": turn.text})
        return turns

    async def _ask(self, client: httpx.AsyncClient, session: str, messages: Sequence[Mapping[str, str]]) -> Turn:
        question = {
            "model": MODEL, "messages": messages, "max_tokens": self._max_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        headers = {"authorization": f"Bearer {CLIENT_KEY}", "x-ichat-session": session}
        asked = time.perf_counter()
        try:
            async with client.stream("POST", self._url, json=question, headers=headers) as answer:
                if answer.status_code != 200:
                    return Turn(error=f"status {answer.status_code}: {(await answer.aread())[:200]!r}")
                notes = Notes(asked)
                async for line in answer.aiter_lines():
                    notes.read(line)
                return notes.turn(answer.headers.get("x-ichat-worker", ""))
        except httpx.HTTPError as error:
            return Turn(error=f"{type(error).__name__}: {error}")


class Notes:
    """What a stream's lines say, as they come."""

    def __init__(self, asked: float) -> None:
        self._asked = asked
        self._first = 0.0
        self._pieces: list[str] = []
        self._usage: Mapping[str, Any] = {}
        self._is_whole = False

    def read(self, line: str) -> None:
        if not line.startswith("data:"):
            return
        event = line.removeprefix("data:").strip()
        if event == "[DONE]":
            self._is_whole = True
            return
        chunk = json.loads(event)
        self._usage = chunk.get("usage") or self._usage
        if text := "".join(texts(chunk)):
            self._first = self._first or time.perf_counter()
            self._pieces.append(text)

    def turn(self, worker: str) -> Turn:
        if not self._is_whole:
            return Turn(error="the stream broke", worker=worker)
        details = self._usage.get("prompt_tokens_details") or {}
        prompt, cached = self._usage.get("prompt_tokens") or 0, details.get("cached_tokens") or 0
        first_s = (self._first or time.perf_counter()) - self._asked
        return Turn(first_s, prompt, cached, "".join(self._pieces), worker)


def texts(chunk: Mapping[str, Any]) -> Iterator[str]:
    for choice in chunk.get("choices") or ():
        yield choice["delta"].get("content") or ""
