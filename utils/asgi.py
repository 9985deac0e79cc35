"""Bodies of ASGI requests that somebody on the way has to see whole, and then passes on."""

from collections.abc import Awaitable, Callable
from typing import Any

Receive = Callable[[], Awaitable[Any]]


class BodyTooLarge(Exception):
    """The body is longer than whoever reads it takes."""


async def read_body(receive: Receive, limit: int | None = None) -> bytes | None:
    """The whole body; None when the client has gone. Raises BodyTooLarge over ``limit`` bytes."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece = message.get("body", b"")
        size += len(piece)
        if limit is not None and size > limit:
            raise BodyTooLarge
        pieces.append(piece)
        if not message.get("more_body"):
            return b"".join(pieces)


def replay(body: bytes, receive: Receive) -> Receive:
    """The body at once, then whatever really comes: that the client has gone."""
    pending = [body]

    async def receive_again() -> Any:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return receive_again
