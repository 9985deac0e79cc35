"""Every route, asked with whatever JSON and headers can hold: one answer each, none of them a fault of ours."""

import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.admission import KeyLimits
from config.settings import ClientKey, ModelRouting, RoutingSettings
from relay.access import hash_of
from relay.routes import ROUTES, UPLOADS
from tests.doubles import PATIENT
from tests.relay_double import MODEL, Gate
from tests.wire import Answer, Echo, body_of, echoing, request, settled, wire

pytestmark = pytest.mark.anyio

JSON_ROUTES = sorted(ROUTES.keys() - UPLOADS)
BY_SESSION = "by-session"
KEY = b"authorization: Bearer sesame"
OURS = frozenset({400, 401, 404, 413, 415, 429, 431})
"""What may be wrong with a client's request."""

ODD_VALUES = st.sampled_from(
    ["null", "true", "false", "-0", "0.5", "-1", "1e400", "-1e308", "9" * 400, "NaN", "Infinity", "-Infinity", "01",
     "+1", '""', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\x7f"', '"\\x"', '"unended', "[]", "{}",
     "[" * 2000 + "]" * 2000, "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "'m'", "", "undefined", '"\xff"',
     '[{"role": "user"}]', "128", "129", "1" * 9, '"' + "x" * 5000 + '"']
)  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
).map(json.dumps)
FIELDS = st.sampled_from(
    ["model", "stream", "n", "user", "prompt_cache_key", "max_tokens", "max_completion_tokens", "max_output_tokens",
     "messages", "tools", "prompt", "input", "system", "instructions", "logprobs", "\\u006dodel", "\\ud800", ""]
)  # fmt: skip
MODELS = st.sampled_from([f'"{MODEL}"', f'"{BY_SESSION}"', '"\\u006d"', '"nobody"', '"m\\u0000"', '"m\\r\\nx: y"'])
MEMBERS = st.tuples(FIELDS, ODD_VALUES | JSON_VALUES)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Mostly a JSON object, whose members may be odd or there twice; mostly with a model."""
    members = draw(st.lists(MEMBERS, max_size=4))
    if draw(st.integers(0, 5)):
        members.insert(draw(st.integers(0, len(members))), ("model", draw(MODELS | ODD_VALUES)))
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in members) + "}"
    body = text.encode("latin-1" if draw(st.booleans()) else "utf-8", "replace")
    cut = draw(st.none() | st.integers(0, len(body)))
    return draw(st.sampled_from([b"", b"\xef\xbb\xbf", b" \n"])) + body[:cut]


LINES = st.binary(max_size=30).map(lambda value: value.translate(None, b"\r\n"))
VALUES = LINES | st.sampled_from(
    [b"", b"1", b"0", b"9", b"10", b"-1", b"high", b"30", b"1e9", b"nan", b"inf", b"0x1", b"5;5", b"\xb2", b"x" * 300,
     b"a\tb", b"x" * 70_000, b"application/json", b"application/json; charset=utf-16", b"text/plain", b"Bearer",
     b"Bearer sesame", b"bearer  sesame", b"Basic x", b"close", b"keep-alive, x-odd", b"content-length, host",
     b"content-type", b",,;", b"upgrade", b"r\xe9q"]
)  # fmt: skip
NAMES = st.sampled_from(
    [b"x-ichat-priority", b"x-ichat-timeout-s", b"x-ichat-session", b"x-ichat-explain", b"x-ichat-no-retry",
     b"x-request-id", b"content-type", b"authorization", b"x-api-key", b"connection", b"expect", b"te", b"upgrade",
     b"x-odd", b"trailer"]
)  # fmt: skip
HEADERS = st.lists(st.tuples(NAMES, VALUES).map(b": ".join), max_size=4)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def stage(anyio_backend: str) -> AsyncIterator[tuple[Gate, Echo]]:
    key = ClientKey(name="k", hash=hash_of("sesame"), limits=KeyLimits(tokens_per_minute=10**11, concurrency=50))
    routing = RoutingSettings(models={BY_SESSION: ModelRouting(policy="session")})
    async with echoing(keys=(key,), routing=routing) as (gate, echo):
        gate.add("w", gate.address_of("w"), aliases=(BY_SESSION,))
        yield gate, echo


def check(answer: Answer, body: bytes, *, asked_for_little_time: bool) -> None:
    """Either the worker's, with the client's very bytes, or OpenAI's error envelope."""
    if answer.status == 200:
        assert answer.body == body
        return
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    if answer.status == 504:
        assert asked_for_little_time and error["code"] == "deadline_exceeded"
    else:
        assert answer.status in OURS, answer


@settings(PATIENT, max_examples=100)
@given(route=st.sampled_from(JSON_ROUTES), body=bodies(), headers=HEADERS, is_known=st.integers(0, 7))
async def test_every_request_has_one_answer_and_its_bytes_arrive_as_they_are(
    stage: tuple[Gate, Echo], route: str, body: bytes, headers: list[bytes], is_known: int
) -> None:
    gate, echo = stage
    heads = [KEY, *headers] if is_known else headers
    before = len(echo.seen)
    async with wire(gate) as one:
        await one.send(request(body, *heads, route=route.encode()))
        answer = await one.answer()
        assert answer is not None
        if answer.body or answer.status != 431:
            check(answer, body, asked_for_little_time=any(h.startswith(b"x-ichat-timeout-s") for h in headers))
        assert len(echo.seen) - before == (answer.status == 200)
        # The connection is for the next request, or closed: nothing of this one is left on it.
        await one.send(request(body_of("next"), KEY, b"connection: close"))
        assert [each.body for each in await one.rest()] in ([], [body_of("next")])
    await settled(gate)
    assert not echo.faults


@settings(PATIENT, max_examples=40)
@given(body=st.binary(max_size=200), kind=VALUES)
async def test_uploads_of_anything_have_one_answer(stage: tuple[Gate, Echo], body: bytes, kind: bytes) -> None:
    gate, _ = stage
    for route in sorted(UPLOADS):
        async with wire(gate) as one:
            for odd in (kind, b"multipart/form-data; boundary=b"):
                await one.send(request(body, KEY, route=route.encode(), kind=odd))
                answer = await one.answer()
                if answer is None:
                    break
                assert answer.status in OURS and (answer.status == 431 or json.loads(answer.body)["error"])
    await settled(gate)


async def test_made_up_models_leave_nothing_behind(stage: tuple[Gate, Echo]) -> None:
    """Neither a label for each in the metrics, which would grow for ever, nor a queue or a tree."""
    gate, _ = stage
    async with wire(gate) as one:
        for number in range(20):
            await one.send(request(body_of("x", f"made-up-{number}"), KEY))
            answer = await one.answer()
            assert answer is not None and answer.status == 404
    assert b"made-up" not in gate.scrape()
