"""The routes that workers call."""

import time
from typing import Any

from fastapi import APIRouter, Request

from monitor.heartbeat import Heartbeat
from monitor.registry import AddressConflict, WorkerIdConflict, WorkerRegistry
from relay.access import Access
from utils.errors import Conflict
from utils.logger import EventLogger

logger = EventLogger("workers")


def routes(registry: WorkerRegistry, access: Access) -> APIRouter:
    router = APIRouter(tags=["workers"])

    @router.post("/v1/workers/heartbeat")
    @router.post("/register")
    async def take_heartbeat(beat: Heartbeat, request: Request) -> dict[str, Any]:
        """A worker says that it lives; the first time registers it."""
        access.require_worker(dict(request.headers.raw), request.client.host if request.client else "")
        try:
            worker = registry.upsert(beat, time.monotonic())
        except WorkerIdConflict as error:
            raise Conflict(str(error), code="worker_id_in_use", param="worker_id") from error
        except AddressConflict as error:
            raise Conflict(str(error), code="address_in_use", param="port") from error
        return {"worker_id": worker.id, "interval": beat.heartbeat_interval, "wanted": True}

    return router
