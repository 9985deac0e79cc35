"""What a user gets wrong: a clear 4xx in OpenAI's envelope, and the worker lives on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.support import ANSWER_TIMEOUT_S, MODEL_NAME, EngineWorker, question
from tests.support import GatewayClient

pytestmark = pytest.mark.share("programs")

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def image(url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def refused(answer: httpx.Response, *statuses: int) -> str:
    """The message of an error that a client can do something about."""
    assert answer.status_code in (statuses or (400,)), answer.text
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    return str(error["message"])


@pytest.fixture
def ask(worker: EngineWorker, front: GatewayClient) -> Iterator[Any]:
    """Through the gateway; the worker must answer afterwards."""

    def post(path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        return front.http.post(path, json={"model": MODEL_NAME, **body}, timeout=ANSWER_TIMEOUT_S)

    front.wait_for(MODEL_NAME)
    yield post
    assert worker.ask().status_code == 200


def test_a_prompt_longer_than_the_model(ask: Any) -> None:
    message = refused(ask("/v1/completions", prompt="word " * 20_000, max_tokens=4))
    assert "length" in message or "token" in message


def test_too_many_answers_at_once(ask: Any) -> None:
    assert "at most 128" in refused(ask(**{**question(), "n": 1000}))


def test_tools_that_nobody_would_read(ask: Any) -> None:
    assert "tool" in refused(ask(**{**question(), "tools": [TOOL]}))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "FILE:///etc/passwd",
    ],
)
def test_an_image_from_elsewhere(ask: Any, url: str) -> None:
    assert "this model takes text only" in refused(ask(**image(url)))


def test_an_image_of_a_hundred_megabytes(ask: Any, worker: EngineWorker) -> None:
    size = 40_000_000 if worker.backend == "fake" else 100_000_000  # more than is taken, and quick
    body = {"model": MODEL_NAME, **image("data:image/png;base64," + "A" * size)}
    assert "larger than 32 MB" in refused(ask(**body), 413)
    assert "larger than 32 MB" in refused(worker.http.post("/v1/chat/completions", json=body), 413)


def test_embeddings_of_a_model_that_chats(ask: Any, worker: EngineWorker) -> None:
    if worker.backend == "fake":
        pytest.skip("the fake engine embeds, too")
    assert "/v1/chat/completions" in refused(ask("/v1/embeddings", input="hello"))


def test_an_adapter_that_is_not_there(ask: Any, front: GatewayClient, tmp_path: Path) -> None:
    adapters = f"/v1/admin/workers/{front.wait_for(MODEL_NAME)['worker_id']}/adapters"
    for path in (tmp_path / "none", tmp_path):
        answer = front.http.post(adapters, json={"name": "tuned", "path": str(path)})
        assert str(path) in refused(answer)
    assert refused(ask(**{**question(), "model": "tuned"}), 404)
