"""Workers are looked after between their beats."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.states import WorkerState
from monitor.heartbeat import Heartbeat
from monitor.prober import Prober, try_connection
from monitor.registry import WorkerRegistry
from tests.doubles import JUMPING
from utils.common import bind_socket

READY, UNHEALTHY = WorkerState.READY, WorkerState.UNHEALTHY


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


class Network:
    """What connections come to, by port: an exception, a wait for an event, or a success."""

    def __init__(self, **outcomes: Exception | asyncio.Event) -> None:
        self.outcomes = outcomes
        self.tried: list[int] = []

    async def connect(self, host: str, port: int) -> None:
        self.tried.append(port)
        outcome = self.outcomes.get(f"p{port}")
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            await outcome.wait()


def known(*ports: int, **more: Any) -> WorkerRegistry:
    """A registry of workers that have just beaten."""
    registry = WorkerRegistry()
    for port in ports:
        facts = {"worker_id": f"w{port}", "model_name": "m", "backend": "fake", "host": "h", "port": port}
        registry.upsert(Heartbeat.model_validate({**facts, **more}), time.monotonic())
    return registry


async def probe(registry: WorkerRegistry, network: Network) -> None:
    await asyncio.gather(*Prober(registry, interval_s=1, connect=network.connect).probe_all())


@asynccontextmanager
async def probing(registry: WorkerRegistry, network: Network) -> AsyncIterator[None]:
    task = asyncio.create_task(Prober(registry, interval_s=1, connect=network.connect).run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (ConnectionRefusedError(), "refused the connection"),
        (TimeoutError(), "within 5 s"),
        (OSError("no route to host"), "no route to host"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
async def test_a_worker_that_cannot_be_connected_to_is_unhealthy_at_once(trouble: Exception, words: str) -> None:
    registry = known(1)
    await probe(registry, Network(p1=trouble))
    worker = registry.worker("w1")
    assert worker.state is UNHEALTHY
    assert worker.reason.startswith("h:1 ")
    assert words in worker.reason


@pytest.mark.anyio
async def test_a_worker_that_answers_stays_as_it_is() -> None:
    registry = known(1, state="loading")
    await probe(registry, Network())
    assert registry.worker("w1").state is WorkerState.LOADING


@pytest.mark.anyio
async def test_a_worker_that_answers_again_is_healthy_again() -> None:
    registry = known(1)
    registry.mark_unreachable("w1", "refused")
    await probe(registry, Network())
    assert registry.worker("w1").state is READY


@pytest.mark.anyio
async def test_only_workers_that_should_answer_are_probed() -> None:
    registry = known(1)
    for state, port in (("stopping", 2), ("failed", 3), ("stopped", 4)):
        facts = {"worker_id": state, "model_name": "m", "backend": "fake", "host": "h", "port": port, "state": state}
        registry.upsert(Heartbeat.model_validate(facts), time.monotonic())
    starting = {"worker_id": "starting", "model_name": "m", "backend": "fake", "host": "h", "port": 5}
    registry.announce(Heartbeat.model_validate(starting), time.monotonic())
    network = Network()
    await probe(registry, network)
    assert network.tried == [1, 2]  # one that is stopping, to know when it has


@pytest.mark.anyio
async def test_a_silent_worker_expires_though_it_takes_connections() -> None:
    registry = known(1, heartbeat_interval=10)
    registry.upsert(registry.worker("w1").beat, time.monotonic() - 31)
    await probe(registry, Network())
    assert registry.worker("w1").state is UNHEALTHY


@pytest.mark.anyio
async def test_while_the_gateway_closes_no_worker_is_judged_by_its_beats() -> None:
    registry = known(1, heartbeat_interval=10)
    registry.upsert(registry.worker("w1").beat, time.monotonic() - 31)
    prober = Prober(registry, interval_s=1, connect=Network().connect)
    prober.is_closing = True
    await asyncio.gather(*prober.probe_all())
    assert registry.worker("w1").state is READY


@pytest.mark.anyio
async def test_a_connection_that_hangs_holds_up_no_other_and_is_not_made_twice() -> None:
    registry, hangs = known(1, 2), asyncio.Event()
    network = Network(p1=hangs)
    async with probing(registry, network):
        await asyncio.sleep(10.5)
        assert network.tried.count(1) == 1
        assert network.tried.count(2) == 11
        hangs.set()
        await asyncio.sleep(2)
        assert network.tried.count(1) == 3


@pytest.mark.anyio
async def test_the_probes_go_on_after_a_failure() -> None:
    registry, network = known(1), Network(p1=ConnectionRefusedError())
    async with probing(registry, network):
        await asyncio.sleep(2.5)
        assert registry.worker("w1").state is UNHEALTHY
        del network.outcomes["p1"]
        await asyncio.sleep(1)
        assert registry.worker("w1").state is READY


@pytest.mark.anyio
async def test_a_lasting_failure_is_one_change_and_not_one_every_second() -> None:
    registry, network = known(1), Network(p1=ConnectionRefusedError())
    changes: list[str] = []
    registry.subscribe(lambda worker_id, old, new: changes.append(worker_id))
    async with probing(registry, network):
        await asyncio.sleep(10)
    assert changes == ["w1"]


@pytest.mark.anyio
async def test_a_worker_that_is_forgotten_while_it_is_probed_is_no_trouble() -> None:
    registry, hangs = known(1), asyncio.Event()
    network = Network(p1=hangs)
    async with probing(registry, network):
        await asyncio.sleep(0.5)
        registry.forget("w1")
        hangs.set()
        await asyncio.sleep(2)
    assert network.tried == [1]
    assert not registry.workers()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_real_connection_succeeds_or_is_refused() -> None:
    with bind_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await try_connection("127.0.0.1", port)
        sock.listen()
        await try_connection("127.0.0.1", port)
