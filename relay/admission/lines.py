"""Lines: which requests wait behind one another. Those that the same replicas can serve, for nobody else's place is
any of their business.
"""

from collections.abc import Collection, Sequence
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
        self._replicas: dict[str, tuple[Replica, ...]] = {}
        """By line, of one version of the registry: asked for at every turn of a queue."""
        self._version = registry.version

    def line_of(self, model: str, route: str) -> str:
        """For requests for ``model``, by any of its names."""
        return self._registry.own_name(model) + KINDS[route]

    def replicas(self, line: str) -> tuple[Replica, ...] | None:
        """The ready ones that can serve it; None: nobody knows the model."""
        if self._version != self._registry.version:
            self._version = self._registry.version
            self._replicas = {}
        found = self._replicas.get(line)
        if found is None:
            model, tasks = parts_of(line)
            replicas = self._registry.route(model)
            if not replicas or tasks is None:
                return replicas
            found = self._replicas[line] = tuple(replica for replica in replicas if replica.can(tasks))
        return found

    @staticmethod
    def of(name: str) -> Sequence[str]:
        """All that there may be of a model with this own name."""
        return [name + kind for kind in TASKS_OF_KIND]

    def among(self, queued: Collection[str], names: Collection[str]) -> Sequence[str]:
        """Those of the lines that are of a model with one of these names. O(the fewer of them)."""
        if len(names) * len(TASKS_OF_KIND) < len(queued):
            return [line for name in names for line in self.of(name) if line in queued]
        return [line for line in queued if self.model(line) in names]

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
