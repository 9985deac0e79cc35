"""Small things that know nothing of workers or models."""

import asyncio
import contextlib
import gc
import importlib.metadata
import resource
import socket
from collections.abc import Coroutine
from typing import Any

from utils.logger import EventLogger

logger = EventLogger("tasks")


GC_THRESHOLDS = (10_000, 10, 20)
"""Objects more than before, and so many times that of each younger generation: a full collection each two million."""


def package_version(*names: str) -> str:
    """The version of the first of these distributions that is installed, else ``unknown``."""
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def bind_socket(host: str, port: int) -> socket.socket:
    """A bound TCP socket, not yet listening; port 0 takes a free one. Raises OSError when the port is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def is_loopback(host: str) -> bool:
    """Whether an address, as a socket names its peer, is this machine's own."""
    return host in ("::1", "localhost") or host.startswith(("127.", "::ffff:127."))


def url_host(host: str) -> str:
    """A host as URLs write it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def address_facing(host: str, port: int) -> str:
    """This machine's address as ``host`` would see it. No packet is sent. Raises OSError without a route."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family[0], socket.SOCK_DGRAM) as probe:
        probe.connect(family[4])
        return str(probe.getsockname()[0])


def raise_open_files_limit() -> None:
    """Let this process hold as many sockets as the system allows: each stream needs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def calm_garbage_collector() -> None:
    """What is here now is here to stay, and is not looked through again; new objects are, but not at every whiff.

    With thousands of streams a full collection took 80 to 260 ms, found next to nothing, and came every few seconds
    (doc/performance.md). What is left to it are cycles: the relay makes none, libraries make some.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class Tasks:
    """Background tasks: referenced while they run, cancelled and awaited together."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("task_crashed", task=task.get_name(), exc_info=error)

    async def cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
