"""The administrator's routes."""

import time
from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from api.views import model_views, worker_view
from config.fields import Name
from monitor.control_client import ControlClient
from monitor.registry import UnknownWorker, Worker, WorkerRegistry
from monitor.system import read_machine
from relay.access import Access
from relay.plane import DataPlane
from utils.common import package_version
from utils.errors import Conflict, ModelNotFound, NotFound


class Adapter(BaseModel):
    """``path``: a folder on the worker's machine, or a hub id."""

    name: Name
    path: Annotated[str, Field(min_length=1)]


def routes(registry: WorkerRegistry, access: Access, control: ControlClient, plane: DataPlane) -> APIRouter:
    started = time.time()

    def require_admin(request: Request) -> None:
        access.require_admin(dict(request.headers.raw), request.client.host if request.client else "")

    def view_of(worker: Worker, now: float) -> dict[str, Any]:
        return {**worker_view(worker, plane.in_flight, now), "circuit": plane.breakers.view(worker.id, now)}

    router = APIRouter(prefix="/v1/admin", tags=["admin"], dependencies=[Depends(require_admin)])

    @router.get("/workers")
    async def list_workers() -> dict[str, Any]:
        """All workers, managed or not, ready or not."""
        now = time.monotonic()
        return {"workers": [view_of(worker, now) for worker in registry.workers()]}

    @router.get("/workers/{worker_id}")
    async def get_worker(worker_id: str) -> dict[str, Any]:
        return view_of(find_worker(registry, worker_id), time.monotonic())

    async def tell(worker_id: str, method: str, path: str, body: dict[str, Any] | None = None) -> JSONResponse:
        told = await control.ask(find_worker(registry, worker_id).beat, method, path, body)
        return JSONResponse(told.body, told.status)

    @router.post("/workers/{worker_id}/drain")
    async def drain_worker(worker_id: str) -> JSONResponse:
        """Takes nothing new, and finishes what it has; ``wake`` takes it back. Answers at once."""
        return await tell(worker_id, "POST", "drain")

    @router.post("/workers/{worker_id}/sleep")
    async def put_worker_to_sleep(worker_id: str, level: int = 1) -> JSONResponse:
        """Drains, then gives the engine's memory back. ``level`` 1: weights wait in main memory; 2: on disk."""
        return await tell(worker_id, "POST", f"sleep?level={level}")

    @router.post("/workers/{worker_id}/wake")
    async def wake_worker(worker_id: str) -> JSONResponse:
        """Ready again when this answers, and has answered a canary as before."""
        return await tell(worker_id, "POST", "wake")

    @router.post("/workers/{worker_id}/adapters")
    async def load_adapter(worker_id: str, adapter: Adapter) -> JSONResponse:
        """A LoRA adapter for a running engine: a model of its own name when this answers."""
        for other in registry.workers():
            if adapter.name in (other.beat.model_name, *other.beat.aliases):
                raise Conflict(f"{adapter.name!r} is the name of a model ({other.id}): give the adapter another")
        return await tell(worker_id, "POST", "adapters", adapter.model_dump())

    @router.delete("/workers/{worker_id}/adapters/{name:path}")
    async def unload_adapter(worker_id: str, name: str) -> JSONResponse:
        return await tell(worker_id, "DELETE", "adapters", {"name": name})

    @router.get("/routing/decisions")
    async def routing_decisions(model: str) -> dict[str, Any]:
        """Where the last requests for a model went and why, the newest first; only where there was a choice."""
        if registry.route(model) is None:
            raise ModelNotFound(model, registry.models())
        return {"model": model, "decisions": plane.router.decisions.last(model)}

    @router.get("/queues")
    async def queues() -> dict[str, Any]:
        """Who waits for which model, at which place, and for how long still."""
        return {"queues": plane.lobby.admission.view(time.monotonic())}

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
            "in_flight": sum(plane.in_flight.values()),
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


def find_worker(registry: WorkerRegistry, worker_id: str) -> Worker:
    """Raises NotFound."""
    try:
        return registry.worker(worker_id)
    except UnknownWorker as error:
        known = ", ".join(worker.id for worker in registry.workers()) or "none"
        raise NotFound(f"there is no worker {worker_id!r}: the workers are {known}") from error
