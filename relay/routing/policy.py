"""Which replica gets a request: pure functions over a snapshot."""

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from monitor.registry import Replica
from relay.routing.prefix import Share
from relay.routing.speeds import UNKNOWN_SPEED, Speed
from utils.common import is_loopback

BOUND: Final = 1.25
"""A session leaves its replica when that has more than this many times its fair share of the requests in flight."""
SLACK: Final = 4
"""A cached prompt is worth no replica that has this many requests more than twice what the least loaded one has."""
SHARED_BY: Final = 8
"""Requests in flight that make one more wait for as long as one of them takes: engines batch, but not without end."""
OTHERS: Final = 1.0
"""What is to be prefilled keeps those back that come behind it, too: each second of it counts for so many more."""
GOLDEN: Final = 0.6180339887498949
"""The multiples of the golden ratio, modulo 1, are spread most evenly (Knuth, TAOCP 3, 6.4)."""
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class View(NamedTuple):
    """What a choice is made from; all mappings are by worker id, and what they lack is 0, or 1 for ``weights``.

    ``in_flight``: requests; ``turn`` grows with every choice for the model; ``sent``: requests so far, of all time;
    ``share``: how much of the prompt is cached where; ``pending``: bytes that a replica has still to prefill.
    """

    replicas: Sequence[Replica]
    in_flight: Mapping[str, int]
    rng: random.Random
    turn: int = 0
    session: bytes = b""
    weights: Mapping[str, float] = NOTHING
    share: Share = Share()
    pending: Mapping[str, int] = NOTHING
    speeds: Mapping[str, Speed] = NOTHING
    sent: Mapping[str, int] = NOTHING
    node: str = ""  # the gateway's host

    def load(self, replica: Replica) -> int:
        return self.in_flight.get(replica.worker_id, 0)

    def weight(self, replica: Replica) -> float:
        return self.weights.get(replica.worker_id, 1.0)


Policy = Callable[[View], Replica]
"""One of ``View.replicas``, of which there are at least two."""


def untried(replicas: Sequence[Replica], tried: Collection[str]) -> Sequence[Replica]:
    """Those that a request has not failed at."""
    return [replica for replica in replicas if replica.worker_id not in tried] if tried else replicas


def choose(policy: Policy, view: View, *, is_local_first: bool = False) -> Replica | None:
    """``policy``'s choice; None where there are no replicas."""
    left = near(view.replicas, view) if is_local_first else view.replicas
    if not left:
        return None
    if len(left) == 1:
        return left[0]
    return policy(view if left is view.replicas else view._replace(replicas=left))


def near(replicas: Sequence[Replica], view: View) -> Sequence[Replica]:
    """Those on the gateway's own host, as long as one of them has not far more to do than its share."""
    local = [replica for replica in replicas if is_near(replica, view.node)]
    limit = fair_limit(view, replicas)
    return local if any(view.load(replica) < limit for replica in local) else replicas


def is_near(replica: Replica, node: str) -> bool:
    return bool(node) and (replica.node == node or is_loopback(replica.host))


def fair_limit(view: View, replicas: Sequence[Replica]) -> int:
    """In flight at one of them, with one more than there are now (Mirrokni, Thorup, Zadimoghaddam, 2018)."""
    return math.ceil(BOUND * (sum(map(view.load, replicas)) + 1) / max(1, len(replicas)))


# -- where the load is least ---------------------------------------------------------------------------------------


def least_load(view: View) -> Replica:
    """The replica with the fewest requests in flight from this gateway for its weight, ties broken at random."""
    best: list[Replica] = []
    fewest = math.inf
    for replica in view.replicas:
        load = view.load(replica) / view.weight(replica) if view.weights else view.load(replica)
        if load < fewest:
            best, fewest = [replica], load
        elif load == fewest:
            best.append(replica)
    return best[int(view.rng.random() * len(best))] if len(best) > 1 else best[0]


def power_of_two(view: View) -> Replica:
    """The less loaded one of two at random: as good as looking at all, where there are many (Mitzenmacher, 2001)."""
    first = int(view.rng.random() * len(view.replicas))
    second = int(view.rng.random() * (len(view.replicas) - 1))
    second += second >= first
    one, other = view.replicas[first], view.replicas[second]
    return other if view.load(other) / view.weight(other) < view.load(one) / view.weight(one) else one


# -- blindly -------------------------------------------------------------------------------------------------------


def round_robin(view: View) -> Replica:
    """One after the other; with weights, each so often."""
    if not view.weights:
        return view.replicas[view.turn % len(view.replicas)]
    return at_point(view, view.turn * GOLDEN % 1)


def at_random(view: View) -> Replica:
    return at_point(view, view.rng.random())


def at_point(view: View, point: float) -> Replica:
    """The replicas side by side, each as wide as its weight: the one at ``point``, from 0 to below 1 of all."""
    if not view.weights:
        return view.replicas[int(point * len(view.replicas))]
    left = point * sum(map(view.weight, view.replicas))
    for replica in view.replicas:
        left -= view.weight(replica)
        if left < 0:
            return replica
    return view.replicas[-1]


# -- where the prompt is known -------------------------------------------------------------------------------------


def session(view: View) -> Replica:
    """The same replica for the same session, as long as it has not far more to do than the others.

    Rendezvous hashing: every replica has a rank for every session, so that one that comes or goes moves only its own.
    A request without a session goes where the load is least.
    """
    if not view.session:
        return least_load(view)
    limit = fair_limit(view, view.replicas)
    ranked = sorted(view.replicas, key=lambda replica: rank(view, replica), reverse=True)
    return next((replica for replica in ranked if view.load(replica) < limit), ranked[0])


def rank(view: View, replica: Replica) -> float:
    """Weighted rendezvous hashing (Schindelhauer, Schomaker, 2005): -weight / ln(a hash from 0 to 1)."""
    digest = blake2b(view.session, digest_size=7, key=replica.worker_id.encode()[:64]).digest()
    return -view.weight(replica) / math.log((int.from_bytes(digest) + 1) / (2**56 + 1))


def cache_aware(view: View) -> Replica:
    """The replica where the first token is expected soonest, and others are kept back least: it has least to prefill,
    and least to do before.

    Among those that do not have far more to do than the least loaded one. Of equals the one that got fewest so far.
    """
    limit = 2 * min(map(view.load, view.replicas)) + SLACK
    best, lowest, fewest = view.replicas[0], math.inf, 0
    for replica, load, _, cost in waits(view, view.replicas):
        if load <= limit and cost <= lowest:
            sent = view.sent.get(replica.worker_id, 0)
            if cost < lowest or sent < fewest:
                best, lowest, fewest = replica, cost, sent
    return best


def waits(view: View, replicas: Sequence[Replica]) -> list[tuple[Replica, int, float, float]]:
    """Of each: what is in flight there, ``expected_wait_s`` and ``cost_s``.

    All in one loop, for it is worked out of every replica for every request.
    """
    in_flight, pending, speeds, weights = view.in_flight.get, view.pending.get, view.speeds.get, view.weights
    total, cached = view.share.total, view.share.cached.get
    found = []
    for replica in replicas:
        worker_id = replica.worker_id
        speed = speeds(worker_id, UNKNOWN_SPEED)
        load = in_flight(worker_id, 0)
        weight = weights.get(worker_id, 1.0) if weights else 1.0
        prefill_s = (total - cached(worker_id, 0)) * speed.prefill_s_per_byte / weight
        before_s = pending(worker_id, 0) * speed.prefill_s_per_byte + load * speed.service_s / SHARED_BY
        wait_s = prefill_s + before_s / weight
        found.append((replica, load, wait_s, wait_s + OTHERS * prefill_s))
    return found


def expected_wait_s(view: View, replica: Replica) -> float:
    """Seconds to the first token: the prefill of what is not cached and of what was sent before, and a share of the
    time that those in flight take.
    """
    return waits(view, [replica])[0][2]


def cost_s(view: View, replica: Replica) -> float:
    """The expected wait, and what others wait for it. Without this, two that share a prompt and come at the same time
    would go to different replicas: it takes as long to wait for the first one's prefill as to do it once more.
    """
    return waits(view, [replica])[0][3]


POLICIES: Final[Mapping[str, Policy]] = {
    "cache_aware": cache_aware,
    "least_load": least_load,
    "power_of_two": power_of_two,
    "round_robin": round_robin,
    "random": at_random,
    "session": session,
}
