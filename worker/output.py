"""Everything that the worker and its engine's children print: to the console as before, and into the log buffer."""

import asyncio
import contextlib
import os
import re
import threading
from typing import Final

from monitor.logs import LogBuffer

ANSI: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
LEVEL: Final = re.compile(r"\b(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b")
LEVELS: Final = {"WARN": "warning", "CRITICAL": "error", "FATAL": "error"}
LEVEL_WITHIN: Final = 80
"""Characters at the start of a line in which its level is looked for."""
CHUNK: Final = 65536
MAX_PARTIAL: Final = 65536
"""A line that has not ended after so many bytes (a progress bar) is taken as it is."""
STOP_TIMEOUT_S: Final = 1.0


class OutputCapture:
    """File descriptors 1 and 2, read through a pipe by a thread. Children inherit the pipe, so it sees them too."""

    def __init__(self, buffer: LogBuffer, loop: asyncio.AbstractEventLoop) -> None:
        self._buffer = buffer
        self._loop = loop
        self._console = os.dup(1)
        self._errors = os.dup(2)
        self._read_end, write_end = os.pipe()
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)
        os.close(write_end)
        self._rest = b""
        self._thread = threading.Thread(target=self._run, name="output-capture", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Gives the descriptors back. What was printed before has reached the console then."""
        os.dup2(self._console, 1)
        os.dup2(self._errors, 2)
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while chunk := os.read(self._read_end, CHUNK):
            write_all(self._console, chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > MAX_PARTIAL:
                lines.append(self._rest)
                self._rest = b""
            if lines:
                self._pass_on(lines)
        if self._rest:
            self._pass_on([self._rest])

    def _pass_on(self, lines: list[bytes]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended; the console has the lines
            self._loop.call_soon_threadsafe(self._append, lines)

    def _append(self, lines: list[bytes]) -> None:
        for raw in lines:
            text = clean(raw)
            if text:
                self._buffer.append(text, level_of(text))


def clean(raw: bytes) -> str:
    """A line as text: no colours, and of a progress bar's states the last."""
    return ANSI.sub("", raw.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]).rstrip()


def level_of(text: str) -> str:
    """The level that a line names near its start; ``info`` where it names none."""
    found = LEVEL.search(text[:LEVEL_WITHIN])
    return LEVELS.get(found[1], found[1].lower()) if found else "info"


def write_all(descriptor: int, chunk: bytes) -> None:
    """A console that has gone away must not stop a worker."""
    with contextlib.suppress(OSError):
        while chunk:
            chunk = chunk[os.write(descriptor, chunk) :]
