"""What providers refuse, and where they fail: our envelope, and no key in it."""

import asyncio
import logging
from typing import Any

import pytest

from relay.providers.providers import Providers
from tests.providers.double import (
    CHAT,
    HI,
    MARKS,
    SECRET,
    answer_of,
    body,
    entry,
    opened,
    provided,
    refused,
    settings_of,
    whole,
)
from tests.scripted import answering

pytestmark = MARKS


def error_body(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "code": None, "param": None}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["openai/m", "hosted_vllm/m"])
@pytest.mark.parametrize(
    ("status", "ours", "code"),
    [("401 Unauthorized", 502, "provider_refused_gateway"), ("429 Too Many Requests", 429, "provider_rate_limit"),
     ("500 Internal Server Error", 502, "provider_broke"), ("503 Service Unavailable", 503, "no_replica_ready"),
     ("404 Not Found", 404, "provider_not_found"), ("400 Bad Request", 400, None)],
)  # fmt: skip
async def test_a_providers_error_is_ours_and_holds_no_key(
    status: str, ours: int, code: str | None, model: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = answer_of(status, error_body(f"Incorrect API key provided: {SECRET}"), b"retry-after: 9\r\n")
    async with provided(answering(answer), model) as (providers, _):
        error = await refused(providers.ask(CHAT, body(messages=HI, stream=stream), "x", "r"))
    assert (error.status, error.code) == (ours, code)
    assert f"provider {model}" in error.message
    if ours == 429:
        assert (b"retry-after", b"9") in error.headers
    assert SECRET not in caplog.text


async def test_a_prompt_that_is_too_long(providers: Providers) -> None:
    long = [{"role": "user", "content": "a " * 5000}]
    for model in ("ext", "hosted"):
        error = await refused(providers.ask(CHAT, body(messages=long), model, "r"))
        assert (error.status, error.code) == (400, "context_length_exceeded")


async def test_a_provider_that_is_silent_is_a_504() -> None:
    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with provided(script, router_settings={"timeout": 0.2}) as (providers, _):
        error = await refused(providers.ask(CHAT, body(messages=HI), "x", "r"))
    assert (error.status, error.code) == (504, "provider_timeout")


async def test_what_fails_once_is_tried_again_as_configured() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    message = {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    script = answering(answer_of("500 Oops", error_body("once")), answer_of("200 OK", message))
    async with provided(script, router_settings={"num_retries": 1}) as (providers, _):
        answer = whole(await providers.ask(CHAT, body(messages=HI), "x", "r"))
    assert answer["choices"][0]["message"]["content"] == "a"


async def test_a_client_cannot_send_the_key_elsewhere(providers: Providers) -> None:
    error = await refused(providers.ask(CHAT, body(messages=HI, api_base="http://127.0.0.1:9"), "ext", "r"))
    assert error.param == "api_base"
    smuggled = body(
        messages=HI, extra={"api_base": "x"}, litellm_metadata={"a": 1}, client="x", specific_deployment=True
    )
    assert whole(await providers.ask(CHAT, smuggled, "ext", "r"))["choices"]


async def test_a_configuration_that_litellm_refuses_is_an_error_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_of(entry("m", "http://x", f"no-such-provider/{SECRET}"))
    async with opened(settings) as providers:
        providers.start()
        error = await refused(providers.ask(CHAT, body(messages=HI), "m", "r"))
    assert (error.status, "see the gateway's log" in error.message) == (500, True)
    assert "providers_failed" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in str([vars(record) for record in caplog.records])
