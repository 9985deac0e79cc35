"""LoRA adapters that come and go while the engine runs: each is a model name of its own."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from backends.status import WorkerStatus
from config.args import NAME
from config.states import WorkerState
from utils.errors import BadRequest, Conflict, NotFound
from utils.logger import EventLogger

DESCRIPTION: Final = "adapter_config.json"
LONGEST_PATH: Final = 4000
LONGEST_PART: Final = 255
"""In characters; Linux counts bytes, and takes a few more of the whole."""

logger = EventLogger("adapters")


class AdapterHost(Protocol):
    """An engine that takes adapters."""

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises Conflict where the engine was not started for adapters, BadRequest for one that does not fit."""

    async def unload_adapter(self, name: str) -> None:
        """Raises as ``load_adapter``."""


class Adapters:
    """One change at a time, while the worker is ready. ``names``: the model's; ``lock``: as ``LifeControl``'s."""

    def __init__(self, engine: AdapterHost, status: WorkerStatus, names: tuple[str, ...], lock: asyncio.Lock) -> None:
        self._engine = engine
        self._status = status
        self._names = names
        self._lock = lock

    async def load(self, name: str, path: str) -> None:
        """From now on ``name`` can be asked for. Raises BadRequest, Conflict."""
        async with self._lock:
            self._require_ready()
            check_adapter(name, path)
            if name in self._names:
                raise Conflict(f"{name!r} is the model's own name: give the adapter another")
            if name in self._status.facts.adapters:
                raise Conflict(f"there is an adapter {name!r} already: unload it first, or choose another name")
            await self._engine.load_adapter(name, path)
            logger.info("adapter_loaded", name=name, path=path)
            self._learn((*self._status.facts.adapters, name))

    async def unload(self, name: str) -> None:
        """Raises NotFound, Conflict."""
        async with self._lock:
            self._require_ready()
            adapters = self._status.facts.adapters
            if name not in adapters:
                known = ", ".join(adapters) or "none"
                raise NotFound(f"there is no adapter {name!r}: the adapters are {known}")
            # First from the names, so that no request comes that the engine cannot answer any more.
            self._learn(tuple(each for each in adapters if each != name))
            try:
                await self._engine.unload_adapter(name)
            except BaseException:
                self._learn(adapters)  # it is there still
                raise
            logger.info("adapter_unloaded", name=name)

    def _require_ready(self) -> None:
        if self._status.state is not WorkerState.READY:
            raise Conflict(f"the worker is {self._status.state}: adapters come and go while it is ready")

    def _learn(self, adapters: tuple[str, ...]) -> None:
        self._status.learn(replace(self._status.facts, adapters=adapters))


def check_adapter(name: str, path: str) -> None:
    """Raises BadRequest for a name that clients could not ask for, and for a folder that holds no adapter."""
    if not re.fullmatch(NAME, name) or len(name) > 256:
        raise BadRequest(f"name {name[:300]!r} will not do: give one without spaces, at most 256 long", param="name")
    folder = Path(path[:LONGEST_PATH])
    if len(path) > LONGEST_PATH or any(len(part) > LONGEST_PART for part in folder.parts):
        raise BadRequest(f"path {path[:100]}... is longer than a path can be", param="path")
    if path.startswith(("/", "./", "../", "~")) and not folder.is_dir():
        raise BadRequest(f"path {path}: there is no such folder on the worker's machine", param="path")
    if not path or (folder.is_dir() and not (folder / DESCRIPTION).is_file()):
        raise BadRequest(f"path {path}: there is no LoRA adapter in this folder: it has no {DESCRIPTION}", param="path")
