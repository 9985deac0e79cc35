"""What a worker's engine is doing."""

import pytest

from backends.status import EngineFacts, WorkerStatus
from config.states import GONE, WorkerState

LOADING, READY, UNHEALTHY, FAILED = (
    WorkerState.LOADING, WorkerState.READY, WorkerState.UNHEALTHY, WorkerState.FAILED,
)  # fmt: skip


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_worker_begins_with_loading() -> None:
    status = WorkerStatus()
    assert (status.state, status.reason, status.load_seconds) == (LOADING, "", None)


def test_every_change_is_told_once() -> None:
    status, told = WorkerStatus(), list[tuple[WorkerState, str]]()
    status.subscribe(lambda: told.append((status.state, status.reason)))
    status.set(READY)
    status.set(READY)
    status.set(UNHEALTHY, "slow")
    status.set(UNHEALTHY, "slower")
    assert told == [(READY, ""), (UNHEALTHY, "slow"), (UNHEALTHY, "slower")]


def test_facts_are_told_too() -> None:
    status, told = WorkerStatus(), list[EngineFacts]()
    status.subscribe(lambda: told.append(status.facts))
    status.learn(EngineFacts(version="1.0"))
    assert told == [EngineFacts(version="1.0")]


def test_the_first_time_to_ready_is_the_time_of_loading() -> None:
    clock = Clock()
    status = WorkerStatus(clock)
    clock.now += 12.5
    status.set(READY)
    clock.now += 100
    status.set(UNHEALTHY)
    status.set(READY)
    assert status.load_seconds == 12.5


@pytest.mark.parametrize("after", list(WorkerState))
def test_a_failed_worker_stays_failed_and_keeps_its_reason(after: WorkerState) -> None:
    status = WorkerStatus()
    status.set(FAILED, "out of memory")
    status.set(after, "later")
    assert (status.state, status.reason) == (FAILED, "out of memory")


def test_administrators_read_healthy_where_workers_say_ready() -> None:
    assert READY.status == "healthy"
    assert LOADING.status == "loading"


def test_after_these_states_no_beat_is_expected() -> None:
    assert {state.value for state in GONE} == {"stopping", "stopped", "failed"}
