"""The routes under /control: drain, sleep, wake, and LoRA adapters. For the gateway, and people on this machine."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backends.base import BaseBackend
from backends.status import WorkerStatus
from utils.errors import BadRequest

Answer = Callable[[Request], Awaitable[Response]]


class ControlRoutes:
    """``guard`` raises Forbidden for a caller who may not do this."""

    def __init__(
        self,
        backend: Callable[[], BaseBackend],
        status: WorkerStatus,
        in_flight: Callable[[], int],
        guard: Callable[[Request], None],
    ) -> None:
        self._backend = backend
        self._status = status
        self._in_flight = in_flight
        self._guard = guard

    def answers(self) -> dict[tuple[str, str], Answer]:
        return {
            ("POST", "/control/drain"): self._drain,
            ("POST", "/control/sleep"): self._sleep,
            ("POST", "/control/wake"): self._wake,
            ("POST", "/control/adapters"): self._load_adapter,
            ("DELETE", "/control/adapters"): self._unload_adapter,
        }

    async def _drain(self, request: Request) -> Response:
        """Answers at once; what is in flight may take its time."""
        self._guard(request)
        await self._backend().control.drain()
        return self._tell()

    async def _sleep(self, request: Request) -> Response:
        self._guard(request)
        level = level_of(request.query_params.get("level", "1"))
        await self._backend().control.sleep(level)
        return self._tell()

    async def _wake(self, request: Request) -> Response:
        self._guard(request)
        await self._backend().control.wake()
        return self._tell()

    async def _load_adapter(self, request: Request) -> Response:
        """``{"name": ..., "path": ...}``: from then on a model of that name."""
        self._guard(request)
        name, path = await read_words(request, "name", "path")
        await self._backend().adapters.load(name, path)
        return self._tell()

    async def _unload_adapter(self, request: Request) -> Response:
        """``{"name": ...}``."""
        self._guard(request)
        [name] = await read_words(request, "name")
        await self._backend().adapters.unload(name)
        return self._tell()

    def _tell(self) -> Response:
        status = self._status
        told = {
            "state": status.state.value,
            "reason": status.reason,
            "in_flight": self._in_flight(),
            "adapters": list(status.facts.adapters),
        }
        return JSONResponse(told)


async def read_words(request: Request, *names: str) -> list[str]:
    """The values of a JSON object that holds just these. Raises BadRequest."""
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or set(body) != set(names) or not all(isinstance(body[name], str) for name in names):
        wanted = ", ".join(f'"{name}": "..."' for name in names)
        raise BadRequest(f"the body must be a JSON object: {{{wanted}}}")
    try:
        return [body[name].encode().decode() for name in names]
    except UnicodeEncodeError:
        raise BadRequest("the body holds half a character (a lone surrogate): send Unicode text") from None


def level_of(text: str) -> int:
    """Raises BadRequest."""
    if not text.isascii() or not text.isdigit() or len(text) > len("1000"):
        raise BadRequest(f"level={text[:50]!r} is no number: the levels of sleep are 1 and 2", param="level")
    return int(text)
