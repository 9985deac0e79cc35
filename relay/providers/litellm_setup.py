"""LiteLLM made ready, in the thread that imports it: quiet, with a Router, and with what it imports at a first call.

Nothing here imports it: ``litellm`` is the module, which relay/providers/providers.py hands over.
"""

import contextlib
import copy
import json
import logging
import ssl
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx

from config.providers import Alias, Deployment, ProviderSettings

QUIET: Final[Mapping[str, str]] = {
    "LITELLM_MODE": "PRODUCTION",  # no .env file is read
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # the price map is that of the package, and not fetched
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
}
LOGGERS: Final = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=100)
WARM_BASE: Final = "http://warm.invalid/v1"
WARM_CHUNK: Final = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "a",
                     "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}  # fmt: skip
WARM_ANSWER: Final = {"id": "a", "object": "chat.completion", "created": 1, "model": "a",
                      "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"},
                                   "finish_reason": "stop"}],
                      "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}  # fmt: skip


def make_quiet(litellm: Any) -> None:
    litellm.suppress_debug_info = True  # it prints else
    litellm.disable_hf_tokenizer_download = True
    litellm.drop_params = False  # said per call; the environment has no part in it
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings", category=UserWarning)
    for name in LOGGERS:  # its lines hold prompts, and have another shape than ours
        own = logging.getLogger(name)
        own.handlers.clear()
        own.propagate = False
        own.setLevel(logging.CRITICAL)


def create_router(litellm: Any, settings: ProviderSettings, timeout_s: float) -> Any:
    """Without fallbacks: relay/providers/fallbacks.py decides those, LiteLLM retries and spreads among deployments."""
    router, other = settings.router_settings, settings.litellm_settings
    optional = {
        "num_retries": other.num_retries if router.num_retries is None else router.num_retries,
        "allowed_fails": other.allowed_fails if router.allowed_fails is None else router.allowed_fails,
        "stream_timeout": router.stream_timeout,
    }
    return litellm.Router(
        model_list=[copy.deepcopy(deployment.model_dump()) for deployment in settings.model_list],
        routing_strategy=router.routing_strategy,
        timeout=timeout_s,
        model_group_alias={name: alias.model_dump() if isinstance(alias, Alias) else alias
                           for name, alias in router.model_group_alias.items()},
        **{key: value for key, value in optional.items() if value is not None},
        **copy.deepcopy(router.for_router),
    )  # fmt: skip


def provider_names(litellm: Any, model_list: Sequence[Deployment]) -> list[str]:
    """Each deployment's provider; "" for one that does not speak OpenAI's protocol."""
    speaks_openai = {*litellm.openai_compatible_providers, "openai", "azure", "hosted_vllm"}
    names = [provider_name(litellm, deployment) for deployment in model_list]
    return [name if name in speaks_openai else "" for name in names]


def provider_name(litellm: Any, deployment: Deployment) -> str:
    params = deployment.litellm_params
    known = {key: params.get(key) for key in ("custom_llm_provider", "api_base", "api_key")}
    with contextlib.suppress(Exception):  # a model that it does not know: then as one of another protocol
        return str(litellm.get_llm_provider(model=params["model"], **known)[1])
    return ""


async def warm_up(litellm: Any) -> None:
    """The first call of each kind imports hundreds of modules: do that here, against an answer made up on the spot."""

    def answer(request: httpx.Request) -> httpx.Response:
        if b'"stream":true' not in request.content.replace(b" ", b""):
            return httpx.Response(200, json=WARM_ANSWER)
        events = f"data: {json.dumps(WARM_CHUNK)}\n\ndata: [DONE]\n\n"
        return httpx.Response(200, text=events, headers={"content-type": "text/event-stream"})

    params = {"model": "openai/a", "api_base": WARM_BASE, "api_key": "none"}
    router = litellm.Router(model_list=[{"model_name": "a", "litellm_params": params}], num_retries=0)
    chat: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "a"}]}
    enter(litellm, 1.0)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        real, litellm.aclient_session = litellm.aclient_session, client
        for coroutine in (
            router.acompletion(**chat),
            router.acompletion(**chat, stream=True),
            router.aresponses(model="a", input="a", use_chat_completions_api=True),
            litellm.anthropic_messages(**{**chat, **params, "model": "custom_openai/a"}, max_tokens=1),
        ):
            with contextlib.suppress(Exception):  # what does not work will say so when it is asked for
                await consume(await coroutine)
    litellm.aclient_session = real
    router.discard()
    await leave(litellm)


async def consume(answer: Any) -> None:
    if hasattr(answer, "__aiter__"):
        async for _ in answer:
            pass


def enter(litellm: Any, timeout_s: float) -> None:
    """Begin to use LiteLLM in this event loop: its clients are its module's, and so shared by all who use it.

    What it reaches OpenAI's protocol with is given to it: of its own it makes a client for some calls, and never closes
    it.
    """
    if litellm.aclient_session is None:
        litellm.aclient_session = httpx.AsyncClient(timeout=timeout_s, limits=LIMITS, follow_redirects=True)
    litellm.ichat_users = getattr(litellm, "ichat_users", 0) + 1


async def leave(litellm: Any) -> None:
    """The last to leave closes what LiteLLM holds open in this event loop, and ends what it runs there."""
    litellm.ichat_users -= 1
    if litellm.ichat_users:
        return
    client, litellm.aclient_session = litellm.aclient_session, None
    with contextlib.suppress(RuntimeError):  # what an event loop left behind that has ended since cannot be ended again
        await litellm.litellm_core_utils.logging_worker.GLOBAL_LOGGING_WORKER.stop()
    await litellm.close_litellm_async_clients()
    litellm.in_memory_llm_clients_cache.cache_dict.clear()  # nobody is to be given a closed one
    await client.aclose()


async def create_worker_client(litellm: Any, timeout_s: float) -> Any:
    """LiteLLM's own kind of client, for our workers: unlike providers they are never reached through a proxy.

    They speak http: a context that trusts nobody is not read from a file, which takes 40 ms.
    """
    handler = litellm.llms.custom_httpx.http_handler.AsyncHTTPHandler(timeout=timeout_s)
    await handler.client.aclose()
    no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    handler.client = httpx.AsyncClient(timeout=timeout_s, limits=LIMITS, trust_env=False, verify=no_tls)
    return handler
