"""Relay: the data plane. Requests come in by the doors (relay/door.py), answers go out by the workers'."""

from collections.abc import Callable
from typing import Final

from config.settings import ServerSettings
from monitor.metrics import RelayMetrics
from relay.access import Access
from relay.admission.limits import UNLIMITED, Limits
from relay.admission.waiting import PRIORITY_HEADER, TIMEOUT_HEADER, priority_of, timeout_of
from relay.border import Border
from relay.call import Call
from relay.dispatch import Dispatcher
from relay.flight import Flight
from relay.lobby import Lobby
from relay.request import body_too_large, check_content_type, parse_fields
from relay.routes import ROUTES, UPLOADS
from relay.streams.events import error_event
from relay.tracing.context import Tracing
from relay.upload import Upload
from relay.usage import total_of
from relay.words import stopping
from utils.errors import ApiError, InternalError
from utils.logger import EventLogger

CLIENT_GONE: Final = 499
"""The status in our metrics of requests whose client did not wait for the answer's end."""

logger = EventLogger("relay")


class Relay:
    """Every call is accepted, then served, refused or lost; every flight ends once."""

    routes: frozenset[str] = frozenset(ROUTES)
    uploads: frozenset[str] = UPLOADS

    def __init__(
        self,
        access: Access,
        limits: Limits,
        lobby: Lobby,
        border: Border,
        dispatcher: Dispatcher,
        metrics: RelayMetrics,
        settings: ServerSettings,
        tracing: Tracing | None = None,
    ) -> None:
        self._access = access
        self._limits = limits
        self._lobby = lobby
        self._border = border
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._tracing = tracing
        self.max_body: int = settings.max_body_bytes
        self.body_timeout_s: float = settings.body_timeout_s
        self._flights: dict[Call, Flight] = {}

    # -- the door's side -------------------------------------------------------------------------------------------

    def accept(self, call: Call) -> None:
        """Answers those at once that are not to be served. The others' bodies may come."""
        flight = self._flights[call] = Flight(call, self)
        known = call.known
        if known is not None and known.client is not None and self._tracing is None:
            flight.client = known.client
            return
        if self._tracing is not None:
            flight.trace = self._tracing.begin(call.headers)
        try:
            flight.client = self._access.require_client(flight.headers)
            if call.route in UPLOADS:
                flight.upload = Upload(flight.headers, call.hold)
            else:
                check_content_type(flight.headers)
            if call.expects_continue and int(flight.headers.get(b"content-length", b"0")) > self.max_body:
                raise body_too_large(self.max_body)
            if known is not None:
                known.client = flight.client
        except ApiError as error:
            call.keep_alive = call.keep_alive and not call.expects_continue  # its body may come, or the next request
            self._answer(flight, error)

    def feed(self, call: Call) -> None:
        """A piece of an upload is here."""
        self._take_on(self._flights[call], self._feed)

    def serve(self, call: Call) -> None:
        """The call's body is here: ask a worker."""
        flight = self._flights[call]
        self._take_on(flight, self._serve if flight.upload is None else self._end_upload)

    def _take_on(self, flight: Flight, step: Callable[[Flight], None]) -> None:
        try:
            step(flight)
        except ApiError as error:
            self._answer(flight, error)
        except Exception as error:
            self.crash(flight, error)

    def refuse(self, call: Call, error: ApiError) -> None:
        self._answer(self._flights[call], error)

    def lose(self, call: Call) -> None:
        """The client has gone: so does its request at the worker."""
        flight = self._flights.get(call)
        if flight is not None:
            self.end(flight)

    def make_room(self, call: Call) -> None:
        """The client reads again."""
        flight = self._flights.get(call)
        if flight is not None:
            flight.make_room()

    def cut_flights(self) -> None:
        """Ends the requests that are still in flight: with an error, and streams with an error event."""
        # First those that wait: else each one's end would give its place to the next, only to be cut there.
        for flight in sorted(self._flights.values(), key=lambda flight: flight.placing is not None):
            self._answer(flight, stopping())

    # -- a flight --------------------------------------------------------------------------------------------------

    def _serve(self, flight: Flight) -> None:
        """Raises ApiError."""
        flight.body = flight.call.body
        fields = parse_fields(flight.body)
        flight.model, flight.is_stream, flight.fields = str(fields.model), bool(fields.stream), fields
        if flight.trace is not None:
            flight.trace.model = flight.model
        if flight.client.limits is not None:
            flight.grant = self._limits.admit(flight.client.name, flight.body, fields)
        self._heed(flight)
        try:
            self._border.enter(flight)
        except ApiError as error:
            self.fail(flight, error)

    def _feed(self, flight: Flight) -> None:
        """Raises ApiError."""
        assert flight.upload is not None
        if flight.call.is_too_large:
            raise body_too_large(self.max_body)
        flight.upload.feed(flight.call.take())
        if flight.upload.model and not flight.model:
            flight.model = flight.upload.model
            flight.grant = self._limits.admit(flight.client.name, b"")
            self._heed(flight)
            self._border.enter(flight)

    def _heed(self, flight: Flight) -> None:
        """What the client says of time and priority, once for all models that may be asked. Raises BadRequest."""
        if TIMEOUT_HEADER in flight.headers:
            self._dispatcher.limit(flight, timeout_of(flight.headers, 0))
        if PRIORITY_HEADER in flight.headers:
            priority_of(flight.headers, flight.client.priority)  # a wrong one is told also where nobody waits

    @staticmethod
    def _end_upload(flight: Flight) -> None:
        """Raises ApiError."""
        assert flight.upload is not None
        flight.upload.end()

    def end(self, flight: Flight) -> None:
        """On every way out: nothing of it is left at a worker or in a queue, and it has been counted."""
        call = flight.call
        if self._flights.pop(call, None) is None:
            return
        if flight.cancel_wait is not None:
            flight.cancel_wait()
            flight.cancel_wait = None  # it knows the flight, too: see below
        if flight.timer is not None:
            flight.timer.cancel()
        is_placed = flight.placing is not None
        if flight.has_answer and is_placed:
            self._lobby.landed(flight)
        if flight.grant is not UNLIMITED:
            self._settle(flight)
        self._dispatcher.land(flight)
        if not call.response_complete:
            call.abort()  # its answer is not whole
        status = CLIENT_GONE if call.disconnected else flight.status
        first_byte_at = call.first_byte_at if flight.status == 200 else 0.0
        is_known = is_placed or self._border.lists(flight.model)  # no label for every word that a client makes up
        self._metrics.observe(flight.model if is_known else "", call.route, status, flight.arrived, first_byte_at)
        if flight.trace is not None:
            flight.trace.end(flight)
        # These know the flight (errors by the frames that they came through): without this they and it wait for the
        # garbage collector, with all that they keep.
        flight.tape = flight.error = flight.last_error = None
        self._lobby.call_next()

    @staticmethod
    def _settle(flight: Flight) -> None:
        """What the request really used: by its usage; for want of that, a token for each event of a stream."""
        if flight.has_answer:
            used = total_of(flight.tail())
            flight.grant.settle(used if used is not None else flight.grant.prompt_tokens + flight.count())
        else:
            flight.grant.settle(flight.grant.prompt_tokens if was_abandoned(flight) else 0)
        flight.grant.release()

    def fail(self, flight: Flight, error: ApiError) -> None:
        """No worker or provider answers it: another model may, else it ends."""
        if not flight.has_answer:
            self._dispatcher.land(flight)
            if self._border.falls_back(flight, error):
                return
        self._answer(flight, error)

    def may_fall_back(self, flight: Flight) -> bool:
        return self._border.may_fall_back(flight)

    def may_judge(self, flight: Flight, status: int) -> bool:
        return self._border.may_judge(flight, status)

    def judge(self, flight: Flight, status: int, body: bytes) -> bool:
        assert flight.placing is not None
        replica = flight.placing.replica
        self._dispatcher.hang_up(flight)  # it is at the worker still, if it is asked another way
        return self._border.judge(flight, status, body, replica)

    def _answer(self, flight: Flight, error: ApiError) -> None:
        """Ends it with an error. An answer that has begun ends so that no client takes it for a whole one:

        a stream with an error event and without ``[DONE]``, any other just before its length.
        """
        call = flight.call
        flight.error = error
        if not call.started:
            flight.status = error.status
            headers = [(b"content-type", b"application/json"), *error.headers]
            call.answer(error.status, headers, error.body(), flight.answer_lines())
        else:
            if flight.has_answer:
                logger.error("answer_cut", request_id=flight.id.decode(), worker_id=flight.worker, error=error.message)
            if flight.is_event_stream and call.is_open_ended:
                call.push(error_event(error), last=True)
        self.end(flight)

    def crash(self, flight: Flight, error: Exception) -> None:
        """The top of all that is done for one request: nothing of it may disturb another."""
        logger.error("request_crashed", request_id=flight.id.decode(), path=flight.call.route, exc_info=error)
        self._answer(flight, InternalError("the gateway failed on this request: see its log"))


def was_abandoned(flight: Flight) -> bool:
    """Whether its client, or the time that the client gave it, ended it while a worker or provider had it: who has
    probably read its prompt by then.
    """
    is_late = flight.error is not None and flight.error.code == "deadline_exceeded"
    if not (flight.call.disconnected or is_late):
        return False
    if flight.exchange is not None:
        return flight.exchange.connection is not None
    return flight.attempts > flight.first_attempt and flight.last_error is None
