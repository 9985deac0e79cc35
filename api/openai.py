"""OpenAI's routes. The POST ones are the relay's, in front of this app: here the OpenAPI page describes them."""

import time
from typing import Any

from fastapi import APIRouter, FastAPI, Request

from api.views import model_views, provider_model_view
from monitor.registry import WorkerRegistry
from relay.access import Access
from relay.providers.providers import Providers
from relay.routes import ROUTES, UPLOADS
from utils.errors import ModelNotFound


def routes(registry: WorkerRegistry, access: Access, providers: Providers) -> APIRouter:
    started = int(time.time())
    router = APIRouter(tags=["openai"])

    def views() -> dict[str, dict[str, Any]]:
        """Workers' models, and providers'; one entry a name."""
        of_providers = {name: provider_model_view(name, started) for name in providers.models()}
        return dict(sorted({**of_providers, **model_views(registry.workers())}.items()))

    @router.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """The models that can be asked now."""
        access.require_client(dict(request.headers.raw))
        return {"object": "list", "data": list(views().values())}

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str, request: Request) -> dict[str, Any]:
        """One model; its name may hold slashes."""
        access.require_client(dict(request.headers.raw))
        known = views()
        if model not in known and providers.serves(model):  # by a wildcard
            return provider_model_view(model, started)
        if model not in known:
            raise ModelNotFound(model, list(known))
        return known[model]

    return router


def describe_relay_routes(app: FastAPI) -> None:
    """Adds the relay's routes to the OpenAPI page; their bodies are OpenAI's, and the engine's own extensions."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        for path, what in ROUTES.items():
            schema["paths"].setdefault(path, {"post": describe_route(path, what)})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def describe_route(path: str, what: str) -> dict[str, Any]:
    kind = "application/json"
    fields = {"model": {"type": "string"}, "stream": {"type": "boolean"}}
    if path in UPLOADS:
        kind, fields = (
            "multipart/form-data",
            {"model": {"type": "string"}, "file": {"type": "string", "format": "binary"}},
        )
    body = {"type": "object", "required": ["model"], "properties": fields, "additionalProperties": True}
    return {
        "tags": ["openai"],
        "summary": f"OpenAI {what}, answered by a worker of the model, or by a provider",
        "requestBody": {"required": True, "content": {kind: {"schema": body}}},
        "responses": {"200": {"description": "The engine's answer; server-sent events with stream: true"}},
    }
