"""Which headers cross the gateway, and the bytes of a request's head towards a worker."""

import random
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from utils.common import url_host

Header = tuple[bytes, bytes]

NOT_TO_WORKERS: Final = frozenset(
    {
        # of this hop only (RFC 9110, 7.6.1)
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"host", b"content-length", b"expect",
        # secrets between client and gateway
        b"authorization", b"x-api-key", b"cookie", b"proxy-authorization",
        # bytes are passed on as they come: a worker must not compress them
        b"accept-encoding",
        # ours is sent instead
        b"x-request-id",
        # said to the gateway
        b"x-ichat-priority", b"x-ichat-timeout-s", b"x-ichat-session", b"x-ichat-explain", b"x-ichat-no-retry",
    }
)  # fmt: skip
NOT_TO_CLIENTS: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"server", b"x-request-id", b"x-ichat-worker", b"x-ichat-attempts", b"x-ichat-queue-ms", b"x-ichat-decision",
        b"set-cookie",
    }
)  # fmt: skip
NAMES_NOTHING: Final = frozenset({b"", b"keep-alive", b"close"})
CHUNKED: Final = b"transfer-encoding: chunked\r\n\r\n"
MAX_REQUEST_ID: Final = 200


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The client's own id if it has a sane one, else a new one."""
    given = headers.get(b"x-request-id", b"")
    if given and len(given) <= MAX_REQUEST_ID and given.isascii() and given.decode("latin-1").isprintable():
        return given
    return b"req-%032x" % random.getrandbits(128)


def to_worker(headers: list[Header]) -> list[Header]:
    """The client's headers without those that its ``connection`` headers, of which there may be several, name as being
    of this hop only.
    """
    named = b",".join([value for name, value in headers if name == b"connection"]).lower()
    if named in NAMES_NOTHING:
        return headers
    tokens = {token.strip() for token in named.split(b",")}
    return [header for header in headers if header[0] not in tokens]


def request_head(target: bytes, address: tuple[str, int], more: bytes, request: bytes, length: int) -> bytes:
    """Request line and headers of a POST to a worker, with the blank line. ``more``: of ``lines_to_worker``. ``length``
    below 0: the body comes in chunks.
    """
    framing = b"content-length: %d\r\n\r\n" % length if length >= 0 else CHUNKED
    return b"POST %b HTTP/1.1\r\nhost: %b\r\nx-request-id: %b\r\n%b%b" % (
        target, host_of(address), request, more, framing
    )  # fmt: skip


@lru_cache(1024)
def host_of(address: tuple[str, int]) -> bytes:
    return f"{url_host(address[0])}:{address[1]}".encode()


def lines_to_worker(headers: Iterable[Header]) -> bytes:
    """Those of the client's headers that are the worker's business, as they are written."""
    return lines(header for header in headers if header[0] not in NOT_TO_WORKERS)


def to_client(headers: Iterable[Header]) -> list[Header]:
    """The worker's headers that are the client's business."""
    return [header for header in headers if header[0] not in NOT_TO_CLIENTS]


def lines(headers: Iterable[Header]) -> bytes:
    """Headers as they are written."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def is_event_stream(headers: Iterable[Header]) -> bool:
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False
