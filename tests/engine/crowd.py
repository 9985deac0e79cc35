"""Crowd: many clients of a gateway at once, and what each of them is told."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from tests.engine.support import ANSWER_TIMEOUT_S
from utils.sse import SSEParser

ROUTE = "/v1/chat/completions"
POLL_S = 0.02

Body = dict[str, Any]


@dataclass
class Told:
    """One answer, while it comes and once it is there. ``events``: of a stream; of another answer, the whole of it."""

    name: str
    """The request's id."""
    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    events: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0
    """How often ``[DONE]`` came."""

    @property
    def worker(self) -> str:
        return str(self.headers.get("x-ichat-worker"))

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for event in self.events for choice in event.get("choices", [])]

    @property
    def text(self) -> str:
        messages = (choice.get("delta") or choice.get("message") or {} for choice in self.choices)
        return "".join(message.get("content") or "" for message in messages)

    @property
    def heads(self) -> set[tuple[str, int]]:
        return {(event["id"], event["created"]) for event in self.events}

    @property
    def finish_reasons(self) -> list[str]:
        return [choice["finish_reason"] for choice in self.choices if choice["finish_reason"]]

    @property
    def usage(self) -> dict[str, Any]:
        return next((event["usage"] for event in reversed(self.events) if event.get("usage")), {})

    @property
    def error(self) -> dict[str, Any]:
        """That which the answer ended with; {} for none."""
        return self.events[-1].get("error", {}) if self.events else {}


class Crowd:
    """Clients of one gateway; each of them asks once."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def hold(
        self,
        bodies: Sequence[Body],
        *,
        first: int = 0,
        when: Callable[[list[Told]], bool] | None = None,
        then: Callable[[], None] | None = None,
    ) -> list[Told]:
        """All answers; a body that says ``stream`` gets one.

        ``first``: so many ask one after the other, each once the one before it is told something; all others at once.
        ``then`` is called once, as soon as ``when`` is true.
        """
        told = [Told(f"client-{number}") for number in range(len(bodies))]
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as http,
            asyncio.TaskGroup() as group,
        ):
            for number, (body, each) in enumerate(zip(bodies, told, strict=True)):
                group.create_task(ask(http, body, each))
                if number < first:
                    await until(partial(bool, each.events))
            if when is not None and then is not None:
                await until(lambda: when(told))
                then()
        return told


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        while not condition():
            await asyncio.sleep(POLL_S)


async def ask(http: httpx.AsyncClient, body: Body, told: Told) -> None:
    parser = SSEParser()
    async with http.stream("POST", ROUTE, json=body, headers={"x-request-id": told.name}) as answer:
        told.status, told.headers = answer.status_code, answer.headers
        if "event-stream" not in answer.headers["content-type"]:
            told.events.append(json.loads(await answer.aread()))
            return
        async for piece in answer.aiter_bytes():
            for event in parser.feed(piece):
                if event.data == "[DONE]":
                    told.done += 1
                else:
                    told.events.append(json.loads(event.data))
