"""Requests with ``otel_endpoint`` set, as a collector and the workers see them."""

import asyncio
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from relay.access import hash_of
from tests.collector_double import Collector, collecting, plain
from tests.relay_double import MODEL, door
from tests.scripted import Script, answering, read_request, scripted
from tests.support import chat_body, free_port

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE_ID}-{SPAN_ID}-01"
USAGE = b'{"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7,"total_tokens":18,"cached_tokens":8}}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(USAGE), USAGE)
STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nb\r\ndata: one\n\n\r\n"
)


def keeping(heads: list[dict[bytes, bytes]], answer: bytes, hang_ups: int = 0) -> Script:
    """Workers that keep the heads that they get, and hang up on the first of them."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            lines = (await read_request(reader)).partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
            heads.append(dict(line.split(b": ", 1) for line in lines))
            if len(heads) <= hang_ups:
                return
            writer.write(answer)
            await writer.drain()

    return script


def the_span(collector: Collector) -> tuple[SentSpan, dict[str, Any]]:
    (span,) = collector.spans
    return span, plain(list(span.attributes))


async def test_a_request_is_a_span_in_its_clients_trace() -> None:
    heads: list[dict[bytes, bytes]] = []
    headers = {"traceparent": GIVEN, "tracestate": "vendor=x", "x-request-id": "mine"}
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
        scripted(keeping(heads, ANSWER)) as (_, address),
    ):
        gate.add("w1", address)
        await gate.http.post("/v1/chat/completions?a=b", json=chat_body(MODEL), headers=headers)
    span, attributes = the_span(collector)
    first_byte_ms, queue_ms = attributes.pop("ichat.first_byte_ms"), attributes.pop("ichat.queue_ms")
    assert attributes == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "url.path": "/v1/chat/completions",
        "url.scheme": "http", "http.response.status_code": 200, "gen_ai.operation.name": "chat",
        "gen_ai.request.model": MODEL, "gen_ai.response.model": MODEL, "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 7, "gen_ai.usage.cache_read.input_tokens": 8, "ichat.request_id": "mine",
        "ichat.worker_id": "w1", "ichat.attempts": 1,
    }  # fmt: skip
    assert (span.name, span.kind) == ("POST /v1/chat/completions", SentSpan.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert (span.trace_state, span.status.code) == ("vendor=x", Status.STATUS_CODE_UNSET)
    lasted_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
    assert 0 <= queue_ms <= first_byte_ms <= lasted_ms + 0.001
    assert heads[0][b"traceparent"] == f"00-{TRACE_ID}-{span.span_id.hex()}-01".encode()
    assert heads[0][b"tracestate"] == b"vendor=x"


async def test_a_request_without_a_trace_begins_one() -> None:
    heads: list[dict[bytes, bytes]] = []
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
        scripted(keeping(heads, ANSWER)) as (_, address),
    ):
        gate.add("w1", address)
        await gate.http.post(
            "/v1/chat/completions",
            json=chat_body(MODEL),
            headers={"traceparent": "00-nonsense", "tracestate": "a=1"},
        )
    span, _ = the_span(collector)
    assert (span.parent_span_id, span.trace_state) == (b"", "")
    assert heads[0][b"traceparent"] == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01".encode()
    assert b"tracestate" not in heads[0]


async def test_a_trace_that_its_client_does_not_record_passes_untouched() -> None:
    heads: list[dict[bytes, bytes]] = []
    not_sampled = GIVEN[:-2] + "00"
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
        scripted(keeping(heads, ANSWER)) as (_, address),
    ):
        gate.add("w1", address)
        await gate.http.post(
            "/v1/chat/completions", json=chat_body(MODEL), headers={"traceparent": not_sampled, "tracestate": "a=1"}
        )
    assert collector.bodies == []
    assert (heads[0][b"traceparent"], heads[0][b"tracestate"]) == (not_sampled.encode(), b"a=1")


async def test_what_was_said_and_who_said_it_stays_here() -> None:
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"text":"sun"}'
    keys = [{"name": "alice", "hash": hash_of("sk-of-alice")}]
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint, keys=keys) as gate,
        scripted(answering(answer)) as (_, address),
    ):
        gate.add("w1", address)
        body = chat_body(MODEL, content="moon", user="bob")
        await gate.http.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer sk-of-alice"})
        await gate.http.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer sk-of-eve"})
    sent = b"".join(collector.bodies)
    assert [plain(list(span.attributes))["http.response.status_code"] for span in collector.spans] == [200, 401]
    assert not [word for word in (b"moon", b"sun", b"sk-of", b"bob", b"Bearer") if word in sent]


async def test_a_request_that_is_tried_again_is_one_span() -> None:
    heads: list[dict[bytes, bytes]] = []
    script = keeping(heads, ANSWER, hang_ups=1)
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
        scripted(script) as (_, one),
        scripted(script) as (_, other),
    ):
        gate.add("w1", one)
        gate.add("w2", other)
        answer = await gate.chat()
    span, attributes = the_span(collector)
    assert (answer.status_code, span.status.code) == (200, Status.STATUS_CODE_UNSET)
    assert (attributes["ichat.attempts"], len(heads)) == (2, 2)
    assert attributes["ichat.worker_id"] == answer.headers["x-ichat-worker"]
    assert "error.type" not in attributes
    assert {head[b"traceparent"] for head in heads} == {f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01".encode()}


async def test_a_request_that_no_worker_answers_is_a_failed_span() -> None:
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
        scripted(keeping([], ANSWER, hang_ups=3)) as (_, address),
    ):
        gate.add("w1", address)
        answer = await gate.chat()
    span, attributes = the_span(collector)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes["http.response.status_code"] == answer.status_code == 502
    assert attributes["error.type"] == answer.json()["error"]["code"] == "worker_broke"
    assert "gen_ai.response.model" not in attributes


async def test_a_clients_own_mistake_is_no_failure_of_the_server() -> None:
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
    ):
        await gate.http.post("/v1/embeddings", json={"model": "x" * 1000, "input": "a"})
    span, attributes = the_span(collector)
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert (attributes["http.response.status_code"], attributes["error.type"]) == (404, "model_not_found")
    assert (attributes["gen_ai.request.model"], attributes["gen_ai.operation.name"]) == ("x" * 256, "embeddings")
    assert attributes["ichat.attempts"] == 0
    assert "ichat.worker_id" not in attributes


async def test_a_workers_own_error_is_the_spans() -> None:
    answer = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops"
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
        scripted(answering(answer)) as (_, address),
    ):
        gate.add("w1", address)
        await gate.chat()
    span, attributes = the_span(collector)
    assert (span.status.code, attributes["error.type"]) == (Status.STATUS_CODE_ERROR, "500")


async def test_a_stream_that_breaks_is_a_failed_span_with_the_status_that_its_client_got() -> None:
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
        scripted(answering(STREAM)) as (_, address),
    ):
        gate.add("w1", address)
        await gate.chat(stream=True)
    span, attributes = the_span(collector)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert (attributes["http.response.status_code"], attributes["error.type"]) == (200, "worker_broke")
    assert attributes["gen_ai.request.stream"] is True
    assert attributes["gen_ai.response.time_to_first_chunk"] == pytest.approx(
        attributes["ichat.first_byte_ms"] / 1000, abs=1e-6
    )


async def test_a_client_that_leaves_has_a_span_without_a_status() -> None:
    reached = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        reached.set()
        await reader.read()

    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
        scripted(script) as (worker, address),
    ):
        gate.add("w1", address)
        asking = asyncio.create_task(gate.chat())
        await reached.wait()
        asking.cancel()
        await asyncio.wait_for(worker.closed.wait(), 5)
    span, attributes = the_span(collector)
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert attributes["error.type"] == "client_gone"
    assert not {"http.response.status_code", "ichat.first_byte_ms"} & set(attributes)


async def test_a_fallback_names_the_model_that_was_asked_for_and_that_which_answered() -> None:
    tables: dict[str, Any] = {"litellm_settings": {"fallbacks": [{MODEL: ["other"]}]}}
    async with (
        collecting() as collector,
        door(litellm=tables, otel_endpoint=collector.endpoint) as gate,
        scripted(answering(ANSWER)) as (_, address),
    ):
        gate.add("w1", ("127.0.0.1", free_port()))
        gate.add("w2", address, model="other")
        assert (await gate.chat()).status_code == 200
    _, attributes = the_span(collector)
    assert (attributes["gen_ai.request.model"], attributes["gen_ai.response.model"]) == (MODEL, "other")


async def test_the_gateway_says_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab")
    async with (
        collecting() as collector,
        door(otel_endpoint=collector.endpoint) as gate,
    ):
        await gate.chat()
        await gate.chat()
    (request,) = collector.requests
    (resource,) = request.resource_spans
    attributes = plain(list(resource.resource.attributes))
    assert attributes["service.name"] == "ichat-gateway"
    assert attributes["deployment.environment.name"] == "lab"
    assert len(resource.scope_spans[0].spans) == 2
