"""Router: which replica gets a flight, by the model's policy."""

import random

from config.settings import RoutingSettings
from monitor.registry import Replica, WorkerRegistry
from relay import policy
from relay.flight import Flight
from relay.routes import TASKS
from relay.words import task_refused
from utils.errors import ModelNotFound


class Router:
    """Knows the policies, and what they look at. ``in_flight`` counts this gateway's requests by worker id."""

    def __init__(self, registry: WorkerRegistry, settings: RoutingSettings, rng: random.Random) -> None:
        self.in_flight: dict[str, int] = {}
        self._registry = registry
        self._rng = rng
        self._policy = policy.POLICIES[settings.policy]
        self._policies = {model: policy.POLICIES[name] for model, name in settings.by_model.items()}
        self._turns: dict[str, int] = {}

    def replicas(self, model: str, route: str) -> tuple[Replica, ...]:
        """The ready ones that can do what the route is for. Raises ModelNotFound, BadRequest."""
        replicas = self._registry.route(model)
        if replicas is None:
            raise ModelNotFound(model, self._registry.models())
        tasks = TASKS.get(route)
        if tasks is None or not replicas:
            return replicas
        able = tuple(replica for replica in replicas if replica.can(tasks))
        if not able:
            raise task_refused(model, route, replicas)
        return able

    def choose(self, flight: Flight, replicas: tuple[Replica, ...]) -> Replica | None:
        """One that the flight has not failed at; None when none is left."""
        model = flight.model
        turn = self._turns[model] = self._turns.get(model, -1) + 1
        view = policy.View(replicas, self.in_flight, self._rng, turn, flight.session)
        return policy.choose(self._policies.get(model, self._policy), view, flight.tried)

    def take_off(self, replica: Replica) -> None:
        self.in_flight[replica.worker_id] = self.in_flight.get(replica.worker_id, 0) + 1

    def land(self, replica: Replica) -> None:
        left = self.in_flight[replica.worker_id] - 1
        if left:
            self.in_flight[replica.worker_id] = left
        else:
            del self.in_flight[replica.worker_id]
