"""What broke the data plane once: keys beside keys, deadlines beside fallbacks, answers that were kept too long."""

import asyncio
import hashlib
import json
import math
import time
from typing import Any

import pytest

from config.admission import AdmissionSettings
from config.settings import ClientKey, RoutingSettings, ServerSettings
from relay.access import Access, hash_of
from relay.border import header_word
from relay.routing.speeds import Speeds
from relay.words import out_of_time
from tests.relay_double import MODEL, door
from tests.scripted import Script, answering, read_request, scripted
from tests.support import chat_body, free_port
from utils.errors import Unauthorized

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
WORD = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}]}\n\n'
END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
TOO_LONG = b'{"error": {"message": "maximum model length is 8"}}'


def plain(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def half(answer: bytes) -> Script:
    """A worker that dies within its answer."""
    return answering(answer[:-3])


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [b"Basic cHJveHk6", b"Bearer", b"Bearer ", b"sk-alice"])
def test_a_header_that_came_beside_a_key_is_no_key(other: bytes) -> None:
    keys = tuple(ClientKey(name=name, hash=hash_of(f"sk-{name}")) for name in ("alice", "bob"))
    access = Access(ServerSettings(keys=keys))
    assert access.require_client({b"authorization": other, b"x-api-key": b"sk-alice"}).name == "alice"
    assert access.require_client({b"authorization": other, b"x-api-key": b"sk-bob"}).name == "bob"
    for headers in ({b"authorization": other}, {b"authorization": other, b"x-api-key": b"wrong"}):
        with pytest.raises(Unauthorized):
            access.require_client(headers)


async def test_what_comes_in_one_piece_costs_a_key_what_it_is() -> None:
    limited = {"name": "a", "hash": hashlib.sha256(b"sk-a").hexdigest(), "limits": {"tokens_per_minute": 10**6}}
    async with scripted(answering(HEAD + WORD * 5000 + END)) as (_, address), door(keys=[limited]) as gate:
        gate.add("w", address)
        for _ in range(2):
            request = {"json": chat_body(MODEL, stream=True), "headers": {"authorization": "Bearer sk-a"}}
            answer = await gate.http.post(CHAT, **request)  # type: ignore[arg-type]
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 10**6 - 5000


# -- deadlines -----------------------------------------------------------------------------------------------------


async def test_an_answer_that_a_fallback_began_in_time_is_not_cut() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + WORD)
        await asyncio.sleep(1)  # beyond the deadline
        writer.write(END)

    litellm = {"litellm_settings": {"fallbacks": [{MODEL: ["other"]}]}}
    async with scripted(script) as (_, address), door(litellm=litellm) as gate:
        gate.add("gone", ("127.0.0.1", free_port()))
        gate.add("w", address, "other")
        answer = await gate.http.post(CHAT, json=chat_body(MODEL, stream=True), headers={"x-ichat-timeout-s": "0.7"})
        assert answer.content == WORD + END


async def test_a_head_alone_is_no_answer() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        await reader.read()

    async with scripted(script) as (_, address), door() as gate:
        gate.add("w", address)
        answer = await gate.http.post(CHAT, json=chat_body(MODEL, stream=True), headers={"x-ichat-timeout-s": "0.2"})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"


def test_who_was_late_is_said_in_plain_words() -> None:
    assert out_of_time("", 2).message.startswith("no worker has begun")
    assert out_of_time("w", 2).message.startswith("worker w has not begun")


# -- answers that are looked at before the client gets them ----------------------------------------------------------


async def test_half_an_error_is_not_in_the_next_replicas_answer() -> None:
    litellm = {"litellm_settings": {"context_window_fallbacks": [{MODEL: ["other"]}]}}
    good = plain(b"200 OK", b'{"good": true}')
    async with (
        scripted(half(plain(b"400 Bad Request", TOO_LONG))) as (_, first),
        scripted(answering(good)) as (_, second),
        scripted(answering()) as (_, third),
        door(RoutingSettings(policy="least_load"), litellm=litellm) as gate,
    ):
        gate.add("w1", first)
        gate.add("w2", second)
        gate.add("w3", third, "other")
        gate.router.in_flight["w2"] = 1
        answer = await gate.chat()
        assert (answer.status_code, answer.json()) == (200, {"good": True})


async def test_one_models_error_is_not_taken_for_the_next_ones() -> None:
    litellm = {"litellm_settings": {"context_window_fallbacks": [{MODEL: ["second", "third"]}]}}
    refusal = b'{"error": {"message": "temperature is bad"}}'
    async with (
        scripted(answering(plain(b"400 Bad Request", TOO_LONG))) as (_, first),
        scripted(answering(plain(b"400 Bad Request", refusal))) as (_, second),
        scripted(answering(plain(b"200 OK", b"{}"))) as (third, address),
        door(litellm=litellm) as gate,
    ):
        gate.add("w1", first)
        gate.add("w2", second, "second")
        gate.add("w3", address, "third")
        answer = await gate.chat()
        assert (answer.status_code, answer.content) == (400, refusal)
        assert not third.connections


async def test_a_worker_that_was_forgotten_meanwhile_has_the_last_word() -> None:
    is_asked, may_answer = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        is_asked.set()
        await may_answer.wait()
        writer.write(plain(b"500 Internal Server Error", b"its own words"))

    async with scripted(script) as (_, address), door() as gate:
        gate.add("w", address)
        asking = asyncio.create_task(gate.chat())
        await is_asked.wait()
        gate.registry.forget("w")
        may_answer.set()
        assert (await asking).content == b"its own words"


# -- who is asked, and when ------------------------------------------------------------------------------------------


async def test_a_model_does_not_starve_beside_another_at_the_same_worker() -> None:
    asked: list[str] = []
    turns = asyncio.Semaphore(0)
    grew = asyncio.Condition()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
            async with grew:
                asked.append(json.loads(body)["model"])
                grew.notify_all()
            await turns.acquire()
            writer.write(plain(b"200 OK", b"{}"))

    async with scripted(script) as (_, address), door(None, AdmissionSettings(capacity=1)) as gate:
        gate.add("w", address, adapters=("adapter",))
        asking = []
        for number, model in enumerate([*[MODEL] * 5, *["adapter"] * 2]):
            asking.append(asyncio.create_task(gate.http.post(CHAT, json=chat_body(model))))
            async with asyncio.timeout(5):
                while sum(gate.lobby.admission.lengths().values()) + len(asked) <= number:
                    await asyncio.sleep(0.005)
        for _ in asking:
            turns.release()
        await asyncio.gather(*asking)
        assert asked == [MODEL, MODEL, "adapter", MODEL, "adapter", MODEL, MODEL]


async def test_a_replica_with_an_open_circuit_is_asked_where_the_others_failed_at_the_request() -> None:
    async with (
        scripted(answering(plain(b"500 Internal Server Error", b"oops"))) as (_, bad),
        scripted(answering(plain(b"200 OK", b"{}"))) as (_, good),
        door(circuit_threshold=2, circuit_cooldown_s=600) as gate,
    ):
        gate.add("open", good)
        gate.add("bad", bad)
        for _ in range(2):
            gate.router._breakers.failed("open", time.monotonic())
        answer = await gate.chat()
        assert (answer.status_code, answer.headers["x-ichat-attempts"]) == (200, "2")


@pytest.mark.parametrize(("headers", "times"), [({"x-ichat-no-retry": "1"}, 1), ({}, 2)])
async def test_a_request_that_must_not_be_tried_again_is_read_once(headers: dict[str, str], times: int) -> None:
    """Nor by a worker that closes a connection of the pool when it has read it."""
    asked: list[str] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (plain(b"200 OK", b"{}"), b""):
            asked.append(json.loads((await read_request(reader)).partition(b"\r\n\r\n")[2])["user"])
            writer.write(answer)

    async with scripted(script) as (_, address), door() as gate:
        gate.add("w", address)
        assert (await gate.chat(user="first")).status_code == 200
        await gate.http.post(CHAT, json=chat_body(MODEL, user="again"), headers=headers)
        assert asked == ["first", *["again"] * times]


async def test_a_prompt_from_before_a_restart_is_not_thought_to_be_cached() -> None:
    ok = plain(b"200 OK", b"{}")
    async with scripted(answering(*[ok] * 3)) as (_, one), scripted(answering(ok)) as (_, other), door() as gate:
        gate.add("w1", one, pid=1)
        long = {"messages": [{"role": "user", "content": "word " * 200}]}
        await gate.chat(**long)
        gate.add("w1", one, pid=2)
        await gate.chat()
        gate.add("w2", other)
        answer = await gate.http.post(CHAT, json={**chat_body(MODEL), **long}, headers={"x-ichat-explain": "1"})
        candidates = json.loads(answer.headers["x-ichat-decision"])["candidates"]
        assert [each["cached_bytes"] for each in candidates] == [0, 0]


async def test_nobody_who_waits_is_sent_to_a_worker_when_all_is_cut() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async with scripted(script) as (_, address), door(None, AdmissionSettings(capacity=1)) as gate:
        gate.add("w", address)
        asking = [asyncio.create_task(gate.chat()) for _ in range(4)]
        async with asyncio.timeout(5):
            while gate.lobby.admission.lengths() != {MODEL: 3}:
                await asyncio.sleep(0.005)
        gate.relay.cut_flights()
        answers = await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {503}
        assert sorted(answer.headers["x-ichat-attempts"] for answer in answers) == ["0", "0", "0", "1"]


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -math.inf, -5, 10**400, 1e300])
@pytest.mark.parametrize("name", ["timed", "prefill_s", "decode_s"])
def test_a_worker_cannot_spoil_what_is_known_of_it(name: str, absurd: Any) -> None:
    speeds = Speeds()
    good = {"timed": 1, "prefill_s": 1.0, "decode_s": 1.0}
    for load in (
        good,
        {**good, "timed": 2, name: absurd},
        *[{"timed": n, "prefill_s": n, "decode_s": n} for n in (9, 10)],
    ):
        speeds.take_report("w", load)
        speeds.sent("w", 100)
    speed = speeds.by_worker["w"]
    assert 0 < speed.prefill_s_per_byte < 1
    assert 0 < speed.service_s < 10


def test_no_line_ends_in_a_header() -> None:
    assert header_word("openai/a\rx-evil: 1\n ä") == "openai/a?x-evil:?1???"
