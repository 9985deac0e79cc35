"""What of a prompt each replica has probably cached: pure, no clock.

Engines keep the attention's keys and values of prompts that they have read, by blocks of tokens, and skip a new
prompt's leading blocks that they know (prefix caching). The gateway has no tokenizer: it takes blocks of the request's
bytes, which are the same where the tokens are.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

BLOCK_BYTES: Final = 128
"""About as much text as there is in two of an engine's blocks of 16 tokens."""
MAX_BLOCKS_OF_PROMPT: Final = 1024
"""Of a longer prompt only so many blocks are looked at: 128 KiB."""
GENERATION: Final = 65536
"""So many blocks that were sent last are known for certain, of one model; at most twice as many are: 10 to 20 MB."""

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

    def missing(self, worker_id: str) -> int:
        """Bytes that it would have to prefill."""
        return self.total - self.cached.get(worker_id, 0)


class PrefixTree:
    """One model's known blocks: which workers have each, and when it was last sent.

    There are two generations of blocks. When the young one is full it becomes the old one, and what was old and has not
    been sent again since is forgotten at once: a cost that no single prompt has (to take the oldest entries out of one
    dict costs a walk over all that went before them).

    A worker is a bit. Time is counted in prompts: a block is younger than those that go on from it. An engine that
    turns out to have dropped a block has dropped its older ones too (they go in the order of their last use): it has a
    horizon, and what was sent before that counts no more.
    """

    def __init__(self, generation: int = GENERATION) -> None:
        self._generation = generation
        self._young: dict[int, int] = {}  # by a block's link: bits above the time
        self._old: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._horizons: dict[str, int] = {}
        self._now = 0

    def __len__(self) -> int:
        """The entries that it holds: of a block in both generations two."""
        return len(self._young) + len(self._old)

    def share(self, chain: Chain, total: int) -> Share:
        """Of a prompt of ``total`` bytes with this chain."""
        cached: dict[str, int] = {}
        alive = sum(self._bits.values())  # of single bits: all of them
        for depth, link in enumerate(chain if alive else ()):
            block = self._block(link)
            have = (self._holders(block) if self._horizons else block >> TIME_BITS) & alive
            if have != alive:
                self._note(cached, alive & ~have, depth)
                alive = have
                if not alive:
                    break
        self._note(cached, alive, len(chain))
        return Share(total, cached)

    def _block(self, link: int) -> int:
        return self._young.get(link) or self._old.get(link, 0)

    def _holders(self, block: int) -> int:
        holders = block >> TIME_BITS
        for worker_id, horizon in self._horizons.items():
            if block & TIME < horizon:
                holders &= ~self._bits[worker_id]
        return holders

    def _note(self, cached: dict[str, int], workers: int, depth: int) -> None:
        if depth and workers:
            for worker_id, bit in self._bits.items():
                if workers & bit:
                    cached[worker_id] = depth * BLOCK_BYTES

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
        if worker_id in self._bits:
            self._horizons[worker_id] = max(self._horizons.get(worker_id, 0), time + 1)

    def forget(self, worker_id: str) -> None:
        """The worker's cache is empty: its process is another one, or gone."""
        self._horizons.pop(worker_id, None)
        bit = self._bits.pop(worker_id, 0) << TIME_BITS
        if bit:
            self._young, self._old = (
                {link: left for link, block in blocks.items() if (left := block & ~bit) > TIME}
                for blocks in (self._young, self._old)
            )

    def _new_bit(self, worker_id: str) -> int:
        used = sum(self._bits.values())
        bit = ~used & (used + 1)  # the lowest that is free
        self._bits[worker_id] = bit
        return bit
