"""Relaying: what the doors need of a relay."""

from typing import Protocol

from relay.call import Call
from utils.errors import ApiError


class Relaying(Protocol):
    """Who answers the calls. Every accepted call is served, refused or lost, once."""

    routes: frozenset[str]
    uploads: frozenset[str]  # those of them whose bodies are taken piece by piece
    max_body: int  # bytes
    body_timeout_s: float

    def accept(self, call: Call) -> None:
        """A call's head is here. One that is not to be served is answered now, before its body is taken."""

    def feed(self, call: Call) -> None:
        """A piece of an upload's body is here: ``call.take``."""

    def serve(self, call: Call) -> None:
        """Its body is here too."""

    def refuse(self, call: Call, error: ApiError) -> None:
        """Its body is not what it should be."""

    def lose(self, call: Call) -> None:
        """Its client has gone, at any time before the answer's end."""

    def make_room(self, call: Call) -> None:
        """Its client reads again: ``is_full`` is over."""
