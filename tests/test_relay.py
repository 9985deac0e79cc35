"""The data plane over real sockets: a client, the relay in its server, and workers of scripted bytes."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from prometheus_client import generate_latest

from config.states import WorkerState
from relay.access import hash_of
from tests.relay_double import MODEL, Gate, door
from tests.scripted import OK, Script, answering, read_request, scripted
from tests.support import chat_body, free_port

pytestmark = pytest.mark.anyio

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nx-ichat-worker-state: draining\r\ncontent-length: 2\r\n\r\n{}"
OVERLOADED = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull"


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_bytes_pass_both_ways_as_they_are() -> None:
    seen: list[bytes] = []
    body = b'{ "model": "m",\t"messages": [], "odd":  1e2 }'

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 201 Created\r\nx-engine: yes\r\ncontent-length: 6\r\n\r\n{ 1 } ")

    async with door() as gate, scripted(script) as (_, address):
        gate.add("w1", address)
        answer = await gate.http.post(
            "/v1/chat/completions?a=b%20c", content=body,
            headers={"content-type": "application/json; charset=utf-8", "authorization": "Bearer secret",
                     "x-request-id": "mine", "x-custom": "kept"},
        )  # fmt: skip
    head, _, sent = seen[0].partition(b"\r\n\r\n")
    assert sent == body
    assert head.startswith(b"POST /v1/chat/completions?a=b%20c HTTP/1.1\r\n")
    assert b"x-custom: kept" in head
    assert b"x-request-id: mine" in head
    assert b"secret" not in head
    assert (answer.status_code, answer.content) == (201, b"{ 1 } ")
    assert answer.headers["x-engine"] == "yes"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["x-ichat-worker"] == "w1"
    assert answer.headers["x-ichat-attempts"] == "1"
    assert answer.headers["x-ichat-queue-ms"] == "0"


async def test_a_stream_arrives_piece_by_piece() -> None:
    go_on = asyncio.Event()
    first = b'data: {"choices": [{"index": 0, "delta": {"content": "one"}}]}\n\n'
    rest = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%b\r\n" % (len(first), first))
        await go_on.wait()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))

    async with door() as gate, scripted(script) as (_, address):
        gate.add("w1", address)
        async with gate.http.stream("POST", "/v1/chat/completions", json=chat_body(MODEL, stream=True)) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == first
            go_on.set()
            assert b"".join([piece async for piece in pieces]) == rest


async def test_other_routes_go_to_the_app() -> None:
    async with door() as gate:
        assert (await gate.http.get("/v1/chat/completions")).status_code == 418
        assert (await gate.http.post("/elsewhere")).status_code == 418


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        (b"", "not valid JSON", None),
        (b"{", "not valid JSON", None),
        (b"[1]", "must be a JSON object", None),
        (b"\xff\xfe", "not valid JSON", None),
        (b"{}", "model is missing", "model"),
        (b'{"model": ""}', "model is missing", "model"),
        (b'{"model": 7}', "wrong type", "model"),
        (b'{"model": "m", "stream": "yes"}', "wrong type", "stream"),
    ],
)
async def test_a_bad_body_is_a_400_that_names_it(body: bytes, words: str, param: str | None) -> None:
    async with door() as gate:
        answer = await gate.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert words in error_of(answer)["message"]
    assert error_of(answer)["param"] == param


async def test_a_wrong_content_type_is_a_415() -> None:
    async with door() as gate:
        answer = await gate.http.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert "application/json" in error_of(answer)["message"]


async def test_an_unknown_model_is_a_404_that_lists_the_models() -> None:
    async with door() as gate, scripted(answering(OK)) as (_, address):
        gate.add("w1", address, model="org/known")
        answer = await gate.chat()
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"
    assert "org/known" in error_of(answer)["message"]


async def test_a_model_is_not_asked_for_what_it_cannot_do() -> None:
    async with door() as gate, scripted(answering(OK, OK)) as (_, address):
        gate.add("chat", address, tasks=("generate", "score"))
        refused = await gate.http.post("/v1/embeddings", json={"model": MODEL, "input": "x"})
        assert refused.status_code == 400
        assert error_of(refused)["code"] == "unsupported_task"
        assert "it can generate, score; ask /v1/chat/completions or" in error_of(refused)["message"]
        assert (await gate.chat()).status_code == 200


async def test_a_model_whose_one_able_replica_is_away_is_not_refused_for_good() -> None:
    async with door() as gate, scripted(answering(OK)) as (_, address):
        gate.add("chat", address, tasks=("generate",))
        gate.add("vectors", ("127.0.0.1", free_port()), tasks=("embed",), state="loading")
        answer = await gate.http.post("/v1/embeddings", json={"model": MODEL, "input": "x"})
        assert (answer.status_code, error_of(answer)["code"]) == (503, "no_replica_ready")
        assert "ready: vectors is loading. Try" in error_of(answer)["message"]
        assert "retry-after" in answer.headers
        assert (await gate.chat()).status_code == 200


async def test_among_replicas_those_are_asked_that_can() -> None:
    async with door() as gate, scripted(answering(OK)) as (_, one), scripted(answering(*[OK] * 6)) as (_, two):
        gate.add("chat", one, tasks=("generate",))
        gate.add("unknown", two)
        for _ in range(6):
            answer = await gate.http.post("/v1/embeddings", json={"model": MODEL, "input": "x"})
            assert answer.headers["x-ichat-worker"] == "unknown"


async def test_a_large_body_is_a_413_and_the_connection_lives_on() -> None:
    async with door(max_body_mb=1) as gate, scripted(answering(OK)) as (_, address):
        gate.add("w1", address)
        large = await gate.http.post("/v1/completions", json={"model": MODEL, "prompt": "x" * 3 * 1024 * 1024})
        assert large.status_code == 413
        assert "1 MB" in error_of(large)["message"]
        assert (await gate.chat()).content == b"hello"


async def test_half_a_body_times_out_with_a_408() -> None:
    async with door(body_timeout_s=0.05) as gate:
        answer = await gate.raw(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"check its length" in answer


async def test_keys_are_asked_for_when_there_are_some() -> None:
    keys = [{"name": "alice", "hash": hash_of("k1")}]
    async with door(keys=keys) as gate, scripted(answering(OK, OK)) as (_, address):
        gate.add("w1", address)
        refused = await gate.chat()
        assert refused.status_code == 401
        assert error_of(refused)["code"] == "invalid_api_key"
        gate.http.headers["authorization"] = "Bearer k1"
        assert (await gate.chat()).status_code == 200


async def test_a_refused_connection_costs_no_request() -> None:
    async with door() as gate, scripted(answering(*[OK] * 20)) as (_, address):
        gate.add("dead", ("127.0.0.1", free_port()))
        gate.add("alive", address)
        answers = [await gate.chat() for _ in range(10)]
        assert {answer.status_code for answer in answers} == {200}
        assert gate.state("dead") is WorkerState.UNHEALTHY
        assert gate.registry.route(MODEL) == (gate.registry.worker("alive").replica,)
        assert sorted({answer.headers["x-ichat-attempts"] for answer in answers}) in (["1"], ["1", "2"])


async def test_no_ready_replica_is_a_503_that_says_why() -> None:
    async with door() as gate:
        gate.add("dead", ("127.0.0.1", free_port()))
        first, second = await gate.chat(), await gate.chat()
    assert first.status_code == 502
    assert "worker dead (127.0.0.1:" in error_of(first)["message"]
    assert second.status_code == 503
    assert second.headers["retry-after"] == "2"
    assert "dead is unhealthy" in error_of(second)["message"]


async def test_a_worker_that_turns_a_request_away_is_passed_over() -> None:
    async with (
        door() as gate,
        scripted(answering(*[BUSY] * 9)) as (_, busy),
        scripted(answering(*[OK] * 9)) as (_, free),
    ):
        gate.add("busy", busy)
        gate.add("free", free)
        assert {(await gate.chat()).content for _ in range(6)} == {b"hello"}


async def test_an_engines_own_503_is_the_clients_business() -> None:
    async with door() as gate, scripted(answering(OVERLOADED)) as (_, address):
        gate.add("w1", address)
        answer = await gate.chat()
    assert (answer.status_code, answer.content) == (503, b"full")


async def test_a_worker_that_breaks_before_answering_is_replaced_by_another() -> None:
    async with door() as gate, scripted(answering(b"")) as (_, broken), scripted(answering(*[OK] * 9)) as (_, whole):
        gate.add("broken", broken)
        gate.add("whole", whole)
        assert {(await gate.chat()).status_code for _ in range(6)} == {200}


async def test_garbage_from_a_worker_is_a_502_that_names_the_hop() -> None:
    async with door() as gate, scripted(answering(b"SSH-2.0-x\r\n")) as (_, address):
        gate.add("odd", address)
        answer = await gate.chat()
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "bad_worker_answer"
    assert "worker odd" in error_of(answer)["message"]


async def test_a_worker_that_switches_protocols_is_a_502() -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
    async with door() as gate, scripted(answering(switch)) as (_, address):
        gate.add("odd", address)
        assert error_of(await gate.chat())["code"] == "bad_worker_answer"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nx-other: yes\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-other: yes\r\n\r\n",
    ],
)
async def test_what_follows_an_answer_is_no_part_of_its_head(answer: bytes) -> None:
    async with door() as gate, scripted(answering(answer)) as (_, address):
        gate.add("w", address)
        got = await gate.chat()
    assert got.content == b"hello"
    assert "x-other" not in got.headers


async def test_headers_of_the_clients_hop_stay_there() -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    async with door() as gate, scripted(script) as (_, address):
        gate.add("w", address)
        gate.http.headers.update({"connection": "keep-alive, X-Hop", "x-hop": "1", "x-kept": "2"})
        await gate.chat()
    assert b"x-hop" not in seen[0].lower()
    assert b"x-kept: 2" in seen[0]


async def test_a_silent_worker_is_a_504() -> None:
    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async with door(answer_timeout_s=0.05) as gate, scripted(script) as (_, address):
        gate.add("mute", address)
        answer = await gate.chat()
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "worker_timeout"


async def test_a_stream_cut_by_its_worker_ends_with_an_error_event_and_no_done() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"b\r\ndata: one\n\n\r\n")

    async with door() as gate, scripted(script) as (_, address):
        gate.add("w1", address)
        answer = await gate.chat(stream=True)
    first, second = answer.content.rstrip().split(b"\n\n")
    assert first == b"data: one"
    assert json.loads(second.removeprefix(b"data: "))["error"]["code"] == "worker_broke"


async def test_a_whole_answer_cut_by_its_worker_is_no_whole_answer() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhello"
    async with door() as gate, scripted(answering(answer)) as (_, address):
        gate.add("w1", address)
        with pytest.raises(httpx.RemoteProtocolError):
            await gate.chat()


async def leave_after_first_byte(gate: Gate) -> None:
    async with gate.http.stream("POST", "/v1/chat/completions", json=chat_body(MODEL, stream=True)) as answer:
        await anext(answer.aiter_raw())


def endless(reached: asyncio.Event) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"b\r\ndata: one\n\n\r\n")
        reached.set()
        await reader.read()

    return script


async def test_a_client_that_leaves_takes_its_request_off_the_worker() -> None:
    reached = asyncio.Event()
    async with door() as gate, scripted(endless(reached)) as (worker, address):
        gate.add("w1", address)
        await leave_after_first_byte(gate)
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert gate.router.in_flight == {}
        assert b'status="499"' in generate_latest(gate.metrics)


async def test_a_client_that_leaves_before_the_answer_takes_its_request_off_too() -> None:
    reached = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_request(reader)
        reached.set()
        await reader.read()

    async with door() as gate, scripted(script) as (worker, address):
        gate.add("w1", address)
        asking = asyncio.create_task(gate.chat())
        await reached.wait()
        assert gate.router.in_flight == {"w1": 1}
        asking.cancel()
        await asyncio.wait_for(worker.closed.wait(), 5)
        assert gate.router.in_flight == {}


async def test_cut_flights_end_with_an_error() -> None:
    reached = asyncio.Event()
    async with door() as gate, scripted(endless(reached)) as (worker, address):
        gate.add("w1", address)
        asking = asyncio.create_task(gate.chat(stream=True))
        await reached.wait()
        while not gate.router.in_flight:
            await asyncio.sleep(0)
        gate.relay.cut_flights()
        answer = await asking
        assert "the gateway is stopping" in answer.text
        await asyncio.wait_for(worker.closed.wait(), 5)


async def test_requests_go_to_the_replica_with_the_fewest_in_flight() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await release.wait()
        writer.write(OK)

    release = asyncio.Event()
    async with door() as gate, scripted(slow) as (_, one), scripted(slow) as (_, two):
        gate.add("one", one)
        gate.add("two", two)
        asking = [asyncio.create_task(gate.chat()) for _ in range(8)]
        while sum(gate.router.in_flight.values()) < 8:
            await asyncio.sleep(0)
        assert gate.router.in_flight == {"one": 4, "two": 4}
        release.set()
        assert [(await answer).status_code for answer in asking] == [200] * 8


async def test_what_is_no_http_gets_the_envelope_too() -> None:
    async with door() as gate:
        answer = await gate.raw(b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
