"""What of a prompt each replica has probably cached: pure, no clock.

Engines keep the attention's keys and values of prompts that they have read, by blocks of tokens, and skip a new
prompt's leading blocks that they know (prefix caching). The gateway has no tokenizer: it takes blocks of the request's
bytes, which are the same where the tokens are.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import or_
from types import MappingProxyType
from typing import Final, NamedTuple

BLOCK_BYTES: Final = 128
"""About as much text as there is in two of an engine's blocks of 16 tokens."""
MAX_BLOCKS_OF_PROMPT: Final = 1024
"""Of a longer prompt only so many blocks are looked at: 128 KiB."""
GENERATION: Final = 65536
"""So many blocks that were sent last are known for certain, of one model; at most twice as many are: 10 to 20 MB."""
MAX_SPENT: Final = 64
"""So many workers that have gone leave their bits in the blocks: at most 12 bytes a block."""

TIME_BITS: Final = 48
TIME: Final = 2**TIME_BITS - 1

Chain = Sequence[int]
"""A prompt's leading whole blocks: for each a hash of it and of all before it."""


def chain_of(content: bytes) -> Chain:
    """Python's keyed hash of bytes: nobody can choose prompts that collide."""
    chain = []
    link = 0
    for start in range(0, min(len(content), MAX_BLOCKS_OF_PROMPT * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        link = hash((link, content[start : start + BLOCK_BYTES]))
        chain.append(link)
    return chain


class Share(NamedTuple):
    """How much of a prompt of ``total`` bytes is cached where, in bytes by worker id."""

    total: int = 0
    cached: Mapping[str, int] = MappingProxyType({})


class PrefixTree:
    """One model's known blocks: which workers have each, and when it was last sent.

    There are two generations of blocks. When the young one is full it becomes the old one, and what was old and has not
    been sent again since is forgotten at once: a cost that no single prompt has (to take the oldest entries out of one
    dict costs a walk over all that went before them).

    A worker is a bit. Time is counted in prompts: a block is younger than those that go on from it. An engine that
    turns out to have dropped a block has dropped its older ones too (they go in the order of their last use): it has a
    horizon, and what was sent before that counts no more. The bit of a worker that has gone stays in the blocks, and is
    nobody's, until many are: when hundreds go at once, no block is looked at for it.
    """

    def __init__(self, generation: int = GENERATION) -> None:
        self._generation = generation
        self._young: dict[int, int] = {}  # by a block's link: bits above the time
        self._old: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._ids: dict[int, str] = {}  # by bit
        self._all = 0  # bits
        self._spent = 0  # bits of those that have gone
        self._horizons: dict[str, int] = {}
        self._stale: tuple[list[int], list[int]] | None = ([], [])  # see ``_stale_now``; None: it has changed
        self._now = 0

    def __len__(self) -> int:
        """The entries that it holds: of a block in both generations two."""
        return len(self._young) + len(self._old)

    def share(self, chain: Chain, total: int) -> Share:
        """Of a prompt of ``total`` bytes with this chain."""
        cached: dict[str, int] = {}
        alive = self._all
        horizons, dropped = self._stale_now()
        newest = horizons[-1] if horizons else 0
        for depth, link in enumerate(chain if alive else ()):
            block = self._block(link)
            have = block >> TIME_BITS & alive
            if have and (time := block & TIME) < newest:
                have &= ~dropped[bisect_right(horizons, time)]
            if have != alive:
                self._note(cached, alive & ~have, depth)
                alive = have
                if not alive:
                    break
        self._note(cached, alive, len(chain))
        return Share(total, cached)

    def _block(self, link: int) -> int:
        return self._young.get(link) or self._old.get(link, 0)

    def _stale_now(self) -> tuple[list[int], list[int]]:
        """All horizons in order, and for each the bits of the workers that have this one or a later one: what is older
        than it, they have dropped. Put in order once, not walked through for every block.
        """
        if self._stale is None:
            ordered = sorted((horizon, self._bits[worker_id]) for worker_id, horizon in self._horizons.items())
            bits = list(accumulate((bit for _, bit in reversed(ordered)), or_))
            self._stale = [horizon for horizon, _ in ordered], bits[::-1]
        return self._stale

    def _note(self, cached: dict[str, int], workers: int, depth: int) -> None:
        while depth and workers:
            bit = workers & -workers
            cached[self._ids[bit]] = depth * BLOCK_BYTES
            workers ^= bit

    def time_of(self, chain: Chain, cached_bytes: int) -> int:
        """When the last of the cached blocks was last sent; for ``correct``."""
        return self._block(chain[cached_bytes // BLOCK_BYTES - 1]) & TIME if cached_bytes else 0

    def add(self, chain: Chain, worker_id: str) -> None:
        """The worker gets this prompt: it will have all of its blocks."""
        bit = self._bits.get(worker_id) or self._new_bit(worker_id)
        young, old = self._young, self._old
        self._now += 1
        for link in chain:
            block = young.get(link) or old.get(link, 0)
            young[link] = (block >> TIME_BITS | bit) << TIME_BITS | self._now
        if len(young) >= self._generation:  # after the whole prompt: what follows on a block goes no later than it
            self._old, self._young = young, {}

    def correct(self, worker_id: str, time: int) -> None:
        """The worker did not have a block that was last sent at ``time``, nor then what is older."""
        if worker_id in self._bits and time >= self._horizons.get(worker_id, 0):
            self._horizons[worker_id] = time + 1
            self._stale = None

    def forget(self, worker_id: str) -> None:
        """The worker's cache is empty: its process is another one, or gone."""
        bit = self._bits.pop(worker_id, 0)
        if bit:
            del self._ids[bit]
            self._all ^= bit
            self._spent |= bit
            if self._horizons.pop(worker_id, None) is not None:
                self._stale = None
        if not self._all:
            self._young, self._old, self._spent = {}, {}, 0

    def _new_bit(self, worker_id: str) -> int:
        if self._spent.bit_count() >= MAX_SPENT:
            self._free_spent()
        used = self._all | self._spent
        bit = ~used & (used + 1)  # the lowest that is free
        self._bits[worker_id] = bit
        self._ids[bit] = worker_id
        self._all |= bit
        return bit

    def _free_spent(self) -> None:
        """Take the bits of all that have gone out of the blocks: they are free for others then. A walk over all blocks,
        once for so many workers.
        """
        kept = self._all << TIME_BITS | TIME
        self._young, self._old = (
            {link: left for link, block in blocks.items() if (left := block & kept) > TIME}
            for blocks in (self._young, self._old)
        )
        self._spent = 0
