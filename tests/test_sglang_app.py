"""Reranking on SGLang in the shape that everyone else has."""

import json
import math
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sglang.app import SGLangApp, sigmoid
from tests.doubles import PATIENT

ASKED = {"model": "m", "query": "q", "documents": ["a", "b", "c"]}
ROWS = [{"score": -2.0, "index": 0, "document": "a"}, {"score": 3.0, "index": 2}, {"score": 0.0, "index": 1}]


async def sglang(scope: Any, receive: Any, send: Any) -> None:
    """Answers a bare list, or 400 where there are no documents."""
    request = json.loads((await receive())["body"])
    assert scope["path"] == "/v1/rerank"
    status, body = (200, ROWS) if request.get("documents") else (400, {"error": {"message": "no documents"}})
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def rerank(tasks: tuple[str, ...], **more: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=SGLangApp(sglang, tasks))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", verify=False) as client:
        return await client.post("/v2/rerank", json={**ASKED, **more})


@pytest.mark.anyio
async def test_a_cross_encoders_logits_become_relevance_the_best_first() -> None:
    results = (await rerank(("classify", "score"), top_n=2)).json()["results"]
    assert [(row["index"], row["document"]["text"]) for row in results] == [(2, "c"), (1, "b")]
    assert [row["relevance_score"] for row in results] == pytest.approx([sigmoid(3), 0.5])


@pytest.mark.anyio
async def test_a_generating_rerankers_scores_stay() -> None:
    results = (await rerank(("generate",))).json()["results"]
    assert [row["relevance_score"] for row in results] == [3.0, 0.0, -2.0]


@pytest.mark.anyio
async def test_an_embedding_model_does_not_rerank() -> None:
    refused = await rerank(("embed",))
    assert refused.status_code == 400
    assert "it can embed" in refused.json()["error"]["message"]


@pytest.mark.anyio
async def test_an_error_of_the_engine_is_passed_on() -> None:
    answer = await rerank(("score",), documents=[])
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "no documents")


@PATIENT
@given(st.floats(-1e6, 1e6))
def test_relevance_is_between_0_and_1(logit: float) -> None:
    assert 0 <= sigmoid(logit) <= 1
    assert math.isclose(sigmoid(logit) + sigmoid(-logit), 1)
