"""The processes that every bench needs: a mock engine, the gateway, the load generator."""

import contextlib
import dataclasses
import http.client
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import yaml

from bench.answers import MODEL
from bench.children import START_TIMEOUT_S, BenchError, child, free_port, last_words, python, read_line
from bench.plan import Outcome, Plan
from bench.questions import CLIENT_KEY

MARGIN_S: Final = 10.0
"""What the load generator may take beyond a plan's own limits."""
BENCH_KEY: Final[Mapping[str, Any]] = {
    "name": "bench",
    "hash": f"sha256:{sha256(CLIENT_KEY.encode()).hexdigest()}",
    "limits": {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrency": 10**6},
}
"""The client key that the load asks with: its limits are all counted, and never reached."""
GATEWAY_CONFIG: Final[Mapping[str, Any]] = {
    "server_settings": {"host": "127.0.0.1", "keys": [BENCH_KEY], "drain_timeout_s": 2},
}
"""config.yaml of the gateway that is measured: all that a gateway does for its users is on, and nobody is refused."""
MOCK_BEAT: Final[Mapping[str, Any]] = {
    "model_name": MODEL, "backend": "mock", "host": "127.0.0.1",
    "heartbeat_interval": 3600, "capacity": 100_000,
}  # fmt: skip
"""The mock engine's heartbeat, but for its port and id."""


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """A server that is measured."""

    pid: int
    port: int


@contextlib.contextmanager
def mock_engines(interval_ms: float, count: int) -> Iterator[list[Running]]:
    """So many of them. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(mock_engine(interval_ms)) for _ in range(count)]


@contextlib.contextmanager
def mock_engine(interval_ms: float) -> Iterator[Running]:
    """A running mock engine. Raises BenchError."""
    with child(python("-m", "bench.mock_engine", "--interval-ms", str(interval_ms))) as process:
        yield Running(process.pid, int(read_line(process, START_TIMEOUT_S, "the mock engine")))


@contextlib.contextmanager
def gateway(
    script: Path, more: Mapping[str, Any], beats: Sequence[Mapping[str, Any]] = (), port: int | None = None
) -> Iterator[Running]:
    """A real gateway that has got these beats; ``more`` is laid over ``GATEWAY_CONFIG``. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="ichat-bench-") as folder:
        port = port or free_port()
        config, log = Path(folder, "config.yaml"), Path(folder, "gateway.log")
        own = {"server_settings": {"port": port, "log_dir": folder}}
        config.write_text(yaml.safe_dump(merged(merged(GATEWAY_CONFIG, own), more)), encoding="utf-8")
        with child(python(script.absolute(), "--config", config), log) as process:
            with last_words(log, "the gateway"):
                wait_for_door(port, process)
                for beat in beats:
                    introduce(port, beat)
            yield Running(process.pid, port)


@contextlib.contextmanager
def gateway_with_mocks(script: Path, more: Mapping[str, Any], engines: Sequence[Running]) -> Iterator[Running]:
    """A real gateway, to which the mock engines are replicas of one model. Raises BenchError."""
    beats = [{**MOCK_BEAT, "worker_id": f"bench-worker-{engine.port}", "port": engine.port} for engine in engines]
    with gateway(script, more, beats) as running:
        yield running


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, mapping by mapping; other values are replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]  # both are mappings
    return result


def read_config(path: Path | None) -> Mapping[str, Any]:
    """What ``--config`` names, to be laid over ``GATEWAY_CONFIG``. Raises BenchError."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BenchError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(found, Mapping):
        raise BenchError(f"--config {path} must hold keys as config.yaml has them")
    return found


def wait_for_door(port: int, process: subprocess.Popen[str]) -> None:
    """Until the gateway answers. Raises BenchError."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            ask(port, "GET", "/health")
            return
        time.sleep(0.05)
    raise BenchError("the gateway did not start")


def introduce(port: int, beat: Mapping[str, Any]) -> None:
    """One heartbeat in an engine's name. Raises BenchError."""
    try:
        status, body = ask(port, "POST", "/v1/workers/heartbeat", beat)
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"the gateway did not take the heartbeat: {error}") from error
    if status != 200:
        raise BenchError(f"the gateway refused the heartbeat: {body.decode(errors='replace')}")


def ask(port: int, method: str, path: str, content: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and body. Raises OSError and HTTPException."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:
        headers = {"content-type": "application/json", "authorization": f"Bearer {CLIENT_KEY}"}
        client.request(method, path, json.dumps(content) if content is not None else None, headers)
        answer = client.getresponse()
        return answer.status, answer.read()


class LoadGenerator:
    """The load generator's process, seen from here."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def prepare(self, plan: Plan) -> None:
        """Connect and warm up. Raises BenchError."""
        self._say(json.dumps(dataclasses.asdict(plan)))
        read_line(self._process, plan.limit_s + MARGIN_S, "the load generator")

    def start(self) -> None:
        """Begin what was prepared. Raises BenchError."""
        self._say("go")

    def finish(self, plan: Plan) -> Outcome:
        """Wait for what was begun. Raises BenchError."""
        return Outcome(**json.loads(read_line(self._process, plan.limit_s + MARGIN_S, "the load generator")))

    def run(self, plan: Plan) -> Outcome:
        """What came of the plan that was prepared. Raises BenchError."""
        self.start()
        return self.finish(plan)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            print(line, file=self._process.stdin, flush=True)
        except OSError as error:
            raise BenchError("the load generator ended") from error


@contextlib.contextmanager
def load_generator() -> Iterator[LoadGenerator]:
    with child(python("-m", "bench.load")) as process:
        yield LoadGenerator(process)
