"""Lines: which requests wait behind one another. Those that the same replicas can serve, for nobody else's place is
any of their business.
"""

from collections.abc import Sequence
from typing import Final

from monitor.registry import Replica, WorkerRegistry
from relay.routes import GENERATE, ROUTES, TASKS

KINDS: Final = {
    route: "" if TASKS.get(route) == GENERATE else f" ({', '.join(TASKS.get(route, ('any',)))})" for route in ROUTES
}
"""What a route adds to a model's name, which has no spaces, to make the name of the line."""
TASKS_OF_KIND: Final = {kind: TASKS.get(route) for route, kind in KINDS.items()}


class Lines:
    """A line is the name of a model and, but for generation, the engine's tasks that are asked for:
    ``qwen``, ``qwen (embed)``. All names of a model lead to one.
    """

    def __init__(self, registry: WorkerRegistry) -> None:
        self._registry = registry

    def line_of(self, model: str, route: str) -> str:
        """For requests for ``model``, by any of its names."""
        return self._registry.own_name(model) + KINDS[route]

    def replicas(self, line: str) -> tuple[Replica, ...] | None:
        """The ready ones that can serve it; None: nobody knows the model."""
        model, tasks = parts_of(line)
        replicas = self._registry.route(model)
        if not replicas or tasks is None:
            return replicas
        return tuple(replica for replica in replicas if replica.can(tasks))

    def names(self, line: str) -> Sequence[str]:
        """Of its model: that by which the line is called, then the others."""
        return self._registry.names_of(self.model(line))

    @staticmethod
    def model(line: str) -> str:
        return parts_of(line)[0]


def parts_of(line: str) -> tuple[str, tuple[str, ...] | None]:
    """Model and tasks of a line; tasks None: any replica will do."""
    model, space, kind = line.partition(" ")
    return model, TASKS_OF_KIND[space + kind]
