"""Sleep, wake and drain, told through the gateway; the worker is as before afterwards."""

import asyncio
import threading

import httpx
import pytest

from tests.engine.support import ANSWER_TIMEOUT_S, MODEL_NAME, EngineWorker, long_story, question
from tests.support import GatewayClient, wait_until

pytestmark = pytest.mark.share("programs")


def tell(front: GatewayClient, worker_id: str, step: str) -> httpx.Response:
    return front.http.post(f"/v1/admin/workers/{worker_id}/{step}", timeout=ANSWER_TIMEOUT_S)


def ask(front: GatewayClient) -> httpx.Response:
    return front.http.post("/v1/chat/completions", json=question(), timeout=ANSWER_TIMEOUT_S)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("level", [1, 2])
def test_it_sleeps_and_wakes_and_says_the_same(worker: EngineWorker, front: GatewayClient, level: int) -> None:
    known = front.wait_for(MODEL_NAME)
    before = text_of(ask(front))
    slept = tell(front, known["worker_id"], f"sleep?level={level}")
    assert (slept.status_code, slept.json()["state"]) == (200, "sleeping"), slept.text
    front.wait_for(MODEL_NAME, "sleeping")
    refused = ask(front)
    assert refused.status_code == 503
    assert "sleeping" in refused.text
    assert worker.ask().status_code == 503
    assert tell(front, known["worker_id"], "drain").status_code == 409
    woken = tell(front, known["worker_id"], "wake")
    assert (woken.status_code, woken.json()["state"]) == (200, "ready"), woken.text
    front.wait_for(MODEL_NAME)
    assert text_of(ask(front)) == before


def test_a_drain_finishes_what_runs_and_takes_nothing_new(worker: EngineWorker, front: GatewayClient) -> None:
    known = front.wait_for(MODEL_NAME)
    slow = {"fake": {"tokens": 40, "rate": 20}} if worker.backend == "fake" else {}
    done: list[httpx.Response] = []
    body = long_story(**{"max_tokens": 40, **slow})
    asked = threading.Thread(target=lambda: done.append(worker.http.post("/v1/completions", json=body)))
    asked.start()
    wait_until(worker.running_requests, "request running", ANSWER_TIMEOUT_S)
    assert tell(front, known["worker_id"], "drain").json()["state"] == "draining"
    assert worker.ask().status_code == 503
    asked.join(ANSWER_TIMEOUT_S)
    assert done[0].json()["usage"]["completion_tokens"] == 40
    assert tell(front, known["worker_id"], "wake").json()["state"] == "ready"
    front.wait_for(MODEL_NAME)
    assert worker.ask().status_code == 200


def test_one_that_works_is_let_finish_before_it_sleeps(worker: EngineWorker, front: GatewayClient) -> None:
    known = front.wait_for(MODEL_NAME)
    slow = {"fake": {"tokens": 40, "rate": 20}} if worker.backend == "fake" else {}

    async def both() -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            body = long_story(**{"max_tokens": 40, **slow})
            asked = asyncio.create_task(client.post(f"{worker.http.base_url}/v1/completions", json=body))
            await asyncio.to_thread(wait_until, worker.running_requests, "request running", ANSWER_TIMEOUT_S)
            slept = await client.post(f"{front.url}/v1/admin/workers/{known['worker_id']}/sleep")
            return await asked, slept

    answer, slept = asyncio.run(both())
    assert answer.json()["usage"]["completion_tokens"] == 40
    assert slept.json()["state"] == "sleeping", slept.text
    assert tell(front, known["worker_id"], "wake").status_code == 200
    front.wait_for(MODEL_NAME)


def test_only_real_steps_and_levels_are_taken(worker: EngineWorker, front: GatewayClient) -> None:
    known = front.wait_for(MODEL_NAME)
    for step in ("sleep?level=3", "sleep?level=x"):
        refused = tell(front, known["worker_id"], step)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"]
    assert tell(front, "nobody", "sleep").status_code == 404
    assert worker.ask().status_code == 200
