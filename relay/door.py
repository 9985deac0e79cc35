"""The clients' connections: requests of the data plane become calls, all others go to the control plane's ASGI app.

uvicorn serves both. Its ASGI cycle costs more per request than all of the routing does (doc/performance.md), so the
data plane's requests go from its parser straight to the relay, and their answers straight to its transport.
"""

import asyncio
from typing import Any, Final, Protocol
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from relay.call import Call
from relay.headers import Header
from relay.request import body_timeout, body_too_large
from utils.errors import ApiError
from utils.server import KEEP_ALIVE_S, HttpProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
"""A client whose request line and headers are longer than this is refused."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
NO_HEAD: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Relaying(Protocol):
    """Who answers the calls. Every accepted call is served, refused or lost, once."""

    routes: frozenset[str]
    max_body: int  # bytes
    body_timeout_s: float

    def accept(self, call: Call) -> None:
        """A call's head is here. One that is not to be served is answered now, before its body is taken."""

    def serve(self, call: Call) -> None:
        """Its body is here too."""

    def refuse(self, call: Call, error: ApiError) -> None:
        """Its body is not what it should be."""

    def lose(self, call: Call) -> None:
        """Its client has gone, at any time before the answer's end."""


class Door(HttpProtocol):
    """One client's connection."""

    def __init__(self, relay: Relaying, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._relay = relay
        self._incoming: Call | None = None  # the request whose body is being read, if it is a call
        self._active: Call | None = None  # the call that is accepted and not answered yet
        self._incomplete = False  # in the middle of a request
        self._head_size: int | None = None  # bytes of a head that is not whole
        self._unparsed = 0  # bytes of a body that the parser leaves to us
        # One timer a connection, moved on when it fires: cheaper than one for every request.
        self._due = 0.0  # the loop's time by which the client must have sent something; 0: it need not
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # -- the connection --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_within(KEEP_ALIVE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        call, self._active = self._active, None
        if isinstance(self.cycle, Call):
            self.cycle = None  # what follows is for uvicorn's own
        self.pipeline.clear()
        super().connection_lost(exc)
        if call is not None and not call.response_complete:
            call.disconnected = True
            self._relay.lose(call)

    def data_received(self, data: bytes) -> None:
        if self._unparsed:
            self._take_unparsed(data)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("This is no valid HTTP request.")
            return
        except httptools.HttpParserUpgrade as upgrade:
            self._take_unparsed(data[upgrade.args[0] :])
            return
        if self._incomplete:
            self._wait_for_rest(len(data))

    def send_400_response(self, msg: str) -> None:
        if self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
        else:
            self.transport.close()  # what would be said now would become part of the answer under way

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._active is not None:
            self._active.is_full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._active is not None:
            self._active.is_full = False

    # -- the parser ------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._incoming = None
        self._incomplete = True
        self._head_size = 0

    def on_headers_complete(self) -> None:
        self._head_size = None
        route = self._route() if self.parser.get_method() == b"POST" else None
        if route is None:
            self._hand_to_app()
            return
        headers, self.headers = self.headers, []  # what a chunked body trails are no headers
        call = Call(
            self.transport, self.flow, self.on_response_complete, route, self._target(), headers, self._relay.max_body
        )
        call.expects_continue = self.expect_100_continue
        call.is_old_http = self.parser.get_http_version() == "1.0"
        call.keep_alive = self.parser.should_keep_alive() and not call.is_old_http
        if self.parser.should_upgrade():
            self._unparsed = length_of(headers)
        before, self.cycle = self.cycle, call  # type: ignore[assignment]
        self._incoming = call
        if before is None or before.response_complete:
            self._begin(call)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((call, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        call = self._incoming
        if call is None:
            super().on_body(body)
        elif not call.add(body):
            if call is self._active:
                call.keep_alive = False
                self._relay.refuse(call, body_too_large(self._relay.max_body))
            else:
                self.transport.close()

    def on_message_complete(self) -> None:
        if self._unparsed:
            return
        self._incomplete = False
        self._due = 0.0
        call = self._incoming
        if call is None:
            super().on_message_complete()
            return
        call.is_whole = True
        if call is self._active:
            self._serve(call)

    def _take_unparsed(self, data: bytes) -> None:
        """The body of a request that offers to speak another protocol, as Java's HTTP client does by default.

        We decline by answering in this one (RFC 9110, 7.8). But httptools takes such a request for one without a body.
        """
        body, rest = data[: self._unparsed], data[self._unparsed :]
        self._unparsed -= len(body)
        self.on_body(body)
        if self._unparsed:
            self._wait_for_rest(len(data))
        else:
            if self._incomplete:
                self.on_message_complete()
            if rest:
                self.data_received(rest)

    # -- calls, one after another ----------------------------------------------------------------------------------

    def _begin(self, call: Call) -> None:
        if self.transport.is_closing():
            return
        call.is_begun = True
        call.is_full = self.flow.write_paused
        self._active = call
        self._relay.accept(call)
        if call is not self._active:
            return  # it is answered already
        if call.is_whole:
            self._serve(call)
        elif call.expects_continue:
            self.transport.write(CONTINUE)

    def _serve(self, call: Call) -> None:
        if call.is_too_large:
            self._relay.refuse(call, body_too_large(self._relay.max_body))
        else:
            self._relay.serve(call)

    def on_response_complete(self) -> None:
        """The answer to the current request has been written, a call's or the app's."""
        self.server_state.total_requests += 1
        self._active = None
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._expect_within(KEEP_ALIVE_S)

    def _start_asgi_task(self, cycle: RequestResponseCycle | Call, app: Any) -> None:
        if isinstance(cycle, Call):
            self.loop.call_soon(self._begin, cycle)  # not now: a thousand wrong requests would be a deep recursion
        else:
            super()._start_asgi_task(cycle, app)

    def _hand_to_app(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers = self.scope["headers"] = headers
        super().on_headers_complete()

    def _route(self) -> str | None:
        """The relay's route that is asked for, however it is written."""
        path = self.url.partition(b"?")[0].decode("latin-1")
        if path in self._relay.routes:
            return path
        if "%" in path or not path.startswith("/"):
            with_host = httptools.parse_url(self.url).path
            path = unquote((with_host or b"").decode("latin-1"))
        return path if path in self._relay.routes else None

    def _target(self) -> bytes:
        """Path and query for the worker; a proxy's client also names the host."""
        if self.url.startswith(b"/"):
            return self.url.partition(b"#")[0]
        parsed = httptools.parse_url(self.url)
        return b"%b?%b" % (parsed.path, parsed.query) if parsed.query else bytes(parsed.path)

    # -- time ------------------------------------------------------------------------------------------------------

    def _wait_for_rest(self, size: int) -> None:
        """A request has come in part."""
        if self._head_size is not None:
            self._head_size += size
            if self._head_size > MAX_HEAD_BYTES:
                if self._active is None:
                    self.transport.write(NO_HEAD)
                self.transport.close()
        elif self._incoming is None or self._incoming.is_begun:
            self._expect_within(self._relay.body_timeout_s)

    def _expect_within(self, seconds: float) -> None:
        self._due = self.loop.time() + seconds
        if self._timer is not None:
            if self._timer_at <= self._due:
                return
            self._timer.cancel()
        self._arm()

    def _arm(self) -> None:
        self._timer_at = self._due
        self._timer = self.loop.call_at(self._due, self._check_time)

    def _check_time(self) -> None:
        self._timer = None
        if not self._due:
            return
        if self.loop.time() < self._due:
            self._arm()
            return
        self._due = 0.0
        call = self._incoming
        if self._incomplete and call is not None and call is self._active:
            call.keep_alive = False
            self._relay.refuse(call, body_timeout(self._relay.body_timeout_s))
        else:
            self.transport.close()


def length_of(headers: list[Header]) -> int:
    """The announced length of a body; 0 without one. The parser has seen to it that it is a number."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)
