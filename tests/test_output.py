"""What a worker and its engine's children print: to the console as before, and into the log."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from worker.output import MAX_PARTIAL, clean, level_of


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain", "plain"),
        (b"  kept in front, not behind  ", "  kept in front, not behind"),
        (b"\x1b[32mINFO\x1b[0m: up", "INFO: up"),
        (b"\x1b[1;38;5;196mred\x1b[K", "red"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"Loading:  10%\rLoading:  50%\rLoading: 100%", "Loading: 100%"),
        (b"windows\r", "windows"),
        ("模型 已加载".encode(), "模型 已加载"),
        (b"half a \xe6\xa8", "half a \ufffd"),
        (b"", ""),
        (b"\x1b[0m", ""),
    ],
)
def test_a_line_is_text_without_colours_and_past_progress(raw: bytes, text: str) -> None:
    assert clean(raw) == text


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("(EngineCore pid=7) INFO 01-31 12:00:00 [core.py:58] up", "info"),
        ("2026-01-31 12:00:00 WARNING cuda: slow", "warning"),
        ("WARN: slow", "warning"),
        ("[ERROR] broken", "error"),
        ("CRITICAL broken", "error"),
        ("FATAL: broken", "error"),
        ("DEBUG x", "debug"),
        ("no level at all", "info"),
        ("INFO: 3 ERRORS were found", "info"),
        ("INFORMATION about ERRORS", "info"),
        ("an error in small letters", "info"),
        ("x" * 100 + " ERROR", "info"),
    ],
)
def test_the_level_is_the_first_that_a_line_names_near_its_start(text: str, level: str) -> None:
    assert level_of(text) == level


# -- a real process ------------------------------------------------------------------------------------------------

CAPTURE = """
import asyncio, json, os, subprocess, sys
from monitor.logs import LogBuffer
from worker.output import OutputCapture

async def main():
    buffer = LogBuffer()
    capture = OutputCapture(buffer, asyncio.get_running_loop())
{body}
    capture.stop()
    await asyncio.sleep(0)
    open(sys.argv[1], "w").write(json.dumps([[line.level, line.text] for line in buffer.tail(10**6)]))

asyncio.run(main())
"""


def capture(body: str, folder: Path, **streams: Any) -> tuple[subprocess.CompletedProcess[bytes], list[list[str]]]:
    """Runs the body with its output captured: what the process itself printed, and the lines of its log."""
    lines = folder / "lines.json"
    code = CAPTURE.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))
    finished = subprocess.run([sys.executable, "-c", code, str(lines)], cwd=ROOT, timeout=60, check=True, **streams)
    return finished, json.loads(lines.read_text())


def test_everything_printed_reaches_console_and_log(tmp_path: Path) -> None:
    body = """
print("from python", flush=True)
print("WARNING to stderr", file=sys.stderr, flush=True)
subprocess.run(["echo", "from a child"])
os.write(1, b"\\n\\n")
for number in range(20000): os.write(1, b"many %d\\n" % number)
os.write(1, b"bar 1\\rbar 2\\n")
os.write(2, b"the last, without an end")
"""
    finished, lines = capture(body, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    many = b"".join(b"many %d\n" % number for number in range(20000))
    assert finished.stdout == (
        b"from python\nWARNING to stderr\nfrom a child\n\n\n" + many + b"bar 1\rbar 2\nthe last, without an end"
    )
    assert lines[-2:] == [["info", "bar 2"], ["info", "the last, without an end"]]
    assert lines[-3] == ["info", "many 19999"]
    assert "" not in [text for _, text in lines]


def test_what_comes_from_whom_keeps_its_order_and_level(tmp_path: Path) -> None:
    body = """
print("from python", flush=True)
print("WARNING to stderr", file=sys.stderr, flush=True)
subprocess.run(["echo", "ERROR from a child"])
"""
    _, lines = capture(body, tmp_path, stdout=subprocess.DEVNULL)
    assert lines == [["info", "from python"], ["warning", "WARNING to stderr"], ["error", "ERROR from a child"]]


def test_a_console_that_has_gone_away_stops_neither_process_nor_log(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    _, lines = capture("for n in range(3): print('still here', flush=True)", tmp_path, stdout=write_end)
    os.close(write_end)
    assert lines == [["info", "still here"]] * 3


def test_a_line_that_never_ends_does_not_grow_for_ever(tmp_path: Path) -> None:
    body = f"for _ in range(5): os.write(1, b'x' * {MAX_PARTIAL})"
    _, lines = capture(body, tmp_path, stdout=subprocess.DEVNULL)
    assert len(lines) >= 2
    assert set("".join(text for _, text in lines)) == {"x"}
