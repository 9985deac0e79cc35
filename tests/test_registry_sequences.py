"""Any sequence of what can happen to a registry leaves it consistent."""

from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from config.states import WorkerState
from monitor.heartbeat import Heartbeat
from monitor.registry import AddressConflict, Worker, WorkerIdConflict, WorkerRegistry, is_alive, is_overdue
from tests.doubles import PATIENT

IDS = st.sampled_from(["a", "b", "c"])
STATES = st.sampled_from(list(WorkerState))
BEATS = st.builds(
    Heartbeat,
    worker_id=IDS,
    model_name=st.sampled_from(["m", "n"]),
    aliases=st.sampled_from([(), ("x",), ("n",), ("x", "y"), ("y", "x")]),
    adapters=st.sampled_from([(), ("x",), ("l",), ("l", "k")]),
    backend=st.just("fake"),
    host=st.just("h"),
    port=st.integers(1, 3),
    state=STATES,
    pid=st.integers(1, 2),
    heartbeat_interval=st.sampled_from([1.0, 10.0]),
)


def own_names_of(workers: Iterable[Worker]) -> dict[str, str]:
    """What ``Routes`` keeps up, found by a look at all: names that the same workers have, but for the first of them."""
    at: dict[str, dict[str, None]] = {}
    for worker in workers:
        for name in worker.replica.names:
            at.setdefault(name, {})[worker.id] = None
    first: dict[tuple[str, ...], str] = {}
    owns = {name: first.setdefault(tuple(ids), name) for name, ids in at.items()}
    return {name: own for name, own in owns.items() if name != own}


class Sequences(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.registry = WorkerRegistry(forget_after_s=50)
        self.mirror: dict[str, Worker] = {}
        """Kept by what listeners hear alone."""
        self.registry.subscribe(self.listen)

    def listen(self, worker_id: str, old: Worker | None, new: Worker | None) -> None:
        assert self.mirror.get(worker_id) == old
        if new is None:
            del self.mirror[worker_id]
        else:
            self.mirror[worker_id] = new

    @rule(beat=BEATS)
    def upsert(self, beat: Heartbeat) -> None:
        before = self.registry.workers()
        try:
            worker = self.registry.upsert(beat, self.now)
        except (WorkerIdConflict, AddressConflict):
            assert self.registry.workers() == before
        else:
            assert worker == self.registry.worker(beat.worker_id)
            assert worker.verdict is None
            assert {each.id for each in before if is_alive(each, self.now)} <= set(self.mirror)

    @rule(beat=BEATS)
    def announce(self, beat: Heartbeat) -> None:
        assert self.registry.announce(beat, self.now).state is WorkerState.STARTING

    @rule(worker_id=IDS)
    def adopt(self, worker_id: str) -> None:
        self.registry.adopt(worker_id)

    @rule(worker_id=IDS, state=STATES)
    def judge(self, worker_id: str, state: WorkerState) -> None:
        self.registry.judge(worker_id, state, "judged")

    @rule(worker_id=IDS)
    def mark_unreachable(self, worker_id: str) -> None:
        self.registry.mark_unreachable(worker_id, "refused")

    @rule(worker_id=IDS)
    def mark_reachable(self, worker_id: str) -> None:
        self.registry.mark_reachable(worker_id)

    @rule(worker_id=IDS)
    def forget(self, worker_id: str) -> None:
        self.registry.forget(worker_id)
        assert worker_id not in self.mirror

    @rule(seconds=st.sampled_from([0.5, 4.0, 31.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        managed = {worker.id for worker in self.registry.workers() if worker.managed}
        self.registry.expire(self.now)
        for worker in self.registry.workers():
            said_by_the_gateway = worker.verdict is not None
            assert said_by_the_gateway or not is_overdue(worker, self.now) or worker.state is not WorkerState.READY
        assert managed <= set(self.mirror)

    @invariant()
    def the_snapshot_is_what_the_workers_give(self) -> None:
        workers = self.registry.workers()
        for model in self.registry.models():
            holders = [worker for worker in workers if model in worker.beat.names]
            assert {worker.id for worker in self.registry.workers_of(model)} == {worker.id for worker in holders}
            ready = {worker.replica for worker in holders if worker.state is WorkerState.READY}
            assert set(self.registry.route(model) or ()) == ready

    @invariant()
    def names_that_mean_the_same_are_known_as_such(self) -> None:
        owns = own_names_of(self.registry.workers())
        for name in self.registry.models():
            assert self.registry.own_name(name) == owns.get(name, name)
            others = {each for each, own in owns.items() if own == name}
            first, *rest = self.registry.names_of(name)
            assert (first, set(rest), len(rest)) == (name, others, len(others))

    @invariant()
    def only_ready_workers_are_routed_to(self) -> None:
        for model in self.registry.models():
            for replica in self.registry.route(model) or ():
                worker = self.registry.worker(replica.worker_id)
                assert worker.state is WorkerState.READY
                assert not worker.unreachable or worker.verdict is WorkerState.READY
                assert model in worker.beat.names
            assert len(set(self.registry.route(model) or ())) == len(self.registry.route(model) or ())

    @invariant()
    def every_name_of_every_worker_is_known(self) -> None:
        names = {name for worker in self.registry.workers() for name in worker.beat.names}
        assert names == set(self.registry.models())

    @invariant()
    def listeners_know_what_the_registry_knows(self) -> None:
        assert self.mirror == {worker.id: worker for worker in self.registry.workers()}

    @invariant()
    def it_is_ready_when_a_model_is(self) -> None:
        assert self.registry.is_ready() == any(self.registry.route(model) for model in self.registry.models())


Sequences.TestCase.settings = settings(PATIENT, max_examples=40, stateful_step_count=25)
TestSequences = Sequences.TestCase
