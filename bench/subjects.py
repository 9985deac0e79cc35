"""What ``bench.relay`` measures: gateways, and their peers where they are there."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.children import BenchError
from bench.options import say
from bench.peers import Peer, running_peer
from bench.plan import Outcome, Plan
from bench.processes import Running, gateway_with_mocks

OURS: Final = "ichat"
DIRECT: Final = "direct"
Repetition = Mapping[str, float]


@dataclass(slots=True)
class Subject:
    """A server that stands between load and engine, and what came of it. ``share``: of the load that it gets."""

    name: str
    running: Running
    share: float = 1.0
    by_text: bool = False
    errors: int = 0
    trouble: list[str] = field(default_factory=list)
    repetitions: list[Repetition] = field(default_factory=list)

    def blame(self, outcome: Outcome, plan: Plan) -> None:
        """Counts what went wrong."""
        self.errors += outcome.errors or outcome.answers != plan.requests
        self.trouble += [line for line in outcome.trouble if line not in self.trouble]


def start_gateways(
    scripts: Sequence[Path], more: Mapping[str, Any], engines: Sequence[Running], stack: contextlib.ExitStack
) -> Iterator[Subject]:
    """Raises BenchError."""
    for number, script in enumerate(scripts, start=1):
        running = stack.enter_context(gateway_with_mocks(script, more, engines))
        yield Subject(OURS if number == 1 else f"{OURS} {number}", running)


def start_peers(
    peers: Sequence[Peer], folder: Path | None, engines: Sequence[Running], stack: contextlib.ExitStack
) -> Iterator[Subject]:
    """Those that are there and start; a word about each that is not or does not."""
    for peer in peers:
        command = peer.find(folder)
        if command is None:
            say(f"{peer.name} is skipped: there is no command {peer.command} on PATH or below --peer-dir")
            continue
        try:
            running = stack.enter_context(running_peer(peer, command, [engine.port for engine in engines]))
        except BenchError as error:
            say(f"{peer.name} is skipped: {error}")
            continue
        yield Subject(peer.name, running, peer.share, peer.by_text)
