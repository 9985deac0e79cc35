"""Forms with files go to a worker while they come in."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from config.admission import AdmissionSettings
from tests.relay_double import MODEL, Gate, door
from tests.scripted import OK, scripted

pytestmark = pytest.mark.anyio

ROUTE = "/v1/audio/transcriptions"
TYPE = {"content-type": "multipart/form-data; boundary=b0undary"}
SOUND = bytes(range(256)) * 4096


def part(name: str, value: bytes, more: bytes = b"") -> bytes:
    return b'--b0undary\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), more, value)


def form(model: str = MODEL, sound: bytes = SOUND) -> bytes:
    file = part("file", sound, b'; filename="a.wav"\r\ncontent-type: audio/wav')
    return part("model", model.encode()) + file + b"--b0undary--\r\n"


class Listener:
    """A worker that takes one upload, and says what it got of it so far."""

    def __init__(self, answer: bytes = OK, answers_after: int = -1) -> None:
        self.head = self.body = b""
        self.grew = asyncio.Event()
        self._answer = answer
        self._answers_after = answers_after

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = await reader.readuntil(b"\r\n\r\n")
        while not self.is_whole():
            if 0 <= self._answers_after <= len(self.body):
                break
            piece = await reader.read(65536)
            if not piece:
                return
            self.body += piece
            self.grew.set()
        writer.write(self._answer)
        await writer.drain()
        await reader.read()

    def is_whole(self) -> bool:
        if b"chunked" in self.head:
            return self.body.endswith(b"0\r\n\r\n")
        length = int(self.head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return len(self.body) >= length

    async def wait_for(self, size: int) -> None:
        async with asyncio.timeout(5):
            while len(self.body) < size:
                self.grew.clear()
                await self.grew.wait()


async def send(gate: Gate, content: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    return await gate.http.post(ROUTE, content=content, headers={**TYPE, **(headers or {})})


def message(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


async def test_a_form_arrives_byte_for_byte() -> None:
    listener = Listener()
    async with scripted(listener.script) as (_, address), door() as gate:
        gate.add("w1", address)
        answer = await send(gate, form())
    assert (answer.status_code, answer.text) == (200, "hello")
    assert listener.body == form()
    assert b"multipart/form-data; boundary=b0undary" in listener.head


async def test_it_goes_on_to_the_worker_while_it_comes() -> None:
    listener, rest = Listener(), asyncio.Event()
    whole = form()

    async def slowly() -> AsyncIterator[bytes]:
        yield whole[:1000]
        await rest.wait()
        yield whole[1000:]

    async with scripted(listener.script) as (_, address), door() as gate:
        gate.add("w1", address)
        sending = asyncio.create_task(send(gate, slowly(), {"content-length": str(len(whole))}))
        await listener.wait_for(1000)
        assert listener.body == whole[:1000]
        rest.set()
        assert (await sending).status_code == 200
    assert listener.body == whole


async def test_a_form_in_chunks_arrives_in_chunks() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(form()), 100_000):
            yield form()[start : start + 100_000]

    listener = Listener()
    async with scripted(listener.script) as (_, address), door() as gate:
        gate.add("w1", address)
        assert (await send(gate, pieces())).status_code == 200
    assert b"transfer-encoding: chunked" in listener.head
    assert b"content-length" not in listener.head
    body, rest = b"", listener.body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    assert body == form()


async def test_the_file_may_come_before_the_model() -> None:
    body = part("file", SOUND, b'; filename="a.wav"') + part("model", MODEL.encode()) + b"--b0undary--\r\n"
    listener = Listener()
    async with scripted(listener.script) as (_, address), door() as gate:
        gate.add("w1", address)
        assert (await send(gate, body)).status_code == 200
    assert listener.body == body


async def test_a_worker_that_reads_slowly_holds_the_client_back() -> None:
    size, sent = 24 * 1024 * 1024, 0
    head, tail = form(sound=b"").split(b"\r\n\r\n\r\n")
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        while not (await reader.read(1 << 20)).endswith(b"--b0undary--\r\n"):
            pass
        writer.write(OK)

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        yield head + b"\r\n\r\n"
        while sent < size:
            sent += 65536
            yield b"x" * 65536
        yield b"\r\n" + tail

    length = len(head) + 4 + size + 2 + len(tail)
    async with scripted(script) as (_, address), door() as gate:
        gate.add("w1", address)
        sending = asyncio.create_task(send(gate, pieces(), {"content-length": str(length)}))
        stalled, last = 0, -1
        while stalled < 50:  # until nothing moves any more
            await asyncio.sleep(0.002)
            stalled, last = (stalled + 1, last) if sent == last else (0, sent)
        assert sent < size
        go_on.set()
        assert (await sending).status_code == 200


async def test_an_early_answer_is_passed_on_and_its_connection_not_used_again() -> None:
    refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\n\r\nno!"
    listener = Listener(refusal, answers_after=1)
    async with scripted(listener.script) as (worker, address), door() as gate:
        gate.add("w1", address)
        answer = await send(gate, form(sound=SOUND * 8))
        assert (answer.status_code, answer.text) == (400, "no!")
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert gate.router.in_flight == {}


async def test_a_worker_that_breaks_is_a_502_without_a_second_try() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with scripted(script) as (one, address), scripted(script) as (two, other), door() as gate:
        gate.add("w1", address)
        gate.add("w2", other)
        answer = await send(gate, form())
    assert answer.status_code == 502
    assert one.connections + two.connections == 1


async def test_a_client_that_goes_away_ends_the_upload() -> None:
    listener = Listener()
    async with scripted(listener.script) as (worker, address), door() as gate:
        gate.add("w1", address)
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n".encode())
        writer.write(f"content-type: {TYPE['content-type']}\r\n\r\n".encode() + form()[:5000])
        await listener.wait_for(4000)
        writer.close()
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert gate.router.in_flight == {}
        del reader


async def test_an_upload_waits_for_its_turn() -> None:
    listener = Listener()
    async with scripted(listener.script) as (_, address), door(admission=AdmissionSettings(capacity=1)) as gate:
        gate.add("w1", address)
        gate.router.in_flight["w1"] = 1
        sending = asyncio.create_task(send(gate, form()))
        async with asyncio.timeout(5):
            while not gate.lobby.admission.waiting(f"{MODEL} (transcription)"):
                await asyncio.sleep(0.001)
        del gate.router.in_flight["w1"]
        gate.router.freed.add("w1")
        gate.lobby.call_next()
        answer = await sending
    assert answer.status_code == 200
    assert listener.body == form()


async def test_a_client_is_held_back_while_its_upload_waits_for_its_turn() -> None:
    """Its time for the body does not run meanwhile."""
    listener, sent = Listener(), 0
    whole = form(sound=SOUND * 24)

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < len(whole):
            sent += 65536
            yield whole[sent - 65536 : sent]

    admission = AdmissionSettings(capacity=1)
    async with scripted(listener.script) as (_, address), door(admission=admission, body_timeout_s=0.2) as gate:
        gate.add("w1", address)
        gate.router.in_flight["w1"] = 1
        sending = asyncio.create_task(send(gate, pieces(), {"content-length": str(len(whole))}))
        stalled, last = 0, -1
        while stalled < 250 and not sending.done():  # until nothing has moved for longer than a body may rest
            await asyncio.sleep(0.002)
            stalled, last = (stalled + 1, last) if sent and sent == last else (0, sent)
        assert sent < len(whole)
        del gate.router.in_flight["w1"]
        gate.router.freed.add("w1")
        gate.lobby.call_next()
        assert (await sending).status_code == 200
    assert listener.body == whole


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{}", {"content-type": "application/json"}, 415, "multipart/form-data"),
        (b"x", {}, 400, "form is broken"),
        (part("language", b"en") + b"--b0undary--\r\n", {}, 400, "model is missing"),
        (form(model="nobody"), {}, 404, "nobody"),
        (form(sound=b"x" * 3_000_000), {}, 413, "max_body_mb"),
    ],
)
async def test_a_bad_upload_is_refused_in_words(body: bytes, headers: dict[str, str], status: int, words: str) -> None:
    listener = Listener()
    async with scripted(listener.script) as (_, address), door(max_body_mb=2) as gate:
        gate.add("w1", address)
        answer = await send(gate, body, headers)
    assert answer.status_code == status
    assert words in message(answer)


async def test_a_model_that_does_not_hear_says_so() -> None:
    async with door() as gate:
        gate.add("w1", ("127.0.0.1", 9), tasks=("generate",))
        answer = await send(gate, form())
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported_task"
