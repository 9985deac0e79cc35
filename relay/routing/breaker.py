"""Circuit breakers: a replica that fails again and again is left alone for a while. Pure; time comes in as ``now``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from monitor.registry import Replica

MAX_COOLDOWN_FACTOR: Final = 16


@dataclass(slots=True)
class Circuit:
    """``failures`` in a row. ``opened``: how often since its last success; ``is_probed``: a try is out."""

    failures: int = 0
    opened: int = 0
    half_open_at: float = 0.0  # 0: not open
    is_probed: bool = False


CLOSED: Final = Circuit()
"""Of a replica that does well; never changed."""


class Breakers:
    """One circuit for each replica that has failed lately; those that do well cost a lookup in an empty dictionary.

    ``threshold`` failures in a row open a circuit: no request for ``cooldown_s``, then one to try (half-open). If that
    fails too, for twice as long, up to ``MAX_COOLDOWN_FACTOR`` times. An answer, any but a 5xx, closes it: a replica
    that answers 5xx to one request and 200 to others never gets there.
    """

    def __init__(self, *, threshold: int, cooldown_s: float) -> None:
        self._threshold = threshold
        self._cooldown_s = cooldown_s
        self._circuits: dict[str, Circuit] = {}

    def failed(self, worker_id: str, now: float) -> bool:
        """Whether this one opens the circuit."""
        circuit = self._circuits.setdefault(worker_id, Circuit())
        circuit.failures += 1
        was_probe, circuit.is_probed = circuit.is_probed, False
        if circuit.failures < self._threshold or (circuit.half_open_at > now and not was_probe):
            return False
        factor = min(2**circuit.opened, MAX_COOLDOWN_FACTOR)
        circuit.opened += 1
        circuit.half_open_at = now + self._cooldown_s * factor
        return True

    def succeeded(self, worker_id: str) -> None:
        if self._circuits:
            self._circuits.pop(worker_id, None)

    def ended_unknown(self, worker_id: str) -> None:
        """The one that tried ended without telling anything, as when its client went away: another one may try."""
        if self._circuits and (circuit := self._circuits.get(worker_id)) is not None:
            circuit.is_probed = False

    def forget(self, worker_id: str) -> None:
        """Another process is there now."""
        self._circuits.pop(worker_id, None)

    def allowed(self, replicas: Sequence[Replica], now: float) -> Sequence[Replica]:
        """Those that may be asked; all of them where none may, for no answer is worse than a doubtful one."""
        if not self._circuits:
            return replicas
        return [replica for replica in replicas if not self.is_open(replica.worker_id, now)] or replicas

    def is_open(self, worker_id: str, now: float) -> bool:
        circuit = self._circuits.get(worker_id)
        return circuit is not None and circuit.half_open_at > 0 and (circuit.half_open_at > now or circuit.is_probed)

    def chosen(self, worker_id: str) -> bool:
        """A request goes there. Whether it is the one that tries a half-open circuit."""
        if self._circuits and (circuit := self._circuits.get(worker_id)) is not None and circuit.half_open_at:
            was_probed, circuit.is_probed = circuit.is_probed, True
            return not was_probed
        return False

    def view(self, worker_id: str, now: float) -> dict[str, Any]:
        """For the admin API; ``half_open``: one request may try it, or does."""
        circuit = self._circuits.get(worker_id, CLOSED)
        left_s = circuit.half_open_at - now
        state = "closed" if not circuit.half_open_at else "open" if left_s > 0 else "half_open"
        tried_again_in_s = round(left_s, 3) if state == "open" else None
        return {"state": state, "failures_in_a_row": circuit.failures, "tried_again_in_s": tried_again_in_s}
