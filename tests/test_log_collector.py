"""The gateway follows the log of every worker that serves one, for as long as it knows the worker."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from monitor.heartbeat import Heartbeat
from monitor.log_collector import LogCollector
from monitor.logs import LogBuffer, LogLine
from monitor.registry import WorkerRegistry
from tests.doubles import JUMPING


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


class Workers:
    """Every worker says one line, its address, and stays open."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.open = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((str(request.url), request.headers.get("authorization", "")))
        line = LogLine(1, 1.0, "info", str(request.url)).to_json()
        return httpx.Response(200, stream=Stream(f"id: 1\ndata: {line}\n\n".encode(), self))


class Stream(httpx.AsyncByteStream):
    def __init__(self, sent: bytes, workers: Workers) -> None:
        self._sent = sent
        self._workers = workers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._workers.open += 1
        yield self._sent
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self._workers.open -= 1


class House:
    """A registry, the workers, and the collector between them."""

    def __init__(self) -> None:
        self.workers = Workers()
        self.registry = WorkerRegistry()
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self.workers.answer))
        self.logs = LogCollector(self.registry, self.client, token="t0ken")

    async def beat(self, worker_id: str = "w", **more: Any) -> None:
        """A beat, and the time for what follows from it."""
        facts = {"worker_id": worker_id, "model_name": "m", "backend": "fake", "host": "h", "port": 1}
        self.registry.upsert(Heartbeat.model_validate({**facts, "log_streaming": True, **more}), 0)
        await asyncio.sleep(60)

    def texts(self, worker_id: str = "w") -> list[str]:
        buffer = self.logs.buffer(worker_id)
        assert buffer is not None
        return [line.text for line in buffer.tail(99)]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    await house.logs.stop()
    await house.client.aclose()
    assert house.workers.open == 0


async def end_of(buffer: LogBuffer) -> None:
    """Returns when the buffer's readers are at their end."""
    async with asyncio.timeout(3600):
        async for _ in buffer.open_reader():
            pass


@pytest.mark.anyio
async def test_a_workers_log_is_followed_from_its_first_beat(house: House) -> None:
    await house.beat()
    assert house.texts() == ["http://h:1/logs/stream"]
    assert house.workers.asked == [("http://h:1/logs/stream", "Bearer t0ken")]


@pytest.mark.anyio
async def test_more_beats_do_not_double_the_log(house: House) -> None:
    for state in ("loading", "ready", "unhealthy"):
        await house.beat(state=state)
    assert house.workers.open == 1
    assert len(house.texts()) == 1


@pytest.mark.anyio
async def test_an_ipv6_worker_is_reached(house: House) -> None:
    await house.beat(host="::1")
    assert house.texts() == ["http://[::1]:1/logs/stream"]


@pytest.mark.anyio
@pytest.mark.parametrize("fact", [{"log_streaming": False}, {"state": "stopping"}, {"state": "failed"}])
async def test_a_worker_without_a_log_has_an_empty_one(house: House, fact: dict[str, Any]) -> None:
    await house.beat(**fact)
    assert house.texts() == []
    assert not house.workers.asked


@pytest.mark.anyio
async def test_every_worker_has_its_own_log(house: House) -> None:
    await house.beat("a", port=1)
    await house.beat("b", port=2)
    assert (house.texts("a"), house.texts("b")) == (["http://h:1/logs/stream"], ["http://h:2/logs/stream"])


@pytest.mark.anyio
async def test_a_worker_that_comes_back_elsewhere_is_followed_there_in_the_same_log(house: House) -> None:
    await house.beat(port=1)
    house.registry.mark_unreachable("w", "refused")
    await house.beat(port=2)
    assert house.texts() == ["http://h:1/logs/stream", "http://h:2/logs/stream"]
    assert house.workers.open == 1


@pytest.mark.anyio
async def test_a_forgotten_worker_is_followed_no_more_and_its_readers_end(house: House) -> None:
    await house.beat()
    buffer = house.logs.buffer("w")
    assert buffer is not None
    house.registry.forget("w")
    await end_of(buffer)
    await asyncio.sleep(60)
    assert house.logs.buffer("w") is None
    assert house.workers.open == 0


@pytest.mark.anyio
async def test_an_unknown_worker_has_no_log(house: House) -> None:
    assert house.logs.buffer("nobody") is None


@pytest.mark.anyio
async def test_closing_ends_the_streams_of_all_readers(house: House) -> None:
    await house.beat("a", port=1)
    await house.beat("b", port=2)
    buffers = [house.logs.buffer("a"), house.logs.buffer("b")]
    house.logs.close()
    for buffer in buffers:
        assert buffer is not None
        await end_of(buffer)
