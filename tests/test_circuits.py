"""Circuits at work: how requests try a replica that has failed again and again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from config.settings import RoutingSettings
from tests.relay_double import Gate, door
from tests.scripted import read_request, scripted

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Worker:
    """Notes what it is asked; says nothing to what begins with "long" until the client goes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.grew = asyncio.Event()

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
            question = json.loads(body)["messages"][0]["content"]
            self.asked.append(question)
            self.grew.set()
            if question.startswith("long"):
                await reader.read()
                return
            writer.write(OK)


class Stage:
    """A worker that has failed, has the request ``long ago`` from before that, and may be tried now; and another one,
    which has so much to do that it is asked only if the first must not be.
    """

    def __init__(self, gate: Gate, worker: Worker) -> None:
        self._gate = gate
        self._worker = worker
        self._tasks: dict[str, asyncio.Task[httpx.Response]] = {}

    async def place(self, what: str) -> None:
        """Ask, and wait until the worker has it."""
        self._tasks[what] = asyncio.create_task(self._gate.chat(**question(what)))
        async with asyncio.timeout(5):
            while what not in self._worker.asked:
                self._worker.grew.clear()
                await self._worker.grew.wait()

    async def leave(self, what: str) -> None:
        """Its client goes."""
        before = self._gate.router.in_flight["failed"]
        self._tasks.pop(what).cancel()
        async with asyncio.timeout(5):
            while self._gate.router.in_flight.get("failed", 0) == before:
                await asyncio.sleep(0.002)

    async def goes_to(self, what: str) -> str:
        return (await self._gate.chat(**question(what))).headers["x-ichat-worker"]

    def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()


def question(what: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": what}]}


@asynccontextmanager
async def half_open() -> AsyncIterator[Stage]:
    worker, other = Worker(), Worker()
    async with (
        scripted(worker.script) as (_, address),
        scripted(other.script) as (_, second),
        door(RoutingSettings(policy="least_load"), circuit_threshold=1, circuit_cooldown_s=0.001) as gate,
    ):
        gate.add("failed", address)
        stage = Stage(gate, worker)
        await stage.place("long ago")
        gate.add("other", second)
        gate.router.in_flight["other"] = 100
        gate.router._breakers.failed("failed", time.monotonic() - 1)
        yield stage
        stage.end()


async def test_one_request_tries_it_and_the_others_do_not() -> None:
    async with half_open() as stage:
        await stage.place("long try")
        assert [await stage.goes_to("a"), await stage.goes_to("b")] == ["other", "other"]


async def test_what_it_had_before_is_not_the_one_that_tries() -> None:
    async with half_open() as stage:
        await stage.place("long try")
        await stage.leave("long ago")
        assert await stage.goes_to("a") == "other"


async def test_another_one_may_try_when_the_client_of_the_first_has_gone() -> None:
    async with half_open() as stage:
        await stage.place("long try")
        await stage.leave("long try")
        assert await stage.goes_to("a") == "failed"


async def test_a_try_that_is_answered_ends_it() -> None:
    async with half_open() as stage:
        assert await stage.goes_to("try") == "failed"
        await stage.place("long one")
        assert await stage.goes_to("a") == "failed"
