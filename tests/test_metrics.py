"""A scrape of the gateway's metrics, and who does not wait for it."""

import asyncio
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api import system
from config.providers import ProviderSettings
from monitor.metrics import RelayMetrics
from monitor.registry import WorkerRegistry
from relay.providers.providers import Providers

CHAT = "/v1/chat/completions"


class SlowCollector(Collector):
    """Goes on when the event loop has done something meanwhile."""

    def __init__(self) -> None:
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def collect(self) -> Iterator[Metric]:
        self.has_begun.set()
        gauge = GaugeMetricFamily("waited_for_by_the_loop", "0: no", value=0 if self.may_go_on.wait(5) else 1)
        yield gauge

    def describe(self) -> list[Metric]:
        return []


@pytest.mark.anyio
async def test_the_event_loop_does_not_wait_for_a_scrape() -> None:
    families, slow, app = CollectorRegistry(), SlowCollector(), FastAPI()
    families.register(slow)
    app.include_router(system.routes(WorkerRegistry(), Providers(ProviderSettings()), families))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        scrape = asyncio.create_task(client.get("/metrics"))
        while not slow.has_begun.is_set():
            await asyncio.sleep(0.001)
        slow.may_go_on.set()
        assert "waited_for_by_the_loop 0.0" in (await scrape).text


def test_a_scrape_takes_each_family_as_it_is_then() -> None:
    """What is counted while it is read, on the loop's thread, is for the next one."""
    metrics = RelayMetrics()

    class Status(int):
        """Told in words while the requests are gone through."""

        def __str__(self) -> str:
            metrics.observe(f"another {time.perf_counter()}", CHAT, 200, 0.0, 1.0)
            return "200"

    for number in range(3):
        metrics.observe(f"m{number}", CHAT, Status(200), 0.0, 1.0)
    requests = next(iter(metrics.collect()))
    assert len(requests.samples) == 3
