"""A client's body as the arguments of a call to LiteLLM: pure.

LiteLLM takes a request's fields and its own settings (``api_base``, ``mock_response``, ``fallbacks`` ...) as arguments
of one function, and those of the call win over the configuration's: a client that could set ``api_base`` would be sent
the provider's key. So only the parameters that an API documents become arguments. The others go into the provider's
body as they are where the provider speaks OpenAI's protocol, and nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from utils.errors import BadRequest

CHAT: Final = frozenset(
    {
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
        "max_tokens", "messages", "modalities", "n", "parallel_tool_calls", "prediction", "presence_penalty",
        "prompt_cache_key", "reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier", "stop",
        "store", "stream", "stream_options", "temperature", "thinking", "tool_choice", "tools", "top_k",
        "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
    }
)  # fmt: skip
TEXT: Final = frozenset(
    {
        "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty",
        "prompt", "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user",
    }
)  # fmt: skip
EMBEDDINGS: Final = frozenset({"dimensions", "encoding_format", "input", "user"})
RERANK: Final = frozenset({"documents", "max_chunks_per_doc", "max_tokens_per_doc", "query", "rank_fields",
                           "return_documents", "top_n"})  # fmt: skip
RESPONSES: Final = frozenset(
    {
        "background", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata",
        "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key", "reasoning", "safety_identifier",
        "service_tier", "store", "stream", "stream_options", "temperature", "text", "tool_choice", "tools",
        "top_logprobs", "top_p", "truncation", "user",
    }
)  # fmt: skip
MESSAGES: Final = frozenset(
    {
        "context_management", "max_tokens", "messages", "metadata", "output_config", "output_format", "service_tier",
        "stop_sequences", "stream", "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
    }
)  # fmt: skip
OURS: Final = frozenset({"model", "include_performance"})
"""Fields that are iChat's own matter."""
SETTINGS: Final = frozenset(
    {
        "api_base", "api_key", "api_version", "base_url", "custom_llm_provider", "extra_body", "extra_headers",
        "fallbacks", "headers", "litellm_params", "mock_response", "model_list", "num_retries", "timeout",
    }
)  # fmt: skip
"""What clients of LiteLLM's own proxy may set in a body, and here no client does."""
REMEMBERS: Final = frozenset({"openai", "azure", "hosted_vllm", "xai"})
"""Providers that keep a response for ``previous_response_id``."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A route: its call at ``litellm.Router``, its parameters, and what must be there, of which types."""

    call: str
    takes: frozenset[str]
    needs: Mapping[str, tuple[type, ...]]
    passes_others: bool = False


SHAPES: Final[Mapping[str, Shape]] = {
    "/v1/chat/completions": Shape("acompletion", CHAT, {"messages": (list,)}, True),
    "/v1/completions": Shape("atext_completion", TEXT, {"prompt": (str, list)}, True),
    "/v1/embeddings": Shape("aembedding", EMBEDDINGS, {"input": (str, list)}, True),
    "/v1/rerank": Shape("arerank", RERANK, {"query": (str,), "documents": (list,)}),
    "/v1/responses": Shape("aresponses", RESPONSES, {"input": (str, list)}),
    "/v1/messages": Shape("aanthropic_messages", MESSAGES, {"messages": (list,), "max_tokens": (int,)}),
}
TYPES: Final[Mapping[str, type]] = {"stream": bool, "stream_options": dict, "tools": list}
"""Parameters that LiteLLM itself looks into."""
WORDS: Final[Mapping[type, str]] = {list: "a list", str: "a text", int: "a whole number"}


def read_body(body: bytes) -> dict[str, Any]:
    """Raises BadRequest for what is no JSON object."""
    try:
        fields = msgspec.json.decode(body)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    return fields


def arguments(shape: Shape, fields: Mapping[str, Any], providers: frozenset[str], drop: bool) -> dict[str, Any]:
    """The call's arguments but ``model``.

    ``providers`` are those that may answer: "" stands for one that speaks another protocol than OpenAI's. What such a
    one does not take is an error, unless it may be dropped. Raises BadRequest, naming the parameter.
    """
    check_shape(shape, fields)
    if fields.get("previous_response_id") is not None and not providers <= REMEMBERS:
        raise BadRequest(
            "no earlier response is kept for this model: send the whole conversation as input",
            param="previous_response_id",
        )
    given = {key: value for key, value in fields.items() if key in shape.takes and value is not None}
    others = {key: value for key, value in fields.items() if key not in shape.takes and key not in OURS}
    if shape.passes_others and "" not in providers:
        return {**given, "extra_body": others} if others else given
    if others and not drop:
        name = min(others)
        raise BadRequest(
            f"{name[:100]} is no parameter that this model's provider takes: leave it out, or set "
            "litellm_settings.drop_params in the gateway's configuration",
            code="unsupported_parameter",
            param=name[:100],
        )
    return given


def check_shape(shape: Shape, fields: Mapping[str, Any]) -> None:
    """What LiteLLM would fail on in its own words. Raises BadRequest."""
    for name, types in shape.needs.items():
        value = fields.get(name)
        if not isinstance(value, types) or isinstance(value, bool) or value == []:
            words = " or ".join(WORDS[kind] for kind in types)
            raise BadRequest(f"{name} is missing or of the wrong type: send {words}", param=name)
    if "messages" in shape.needs and not all(is_message(item) for item in fields["messages"]):
        raise BadRequest("messages must hold objects with a role", param="messages")
    for name in SETTINGS & fields.keys():
        raise BadRequest(f"{name} is the gateway's to set: leave it out", code="unsupported_parameter", param=name)
    for name, kind in TYPES.items():
        if fields.get(name) is not None and not isinstance(fields[name], kind):
            raise BadRequest(f"{name} is of the wrong type", param=name)


def is_message(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("role"), str)
