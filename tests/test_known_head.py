"""Heads that come again and again on one connection."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.known_head import KnownHead
from relay.tracing.context import Tracing
from tests.doubles import PATIENT
from tests.relay_double import MODEL, door
from tests.scripted import read_request, scripted
from tests.test_tracing import Spans
from tests.wire import body_of, echoing, settled, wire

ROUTE = "/v1/chat/completions"


def request(body: bytes, *lines: bytes, length: bytes | None = None) -> bytes:
    size = b"%d" % len(body) if length is None else length
    head = [b"POST /v1/chat/completions HTTP/1.1", b"host: h", b"content-type: application/json", *lines]
    return b"\r\n".join([*head, b"Content-Length: " + size, b"accept: */*", b"", b""]) + body


def headers(data: bytes) -> list[tuple[bytes, bytes]]:
    lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]


def known(data: bytes) -> KnownHead | None:
    return KnownHead.of(data, ROUTE, ROUTE.encode(), headers(data))


@PATIENT
@given(st.binary(max_size=30), st.binary(max_size=2000))
def test_another_body_behind_the_same_head_is_found(one: bytes, other: bytes) -> None:
    head = known(request(one))
    assert head is not None
    assert head.body_of(request(other)) == other
    assert head.by_name == {b"host": b"h", b"content-type": b"application/json", b"accept": b"*/*"}


@PATIENT
@given(st.binary(max_size=50), st.integers(0, 300), st.binary(min_size=1, max_size=3))
def test_whatever_differs_is_left_to_the_parser(body: bytes, at: int, damage: bytes) -> None:
    head = known(request(b"{}"))
    assert head is not None
    data = request(body)
    at %= len(data)
    damaged = data[:at] + damage + data[at + len(damage) :]
    found = head.body_of(damaged)
    assert found is None or damaged == request(found)


@pytest.mark.parametrize("cut", [1, 10, 60, 130])
def test_a_part_of_a_request_is_none(cut: int) -> None:
    head = known(request(b"{}"))
    assert head is not None
    assert head.body_of(request(b"{'a': 1}")[:-cut]) is None
    assert head.body_of(request(b"{}") + request(b"{}")) is None


@pytest.mark.parametrize("length", [b"+2", b"2 ", b"0x2", b"2,2", b"", b"-2", b"99999999999999999999"])
def test_an_odd_length_is_none(length: bytes) -> None:
    head = known(request(b"{}"))
    assert head is not None
    assert head.body_of(request(b"{}", length=length)) is None


@pytest.mark.parametrize(
    "line",
    [
        b"transfer-encoding: chunked",
        b"expect: 100-continue",
        b"upgrade: h2c",
        b"connection: close",
        b"connection: keep-alive\r\nconnection: x-secret",
        b"connection: x-secret\r\nconnection: keep-alive",
        b"connection: keep-alive, x-secret",
        b"content-length: 2",
    ],
)
def test_only_plain_heads_are_learned(line: bytes) -> None:
    assert known(request(b"{}", line)) is None


@pytest.mark.anyio
async def test_requests_with_a_known_head_are_answered_as_others() -> None:
    bodies: list[bytes] = []
    heads: set[bytes] = set()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _, body = (await read_request(reader)).partition(b"\r\n\r\n")
            bodies.append(body)
            heads.add(b"\r\n".join(line for line in head.split(b"\r\n") if b"x-request-id" not in line))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    questions = [b'{"model": "%b", "n": %d}' % (MODEL.encode(), number) for number in range(1, 9)]
    async with scripted(script) as (_, address), door() as gate:
        gate.add("w1", address)
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        for question in questions:
            writer.write(request(question))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 200")
            assert await asyncio.wait_for(reader.readexactly(len(question)), 5) == question
        writer.write(request(b"{}"))  # no model: refused, and the connection goes on
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 400")
        writer.close()
    assert bodies == questions
    assert len(heads) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("connections", [[b"x-secret", b"keep-alive"], [b"keep-alive", b"x-secret"]])
async def test_what_one_of_several_connection_headers_names_reaches_no_worker(connections: list[bytes]) -> None:
    """Nor when the same head comes again, by the short way."""
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await read_request(reader)).partition(b"\r\n\r\n")[0])
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    lines = b"\r\n".join([b"x-secret: s", b"x-plain: p", *(b"connection: " + value for value in connections)])
    async with scripted(script) as (_, address), door() as gate:
        gate.add("w1", address)
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        for _ in range(3):
            writer.write(request(b'{"model": "%b"}' % MODEL.encode(), lines))
            assert (await asyncio.wait_for(reader.readuntil(b"{}"), 5)).startswith(b"HTTP/1.1 200")
        writer.close()
    assert len(heads) == 3
    assert all(b"x-plain: p" in head and b"secret" not in head for head in heads)


@pytest.mark.anyio
async def test_requests_with_a_known_head_are_traced_as_others() -> None:
    spans = Spans()
    asked = request(body_of("a"))
    async with echoing() as (gate, echo), wire(gate) as client:
        gate.relay._tracing = Tracing(spans, random.Random(1))
        for _ in range(3):
            await client.send(asked)
            assert await client.answer() is not None
        await settled(gate)
        assert [b"\r\ntraceparent: " in head for head, _ in echo.seen] == [True] * 3
        assert len(spans.taken) >= 3
