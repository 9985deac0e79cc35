"""Everything that is no worker of ours: LiteLLM's Router. The only import of litellm, and late.

LiteLLM takes seconds and some 150 MB to import: it is imported in a thread, and only if ``model_list`` names models or
a worker lacks a route that LiteLLM can translate. It is told to be quiet: nothing is printed, fetched, or sent anywhere
but to the providers (relay/providers/litellm_setup.py).
"""

import asyncio
import contextlib
import importlib.util
import os
import re
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from config.providers import Alias, ProviderSettings
from relay.headers import Header
from relay.providers.errors import Hop, redact, to_api_error
from relay.providers.events import Encoder, whole
from relay.providers.litellm_setup import (
    QUIET,
    create_router,
    create_worker_client,
    enter,
    leave,
    make_quiet,
    provider_names,
    warm_up,
)
from relay.providers.request import SHAPES, arguments, read_body
from utils.errors import ApiError, BadRequest, ConfigError, InternalError, ModelNotFound, WorkerBroke
from utils.logger import EventLogger

TRANSLATED: Final = frozenset({"/v1/messages", "/v1/responses"})
"""Routes that a worker's chat can stand in for."""
logger = EventLogger("providers")


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """Either a ``body`` or ``events``: server-sent events, whose generator the caller must close."""

    status: int
    headers: list[Header]
    body: bytes | None
    events: AsyncGenerator[bytes, None] | None
    model: str  # provider/name that answered


@dataclass(frozen=True, slots=True, repr=False)
class Library:
    """LiteLLM, imported and set up. Its own types are not used outside this file."""

    litellm: Any
    router: Any  # None without model_list
    client: Any  # for our own workers
    provider_of: Sequence[str]  # by place in model_list; "" for one that does not speak OpenAI's protocol


class Providers:
    """The models of ``model_list``, and translation for workers' models. Lives in one event loop.

    Raises ConfigError when there is a ``model_list`` and LiteLLM is not installed.
    """

    def __init__(self, settings: ProviderSettings, *, answer_timeout_s: float = 600.0) -> None:
        if settings.model_list and importlib.util.find_spec("litellm") is None:
            raise ConfigError("model_list needs LiteLLM, which is not installed: pip install litellm")
        self._settings = settings
        self._timeout_s = (
            settings.router_settings.timeout or settings.litellm_settings.request_timeout or answer_timeout_s
        )
        self._secrets = settings.secrets()
        self._aliases = {name: alias.model if isinstance(alias, Alias) else alias
                         for name, alias in settings.router_settings.model_group_alias.items()}  # fmt: skip
        hidden = {name for name, alias in settings.router_settings.model_group_alias.items()
                  if isinstance(alias, Alias) and alias.hidden}  # fmt: skip
        names = [*(deployment.model_name for deployment in settings.model_list), *self._aliases]
        self._names = list(dict.fromkeys(name for name in names if name not in hidden))
        self._known = frozenset(names)
        self._loading: asyncio.Task[Library | None] | None = None

    def __repr__(self) -> str:
        return f"Providers({self._names!r})"

    def start(self) -> None:
        """Begin to import LiteLLM, if there are models for it: the first request need not wait then."""
        if self._settings.model_list:
            self._load()

    def models(self) -> list[str]:
        """The names that clients may ask for. A wildcard is listed as it is: nobody knows all that it stands for."""
        return list(self._names)

    def serves(self, model: str) -> bool:
        return model in self._known or any(covers(name, model) for name in self._known if "*" in name)

    async def ask(self, route: str, body: bytes, model: str, request_id: str) -> ProviderAnswer:
        """The answer of one of the model's deployments, whatever ``model`` the body names. Raises ApiError."""
        if not self.serves(model):
            raise ModelNotFound(model, self.models())
        if route not in SHAPES:
            raise BadRequest(
                f"{model} is a provider's model, which has no {route}: ask {', '.join(SHAPES)}",
                code="unsupported_task",
                param="model",
            )
        library = await self._library()
        shape, deployments = SHAPES[route], self._deployments(model)
        providers = frozenset(library.provider_of[place] for place in deployments)
        drop = self._settings.litellm_settings.drop_params
        given = arguments(shape, read_body(body), providers, drop)
        hop = Hop(f"provider {self._describe(deployments)}", self._secrets)
        ours: dict[str, Any] = {"model": model, **marks(request_id)}
        if drop:
            ours["drop_params"] = True
        call: Callable[..., Awaitable[Any]] = getattr(library.router, shape.call)
        return await self._answer(route, call(**given, **ours), hop, model)

    async def translate(self, route: str, body: bytes, model: str, api_base: str, request_id: str) -> ProviderAnswer:
        """``/v1/messages`` or ``/v1/responses`` of a model whose worker has only ``/v1/chat/completions``.

        ``api_base`` is the worker's ``http://host:port/v1``. Raises ApiError.
        """
        if route not in TRANSLATED:
            raise BadRequest(
                f"{model} has no {route}: ask /v1/chat/completions", code="unsupported_task", param="model"
            )
        given = arguments(SHAPES[route], read_body(body), frozenset({""}), drop=True)
        library = await self._library()
        litellm = library.litellm
        ours: dict[str, Any] = {
            "model": f"hosted_vllm/{model}",
            "api_base": api_base,
            "api_key": "none",
            "client": library.client,
            "timeout": self._timeout_s,
            "max_retries": 0,
            **marks(request_id),
        }
        if route == "/v1/responses":
            coroutine = litellm.aresponses(**given, **ours, use_chat_completions_api=True)
        else:
            coroutine = litellm.anthropic_messages(**given, **ours)
        answer = await self._answer(route, coroutine, Hop(f"worker {api_base.removesuffix('/v1')}"), model)
        return replace(answer, model=model)

    async def close(self) -> None:
        """Close the connections. What is being imported is waited for: a thread cannot be stopped."""
        if self._loading is None:
            return
        library = await self._loading
        if library is not None:
            await library.client.client.aclose()  # its own close leaves a client that it was given
            if library.router is not None:
                library.router.discard()
            await leave(library.litellm)

    # -- loading ---------------------------------------------------------------------------------------------------

    def _load(self) -> asyncio.Task[Library | None]:
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load_in_thread(), name="import litellm")
        return self._loading

    async def _library(self) -> Library:
        # Shielded: many requests wait for it, and one that is cancelled must not take it from the others.
        library = await asyncio.shield(self._load())
        if library is None:
            raise InternalError("the gateway's model_list does not work: see the gateway's log")
        return library

    async def _load_in_thread(self) -> Library | None:
        started = time.perf_counter()
        try:
            litellm, router, names = await asyncio.to_thread(load, self._settings, self._timeout_s)
            client = await create_worker_client(litellm, self._timeout_s)
        except Exception as error:  # its text may hold what the configuration holds, so there is no traceback
            logger.error("providers_failed", error=redact(f"{type(error).__name__}: {error}", self._secrets))
            return None
        enter(litellm, self._timeout_s)
        logger.info("providers_loaded", models=len(self._names), seconds=time.perf_counter() - started)
        return Library(litellm, router, client, names)

    # -- one answer ------------------------------------------------------------------------------------------------

    async def _answer(self, route: str, coroutine: Awaitable[Any], hop: Hop, model: str) -> ProviderAnswer:
        try:
            answer = await coroutine
            if hasattr(answer, "__aiter__"):
                return await self._stream(route, answer, hop, model)
            body = whole(answer)
        except ApiError:
            raise
        except Exception as error:
            raise self._note(error, hop) from None  # a traceback would show what the call was made with
        return ProviderAnswer(200, [(b"content-type", b"application/json")], body, None, answered_by(answer, model))

    async def _stream(self, route: str, stream: Any, hop: Hop, model: str) -> ProviderAnswer:
        """Once its first piece is there: what fails before can be tried elsewhere."""
        encoder = Encoder(route)
        try:
            first = encoder.encode(await anext(stream))
        except StopAsyncIteration:
            raise WorkerBroke(f"{hop.name} ended without an answer; try again", code="provider_broke") from None
        except BaseException:
            await close_stream(stream)
            raise
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        events = self._events(first, stream, encoder, hop)
        await anext(events)  # begun: one that has not would be closed without its ``finally``, and the call go on
        return ProviderAnswer(200, headers, None, events, answered_by(stream, model))

    async def _events(self, first: bytes, stream: Any, encoder: Encoder, hop: Hop) -> AsyncGenerator[bytes, None]:
        try:
            yield b""
            yield first
            async for piece in stream:
                yield encoder.encode(piece)
            if end := encoder.end():
                yield end
        except Exception as error:
            yield encoder.error(self._note(error, hop))
        finally:
            await close_stream(stream)

    def _note(self, error: Exception, hop: Hop) -> ApiError:
        found = to_api_error(error, hop)
        logger.warning("provider_failed", hop=hop.name, status=found.status, kind=type(error).__name__)
        return found

    def _deployments(self, model: str) -> list[int]:
        """The places in model_list of those that may answer."""
        name = self._aliases.get(model, model)
        entries = list(enumerate(self._settings.model_list))
        exact = [place for place, entry in entries if entry.model_name == name]
        return exact or [place for place, entry in entries if covers(entry.model_name, name)]

    def _describe(self, places: list[int]) -> str:
        models = dict.fromkeys(str(self._settings.model_list[place].litellm_params["model"]) for place in places)
        return " or ".join(models)


def marks(request_id: str) -> dict[str, Any]:
    """What goes with every call: the request's id, and that no tool is looked up in LiteLLM's own proxy."""
    return {"litellm_call_id": request_id, "headers": {"x-request-id": request_id}, "_skip_mcp_handler": True}


def covers(pattern: str, model: str) -> bool:
    """Whether LiteLLM's pattern (``openai/*``) stands for the model."""
    return "*" in pattern and re.fullmatch(re.escape(pattern).replace(r"\*", ".+"), model) is not None


def answered_by(answer: Any, model: str) -> str:
    hidden = answer.get("_hidden_params") if isinstance(answer, dict) else getattr(answer, "_hidden_params", None)
    named = hidden.get("litellm_model_name") if isinstance(hidden, dict) else None
    return str(named or model)


async def close_stream(stream: Any) -> None:
    """Close what LiteLLM streams from, which cancels the request at the provider."""
    close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
    if close is None:
        return
    with contextlib.suppress(Exception):  # it is over either way
        await close()


def load(settings: ProviderSettings, timeout_s: float) -> tuple[Any, Any, list[str]]:
    """LiteLLM, its Router, and each deployment's provider. Runs in a thread, for seconds.

    Raises whatever LiteLLM does of a wrong configuration.
    """
    for name, value in settings.environment_variables.items():
        os.environ.setdefault(name, value)  # providers' keys, which LiteLLM looks up itself
    os.environ.update(QUIET)
    is_new = "litellm" not in sys.modules
    import litellm

    make_quiet(litellm)
    litellm.modify_params = settings.litellm_settings.modify_params
    litellm.use_chat_completions_url_for_anthropic_messages = (
        settings.litellm_settings.use_chat_completions_url_for_anthropic_messages
    )
    router = create_router(litellm, settings, timeout_s) if settings.model_list else None
    if is_new:
        asyncio.run(warm_up(litellm))
    return litellm, router, provider_names(litellm, settings.model_list)
