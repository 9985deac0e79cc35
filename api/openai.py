"""OpenAI's routes. The POST ones are the relay's, in front of this app: here the OpenAPI page describes them."""

from typing import Any

from fastapi import APIRouter, FastAPI, Request

from api.views import model_views
from monitor.registry import WorkerRegistry
from relay.access import Access
from relay.routes import ROUTES
from utils.errors import ModelNotFound


def routes(registry: WorkerRegistry, access: Access) -> APIRouter:
    router = APIRouter(tags=["openai"])

    @router.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """The models that can be asked now."""
        access.require_client(dict(request.headers.raw))
        return {"object": "list", "data": list(model_views(registry.workers()).values())}

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str, request: Request) -> dict[str, Any]:
        """One model; its name may hold slashes."""
        access.require_client(dict(request.headers.raw))
        views = model_views(registry.workers())
        if model not in views:
            raise ModelNotFound(model, list(views))
        return views[model]

    return router


def describe_relay_routes(app: FastAPI) -> None:
    """Adds the relay's routes to the OpenAPI page; their bodies are OpenAI's, and the engine's own extensions."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        for path, what in ROUTES.items():
            schema["paths"].setdefault(path, {"post": describe_route(what)})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def describe_route(what: str) -> dict[str, Any]:
    fields = {"model": {"type": "string"}, "stream": {"type": "boolean"}}
    body = {"type": "object", "required": ["model"], "properties": fields, "additionalProperties": True}
    return {
        "tags": ["openai"],
        "summary": f"OpenAI {what}, answered by a worker of the model",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "The engine's answer; server-sent events with stream: true"}},
    }
