"""What becomes of a worker whose engine is killed, and of an engine whose worker is."""

import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.engine.support import EngineWorker, engine_worker, long_story
from tests.support import wait_until

pytestmark = pytest.mark.share("programs")

KEY = "sk-of-this-engine"


class Reader(threading.Thread):
    """Reads a long stream to its end, whatever the end is."""

    def __init__(self, worker: EngineWorker) -> None:
        super().__init__(name="reader")
        self._worker = worker
        self.lines: list[str] = []
        self.error: httpx.HTTPError | None = None

    def run(self) -> None:
        body = long_story(stream=True)
        try:
            with self._worker.http.stream("POST", "/v1/completions", json=body) as answer:
                self.lines.extend(line for line in answer.iter_lines() if line)
        except httpx.HTTPError as error:
            self.error = error


def test_a_killed_engine_ends_its_worker(tmp_path: Path, engine: tuple[str, str]) -> None:
    with engine_worker(tmp_path, *engine, key=KEY) as worker:
        assert worker.http.get("/v1/models").status_code == 200
        assert worker.http.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        reader = Reader(worker)
        reader.start()
        wait_until(worker.running_requests, "request running", 120)
        processes = worker.engine_processes()
        assert processes
        processes[0].kill()
        wait_until(lambda: not worker.is_answering(), "no health any more", 10)
        assert worker.program.wait(60) == 1
        reader.join(10)
        # vLLM ends a stream that it cannot go on with in an error, and then as if all were well.
        told = reader.lines[-2:]
        assert reader.error is not None or any('"error"' in line for line in told), told
        worker.wait_gone([process.pid for process in processes])
        log = worker.program.output()
        assert "now=failed" in log
        assert "killed by signal 9" in log.splitlines()[-1]
        assert KEY not in log


def test_a_killed_worker_takes_its_engine_along(tmp_path: Path, engine: tuple[str, str]) -> None:
    with engine_worker(tmp_path, *engine) as worker:
        pids = [process.pid for process in worker.engine_processes()]
        assert pids
        worker.program.signal(signal.SIGKILL)
        worker.wait_gone(pids)


def test_an_engine_that_hangs_is_told_of_and_ended(tmp_path: Path, engine: tuple[str, str]) -> None:
    limit_s = 6.0
    with engine_worker(tmp_path, *engine, "--progress-timeout", f"{limit_s:g}") as worker:
        reader = Reader(worker)
        reader.start()
        wait_until(worker.running_requests, "request running", 120)
        processes = worker.engine_processes()
        for process in processes:
            process.suspend()
        stopped_at = time.monotonic()
        wait_until(lambda: not worker.is_answering(), "no health any more", limit_s)
        assert time.monotonic() - stopped_at >= limit_s / 2 - 1  # a slow engine is not a dead one
        assert worker.program.wait(60) == 1
        worker.wait_gone([process.pid for process in processes])
        reader.join(10)
        log = worker.program.output()
        assert log.index("now=unhealthy") < log.index("now=failed")
        assert "the engine hangs: requests are running, but no token came for 6 s" in log
