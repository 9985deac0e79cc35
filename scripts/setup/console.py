"""What a person sees: one line a step, with the seconds it has taken."""

import shutil
import sys
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Self, TextIO

QUIET_S = 10.0
"""Without a terminal a step says at most every so many seconds that it still goes on."""


class Console:
    """Lines on a terminal, the last of them redrawn in place; plain lines where there is no terminal."""

    def __init__(
        self,
        stream: TextIO = sys.stdout,
        live: bool | None = None,
        clock: Callable[[], float] = monotonic,
        columns: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        self.stream = stream
        self.live = stream.isatty() if live is None else live
        self.clock = clock
        self.columns = columns
        self._drawn = False

    def say(self, text: str) -> None:
        """A line that stays."""
        self._write((self._erase() if self._drawn else "") + text + "\n")
        self._drawn = False

    def draw(self, text: str) -> None:
        """A line that the next one replaces. Only for a terminal.

        The cursor is left at its start, so that another process's output does not begin behind our words.
        """
        self._write(f"{self._erase()}{text[: max(self.columns() - 1, 1)]}\r")
        self._drawn = True

    def step(self, title: str) -> "Step":
        return Step(self, title)

    def _erase(self) -> str:
        return "\r\x1b[2K"

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            pass  # the terminal is gone: what there is to stop is still to be stopped


class Step:
    """One thing that takes time: ``with console.step("installing") as step: step.update("3 of 8")``."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._detail = ""
        self._began = console.clock()
        self._said = self._began

    def __enter__(self) -> Self:
        show = self._console.draw if self._console.live else self._console.say
        show(f"  {self._line()} ...")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        mark = "✓" if error is None else "✗"
        self._console.say(f"{mark} {self._line()}")

    @property
    def seconds(self) -> float:
        return self._console.clock() - self._began

    def update(self, detail: str) -> None:
        """Say what is going on now. Cheap: call it as often as you like."""
        self._detail = detail
        now = self._console.clock()
        if self._console.live:
            self._console.draw(f"  {self._line()}")
        elif now - self._said >= QUIET_S:
            self._console.say(f"  {self._line()}")
            self._said = now

    def conclude(self, detail: str) -> None:
        """The words that stay behind when the step is done."""
        self._detail = detail

    def _line(self) -> str:
        words = f"{self._title}: {self._detail}" if self._detail else self._title
        return f"{self.seconds:4.0f} s  {words}"  # in front, where a narrow terminal cuts nothing off
