"""Flight: one request of the data plane on its way, from its head at the door to the end of its answer."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from relay.access import NOBODY
from relay.admission.limits import UNLIMITED
from relay.call import Call
from relay.headers import Header, request_id, to_client
from relay.request import NO_FIELDS
from relay.streams.resume import Continuation
from relay.streams.tape import Tape
from relay.upload import Upload
from relay.upstream.exchange import Exchange, StreamBroken, UpstreamError
from utils.errors import ApiError, WorkerBroke
from utils.logger import EventLogger

if TYPE_CHECKING:
    from relay.routing.router import Placing
    from relay.tracing.context import Trace

MAX_COLLECTED_BYTES: Final = 1024 * 1024
"""Bytes of an answer that is kept until its end: an error, where a stream was asked for."""
MAX_HELD_BYTES: Final = 64 * 1024
"""Bytes of an answer that ``Owner.judge`` is shown; a longer one is passed on unseen."""

logger = EventLogger("relay")


class Pilot(Protocol):
    """Who asks the workers for it."""

    def take_head(self, flight: "Flight", exchange: Exchange) -> None: ...

    def take_first(self, placing: "Placing") -> None: ...

    def take_error(self, flight: "Flight", error: UpstreamError) -> None: ...


class Owner(Protocol):
    """Who took it in, and hears of its end."""

    def end(self, flight: "Flight") -> None:
        """Its answer is whole, or as whole as it will be."""

    def fail(self, flight: "Flight", error: ApiError) -> None:
        """No worker answers it, or goes on answering it."""

    def may_fall_back(self, flight: "Flight") -> bool:
        """Whether another model would be asked if this one's workers break."""

    def may_judge(self, flight: "Flight", status: int) -> bool:
        """Whether ``judge`` wants to see an answer of this status before the client does."""

    def judge(self, flight: "Flight", status: int, body: bytes) -> bool:
        """Whether something else is done with the flight than to pass this answer on."""

    def crash(self, flight: "Flight", error: Exception) -> None:
        """Something of ours failed at this request: it must disturb no other."""


class Flight:
    """A call, where it is, and what its answer's headers, its metrics and its log line need.

    It reads the worker's answer (``Reader``): pieces of the body go straight on to the client.
    """

    # What most flights never change stands here: to set it for each would cost more than the rest of __init__.
    body = b""
    client = NOBODY
    grant = UNLIMITED
    model = ""
    is_stream = False
    """It asks for one."""
    fields = NO_FIELDS
    upload: Upload | None = None
    trace: "Trace | None" = None
    """Its place in one, if spans are collected."""

    pilot: Pilot
    worker = ""
    """The last one that it was at, by id."""
    placing: "Placing | None" = None
    """Where it is in flight."""
    exchange: Exchange | None = None
    attempts = 0
    first_attempt = 0
    """How many attempts other models have had before this one."""
    line: tuple[str, ...] | None = None
    """Other models that may still be asked; None: nobody has looked yet."""
    tried: tuple[str, ...] = ()
    """Workers that it failed at."""
    last_error: ApiError | None = None
    decision = b""
    """Why it is there, if the client wants to know."""
    sent_at = 0.0
    """``time.perf_counter()`` of the last attempt."""
    queued_s = 0.0
    cancel_wait: Callable[[], object] | None = None
    """Ends what it waits for, if that is no worker."""
    room: asyncio.Future[None] | None = None
    timer: asyncio.TimerHandle | None = None
    """Of the time that the client gives it."""

    has_answer = False
    """A worker's answer is passed on."""
    status = 0
    error: ApiError | None = None
    """Of ours, that it ended with."""
    is_event_stream = False
    is_told = False
    """The client has been told that it waits: the head of a stream has gone out."""
    held: tuple[int, list[Header]] | None = None
    """The head of an answer that ``Owner.judge`` is to see whole before the client does."""
    body_held = b""
    collected: bytearray | None = None
    """An answer that is no stream, for a client that was promised one."""
    tape: Tape | None = None
    """Of a stream that can go on elsewhere if it breaks."""
    asked: Continuation | None = None
    """What another replica was asked then."""
    pieces = 0
    """Of the answer, that the client has got; the last two are kept, for the usage in them."""
    before_last = last = b""
    events = 0
    """Of a stream, that the client has got: several may come in one piece. Only counted for a key with limits."""

    def __init__(self, call: Call, owner: Owner) -> None:
        self.call = call
        self.owner = owner
        self.headers = dict(call.headers) if call.known is None else call.known.by_name
        self.id = request_id(self.headers)
        self.arrived = time.perf_counter()

    def answer_lines(self) -> bytes:
        """Our own headers of its answer."""
        own = b"x-request-id: %b\r\nx-ichat-worker: %b\r\nx-ichat-attempts: %d\r\nx-ichat-queue-ms: %d\r\n" % (
            self.id,
            self.worker.encode() or b"none",
            self.attempts,
            self.queued_s * 1000,
        )
        if self.grant is not UNLIMITED:
            own += self.grant.lines
        if self.decision:
            own += b"x-ichat-decision: %b\r\n" % self.decision
        return own

    # -- what comes from the worker --------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return self.call.is_full

    def take_head(self, exchange: Exchange) -> None:
        try:
            self.pilot.take_head(self, exchange)
        except Exception as error:
            self.crash(error)

    def take(self, piece: bytes, last: bool) -> None:
        try:
            placing = self.placing
            if placing is not None and placing.to_prefill:
                self.pilot.take_first(placing)
            tape = self.tape
            if tape is not None:
                piece = tape.feed(piece)
                if last and not tape.is_broken:
                    piece += tape.finish()
                if tape.is_broken:
                    self._break(tape, piece)
                    return
            elif self.held is not None:
                if self._hold(self.held, piece, last):
                    return
                piece = self.body_held
            self.pass_on(piece, last=last)
            if last:
                self.owner.end(self)
        except Exception as error:
            self.crash(error)

    def crash(self, error: Exception) -> None:
        self.owner.crash(self, error)

    def count(self) -> int:
        """How many pieces, or rather events, of its answer have gone to the client: a token each, at least."""
        return max(self.events, self.pieces) + (0 if self.tape is None else self.tape.events)

    def begin(self, status: int, headers: list[Header], *, streams: bool) -> None:
        """An answer for the client. One that was promised a stream gets it as a stream; ``streams``: it is one."""
        self.has_answer = True
        if self.is_told:
            self.collected = None if streams else bytearray()
            return
        self.status = status
        self.is_event_stream = streams
        if self.tape is not None:  # it may be continued by another worker, whose rest is of another length
            headers = [header for header in headers if header[0] != b"content-length"]
        self.call.start(status, to_client(headers), self.answer_lines())

    def begin_whole(self, written: bytes, length: int) -> None:
        """An answer of status 200 for the client, who has had nothing yet; its headers as they are written."""
        self.has_answer = True
        self.status = 200
        self.call.start_whole(written + self.answer_lines(), length)

    def pass_on(self, piece: bytes, *, last: bool) -> None:
        """A piece of the answer's body."""
        if self.collected is not None:
            self.collected += piece
            if len(self.collected) > MAX_COLLECTED_BYTES:
                message = f"the answer of {self.model} is no stream, as it was to be, and too long for one event"
                self.owner.fail(self, WorkerBroke(message, code="bad_worker_answer"))
                return
            piece = as_event(self.collected) if last else b""
        if piece:
            self.pieces += 1
            if self.grant is not UNLIMITED:
                self.events += piece.count(b"data:")
            self.before_last, self.last = self.last, piece
        elif not last:
            return
        self.call.push(piece, last)

    def _hold(self, held: tuple[int, list[Header]], piece: bytes, last: bool) -> bool:
        """Whether the answer is held back still, or was judged away."""
        self.body_held += piece
        if not last and len(self.body_held) <= MAX_HELD_BYTES:
            return True
        self.held = None
        if last and self.owner.judge(self, held[0], self.body_held):
            return True
        self.begin(*held, streams=False)
        return False

    def _break(self, tape: Tape, piece: bytes) -> None:
        self.pass_on(piece, last=False)
        self.pilot.take_error(self, StreamBroken(tape.reason))

    def take_error(self, error: UpstreamError) -> None:
        try:
            self.pilot.take_error(self, error)
        except Exception as crash:
            self.crash(crash)

    def give_up(self) -> None:
        self.call.give_up()

    def tell(self, comment: bytes) -> None:
        """An SSE comment for a client that waits for a stream, which begins with it."""
        if not self.is_told:
            self.is_told = self.is_event_stream = True
            self.status = 200
            head = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            # Where it will be, and how long it has waited then, nobody knows yet.
            self.call.start(self.status, head, b"x-request-id: %b\r\n%b" % (self.id, self.grant.lines))
        self.call.push(comment, last=False)

    def tail(self) -> Sequence[bytes]:
        """The last pieces of the answer, in which its usage stands."""
        return (self.before_last, self.last) if self.tape is None else self.tape.tail()

    def hold(self, is_held: bool) -> None:
        self.call.hold(is_held)

    async def wait_for_room(self) -> None:
        """Returns when the client reads again, or has gone."""
        while self.call.is_full and not self.call.disconnected:
            self.room = asyncio.get_running_loop().create_future()
            await self.room

    def make_room(self) -> None:
        """The client reads again."""
        if self.room is not None and not self.room.done():
            self.room.set_result(None)
        if self.exchange is not None:
            self.exchange.deliver()


def as_event(body: bytes | bytearray) -> bytes:
    """An answer that is no stream, such as an engine's 400, as the one event of a stream; without ``[DONE]``."""
    try:
        line = json.dumps(json.loads(body), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        line = WorkerBroke(f"the worker answered no JSON: {bytes(body[:200])!r}", code="bad_worker_answer").body()
    return b"data: %b\n\n" % line
