"""The settings of admission: how many requests run, how many wait, and what a client's key may ask for."""

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from config.fields import Frozen, Name, Seconds

PRIORITIES: Final = {"high": 2, "normal": 5, "low": 8}
"""The names of the usual priority classes. A number from 0 (most urgent) to 9 says any other."""
MOST_URGENT: Final = 0
LEAST_URGENT: Final = 9
NORMAL: Final = PRIORITIES["normal"]


def priority_number(value: Any) -> int:
    """A priority class as a number, from its name or the number itself. Raises ValueError that says what there is."""
    if isinstance(value, str):
        word = value.strip().lower()
        value = PRIORITIES.get(word, int(word) if len(word) == 1 and word in "0123456789" else None)
    if isinstance(value, bool) or not isinstance(value, int) or not MOST_URGENT <= value <= LEAST_URGENT:
        raise ValueError(
            f"a priority is {', '.join(PRIORITIES)}, or a number from {MOST_URGENT} (most urgent) to {LEAST_URGENT}"
        )
    return value


Priority = Annotated[int, BeforeValidator(priority_number)]
Weight = Annotated[float, Field(ge=0.001, le=1000)]
Capacity = Annotated[int, Field(ge=1)]
QueueLength = Annotated[int, Field(ge=0, le=100_000)]
PerMinute = Annotated[int, Field(ge=1, le=10**12)]


class KeyLimits(Frozen):
    """What a client's key may use; None: without limit."""

    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None


class ModelAdmission(Frozen):
    """Where one model differs from the rest; None: as the rest."""

    capacity: Capacity | None = None
    max_queue: QueueLength | None = None
    default_timeout_s: Seconds | None = None


class AdmissionSettings(Frozen):
    """How many requests run at a replica, and how many wait for how long. All times are in seconds."""

    capacity: Capacity | None = None  # per replica; None: what its worker says in the heartbeat
    max_queue: QueueLength = 1000  # per model; 0: what finds no free replica is refused at once
    default_timeout_s: Seconds = 300
    queue_notice_s: Seconds = 5
    models: dict[Name, ModelAdmission] = {}

    def max_queue_of(self, *names: str) -> int:
        """Of the model with these names, of which the first counts for which it is set."""
        own = [model.max_queue for model in self._of(names) if model.max_queue is not None]
        return own[0] if own else self.max_queue

    def timeout_of(self, *names: str) -> float:
        """In seconds; ``names`` as above."""
        own = [model.default_timeout_s for model in self._of(names) if model.default_timeout_s is not None]
        return own[0] if own else self.default_timeout_s

    def _of(self, names: tuple[str, ...]) -> list[ModelAdmission]:
        return [self.models[name] for name in names if name in self.models]
