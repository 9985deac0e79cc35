"""Structured logs: one line an event, ``time level room event key=value ...``."""

import json
import logging
import sys
import time
from typing import Any, TextIO

ROOT = "ichat"
LEVELS = ("debug", "info", "warning", "error")


class EventLogger:
    """Logs events with named values. Values hold no secrets and no prompts: what is not passed is not logged."""

    def __init__(self, room: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{room}")

    def debug(self, event: str, **values: Any) -> None:
        self._log(logging.DEBUG, event, values)

    def info(self, event: str, **values: Any) -> None:
        self._log(logging.INFO, event, values)

    def warning(self, event: str, **values: Any) -> None:
        self._log(logging.WARNING, event, values)

    def error(self, event: str, *, exc_info: BaseException | None = None, **values: Any) -> None:
        self._log(logging.ERROR, event, values, exc_info)

    def _log(self, level: int, event: str, values: dict[str, Any], exc_info: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"values": values}, exc_info=exc_info)


class LineFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO fleet worker_spawned worker_id=a pid=7``"""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        room = record.name.removeprefix(f"{ROOT}.")
        message = " ".join(record.getMessage().split())  # uvicorn's hold line ends
        parts = [f"{stamp}.{int(record.msecs):03d}Z", record.levelname, room, message]
        values: dict[str, Any] = getattr(record, "values", {})
        parts.extend(f"{key}={quote(value)}" for key, value in values.items())
        if record.exc_info:
            parts.append(f"traceback={quote(self.formatException(record.exc_info))}")
        return " ".join(parts)


def quote(value: object) -> str:
    """A value as one word: text with spaces, quotes or line ends becomes a JSON string."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if text and all(char.isprintable() and char not in ' "=' for char in text):
        return text
    has_more_line_ends = any(not char.isprintable() and char > "~" for char in text)
    return json.dumps(text, ensure_ascii=has_more_line_ends)


def setup_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Send iChat's own events, and warnings of the servers below it, to ``stream`` (default: standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    for name, own_level in ((ROOT, level.upper()), ("uvicorn.error", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(own_level)
        logger.propagate = False
