"""Why a request went where it went: for the header of an answer, and for the admin API."""

import json
import time
from collections import deque
from typing import Any, Final

from relay.routing.policy import View, cost_s, expected_wait_s

MAX_CANDIDATES: Final = 16
"""That are told of one decision: an answer's header has to stay short, and a list in memory too."""


class Decision:
    """One choice of a replica. It keeps the numbers that a look at it needs, but works nothing out before: of the
    thousands that are made, few are looked at.
    """

    __slots__ = ("_then", "_view", "at", "attempt", "policy", "request_id", "worker_id")

    def __init__(self, request_id: bytes, worker_id: str, policy: str, attempt: int, view: View) -> None:
        """``view``: what it was made from, before the request counts in it."""
        self.at = time.time()
        self.request_id = request_id
        self.worker_id = worker_id
        self.policy = policy
        self.attempt = attempt
        self._view = view._replace(session=b"") if view.session else view  # which may be long, and is not shown
        # What of it goes on changing, in one tuple: each object more is felt.
        ids = [replica.worker_id for replica in view.replicas[:MAX_CANDIDATES]]
        self._then: tuple[Any, ...] = (
            *map(view.in_flight.get, ids),
            *map(view.pending.get, ids),
            *map(view.speeds.get, ids),
        )

    def view_then(self) -> View:
        """What it was made from, as that was then; of its candidates."""
        replicas = self._view.replicas[:MAX_CANDIDATES]
        count, then = len(replicas), self._then
        in_flight, pending, speeds = (
            {
                replica.worker_id: value
                for replica, value in zip(replicas, then[start : start + count], strict=True)
                if value is not None
            }
            for start in range(0, 3 * count, count)
        )
        return self._view._replace(replicas=replicas, in_flight=in_flight, pending=pending, speeds=speeds)

    def view(self) -> dict[str, Any]:
        measures = self.policy == "cache_aware"
        return {
            "at": round(self.at, 3),
            "request_id": self.request_id.decode("latin-1"),
            "worker_id": self.worker_id,
            "policy": self.policy,
            "attempt": self.attempt,
            **({"prompt_bytes": self._view.share.total} if measures else {}),
            "reason": self.reason(),
            "candidates": candidates_of(self.view_then(), measures=measures),
        }

    def reason(self) -> str:
        """In words."""
        if len(self._view.replicas) == 1:
            return "the only one that could be asked"
        share = self._view.share
        cached = share.cached.get(self.worker_id, 0)
        return {
            "cache_aware": f"least to wait, for it and for others, with {cached} of {share.total} bytes cached",
            "least_load": "fewest requests in flight",
            "power_of_two": "the less loaded one of two at random",
            "round_robin": "its turn",
            "random": "chance",
            "session": "the session's own, or the least loaded without a session",
        }[self.policy]

    def header(self) -> bytes:
        """One line of JSON."""
        return json.dumps(self.view(), separators=(",", ":")).encode()


def candidates_of(view: View, *, measures: bool) -> list[dict[str, Any]]:
    """``measures``: the policy looks at more than what is in flight."""
    told: list[dict[str, Any]] = [
        {"worker_id": replica.worker_id, "in_flight": view.load(replica)} for replica in view.replicas
    ]
    if measures:
        for each, replica in zip(told, view.replicas, strict=True):
            each["cached_bytes"] = view.share.cached.get(replica.worker_id, 0)
            each["expected_wait_s"] = round(expected_wait_s(view, replica), 4)
            each["cost_s"] = round(cost_s(view, replica), 4)
    return told


class DecisionLog:
    """The last ones of each model; each costs as much as a short list."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._by_model: dict[str, deque[Decision]] = {}

    def add(self, model: str, decision: Decision) -> None:
        log = self._by_model.get(model)
        if log is None:
            log = self._by_model[model] = deque(maxlen=self._keep)
        log.append(decision)

    def forget(self, model: str) -> None:
        self._by_model.pop(model, None)

    def last(self, model: str) -> list[dict[str, Any]]:
        """The newest first."""
        return [decision.view() for decision in reversed(self._by_model.get(model, ()))]
