"""Providers behind LiteLLM: a worker of ours on the fake engine, and servers of scripted bytes, stand in for them.

One module, for the import takes seconds: the first test pays for it.
"""

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from config.providers import ProviderSettings
from relay.providers.providers import ProviderAnswer, Providers
from tests.scripted import Script, ScriptedWorker, answering, read_request, scripted
from tests.support import ROOT, free_port, running, wait_until
from utils.errors import ApiError

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(60),
    # LiteLLM's types do not hold what they announce, which it meets in its own threads too.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning", "ignore::DeprecationWarning"),
]
SECRET = "sk-s3cret-0123456789"
HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
JSON_HEAD = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker on the fake engine."""
    port = free_port()
    argv = ["serve.py", "--model", "none", "--model-name", "m", "--backend", "fake", "--port", str(port)]
    with running(argv, tmp_path_factory.mktemp("provider") / "worker.log"):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/ready", trust_env=False).status_code == 200, "the worker")
        yield f"{url}/v1"


def entry(name: str, base: str, model: str = "openai/m", **params: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": model, "api_base": base, "api_key": SECRET, **params}}


def settings_of(*entries: dict[str, Any], **sections: Any) -> ProviderSettings:
    sections.setdefault("litellm_settings", {"num_retries": 0})
    return ProviderSettings.model_validate({"model_list": entries, **sections})


@contextlib.asynccontextmanager
async def opened(settings: ProviderSettings) -> AsyncIterator[Providers]:
    providers = Providers(settings, answer_timeout_s=20)
    try:
        yield providers
    finally:
        await providers.close()


@contextlib.asynccontextmanager
async def provided(
    script: Script, model: str = "openai/m", **sections: Any
) -> AsyncIterator[tuple[Providers, ScriptedWorker]]:
    """A server of scripted bytes as the provider of the model ``x``."""
    async with (
        scripted(script) as (server, (host, port)),
        opened(settings_of(entry("x", f"http://{host}:{port}/v1", model), **sections)) as providers,
    ):
        yield providers, server


@pytest.fixture(scope="module")
async def providers(base: str) -> AsyncIterator[Providers]:
    settings = settings_of(
        entry("ext", base),
        entry("hosted", base, "hosted_vllm/m"),
        entry("lab/*", base, "openai/*"),
        entry("said", base, mock_response="hello there"),
        router_settings={"model_group_alias": {"alias": "ext", "hush": {"model": "ext", "hidden": True}}},
    )
    async with opened(settings) as providers:
        yield providers


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "whatever", **fields}).encode()


def whole(answer: ProviderAnswer) -> dict[str, Any]:
    assert answer.status == 200
    assert answer.events is None
    assert (b"content-type", b"application/json") in answer.headers
    found: dict[str, Any] = json.loads(answer.body or b"")
    return found


async def pieces(answer: ProviderAnswer) -> list[bytes]:
    assert answer.body is None
    assert answer.events is not None
    async with contextlib.aclosing(answer.events) as events:
        return [piece async for piece in events]


def read(piece: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(piece.partition(b"data: ")[2])
    return found


def text_of(piece: bytes) -> str:
    return "".join(choice.get("delta", choice).get("content") or "" for choice in read(piece)["choices"])


async def refused(coroutine: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await coroutine
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a traceback would tell more"
    return caught.value


# -- names ---------------------------------------------------------------------------------------------------------


async def test_names_aliases_and_wildcards_are_listed_and_served(providers: Providers) -> None:
    assert providers.models() == ["ext", "hosted", "lab/*", "said", "alias"]
    assert all(map(providers.serves, ["ext", "alias", "hush", "lab/anything", "lab/a/b"]))
    assert not any(map(providers.serves, ["Ext", "lab", "lab/", "other"]))
    assert SECRET not in repr(providers)


async def test_an_unknown_model_and_an_unknown_route_are_named(providers: Providers) -> None:
    unknown = await refused(providers.ask(CHAT, body(messages=HI), "other", "r"))
    assert (unknown.status, unknown.code) == (404, "model_not_found")
    assert "/v1/embeddings" in (await refused(providers.ask("/v1/tokenize", b"{}", "ext", "r"))).message


# -- whole answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ext", "hosted", "lab/m", "alias", "hush"])
async def test_a_chat_is_answered_under_every_name(providers: Providers, model: str) -> None:
    answer = await providers.ask(CHAT, body(messages=HI, fake={"tokens": 3}), model, "r")
    [choice] = whole(answer)["choices"]
    assert len(choice["message"]["content"].split()) == 3, "fields of no API reach a provider of OpenAI's protocol"
    assert choice["finish_reason"] == "stop"
    assert whole(answer)["usage"]["completion_tokens"] == 3
    assert answer.model.endswith("/m")


async def test_litellms_own_mock_response(providers: Providers) -> None:
    answer = whole(await providers.ask(CHAT, body(messages=HI), "said", "r"))
    assert answer["choices"][0]["message"]["content"] == "hello there"


async def test_completions_embeddings_responses_and_messages(providers: Providers) -> None:
    text = whole(await providers.ask("/v1/completions", body(prompt="hi"), "ext", "r"))
    assert len(text["choices"][0]["text"].split()) == 16
    vectors = whole(await providers.ask("/v1/embeddings", body(input=["a", "b"]), "ext", "r"))
    assert [row["index"] for row in vectors["data"]] == [0, 1]
    response = whole(await providers.ask("/v1/responses", body(input="hi"), "ext", "r"))
    assert response["output"][0]["content"][0]["text"]
    message = whole(await providers.ask("/v1/messages", body(messages=HI, max_tokens=4), "hosted", "r"))
    assert message["type"] == "message"
    assert len(message["content"][0]["text"].split()) == 4


async def test_a_ranking_comes_from_who_can() -> None:
    ranking = {"id": "x", "results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}
    async with provided(answering(answer_of("200 OK", ranking)), "hosted_vllm/m") as (providers, _):
        answer = await providers.ask("/v1/rerank", body(query="q", documents=["a", "b"]), "x", "r")
    assert [row["index"] for row in whole(answer)["results"]] == [1, 0]


# -- streams -------------------------------------------------------------------------------------------------------


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
        wait_until(lambda: httpx.get(f"{base}/ready", trust_env=False).status_code == 200, "the worker")
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


# -- errors --------------------------------------------------------------------------------------------------------


def answer_of(status: str, fields: Any, more: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return JSON_HEAD % (status.encode(), len(text), more, text)


def error_body(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "code": None, "param": None}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["openai/m", "hosted_vllm/m"])
@pytest.mark.parametrize(
    ("status", "ours", "code"),
    [("401 Unauthorized", 502, "provider_refused_gateway"), ("429 Too Many Requests", 429, "provider_rate_limit"),
     ("500 Internal Server Error", 502, "provider_broke"), ("503 Service Unavailable", 503, "no_replica_ready"),
     ("404 Not Found", 404, "provider_not_found"), ("400 Bad Request", 400, None)],
)  # fmt: skip
async def test_a_providers_error_is_ours_and_holds_no_key(
    status: str, ours: int, code: str | None, model: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = answer_of(status, error_body(f"Incorrect API key provided: {SECRET}"), b"retry-after: 9\r\n")
    async with provided(answering(answer), model) as (providers, _):
        error = await refused(providers.ask(CHAT, body(messages=HI, stream=stream), "x", "r"))
    assert (error.status, error.code) == (ours, code)
    assert f"provider {model}" in error.message
    if ours == 429:
        assert (b"retry-after", b"9") in error.headers
    assert SECRET not in caplog.text


async def test_a_prompt_that_is_too_long(providers: Providers) -> None:
    long = [{"role": "user", "content": "a " * 5000}]
    for model in ("ext", "hosted"):
        error = await refused(providers.ask(CHAT, body(messages=long), model, "r"))
        assert (error.status, error.code) == (400, "context_length_exceeded")


async def test_a_provider_that_is_silent_is_a_504() -> None:
    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with provided(script, router_settings={"timeout": 0.2}) as (providers, _):
        error = await refused(providers.ask(CHAT, body(messages=HI), "x", "r"))
    assert (error.status, error.code) == (504, "provider_timeout")


async def test_what_fails_once_is_tried_again_as_configured() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    message = {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    script = answering(answer_of("500 Oops", error_body("once")), answer_of("200 OK", message))
    async with provided(script, router_settings={"num_retries": 1}) as (providers, _):
        answer = whole(await providers.ask(CHAT, body(messages=HI), "x", "r"))
    assert answer["choices"][0]["message"]["content"] == "a"


async def test_a_client_cannot_send_the_key_elsewhere(providers: Providers) -> None:
    error = await refused(providers.ask(CHAT, body(messages=HI, api_base="http://127.0.0.1:9"), "ext", "r"))
    assert error.param == "api_base"
    smuggled = body(
        messages=HI, extra={"api_base": "x"}, litellm_metadata={"a": 1}, client="x", specific_deployment=True
    )
    assert whole(await providers.ask(CHAT, smuggled, "ext", "r"))["choices"]


async def test_a_configuration_that_litellm_refuses_is_an_error_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_of(entry("m", "http://x", f"no-such-provider/{SECRET}"))
    async with opened(settings) as providers:
        providers.start()
        error = await refused(providers.ask(CHAT, body(messages=HI), "m", "r"))
    assert (error.status, "see the gateway's log" in error.message) == (500, True)
    assert "providers_failed" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in str([vars(record) for record in caplog.records])


# -- translation for workers ---------------------------------------------------------------------------------------


async def test_messages_and_responses_are_translated_into_a_workers_chat(providers: Providers, base: str) -> None:
    request = body(messages=HI, max_tokens=4, system="be brief", betas=["unknown"])
    message = await providers.translate("/v1/messages", request, "m", base, "r")
    assert (whole(message)["model"], message.model) == ("m", "m")
    assert whole(message)["usage"]["output_tokens"] == 4
    response = await providers.translate("/v1/responses", body(input="hi", instructions="be brief"), "m", base, "r")
    assert (whole(response)["object"], whole(response)["model"]) == ("response", "m")
    assert len(whole(response)["output"][0]["content"][0]["text"].split()) == 16


async def test_translated_streams_have_their_own_events(providers: Providers, base: str) -> None:
    request = body(messages=HI, max_tokens=4, stream=True)
    events = await pieces(await providers.translate("/v1/messages", request, "m", base, "r"))
    assert [read(events[0])["type"], read(events[-1])["type"]] == ["message_start", "message_stop"]
    request = body(input="hi", stream=True)
    events = await pieces(await providers.translate("/v1/responses", request, "m", base, "r"))
    kinds = [read(event)["type"] for event in events]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert [read(event)["sequence_number"] for event in events] == list(range(len(events)))
    assert all(event.startswith(f"event: {kind}\n".encode()) for event, kind in zip(events, kinds, strict=True))


async def test_a_workers_errors_name_the_worker(providers: Providers, base: str) -> None:
    long = body(messages=[{"role": "user", "content": "a " * 5000}], max_tokens=4)
    error = await refused(providers.translate("/v1/messages", long, "m", base, "r"))
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert error.message.startswith(f"worker {base.removesuffix('/v1')}: ")
    kept = body(input="hi", previous_response_id="resp_1")
    assert (await refused(providers.translate("/v1/responses", kept, "m", base, "r"))).param == "previous_response_id"
    assert (await refused(providers.translate(CHAT, body(messages=HI), "m", base, "r"))).status == 400


async def test_a_worker_is_not_asked_through_a_proxy(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with opened(ProviderSettings()) as providers:
        answer = await providers.translate("/v1/messages", body(messages=HI, max_tokens=4), "m", base, "r")
    assert whole(answer)["type"] == "message"


# -- the import ----------------------------------------------------------------------------------------------------

ALONE = """
import asyncio, os, socket, sys
from config.providers import ProviderSettings
from relay.providers.providers import Providers

called = []
socket.getaddrinfo = lambda *a, **k: called.append(a) or (_ for _ in ()).throw(OSError("no network"))

async def main():
    assert "litellm" not in sys.modules, "imported at the top"
    empty = Providers(ProviderSettings())
    empty.start()
    await asyncio.sleep(0)
    await empty.close()
    assert "litellm" not in sys.modules, "imported for nothing"
    entry = {"model_name": "said", "litellm_params": {"model": "openai/m", "mock_response": "hello"}}
    providers = Providers(ProviderSettings.model_validate({"model_list": [entry]}))
    providers.start()
    body = b'{"messages": [{"role": "user", "content": "hi"}]}'
    assert b"hello" in (await providers.ask("/v1/chat/completions", body, "said", "r")).body
    await providers.close()
    import litellm
    assert "FROM_DOTENV" not in os.environ, "an .env file was read"
    assert not litellm.callbacks and not litellm.input_callback, "callbacks are left"
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*others), 10)  # none is endless

asyncio.run(main())
assert not called, called
"""


def test_it_is_imported_late_prints_nothing_and_calls_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("alone")
    (folder / ".env").write_text("FROM_DOTENV=1\n")
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
