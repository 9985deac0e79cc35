"""A real engine answers: directly, and through the gateway."""

import json
from typing import Any

import httpx
import pytest

from tests.engine.support import ANSWER_TIMEOUT_S, MODEL_NAME, EngineWorker, long_story, question
from tests.support import GatewayClient, wait_until
from utils.sse import SSEParser

pytestmark = pytest.mark.engine


def stream(client: httpx.Client, **more: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, which must end as OpenAI's do."""
    body = question(stream=True, stream_options={"include_usage": True}, **more)
    parser, events = SSEParser(), []
    with client.stream("POST", "/v1/chat/completions", json=body, timeout=ANSWER_TIMEOUT_S) as answer:
        assert answer.status_code == 200
        for chunk in answer.iter_bytes():
            events += parser.feed(chunk)
    assert events[-1].data == "[DONE]"
    return [json.loads(event.data) for event in events[:-1]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_the_greedy_answer_is_right_and_usage_adds_up(worker: EngineWorker) -> None:
    answer = worker.ask()
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert "Paris" in body["choices"][0]["message"]["content"]
    assert body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["prompt_tokens"] > 0 < usage["completion_tokens"] <= 32
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_says_the_same(worker: EngineWorker) -> None:
    whole = worker.ask().json()
    chunks = stream(worker.http)
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"].items() <= whole["usage"].items()


def test_the_gateway_passes_both_on(worker: EngineWorker, front: GatewayClient) -> None:
    answer = front.http.post("/v1/chat/completions", json=question(), timeout=ANSWER_TIMEOUT_S)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"], answer.text
    assert "Paris" in text_of(stream(front.http))


def test_the_worker_tells_what_it_runs(worker: EngineWorker, front: GatewayClient) -> None:
    told = front.wait_for(MODEL_NAME)
    assert told["engine_version"].startswith("0.")
    assert "generate" in told["tasks"]
    assert told["max_model_len"] > 0
    assert told["capacity"] == 8
    assert told["backend_args"]["max_num_seqs"] == 8
    assert "model" not in told["backend_args"]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_stops_its_request(worker: EngineWorker, streamed: bool) -> None:
    """What the client reads does not matter: a limit of half a second is a client that leaves."""
    body = long_story(stream=streamed)
    if streamed:
        with worker.http.stream("POST", "/v1/completions", json=body) as answer:
            assert next(answer.iter_lines())
            wait_until(worker.running_requests, "request running", ANSWER_TIMEOUT_S)
    else:
        with pytest.raises(httpx.ReadTimeout):
            worker.http.post("/v1/completions", json=body, timeout=0.5)
    wait_until(lambda: not worker.running_requests(), "request aborted", ANSWER_TIMEOUT_S)


def test_a_wrong_request_gets_the_engines_own_error(worker: EngineWorker) -> None:
    answer = worker.ask(max_tokens=-1)
    assert answer.status_code == 400
    assert "max_tokens" in answer.json()["error"]["message"]
