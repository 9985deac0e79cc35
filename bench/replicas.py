"""Real workers, one after another: they live while gateways come and go."""

import contextlib
import http.client
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.answers import MODEL
from bench.children import ROOT, BenchError, child, free_port, last_words, python
from bench.processes import ask

START_TIMEOUT_S: Final = 600.0
ROUTED_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.1
BEAT_S: Final = "1"


@dataclass(frozen=True, slots=True)
class Replica:
    worker_id: str
    port: int


@contextlib.contextmanager
def replicas(
    count: int, gateway_port: int, engine_argv: Sequence[str], env: Mapping[str, str]
) -> Iterator[list[Replica]]:
    """So many ready workers of one model, which beat at whatever gateway is at that port. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        started = []
        for number in range(count):
            replica = Replica(f"bench-{number}", free_port())
            stack.enter_context(running_replica(replica, gateway_port, engine_argv, env))
            started.append(replica)
        yield started


@contextlib.contextmanager
def running_replica(
    replica: Replica, gateway_port: int, engine_argv: Sequence[str], env: Mapping[str, str]
) -> Iterator[None]:
    """Raises BenchError."""
    argv = python(
        ROOT / "serve.py", "--model-name", MODEL, "--worker-id", replica.worker_id, "--host", "127.0.0.1",
        "--port", str(replica.port), "--gateway-address", f"http://127.0.0.1:{gateway_port}",
        "--heartbeat-interval", BEAT_S, *engine_argv,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ichat-bench-") as folder:
        log = Path(folder, "worker.log")
        with child(argv, log, env) as process:
            with last_words(log, replica.worker_id):
                wait_until(lambda: is_ready(replica, process), f"{replica.worker_id} ready", START_TIMEOUT_S)
            yield


def is_ready(replica: Replica, process: subprocess.Popen[str]) -> bool:
    """Raises BenchError when it has ended."""
    if process.poll() is not None:
        raise BenchError(f"{replica.worker_id} ended with code {process.returncode}")
    status, body = ask(replica.port, "GET", "/health")
    return status == 200 and json.loads(body)["status"] == "ok"


def wait_until_routed(gateway_port: int, workers: Sequence[Replica]) -> None:
    """Until the gateway has heard of all of them. Raises BenchError."""
    wanted = {worker.worker_id for worker in workers}

    def all_healthy() -> bool:
        _, body = ask(gateway_port, "GET", "/v1/admin/workers")
        told = {worker["worker_id"]: worker["status"] for worker in json.loads(body)["workers"]}
        return all(told.get(worker_id) == "healthy" for worker_id in wanted)

    wait_until(all_healthy, f"{len(wanted)} workers known to the gateway", ROUTED_TIMEOUT_S)


def wait_until(condition: Callable[[], bool], what: str, limit_s: float) -> None:
    """Broken connections and answers that are none count as not yet. Raises BenchError."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            if condition():
                return
        time.sleep(POLL_S)
    raise BenchError(f"{what}: not within {limit_s:g} s")
