"""Which replica gets a request: pure functions over a snapshot."""

import random
from collections.abc import Collection, Mapping, Sequence

from monitor.registry import Replica


def choose(
    replicas: Sequence[Replica],
    in_flight: Mapping[str, int],
    tried: Collection[str],
    rng: random.Random,
) -> Replica | None:
    """The replica with the fewest requests in flight from this gateway, ties broken at random.

    ``in_flight`` counts by worker id; ``tried`` holds the worker ids that this request has failed at.
    None when nothing is left to try.
    """
    best: list[Replica] = []
    fewest = -1
    for replica in replicas:
        if replica.worker_id in tried:
            continue
        load = in_flight.get(replica.worker_id, 0)
        if not best or load < fewest:
            best, fewest = [replica], load
        elif load == fewest:
            best.append(replica)
    if len(best) > 1:
        return best[int(rng.random() * len(best))]
    return best[0] if best else None
