"""Streams whose chunks come one by one through a whole relay: what is counted, who gets chunks, what is left."""

import asyncio
import gc
import hashlib
import weakref
from typing import Final

import pytest

from config.admission import AdmissionSettings
from relay.admission.limits import estimate_tokens
from relay.call import Call
from relay.flight import Flight
from tests.model_double import DONE
from tests.relay_double import Gate, door
from tests.scripted import answering, read_request, scripted
from tests.test_tape import ONE, ROLE, THREE, TWO
from tests.wire import Wire, connection, request, settled, wire

pytestmark = pytest.mark.anyio

HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
JSON: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
CHAT: Final = b"/v1/chat/completions"
ASKED: Final = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}]}'
BARE: Final = ASKED.replace(b'"stream": true', b'"stream": false')
LIMIT: Final = 10**6
KEY: Final = {"name": "a", "hash": hashlib.sha256(b"sk-a").hexdigest(), "limits": {"tokens_per_minute": LIMIT}}


class Engine:
    """Sends each event in a read of its own: the next one goes when the gateway has the one before."""

    def __init__(self, *events: bytes, breaks: bool = False) -> None:
        self.gate: Gate | None = None
        self.flights: list[weakref.ref[Flight]] = []
        self.rides = 0
        self._events = events
        self._breaks = breaks

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.gate is not None
        while True:
            await read_request(reader)
            writer.write(HEAD)
            (flight,) = self.gate.relay._flights.values()
            self.flights.append(weakref.ref(flight))
            for number, event in enumerate(self._events, 1):
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                while flight.count() < number:
                    await asyncio.sleep(0.001)
            assert flight.tape is not None
            self.rides = flight.tape.events
            del flight  # or the script, which waits for another request, keeps it
            if self._breaks:
                writer.transport.abort()
                return
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))


class Watched(dict[Call, Flight]):
    """The flights of a relay, each remembered weakly."""

    def __init__(self, seen: list[weakref.ref[Flight]]) -> None:
        super().__init__()
        self._seen = seen

    def __setitem__(self, call: Call, flight: Flight) -> None:
        super().__setitem__(call, flight)
        self._seen.append(weakref.ref(flight))


async def ask(client: Wire, *more: bytes, body: bytes = ASKED) -> bytes:
    await client.send(request(body, b"authorization: Bearer sk-a", *more, route=CHAT))
    answer = await client.answer()
    assert answer is not None
    return answer.body


@pytest.mark.parametrize("breaks", [False, True])
async def test_nothing_of_a_stream_waits_for_the_garbage_collector(breaks: bool) -> None:
    engine = Engine(ROLE, ONE, TWO, THREE, breaks=breaks)
    async with door(max_attempts=1) as gate, scripted(engine.script) as (_, address), wire(gate) as client:
        engine.gate = gate
        gate.add("w", address)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await ask(client)
                await settled(gate)
            await client.send(request(b"", route=b"/elsewhere"))
            await client.answer()  # the connection remembers its last request no longer
            assert [flight() for flight in engine.flights] == [None] * 3
            assert engine.rides > 0
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{}", 400), (b"{", 400), (ASKED.replace(b'"m"', b'"unknown"'), 404), (ASKED, 502)],
    ids=["lacks a model", "no JSON", "unknown model", "garbage of a worker"],
)
async def test_nothing_of_an_error_waits_for_the_garbage_collector(body: bytes, status: int) -> None:
    seen: list[weakref.ref[Flight]] = []
    garbage = scripted(answering(b"garbage\r\n\r\n"))
    async with door(max_attempts=1) as gate, garbage as (_, address), wire(gate) as client:
        gate.add("w", address)
        gate.relay._flights = Watched(seen)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await client.send(request(body, b"authorization: Bearer sk-a", route=CHAT))
                answer = await client.answer()
                assert answer is not None
                assert answer.status == status
            await client.send(request(b"", route=b"/elsewhere"))
            await client.answer()  # the connection remembers its last request no longer
            assert [flight() for flight in seen] == [None] * 3
        finally:
            gc.enable()


async def test_a_client_that_knows_no_chunks_gets_none() -> None:
    engine = Engine(ROLE, ONE, TWO, THREE)
    async with door() as gate, scripted(engine.script) as (_, address), connection(gate) as (reader, writer):
        engine.gate = gate
        gate.add("w", address)
        writer.write(request(ASKED, route=CHAT).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.partition(b"\r\n\r\n")[2] == ROLE + ONE + TWO + THREE + DONE


@pytest.mark.parametrize("breaks", [False, True])
async def test_each_event_is_a_token_where_no_usage_is_told(breaks: bool) -> None:
    """Also where a stream goes on elsewhere: those of the first worker count."""
    engine, other = Engine(ROLE, *[ONE] * 20, *([] if breaks else [THREE]), breaks=breaks), Engine(ROLE, THREE)
    async with (
        door(keys=[KEY]) as gate,
        scripted(engine.script) as (_, address),
        scripted(other.script) as (_, another),
        wire(gate) as client,
    ):
        engine.gate = other.gate = gate
        gate.add("w", address)
        if breaks:
            gate.router.in_flight["v"] = 1  # so it is not the first that is asked
            gate.add("v", another)
        body = await ask(client)
        assert body.count(b"data:") == 23
        assert engine.rides >= 20
        await settled_but(gate, 1 if breaks else 0)
        quota = gate.relay._limits._quotas["a"]
        assert quota.tokens is not None
        assert quota.tokens.window.total == estimate_tokens(ASKED) + 23


async def settled_but(gate: Gate, others: int) -> None:
    async with asyncio.timeout(10):
        while sum(gate.router.in_flight.values()) > others:
            await asyncio.sleep(0.001)


async def test_who_waited_for_a_stream_gets_one_of_an_answer_with_a_known_head() -> None:
    """Its head has gone out long before: no second one may follow."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(4):
            await read_request(reader)
            if number == 2:
                asked.set()
                await go.wait()
            writer.write(JSON)

    settings = AdmissionSettings(capacity=1, queue_notice_s=0.01)
    async with door(None, settings) as gate, scripted(script) as (worker, address):
        gate.add("w", address)
        async with wire(gate) as client, wire(gate) as waiting:
            for _ in range(2):
                assert await ask(client, body=BARE) == b"{}"
            await client.send(request(BARE, route=CHAT))
            await asyncio.wait_for(asked.wait(), 10)
            await waiting.send(request(ASKED, route=CHAT))
            async with asyncio.timeout(10):
                while not any(flight.is_told for flight in gate.relay._flights.values()):
                    await asyncio.sleep(0.001)
            go.set()
            answer = await waiting.answer()
        assert worker.connections == 1
        assert answer is not None and answer.body.endswith(b"\n\ndata: {}\n\n")
        assert answer.body.startswith(b": queued") and b"HTTP" not in answer.body
