"""How fast each replica is, learned from what it reports: pure, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

NEW_SHARE: Final = 0.3
"""Of an average that moves: what the newest measurement counts."""


MAX_SUM: Final = 1e12
"""Requests, or seconds of all of them, that a worker can have had."""


@dataclass(frozen=True, slots=True)
class Speed:
    """``prefill_s_per_byte``: seconds to read a byte of prompt that is not cached; ``service_s``: of one request, from
    its start in the engine to its end."""

    prefill_s_per_byte: float
    service_s: float


UNKNOWN_SPEED: Final = Speed(prefill_s_per_byte=1 / 8000, service_s=1.0)
"""Until a replica has told: 2,000 tokens of four bytes a second."""


@dataclass(slots=True)
class Told:
    """One worker's sums: its own at the last beat, and what was sent to it since."""

    timed: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    bytes_sent: int = 0


class Speeds:
    """``by_worker``: for the policies."""

    def __init__(self) -> None:
        self.by_worker: dict[str, Speed] = {}
        self._told: dict[str, Told] = {}

    def sent(self, worker_id: str, uncached_bytes: int) -> None:
        """A request was sent there, with so much to prefill."""
        told = self._told.get(worker_id)
        if told is not None:
            told.bytes_sent += uncached_bytes

    def take_report(self, worker_id: str, load: Mapping[str, Any]) -> None:
        """A beat's ``load``: sums since the worker's start of ``timed`` requests, their ``prefill_s`` and ``decode_s``.

        A worker that reports none of them, or whose sums went down because it is a new one, teaches nothing.
        """
        now = Told(number(load.get("timed")), number(load.get("prefill_s")), number(load.get("decode_s")))
        before = self._told.get(worker_id)
        if before is None:
            self._told[worker_id] = now
            return
        answered = now.timed - before.timed
        if answered == 0:
            return  # what was sent is answered in a later beat
        self._told[worker_id] = now
        if answered > 0:
            self.by_worker[worker_id] = self._learn(worker_id, now, before, answered)

    def _learn(self, worker_id: str, now: Told, before: Told, answered: float) -> Speed:
        old = self.by_worker.get(worker_id, UNKNOWN_SPEED)
        prefill_s, decode_s = now.prefill_s - before.prefill_s, now.decode_s - before.decode_s
        per_byte = prefill_s / before.bytes_sent if before.bytes_sent else old.prefill_s_per_byte
        return Speed(
            mix(old.prefill_s_per_byte, min(max(per_byte, old.prefill_s_per_byte / 10), old.prefill_s_per_byte * 10)),
            mix(old.service_s, (prefill_s + decode_s) / answered),
        )

    def forget(self, worker_id: str) -> None:
        self.by_worker.pop(worker_id, None)
        self._told.pop(worker_id, None)


def mix(old: float, new: float) -> float:
    return old + NEW_SHARE * (max(new, 0.0) - old)


def number(value: Any) -> float:
    """A sum as a worker reports it; 0 for what cannot be one, such as NaN, which would spoil every mean after it."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= MAX_SUM else 0.0
