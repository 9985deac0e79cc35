"""How long to wait before a worker that died is started again: pure."""

import random

FIRST_S = 1.0
LONGEST_S = 60.0
SETTLED_S = 60.0
"""A worker that has run this long has proved itself: its next death counts as the first."""


def next_delay(failures: int, rng: random.Random) -> float:
    """Seconds before the next start after ``failures`` deaths in a row: 1, 2, 4 ... 60, each within 20 %."""
    delay = min(FIRST_S * 2.0 ** min(max(failures - 1, 0), 16), LONGEST_S)
    return delay * (0.9 + 0.2 * rng.random())
