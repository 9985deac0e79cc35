"""Router: which replica gets a flight, by the model's policy and what is known of the replicas."""

import random
import time
from collections.abc import Collection, Sequence
from typing import Final

from config.settings import RoutingSettings
from monitor.heartbeat import Heartbeat
from monitor.registry import Replica, Worker, WorkerRegistry, is_new_incarnation
from relay.flight import Flight
from relay.request import content_of, session_of
from relay.routes import TASKS
from relay.routing import policy
from relay.routing.breaker import Breakers
from relay.routing.decisions import Decision, DecisionLog
from relay.routing.prefix import Chain, PrefixTree, Share, chain_of
from relay.routing.speeds import Speeds
from relay.routing.unread import Prompt, Unread
from relay.usage import Usage
from relay.words import task_refused, workers_for
from utils.errors import ModelNotFound

EXPLAIN_HEADER: Final = b"x-ichat-explain"
NO_SHARE: Final = Share()
MAX_UNREAD_BYTES: Final = 32 * 1024
"""A longer one is not kept for later: it would be too much memory for what it is worth."""
WRONG_BELOW: Final = 0.5
"""A replica that had less than this part of what was thought to be cached has dropped it, and older things."""


class Placing:
    """Where a flight is, and what was thought when it was sent there."""

    __slots__ = ("cached", "is_probe", "replica", "time", "to_prefill", "total")

    def __init__(self, replica: Replica, total: int, cached: int, time: int) -> None:
        self.replica = replica
        self.total = total  # bytes of the prompt
        self.cached = cached  # bytes of it that were thought to be cached
        self.time = time  # when the last of those was last sent (PrefixTree)
        self.is_probe = False  # it tries a replica that has failed again and again
        self.to_prefill = total - cached  # 0 once its first token is here


class Router:
    """Knows the policies, and what they look at. ``in_flight`` counts this gateway's requests by worker id."""

    def __init__(
        self,
        registry: WorkerRegistry,
        settings: RoutingSettings,
        breakers: Breakers,
        rng: random.Random,
        node: str = "",
    ) -> None:
        self.in_flight: dict[str, int] = {}
        self.freed: set[str] = set()
        """Workers that a flight has left since the lobby last looked."""
        self.decisions = DecisionLog(settings.keep_decisions)
        self._registry = registry
        self._breakers = breakers
        self._rng = rng
        self._node = node if settings.local_first else ""
        self._weights = settings.weights
        self._keeps_decisions = settings.keep_decisions > 0
        self._default = settings.policy
        self._policies = settings.by_model
        self._turns: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._pending: dict[str, int] = {}  # bytes that a worker has still to prefill
        self._speeds = Speeds()
        self._trees: dict[str, PrefixTree] = {}
        self._unread = Unread()
        """Of models with one replica: read once there is another."""
        registry.subscribe(self._on_change)

    # -- which one -------------------------------------------------------------------------------------------------

    def replicas(self, model: str, route: str) -> tuple[Replica, ...]:
        """The ready ones that can do what the route is for: none where those that can are not ready.

        Raises ModelNotFound, BadRequest.
        """
        replicas = self._registry.route(model)
        if replicas is None:
            raise ModelNotFound(model, self._registry.models())
        tasks = TASKS.get(route)
        if tasks is None or not replicas:
            return replicas
        for replica in replicas:
            if replica.tasks and not replica.can(tasks):
                break
        else:
            return replicas  # the usual case, without a new tuple
        able = tuple(replica for replica in replicas if replica.can(tasks))
        if not able and not workers_for(self._registry, model, route):
            raise task_refused(model, route, replicas)
        return able

    def choose(self, flight: Flight, replicas: Sequence[Replica]) -> Replica | None:
        """One that the flight has not failed at; None when none is left. It is placed there."""
        if len(replicas) == 1 and not flight.tried and EXPLAIN_HEADER not in flight.headers:
            return self._take_only(flight, replicas[0])
        model = flight.model
        name = self._policies.get(model, self._default)
        chain: Chain = ()
        tree, share = None, NO_SHARE
        if name == "cache_aware":
            tree = self._tree_of(model)
            prompt = content_of(flight.fields)
            chain = chain_of(prompt)
            share = tree.share(chain, len(prompt))
        session = session_of(flight.headers, flight.fields) if name == "session" else b""
        turn = self._turns[model] = self._turns.get(model, -1) + 1
        left = policy.untried(replicas, flight.tried)
        view = policy.View(
            self._breakers.allowed(left, time.monotonic()), self.in_flight, self._rng, turn, session,
            self._weights, share, self._pending, self._speeds.by_worker, self._sent, self._node,
        )  # fmt: skip
        replica = policy.choose(policy.POLICIES[name], view, is_local_first=bool(self._node))
        if replica is None:
            return None
        self._explain(flight, name, view, replica)
        cached = share.cached.get(replica.worker_id, 0)
        placing = Placing(replica, share.total, cached, tree.time_of(chain, cached) if tree is not None else 0)
        if tree is not None:
            tree.add(chain, replica.worker_id)
        self._take_off(flight, placing)
        return replica

    def _take_only(self, flight: Flight, replica: Replica) -> Replica:
        """There is nothing to choose; but where prompts are should be known once there is another replica."""
        if self._policies.get(flight.model, self._default) == "cache_aware" and len(flight.body) < MAX_UNREAD_BYTES:
            self._unread.add(flight.model, Prompt(flight.fields, replica.worker_id, len(flight.body)))
        self._take_off(flight, Placing(replica, 0, 0, 0))
        return replica

    def _tree_of(self, model: str) -> PrefixTree:
        tree = self._trees.get(model)
        if tree is None:
            tree = self._trees[model] = PrefixTree()
        for prompt in self._unread.take(model):
            tree.add(chain_of(content_of(prompt.fields)), prompt.worker_id)
        return tree

    def _explain(self, flight: Flight, name: str, view: policy.View, replica: Replica) -> None:
        is_asked = flight.headers.get(EXPLAIN_HEADER) == b"1"
        if not is_asked and (len(view.replicas) == 1 or not self._keeps_decisions):
            return
        decision = Decision(flight.id, replica.worker_id, name, flight.attempts + 1, view)
        if self._keeps_decisions:
            self.decisions.add(flight.model, decision)
        if is_asked:
            flight.decision = decision.header()

    # -- what it has to do -----------------------------------------------------------------------------------------

    def _take_off(self, flight: Flight, placing: Placing) -> None:
        flight.placing = placing
        worker_id = placing.replica.worker_id
        self.in_flight[worker_id] = self.in_flight.get(worker_id, 0) + 1
        self._sent[worker_id] = self._sent.get(worker_id, 0) + 1
        if placing.to_prefill:
            self._pending[worker_id] = self._pending.get(worker_id, 0) + placing.to_prefill
            self._speeds.sent(worker_id, placing.to_prefill)
        placing.is_probe = self._breakers.chosen(worker_id)

    def has_begun(self, placing: Placing) -> None:
        """Its answer has begun: the prompt is read."""
        if placing.to_prefill:
            worker_id = placing.replica.worker_id
            if left := self._pending.get(worker_id, 0) - placing.to_prefill:
                self._pending[worker_id] = left
            else:
                self._pending.pop(worker_id, None)
            placing.to_prefill = 0

    def land(self, placing: Placing) -> None:
        if placing.to_prefill:
            self.has_begun(placing)
        worker_id = placing.replica.worker_id
        left = self.in_flight[worker_id] - 1
        if left:
            self.in_flight[worker_id] = left
        else:
            del self.in_flight[worker_id]
        self.freed.add(worker_id)
        if placing.is_probe:
            self._breakers.ended_unknown(worker_id)

    # -- what is learned -------------------------------------------------------------------------------------------

    def learn(self, flight: Flight, placing: Placing, usage: Usage) -> None:
        """From an answer's usage: how much of the prompt had really been cached."""
        tree = self._trees.get(flight.model)
        if tree is not None and usage.prompt and usage.cached is not None:
            cached = placing.total * usage.cached / usage.prompt
            if cached < placing.cached * WRONG_BELOW:
                tree.correct(placing.replica.worker_id, placing.time)

    def _on_change(self, worker_id: str, old: Worker | None, new: Worker | None) -> None:
        is_anew = new is None or (old is not None and is_new_incarnation(old.beat, new.beat))
        if is_anew:
            self._forget(worker_id)
        if old is not None:
            gone = old.beat.names if is_anew or new is None else lost_names(old.beat, new.beat)
            for model in gone:
                self._forget_at(model, worker_id)
        if new is not None:
            self._speeds.take_report(worker_id, new.beat.load)

    def _forget(self, worker_id: str) -> None:
        """Its process is another one, or gone: nothing is known of it."""
        self._speeds.forget(worker_id)
        self._breakers.forget(worker_id)
        self._sent.pop(worker_id, None)

    def _forget_at(self, model: str, worker_id: str) -> None:
        """Nothing of the model is cached there any more. Of a model that has no worker now nothing is kept."""
        if self._registry.route(model) is None:
            self._trees.pop(model, None)
            self._turns.pop(model, None)
            self._unread.take(model)
            self.decisions.forget(model)
            return
        self._unread.forget(model, worker_id)
        if model in self._trees:
            self._trees[model].forget(worker_id)


def lost_names(old: Heartbeat, new: Heartbeat) -> Collection[str]:
    """Models that a worker had, and has no more: adapters, most of all."""
    if old.adapters == new.adapters and old.aliases == new.aliases and old.model_name == new.model_name:
        return ()  # the usual case
    return set(old.names) - set(new.names)
