"""The heartbeat: what a worker says of itself, for both sides of the wire, and the worker's side that sends it."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Annotated, Any, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticSerializationError

from config.args import HOST, WorkerArguments
from config.fields import Name
from config.settings import Port, WorkerId
from config.states import WorkerState
from utils.logger import EventLogger

BEAT_TIMEOUT_S = 5.0
RETRY_S = 1.0
"""After a beat that did not arrive: a gateway that comes back should not wait a whole interval for its workers."""

logger = EventLogger("heartbeat")


Bytes = Annotated[int, Field(ge=0)]


class GpuMemory(BaseModel):
    """The memory of one GPU that a worker sees, in bytes; all programs on the GPU count. None: not known, or not yet.

    ``used_before_load`` and ``used_after_load``: at the start of the worker, and when its engine was ready.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    gpu_id: Annotated[int, Field(ge=0)]
    total: Bytes | None = None
    used: Bytes | None = None
    used_before_load: Bytes | None = None
    used_after_load: Bytes | None = None


class Heartbeat(BaseModel):
    """A worker, whole. The first beat registers it; fields that we do not know are kept and shown.

    Only the first five are required, so that any OpenAI server can be made a worker by one POST every few seconds.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=(), allow_inf_nan=False)

    worker_id: WorkerId
    model_name: Name
    backend: Annotated[str, Field(min_length=1, max_length=64)]
    host: Annotated[str, Field(min_length=1, max_length=253, pattern=HOST)]
    port: Port

    aliases: tuple[Name, ...] = ()
    model_path: str = ""
    state: WorkerState = WorkerState.READY
    reason: str = ""
    tasks: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    adapters: tuple[Name, ...] = ()
    load: dict[str, Any] = {}
    capacity: int | None = None
    max_model_len: int | None = None
    backend_args: dict[str, Any] = {}
    gpu_ids: tuple[int, ...] = ()
    gpu_memory: tuple[GpuMemory, ...] = ()
    pid: int | None = None
    node: str = ""
    engine_version: str = ""
    ichat_version: str = ""
    started_at: float | None = None
    load_seconds: float | None = None
    heartbeat_interval: Annotated[float, Field(ge=0.1, le=86400)] = 30.0
    log_streaming: bool = False

    @model_validator(mode="after")
    def _can_be_shown(self) -> Self:
        # One worker's half a surrogate pair must not break the list of all workers.
        try:
            self.model_dump_json()
        except PydanticSerializationError:
            raise ValueError("a field holds what JSON cannot: send Unicode text, numbers, lists and objects") from None
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """All names under which clients may ask: the model's, its aliases, its LoRA adapters."""
        return tuple(dict.fromkeys((self.model_name, *self.aliases, *self.adapters)))


class HeartbeatSender:
    """Sends a beat every interval, and one at once whenever something changed.

    A gateway that is away does no harm: the sender tries again every second, says so once, and goes on.
    """

    def __init__(
        self, client: httpx.AsyncClient, arguments: WorkerArguments, make_beat: Callable[[], Heartbeat]
    ) -> None:
        self._client = client
        self._url = f"{arguments.gateway_address}/v1/workers/heartbeat" if arguments.gateway_address else ""
        self._headers = {"authorization": f"Bearer {arguments.token}"} if arguments.token else {}
        self._interval_s = arguments.heartbeat_interval
        self._make_beat = make_beat
        self._changed = asyncio.Event()
        self._complaint = ""
        self._has_joined = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to beat; a worker without a gateway does not."""
        if not self._url:
            logger.info("no_gateway", why="no --gateway-address was given: this worker stands alone")
        else:
            self._task = asyncio.create_task(self.run(), name="heartbeat")

    async def stop(self) -> None:
        """The last beat, which says ``stopping`` or ``failed``."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.beat()

    def beat_soon(self) -> None:
        """Something changed: do not wait for the interval."""
        self._changed.set()

    async def run(self) -> None:
        """Beats until cancelled."""
        while True:
            self._changed.clear()
            arrived = await self.beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s if arrived else RETRY_S):
                    await self._changed.wait()

    async def beat(self) -> bool:
        """One beat now. Whether it arrived and was accepted; a beat that cannot be made is told like one refused."""
        headers = {"content-type": "application/json", **self._headers}
        try:
            content = self._make_beat().model_dump_json()
            answer = await self._client.post(self._url, content=content, headers=headers, timeout=BEAT_TIMEOUT_S)
        except (httpx.HTTPError, ValueError) as error:
            self._complain(f"{type(error).__name__}: {error}")
            return False
        if answer.status_code != 200:
            self._complain(f"HTTP {answer.status_code}: {answer.text[:300]}")
            return False
        if not self._has_joined or self._complaint:
            logger.info("gateway_back" if self._has_joined else "gateway_joined", url=self._url)
        self._complaint, self._has_joined = "", True
        return True

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            logger.warning("beat_not_taken", url=self._url, error=complaint, retry_s=RETRY_S)
        self._complaint = complaint
