"""A relay that listens on a free port, with scripted workers behind it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, generate_latest

from config.admission import AdmissionSettings
from config.settings import GatewaySettings, RoutingSettings, ServerSettings
from config.states import WorkerState
from monitor.heartbeat import Heartbeat
from monitor.registry import WorkerRegistry
from relay.access import Access
from relay.door import Door
from relay.plane import DataPlane
from tests.support import chat_body
from utils.common import bind_socket
from utils.server import Server

MODEL = "m"
SWEEP_S = 0.05
"""How often the queue is looked through: no test is to wait for the usual second."""


class Gate:
    """A relay that listens, and what a test wants to see of it."""

    def __init__(self, port: int, plane: DataPlane, metrics: CollectorRegistry) -> None:
        self.port = port
        self.relay = plane.relay
        self.router = plane.router
        self.lobby = plane.lobby
        self.upstream = plane.upstream
        self.registry = plane.registry
        self.metrics = metrics
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False, verify=False)

    def add(self, worker_id: str, address: tuple[str, int], model: str = MODEL, **more: Any) -> None:
        beat = Heartbeat(worker_id=worker_id, model_name=model, backend="x", host=address[0], port=address[1], **more)
        self.registry.upsert(beat, now=0)

    def address_of(self, worker_id: str) -> tuple[str, int]:
        beat = self.registry.worker(worker_id).beat
        return beat.host, beat.port

    def scrape(self) -> bytes:
        return generate_latest(self.metrics)

    def state(self, worker_id: str) -> WorkerState:
        return self.registry.worker(worker_id).state

    async def chat(self, **more: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=chat_body(MODEL, **more))

    async def raw(self, data: bytes) -> bytes:
        """Sends bytes as they are and reads until the server closes, or until an answer with a length is whole."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(65536), 5)
        finally:
            writer.close()


@asynccontextmanager
async def door(
    routing: RoutingSettings | None = None,
    admission: AdmissionSettings | None = None,
    litellm: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Gate]:
    """``litellm``: LiteLLM's sections of config.yaml; ``settings``: of the server."""
    own = ServerSettings(**settings)
    registry, metrics = WorkerRegistry(), CollectorRegistry()

    async def no_app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    all_settings = GatewaySettings(
        server_settings=own,
        routing=routing or RoutingSettings(),
        admission=admission or AdmissionSettings(),
        **(litellm or {}),
    )
    plane = DataPlane(registry, Access(own), all_settings, random.Random(1), sweep_s=SWEEP_S)
    metrics.register(plane.metrics)
    sock = bind_socket("127.0.0.1", 0)
    sock.listen()
    server = Server(no_app, sock, drain_timeout_s=2, protocol=partial(Door, plane.relay))
    serving = asyncio.create_task(server.run_until_stopped())
    opened = Gate(sock.getsockname()[1], plane, metrics)
    try:
        yield opened
    finally:
        await opened.http.aclose()
        server.stop()
        await serving
        await plane.close()
