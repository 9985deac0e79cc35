"""What providers answer in one piece, under the names that config.yaml gives them."""

import pytest

from relay.providers.providers import Providers
from tests.providers.double import CHAT, HI, MARKS, SECRET, answer_of, body, provided, refused, whole
from tests.scripted import answering

pytestmark = MARKS


async def test_names_aliases_and_wildcards_are_listed_and_served(providers: Providers) -> None:
    assert providers.models() == ["ext", "hosted", "lab/*", "said", "alias"]
    assert all(map(providers.serves, ["ext", "alias", "hush", "lab/anything", "lab/a/b"]))
    assert not any(map(providers.serves, ["Ext", "lab", "lab/", "other"]))
    assert SECRET not in repr(providers)


async def test_an_unknown_model_and_an_unknown_route_are_named(providers: Providers) -> None:
    unknown = await refused(providers.ask(CHAT, body(messages=HI), "other", "r"))
    assert (unknown.status, unknown.code) == (404, "model_not_found")
    assert "/v1/embeddings" in (await refused(providers.ask("/v1/tokenize", b"{}", "ext", "r"))).message


# -- whole answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ext", "hosted", "lab/m", "alias", "hush"])
async def test_a_chat_is_answered_under_every_name(providers: Providers, model: str) -> None:
    answer = await providers.ask(CHAT, body(messages=HI, fake={"tokens": 3}), model, "r")
    [choice] = whole(answer)["choices"]
    assert len(choice["message"]["content"].split()) == 3, "fields of no API reach a provider of OpenAI's protocol"
    assert choice["finish_reason"] == "stop"
    assert whole(answer)["usage"]["completion_tokens"] == 3
    assert answer.model.endswith("/m")


async def test_litellms_own_mock_response(providers: Providers) -> None:
    answer = whole(await providers.ask(CHAT, body(messages=HI), "said", "r"))
    assert answer["choices"][0]["message"]["content"] == "hello there"


async def test_completions_embeddings_responses_and_messages(providers: Providers) -> None:
    text = whole(await providers.ask("/v1/completions", body(prompt="hi"), "ext", "r"))
    assert len(text["choices"][0]["text"].split()) == 16
    vectors = whole(await providers.ask("/v1/embeddings", body(input=["a", "b"]), "ext", "r"))
    assert [row["index"] for row in vectors["data"]] == [0, 1]
    response = whole(await providers.ask("/v1/responses", body(input="hi"), "ext", "r"))
    assert response["output"][0]["content"][0]["text"]
    message = whole(await providers.ask("/v1/messages", body(messages=HI, max_tokens=4), "hosted", "r"))
    assert message["type"] == "message"
    assert len(message["content"][0]["text"].split()) == 4


async def test_a_ranking_comes_from_who_can() -> None:
    ranking = {"id": "x", "results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}
    async with provided(answering(answer_of("200 OK", ranking)), "hosted_vllm/m") as (providers, _):
        answer = await providers.ask("/v1/rerank", body(query="q", documents=["a", "b"]), "x", "r")
    assert [row["index"] for row in whole(answer)["results"]] == [1, 0]
