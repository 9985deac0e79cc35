"""Which of the engine's routes a worker lets through: those that answer, not those that change the engine.

An engine does not survive its own control routes in the wrong order (SGLang's scheduler ends when it is told to resume
what it has not released), and knows no callers: what is not here is closed, and ``/control`` is there instead.
"""

from typing import Final

PREFIXES: Final = ("/v1/", "/cohere/", "/inference/")
CLOSED: Final = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
OPEN: Final = frozenset(
    {
        "/generate", "/encode", "/classify", "/pooling", "/score", "/rerank", "/v2/rerank", "/v2/embed",
        "/generative_scoring", "/tokenize", "/detokenize", "/parse_function_call", "/separate_reasoning",
        "/model_info", "/get_model_info", "/version", "/load", "/ping", "/invocations", "/openapi.json", "/docs",
    }
)  # fmt: skip


def is_open(path: str) -> bool:
    return path in OPEN or (path.startswith(PREFIXES) and path not in CLOSED)
