"""The relay's errors: what a client reads when no worker could answer, and what it can do about it."""

from collections.abc import Sequence
from typing import Final

from config.states import WorkerState
from monitor.registry import Replica, Worker, WorkerRegistry
from relay.routes import TASKS
from relay.upstream.exchange import BadAnswer, UpstreamError, WorkerSilent
from utils.errors import ApiError, BadRequest, NoReplicaReady, WorkerBroke, WorkerTimeout

RETRY_AFTER_S: Final = 2
MAX_DESCRIBED: Final = 5
"""Workers that an error names."""


def task_refused(model: str, route: str, replicas: Sequence[Replica]) -> BadRequest:
    """No replica's engine does what the route is for; says which routes there are instead."""
    routes = [path for path, wanted in TASKS.items() if any(replica.can(wanted) for replica in replicas)]
    tasks = sorted({task for replica in replicas for task in replica.tasks})
    instead = f"ask {' or '.join(routes)}" if routes else "ask another model"
    return BadRequest(
        f"{model} is not made for {route}: it can {', '.join(tasks)}; {instead}", code="unsupported_task", param="model"
    )


def stopping() -> NoReplicaReady:
    return NoReplicaReady("the gateway is stopping: try again", retry_after_s=RETRY_AFTER_S)


def no_replica_ready(model: str, detail: str) -> NoReplicaReady:
    return NoReplicaReady(
        f"no replica of {model} is ready: {detail}. Try again later, or see GET /v1/admin/workers",
        retry_after_s=RETRY_AFTER_S,
    )


def workers_for(registry: WorkerRegistry, model: str, route: str) -> list[Worker]:
    """All those of the model, ready or not, that have said that they can do what the route is for."""
    wanted = TASKS.get(route, ())
    return [worker for worker in registry.workers_of(model) if any(task in wanted for task in worker.beat.tasks)]


def describe_workers(registry: WorkerRegistry, model: str, route: str) -> str:
    """The states of a model's workers, for the one who wonders why none is ready."""
    workers = workers_for(registry, model, route) or registry.workers_of(model)
    states = [describe_worker(worker) for worker in workers[:MAX_DESCRIBED]]
    return ", ".join(states) or "its workers have gone"


def describe_worker(worker: Worker) -> str:
    if worker.state is WorkerState.SLEEPING:
        return f"{worker.id} is sleeping (POST /v1/admin/workers/{worker.id}/wake wakes it)"
    why = worker.reason[:200] if worker.state is WorkerState.FAILED else ""
    return f"{worker.id} is {worker.state}{f' ({why})' if why else ''}"


def out_of_time(worker_id: str, seconds: float) -> WorkerTimeout:
    where = f"worker {worker_id} has not" if worker_id else "no worker has"
    return WorkerTimeout(
        f"{where} begun to answer within the {seconds:g} s of the header x-ichat-timeout-s",
        code="deadline_exceeded",
    )


def name_of(replica: Replica) -> str:
    return f"worker {replica.worker_id} ({replica.host}:{replica.port})"


def worker_status(replica: Replica, status: int) -> WorkerBroke:
    """It answered a 5xx, which is not passed on because another replica is asked."""
    return WorkerBroke(f"{name_of(replica)} answered {status}; try again", code="worker_broke")


def worker_error(replica: Replica, error: UpstreamError) -> ApiError:
    """A hop's error, with the hop's name."""
    where = name_of(replica)
    if isinstance(error, WorkerSilent):
        return WorkerTimeout(f"{where} {error}", code="worker_timeout")
    code = "bad_worker_answer" if isinstance(error, BadAnswer) else "worker_broke"
    return WorkerBroke(f"{where} {error}; try again", code=code)
