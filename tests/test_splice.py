"""Two streams (or three) that the client sees as one."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fake_backend import FakeEngine, Script
from relay.streams.kept import OBJECT_BYTES, RUN_BYTES
from relay.streams.resume import Continuation, Ending, continuation
from relay.streams.splice import Splice, summed
from relay.streams.tape import Tape
from relay.streams.unresumable import CHAT, COMPLETION
from tests.doubles import PATIENT
from tests.model_double import DIED, DONE, REFUSED, Model, View, sse, texts

LIMIT = 1 << 20
USER = {"role": "user", "content": "Say it."}
COUNTING = {"include_usage": True, "continuous_usage_stats": True}

# -- any break, anywhere -------------------------------------------------------------------------------------------


@st.composite
def tokens(draw: st.DrawFn) -> list[bytes]:
    """Words, and characters in parts. (A token of a whole character and a part of the next is found again as two.)"""
    answer: list[bytes] = []
    for text in draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), min_size=1, max_size=8)):
        encoded = text.encode()
        is_split = len(text) == 1 and len(encoded) > 1 and draw(st.booleans())
        answer += [bytes([byte]) for byte in encoded] if is_split else [encoded]
    return answer


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Any], str]:
    """(route, request, what it has as the answer's beginning)."""
    body: dict[str, Any] = {"model": "m", "stream": True, "temperature": 0}
    options = draw(st.sampled_from([None, {"include_usage": True}, COUNTING]))
    if options is not None:
        body["stream_options"] = options
    route = draw(st.sampled_from([CHAT, COMPLETION]))
    limit = draw(st.none() | st.integers(1, 12))
    if limit is not None or route == COMPLETION:
        body["max_tokens"] = limit or 1000
    if route == COMPLETION:
        return route, {**body, "prompt": "Say it: "}, "Say it: "
    if draw(st.booleans()):
        begun = {"role": "assistant", "content": "So: "}
        return route, {**body, "messages": [USER, begun], "continue_final_message": True}, "So: "
    return route, {**body, "messages": [USER]}, ""


def in_pieces(stream: bytes, data: st.DataObject) -> Iterator[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    yield from (stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True))


def relayed(model: Model, route: str, asked: dict[str, Any], begun: str, data: st.DataObject) -> bytes:
    """What the client gets of replicas that break, until one does not."""
    body = json.dumps(asked).encode()
    client = b""
    tape, sent = Tape(LIMIT), body
    for run in range(1, 6):
        stream = model.answer(route, json.loads(sent), run, begun)
        is_last = run == 5
        end = len(stream) if is_last else data.draw(st.integers(0, len(stream)))
        broken = stream[:end]
        if end < len(stream) and data.draw(st.booleans()):
            # Its engine dies, and the worker says so: between events.
            broken = stream[: stream.rfind(b"\n\n", 0, end) + 2] if b"\n\n" in stream[:end] else b""
            broken += data.draw(st.sampled_from([DIED + DONE, DONE]))
        client += b"".join([tape.feed(piece) for piece in in_pieces(broken, data)])
        if end == len(stream):
            client += tape.finish()
        if tape.is_done:
            return client
        asked_on = continuation(route, body, tape.passed)
        if isinstance(asked_on, Ending):
            return client + asked_on.events
        assert isinstance(asked_on, Continuation), asked_on
        tape, sent = Splice(asked_on, tape.passed, LIMIT), asked_on.body
    raise AssertionError("the last run did not end")


@PATIENT
@given(tokens(), requests(), st.booleans(), st.data())
def test_a_stream_that_breaks_is_the_one_that_does_not(
    tokens: list[bytes], request: tuple[str, dict[str, Any], str], is_vllm: bool, data: st.DataObject
) -> None:
    route, asked, begun = request
    has_parts = "" in texts(tokens)  # which come again, and without usage nobody knows how often
    counts_exactly = asked.get("stream_options") == COUNTING or (is_vllm and not has_parts)
    if not counts_exactly:
        asked["max_tokens"] = 1000
    model = Model(tokens, is_vllm)
    whole = View.of(model.answer(route, asked, 1, begun))
    view = View.of(relayed(model, route, asked, begun, data))
    assert view.text == whole.text
    assert (view.roles, view.finishes, view.done, view.errors) == (whole.roles, whole.finishes, 1, [])
    assert len(view.heads) == 1
    assert len(view.fingerprints) <= 1
    if asked.get("stream_options") == COUNTING:
        assert view.usage[-1] == whole.usage[-1]
        assert {usage["prompt_tokens"] for usage in view.usage} == {whole.usage[-1]["prompt_tokens"]}
    elif view.usage:  # a stream that broke after its last word may have none
        [usage] = view.usage
        assert usage["total_tokens"] == whole.usage[0]["total_tokens"]
        assert usage == whole.usage[0] or not counts_exactly


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["report", "short"])
@pytest.mark.parametrize(
    ("route", "asked"), [(CHAT, {"messages": [USER]}), (COMPLETION, {"prompt": "Say it:", "max_tokens": 12})]
)
@pytest.mark.parametrize("options", [{"include_usage": True}, COUNTING])
async def test_what_a_fake_engine_began_another_ends(
    fault: str, route: str, asked: dict[str, Any], options: dict[str, bool]
) -> None:
    body = json.dumps({"model": "m", "stream": True, "stream_options": options, **asked}).encode()
    whole = View.of(await ask(Script(), route, body))
    tape = Tape(LIMIT)
    client = tape.feed(await ask(Script(fault=fault, after=5), route, body))
    going_on = continuation(route, body, tape.passed)
    assert isinstance(going_on, Continuation)
    splice = Splice(going_on, tape.passed, LIMIT)
    client += splice.feed(await ask(Script(), route, going_on.body)) + splice.finish()
    view = View.of(client)
    assert (tape.is_broken, splice.is_broken, splice.is_done) == (True, False, True)
    assert replace(view, heads=set()) == replace(whole, heads=set())
    assert len({head[0] for head in view.heads}) == 1


async def ask(script: Script, route: str, body: bytes) -> bytes:
    transport = httpx.ASGITransport(FakeEngine(("m",), script).app)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        return (await client.post(route, content=body)).content


# -- one by one ----------------------------------------------------------------------------------------------------

HEAD = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "fp"}
OTHER = {"id": "b", "object": "chat.completion.chunk", "created": 2, "model": "n", "system_fingerprint": "fq"}


def told(head: dict[str, Any], content: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {**head, "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}], **more}


def role(head: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        **head,
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
        **more,
    }


FIRST = [sse(role(HEAD)), sse(told(HEAD, "One"))]
FINISH = sse(told(OTHER, None, "stop"))


def spliced(*passed: bytes, **asked: Any) -> Splice:
    body = {"model": "m", "messages": [USER], **asked}
    going_on = continuation(CHAT, json.dumps(body).encode(), passed)
    assert isinstance(going_on, Continuation), going_on
    return Splice(going_on, passed, LIMIT)


def chunks(stream: bytes) -> list[Any]:
    return [json.loads(event.removeprefix(b"data: ")) for event in stream.split(b"\n\n") if event]


def test_a_chunk_gets_the_first_streams_head_and_keeps_all_else() -> None:
    stop = {
        "index": 0,
        "delta": {"content": " two", "x": 1.50},
        "finish_reason": "stop",
        "stop_reason": 7,
        "token_ids": None,
    }
    [chunk] = chunks(spliced(*FIRST).feed(sse({**OTHER, "choices": [stop], "metrics": {"a": 1}})))
    assert chunk == {**HEAD, "choices": [stop], "metrics": {"a": 1}}


def test_the_role_comes_once() -> None:
    assert spliced(*FIRST).feed(sse(role(OTHER))) == b""
    assert chunks(spliced().feed(sse(role(OTHER)))) == [role(OTHER)]
    with_role = {"index": 0, "delta": {"role": "assistant", "content": " two"}, "finish_reason": None}
    [chunk] = chunks(spliced(*FIRST).feed(sse({**OTHER, "choices": [with_role]})))
    assert chunk["choices"] == [{"index": 0, "delta": {"content": " two"}, "finish_reason": None}]


def test_every_choice_has_its_own_role() -> None:
    second = {"index": 1, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    splice = spliced(sse(role(HEAD)), n=2)
    [chunk] = chunks(splice.feed(sse(role(OTHER)) + sse({**OTHER, "choices": [second]})))
    assert chunk["choices"] == [second]


def test_usage_that_the_client_did_not_ask_for_is_left_out() -> None:
    usage = {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9}
    final = sse({**OTHER, "choices": [], "usage": usage})
    assert chunks(spliced(*FIRST).feed(sse(told(OTHER, " two", usage=usage)) + final)) == [told(HEAD, " two")]
    [chunk] = chunks(spliced(*FIRST, stream_options={"include_usage": True}).feed(final))
    assert chunk["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def test_of_a_prompts_tokens_no_more_are_cached_than_there_are() -> None:
    later = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9, "x": 1}, "y": 3}
    assert summed(later, tokens=4, prompt_tokens=None) == {
        "prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 6, "x": 1}, "y": 3,
    }  # fmt: skip
    assert summed(later, tokens=4, prompt_tokens=5)["total_tokens"] == 11


@pytest.mark.parametrize(
    ("end", "is_broken", "is_done"),
    [(FINISH + DONE, False, True), (FINISH, False, False), (FINISH + DONE[:-2], False, True), (DONE, True, False),
     (b"", True, False), (b"data: {", True, False), (DIED + DONE, True, False), (FINISH[:-1], True, False)],
)  # fmt: skip
def test_its_own_end_is_judged_too(end: bytes, is_broken: bool, is_done: bool) -> None:
    splice = spliced(*FIRST)
    passed = splice.feed(sse(told(OTHER, " two")) + end) + splice.finish()
    assert (splice.is_broken, splice.is_done, splice.is_resumable) == (is_broken, is_done, True)
    assert b"".join(splice.passed) == b"".join(FIRST) + passed
    assert View.of(passed).text == " two"


def test_a_refusal_is_the_requests_own() -> None:
    splice = spliced(*FIRST)
    assert splice.feed(REFUSED + DONE) == REFUSED + DONE
    assert splice.has_failed


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_an_answer_that_begins_to_reason_again_is_given_up(name: str) -> None:
    reasoning = sse({**OTHER, "choices": [{"index": 0, "delta": {name: "Hm"}, "finish_reason": None}]})
    splice = spliced(*FIRST)
    assert splice.feed(reasoning) + splice.feed(FINISH) == b""
    assert (splice.is_broken, splice.is_resumable) == (True, False)
    assert "reason" in splice.reason
    assert chunks(spliced(FIRST[0]).feed(reasoning))  # nothing had been said


@pytest.mark.parametrize(
    "block",
    [b": hello\n\n", b"data: garbage\n\n", b"data: 7\n\n", b'data: {"choices": 7}\n\n', b"event: x\n\n",
     b'data: {"choices": [], "usage": {"a": 1}}\n\n', b'data: {"choices": [{"delta": 7}]}\n\n',
     b"data: " + b"[" * 10_000 + b"\n\n"],
)  # fmt: skip
def test_what_is_no_chunk_is_left_alone(block: bytes) -> None:
    assert spliced(*FIRST, stream_options={"include_usage": True}).feed(block) == block


def test_a_mark_of_the_byte_order_stays_at_the_beginning() -> None:
    assert spliced(*FIRST).feed(b"\xef\xbb\xbf: hello\n\n") == b": hello\n\n"


def test_what_is_too_long_to_be_kept_does_not_go_on_again() -> None:
    splice = spliced(*FIRST)
    small = Splice(
        replace(splice.asked), splice.passed, limit=RUN_BYTES + sum(len(piece) + OBJECT_BYTES for piece in FIRST)
    )
    assert small.is_resumable
    assert small.feed(sse(told(OTHER, " two")))
    assert not small.is_resumable
