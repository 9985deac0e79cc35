"""Whether the gateway's memory grows with the requests that it has served.

    python -m bench.soak                        200,000 requests, some minutes

Asks a mixture of requests (bench/questions.py: whole answers, short streams, clients that leave in the middle, errors),
each with a prompt of its own. Ends with code 1 when the memory grows faster than ``--bound`` over the last half.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

if __name__ == "__main__" and not __package__:  # run as a file: its folder must not hide the package relay/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.options import add_gateway_options, positive, run_bench, say, settings_of, write_json
from bench.plan import Plan
from bench.processes import LoadGenerator, Running, gateway_with_mocks, load_generator, mock_engines, read_config
from bench.questions import MIXTURE
from bench.report import machine
from bench.usage import slope, tree_rss_bytes

INTERVAL_MS: Final = 1.0
"""Between the chunks of the short streams."""
BOUND: Final = 20.0
"""Bytes a request. One object that is kept of each request is more than this; the allocator's breath is less."""
STEP_LIMIT_S: Final = 300.0


@dataclass(slots=True)
class Soaked:
    """``samples``: requests served so far, and the gateway's resident bytes then."""

    samples: list[tuple[int, int]] = field(default_factory=list)
    errors: int = 0
    trouble: list[str] = field(default_factory=list)

    @property
    def bytes_per_request(self) -> float:
        """The slope over the last half."""
        return slope(last_half(self.samples))


def last_half(samples: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    half = samples[-1][0] / 2
    return [sample for sample in samples if sample[0] >= half]


def soak(options: argparse.Namespace, load: LoadGenerator, gateway: Running) -> Soaked:
    """Raises BenchError."""
    soaked = Soaked()
    for served in range(0, options.requests, options.every):
        requests = min(options.every, options.requests - served)
        plan = Plan(
            gateway.port, options.concurrency, requests, 0, limit_s=STEP_LIMIT_S, mixture=True, first=served
        )  # fmt: skip
        load.prepare(plan)
        outcome = load.run(plan)
        soaked.errors += outcome.errors or outcome.answers != requests
        soaked.trouble += [line for line in outcome.trouble if line not in soaked.trouble]
        rss = tree_rss_bytes(gateway.pid)
        soaked.samples.append((served + requests, rss))
        say(f"{served + requests} requests: {rss / 2**20:.2f} MiB, {requests / outcome.wall_s:.0f} requests/s")
    return soaked


def exit_code(soaked: Soaked, bound: float) -> int:
    return 1 if soaked.errors or soaked.bytes_per_request > bound else 0


def table(soaked: Soaked, bound: float) -> str:
    here = machine()
    mixture = ", ".join(f"{share} % {kind}" for kind, share in MIXTURE.items())
    verdict = "within" if soaked.bytes_per_request <= bound else "EXCEEDS"
    lines = [f"{here['cpu']}, {here['cores']} cores, Python {here['python']}; {mixture}", ""]
    lines += [f"{served:>10} requests {rss / 2**20:>10.2f} MiB" for served, rss in soaked.samples]
    lines += ["", f"growth over the last half: {soaked.bytes_per_request:.2f} bytes a request, {verdict} {bound:g}"]
    return "\n".join([*lines, f"errors: {soaked.errors}", *(f"  {line}" for line in soaked.trouble)])


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.soak", description="Whether the gateway's memory grows.")
    add = parser.add_argument
    add("--requests", type=positive, default=200_000, help="altogether (default: 200000)")
    add("--every", type=positive, default=5_000, help="memory is looked at after so many (default: 5000)")
    add("--concurrency", type=positive, default=32, help="connections that ask (default: 32)")
    add("--bound", type=float, default=BOUND, help=f"bytes a request, over the last half (default: {BOUND:g})")
    add_gateway_options(parser)
    return parser


def bench(options: argparse.Namespace) -> int:
    """1 when memory grows too fast, or an answer was not right. Raises BenchError."""
    more = read_config(options.config)
    with (
        mock_engines(INTERVAL_MS, options.replicas) as engines,
        gateway_with_mocks(options.gateway, more, engines) as gateway,
        load_generator() as load,
    ):
        soaked = soak(options, load, gateway)
    print(table(soaked, options.bound))
    report = {
        "machine": machine(), "settings": settings_of(options), "samples": soaked.samples, "errors": soaked.errors,
        "trouble": soaked.trouble, "bytes_per_request": soaked.bytes_per_request,
    }  # fmt: skip
    write_json(options.json, report)
    return exit_code(soaked, options.bound)


def main() -> int:
    return run_bench(create_parser(), bench)


if __name__ == "__main__":
    sys.exit(main())
