"""Who is alive: what workers say, what the gateway finds out, and what may be routed to."""

from typing import Any

import pytest

from config.states import WorkerState
from monitor.heartbeat import Heartbeat
from monitor.registry import AddressConflict, Replica, UnknownWorker, Worker, WorkerIdConflict, WorkerRegistry
from tests.doubles import logged

READY, LOADING, UNHEALTHY, FAILED = (
    WorkerState.READY, WorkerState.LOADING, WorkerState.UNHEALTHY, WorkerState.FAILED,
)  # fmt: skip


def beat(worker_id: str = "w", **more: Any) -> Heartbeat:
    facts = {"worker_id": worker_id, "model_name": "m", "backend": "fake", "host": "h", "port": 1, "pid": 1}
    return Heartbeat.model_validate({**facts, "heartbeat_interval": 10, **more})


@pytest.fixture
def registry() -> WorkerRegistry:
    return WorkerRegistry(forget_after_s=300)


def state(registry: WorkerRegistry, worker_id: str = "w") -> WorkerState:
    return registry.worker(worker_id).state


# -- beats ---------------------------------------------------------------------------------------------------------


def test_the_first_beat_registers_and_routes(registry: WorkerRegistry) -> None:
    registry.upsert(beat(aliases=["n"]), 0)
    assert registry.route("m") == registry.route("n") == (Replica("w", "h", 1, names=("m", "n")),)
    assert registry.models() == ["m", "n"]
    assert registry.is_ready()


def test_an_unknown_model_and_one_without_a_ready_replica_are_told_apart(registry: WorkerRegistry) -> None:
    registry.upsert(beat(state="loading"), 0)
    assert registry.route("m") == ()
    assert registry.route("unknown") is None
    assert not registry.is_ready()


@pytest.mark.parametrize("said", [each for each in WorkerState if each is not READY])
def test_only_a_ready_worker_is_routed_to(registry: WorkerRegistry, said: WorkerState) -> None:
    registry.upsert(beat(), 0)
    registry.upsert(beat(state=said, reason="because"), 1)
    assert registry.route("m") == ()
    assert (state(registry), registry.worker("w").reason) == (said, "because")


def test_a_worker_that_takes_another_model_leaves_the_first(registry: WorkerRegistry) -> None:
    registry.upsert(beat(), 0)
    registry.upsert(beat(model_name="n"), 1)
    assert registry.models() == ["n"]


def test_replicas_of_a_model_are_routed_to_together(registry: WorkerRegistry) -> None:
    registry.upsert(beat("a", port=1), 0)
    registry.upsert(beat("b", port=2), 0)
    assert registry.route("m") == (Replica("a", "h", 1, names=("m",)), Replica("b", "h", 2, names=("m",)))


# -- ids and addresses ---------------------------------------------------------------------------------------------


def test_the_id_of_a_living_worker_cannot_be_taken(registry: WorkerRegistry) -> None:
    registry.upsert(beat(), 0)
    with pytest.raises(WorkerIdConflict, match="h:1"):
        registry.upsert(beat(host="other"), 29)
    assert registry.route("m") == (Replica("w", "h", 1, names=("m",)),)


@pytest.mark.parametrize("end", ["overdue", "unreachable", "stopping", "failed", "announced"])
def test_a_worker_that_came_back_elsewhere_keeps_its_id(registry: WorkerRegistry, end: str) -> None:
    if end == "announced":
        registry.announce(beat(), 0)
    else:
        registry.upsert(beat(state=end if end in ("stopping", "failed") else "ready"), 0)
    if end == "unreachable":
        registry.mark_unreachable("w", "refused")
    registry.upsert(beat(host="other", pid=2), 31 if end == "overdue" else 1)
    assert registry.route("m") == (Replica("w", "other", 1, names=("m",)),)


def test_the_address_of_a_living_worker_cannot_be_taken(registry: WorkerRegistry) -> None:
    registry.upsert(beat("first"), 0)
    for now in (1, 10, 40):
        with pytest.raises(AddressConflict, match="h:1 is the address of the living worker 'first'"):
            registry.upsert(beat("second", model_name="n"), now)
        registry.upsert(beat("first"), now)
    assert registry.models() == ["m"]


def end_of(registry: WorkerRegistry, worker_id: str, end: str, **more: Any) -> float:
    """Lets a worker beat at 0 and end; when that is known."""
    registry.upsert(beat(worker_id, state=end if end in ("stopping", "failed") else "ready", **more), 0)
    if end == "unreachable":
        registry.mark_unreachable(worker_id, "refused", is_gone=True)
    if end == "judged":
        registry.judge(worker_id, FAILED, "its process ended")
    return 30.1 if end == "overdue" else 0.1


ENDS = ["overdue", "unreachable", "stopping", "failed", "judged"]


@pytest.mark.parametrize("end", ENDS)
def test_who_answers_at_a_dead_workers_address_takes_its_place_at_once(registry: WorkerRegistry, end: str) -> None:
    now = end_of(registry, "old", end)
    with logged() as events:
        registry.upsert(beat("new"), now)
    assert [worker.id for worker in registry.workers()] == ["new"]
    [line] = events.named("worker_replaced")
    values = line.__dict__["values"]
    assert (values["worker_id"], values["by"], values["address"]) == ("old", "new", "h:1")
    assert values["reason"]


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_moves_to_a_dead_ones_address_takes_its_place(registry: WorkerRegistry, end: str) -> None:
    now = end_of(registry, "old", end, port=2)
    registry.upsert(beat("mover", port=1, state="stopping"), 0)
    registry.upsert(beat("mover", port=2, model_name="n"), now)
    assert [worker.id for worker in registry.workers()] == ["mover"]
    assert registry.route("m") is None


def test_a_worker_cannot_move_to_a_living_ones_address(registry: WorkerRegistry) -> None:
    registry.upsert(beat("there", port=2), 0)
    registry.upsert(beat("mover", port=1, state="stopping"), 0)
    with pytest.raises(AddressConflict):
        registry.upsert(beat("mover", port=2, model_name="n"), 1)
    assert {worker.id for worker in registry.workers()} == {"there", "mover"}
    assert registry.models() == ["m"]


def test_a_quick_restart_under_another_id_does_not_wait_for_missed_beats(registry: WorkerRegistry) -> None:
    registry.upsert(beat("old", node="gpu7", started_at=100, heartbeat_interval=3600), 0)
    with logged() as events:
        registry.upsert(beat("new", node="gpu7", started_at=101), 0.5)
    assert [worker.id for worker in registry.workers()] == ["new"]
    assert events.named("worker_replaced")[0].__dict__["values"]["reason"] == "a later process has its port"
    with pytest.raises(AddressConflict):  # they do not swap, even if both live
        registry.upsert(beat("old", node="gpu7", started_at=100, state="stopping"), 1)
    assert registry.route("m") == (Replica("new", "h", 1, node="gpu7", names=("m",)),)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"node": "a", "started_at": 100}, {"node": "b", "started_at": 101}),
        ({"node": "a"}, {"node": "a", "started_at": 101}),
        ({"node": "a", "started_at": 100}, {"node": "a"}),
        ({"started_at": 100}, {"started_at": 101}),
        ({"node": "a", "started_at": 101}, {"node": "a", "started_at": 101}),
    ],
)
def test_only_a_later_process_of_the_same_machine_is_known_to_have_the_port(
    registry: WorkerRegistry, old: dict[str, Any], new: dict[str, Any]
) -> None:
    registry.upsert(beat("old", **old), 0)
    with pytest.raises(AddressConflict):
        registry.upsert(beat("new", **new), 1)


def test_a_stranger_is_refused_where_a_managed_worker_lives(registry: WorkerRegistry) -> None:
    registry.announce(beat("managed"), 0)
    registry.upsert(beat("managed"), 1)
    with pytest.raises(AddressConflict, match="managed"):
        registry.upsert(beat("stranger"), 2)


def test_a_managed_worker_is_not_pushed_out_by_a_stranger(registry: WorkerRegistry) -> None:
    registry.announce(beat("managed"), 0)
    registry.upsert(beat("stranger"), 1)
    assert {worker.id for worker in registry.workers()} == {"managed", "stranger"}


# -- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("now", "expected"), [(30, READY), (30.1, UNHEALTHY)])
def test_three_missed_beats_make_a_worker_unhealthy(
    registry: WorkerRegistry, now: float, expected: WorkerState
) -> None:
    registry.upsert(beat(), 0)
    registry.expire(now)
    assert state(registry) is expected
    assert bool(registry.route("m")) is (expected is READY)


def test_a_late_beat_makes_it_healthy_again(registry: WorkerRegistry) -> None:
    registry.upsert(beat(), 0)
    registry.expire(100)
    assert "no heartbeat" in registry.worker("w").reason
    registry.upsert(beat(), 101)
    assert (state(registry), registry.worker("w").reason) == (READY, "")


def test_a_foreign_worker_that_is_gone_for_long_is_forgotten(registry: WorkerRegistry) -> None:
    registry.upsert(beat(), 0)
    for now in (100, 300):
        registry.expire(now)
        assert state(registry) is UNHEALTHY
    registry.expire(301)
    assert registry.workers() == []
    assert registry.route("m") is None


@pytest.mark.parametrize("last", ["stopping", "failed", "sleeping"])
def test_what_a_worker_said_last_stays_until_it_is_forgotten(registry: WorkerRegistry, last: str) -> None:
    registry.upsert(beat(state=last), 0)
    registry.expire(299)
    assert state(registry).value == (last if last != "sleeping" else "unhealthy")
    registry.expire(301)
    assert registry.workers() == []


def test_a_slow_beater_is_not_forgotten_between_two_beats(registry: WorkerRegistry) -> None:
    registry.upsert(beat(state="loading", heartbeat_interval=3600), 0)
    registry.expire(3600)
    assert state(registry) is LOADING


def test_a_managed_worker_is_never_forgotten(registry: WorkerRegistry) -> None:
    registry.announce(beat(), 0)
    registry.upsert(beat(), 1)
    registry.expire(10**6)
    assert state(registry) is UNHEALTHY


def test_a_worker_that_is_being_started_is_not_overdue(registry: WorkerRegistry) -> None:
    registry.announce(beat(), 0)
    registry.expire(10**6)
    assert state(registry) is WorkerState.STARTING


# -- what the gateway knows better ---------------------------------------------------------------------------------


def test_a_verdict_stands_until_the_next_beat(registry: WorkerRegistry) -> None:
    registry.upsert(beat(), 0)
    registry.judge("w", FAILED, "its process ended")
    assert (state(registry), registry.worker("w").reason) == (FAILED, "its process ended")
    assert registry.route("m") == ()
    registry.upsert(beat(), 1)
    assert state(registry) is READY


def test_a_refused_connection_counts_until_one_succeeds(registry: WorkerRegistry) -> None:
    registry.upsert(beat(), 0)
    registry.mark_unreachable("w", "refused")
    assert (state(registry), registry.worker("w").reason) == (UNHEALTHY, "refused")
    registry.upsert(beat(), 1)
    assert state(registry) is UNHEALTHY  # it beats, and nobody can reach it
    registry.mark_reachable("w")
    assert registry.route("m") == (Replica("w", "h", 1, names=("m",)),)


@pytest.mark.parametrize("change", [{"pid": 2}, {"started_at": 5.0}])
def test_a_new_process_is_reachable_until_shown_otherwise(registry: WorkerRegistry, change: dict[str, Any]) -> None:
    registry.upsert(beat(), 0)
    registry.mark_unreachable("w", "refused")
    registry.upsert(beat(**change), 1)
    assert state(registry) is READY


def test_a_worker_that_has_ended_is_not_called_unhealthy(registry: WorkerRegistry) -> None:
    registry.upsert(beat(state="failed", reason="out of memory"), 0)
    registry.mark_unreachable("w", "refused")
    assert (state(registry), registry.worker("w").reason) == (FAILED, "out of memory")


def test_news_of_an_unknown_worker_changes_nothing(registry: WorkerRegistry) -> None:
    registry.judge("w", FAILED, "x")
    registry.mark_unreachable("w", "x")
    registry.mark_reachable("w")
    registry.adopt("w")
    registry.forget("w")
    assert registry.workers() == []
    with pytest.raises(UnknownWorker):
        registry.worker("w")


# -- managed workers -----------------------------------------------------------------------------------------------


def test_a_worker_is_seen_starting_before_it_beats(registry: WorkerRegistry) -> None:
    registry.announce(beat(), 0)
    assert (state(registry), registry.worker("w").managed) == (WorkerState.STARTING, True)
    assert registry.route("m") == ()


def test_restarts_are_counted_and_beats_keep_the_count(registry: WorkerRegistry) -> None:
    for _ in range(3):
        registry.announce(beat(), 0)
        registry.upsert(beat(), 1)
    assert registry.worker("w").restarts == 2
    assert registry.worker("w").managed


def test_an_adopted_worker_stays_as_it_is_but_managed(registry: WorkerRegistry) -> None:
    registry.upsert(beat(), 0)
    registry.adopt("w")
    assert (state(registry), registry.worker("w").managed) == (READY, True)


# -- listeners -----------------------------------------------------------------------------------------------------


def test_listeners_hear_of_every_change_with_before_and_after(registry: WorkerRegistry) -> None:
    heard: list[tuple[str, WorkerState | None, WorkerState | None]] = []

    def listen(worker_id: str, old: Worker | None, new: Worker | None) -> None:
        heard.append((worker_id, old.state if old else None, new.state if new else None))

    registry.subscribe(listen)
    registry.upsert(beat(), 0)
    registry.mark_unreachable("w", "refused")
    registry.forget("w")
    assert heard == [("w", None, READY), ("w", READY, UNHEALTHY), ("w", UNHEALTHY, None)]


def test_who_listens_where_nobody_did_is_believed_once_it_has_beaten() -> None:
    registry = WorkerRegistry()
    registry.upsert(beat("w", pid=1), now=1)
    registry.mark_unreachable("w", "refused", is_gone=True)
    registry.mark_reachable("w")  # a new process has opened the port, and loads
    assert registry.worker("w").state is WorkerState.UNHEALTHY
    registry.upsert(beat("w", pid=2, state="loading"), now=2)
    assert registry.worker("w").state is WorkerState.LOADING
    registry.upsert(beat("w", pid=2), now=3)
    assert registry.worker("w").state is WorkerState.READY


def test_the_same_process_that_listens_again_is_believed_after_its_next_beat() -> None:
    registry = WorkerRegistry()
    registry.upsert(beat("w", pid=1), now=1)
    registry.mark_unreachable("w", "refused", is_gone=True)
    registry.upsert(beat("w", pid=1), now=2)
    assert registry.worker("w").state is WorkerState.UNHEALTHY
    registry.mark_reachable("w")
    assert registry.worker("w").state is WorkerState.READY


@pytest.mark.parametrize(("pid", "is_gone"), [(None, True), (1, False)])
def test_others_are_believed_as_soon_as_they_are_reached(pid: int | None, is_gone: bool) -> None:
    registry = WorkerRegistry()
    registry.upsert(beat("w", pid=pid), now=1)
    registry.mark_unreachable("w", "away", is_gone=is_gone)
    registry.mark_reachable("w")
    assert registry.worker("w").state is WorkerState.READY
