"""Providers behind LiteLLM, and their answers taken apart: what the tests of this folder share."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from config.providers import ProviderSettings
from relay.providers.providers import ProviderAnswer, Providers
from tests.scripted import Script, ScriptedWorker, scripted
from utils.errors import ApiError

MARKS = [
    pytest.mark.anyio,
    pytest.mark.share("litellm"),
    pytest.mark.usefixtures("providers"),  # while they are open, the others share their connections
    pytest.mark.timeout(60),
    # LiteLLM's types do not hold what they announce, which it meets in its own threads too.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning", "ignore::DeprecationWarning"),
]
"""Of each module that asks a provider."""
SECRET = "sk-s3cret-0123456789"
HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
JSON_HEAD = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b"


def entry(name: str, base: str, model: str = "openai/m", **params: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": model, "api_base": base, "api_key": SECRET, **params}}


def settings_of(*entries: dict[str, Any], **sections: Any) -> ProviderSettings:
    sections.setdefault("litellm_settings", {"num_retries": 0})
    return ProviderSettings.model_validate({"model_list": entries, **sections})


@contextlib.asynccontextmanager
async def opened(settings: ProviderSettings) -> AsyncIterator[Providers]:
    providers = Providers(settings, answer_timeout_s=20)
    try:
        yield providers
    finally:
        await providers.close()


@contextlib.asynccontextmanager
async def provided(
    script: Script, model: str = "openai/m", **sections: Any
) -> AsyncIterator[tuple[Providers, ScriptedWorker]]:
    """A server of scripted bytes as the provider of the model ``x``."""
    async with (
        scripted(script) as (server, (host, port)),
        opened(settings_of(entry("x", f"http://{host}:{port}/v1", model), **sections)) as providers,
    ):
        yield providers, server


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "whatever", **fields}).encode()


def whole(answer: ProviderAnswer) -> dict[str, Any]:
    assert answer.status == 200
    assert answer.events is None
    assert (b"content-type", b"application/json") in answer.headers
    found: dict[str, Any] = json.loads(answer.body or b"")
    return found


async def pieces(answer: ProviderAnswer) -> list[bytes]:
    assert answer.body is None
    assert answer.events is not None
    async with contextlib.aclosing(answer.events) as events:
        return [piece async for piece in events]


def read(piece: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(piece.partition(b"data: ")[2])
    return found


def text_of(piece: bytes) -> str:
    return "".join(choice.get("delta", choice).get("content") or "" for choice in read(piece)["choices"])


async def refused(coroutine: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await coroutine
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a traceback would tell more"
    return caught.value


def answer_of(status: str, fields: Any, more: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return JSON_HEAD % (status.encode(), len(text), more, text)
