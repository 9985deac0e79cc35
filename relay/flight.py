"""Flight: one request of the data plane on its way, from its head at the door to the end of its answer."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from relay.call import Call
from relay.exchange import Exchange, UpstreamError
from relay.headers import Header, request_id
from utils.errors import ApiError
from utils.logger import EventLogger

if TYPE_CHECKING:
    from relay.routing import Placing

logger = EventLogger("relay")


class Pilot(Protocol):
    """Who asks the workers for it."""

    def take_head(self, flight: "Flight", exchange: Exchange) -> None: ...

    def take_error(self, flight: "Flight", error: UpstreamError) -> None: ...


class Owner(Protocol):
    """Who took it in, and hears of its end."""

    def end(self, flight: "Flight") -> None:
        """Its answer is whole, or as whole as it will be."""

    def fail(self, flight: "Flight", error: ApiError) -> None:
        """No worker answers it, or goes on answering it."""

    def crash(self, flight: "Flight", error: Exception) -> None:
        """Something of ours failed at this request: it must disturb no other."""


class Flight:
    """A call, where it is, and what its answer's headers, its metrics and its log line need.

    It reads the worker's answer (``Reader``): pieces of the body go straight on to the client.
    """

    __slots__ = ("arrived", "attempts", "before_last", "body", "call", "cancel_wait", "decision", "exchange", "headers",
                 "id", "is_event_stream", "last", "last_error", "model", "owner", "pilot", "placing", "prompt", "session",
                 "status", "tried", "worker")  # fmt: skip

    def __init__(self, call: Call, owner: Owner) -> None:
        self.call = call
        self.owner = owner
        self.pilot: Pilot
        self.headers = dict(call.headers)
        self.id = request_id(self.headers)
        self.arrived = time.perf_counter()
        self.body = b""
        self.model = ""
        self.session = b""
        self.prompt = b""  # what the engine makes its prompt of, as written
        self.worker = ""
        self.placing: Placing | None = None  # where it is in flight
        self.decision = b""  # why it is there, if the client wants to know
        self.exchange: Exchange | None = None
        self.attempts = 0
        self.tried: list[str] = []  # workers that it failed at
        self.last_error: ApiError | None = None
        self.status = 0
        self.is_event_stream = False
        self.before_last = self.last = b""  # pieces of the answer
        self.cancel_wait: Callable[[], None] | None = None  # ends what it waits for, if that is no worker

    def answer_headers(self) -> list[Header]:
        headers = [
            (b"x-request-id", self.id),
            (b"x-ichat-worker", self.worker.encode() or b"none"),
            (b"x-ichat-attempts", b"%d" % self.attempts),
            (b"x-ichat-queue-ms", b"0"),
        ]
        if self.decision:
            headers.append((b"x-ichat-decision", self.decision))
        return headers

    # -- what comes from the worker --------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return self.call.is_full

    def take_head(self, exchange: Exchange) -> None:
        try:
            self.pilot.take_head(self, exchange)
        except Exception as error:
            self.owner.crash(self, error)

    def take(self, piece: bytes, last: bool) -> None:
        try:
            self.call.push(piece, last)
            if piece:
                self.before_last, self.last = self.last, piece
            if last:
                self.owner.end(self)
        except Exception as error:
            self.owner.crash(self, error)

    def take_error(self, error: UpstreamError) -> None:
        try:
            self.pilot.take_error(self, error)
        except Exception as crash:
            self.owner.crash(self, crash)

    def give_up(self) -> None:
        self.call.give_up()

    def make_room(self) -> None:
        """The client reads again."""
        if self.exchange is not None:
            self.exchange.deliver()
