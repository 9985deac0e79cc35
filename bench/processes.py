"""The processes of a bench: started, waited for, and stopped on every way out."""

import contextlib
import dataclasses
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

import yaml

from bench.answers import MODEL
from bench.load import CLIENT_KEY, Outcome, Plan

ROOT: Final = Path(__file__).resolve().parent.parent
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
MARGIN_S: Final = 10.0
"""What the load generator may take beyond a plan's own limits."""


class BenchError(Exception):
    """The bench cannot go on. ``str()`` says why."""


@contextlib.contextmanager
def child(*command: str, log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, so that Ctrl-C reaches only us; we stop it and all that it started."""
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("w")) if log else None
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )
        )  # fmt: skip
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """Asks the process to end, then kills what is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def read_line(process: subprocess.Popen[str], limit_s: float, what: str) -> str:
    """The next line that the process prints. Raises BenchError."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], limit_s)
    line = process.stdout.readline().strip() if ready else ""
    if not line:
        raise BenchError(f"{what} {'ended' if ready else f'said nothing for {limit_s:g} s'}")
    return line


@contextlib.contextmanager
def mock_engine(interval_ms: float) -> Iterator[int]:
    """The port of a running mock engine."""
    with child("-m", "bench.mock_engine", "--interval-ms", str(interval_ms)) as process:
        yield int(read_line(process, START_TIMEOUT_S, "the mock engine"))


@dataclasses.dataclass(frozen=True, slots=True)
class RunningGateway:
    pid: int
    port: int


@contextlib.contextmanager
def gateway(script: Path, engine_port: int) -> Iterator[RunningGateway]:
    """A real gateway, to which the engine is known."""
    with tempfile.TemporaryDirectory(prefix="ichat-bench-") as folder:
        port = free_port()
        config, log = Path(folder, "config.yaml"), Path(folder, "gateway.log")
        key = {"name": "bench", "hash": f"sha256:{sha256(CLIENT_KEY.encode()).hexdigest()}"}
        settings = {"host": "127.0.0.1", "port": port, "log_dir": folder, "keys": [key], "drain_timeout_s": 2}
        config.write_text(yaml.safe_dump({"server_settings": settings}), encoding="utf-8")
        with child(str(script), "--config", str(config), log=log) as process:
            try:
                introduce(port, engine_port, process)
                yield RunningGateway(process.pid, port)
            except BenchError as error:
                tail = log.read_text(encoding="utf-8").splitlines()[-10:]
                raise BenchError("\n".join([str(error), "the gateway's last words:", *tail])) from error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def introduce(port: int, engine_port: int, process: subprocess.Popen[str]) -> None:
    """One heartbeat in the engine's name, as soon as the gateway takes it. Raises BenchError."""
    beat = {
        "worker_id": "bench-worker", "model_name": MODEL, "backend": "mock", "host": "127.0.0.1", "port": engine_port,
        "heartbeat_interval": 3600,
    }  # fmt: skip
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
            client.request("POST", "/v1/workers/heartbeat", json.dumps(beat), {"content-type": "application/json"})
            answer = client.getresponse()
            if answer.status != 200:
                raise BenchError(f"the gateway refused the heartbeat: {answer.read().decode()}")
            return
        time.sleep(0.05)
    raise BenchError("the gateway did not start")


class LoadGenerator:
    """The load generator's process, seen from here."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def prepare(self, plan: Plan) -> None:
        """Connect and warm up. Raises BenchError."""
        self._say(json.dumps(dataclasses.asdict(plan)))
        read_line(self._process, plan.limit_s + MARGIN_S, "the load generator")

    def run(self, plan: Plan) -> Outcome:
        """What came of the plan that was prepared. Raises BenchError."""
        self._say("go")
        return Outcome(**json.loads(read_line(self._process, plan.limit_s + MARGIN_S, "the load generator")))

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)


@contextlib.contextmanager
def load_generator() -> Iterator[LoadGenerator]:
    with child("-m", "bench.load") as process:
        yield LoadGenerator(process)
