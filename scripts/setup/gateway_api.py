"""What the gateway says of itself: its workers, and whether it can serve."""

import http.client
import json
from dataclasses import dataclass
from typing import Any

from scripts.setup.config_file import Address

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerState:
    worker_id: str
    model_name: str
    status: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """``up``: it answers at all. ``workers`` is None where the gateway does not show them to us."""

    up: bool = False
    ready: bool = False
    workers: tuple[WorkerState, ...] | None = None


def ask_gateway(address: Address) -> Answer:
    status, values = get(address, "/v1/admin/workers")
    if not status:
        return Answer()
    ready, _ = get(address, "/ready")
    return Answer(up=True, ready=ready == 200, workers=parse_workers(values) if status == 200 else None)


def parse_workers(values: Any) -> tuple[WorkerState, ...]:
    listed = values.get("workers") if isinstance(values, dict) else None
    return tuple(
        WorkerState(*(str(one.get(key) or "") for key in ("worker_id", "model_name", "status", "state", "reason")))
        for one in listed or ()
        if isinstance(one, dict)
    )


def get(address: Address, path: str) -> tuple[int, Any]:
    """Status and parsed body; status 0 where nobody answers. Past every proxy: it is this machine."""
    connection = http.client.HTTPConnection(address.reachable_host, address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(body)
    except ValueError:
        return answer.status, None
