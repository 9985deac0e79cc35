"""POST /control/drain, /control/sleep?level= and /control/wake: for the gateway, and for people on this machine."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backends.control import LifeControl
from backends.status import WorkerStatus
from utils.errors import BadRequest

Answer = Callable[[Request], Awaitable[Response]]


class ControlRoutes:
    """``guard`` raises Forbidden for a caller who may not do this."""

    def __init__(
        self,
        control: Callable[[], LifeControl],
        status: WorkerStatus,
        in_flight: Callable[[], int],
        guard: Callable[[Request], None],
    ) -> None:
        self._control = control
        self._status = status
        self._in_flight = in_flight
        self._guard = guard

    def answers(self) -> dict[tuple[str, str], Answer]:
        return {
            ("POST", "/control/drain"): self._drain,
            ("POST", "/control/sleep"): self._sleep,
            ("POST", "/control/wake"): self._wake,
        }

    async def _drain(self, request: Request) -> Response:
        """Answers at once; what is in flight may take its time."""
        self._guard(request)
        await self._control().drain()
        return self._tell()

    async def _sleep(self, request: Request) -> Response:
        self._guard(request)
        await self._control().sleep(level_of(request.query_params.get("level", "1")))
        return self._tell()

    async def _wake(self, request: Request) -> Response:
        self._guard(request)
        await self._control().wake()
        return self._tell()

    def _tell(self) -> Response:
        told = {"state": self._status.state.value, "reason": self._status.reason, "in_flight": self._in_flight()}
        return JSONResponse(told)


def level_of(text: str) -> int:
    """Raises BadRequest."""
    if not text.isascii() or not text.isdigit():
        raise BadRequest(f"level={text[:50]!r} is no number: the levels of sleep are 1 and 2", param="level")
    return int(text)
