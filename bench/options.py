"""What the benches' command lines share, and how a bench ends."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from bench.children import ROOT, BenchError

Bench = Callable[[argparse.Namespace], int]
"""Runs, and answers the exit code. Raises BenchError."""


def add_gateway_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--gateway", type=Path, default=ROOT / "gateway.py", help="the gateway.py that is measured (default: our own)")
    add("--config", type=Path, help="keys of config.yaml, laid over those of the bench (bench/processes.py)")
    add("--replicas", type=positive, default=2, help="engines that have the model, to choose between (default: 2)")
    add("--json", type=Path, help="write everything to this file")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options as JSON has them."""
    return {name: plain(value) for name, value in vars(options).items()}


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Raises BenchError."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"--json {path} cannot be written: {error}") from error


def say(line: str) -> None:
    """A word to who waits; the report goes to standard output."""
    print(line, file=sys.stderr, flush=True)


def run_bench(parser: argparse.ArgumentParser, bench: Bench) -> int:
    """The bench's exit code; 1 with a word when it cannot go on, 130 when it is interrupted."""
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return bench(options)
    except BenchError as error:
        say(f"{parser.prog}: {error}")
        return 1
    except KeyboardInterrupt:
        say(f"{parser.prog}: interrupted")
        return 130


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
