"""The administrator's routes."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Request

from api.views import model_views, worker_view
from monitor.registry import UnknownWorker, WorkerRegistry
from monitor.system import read_machine
from relay.access import Access
from utils.common import package_version
from utils.errors import NotFound


def routes(registry: WorkerRegistry, access: Access, in_flight: Callable[[], dict[str, int]]) -> APIRouter:
    started = time.time()

    def require_admin(request: Request) -> None:
        access.require_admin(dict(request.headers.raw), request.client.host if request.client else "")

    router = APIRouter(prefix="/v1/admin", tags=["admin"], dependencies=[Depends(require_admin)])

    @router.get("/workers")
    async def list_workers() -> dict[str, Any]:
        """All workers, managed or not, ready or not."""
        now = time.monotonic()
        return {"workers": [worker_view(worker, in_flight(), now) for worker in registry.workers()]}

    @router.get("/workers/{worker_id}")
    async def get_worker(worker_id: str) -> dict[str, Any]:
        try:
            worker = registry.worker(worker_id)
        except UnknownWorker as error:
            known = ", ".join(worker.id for worker in registry.workers()) or "none"
            raise NotFound(f"there is no worker {worker_id!r}: the workers are {known}") from error
        return worker_view(worker, in_flight(), time.monotonic())

    @router.get("/cluster/status")
    def cluster_status() -> dict[str, Any]:
        """The gateway, its machine, and the workers in short. In a thread: NVML may take its time."""
        workers = registry.workers()
        return {
            "gateway": {"status": "ready" if registry.is_ready() else "no_model", "started_at": started},
            "machine": read_machine(),
            "workers": {
                "total": len(workers),
                "by_status": dict(Counter(worker.state.status for worker in workers)),
            },
            "models": list(model_views(workers)),
            "in_flight": sum(in_flight().values()),
        }

    @router.get("/cluster/version")
    async def cluster_version() -> dict[str, Any]:
        workers = registry.workers()
        return {
            "ichat": package_version("ichat"),
            "workers": {
                worker.id: {"ichat": worker.beat.ichat_version, worker.beat.backend: worker.beat.engine_version}
                for worker in workers
            },
        }

    return router
