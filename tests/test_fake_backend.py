"""The fake engine: OpenAI's answers, the same for the same prompt, and faults on request."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Progress
from backends.fake.words import WORDS, completion_prompt, seed_of, word_of
from backends.fake_backend import FakeBackend, FakeEngine, Script, parse_engine_arguments
from backends.status import WorkerStatus
from config.args import WorkerArguments
from tests.doubles import JUMPING, PATIENT
from tests.engine_double import Doors
from utils.errors import ConfigError


@pytest.fixture
def anyio_backend() -> object:
    return JUMPING


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(("m", "alias"), Script())


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(engine.app), base_url="http://engine") as client:
        yield client


async def chat(client: httpx.AsyncClient, content: str = "hello", **more: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **more}
    return await client.post("/v1/chat/completions", json=body)


def content_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def events_of(answer: httpx.Response) -> list[str]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]


# -- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_chat_answer_is_openais(client: httpx.AsyncClient) -> None:
    answer = (await chat(client)).json()
    assert (answer["object"], answer["model"]) == ("chat.completion", "m")
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 16


@pytest.mark.anyio
async def test_the_same_prompt_has_the_same_answer_and_another_another(client: httpx.AsyncClient) -> None:
    first, again, other = [content_of(await chat(client, prompt)) for prompt in ("a", "a", "b")]
    assert first == again
    assert first != other


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [{"max_tokens": 3}, {"max_completion_tokens": 3}, {"fake": {"tokens": 3}}])
async def test_an_answer_is_no_longer_than_asked(client: httpx.AsyncClient, limit: dict[str, Any]) -> None:
    assert len(content_of(await chat(client, **limit)).split()) == 3


@pytest.mark.anyio
async def test_a_stream_says_the_same_piece_by_piece(client: httpx.AsyncClient) -> None:
    *pieces, done = events_of(await chat(client, stream=True))
    assert done == "[DONE]"
    chunks = [json.loads(piece) for piece in pieces]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    said = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert said == content_of(await chat(client))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 16 + ["stop"]


@pytest.mark.anyio
async def test_a_stream_counts_its_tokens_when_asked(client: httpx.AsyncClient) -> None:
    *_, usage, _ = events_of(await chat(client, stream=True, stream_options={"include_usage": True}))
    assert json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"]["completion_tokens"] == 16


@pytest.mark.anyio
async def test_completions_are_text(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 2})
    assert answer.json()["object"] == "text_completion"
    assert len(answer.json()["choices"][0]["text"].split()) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "asked", "first", "last"),
    [
        ("/v1/responses", {"input": "x", "max_output_tokens": 3}, "response.created", "response.completed"),
        ("/v1/messages", {"messages": [], "max_tokens": 3}, "message_start", "message_stop"),
    ],
)
async def test_responses_and_messages_say_the_same_whole_and_streamed(
    client: httpx.AsyncClient, path: str, asked: dict[str, Any], first: str, last: str
) -> None:
    """Their shapes are held by the clients themselves: tests/contract/test_clients.py."""
    whole = (await client.post(path, json={"model": "m", **asked})).json()
    [said] = whole["output"][0]["content"] if "output" in whole else whole["content"]
    assert len(said["text"].split()) == whole["usage"]["output_tokens"] == 3
    answer = await client.post(path, json={"model": "m", "stream": True, **asked})
    events = [event.partition("\ndata: ") for event in answer.text.split("\n\n") if event]
    contents = [json.loads(content) for _, _, content in events]
    assert [name for name, _, _ in events] == [f"event: {content['type']}" for content in contents]
    assert (contents[0]["type"], contents[-1]["type"]) == (first, last)
    deltas = [content["delta"] for content in contents if content["type"].endswith(("text.delta", "block_delta"))]
    assert "".join(delta if isinstance(delta, str) else delta["text"] for delta in deltas) == said["text"]


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "missing"), [("/v1/responses", "input"), ("/v1/messages", "messages")])
async def test_a_request_without_its_words_is_refused(client: httpx.AsyncClient, path: str, missing: str) -> None:
    answer = await client.post(path, json={"model": "m"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, missing)


@pytest.mark.anyio
async def test_embeddings_are_unit_vectors_one_an_input(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/embeddings", json={"model": "m", "input": ["a", "b", "a"]})
    rows = answer.json()["data"]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert rows[0]["embedding"] == rows[2]["embedding"] != rows[1]["embedding"]
    assert all(math.hypot(*row["embedding"]) == pytest.approx(1) for row in rows)
    single = await client.post("/v1/embeddings", json={"model": "m", "input": "a"})
    assert single.json()["data"][0]["embedding"] == rows[0]["embedding"]


@pytest.mark.anyio
async def test_the_model_is_listed_under_all_its_names(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models")
    assert [model["id"] for model in answer.json()["data"]] == ["m", "alias"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "JSON object"),
        (b'{"messages": []}', "model"),
        (b'{"model": "m"}', "messages"),
        (b'{"model": "m", "messages": [], "fake": {"tokns": 1}}', "tokns"),
        (b'{"model": "m", "messages": [], "fake": {"fault": "explode"}}', "explode"),
        (b'{"model": "m", "messages": [], "fake": 7}', "fake"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(client: httpx.AsyncClient, content: bytes, words: str) -> None:
    answer = await client.post("/v1/chat/completions", content=content)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


# -- pace and faults -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_tokens_come_at_the_rate_that_was_asked(client: httpx.AsyncClient) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    await chat(client, fake={"tokens": 100, "rate": 10})
    assert loop.time() - started == pytest.approx(10, abs=1)


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_breaks_the_connection(client: httpx.AsyncClient, stream: bool) -> None:
    with pytest.raises(ConnectionError):
        await chat(client, stream=stream, fake={"fault": "cut", "after": 5})


@pytest.mark.anyio
async def test_an_engine_that_hangs_has_a_request_and_makes_no_step(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    asked = asyncio.create_task(chat(client, fake={"fault": "hang", "after": 5}))
    await asyncio.sleep(600)
    assert engine.progress() == Progress(running=1, steps=5)
    assert not asked.done()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert engine.progress().running == 0


@pytest.mark.anyio
async def test_progress_counts_requests_and_tokens(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await asyncio.gather(chat(client), chat(client, stream=True))
    assert engine.progress() == Progress(running=0, steps=32)


# -- going on, and breaking ----------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("cut", [1, 5, 11])
async def test_a_chat_goes_on_where_its_answer_ended(client: httpx.AsyncClient, cut: int) -> None:
    whole = (await chat(client, max_tokens=12)).json()
    said = content_of(await chat(client, max_tokens=12))
    begun = "".join(f"{word} " for word in said.split()[:cut])
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": begun}]
    answer = await chat(client, messages=messages, continue_final_message=True, max_tokens=12 - cut)
    assert begun + content_of(answer) == said
    usage = answer.json()["usage"]
    assert usage["prompt_tokens"] == whole["usage"]["prompt_tokens"] + cut
    assert usage["completion_tokens"] == 12 - cut
    assert answer.json()["id"] != whole["id"]


@PATIENT
@given(
    st.text(max_size=10)
    | st.lists(st.sampled_from([*WORDS, "x"]), max_size=4).map(lambda words: " ".join([*words, ""])),
    st.integers(0, 30),
)
def test_a_completion_goes_on_where_its_prompt_ended(text: str, cut: int) -> None:
    """Whatever the prompt ends in, be it words that this engine itself could have said."""
    prompt = completion_prompt(text)
    answer = [word_of(seed_of(prompt.text), prompt.said + index) for index in range(cut)]
    longer = completion_prompt(text + "".join(answer))
    assert (longer.text, longer.said) == (prompt.text, prompt.said + cut)


@pytest.mark.anyio
async def test_an_answer_that_goes_on_is_no_longer_than_the_whole(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "light " * 14}]
    assert len(content_of(await chat(client, messages=messages, continue_final_message=True)).split()) == 2


@pytest.mark.anyio
async def test_every_chunk_counts_its_tokens_when_asked(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *pieces, _ = events_of(await chat(client, stream=True, max_tokens=3, stream_options=options))
    assert [json.loads(piece)["usage"]["completion_tokens"] for piece in pieces] == [1, 2, 3, 3, 3]


@pytest.mark.anyio
async def test_a_dead_engine_is_reported_as_vllm_reports_it(client: httpx.AsyncClient) -> None:
    fake = {"fault": "report", "after": 2}
    *pieces, error, done = events_of(await chat(client, stream=True, fake=fake))
    assert (len(pieces), json.loads(error)["error"]["code"], done) == (2, 500, "[DONE]")
    assert (await chat(client, fake=fake)).status_code == 500


@pytest.mark.anyio
async def test_a_stream_may_end_short(client: httpx.AsyncClient) -> None:
    *pieces, done = events_of(await chat(client, stream=True, fake={"fault": "short", "after": 2}))
    assert [json.loads(piece)["choices"][0]["finish_reason"] for piece in pieces] == [None, None]
    assert done == "[DONE]"


# -- the backend ---------------------------------------------------------------------------------------------------


def backend(*engine_argv: str) -> FakeBackend:
    arguments = WorkerArguments(model="none", model_name="m", aliases=("n",), engine_argv=engine_argv)
    return FakeBackend(arguments, WorkerStatus(), Doors())


@pytest.mark.anyio
async def test_the_engine_takes_its_time_to_load_and_then_tells_its_facts() -> None:
    loop, fake = asyncio.get_running_loop(), backend("--load-seconds", "30", "--max-model-len", "99")
    started = loop.time()
    app = await fake.create_engine()
    assert loop.time() - started == pytest.approx(30, abs=1)
    assert (fake.status.facts.max_model_len, fake.status.facts.tasks) == (99, ("generate", "embed"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        for path, body in fake.warmup_requests():
            assert (await client.post(path, json=body)).status_code == 200
    fake.check_alive()
    assert fake.progress().steps > 0
    await fake.stop_engine()
    assert fake.progress() == Progress(0, 0)


@pytest.mark.parametrize(
    ("argv", "words"),
    [(("--tokns", "1"), "--tokns"), (("--tokens", "many"), "--tokens"), (("--fault", "explode"), "--fault"),
     (("stray",), "stray")],
)  # fmt: skip
def test_a_wrong_engine_argument_is_named(argv: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_engine_arguments(argv)
