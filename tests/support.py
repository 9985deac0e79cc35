"""What the tests of whole programs need: real processes on free ports, ended for certain, and waiting with a limit."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.nest import Hatched, the_nest
from utils.common import port_is_free

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.02


def free_port() -> int:
    """A port to listen on later: below those that the system gives to outgoing connections meanwhile."""
    while True:
        port = random.randint(15000, 32000)
        if port_is_free("127.0.0.1", port):
            return port


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    """The first truthy value of ``condition``; connection errors count as not yet. Fails after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if value := condition():
                return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


def is_running(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def can_hatch(argv: list[str], env: dict[str, str] | None) -> bool:
    """Whether it may be forked (tests/nest.py): an engine's own children, or Python itself, may look at the start."""
    return argv[0] in ("gateway.py", "serve.py") and not env and not {"vllm", "sglang"} & set(argv)


class Program:
    """A program of this project as a user starts it; ``fresh``: by an interpreter of its own, from the first line."""

    process: subprocess.Popen[bytes] | Hatched

    def __init__(self, argv: list[str], log: Path, env: dict[str, str] | None = None, *, fresh: bool = False) -> None:
        self.log = log
        with log.open("ab") as output:
            if can_hatch(argv, env) and not fresh:
                self.process = the_nest().start(argv, output.fileno(), dict(os.environ))
            else:
                self.process = subprocess.Popen(
                    [sys.executable, *argv], cwd=ROOT, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                    env={**os.environ, **(env or {})}, start_new_session=True,
                )  # fmt: skip
        self.pid = self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        return self.process.wait(timeout_s)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(argv: list[str], log: Path, env: dict[str, str] | None = None, *, fresh: bool = False) -> Iterator[Program]:
    program = Program(argv, log, env, fresh=fresh)
    try:
        yield program
    finally:
        program.end()


class GatewayClient:
    """A gateway's address, and the calls that tests make of it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=20, trust_env=False, verify=False)

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http.get("/v1/admin/workers").json()["workers"]
        return found

    def worker(self, model: str) -> dict[str, Any] | None:
        return next((worker for worker in self.workers() if worker["model_name"] == model), None)

    def status(self, model: str) -> str:
        worker = self.worker(model)
        return str(worker["status"]) if worker else ""

    def wait_for(self, model: str, status: str = "healthy", timeout_s: float = 15.0) -> dict[str, Any]:

        def found() -> dict[str, Any] | None:
            worker = self.worker(model)
            return worker if worker and worker["status"] == status else None

        try:
            result: dict[str, Any] = wait_until(found, f"{model} {status}", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.worker(model)}") from None
        return result

    def chat(self, model: str, **more: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=chat_body(model, **more))


def chat_body(model: str, content: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def write_config(folder: Path, **sections: Any) -> Path:
    path = folder / "config.yaml"
    settings = {"host": "127.0.0.1", "port": free_port(), "log_dir": str(folder / "logs"), "drain_timeout_s": 5}
    sections["server_settings"] = {**settings, **sections.get("server_settings", {})}
    path.write_text(yaml.safe_dump(sections))
    return path


def fake_worker(model: str, **more: Any) -> dict[str, Any]:
    """A managed worker on the fake engine."""
    return {"model_name": model, "model_path": "none", "backend": "fake", "port": free_port(),
            "heartbeat_interval": 0.5, **more}  # fmt: skip


@contextlib.contextmanager
def gateway(folder: Path, *, fresh: bool = False, **sections: Any) -> Iterator[tuple[Program, GatewayClient]]:
    """A gateway with its managed workers, and nothing of them left afterwards."""
    config = write_config(folder, **sections)
    port = yaml.safe_load(config.read_text())["server_settings"]["port"]
    with running(["gateway.py", "--config", str(config)], folder / "gateway.log", fresh=fresh) as program:
        client = GatewayClient(port)
        try:
            wait_until(lambda: client.http.get("/health").status_code == 200, "gateway listening")
            yield program, client
        finally:
            if program.process.poll() is None:
                program.signal(signal.SIGTERM)
                program.wait()
            client.http.close()


@contextlib.contextmanager
def worker(folder: Path, model: str, port: int, gateway_url: str, *more: str) -> Iterator[Program]:
    """A worker started by hand, on the fake engine."""
    argv = ["serve.py", "--model", "none", "--model-name", model, "--backend", "fake", "--port", str(port)]
    argv += ["--gateway-address", gateway_url, *more]
    with running(argv, folder / f"worker-{port}.log") as program:
        yield program
