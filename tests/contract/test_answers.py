"""What every backend does for the requests of a ready worker: directly, and through the gateway."""

import json
from typing import Any

import httpx
import pytest

from tests.engine.support import ANSWER_TIMEOUT_S, MODEL_NAME, QUESTION, EngineWorker, long_story, question
from tests.support import GatewayClient, wait_until
from utils.sse import SSEParser

pytestmark = pytest.mark.share("programs")


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


def knows(worker: EngineWorker, text: str) -> bool:
    """The demo model knows the answer; the fake engine knows nothing, but always the same."""
    return "Paris" in text if worker.backend != "fake" else bool(text)


def test_the_door_was_open_before_the_engine_was_there(worker: EngineWorker) -> None:
    assert worker.seen[-1] == "ok"
    assert worker.seen[:-1] == ["loading"] or worker.backend == "fake"  # which loads in no time


def test_the_greedy_answer_is_right_and_usage_adds_up(worker: EngineWorker) -> None:
    answer = worker.ask()
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert knows(worker, body["choices"][0]["message"]["content"])
    assert worker.ask().json()["choices"][0]["message"] == body["choices"][0]["message"]
    assert body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["prompt_tokens"] > 0 < usage["completion_tokens"] <= 32
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_says_the_same(worker: EngineWorker) -> None:
    whole = worker.ask().json()
    chunks = stream(worker.http)
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    told = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [chunks[-1]["usage"][name] for name in told] == [whole["usage"][name] for name in told]
    assert chunks[-1]["choices"] == []
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "stop"


def test_a_prompt_is_completed(worker: EngineWorker) -> None:
    body = {"model": MODEL_NAME, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    answer = worker.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert knows(worker, answer.json()["choices"][0]["text"])
    assert answer.json()["usage"]["completion_tokens"] == 4


def test_the_gateway_passes_both_on(worker: EngineWorker, front: GatewayClient) -> None:
    answer = front.http.post("/v1/chat/completions", json=question(), timeout=ANSWER_TIMEOUT_S)
    assert knows(worker, answer.json()["choices"][0]["message"]["content"]), answer.text
    assert knows(worker, text_of(stream(front.http)))


def test_the_worker_tells_what_it_runs(worker: EngineWorker, front: GatewayClient) -> None:
    told = front.wait_for(MODEL_NAME)
    assert told["backend"] == worker.backend
    assert told["engine_version"].startswith("0.")
    assert "generate" in told["tasks"]
    assert told["max_model_len"] > 0
    assert "model" not in told["backend_args"]
    assert told["load_seconds"] > 0
    if worker.backend != "fake":
        assert told["capacity"] == 8
        assert 8 in (told["backend_args"].get("max_num_seqs"), told["backend_args"].get("max_running_requests"))


def test_its_metrics_are_the_engines_and_ours(worker: EngineWorker) -> None:
    text = worker.http.get("/metrics").text
    assert 'ichat_worker_state{state="ready"} 1.0' in text
    family = {"vllm": "vllm:num_requests_running", "sglang": "sglang:num_running_reqs", "fake": "python_info"}
    assert family[worker.backend] in text


def test_its_log_can_be_read(worker: EngineWorker) -> None:
    with worker.http.stream("GET", "/logs/stream") as log:
        assert any("now=ready" in line for line in log.iter_lines() if line.startswith("data: ") and "ready" in line)


def test_text_becomes_tokens_and_text_again(worker: EngineWorker, front: GatewayClient) -> None:
    if worker.backend == "fake":
        pytest.skip("the fake engine has no tokens")
    asked = front.http.post("/v1/tokenize", json={"model": MODEL_NAME, "prompt": QUESTION}, timeout=ANSWER_TIMEOUT_S)
    assert asked.status_code == 200, asked.text
    tokens = asked.json()["tokens"]
    body = {"model": MODEL_NAME, "tokens": tokens}
    back = front.http.post("/v1/detokenize", json=body, timeout=ANSWER_TIMEOUT_S).json()
    assert (back.get("prompt") or back.get("text")).endswith(QUESTION)


def test_responses_and_messages_are_answered_too(worker: EngineWorker, front: GatewayClient) -> None:
    asked = {"model": MODEL_NAME, "temperature": 0}
    response = front.http.post(
        "/v1/responses", json={**asked, "input": QUESTION, "max_output_tokens": 32}, timeout=ANSWER_TIMEOUT_S
    )
    assert response.status_code == 200 and knows(worker, response.text), response.text
    messages = [{"role": "user", "content": QUESTION}]
    message = front.http.post(
        "/v1/messages", json={**asked, "messages": messages, "max_tokens": 32}, timeout=ANSWER_TIMEOUT_S
    )
    assert message.status_code == 200 and knows(worker, message.text), message.text


def test_a_schema_is_kept_to(worker: EngineWorker) -> None:
    if worker.backend == "fake":
        pytest.skip("the fake engine knows no schema")
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
              "additionalProperties": False}  # fmt: skip
    kept = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    answer = worker.ask(response_format=kept).json()
    assert json.loads(answer["choices"][0]["message"]["content"])["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_tells_where_its_time_went_if_asked(worker: EngineWorker, streamed: bool) -> None:
    if streamed:
        *before, last = stream(worker.http, include_performance=True)
        assert not any("performance" in chunk for chunk in before)
        told = last["performance"]
    else:
        told = worker.ask(include_performance=True).json()["performance"]
    assert told["decode_time_ms"] > 0
    assert told["tokens_per_second"] > 0
    if worker.backend == "fake":
        assert told["measured_by"] == "worker"
        return
    assert told["measured_by"] == "engine"
    assert told["queue_time_ms"] >= 0
    assert told["prefill_time_ms"] > 0
    assert "performance" not in worker.ask().json()


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_stops_its_request(worker: EngineWorker, streamed: bool) -> None:
    """What the client reads does not matter: a limit of half a second is a client that leaves."""
    slow = {"fake": {"tokens": 4000, "rate": 20}} if worker.backend == "fake" else {}
    body = long_story(stream=streamed, **slow)
    if streamed:
        with worker.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()  # a generator that is dropped closes the answer
            assert next(lines)
            wait_until(worker.running_requests, "request running", ANSWER_TIMEOUT_S)
    else:
        with pytest.raises(httpx.ReadTimeout):
            worker.http.post("/v1/completions", json=body, timeout=0.5)
    wait_until(lambda: not worker.running_requests(), "request aborted", ANSWER_TIMEOUT_S)


@pytest.mark.parametrize("path", ["/flush_cache", "/release_memory_occupation", "/resume_memory_occupation", "/sleep",
                                  "/pause", "/v1/load_lora_adapter", "/update_weights_from_disk", "/abort_request",
                                  "/server_info"])  # fmt: skip
def test_the_engines_own_control_is_closed(worker: EngineWorker, path: str) -> None:
    for method in ("GET", "POST"):
        refused = worker.http.request(method, path, json={})
        assert refused.status_code == 404
        assert "has no route" in refused.json()["error"]["message"]


@pytest.mark.parametrize("wrong", [{"max_tokens": -1}, {"messages": 7}, {"messages": None}, {"temperature": "hot"}])
def test_a_wrong_request_gets_a_clear_error_and_does_no_harm(worker: EngineWorker, wrong: dict[str, Any]) -> None:
    answer = worker.ask(**wrong)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert "Traceback" not in answer.text
    assert worker.ask().status_code == 200
