"""Streams of providers: in the shape of the route that was asked, cancelled and broken."""

import asyncio
import json

import httpx
import pytest

from relay.providers.providers import Providers
from tests.providers.double import (
    CHAT,
    HI,
    MARKS,
    SECRET,
    body,
    entry,
    opened,
    pieces,
    provided,
    read,
    refused,
    settings_of,
    text_of,
)
from tests.scripted import Script, read_request
from tests.support import free_port, running, wait_until

pytestmark = MARKS


@pytest.mark.parametrize("model", ["ext", "hosted", "said"])
async def test_a_streamed_chat_is_openais(providers: Providers, model: str) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await providers.ask(CHAT, body(messages=HI, **options), model, "r")
    assert dict(answer.headers)[b"content-type"].startswith(b"text/event-stream")
    *chunks, done = await pieces(answer)
    assert done == b"data: [DONE]\n\n"
    spoken = [chunk for chunk in chunks if read(chunk)["choices"]]
    assert "".join(map(text_of, spoken)).split()
    reasons = [read(chunk)["choices"][0]["finish_reason"] for chunk in spoken]
    assert reasons == [None] * (len(spoken) - 1) + ["stop"]
    assert read(chunks[-1])["choices"] == []
    assert read(chunks[-1])["usage"]["total_tokens"] > 0


async def test_a_streamed_completion(providers: Providers) -> None:
    *chunks, done = await pieces(await providers.ask("/v1/completions", body(prompt="hi", stream=True), "ext", "r"))
    assert done == b"data: [DONE]\n\n"
    assert len("".join(read(chunk)["choices"][0]["text"] for chunk in chunks).split()) == 16
    assert "usage" not in read(chunks[0])


async def test_a_streamed_message_is_anthropics(providers: Providers) -> None:
    request = body(messages=HI, max_tokens=4, stream=True)
    events = await pieces(await providers.ask("/v1/messages", request, "hosted", "r"))
    kinds = [read(event)["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds.count("content_block_delta") == 4
    assert kinds[-1] == "message_stop"


async def test_a_stream_that_breaks_ends_with_an_error_and_no_done(providers: Providers) -> None:
    fake = {"fault": "cut", "after": 3}
    *chunks, last = await pieces(await providers.ask(CHAT, body(messages=HI, stream=True, fake=fake), "ext", "r"))
    assert len(chunks) == 3
    assert "provider openai/m" in read(last)["error"]["message"]
    assert b"[DONE]" not in last


async def test_a_provider_that_dies_within_a_stream(tmp_path_factory: pytest.TempPathFactory) -> None:
    port = free_port()
    argv = ["serve.py", "--model", "none", "--model-name", "m", "--backend", "fake", "--port", str(port)]
    with running(argv, tmp_path_factory.mktemp("dying") / "worker.log"):
        base = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{base}/ready", trust_env=False, verify=False).status_code == 200, "the worker")
        async with opened(settings_of(entry("dying", f"{base}/v1"))) as providers:
            fake = {"fault": "die", "after": 2}
            request = body(messages=HI, stream=True, fake=fake)
            *_, last = await pieces(await providers.ask(CHAT, request, "dying", "r"))
            assert read(last)["error"]["code"] == "provider_broke"
            gone = await refused(providers.ask(CHAT, body(messages=HI), "dying", "r"))
            assert (gone.status, gone.code) == (502, "provider_broke")


def endless(seen: list[bytes]) -> Script:
    """Streams one chunk and then waits for the other side to go."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        chunk = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m",
                 "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]}  # fmt: skip
        data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%b\r\n" % (len(data), data))
        await reader.read()

    return script


@pytest.mark.parametrize("model", ["openai/m", "hosted_vllm/m"])
async def test_closing_the_events_cancels_the_call(model: str) -> None:
    seen: list[bytes] = []
    async with provided(endless(seen), model) as (providers, server):
        answer = await providers.ask(CHAT, body(messages=HI, stream=True), "x", "req-7")
        assert answer.events is not None
        assert text_of(await anext(answer.events)) == "a"
        await answer.events.aclose()
        await server.closed.wait()
    assert b"x-request-id: req-7" in seen[0].lower()
    assert SECRET.encode() in seen[0], "the provider gets its key"


async def test_events_that_nobody_reads_are_closed_too() -> None:
    async with provided(endless([])) as (providers, server):
        answer = await providers.ask(CHAT, body(messages=HI, stream=True), "x", "r")
        assert answer.events is not None
        await answer.events.aclose()
        await server.closed.wait()


async def test_a_call_that_is_cancelled_is_so_at_the_provider() -> None:
    asked = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        asked.set()
        await reader.read()

    async with provided(script) as (providers, server):
        call = asyncio.create_task(providers.ask(CHAT, body(messages=HI), "x", "r"))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.closed.wait()
