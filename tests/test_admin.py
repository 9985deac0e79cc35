"""What an administrator is shown of what the data plane knows."""

import random
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api import admin
from config.settings import GatewaySettings, ServerSettings
from monitor.control_client import ControlClient
from monitor.heartbeat import Heartbeat
from monitor.registry import WorkerRegistry
from relay.access import Access
from relay.plane import DataPlane

pytestmark = pytest.mark.anyio


async def test_the_circuits_of_workers_are_shown() -> None:
    registry, access = WorkerRegistry(), Access(ServerSettings())
    settings = GatewaySettings(server_settings=ServerSettings(circuit_threshold=2, circuit_cooldown_s=60))
    plane = DataPlane(registry, access, settings, random.Random(1))
    for name in ("good", "bad"):
        registry.upsert(Heartbeat(worker_id=name, model_name="m", backend="x", host=name, port=1), now=0)
    for _ in range(2):
        plane.breakers.failed("bad", time.monotonic())
    app = FastAPI()
    async with httpx.AsyncClient() as upstream:
        app.include_router(admin.routes(registry, access, ControlClient(upstream, token=""), plane))
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            listed: list[dict[str, Any]] = (await http.get("/v1/admin/workers")).json()["workers"]
            bad = (await http.get("/v1/admin/workers/bad")).json()["circuit"]
    await plane.close()
    circuits = {worker["worker_id"]: worker["circuit"] for worker in listed}
    assert circuits["good"] == {"state": "closed", "failures_in_a_row": 0, "tried_again_in_s": None}
    assert circuits["bad"]["state"] == bad["state"] == "open"
    assert bad["failures_in_a_row"] == 2
    assert 0 < bad["tried_again_in_s"] <= 60
