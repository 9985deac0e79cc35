"""Why a request went where it went: for the header of an answer, and for the admin API."""

import json
import time
from collections import deque
from typing import Any, Final

from relay.routing.policy import View, cost_s, expected_wait_s
from relay.routing.prefix import Share

MAX_CANDIDATES: Final = 16
"""That are told of one decision: an answer's header has to stay short, and a list in memory too."""

Candidates = tuple[tuple[str, int, int, float, float], ...]
"""(worker id, its requests in flight, bytes of the prompt that it has probably cached, expected wait and cost in s)"""


def candidates_of(view: View) -> Candidates:
    return tuple(
        (
            replica.worker_id,
            view.load(replica),
            view.share.cached.get(replica.worker_id, 0),
            expected_wait_s(view, replica),
            cost_s(view, replica),
        )
        for replica in view.replicas[:MAX_CANDIDATES]
    )


class Decision:
    """One choice of a replica."""

    __slots__ = ("at", "attempt", "candidates", "policy", "request_id", "share", "worker_id")

    def __init__(
        self, request_id: bytes, worker_id: str, policy: str, attempt: int, share: Share, candidates: Candidates
    ) -> None:
        self.at = time.time()
        self.request_id = request_id
        self.worker_id = worker_id
        self.policy = policy
        self.attempt = attempt
        self.share = share
        self.candidates = candidates

    def view(self) -> dict[str, Any]:
        return {
            "at": round(self.at, 3),
            "request_id": self.request_id.decode("latin-1"),
            "worker_id": self.worker_id,
            "policy": self.policy,
            "attempt": self.attempt,
            "prompt_bytes": self.share.total,
            "reason": self.reason(),
            "candidates": [
                {
                    "worker_id": worker_id,
                    "in_flight": load,
                    "cached_bytes": cached,
                    "expected_wait_s": round(wait_s, 4),
                    "cost_s": round(total_s, 4),
                }
                for worker_id, load, cached, wait_s, total_s in self.candidates
            ],
        }

    def reason(self) -> str:
        """In words."""
        if len(self.candidates) == 1:
            return "the only one that could be asked"
        cached = self.share.cached.get(self.worker_id, 0)
        return {
            "cache_aware": f"least to wait, for it and for others, with {cached} of {self.share.total} bytes cached",
            "least_load": "fewest requests in flight",
            "power_of_two": "the less loaded one of two at random",
            "round_robin": "its turn",
            "random": "chance",
            "session": "the session's own, or the least loaded without a session",
        }[self.policy]

    def header(self) -> bytes:
        """One line of JSON."""
        return json.dumps(self.view(), separators=(",", ":")).encode()


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

    def last(self, model: str) -> list[dict[str, Any]]:
        """The newest first."""
        return [decision.view() for decision in reversed(self._by_model.get(model, ()))]
