"""What the gateway costs: CPU time per request and per streamed chunk, and the time that it adds.

    python -m bench.relay                      about a minute
    python -m bench.relay --repetitions 3 --json relay.json

A load generator asks a mock engine, once directly and once through the real ``gateway.py``, all in one run.
``bench/README.md`` says how to read the figures.
"""

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

if __name__ == "__main__" and not __package__:  # run as a file: its folder must not hide the package relay/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.cpu import tree_cpu_s, us_per_chunk
from bench.load import Outcome, Plan
from bench.processes import ROOT, BenchError, LoadGenerator, RunningGateway, gateway, load_generator, mock_engine
from bench.report import Repetition, document, table

WARM_UP_SHARE = 0.1
"""Of the requests that are measured, so many are asked before, unmeasured, on the same connections."""


class RelayBench:
    """Measures one repetition after another on processes that run already."""

    def __init__(
        self, options: argparse.Namespace, load: LoadGenerator, gateway: RunningGateway, engine_port: int
    ) -> None:
        self._options = options
        self._load = load
        self._gateway = gateway
        self._engine_port = engine_port
        self.errors = 0
        self.trouble: list[str] = []

    def repeat(self) -> Repetition:
        """All metrics, once. Raises BenchError."""
        options = self._options
        direct, _ = self._ask(self._plan(self._engine_port, options.requests))
        relayed, request_cpu_s = self._ask(self._plan(self._gateway.port, options.requests))
        us_per_request = request_cpu_s * 1e6 / options.requests
        streamed, stream_cpu_s = self._ask(self._stream_plan(self._gateway.port, options.streams, options.chunks))
        chunks = options.streams * options.rounds * options.chunks
        quiet = (options.quiet_streams, options.quiet_chunks)
        quiet_direct, _ = self._ask(self._stream_plan(self._engine_port, *quiet))
        quiet_relayed, _ = self._ask(self._stream_plan(self._gateway.port, *quiet))
        return {
            "cpu_us_per_request": us_per_request,
            "cpu_us_per_chunk": us_per_chunk(stream_cpu_s, us_per_request, options.streams * options.rounds, chunks),
            "requests_per_s_direct": options.requests / direct.wall_s,
            "requests_per_s_gateway": options.requests / relayed.wall_s,
            "busy_requests": request_cpu_s / relayed.wall_s,
            "busy_streams": stream_cpu_s / streamed.wall_s,
            "reads_per_chunk": streamed.reads / chunks,
            **compare("ttft", "p50", quiet_direct.first_byte_p50_us, quiet_relayed.first_byte_p50_us),
            **compare("ttft", "p99", quiet_direct.first_byte_p99_us, quiet_relayed.first_byte_p99_us),
            **compare("gap", "p50", quiet_direct.gap_p50_us, quiet_relayed.gap_p50_us),
            **compare("gap", "p99", quiet_direct.gap_p99_us, quiet_relayed.gap_p99_us),
        }

    def _plan(self, port: int, requests: int) -> Plan:
        warm_up = max(self._options.concurrency, round(requests * WARM_UP_SHARE))
        return Plan(port, self._options.concurrency, requests, warm_up, openai_headers=self._options.openai_headers)

    def _stream_plan(self, port: int, streams: int, chunks: int) -> Plan:
        lasts_s = chunks * self._options.interval_ms / 1000
        return Plan(
            port, streams, streams * self._options.rounds, streams, chunks=chunks, spread_s=lasts_s,
            openai_headers=self._options.openai_headers,
        )  # fmt: skip

    def _ask(self, plan: Plan) -> tuple[Outcome, float]:
        """The plan's outcome, and the CPU seconds that the gateway spent meanwhile."""
        self._load.prepare(plan)
        before = tree_cpu_s(self._gateway.pid)
        outcome = self._load.run(plan)
        cpu_s = tree_cpu_s(self._gateway.pid) - before
        self.errors += outcome.errors + (outcome.answers != plan.requests and not outcome.errors)
        self.trouble += [line for line in outcome.trouble if line not in self.trouble]
        return outcome, cpu_s


def compare(what: str, which: str, direct: float, relayed: float) -> dict[str, float]:
    return {
        f"{what}_direct_{which}_us": direct,
        f"{what}_gateway_{which}_us": relayed,
        f"{what}_added_{which}_us": relayed - direct,
        f"{what}_ratio_{which}": relayed / direct if direct else 0.0,
    }


@contextlib.contextmanager
def running_bench(options: argparse.Namespace) -> Iterator[RelayBench]:
    """A bench with its three processes; they end with it. Raises BenchError."""
    with (
        mock_engine(options.interval_ms) as engine_port,
        gateway(options.gateway, engine_port) as relay,
        load_generator() as load,
    ):
        yield RelayBench(options, load, relay, engine_port)


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.relay", description="What the gateway costs.")
    add = parser.add_argument
    add("--repetitions", type=positive, default=5)
    add("--requests", type=positive, default=20_000, help="not streamed, in each repetition (default: 20000)")
    add("--concurrency", type=positive, default=32, help="connections that ask them (default: 32)")
    add("--streams", type=positive, default=64, help="at the same time, for CPU per chunk (default: 64)")
    add("--chunks", type=positive, default=100, help="per stream, at least 2 (default: 100)")
    add("--quiet-streams", type=positive, default=16, help="at the same time, for added time (default: 16)")
    add("--quiet-chunks", type=positive, default=20, help="per stream, for added time (default: 20)")
    add("--rounds", type=positive, default=10, help="streams on each connection, one after another (default: 10)")
    add("--interval-ms", type=float, default=5.0, help="between the chunks of a stream (default: 5)")
    add("--openai-headers", action="store_true", help="send the 14 headers of the openai package instead of 3")
    add("--gateway", type=Path, default=ROOT / "gateway.py", help="another gateway.py, to compare")
    add("--json", type=Path, help="write everything to this file")
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    options = create_parser().parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    repetitions: list[Repetition] = []
    try:
        with running_bench(options) as bench:
            for number in range(options.repetitions):
                repetitions.append(bench.repeat())
                print(f"repetition {number + 1} of {options.repetitions}", file=sys.stderr)
    except BenchError as error:
        print(f"bench.relay: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench.relay: interrupted", file=sys.stderr)
        return 130
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    report = document(repetitions, settings, bench.errors, bench.trouble)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if bench.errors else 0


if __name__ == "__main__":
    sys.exit(main())
