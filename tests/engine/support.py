"""A worker with a real engine, and what is left of one."""

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support import Program, chat_body, free_port, is_running, running, wait_until

MODEL_NAME = "demo"
START_TIMEOUT_S = 280.0
"""On a CPU that others use, too."""
ANSWER_TIMEOUT_S = 120.0
QUESTION = "What is the capital of France?"


class EngineWorker:
    """serve.py on some engine, with a client of its own port."""

    def __init__(self, program: Program, port: int, backend: str, key: str = "") -> None:
        self.program = program
        self.backend = backend
        self.seen: list[str] = []
        """The states that its door told until it was ready."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_TIMEOUT_S, trust_env=False, headers=headers
        )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.program.process.poll() is None, self.program.output()
            with contextlib.suppress(httpx.ConnectError):
                told = self.http.get("/health").json()["status"]
                if told not in self.seen:
                    self.seen.append(told)
            return "ok" in self.seen

        wait_until(ready, "worker ready", START_TIMEOUT_S)

    def is_answering(self) -> bool:
        """Whether it calls itself well; a door that is shut does not."""
        try:
            return self.http.get("/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, **more: Any) -> httpx.Response:
        """The greedy answer to the question that the demo model knows."""
        return self.http.post("/v1/chat/completions", json=question(**more))

    def running_requests(self) -> float:
        """How many requests the engine works on, as the engine itself counts them."""
        found = re.search(r"^ichat_worker_engine_running (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def engine_processes(self) -> list[psutil.Process]:
        """Those that compute."""
        children = psutil.Process(self.program.pid).children(recursive=True)
        return [child for child in children if child.name().startswith(("VLLM", "sglang::scheduler"))]

    def wait_gone(self, pids: list[int]) -> None:
        wait_until(lambda: not any(map(is_running, pids)), f"processes {pids} gone", 30)


def question(**more: Any) -> dict[str, Any]:
    return chat_body(MODEL_NAME, QUESTION, **{"temperature": 0, "max_tokens": 32, **more})


def long_story(**more: Any) -> dict[str, Any]:
    """A request that runs for minutes."""
    return {"model": MODEL_NAME, "prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True, **more}


LIMITS = {"vllm": ["--max-num-seqs", "8"], "sglang": ["--max-num-seqs", "8"], "fake": ["--rate", "200"]}
"""A small engine, the same for all that can be told so."""


@contextlib.contextmanager
def engine_worker(folder: Path, backend: str, model: Path | str, *more: str, key: str = "") -> Iterator[EngineWorker]:
    """A ready worker; killed at the end with all its children, if it still runs."""
    port = free_port()
    argv = ["serve.py", "--model", str(model), "--model-name", MODEL_NAME, "--backend", backend, "--port", str(port)]
    key_argv = ["--api-key", key] if key else []
    with running([*argv, *LIMITS[backend], *key_argv, *more], folder / "worker.log") as program:
        worker = EngineWorker(program, port, backend, key)
        try:
            worker.wait_ready()
            yield worker
        finally:
            worker.http.close()


def end_in_order(worker: EngineWorker) -> None:
    """SIGTERM, and what must be true of every worker that is asked to end."""
    pids = [process.pid for process in psutil.Process(worker.program.pid).children(recursive=True)]
    worker.program.signal(signal.SIGTERM)
    assert worker.program.wait(60) == 0
    worker.wait_gone(pids)
    log = worker.program.output()
    assert "Traceback" not in log
    assert "leaked" not in log
