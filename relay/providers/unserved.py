"""Fallbacks to models that the configuration knows nothing of: pure. A worker may yet join with such a name."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Final

from config.settings import GatewaySettings, ManagedWorker
from relay.providers.fallbacks import Fallbacks
from relay.providers.providers import covers

NEAR: Final = 0.6
"""How alike a name must be to be the one that is meant, by difflib's ratio."""


def unserved_fallbacks(settings: GatewaySettings) -> dict[str, str]:
    """Model -> what may be meant or done, for each that something falls back to and nothing in the file serves."""
    known = list(dict.fromkeys(configured_models(settings)))
    unserved = sorted(Fallbacks.of(settings.providers).names() - set(known))
    return {name: _advice(name, known) for name in unserved if not any(covers(each, name) for each in known)}


def configured_models(settings: GatewaySettings) -> Iterator[str]:
    """The names that the gateway's own configuration serves, wildcards as they are."""
    for deployment in settings.model_list:
        yield deployment.model_name
    yield from settings.router_settings.model_group_alias
    for worker in settings.managed_workers:
        yield from (worker.model_name, *worker.aliases, *adapters_of(worker))


def adapters_of(worker: ManagedWorker) -> Iterator[str]:
    """The names in ``lora_modules``: ``name=path`` or ``{name: …, path: …}``, one or a list of them."""
    given: Any = worker.engine_arguments.get("lora_modules")
    for entry in given if isinstance(given, list | tuple) else [given]:
        if isinstance(entry, str):
            yield entry.partition("=")[0]
        elif isinstance(entry, dict) and "name" in entry:
            yield str(entry["name"])


def _advice(name: str, known: list[str]) -> str:
    near = get_close_matches(name, [each for each in known if "*" not in each], n=1, cutoff=NEAR)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"neither model_list nor managed_workers has it: {hint}It is passed over until a worker joins with this name"
