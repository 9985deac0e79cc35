"""What a request that got no answer costs its key: its prompt, if a worker had it when its client gave it up."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from config.admission import AdmissionSettings
from relay.admission.limits import estimate_tokens
from tests.relay_double import MODEL, Gate, door
from tests.scripted import read_request, scripted
from tests.support import chat_body

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
LIMIT: Final = 10**6
KEY = {"name": "a", "hash": hashlib.sha256(b"sk-a").hexdigest(), "limits": {"tokens_per_minute": LIMIT}}
LONG = json.dumps(chat_body(MODEL, "word " * 1000, max_tokens=500)).encode()
SHORT = json.dumps(chat_body(MODEL, "hi")).encode()
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Worker:
    """Silent, or broken, at a long prompt; answers the others."""

    def __init__(self, answer: bytes = b"") -> None:
        self.has_it = asyncio.Event()
        self._answer = answer

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
            if body != LONG:
                writer.write(OK)
                continue
            self.has_it.set()
            writer.write(self._answer)
            if not self._answer:
                await reader.read()  # until it is given up


@asynccontextmanager
async def limited(worker: Worker, **admission: Any) -> AsyncIterator[Gate]:
    settings = AdmissionSettings.model_validate(admission)
    async with scripted(worker.script) as (_, address), door(None, settings, keys=[KEY]) as gate:
        gate.add("w", address)
        yield gate


async def ask(gate: Gate, body: bytes, **headers: str) -> Any:
    headers = {"authorization": "Bearer sk-a", "content-type": "application/json", **headers}
    return await gate.http.post(CHAT, content=body, headers=headers)


async def cost(gate: Gate) -> int:
    """Of what was asked until now, in tokens."""
    async with asyncio.timeout(5):
        while gate.router.in_flight or gate.lobby.lengths():
            await asyncio.sleep(0.002)
    answer = await ask(gate, SHORT)
    return LIMIT - int(answer.headers["x-ratelimit-remaining-tokens"]) - estimate_tokens(SHORT)


async def test_a_client_that_leaves_a_worker_at_work_pays_its_prompt() -> None:
    worker = Worker()
    async with limited(worker) as gate:
        asking = asyncio.create_task(ask(gate, LONG))
        await asyncio.wait_for(worker.has_it.wait(), 5)
        asking.cancel()
        assert await cost(gate) == estimate_tokens(LONG) > 1000


async def test_a_client_that_gives_a_worker_no_time_pays_its_prompt() -> None:
    worker = Worker()
    async with limited(worker) as gate:
        answer = await ask(gate, LONG, **{"x-ichat-timeout-s": "0.1"})
        assert (answer.status_code, worker.has_it.is_set()) == (504, True)
        assert await cost(gate) == estimate_tokens(LONG)


async def test_a_client_that_leaves_the_queue_pays_nothing() -> None:
    worker = Worker()
    async with limited(worker, capacity=1) as gate:
        gate.router.in_flight["w"] = 1
        asking = asyncio.create_task(ask(gate, LONG))
        async with asyncio.timeout(5):
            while not gate.lobby.lengths():
                await asyncio.sleep(0.002)
        asking.cancel()
        async with asyncio.timeout(5):
            while gate.lobby.lengths():
                await asyncio.sleep(0.002)
        del gate.router.in_flight["w"]
        assert await cost(gate) == 0
        assert not worker.has_it.is_set()


async def test_a_client_whose_time_is_over_in_the_queue_pays_nothing() -> None:
    worker = Worker()
    async with limited(worker, capacity=1) as gate:
        gate.router.in_flight["w"] = 1
        answer = await ask(gate, LONG, **{"x-ichat-timeout-s": "0.05"})
        assert answer.status_code in (503, 504)
        del gate.router.in_flight["w"]
        assert await cost(gate) == 0


async def test_a_worker_that_breaks_costs_nothing() -> None:
    worker = Worker(b"garbage\r\n\r\n")
    async with limited(worker) as gate:
        assert (await ask(gate, LONG)).status_code == 502
        assert worker.has_it.is_set()
        assert await cost(gate) == 0
