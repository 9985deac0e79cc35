"""The control plane's app: every room of routes, put together."""

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api import admin, logs, openai, system, workers
from api.envelope import RequestIdHeader, install_error_envelope
from monitor.control_client import ControlClient
from monitor.log_collector import LogCollector
from monitor.registry import WorkerRegistry
from relay.access import Access
from relay.plane import DataPlane
from utils.common import package_version


def create_app(
    registry: WorkerRegistry,
    access: Access,
    log_collector: LogCollector,
    control: ControlClient,
    metrics: CollectorRegistry,
    plane: DataPlane,
) -> FastAPI:
    app = FastAPI(title="iChat", version=package_version("ichat"))
    install_error_envelope(app)
    app.add_middleware(RequestIdHeader)
    # A proxy on this machine must not make its clients "this machine's own callers". The relay looks at no addresses.
    app.add_middleware(ProxyHeadersMiddleware)
    app.include_router(openai.routes(registry, access, plane.providers))
    app.include_router(workers.routes(registry, access))
    app.include_router(admin.routes(registry, access, control, plane))
    app.include_router(logs.routes(log_collector, access))
    app.include_router(system.routes(registry, plane.providers, metrics))
    openai.describe_relay_routes(app)
    return app
