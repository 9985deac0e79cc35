"""What clients may do to a connection: in pieces, in a row, too much, too slowly, in other versions of HTTP."""

import asyncio
import contextlib
import gc
import json
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import generate_latest

from relay.door import MAX_HEAD_BYTES, Door
from tests.relay_double import MODEL, Gate, door
from tests.scripted import OK, answering, read_request, scripted
from tests.test_relay import endless
from tests.wire import connection

pytestmark = pytest.mark.anyio

BODY = json.dumps({"model": MODEL}).encode()
ROUTE = b"/v1/completions"


def request(
    body: bytes = BODY, *more: bytes, target: bytes = ROUTE, version: bytes = b"1.1", length: int | None = None
) -> bytes:
    lines = [b"POST %b HTTP/%b" % (target, version), b"host: x", b"content-type: application/json", *more]
    lines.append(b"content-length: %d" % (len(body) if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Client:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._writer.write(piece)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer that has a length."""
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 5)).decode()
        status_line, *lines = head.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = await asyncio.wait_for(self._reader.readexactly(int(headers.get("content-length", 0))), 5)
        return int(status_line.split()[1]), headers, body

    async def rest(self) -> bytes:
        """Until the server closes."""
        rest = b""
        with contextlib.suppress(ConnectionError):  # closed in the middle of what we send
            while piece := await asyncio.wait_for(self._reader.read(65536), 5):
                rest += piece
        return rest


@asynccontextmanager
async def client(gate: Gate) -> AsyncIterator[Client]:
    async with connection(gate) as ends:
        yield Client(*ends)


@asynccontextmanager
async def open_door(*answers: bytes, **settings: Any) -> AsyncIterator[tuple[Gate, Client]]:
    """A door with one worker that gives these answers, and a client's connection to it."""
    async with door(**settings) as gate, scripted(answering(*answers)) as (_, address), client(gate) as one:
        gate.add("w", address)
        yield gate, one


async def test_a_request_may_come_byte_by_byte() -> None:
    async with open_door(OK) as (_, one):
        for byte in request():
            one.send(bytes([byte]))
            await asyncio.sleep(0)
        status, headers, body = await one.answer()
    assert (status, body) == (200, b"hello")
    assert headers["x-ichat-worker"] == "w"


async def test_requests_one_after_the_other_share_a_connection() -> None:
    async with open_door(OK, OK) as (_, one):
        statuses = []
        for each in (request(), request(b"{"), b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n", request()):
            one.send(each)
            statuses.append((await one.answer())[0])
    assert statuses == [200, 400, 418, 200]


async def test_a_request_that_does_not_wait_for_its_turn_is_not_taken() -> None:
    async with open_door(OK, OK) as (gate, one):
        one.send(request() * 3)
        assert (await one.answer())[0] == 200
        assert await one.rest() == b""
        assert gate.router.in_flight == {}
        assert b'status="200"} 1.0' in generate_latest(gate.metrics)


async def test_a_thousand_wrong_requests_at_once_are_a_thousand_answers() -> None:
    async with open_door() as (_, one):
        one.send(request(b"", target=ROUTE).replace(b"application/json", b"text/plain") * 1000)
        statuses = {(await one.answer())[0] for _ in range(1000)}
    assert statuses == {415}


async def test_an_old_client_gets_an_answer_without_chunks_and_its_end() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"
    async with open_door(chunked) as (_, one):
        one.send(request(version=b"1.0"))
        head, _, body = (await one.rest()).partition(b"\r\n\r\n")
    assert body == b"one"
    assert b"chunked" not in head
    assert b"connection: close" in head


async def test_a_client_that_wants_to_close_is_closed() -> None:
    async with open_door(OK) as (_, one):
        one.send(request(BODY, b"connection: close"))
        head, _, body = (await one.rest()).partition(b"\r\n\r\n")
    assert (b"connection: close" in head, body) == (True, b"hello")


@pytest.mark.parametrize("target", [ROUTE + b"?a=b", b"http://proxied" + ROUTE, b"/v1/completion%73"])
async def test_a_route_may_be_written_in_other_ways(target: bytes) -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await read_request(reader)).split(b"\r\n")[0])
        writer.write(OK)

    async with door() as gate, scripted(script) as (_, address), client(gate) as one:
        gate.add("w", address)
        one.send(request(target=target))
        assert (await one.answer())[0] == 200
    assert seen == [b"POST %b HTTP/1.1" % target.removeprefix(b"http://proxied")]


async def test_who_asks_whether_to_send_is_told() -> None:
    async with open_door(OK) as (_, one):
        one.send(request(b"", b"expect: 100-continue", length=len(BODY)))
        assert (await one.answer())[0] == 100
        one.send(BODY)
        assert (await one.answer())[0] == 200


async def test_who_asks_whether_to_send_too_much_is_told_not_to() -> None:
    async with open_door(max_body_mb=1) as (_, one):
        one.send(request(b"", b"expect: 100-continue", length=2 * 1024 * 1024))
        answer = await one.rest()
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_client_of_a_newer_http_is_served_in_this_one() -> None:
    async with open_door(OK, OK) as (_, one):
        for _ in range(2):
            one.send(
                request(BODY, b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk")
            )
            assert (await one.answer())[0] == 200


async def test_what_a_chunked_body_trails_is_no_header() -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    head = request(b"").rpartition(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\n"
    async with door() as gate, scripted(script) as (_, address), client(gate) as one:
        gate.add("w", address)
        one.send(head + b"%x\r\n%b\r\n0\r\nx-trailer: evil\r\n\r\n" % (len(BODY), BODY))
        assert (await one.answer())[0] == 200
    assert b"evil" not in seen[0]
    assert seen[0].endswith(BODY)


@pytest.mark.parametrize(
    "lengths",
    [b"content-length: 1\r\ncontent-length: 2", b"transfer-encoding: chunked\r\ncontent-length: 2",
     b"content-length: -1", b"content-length: 1, 2", b"transfer-encoding: chunked, identity",
     b"content-length : 2", b"x:\r\n content-length: 2\r\ncontent-length: 1x"],
)  # fmt: skip
async def test_a_request_of_two_lengths_is_refused(lengths: bytes) -> None:
    async with open_door(OK) as (gate, one):
        one.send(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n%b\r\n\r\n{}" % (ROUTE, lengths))
        assert (await one.rest()).startswith(b"HTTP/1.1 400 ")
        assert gate.router.in_flight == {}


async def test_a_head_without_end_is_refused() -> None:
    async with open_door() as (_, one):
        one.send(b"POST %b HTTP/1.1\r\n" % ROUTE)
        for _ in range(MAX_HEAD_BYTES // 1000 + 2):
            one.send(b"x-filler: " + b"x" * 1000 + b"\r\n")
            await asyncio.sleep(0.001)
        assert (await one.rest())[:13] in (b"HTTP/1.1 431 ", b"")  # a reset may come before it


async def test_a_body_without_end_is_cut_off() -> None:
    async with open_door(max_body_mb=1) as (_, one):
        one.send(request(b"", length=10**12))
        for _ in range(5):
            one.send(b"x" * 1024 * 1024)
        assert (await one.rest())[:13] in (b"HTTP/1.1 413 ", b"")  # a reset may come before it


async def test_a_refused_client_may_send_its_body_and_ask_again() -> None:
    async with open_door(OK) as (_, one):
        wrong = request(BODY, length=len(BODY)).replace(b"application/json", b"text/plain")
        head, _, body = wrong.partition(b"\r\n\r\n")
        one.send(head + b"\r\n\r\n")
        assert (await one.answer())[0] == 415
        one.send(body + request())
        assert (await one.answer())[0] == 200


async def test_garbage_behind_a_request_does_not_get_into_its_answer() -> None:
    reached = asyncio.Event()
    async with door() as gate, scripted(endless(reached)) as (worker, address), client(gate) as one:
        gate.add("w", address)
        one.send(request())
        await reached.wait()
        one.send(b"\x00garbage\r\n\r\n")
        await asyncio.sleep(0.02)
        gate.relay.cut_flights()
        assert b" 400 " not in await one.rest()
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert gate.router.in_flight == {}


async def test_garbage_within_a_body_is_a_400() -> None:
    async with open_door() as (_, one):
        one.send(request(b"").rpartition(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\nnonsense\r\n")
        assert (await one.rest()).startswith(b"HTTP/1.1 400 ")


async def test_the_body_of_an_offer_of_another_protocol_is_never_taken_for_a_request() -> None:
    hidden = request()
    offer = [b"connection: upgrade", b"upgrade: h2c"]
    async with open_door(OK) as (gate, one):
        one.send(request(hidden, *offer, target=b"/elsewhere") + request(hidden, *offer))
        assert (await one.answer())[0] == 418
        assert (await one.rest()).count(b"HTTP/1.1 ") <= 1
        assert b'status="200"' not in generate_latest(gate.metrics)


async def test_an_offer_of_another_protocol_needs_a_length() -> None:
    head = request(b"", b"connection: upgrade", b"upgrade: h2c").rpartition(b"content-length")[0]
    async with open_door(OK) as (_, one):
        one.send(head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        assert (await one.rest()).startswith(b"HTTP/1.1 400 ")


async def test_answers_that_nobody_reads_do_not_pile_up() -> None:
    wrong = request(b"").replace(b"application/json", b"text/plain")
    async with open_door() as (_, one):
        for _ in range(200):
            one.send(wrong * 200)
            await asyncio.sleep(0)
        answers = (await one.rest()).count(b"HTTP/1.1 415 ")
    assert 0 < answers < 200 * 200


async def test_a_head_may_come_in_one_read_with_the_end_of_a_long_request() -> None:
    wrong = request(b"x" * 60_000).replace(b"application/json", b"text/plain")
    async with open_door(OK) as (_, one):
        one.send(wrong + request()[:40])
        assert (await one.answer())[0] == 415
        one.send(request()[40:])
        assert (await one.answer())[0] == 200


async def test_a_client_that_stops_reading_is_given_up() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with door(answer_timeout_s=0.2) as gate, scripted(script) as (worker, address), client(gate) as one:
        gate.add("w", address)
        one.send(request())
        await asyncio.wait_for(worker.closed.wait(), 10)
        assert gate.router.in_flight == {}


def here(writer: asyncio.StreamWriter) -> tuple[str, int]:
    """A connection's own end."""
    host, port = writer.get_extra_info("sockname")[:2]
    return host, port


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("when", ["asking", "in a stream", "idle"])
async def test_a_client_that_leaves_is_not_kept_in_memory(how: str, when: str) -> None:
    reached = asyncio.Event()
    script = answering(OK) if when == "idle" else endless(reached)
    async with door() as gate, scripted(script) as (_, address), connection(gate) as (reader, writer):
        gate.add("w", address)
        writer.write(request()[: 40 if when == "asking" else None])
        await (asyncio.sleep(0.02) if when == "asking" else reader.readuntil(b"\r\n\r\n"))
        (own,) = (each for each in gc.get_objects() if isinstance(each, Door) and each.client == here(writer))
        lost = weakref.ref(own)
        del own
        gc.collect()
        gc.disable()
        try:
            getattr(writer if how == "close" else writer.transport, how)()
            for _ in range(100):
                await asyncio.sleep(0.01)
                if lost() is None:
                    break
            assert lost() is None
        finally:
            gc.enable()


async def test_a_crash_is_logged_and_ends_one_connection_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_door(OK) as (gate, one), client(gate) as other:
        with monkeypatch.context() as broken:
            broken.setattr(gate.relay, "accept", lambda _: 1 / 0)
            one.send(request())
            assert await one.rest() == b""
        other.send(request())
        assert (await other.answer())[0] == 200


async def test_an_idle_or_half_asked_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.door.KEEP_ALIVE_S", 0.05)
    async with open_door(OK) as (gate, one), client(gate) as silent, client(gate) as half, client(gate) as refused:
        refused.send(request().replace(b"application/json", b"text/plain"))
        assert (await refused.answer())[0] == 415
        half.send(b"POST %b HTTP/1.1\r\nhost" % ROUTE)
        one.send(request())
        assert (await one.answer())[0] == 200
        assert [await each.rest() for each in (one, silent, half, refused)] == [b""] * 4


async def test_a_client_that_reads_nothing_holds_the_worker_back() -> None:
    """What waits for it is bounded, and all of it arrives once it reads."""
    size, sent = 32 * 1024 * 1024, 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with door() as gate, scripted(script) as (_, address):
        gate.add("w", address)
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(request())
        stalled, last = 0, -1
        while stalled < 50:  # until nothing moves any more
            await asyncio.sleep(0.002)
            stalled, last = (stalled + 1, last) if sent == last else (0, sent)
        assert sent < size
        await reader.readuntil(b"\r\n\r\n")
        assert len(await asyncio.wait_for(reader.readexactly(size), 20)) == size
        writer.close()
