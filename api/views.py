"""What the admin API and ``/v1/models`` show of a worker."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from config.states import WorkerState
from monitor.registry import Worker


def worker_view(worker: Worker, in_flight: Mapping[str, int], now: float) -> dict[str, Any]:
    """A worker for an administrator: its last beat, and what the gateway knows beyond it. ``now``: monotonic."""
    beat = worker.beat.model_dump(mode="json")
    return {
        **beat,
        "status": worker.state.status,
        "state": worker.state.value,
        "reason": worker.reason,
        "address": f"{worker.beat.host}:{worker.beat.port}",
        "managed": worker.managed,
        "restarts": worker.restarts,
        "in_flight": in_flight.get(worker.id, 0),
        "seconds_since_beat": None if worker.last_beat is None else round(now - worker.last_beat, 3),
        "seconds_known": round(now - worker.registered_at, 3),
    }


def model_views(workers: Iterable[Worker]) -> dict[str, dict[str, Any]]:
    """OpenAI's model objects by name, for models with at least one ready replica; ``ichat`` holds the rest."""
    views: dict[str, dict[str, Any]] = {}
    for worker in workers:
        if worker.state is not WorkerState.READY:
            continue
        for name in worker.beat.names:
            view = views.setdefault(name, new_model_view(name, worker))
            view["ichat"]["replicas"] += 1
            view["ichat"]["backends"] = sorted({*view["ichat"]["backends"], worker.beat.backend})
    return dict(sorted(views.items()))


def new_model_view(name: str, worker: Worker) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(worker.beat.started_at or time.time()),
        "owned_by": "ichat",
        "max_model_len": worker.beat.max_model_len,
        "ichat": {
            "replicas": 0,
            "backends": [],
            "tasks": list(worker.beat.tasks),
            "modalities": list(worker.beat.modalities),
            "adapter_of": worker.beat.model_name if name in worker.beat.adapters else None,
        },
    }


def provider_model_view(name: str, created: int) -> dict[str, Any]:
    """A model of ``model_list``; ``created``: when the gateway began to know it."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "provider",
        "ichat": {"replicas": 0, "backends": ["litellm"], "wildcard": "*" in name},
    }
