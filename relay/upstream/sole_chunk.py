"""A read that is one whole chunk of the chunked coding (RFC 9112, 7.1): so an engine sends a token, one in a write.

Its head follows from its length, so that it is compared, not parsed; and to a client whose answer is chunked, too, it
is written as it came.
"""

from typing import Final

MAX_READ_BYTES: Final = 4096
"""Longer ones are left to the parser: several tokens' worth, where the parser's time is small change."""
NO_HEAD: Final = bytes(MAX_READ_BYTES)
"""Longer than any read that it is compared with."""


def head_of(read_bytes: int) -> bytes:
    """The head, as engines write it, of a chunk that is so long with head and end, data between."""
    for digits in range(1, 4):
        head = b"%x\r\n" % max(0, read_bytes - digits - 4)
        if head != b"0\r\n" and len(head) + 2 + int(head, 16) == read_bytes:
            return head
    return NO_HEAD


HEADS: Final = tuple(map(head_of, range(MAX_READ_BYTES)))
