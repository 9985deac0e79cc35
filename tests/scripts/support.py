"""Stand-ins for what the setup's parts work with."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.setup.console import Console
from scripts.setup.gateway_api import Answer, WorkerState

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Time that passes only when told to: ``pause`` is its sleep."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def create_console(live: bool = False, columns: int = 80, clock: Callable[[], float] | None = None) -> Console:
    return Console(io.StringIO(), live=live, clock=clock or Clock(), columns=lambda: columns)


def written(console: Console) -> str:
    assert isinstance(console.stream, io.StringIO)
    return console.stream.getvalue()


class ScriptedGateway:
    """A gateway process that ends when it is asked to, or ``ends_with`` a status by itself once asked for it."""

    def __init__(self, returncode: int | None = None) -> None:
        self.asked: list[int] = []
        self.returncode = returncode
        self.clean = True

    def stop(self) -> None:
        self.asked.append(15)
        self.returncode = 0

    def ended_as_asked(self) -> bool:
        return bool(self.asked) and self.clean


def answers(*states: Sequence[WorkerState], ready: bool = False) -> Callable[[], Answer]:
    """One answer after the other; the last one stays."""
    left = [Answer(up=True, ready=ready, workers=tuple(workers)) for workers in states]
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def worker(status: str, reason: str = "", name: str = "demo") -> WorkerState:
    return WorkerState(f"{name}-1", name, status, "ready" if status == "healthy" else status, reason)
