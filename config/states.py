"""The states of a worker: the words that worker, registry, fleet and admin API share."""

from enum import StrEnum


class WorkerState(StrEnum):
    """One word for what a worker can do now.

    ``starting``, ``unhealthy`` and ``stopped`` are said by the gateway, the others by the worker itself.
    """

    STARTING = "starting"  # spawned, has not beaten yet
    LOADING = "loading"  # its door is open, its engine is not ready
    READY = "ready"  # the only state that is routed to
    DRAINING = "draining"  # finishes what it has, takes nothing new
    SLEEPING = "sleeping"  # its engine has given its memory back
    STOPPING = "stopping"  # the last beat
    UNHEALTHY = "unhealthy"  # beats missed, connection refused, or no token progress
    FAILED = "failed"  # its process or its engine died
    STOPPED = "stopped"  # gone, and meant to be

    @property
    def status(self) -> str:
        """The word of the admin API, which says ``healthy`` where the worker says ``ready``."""
        return "healthy" if self is WorkerState.READY else self.value


GONE = frozenset({WorkerState.STOPPING, WorkerState.STOPPED, WorkerState.FAILED})
"""States after which no more beats are to be expected."""
