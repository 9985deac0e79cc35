"""iChat gateway: one OpenAI-compatible door to many workers.

    python gateway.py --config config.yaml

Everything is constructed and connected here; what each part does stands in its own room (doc/structure.md).
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import httpx
import uvloop
from prometheus_client import CollectorRegistry

from api.app import create_app
from config.load import load_settings
from config.providers import without_effect
from config.settings import GatewaySettings
from fleet.fleet import Fleet, FleetSettings
from fleet.placement import gpu_problems, needs_gpus, shared_gpus
from monitor.control_client import ControlClient
from monitor.log_collector import LogCollector
from monitor.metrics import WorkersCollector
from monitor.prober import Prober
from monitor.registry import Worker, WorkerRegistry
from monitor.system import Gpu, read_gpus
from relay.access import Access
from relay.door import Door
from relay.plane import DataPlane
from relay.providers.unserved import unserved_fallbacks
from utils.common import (
    Tasks,
    bind_socket,
    calm_garbage_collector,
    is_loopback,
    package_version,
    raise_open_files_limit,
    url_host,
)
from utils.errors import ConfigError
from utils.logger import EventLogger, setup_logging
from utils.server import Server

FLEET_STOP_SHARE = 0.4
"""The part of drain_timeout_s that is kept for stopping the workers after the requests have ended."""

logger = EventLogger("gateway")


class Gateway:
    """A gateway, wired. ``run`` serves until ``stop``."""

    def __init__(self, settings: GatewaySettings, rng: random.Random) -> None:
        own = settings.server_settings
        self._settings = own
        self._providers = settings.providers
        self._unserved = unserved_fallbacks(settings)
        self._sock = bind(own.host, own.port)
        self.port: int = self._sock.getsockname()[1]
        token = own.worker_token.get_secret_value() if own.worker_token else ""
        self.registry = WorkerRegistry(forget_after_s=own.forget_after_s)
        self.registry.subscribe(log_change)
        self._client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), trust_env=False)
        self._logs = LogCollector(self.registry, self._client, token=token)
        access = Access(own, socket.gethostname())
        self._plane = plane = DataPlane(self.registry, access, settings, rng, socket.gethostname())
        families = CollectorRegistry()
        families.register(plane.metrics)
        families.register(WorkersCollector(self.registry.workers, lambda: plane.in_flight, plane.lobby.lengths))
        control = ControlClient(self._client, token=token)
        app = create_app(self.registry, access, self._logs, control, families, plane)
        # A copy: LiteLLM's keys for providers go into our own environment, and are no worker's business.
        self._fleet = Fleet(
            settings.managed_workers, fleet_settings(settings, self.port, token), self.registry, dict(os.environ), rng
        )
        self._prober = Prober(self.registry, interval_s=own.probe_interval_s)
        self._server = Server(app, self._sock, drain_timeout_s=own.drain_timeout_s, protocol=partial(Door, plane.relay))
        self._tasks = Tasks()
        self._deadline = 0.0

    async def run(self) -> None:
        """Serves until stopped; on every way out the managed workers are stopped too."""
        self._warn()
        self._sock.listen(4096)
        self._plane.providers.start()
        self._fleet.start()
        self._tasks.start(self._prober.run(), "prober")
        logger.info("gateway_listening", address=f"http://{url_host(self._settings.host)}:{self.port}")
        try:
            await self._server.run_until_stopped()
        finally:
            left_s = max(self._deadline - time.monotonic(), self._settings.drain_timeout_s * FLEET_STOP_SHARE)
            await self._fleet.stop(left_s)
            await self._tasks.cancel()
            await self._logs.stop()
            await self._plane.close()
            await self._client.aclose()
            logger.info("gateway_stopped")

    def stop(self) -> None:
        """Finish what is in flight, then stop the workers. A second call does both at once."""
        if self._deadline:
            logger.warning("gateway_stops_at_once")
            self._plane.relay.cut_flights()
            self._server.stop(at_once=True)
            self._fleet.kill()
            return
        self._fleet.is_closing = self._prober.is_closing = True
        limit_s = self._settings.drain_timeout_s
        self._deadline = time.monotonic() + limit_s
        asyncio.get_running_loop().call_later(limit_s * (1 - FLEET_STOP_SHARE), self._plane.relay.cut_flights)
        logger.info("gateway_draining", limit_s=limit_s, in_flight=self._plane.in_flight)
        self._logs.close()
        self._server.stop()

    def _warn(self) -> None:
        for line in without_effect(self._providers):
            logger.warning("setting_without_effect", what=line)
        for model, why in self._unserved.items():
            logger.warning("fallback_unserved", model=model, why=why)
        if not self._settings.keys and not is_loopback(self._settings.host):
            logger.warning("data_plane_open", why="server_settings.keys is empty: whoever reaches this port may ask")


def log_change(worker_id: str, old: Worker | None, new: Worker | None) -> None:
    """A line for every worker that comes, goes, or gets into another state."""
    was, now = (worker.state.value if worker else "-" for worker in (old, new))
    if was != now:
        reason = (new.reason if new else "") or "-"
        logger.info("worker_state", worker_id=worker_id, was=was, now=now, reason=reason)


def bind(host: str, port: int) -> socket.socket:
    """Raises ConfigError."""
    try:
        return bind_socket(host, port)
    except OSError as error:
        raise ConfigError(
            f"port {port} on {host} cannot be listened on ({error.strerror or error}): "
            "end the program that uses it, or set server_settings.port"
        ) from error


def check_backends(settings: GatewaySettings) -> None:
    """Raises ConfigError for a managed worker whose backend does not exist; its file is not imported."""
    files = Path(__file__).resolve().parent.glob("backends/*_backend.py")
    known = sorted(file.stem.removesuffix("_backend") for file in files)
    for number, worker in enumerate(settings.managed_workers):
        if worker.backend not in known:
            where = f"managed_workers.{number}.backend"
            raise ConfigError(f"{where}: there is no backend {worker.backend!r}: there are {', '.join(known)}")


def check_gpus(
    settings: GatewaySettings, environ: Mapping[str, str], read: Callable[[], Sequence[Gpu]] = read_gpus
) -> None:
    """Raises ConfigError for ``gpu_ids`` that this machine does not have. What may be meant is logged only."""
    if not any(map(needs_gpus, settings.managed_workers)):
        return
    gpus = read()
    if problems := gpu_problems(settings.managed_workers, gpus):
        raise ConfigError("\n".join(problems))
    for gpu in gpus:
        if gpu.trouble:  # the workers on the others can run
            logger.warning("gpu_in_trouble", gpu=gpu.index, error=gpu.trouble)
    for index, workers in shared_gpus(settings.managed_workers, gpus, environ).items():
        why = "they see the same GPU: give each its own gpu_ids, or each a part by gpu_memory_utilization"
        logger.warning("gpu_shared", gpu=index, workers=", ".join(workers), why=why)


def fleet_settings(settings: GatewaySettings, port: int, token: str) -> FleetSettings:
    own = settings.server_settings
    host = "127.0.0.1" if own.host in ("0.0.0.0", "::", "localhost") else own.host  # noqa: S104
    return FleetSettings(
        serve=Path(__file__).resolve().with_name("serve.py"),
        pythons={"": sys.executable, **{name: engine.python for name, engine in settings.engines.items()}},
        gateway_address=f"http://{url_host(host)}:{port}",
        log_dir=Path(own.log_dir).expanduser(),
        drain_timeout_s=own.drain_timeout_s * FLEET_STOP_SHARE,
        max_body_mb=own.max_body_mb,
        token=token,
    )


async def serve(settings: GatewaySettings) -> None:
    gateway = Gateway(settings, random.Random())  # noqa: S311 - it breaks ties between replicas
    calm_garbage_collector()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, gateway.stop)
    await gateway.run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="gateway.py", description="iChat gateway: one door to many LLM workers.")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="settings (default: config.yaml)")
    parser.add_argument("--version", action="version", version=f"ichat {package_version('ichat')}")
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.config)
        check_backends(settings)
        setup_logging(settings.server_settings.log_level)
        check_gpus(settings, os.environ)
        raise_open_files_limit()
        uvloop.run(serve(settings))
    except ConfigError as error:
        print(f"gateway.py: {error}", file=sys.stderr)
        return ConfigError.EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
