"""The engines: name -> where its backend is. Imported late, because an engine's import takes seconds."""

import importlib

from backends.base import BaseBackend
from utils.errors import ConfigError

BACKENDS = {
    "vllm": ("backends.vllm_backend", "VLLMBackend"),
    "sglang": ("backends.sglang_backend", "SGLangBackend"),
    "fake": ("backends.fake_backend", "FakeBackend"),
}


def backend_class(name: str) -> type[BaseBackend]:
    """The class of a backend. Raises ConfigError for an unknown name. Imports the adapter, not yet the engine."""
    if name not in BACKENDS:
        raise ConfigError(f"--backend {name!r} is unknown: the backends are {', '.join(BACKENDS)}")
    module, attribute = BACKENDS[name]
    found: type[BaseBackend] = getattr(importlib.import_module(module), attribute)
    return found
