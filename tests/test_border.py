"""Models of providers and fallbacks between models, seen from a client. LiteLLM is the real one."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from config.admission import AdmissionSettings
from tests.relay_double import MODEL, Gate, door
from tests.scripted import OK, answering, read_request, scripted
from tests.support import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.share("litellm"), pytest.mark.timeout(120)]

CHAT = "/v1/chat/completions"


def plain(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


BROKEN = plain(b"500 Internal Server Error", b"oops")
TOO_LONG = plain(b"400 Bad Request", b'{"error": {"message": "maximum model length is 8", "code": 400}}')
REFUSAL = b'{"error": {"message": "temperature is bad"}}'
NO_ROUTE = plain(b"404 Not Found", b'{"detail":"Not Found"}')


def whole(text: str, model: str = "theirs") -> bytes:
    message = {"role": "assistant", "content": text}
    body = json.dumps(
        {
            "id": "x", "object": "chat.completion", "created": 1, "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }
    ).encode()  # fmt: skip
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def stream(*words: str) -> bytes:
    deltas: list[tuple[dict[str, Any], str | None]] = [({"content": word}, None) for word in words]
    deltas.append(({}, "stop"))
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "theirs"}
    events = [
        b"data: %b\n\n"
        % json.dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode()
        for delta, finish in deltas
    ]
    body = b"".join(events) + b"data: [DONE]\n\n"
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body


class Provider:
    """An OpenAI server that is no worker of ours; knows what it was asked."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.asked: list[dict[str, Any]] = []
        self.hangs = hangs
        self.is_asked = asyncio.Event()
        self.answer: bytes | None = None

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            question = json.loads((await read_request(reader)).partition(b"\r\n\r\n")[2])
            self.asked.append(question)
            self.is_asked.set()
            if self.hangs:
                await reader.read()
                return
            if self.answer is None and question.get("stream"):
                writer.write(stream("from ", "afar"))
                await writer.drain()
                return
            writer.write(self.answer or whole("from afar"))
            await writer.drain()


@asynccontextmanager
async def border(
    provider: Provider, *answers: bytes, admission: AdmissionSettings | None = None, **litellm: Any
) -> AsyncIterator[Gate]:
    """A door to ``theirs``, a provider's model, and to ``m``, a worker's, if it has answers."""
    async with AsyncExitStack() as stack:
        _, address = await stack.enter_async_context(scripted(provider.script))
        params = {"model": "openai/theirs", "api_base": f"http://127.0.0.1:{address[1]}/v1", "api_key": "sk-x"}
        sections = {"model_list": [{"model_name": "theirs", "litellm_params": params}], **litellm}
        gate = await stack.enter_async_context(door(litellm=sections, admission=admission, max_attempts=1))
        gate.http.timeout = httpx.Timeout(60)
        if answers:
            _, own = await stack.enter_async_context(scripted(answering(*answers)))
            gate.add("w1", own)
        yield gate


async def ask(gate: Gate, model: str = MODEL, route: str = CHAT, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    return await gate.http.post(route, json=body)


def said(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


FALL: dict[str, Any] = {"litellm_settings": {"fallbacks": [{MODEL: ["theirs"]}]}}


async def test_a_providers_model_answers_as_any_other() -> None:
    provider = Provider()
    async with border(provider) as gate:
        answer = await ask(gate, "theirs")
    assert answer.status_code == 200
    assert said(answer) == "from afar"
    assert "theirs" in answer.headers["x-ichat-worker"]
    assert provider.asked[0]["model"] == "theirs"


async def test_a_providers_stream_arrives() -> None:
    async with border(Provider()) as gate:
        answer = await ask(gate, "theirs", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.count(b"data: [DONE]") == 1
    assert b"from " in answer.content


async def test_a_model_that_nobody_has_is_a_404_that_lists_theirs_too() -> None:
    async with border(Provider(), OK) as gate:
        answer = await ask(gate, "nobody")
    assert answer.status_code == 404
    assert {"m", "theirs"} <= set(answer.json()["error"]["message"].replace(".", "").replace(",", "").split())


async def test_a_client_that_goes_cancels_the_providers_answer() -> None:
    provider = Provider(hangs=True)
    async with border(provider) as gate:
        asking = asyncio.create_task(ask(gate, "theirs"))
        await asyncio.wait_for(provider.is_asked.wait(), 60)
        asking.cancel()
        await asyncio.wait([asking])


async def test_a_worker_that_is_gone_is_replaced_by_the_provider() -> None:
    async with border(Provider(), **FALL) as gate:
        gate.add("gone", ("127.0.0.1", free_port()))
        answer = await ask(gate)
    assert said(answer) == "from afar"
    assert answer.headers["x-ichat-attempts"] == "2"


async def test_an_engine_that_fails_is_replaced_too() -> None:
    async with border(Provider(), BROKEN, **FALL) as gate:
        assert said(await ask(gate)) == "from afar"


async def test_without_a_fallback_the_engines_own_error_is_passed_on() -> None:
    async with border(Provider(), BROKEN) as gate:
        answer = await ask(gate)
    assert (answer.status_code, answer.text) == (500, "oops")


async def test_no_ready_replica_is_replaced_and_streams_too() -> None:
    async with border(Provider(), OK, **FALL) as gate:
        gate.registry.mark_unreachable("w1", "gone")
        assert said(await ask(gate)) == "from afar"
        assert b"afar" in (await ask(gate, stream=True)).content


async def test_a_full_queue_is_replaced() -> None:
    async with border(Provider(), OK, admission=AdmissionSettings(capacity=1, max_queue=0), **FALL) as gate:
        gate.router.in_flight["w1"] = 1
        assert said(await ask(gate)) == "from afar"
        del gate.router.in_flight["w1"]


async def test_a_prompt_that_is_too_long_goes_where_its_table_says() -> None:
    tables: dict[str, Any] = {"litellm_settings": {"context_window_fallbacks": [{MODEL: ["theirs"]}]}}
    async with border(Provider(), TOO_LONG, **tables) as gate:
        assert said(await ask(gate)) == "from afar"


async def test_any_other_refusal_is_passed_on() -> None:
    tables: dict[str, Any] = {"litellm_settings": {"context_window_fallbacks": [{MODEL: ["theirs"]}]}}
    provider = Provider()
    async with border(provider, plain(b"400 Bad Request", REFUSAL), **tables) as gate:
        answer = await ask(gate)
    assert (answer.status_code, answer.content) == (400, REFUSAL)
    assert provider.asked == []


async def test_a_provider_that_breaks_is_replaced_by_our_own_worker() -> None:
    provider = Provider()
    provider.answer = BROKEN
    tables: dict[str, Any] = {"litellm_settings": {"fallbacks": [{"theirs": [MODEL]}], "num_retries": 0}}
    async with border(provider, OK, **tables) as gate:
        answer = await ask(gate, "theirs")
    assert (answer.status_code, answer.text) == (200, "hello")
    assert answer.headers["x-ichat-worker"] == "w1"


async def test_fallbacks_that_fail_too_end_with_the_last_error() -> None:
    provider = Provider()
    provider.answer = BROKEN
    tables: dict[str, Any] = {"litellm_settings": {"fallbacks": [{MODEL: ["theirs"]}], "num_retries": 0}}
    async with border(provider, OK, **tables) as gate:
        gate.registry.mark_unreachable("w1", "gone")
        answer = await ask(gate)
    assert answer.status_code == 502
    assert "provider openai/theirs" in answer.json()["error"]["message"]
    assert "sk-x" not in answer.text


@pytest.mark.parametrize("streams", [False, True])
async def test_messages_are_translated_for_a_worker_that_does_not_speak_them(streams: bool) -> None:
    worker = Provider()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b"/v1/messages" in head.split(b"\r\n")[0]:
            writer.write(NO_ROUTE)
            await writer.drain()
            await reader.read()
            return
        worker.asked.append(json.loads(body))
        writer.write(stream("from ", "home") if streams else whole("from home", MODEL))
        await writer.drain()

    async with scripted(script) as (_, address), door() as gate:
        gate.http.timeout = httpx.Timeout(60)
        gate.add("w1", address)
        answer = await ask(gate, route="/v1/messages", max_tokens=10, stream=streams)
    assert answer.status_code == 200
    assert answer.headers["x-ichat-worker"] == "w1"
    assert worker.asked[0]["messages"][-1]["content"] in ("hi", [{"type": "text", "text": "hi"}])
    if streams:
        assert b"event: message_start" in answer.content
        assert b"home" in answer.content
    else:
        assert answer.json()["content"][0]["text"] == "from home"


async def test_what_is_translated_has_its_place_at_the_worker() -> None:
    """It waits for its turn like others, and others wait for it."""
    asked: list[str] = []
    grew, may_answer = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _, body = (await read_request(reader)).partition(b"\r\n\r\n")
            if b"/v1/messages" in head.split(b"\r\n")[0]:
                writer.write(NO_ROUTE)
                continue
            asked.append(str(json.loads(body).get("user") or "translated"))
            grew.set()
            await may_answer.wait()
            writer.write(whole("from home", MODEL))

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    async with scripted(script) as (_, address), door(admission=AdmissionSettings(capacity=1)) as gate:
        gate.http.timeout = httpx.Timeout(60)
        gate.add("w1", address)
        tasks = []
        for number, more in enumerate(({"route": "/v1/messages"}, {"user": "plain"}, {"route": "/v1/messages"})):
            tasks.append(asyncio.create_task(ask(gate, **more, max_tokens=10)))
            await until(lambda number=number: gate.lobby.lengths().get(MODEL, 0) == number)  # type: ignore[misc]
            await until(lambda: len(asked) == 1)
        assert (asked, gate.router.in_flight) == (["translated"], {"w1": 1})
        may_answer.set()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        assert asked == ["translated", "plain", "translated"]
        assert gate.router.in_flight == {}
