"""What a worker's engine is doing: written by the backend alone, read by doors, heartbeats and metrics."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from config.states import WorkerState
from utils.logger import EventLogger

logger = EventLogger("worker")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of an engine once it runs. ``arguments``: the effective ones that differ from its defaults."""

    version: str = ""
    tasks: tuple[str, ...] = ()
    max_model_len: int | None = None
    capacity: int | None = None
    modalities: tuple[str, ...] = ("text",)
    """What a request may hold, in vLLM's words."""
    adapters: tuple[str, ...] = ()
    """The names of the LoRA adapters that can be asked for."""
    arguments: dict[str, Any] = field(default_factory=dict)


class WorkerStatus:
    """The worker's state with its reason, and the engine's facts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = WorkerState.LOADING
        self.reason = ""
        self.facts = EngineFacts()
        self.load_seconds: float | None = None
        self._clock = clock
        self._started = clock()
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """``listener`` is called after every change."""
        self._listeners.append(listener)

    def set(self, state: WorkerState, reason: str = "") -> None:
        """A new state. A failed worker stays failed: what comes after is only its end."""
        if self.state is WorkerState.FAILED or (state, reason) == (self.state, self.reason):
            return
        if state is WorkerState.READY and self.load_seconds is None:
            self.load_seconds = self._clock() - self._started
        logger.info("state", was=self.state, now=state, reason=reason or "-")
        self.state, self.reason = state, reason
        self._tell()

    def learn(self, facts: EngineFacts) -> None:
        self.facts = facts
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
