"""Stand-ins for what tests cannot wait for or look into: time, and the log."""

import asyncio
import contextlib
import logging
import selectors
from collections.abc import Iterator

from hypothesis import HealthCheck, settings

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For property tests on machines that have other things to do: what is slow there is not wrong."""


class JumpingSelector(selectors.EpollSelector):
    """Where a loop would wait for its next timer with nothing else to do, the time just passes."""

    def __init__(self) -> None:
        super().__init__()
        self.jumped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            return super().select(None)
        if not ready and timeout:
            self.jumped += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer: seconds of waiting take none. Not for code with real sockets."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return super().time() + self._jumping.jumped


JUMPING = ("asyncio", {"loop_factory": JumpingLoop})
"""The value of a module's own fixture ``anyio_backend`` whose tests are to run on such a loop."""


class Events(logging.Handler):
    """The events that were logged, as (level, event, values)."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def named(self, event: str) -> list[logging.LogRecord]:
        return [record for record in self.records if record.getMessage() == event]


@contextlib.contextmanager
def logged() -> Iterator[Events]:
    """What iChat logs meanwhile, at every level."""
    logger, events = logging.getLogger("ichat"), Events()
    level = logger.level
    logger.addHandler(events)
    logger.setLevel(logging.DEBUG)
    try:
        yield events
    finally:
        logger.removeHandler(events)
        logger.setLevel(level)
