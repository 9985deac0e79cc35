"""A worker's log, as server-sent events: history first, then live."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from monitor.log_collector import LogCollector
from monitor.log_stream import LogResponse
from relay.access import Access
from utils.errors import NotFound


def routes(logs: LogCollector, access: Access) -> APIRouter:
    router = APIRouter(tags=["logs"])

    @router.get("/v1/logs/stream/{worker_id}")
    async def stream_log(worker_id: str, request: Request) -> Response:
        """The lines of a worker's log as JSON: id, time, level, text. ``Last-Event-ID`` goes on after that line."""
        access.require_admin(dict(request.headers.raw), request.client.host if request.client else "")
        buffer = logs.buffer(worker_id)
        if buffer is None:
            raise NotFound(f"there is no log of a worker {worker_id!r}: GET /v1/admin/workers lists the workers")
        return LogResponse(buffer, request.headers.get("last-event-id"))

    return router
