"""Logs: history, then live; readers that are slow lose lines and are told; writers never wait."""

import asyncio
import json
import time

import pytest

from monitor.logs import HISTORY_LINES, MAX_LINE, READER_LINES, LogBuffer, LogLine, Reader
from tests.doubles import JUMPING

WAITING_LINES = HISTORY_LINES + READER_LINES


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


def filled(count: int, history: int = HISTORY_LINES) -> LogBuffer:
    buffer = LogBuffer(history, first_id=1)
    for number in range(1, count + 1):
        buffer.append(f"line {number}", "info")
    return buffer


async def read(reader: Reader, count: int) -> list[LogLine]:
    """The next lines. Fails where they do not come."""
    found: list[LogLine] = []
    async with asyncio.timeout(60):
        async for line in reader:
            found.append(line)
            if len(found) == count:
                break
    return found


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


# -- history -------------------------------------------------------------------------------------------------------


def test_lines_are_numbered_and_stamped() -> None:
    buffer = LogBuffer(first_id=1)
    assert buffer.append("a", "info", at=12.5) == LogLine(1, 12.5, "info", "a")
    assert buffer.append("b", "error").id == 2
    assert buffer.tail(1)[0].time > 10**9


def test_only_the_last_lines_are_kept() -> None:
    buffer = filled(5, history=3)
    assert texts(buffer.tail(10)) == ["line 3", "line 4", "line 5"]


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_a_tail_is_as_long_as_asked(count: int) -> None:
    assert len(filled(3).tail(count)) == min(count, 3)


def test_a_line_without_measure_is_cut() -> None:
    assert len(LogBuffer().append("x" * (2 * MAX_LINE), "info").text) == MAX_LINE


def test_a_line_is_json_for_a_browser() -> None:
    line = LogLine(1, 2.0, "info", '模型 "x"\n')
    assert json.loads(line.to_json()) == {"id": 1, "time": 2.0, "level": "info", "text": '模型 "x"\n'}


# -- readers -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_reader_gets_the_history_and_then_what_comes() -> None:
    buffer = filled(2)
    reader = buffer.open_reader()
    buffer.append("line 3", "info")
    assert texts(await read(reader, 3)) == ["line 1", "line 2", "line 3"]


@pytest.mark.anyio
async def test_a_waiting_reader_is_woken_by_a_line() -> None:
    buffer = LogBuffer()
    waiting = asyncio.create_task(read(buffer.open_reader(), 1))
    await asyncio.sleep(0)
    buffer.append("at last", "info")
    assert texts(await waiting) == ["at last"]


@pytest.mark.anyio
async def test_every_reader_gets_every_line() -> None:
    buffer = LogBuffer()
    readers = [buffer.open_reader() for _ in range(3)]
    buffer.append("for all", "info")
    for reader in readers:
        assert texts(await read(reader, 1)) == ["for all"]


@pytest.mark.anyio
@pytest.mark.parametrize(("after", "first"), [(0, 1), (1, 2), (4, 5), (6, 1), (999, 1)])
async def test_a_reader_goes_on_after_the_line_it_has(after: int, first: int) -> None:
    """A number that this buffer has not reached is of another life of it: everything is new then."""
    [line] = await read(filled(5).open_reader(after), 1)
    assert line.id == first


@pytest.mark.anyio
async def test_a_reader_that_has_all_waits_for_the_next() -> None:
    buffer = filled(5)
    reader = buffer.open_reader(after=5)
    buffer.append("line 6", "info")
    assert texts(await read(reader, 1)) == ["line 6"]


@pytest.mark.anyio
async def test_a_slow_reader_loses_the_oldest_and_is_told_how_many() -> None:
    buffer = LogBuffer()
    reader = buffer.open_reader()
    for number in range(WAITING_LINES + 7):
        buffer.append(f"line {number}", "info")
    lines = await read(reader, WAITING_LINES + 1)
    assert lines[0].level == "warning"
    assert lines[0].text.startswith("[7 lines lost")
    assert (lines[1].text, lines[-1].text) == ("line 7", f"line {WAITING_LINES + 6}")
    assert lines[0].id == lines[1].id - 1


@pytest.mark.anyio
async def test_a_reader_that_is_slow_twice_is_told_twice() -> None:
    buffer = LogBuffer()
    reader = buffer.open_reader()
    told = []
    for lost in (3, 5):
        for number in range(WAITING_LINES + lost):
            buffer.append(f"{number}", "info")
        told += (await read(reader, WAITING_LINES + 1))[:1]
    assert [line.text.split()[0] for line in told] == ["[3", "[5"]


@pytest.mark.anyio
async def test_a_reader_that_was_away_too_long_is_told_what_it_missed() -> None:
    lines = await read(filled(10, history=3).open_reader(after=2), 4)
    assert lines[0].text.startswith("[5 lines lost")
    assert texts(lines[1:]) == ["line 8", "line 9", "line 10"]


@pytest.mark.anyio
async def test_a_slow_reader_costs_the_others_nothing() -> None:
    buffer = LogBuffer()
    buffer.open_reader()
    fast = buffer.open_reader()
    for number in range(WAITING_LINES + 7):
        buffer.append(f"{number}", "info")
        assert texts(await read(fast, 1)) == [str(number)]


@pytest.mark.anyio
async def test_a_reader_of_the_log_before_a_restart_misses_nothing_of_the_one_after_it() -> None:
    before, after = LogBuffer(first_id=1000), LogBuffer(first_id=2000)
    for number in range(50):
        before.append(f"old {number}", "info")
        after.append(f"new {number}", "info")
    last = before.tail(1)[0]
    assert texts(await read(after.open_reader(last.id), 50)) == [f"new {number}" for number in range(50)]


def test_a_log_of_now_has_higher_numbers_than_one_of_long_ago() -> None:
    assert LogBuffer().append("x", "info").id >= time.time() * 1000 - 60_000


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_closing_ends_all_readers_after_what_they_have() -> None:
    buffer = filled(2)
    reader, waiting = buffer.open_reader(), buffer.open_reader(after=2)
    end = asyncio.create_task(read(waiting, 1))
    await asyncio.sleep(0)
    buffer.close()
    assert texts(await read(reader, 99)) == ["line 1", "line 2"]
    assert await end == []


@pytest.mark.anyio
async def test_a_closed_buffer_still_shows_its_history() -> None:
    buffer = filled(2)
    buffer.close()
    assert texts(await read(buffer.open_reader(), 99)) == ["line 1", "line 2"]


@pytest.mark.anyio
async def test_a_closed_reader_takes_no_more() -> None:
    buffer = LogBuffer()
    reader = buffer.open_reader()
    buffer.close_reader(reader)
    buffer.append("unheard", "info")
    reader.end()
    assert await read(reader, 99) == []
