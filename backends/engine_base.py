"""EngineBackend: what engines have in common that load in a thread of this process and spawn children of their own."""

import asyncio
import contextlib
import importlib
import importlib.util
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final

from backends import cpu_shims
from backends.base import ASGIApp, BaseBackend, Doors, EngineDied
from backends.complaints import one_sentence
from backends.engine_arguments import check_model_folder, given_options
from backends.engine_thread import EngineThread
from backends.status import WorkerStatus
from config.args import WorkerArguments
from utils.common import package_version
from utils.errors import BadRequest, ConfigError, Conflict, IChatError

LOADING_EXIT_S: Final = 15.0
LOADING_POLL_S: Final = 0.2


class EngineBackend(BaseBackend):
    title: ClassVar[str]
    """Its name as its makers write it."""
    module: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]]
    """Under these names it is installed; each is an extra of ours too."""
    sleep_option: ClassVar[str]
    """Without it, an engine on a GPU cannot give memory back."""

    def __init__(self, arguments: WorkerArguments, status: WorkerStatus, doors: Doors) -> None:
        super().__init__(arguments, status, doors)
        self._version = package_version(*self.distributions)
        self._thread = EngineThread(self.name)
        self._lifespan = contextlib.AsyncExitStack()
        """The engine's app's; the worker's own server runs without."""
        self._key = ""
        self._on_cpu = False

    @property
    def engine_name(self) -> str:
        return f"{self.title} {self._version}"

    # -- start -----------------------------------------------------------------------------------------------------

    async def create_engine(self) -> ASGIApp:
        given = given_options(self.arguments.engine_argv)
        if importlib.util.find_spec(self.module) is None:
            extras = " or ".join(f"pip install '.[{name}]'" for name in self.distributions)
            raise ConfigError(
                f"--backend {self.name}: {self.title} is not installed here: in iChat's folder, {extras} "
                "(in an environment of its own, which `engines` in config.yaml names, if another engine is in this one)"
            )
        check_model_folder(self.arguments.model, given)
        self._prepare(given)
        try:
            torch = await self._thread.run(importlib.import_module, "torch")
            self._on_cpu = not torch.cuda.is_available()
            if self._on_cpu:
                self._prepare_for_cpu()
                cpu_shims.activate(os.environ)
            return await self._load()
        except IChatError:
            raise
        except Exception as error:
            raise EngineDied(self._explain(error)) from error

    @abstractmethod
    def _prepare(self, given: set[str]) -> None:
        """Before anything of the engine is imported. ``given``: the options on its command line."""

    def _prepare_for_cpu(self) -> None:
        """On a machine without a GPU, before the engine is imported."""

    @abstractmethod
    async def _load(self) -> ASGIApp:
        """As ``create_engine``, with torch imported."""

    @abstractmethod
    def _explain(self, error: Exception) -> str:
        """Words for a start that failed."""

    async def _import(self, modules: Sequence[str]) -> None:
        """Each for itself: a worker that is stopped meanwhile waits for one of them, not for all."""
        for module in modules:
            await self._thread.run(importlib.import_module, module)

    def warmup_headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    # -- sleep -----------------------------------------------------------------------------------------------------

    def check_can_sleep(self) -> None:
        """A CPU has no memory to give back; there, a sleeping engine only pauses."""
        if not self._on_cpu and not self._has_sleep_mode():
            raise Conflict(f"this {self.engine_name} was started without {self.sleep_option}: it cannot sleep")

    @abstractmethod
    def _has_sleep_mode(self) -> bool:
        """Whether the running engine was started with ``sleep_option``."""

    # -- adapters --------------------------------------------------------------------------------------------------

    def _require_lora(self, *, enabled: bool) -> None:
        """Raises Conflict."""
        if not enabled:
            raise Conflict(f"this {self.engine_name} was started without --enable-lora: it takes no adapters")

    def _refusal(self, words: str) -> BadRequest:
        """Of an adapter, by the engine."""
        return BadRequest(f"{self.engine_name}: {one_sentence(words)}", param="path")

    # -- stop ------------------------------------------------------------------------------------------------------

    async def stop_engine(self) -> None:
        await self._abandon_loading()
        try:
            await self._lifespan.aclose()
        finally:
            await self._end_engine()

    @abstractmethod
    async def _end_engine(self) -> None:
        """Ends the engine's processes; there may be none."""

    async def _abandon_loading(self) -> None:
        """A job in the thread cannot be cancelled: one that waits for the engine's children ends with them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOADING_EXIT_S):
                while self._thread.is_busy:
                    await asyncio.to_thread(self.kill_engine_processes)
                    await asyncio.sleep(LOADING_POLL_S)
