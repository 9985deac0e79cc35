"""Routes that a worker does not speak, which LiteLLM turns into its chat."""

import pytest

from config.providers import ProviderSettings
from relay.providers.providers import Providers
from tests.providers.double import CHAT, HI, MARKS, body, opened, pieces, read, refused, whole

pytestmark = MARKS


async def test_messages_and_responses_are_translated_into_a_workers_chat(providers: Providers, base: str) -> None:
    request = body(messages=HI, max_tokens=4, system="be brief", betas=["unknown"])
    message = await providers.translate("/v1/messages", request, "m", base, "r")
    assert (whole(message)["model"], message.model) == ("m", "m")
    assert whole(message)["usage"]["output_tokens"] == 4
    response = await providers.translate("/v1/responses", body(input="hi", instructions="be brief"), "m", base, "r")
    assert (whole(response)["object"], whole(response)["model"]) == ("response", "m")
    assert len(whole(response)["output"][0]["content"][0]["text"].split()) == 16


async def test_translated_streams_have_their_own_events(providers: Providers, base: str) -> None:
    request = body(messages=HI, max_tokens=4, stream=True)
    events = await pieces(await providers.translate("/v1/messages", request, "m", base, "r"))
    assert [read(events[0])["type"], read(events[-1])["type"]] == ["message_start", "message_stop"]
    request = body(input="hi", stream=True)
    events = await pieces(await providers.translate("/v1/responses", request, "m", base, "r"))
    kinds = [read(event)["type"] for event in events]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert [read(event)["sequence_number"] for event in events] == list(range(len(events)))
    assert all(event.startswith(f"event: {kind}\n".encode()) for event, kind in zip(events, kinds, strict=True))


async def test_a_workers_errors_name_the_worker(providers: Providers, base: str) -> None:
    long = body(messages=[{"role": "user", "content": "a " * 5000}], max_tokens=4)
    error = await refused(providers.translate("/v1/messages", long, "m", base, "r"))
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert error.message.startswith(f"worker {base.removesuffix('/v1')}: ")
    kept = body(input="hi", previous_response_id="resp_1")
    assert (await refused(providers.translate("/v1/responses", kept, "m", base, "r"))).param == "previous_response_id"
    assert (await refused(providers.translate(CHAT, body(messages=HI), "m", base, "r"))).status == 400


async def test_a_worker_is_not_asked_through_a_proxy(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with opened(ProviderSettings()) as providers:
        answer = await providers.translate("/v1/messages", body(messages=HI, max_tokens=4), "m", base, "r")
    assert whole(answer)["type"] == "message"
