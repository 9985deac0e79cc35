"""The gateway's word to a worker: drain, sleep, wake, and LoRA adapters."""

from dataclasses import dataclass
from typing import Any, Final

import httpx

from monitor.heartbeat import Heartbeat
from utils.common import url_host
from utils.errors import WorkerBroke, WorkerTimeout
from utils.logger import EventLogger

LIMIT_S: Final = 900.0
"""To finish what is in flight, and to read a large model's weights again."""
CONNECT_S: Final = 5.0

logger = EventLogger("control")


@dataclass(frozen=True, slots=True)
class Told:
    """A worker's answer: its HTTP status, and its JSON."""

    status: int
    body: dict[str, Any]


class ControlClient:
    """``token``: the worker token; "" for workers of this machine, which need none."""

    def __init__(self, client: httpx.AsyncClient, *, token: str) -> None:
        self._client = client
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    async def ask(self, worker: Heartbeat, method: str, path: str, body: dict[str, Any] | None = None) -> Told:
        """The worker's own answer to ``/control/PATH``, an error of its too. Raises WorkerBroke, WorkerTimeout."""
        address = f"{url_host(worker.host)}:{worker.port}"
        name = f"worker {worker.worker_id} at {address}"
        try:
            answer = await self._client.request(
                method, f"http://{address}/control/{path}", json=body, headers=self._headers,
                timeout=httpx.Timeout(LIMIT_S, connect=CONNECT_S),
            )  # fmt: skip
            told = answer.json()
        except httpx.TimeoutException as error:
            raise WorkerTimeout(f"{name} did not answer: {type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise WorkerBroke(f"{name}: {type(error).__name__}: {error}") from error
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise WorkerBroke(
                f"{name} answered HTTP {answer.status_code} with no JSON object: "
                "only iChat's own workers can be told what to do"
            )
        logger.info("worker_told", worker_id=worker.worker_id, what=f"{method} {path}", status=answer.status_code)
        return Told(answer.status_code, told)
