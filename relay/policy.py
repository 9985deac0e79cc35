"""Which replica gets a request: pure functions over a snapshot."""

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from monitor.registry import Replica

BOUND: Final = 1.25
"""A session leaves its replica when that has more than this many times its fair share of the requests in flight."""


@dataclass(frozen=True, slots=True)
class View:
    """What a choice is made from. ``in_flight`` counts by worker id; ``turn`` grows with every choice for the model."""

    replicas: Sequence[Replica]
    in_flight: Mapping[str, int]
    rng: random.Random
    turn: int = 0
    session: bytes = b""

    def load(self, replica: Replica) -> int:
        return self.in_flight.get(replica.worker_id, 0)


Policy = Callable[[View], Replica]
"""One of ``View.replicas``, of which there is at least one."""


def choose(policy: Policy, view: View, tried: Collection[str]) -> Replica | None:
    """``policy``'s choice among the replicas that this request has not failed at; None when none is left."""
    left = [replica for replica in view.replicas if replica.worker_id not in tried] if tried else view.replicas
    if not left:
        return None
    if len(left) == 1:
        return left[0]
    return policy(View(left, view.in_flight, view.rng, view.turn, view.session) if tried else view)


def least_load(view: View) -> Replica:
    """The replica with the fewest requests in flight from this gateway, ties broken at random."""
    best: list[Replica] = []
    fewest = -1
    for replica in view.replicas:
        load = view.load(replica)
        if not best or load < fewest:
            best, fewest = [replica], load
        elif load == fewest:
            best.append(replica)
    return pick(best, view.rng)


def power_of_two(view: View) -> Replica:
    """The less loaded one of two at random: as good as looking at all, where there are many (Mitzenmacher, 2001)."""
    first = int(view.rng.random() * len(view.replicas))
    second = int(view.rng.random() * (len(view.replicas) - 1))
    second += second >= first
    one, other = view.replicas[first], view.replicas[second]
    return other if view.load(other) < view.load(one) else one


def round_robin(view: View) -> Replica:
    return view.replicas[view.turn % len(view.replicas)]


def at_random(view: View) -> Replica:
    return pick(view.replicas, view.rng)


def session(view: View) -> Replica:
    """The same replica for the same session, as long as it has not far more to do than the others.

    Rendezvous hashing: every replica has a rank for every session, so that one that comes or goes moves only its own.
    The bound on its load is that of consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018).
    A request without a session goes where the load is least.
    """
    if not view.session:
        return least_load(view)
    limit = math.ceil(BOUND * (sum(map(view.load, view.replicas)) + 1) / len(view.replicas))
    ranked = sorted(view.replicas, key=lambda replica: rank(replica, view.session), reverse=True)
    return next((replica for replica in ranked if view.load(replica) < limit), ranked[0])


def rank(replica: Replica, key: bytes) -> bytes:
    return blake2b(key, digest_size=8, key=replica.worker_id.encode()[:64]).digest()


def pick(replicas: Sequence[Replica], rng: random.Random) -> Replica:
    return replicas[int(rng.random() * len(replicas))] if len(replicas) > 1 else replicas[0]


POLICIES: Final[Mapping[str, Policy]] = {
    "least_load": least_load,
    "power_of_two": power_of_two,
    "round_robin": round_robin,
    "random": at_random,
    "session": session,
}
