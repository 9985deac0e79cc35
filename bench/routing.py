"""Routing policies against each other, on two real engines: how soon answers begin, and how much is cached.

    python -m bench.routing                            two vLLM replicas of the demo model, some minutes on a CPU
    python -m bench.routing --policies round_robin cache_aware --workloads multi-turn --json routing.json

The workers live through all of it, the gateway is started anew for every policy, and every policy gets texts of its
own, of the same length, so that it finds nothing cached that another has asked for.
"""

import argparse
import asyncio
import contextlib
import os
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__" and not __package__:  # run as a file: its folder must not hide the package relay/
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.asking import Asker, Turn
from bench.children import BenchError, free_port
from bench.conversations import WORKLOADS, Conversation, Sizes, nothing_shared
from bench.load import quantile
from bench.options import add_gateway_options, positive, run_bench, say, settings_of, write_json
from bench.processes import gateway, merged, read_config
from bench.replicas import Replica, replicas, wait_until_routed
from bench.report import machine, number
from scripts.setup.demo_model import demo_model_folder, is_complete

POLICIES: Final = ("round_robin", "least_load", "cache_aware")
ENGINE_ARGUMENTS: Final = "--max-num-seqs 8 --block-size 32 --enable-prompt-tokens-details"
"""Blocks so small that the short prompts of this bench have some; a CPU's are 128 tokens by default."""
WARM_UP: Final = Sizes(singles=4, single_words=40)


@dataclass(slots=True)
class Run:
    """All repetitions of one workload under one policy."""

    workload: str
    policy: str
    turns: list[Turn] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """``cached_share``: of all prompt tokens. ``split``: of the requests, the part that the busiest replica got."""
        whole = [turn for turn in self.turns if not turn.error]
        firsts = [turn.first_token_s * 1000 for turn in whole]
        prompt = sum(turn.prompt for turn in whole)
        split = Counter(turn.worker for turn in whole)
        return {
            "workload": self.workload, "policy": self.policy, "requests": len(whole),
            "prompt_tokens": prompt,
            "cached_share": sum(turn.cached for turn in whole) / prompt if prompt else 0.0,
            "first_token_p50_ms": quantile(firsts, 0.5), "first_token_p99_ms": quantile(firsts, 0.99),
            "first_token_mean_ms": statistics.fmean(firsts) if firsts else 0.0,
            "wall_s": statistics.median(self.wall_s),
            "split": max(split.values()) / len(whole) if whole else 0.0,
            "errors": len(self.turns) - len(whole),
            "trouble": sorted({turn.error for turn in self.turns if turn.error})[:5],
        }  # fmt: skip


COLUMNS: Final = {
    "requests": "requests", "prompt_tokens": "tokens", "cached_share": "cached", "first_token_p50_ms": "first p50",
    "first_token_p99_ms": "first p99", "first_token_mean_ms": "mean", "wall_s": "wall, s", "split": "split",
    "errors": "errors",
}  # fmt: skip


class RoutingBench:
    """Measures one policy after another on workers that run already."""

    def __init__(
        self, options: argparse.Namespace, more: Mapping[str, Any], port: int, workers: Sequence[Replica]
    ) -> None:
        self._options = options
        self._more = more
        self._port = port
        self._workers = workers
        self._skipped: set[str] = set()
        self.runs: dict[tuple[str, str], Run] = {}
        """By workload and policy."""

    def repeat(self, repetition: int) -> None:
        """Every policy once. Raises BenchError."""
        for policy in self._options.policies:
            if policy not in self._skipped:
                self._measure(policy, f"{repetition}/{policy}")

    def _measure(self, policy: str, salt: str) -> None:
        more = merged(self._more, {"routing": {"policy": policy}})
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(gateway(self._options.gateway, more, port=self._port))
            except BenchError as error:
                say(f"{policy} is skipped: {error}")
                self._skipped.add(policy)
                return
            wait_until_routed(self._port, self._workers)
            self._hold(nothing_shared(f"warm-up/{salt}", WARM_UP))
            for workload in self._options.workloads:
                self._add(workload, policy, salt)

    def _add(self, workload: str, policy: str, salt: str) -> None:
        start = time.monotonic()
        turns = self._hold(WORKLOADS[workload](f"{workload}/{salt}", self._options.sizes))
        run = self.runs.setdefault((workload, policy), Run(workload, policy))
        run.turns += turns
        run.wall_s.append(time.monotonic() - start)
        found = run.summary()
        share = f"{found['cached_share']:.0%} cached, {found['first_token_p50_ms']:.0f} ms"
        say(f"{workload}, {policy}: {len(turns)} requests, {run.wall_s[-1]:.0f} s: {share}")

    def _hold(self, conversations: Sequence[Conversation]) -> list[Turn]:
        asker = Asker(self._port, self._options.together, self._options.max_tokens)
        return asyncio.run(asker.hold(conversations))


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A line for each workload and policy. Times to the first token in ms; ``cached`` and ``split`` are shares."""
    here = machine()
    lines = [f"{here['cpu']}, {here['cores']} cores, Python {here['python']}", ""]
    lines.append(f"{'workload':18}{'policy':18}" + "".join(f"{label:>11}" for label in COLUMNS.values()))
    for found in summaries:
        row = "".join(f"{number(found[name]):>11}" for name in COLUMNS)
        lines.append(f"{found['workload']:18}{found['policy']:18}{row}")
        lines.extend(f"  {line}" for line in found["trouble"])
    return "\n".join(lines)


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.routing", description="Routing policies against each other.")
    add = parser.add_argument
    add("--policies", nargs="+", default=list(POLICIES), help=f"those to compare (default: {' '.join(POLICIES)})")
    add("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    add("--repetitions", type=positive, default=1)
    add("--backend", default="vllm", help="of the workers (default: vllm)")
    add("--model", default="", help="folder or hub id (default: the demo model, which scripts/quickstart makes)")
    add("--engine", default=None, help=f"the engine's arguments (default, for vllm: {ENGINE_ARGUMENTS!r})")
    add("--threads", type=positive, help="of an engine on a CPU (default: its share of the cores)")
    add("--together", type=positive, default=6, help="conversations at the same time (default: 6)")
    add("--max-tokens", type=positive, default=8, help="of an answer (default: 8)")
    add("--sizes", type=sizes, default=Sizes(), metavar="NAME=N,...", help=f"of the workloads (default: {describe()})")
    add_gateway_options(parser)
    return parser


def describe() -> str:
    return ",".join(f"{name}={value}" for name, value in asdict(Sizes()).items())


def sizes(text: str) -> Sizes:
    """Some of them; the others stay as they are."""
    known = asdict(Sizes())
    given = dict(part.partition("=")[::2] for part in text.split(","))
    if unknown := sorted(given.keys() - known.keys()):
        raise argparse.ArgumentTypeError(f"there is no size {', '.join(unknown)}: there are {', '.join(known)}")
    return Sizes(**{**known, **{name: positive(value) for name, value in given.items()}})


def engine_argv(options: argparse.Namespace) -> list[str]:
    """Raises BenchError."""
    model = options.model or (str(demo_model_folder()) if options.backend != "fake" else "none")
    if not options.model and options.backend != "fake" and not is_complete(demo_model_folder()):
        raise BenchError("the demo model is not there: run scripts/quickstart once, or name another by --model")
    default = ENGINE_ARGUMENTS if options.backend == "vllm" else ""
    more = shlex.split(options.engine if options.engine is not None else default)
    return ["--model", model, "--backend", options.backend, *more]


def bench(options: argparse.Namespace) -> int:
    """1 when an answer was not whole, or no policy could be measured. Raises BenchError."""
    more, port = read_config(options.config), free_port()
    threads = options.threads or max(1, len(os.sched_getaffinity(0)) // options.replicas)
    env = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with replicas(options.replicas, port, engine_argv(options), env) as workers:
        running = RoutingBench(options, more, port, workers)
        for repetition in range(options.repetitions):
            running.repeat(repetition)
    summaries = [run.summary() for name in WORKLOADS for run in running.runs.values() if run.workload == name]
    print(table(summaries))
    settings = settings_of(options) | {"sizes": asdict(options.sizes)}
    write_json(options.json, {"machine": machine(), "settings": settings, "runs": summaries})
    return 1 if not summaries or any(found["errors"] for found in summaries) else 0


def main() -> int:
    return run_bench(create_parser(), bench)


if __name__ == "__main__":
    sys.exit(main())
