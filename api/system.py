"""Is the gateway alive, can it serve, and what does it count."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from monitor.registry import WorkerRegistry
from relay.providers.providers import Providers
from utils.errors import NoReplicaReady


def routes(registry: WorkerRegistry, providers: Providers, metrics: CollectorRegistry) -> APIRouter:
    router = APIRouter(tags=["system"])

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The gateway lives."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> dict[str, Any]:
        """The gateway has at least one model that it can serve."""
        models = [name for name in registry.models() if registry.route(name)] + providers.models()
        if not models:
            raise NoReplicaReady("no model is ready: see GET /v1/admin/workers", retry_after_s=2)
        return {"status": "ok", "models": models}

    @router.get("/metrics")
    def prometheus() -> Response:
        """In a thread: with a thousand models it takes most of a second, which no stream is to wait for."""
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    return router
