"""What the gateway costs: CPU time per request and per streamed chunk, and the time that it adds. Its peers beside it.

    python -m bench.relay                                        a minute, and one more a peer
    python -m bench.relay --peer-dir ~/peers --json relay.json   with peers that are installed below that folder

A load generator asks a mock engine, directly, through the real ``gateway.py``, and through each peer, all in one run.
``bench/README.md`` says how to read the figures.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file: its folder must not hide the package relay/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.options import add_gateway_options, positive, run_bench, say, settings_of, write_json
from bench.peers import Peer, named_peers
from bench.plan import Outcome, Plan
from bench.processes import LoadGenerator, load_generator, mock_engines, read_config
from bench.report import document, table
from bench.subjects import DIRECT, OURS, Repetition, Subject, start_gateways, start_peers
from bench.usage import tree_cpu_s, us_per_chunk

WARM_UP_SHARE = 0.1
"""Of the requests that are measured, so many are asked before, unmeasured, on the same connections."""


class RelayBench:
    """Measures one repetition after another on processes that run already."""

    def __init__(
        self, options: argparse.Namespace, load: LoadGenerator, engine: Subject, subjects: Sequence[Subject]
    ) -> None:
        self._options = options
        self._load = load
        self.engine = engine
        self.subjects = subjects

    def repeat(self) -> None:
        """Every subject once, against the engine asked directly. Raises BenchError."""
        direct, _ = self._ask(self.engine, self._plan(self.engine))
        quiet, _ = self._ask(self.engine, self._quiet_plan(self.engine))
        for subject in self.subjects:
            subject.repetitions.append(self._measure(subject, direct, quiet))

    def _measure(self, subject: Subject, direct: Outcome, quiet_direct: Outcome) -> Repetition:
        plan, stream_plan = self._plan(subject), self._stream_plan(subject)
        relayed, request_cpu_s = self._ask(subject, plan)
        us_per_request = request_cpu_s * 1e6 / plan.requests
        streamed, stream_cpu_s = self._ask(subject, stream_plan)
        chunks = stream_plan.requests * stream_plan.chunks
        quiet, _ = self._ask(subject, self._quiet_plan(subject))
        return {
            "cpu_us_per_request": us_per_request,
            "cpu_us_per_chunk": us_per_chunk(stream_cpu_s, us_per_request, stream_plan.requests, chunks),
            "requests_per_s_direct": direct.answers / direct.wall_s,
            "requests_per_s_gateway": relayed.answers / relayed.wall_s,
            "busy_requests": request_cpu_s / relayed.wall_s,
            "busy_streams": stream_cpu_s / streamed.wall_s,
            "reads_per_chunk": streamed.reads / chunks,
            **compare("ttft", "p50", quiet_direct.first_byte_p50_us, quiet.first_byte_p50_us),
            **compare("ttft", "p99", quiet_direct.first_byte_p99_us, quiet.first_byte_p99_us),
            **compare("gap", "p50", quiet_direct.gap_p50_us, quiet.gap_p50_us),
            **compare("gap", "p99", quiet_direct.gap_p99_us, quiet.gap_p99_us),
        }

    def _plan(self, subject: Subject) -> Plan:
        connections = self._options.concurrency
        requests = max(connections, round(self._options.requests * subject.share))
        return Plan(
            subject.running.port, connections, requests, max(connections, round(requests * WARM_UP_SHARE)),
            openai_headers=self._options.openai_headers, by_text=subject.by_text,
        )  # fmt: skip

    def _stream_plan(self, subject: Subject) -> Plan:
        return self._streams(subject, self._options.streams, self._options.chunks)

    def _quiet_plan(self, subject: Subject) -> Plan:
        return self._streams(subject, self._options.quiet_streams, self._options.quiet_chunks)

    def _streams(self, subject: Subject, streams: int, chunks: int) -> Plan:
        rounds = max(1, round(self._options.rounds * subject.share))
        return Plan(
            subject.running.port, streams, streams * rounds, streams, chunks=chunks,
            spread_s=chunks * self._options.interval_ms / 1000, openai_headers=self._options.openai_headers,
            by_text=subject.by_text,
        )  # fmt: skip

    def _ask(self, subject: Subject, plan: Plan) -> tuple[Outcome, float]:
        """The plan's outcome, and the CPU seconds that the subject spent meanwhile."""
        self._load.prepare(plan)
        before = tree_cpu_s(subject.running.pid)
        outcome = self._load.run(plan)
        cpu_s = tree_cpu_s(subject.running.pid) - before
        subject.blame(outcome, plan)
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
    """A bench with its processes; they end with it. Raises BenchError."""
    more = read_config(options.config)
    with contextlib.ExitStack() as stack:
        engines = stack.enter_context(mock_engines(options.interval_ms, options.replicas))
        scripts = [options.gateway, *options.also]
        subjects = [
            *start_gateways(scripts, more, engines, stack),
            *start_peers(options.peers, options.peer_dir, engines, stack),
        ]
        yield RelayBench(options, stack.enter_context(load_generator()), Subject(DIRECT, engines[0]), subjects)


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
    add("--peers", type=peers, default="all", help="all, none, or names: nginx,smg (default: those that are there)")
    add("--peer-dir", type=Path, help="a folder with a folder for each peer, see bench/README.md")
    add("--also", type=Path, action="append", default=[], help="a gateway.py to be measured beside; may be repeated")
    add_gateway_options(parser)
    return parser


def peers(words: str) -> list[Peer]:
    try:
        return named_peers(words)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def bench(options: argparse.Namespace) -> int:
    """1 when an answer of ours, or of the engine, was not right. Raises BenchError."""
    with running_bench(options) as running:
        for number in range(options.repetitions):
            running.repeat()
            say(f"repetition {number + 1} of {options.repetitions}")
    settings = settings_of(options) | {"peers": [peer.name for peer in options.peers]}
    report = document(running.engine, running.subjects, settings)
    print(table(report))
    write_json(options.json, report)
    ours = [subject for subject in running.subjects if subject.name.startswith(OURS)]
    return 1 if any(subject.errors for subject in (running.engine, *ours)) else 0


def main() -> int:
    return run_bench(create_parser(), bench)


if __name__ == "__main__":
    sys.exit(main())
