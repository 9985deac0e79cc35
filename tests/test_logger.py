"""The log: one line an event, whatever is in it."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import PATIENT
from utils.logger import EventLogger, quote, setup_logging

NAMES = ("ichat", "uvicorn.error")


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def log_to(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    setup_logging(level, stream)
    return stream


def test_an_event_is_a_line_with_time_level_room_and_values() -> None:
    stream = log_to()
    EventLogger("fleet").info("worker_spawned", worker_id="a", pid=7)
    expected = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO fleet worker_spawned worker_id=a pid=7\n"
    assert re.fullmatch(expected, stream.getvalue())


@pytest.mark.parametrize(
    ("level", "seen"),
    [("debug", "debug info warning error"), ("info", "info warning error"), ("error", "error")],
)
def test_what_is_below_the_level_is_not_written(level: str, seen: str) -> None:
    stream = log_to(level)
    logger = EventLogger("x")
    for each in (logger.debug, logger.info, logger.warning, logger.error):
        each(each.__name__)
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == seen.split()


@pytest.mark.parametrize(
    ("value", "word"),
    [("plain", "plain"), ("two words", '"two words"'), ("", '""'), ('"', '"\\""'), ("a=b", '"a=b"'), (None, "None"),
     ("a\nb", '"a\\nb"'), ("模型", "模型"), (0.12345, "0.123"), (3, "3"), ("\x1b[31m", '"\\u001b[31m"')],
)  # fmt: skip
def test_a_value_is_one_word(value: object, word: str) -> None:
    assert quote(value) == word


@PATIENT
@given(st.text())
def test_no_text_breaks_the_line_or_is_lost(text: str) -> None:
    word = quote(text)
    assert len(f"x{word}x".splitlines()) == 1
    assert (json.loads(word) if word.startswith('"') else word) == text


def test_a_crash_is_logged_with_its_traceback_in_one_line() -> None:
    stream = log_to()
    try:
        raise ValueError("broken\nin two")
    except ValueError as error:
        EventLogger("x").error("crashed", exc_info=error, path="/p")
    [line] = stream.getvalue().splitlines()
    assert "crashed path=/p traceback=" in line
    assert "test_logger.py" in line
    assert "ValueError: broken" in line


def test_the_web_servers_warnings_come_too_and_its_chatter_does_not() -> None:
    stream = log_to()
    server = logging.getLogger("uvicorn.error")
    server.info("Application startup complete.")
    server.error("Exception in ASGI application\n")
    [line] = stream.getvalue().splitlines()
    assert line.endswith("ERROR uvicorn.error Exception in ASGI application")


def test_setting_up_again_does_not_double_the_lines() -> None:
    log_to()
    stream = log_to()
    EventLogger("x").info("once")
    assert stream.getvalue().count("once") == 1
