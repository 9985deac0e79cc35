"""A backend with an engine that does what a test says, and doors that are idle when it says so."""

import asyncio
from typing import Any, ClassVar

from starlette.responses import Response

from backends.base import ASGIApp, BaseBackend, EngineDied, Progress
from backends.status import EngineFacts, WorkerStatus
from config.args import WorkerArguments
from config.states import WorkerState


class Doors:
    """A worker's HTTP side that is idle, or not, as the test says."""

    def __init__(self) -> None:
        self.engine: ASGIApp | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.closed = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await Response("door")(scope, receive, send)

    def attach(self, engine_app: ASGIApp) -> None:
        self.engine = engine_app

    async def wait_idle(self) -> None:
        await self.idle.wait()

    def close_streams(self) -> None:
        self.closed = True


class Engine(BaseBackend):
    """An engine that does what the test says."""

    name: ClassVar[str] = "test"
    warmup_timeout_s: ClassVar[float] = 60

    def __init__(self, **arguments: Any) -> None:
        self.states: list[WorkerState] = []
        status = WorkerStatus(asyncio.get_running_loop().time)
        self.doors = Doors()
        facts = {"model": "m", "model_name": "m", "host": "127.0.0.1", "port": 0, **arguments}
        super().__init__(WorkerArguments(**facts), status, self.doors)
        status.subscribe(self._note)
        self.loaded = asyncio.Event()
        self.loaded.set()
        self.app: ASGIApp = self._answer
        self.warmup_status = 200
        self.trouble: Exception | None = None
        self.stop_trouble: Exception | None = None
        self.dead = False
        self.now = Progress(0, 0)
        self.warmed: list[str] = []
        self.stops = 0
        self._changed = asyncio.Event()

    def _note(self) -> None:
        if not self.states or self.states[-1] is not self.status.state:
            self.states.append(self.status.state)
        self._changed.set()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.warmed.append(scope["path"])
        body = '{"choices": [{"text": "warm"}]}' if self.warmup_status == 200 else "warm"
        await Response(body, self.warmup_status)(scope, receive, send)

    async def create_engine(self) -> ASGIApp:
        await self.loaded.wait()
        if self.trouble is not None:
            raise self.trouble
        self.status.learn(EngineFacts(tasks=("generate",)))
        return self.app

    async def stop_engine(self) -> None:
        self.stops += 1
        if self.stop_trouble is not None:
            raise self.stop_trouble

    def check_alive(self) -> None:
        if self.dead:
            raise EngineDied("the engine died of a test")

    def progress(self) -> Progress:
        return self.now

    async def reach(self, state: WorkerState) -> None:
        while self.status.state is not state:
            self._changed.clear()
            await self._changed.wait()
