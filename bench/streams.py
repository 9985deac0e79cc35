"""Many streams at once: what each costs the gateway in memory, and each chunk in CPU time.

    python -m bench.streams                     1,000 streams and 5,000, a chunk a second each: two minutes
    python -m bench.streams --streams 10000 --interval-ms 2000

The same load goes to the mock engine directly and through the real ``gateway.py``.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

if __name__ == "__main__" and not __package__:  # run as a file: its folder must not hide the package relay/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.options import add_gateway_options, positive, run_bench, say, settings_of, write_json
from bench.plan import Outcome, Plan
from bench.processes import LoadGenerator, Running, gateway_with_mocks, load_generator, mock_engines, read_config
from bench.report import machine, number
from bench.usage import tree_cpu_s, tree_rss_bytes

WARM_UP_STREAMS: Final = 64
"""Asked before memory is looked at, so that what is loaded on first use is no stream's."""
SETTLE_S: Final = 0.5
PATIENCE_S: Final = 60.0
"""What a run may take beyond what it lasts when nothing is late."""


@dataclass(frozen=True, slots=True)
class Level:
    """What so many streams at once came to. Times in ms, memory in bytes; ``pieces``: read per chunk sent."""

    streams: int
    chunks_per_stream: int
    cpu_us_per_chunk: float
    busy: float
    rss_bytes_per_stream: float
    rss_bytes: int
    gap_direct_p50_ms: float
    gap_gateway_p50_ms: float
    gap_direct_p99_ms: float
    gap_gateway_p99_ms: float
    gap_ratio_p99: float
    first_byte_direct_p99_ms: float
    first_byte_gateway_p99_ms: float
    pieces: float
    load_busy: float
    errors: int
    trouble: Sequence[str]


@dataclass(frozen=True, slots=True)
class Steady:
    """What the gateway and the load generator used while every stream was open."""

    cpu_s: float
    load_cpu_s: float
    wall_s: float
    rss_bytes: int


ROWS: Final = {
    "chunks_per_stream": "chunks per stream",
    "cpu_us_per_chunk": "gateway CPU per chunk, us",
    "busy": "gateway busy, share of a core",
    "rss_bytes_per_stream": "gateway memory per stream, bytes",
    "rss_bytes": "gateway memory with all open, bytes",
    "gap_direct_p50_ms": "gap between chunks p50, direct, ms",
    "gap_gateway_p50_ms": "gap between chunks p50, gateway, ms",
    "gap_direct_p99_ms": "gap between chunks p99, direct, ms",
    "gap_gateway_p99_ms": "gap between chunks p99, gateway, ms",
    "gap_ratio_p99": "gap between chunks p99, gateway / direct",
    "first_byte_direct_p99_ms": "first byte p99, direct, ms",
    "first_byte_gateway_p99_ms": "first byte p99, gateway, ms",
    "pieces": "pieces read per chunk sent",
    "load_busy": "load generator busy, share of a core",
    "errors": "errors",
}


class StreamsBench:
    """Measures a number of streams on a gateway that has served nothing yet."""

    def __init__(self, options: argparse.Namespace, load: LoadGenerator, engine: Running, gateway: Running) -> None:
        self._options = options
        self._load = load
        self._engine = engine
        self._gateway = gateway

    def measure(self, streams: int) -> Level:
        """Raises BenchError."""
        direct, _ = self._ask(plan_for(self._engine.port, streams, self._options))
        self._load.prepare(warm_up := Plan(self._gateway.port, WARM_UP_STREAMS, WARM_UP_STREAMS, 0, chunks=2))
        self._load.run(warm_up)
        before = tree_rss_bytes(self._gateway.pid)
        plan = plan_for(self._gateway.port, streams, self._options)
        return level(plan, before, direct, *self._ask(plan))

    def _ask(self, plan: Plan) -> tuple[Outcome, Steady]:
        self._load.prepare(plan)
        self._load.start()
        steady = self._watch(*plan.window_s)
        return self._load.finish(plan), steady

    def _watch(self, opens_s: float, closes_s: float) -> Steady:
        start = time.monotonic()
        time.sleep(opens_s)
        before, load_before = tree_cpu_s(self._gateway.pid), tree_cpu_s(self._load.pid)
        opened = time.monotonic()
        time.sleep(max(0.0, start + closes_s - opened))
        cpu_s, load_cpu_s = tree_cpu_s(self._gateway.pid) - before, tree_cpu_s(self._load.pid) - load_before
        return Steady(cpu_s, load_cpu_s, time.monotonic() - opened, tree_rss_bytes(self._gateway.pid))


def plan_for(port: int, streams: int, options: argparse.Namespace) -> Plan:
    """Streams begin one after another, and each goes on until all have been open together for ``steady_s``."""
    interval_s = options.interval_ms / 1000
    spread_s = streams / options.starts_per_s
    opens_s = spread_s + SETTLE_S
    closes_s = opens_s + options.steady_s
    chunks = math.ceil((closes_s + SETTLE_S) / interval_s) + 2
    return Plan(
        port, streams, streams, 0, chunks=chunks, spread_s=spread_s,
        limit_s=spread_s + chunks * interval_s + PATIENCE_S, window_s=(opens_s, closes_s),
    )  # fmt: skip


def level(plan: Plan, rss_before: int, direct: Outcome, relayed: Outcome, steady: Steady) -> Level:
    return Level(
        streams=plan.requests,
        chunks_per_stream=plan.chunks,
        cpu_us_per_chunk=steady.cpu_s * 1e6 / max(1, relayed.window_reads),
        busy=steady.cpu_s / steady.wall_s,
        rss_bytes_per_stream=(steady.rss_bytes - rss_before) / plan.requests,
        rss_bytes=steady.rss_bytes,
        gap_direct_p50_ms=direct.gap_p50_us / 1000,
        gap_gateway_p50_ms=relayed.gap_p50_us / 1000,
        gap_direct_p99_ms=direct.gap_p99_us / 1000,
        gap_gateway_p99_ms=relayed.gap_p99_us / 1000,
        gap_ratio_p99=relayed.gap_p99_us / direct.gap_p99_us if direct.gap_p99_us else 0.0,
        first_byte_direct_p99_ms=direct.first_byte_p99_us / 1000,
        first_byte_gateway_p99_ms=relayed.first_byte_p99_us / 1000,
        pieces=relayed.reads / (plan.requests * plan.chunks),
        load_busy=steady.load_cpu_s / steady.wall_s,
        errors=sum(outcome.errors or outcome.answers != plan.requests for outcome in (direct, relayed)),
        trouble=(*direct.trouble, *relayed.trouble),
    )


def table(levels: Sequence[Level], options: argparse.Namespace) -> str:
    """A column for each number of streams."""
    here = machine()
    head = f"{here['cpu']}, {here['cores']} cores, Python {here['python']}; a chunk every {options.interval_ms:g} ms"
    lines = [head, "", f"{'streams at the same time':45}" + "".join(f"{found.streams:>12}" for found in levels)]
    for name, label in ROWS.items():
        lines.append(f"{label:45}" + "".join(f"{number(getattr(found, name)):>12}" for found in levels))
    return "\n".join([*lines, *(f"  {line}" for found in levels for line in found.trouble)])


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.streams", description="What many streams at once cost.")
    add = parser.add_argument
    add("--streams", type=positive, nargs="+", default=[1000, 5000], help="at the same time (default: 1000 5000)")
    add("--interval-ms", type=float, default=1000.0, help="between the chunks of a stream (default: 1000)")
    add("--starts-per-s", type=positive, default=500, help="streams that begin in a second (default: 500)")
    add("--steady-s", type=float, default=5.0, help="all are open together, and watched, for so long (default: 5)")
    add_gateway_options(parser)
    return parser


def bench(options: argparse.Namespace) -> int:
    """1 when an answer was not right. Raises BenchError."""
    more = read_config(options.config)
    levels = []
    with mock_engines(options.interval_ms, options.replicas) as engines, load_generator() as load:
        for streams in options.streams:
            with gateway_with_mocks(options.gateway, more, engines) as gateway:
                levels.append(StreamsBench(options, load, engines[0], gateway).measure(streams))
            say(f"{streams} streams measured")
    print(table(levels, options))
    found = [asdict(entry) for entry in levels]
    write_json(options.json, {"machine": machine(), "settings": settings_of(options), "levels": found})
    return 1 if any(entry.errors for entry in levels) else 0


def main() -> int:
    return run_bench(create_parser(), bench)


if __name__ == "__main__":
    sys.exit(main())
