"""The clients' connections: requests of the data plane become calls, all others go to the control plane's ASGI app.

uvicorn serves both. Its ASGI cycle costs more per request than all of the routing does (doc/performance.md), so the
data plane's requests go from its parser straight to the relay, and their answers straight to its transport.
"""

import asyncio
from typing import Any, Final
from urllib.parse import unquote

import httptools

from relay.call import Call
from relay.headers import Header
from relay.known_head import KnownHead
from relay.relaying import Relaying
from relay.request import body_timeout, body_too_large
from utils.errors import BadRequest
from utils.logger import EventLogger
from utils.server import KEEP_ALIVE_S, HttpProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
"""A client whose request line and headers are longer than this, and one read, is refused; as is one that sends so much
within a body without a byte of it: trailers, extensions of chunks."""
MAX_LEARNED: Final = 8
"""Heads of a connection that are learned, each instead of the one before."""
BODY_PIECE_BYTES: Final = 64 * 1024
"""What is to come within ``body_timeout_s``, or all that is left: who sends a byte now and then is not waited for."""
LAST_READ_S: Final = 30.0
"""How long a client may take to read the rest of what was written to a connection that is closed."""
OLD_HTTP: Final = ("1.0", "0.9")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
NO_HTTP: Final = "This is no valid HTTP request."
NO_PATH: Final = "The request names no valid path."

logger = EventLogger("relay")


class StopParsing(Exception):
    """Raised in a callback of the parser: what follows on this connection is not for us."""


class Door(HttpProtocol):
    """One client's connection, with one request on it at a time.

    A request that comes before the one ahead of it is answered (pipelining) is not taken: the connection is closed
    after that answer, and whoever pipelines asks again (RFC 9112, 9.3.2). What would wait here would have no bounds.
    """

    def __init__(self, relay: Relaying, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._relay = relay
        self._call: Call | None = None  # the current request, if it is a call
        self._is_deaf = False  # nothing more is taken from this connection
        self._incomplete = False  # in the middle of a request
        self._in_body = False  # its head is whole
        self._bare = 0  # bytes since it began, or since the last byte of its body; -1: that was in the last read
        self._fresh = 0  # bytes of its body since the client was last given time
        self._unparsed = 0  # bytes of a body that the parser leaves to us
        self._known: KnownHead | None = None
        self._learns = MAX_LEARNED
        # One timer a connection, moved on when it fires: cheaper than one for every request.
        self._due = 0.0  # the loop's time by which the client must have done something; 0: it need not
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
        call, self._call = self._call, None
        if isinstance(self.cycle, Call):  # this one, or the one before a head that has not come whole
            self.cycle = None  # what follows is for uvicorn's own
        super().connection_lost(exc)
        if call is not None and not call.response_complete:
            call.disconnected = True
            self._relay.lose(call)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._call is not None:
            self._call.is_full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._call is not None:
            self._call.is_full = False
            self._relay.make_room(self._call)

    def data_received(self, data: bytes) -> None:
        known = self._known
        if known is not None and not (self._incomplete or self._unparsed or self._is_deaf) and self._has_room():
            body = known.body_of(data)
            if body is not None and len(body) <= self._relay.max_body:
                self._serve_known(known, body)
                return
        self._parse(data)
        if self._learns and self._call is not None and not self._incomplete:
            self._learn(data, self._call)

    def _has_room(self) -> bool:
        """Whether a request may begin now."""
        return self._is_free and not (self.flow.write_paused or self.transport.is_closing())

    def _learn(self, data: bytes, call: Call) -> None:
        """From a request that the parser has read; not for ever from a client whose heads all differ."""
        self._learns -= 1
        if call.known is None and call.keep_alive and not call.is_old_http and call.route not in self._relay.uploads:
            self._known = KnownHead.of(data, call.route, call.target, call.headers)

    def _serve_known(self, known: KnownHead, body: bytes) -> None:
        """As the parser's callbacks do, one after the other."""
        call = Call(
            self.transport, self.on_response_complete, self._hold, known.route, known.target, known.headers,
            self._relay.max_body,
        )  # fmt: skip
        call.known = known
        self.cycle = call  # type: ignore[assignment]
        self._call = call
        self._in_body = False
        self._due = 0.0
        self._relay.accept(call)
        if not call.response_complete:
            call.add(body)
            self._relay.serve(call)

    def _parse(self, data: bytes) -> None:
        while data and not self._is_deaf:
            if self._unparsed:
                data = self._take_unparsed(data)
                continue
            size = len(data)
            try:
                self.parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            except httptools.HttpParserCallbackError as error:
                self._is_deaf = True
                if not isinstance(error.__context__, StopParsing):
                    logger.error("request_crashed", exc_info=error.__context__ or error)
                    self._close()
                return
            except httptools.HttpParserError:
                self._refuse_bytes()
                return
            if self._incomplete:
                self._wait_for_rest(size)

    def _refuse_bytes(self) -> None:
        """The client sent something that is no HTTP; to an answer under way nothing may be added."""
        self._is_deaf = True
        call = self._call
        if self._is_free and not self._in_body:
            self.send_400_response(NO_HTTP)
        elif self._is_free:  # answered before its body came: there is nothing to be added
            self._close()
        elif call is not None and self._incomplete:
            call.keep_alive = False
            self._relay.refuse(call, BadRequest(f"{NO_HTTP} Its body is broken"))
        else:
            self._close()

    def _close(self) -> None:
        self.transport.close()
        self._expect_within(LAST_READ_S)

    # -- the parser ------------------------------------------------------------------------------------------------

    @property
    def _is_free(self) -> bool:
        """No request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        if not self._is_free:
            self.cycle.keep_alive = False
            raise StopParsing
        if self.flow.write_paused or self.transport.is_closing():  # answers pile up that nobody reads
            self._close()
            raise StopParsing
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._call = None
        self._incomplete = True
        self._in_body = False
        self._bare = -1

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._fresh = BODY_PIECE_BYTES
        method = self.parser.get_method()
        if self.parser.should_upgrade():
            # We decline by answering in this protocol (RFC 9110, 7.8).
            self._unparsed = self._length_behind_upgrade(method)
        route = self._route() if method == b"POST" else None
        if route is None:
            self._hand_to_app()
            return
        headers, self.headers = self.headers, []  # what a chunked body trails are no headers
        call = Call(
            self.transport, self.on_response_complete, self._hold, route, self._target(), headers, self._relay.max_body
        )
        call.is_old_http = self.parser.get_http_version() in OLD_HTTP
        call.expects_continue = self.expect_100_continue and not call.is_old_http
        call.keep_alive = self.parser.should_keep_alive() and not call.is_old_http
        self.cycle = call  # type: ignore[assignment]
        self._call = call
        self._relay.accept(call)
        if call.expects_continue and not call.response_complete:
            self.transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._bare = -1
        self._fresh += len(body)
        call = self._call
        if call is None:
            super().on_body(body)
        elif not call.add(body):
            if call.response_complete:
                self._close()
            else:
                call.keep_alive = False
                self._relay.refuse(call, body_too_large(self._relay.max_body))
            raise StopParsing
        elif call.route in self._relay.uploads and not call.response_complete:
            self._relay.feed(call)

    def _hold(self, is_held: bool) -> None:
        if is_held:
            self.flow.pause_reading()
            self._due = 0.0
        else:
            self.flow.resume_reading()
            if self._incomplete:
                self._expect_within(self._relay.body_timeout_s)

    def on_message_complete(self) -> None:
        if self._unparsed:
            return
        self._incomplete = self._in_body = False
        call = self._call
        if call is None:
            super().on_message_complete()
        elif not call.response_complete:
            self._due = 0.0
            if call.is_too_large:
                self._relay.refuse(call, body_too_large(self._relay.max_body))
            else:
                self._relay.serve(call)
            return
        if self._is_free:
            self._expect_within(KEEP_ALIVE_S)
        else:
            self._due = 0.0

    def on_response_complete(self) -> None:
        """The answer to the current request has been written, a call's or the app's."""
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self._is_deaf or self.transport.is_closing() or not self.cycle.keep_alive:
            self._is_deaf = True
            self._close()
        else:
            self._expect_within(KEEP_ALIVE_S)

    def _hand_to_app(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        if not path_of(url):
            self.send_400_response(NO_PATH)
            raise StopParsing
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
            path = unquote(path_of(self.url).decode("latin-1"))
        return path if path in self._relay.routes else None

    def _target(self) -> bytes:
        """Path and query for the worker; a proxy's client also names the host."""
        if self.url.startswith(b"/"):
            return self.url.partition(b"#")[0]
        parsed = httptools.parse_url(self.url)
        return b"%b?%b" % (parsed.path, parsed.query) if parsed.query else bytes(parsed.path)

    # -- requests that offer another protocol, as Java's HTTP client does by default --------------------------------

    def _length_behind_upgrade(self, method: bytes) -> int:
        """The body's length: httptools takes such a request for one without a body, and what follows for the next."""
        if method == b"CONNECT" or any(name == b"transfer-encoding" for name, _ in self.headers):
            self.send_400_response("Send a Content-Length, or no Upgrade header.")
            raise StopParsing
        return length_of(self.headers)

    def _take_unparsed(self, data: bytes) -> bytes:
        """A piece of such a body; returns what is not of it."""
        body, rest = data[: self._unparsed], data[self._unparsed :]
        self._unparsed -= len(body)
        try:
            self.on_body(body)
        except StopParsing:
            self._is_deaf = True
            return b""
        if self._unparsed:
            self._wait_for_rest(len(body))
        elif self._incomplete:
            self.on_message_complete()
        return rest

    # -- time ------------------------------------------------------------------------------------------------------

    def _wait_for_rest(self, size: int) -> None:
        """A request has come in part; ``size`` bytes of the last read, which may hold an earlier one's end."""
        if self._in_body and self._fresh >= BODY_PIECE_BYTES:
            self._fresh = 0
            self._expect_within(self._relay.body_timeout_s)
        self._bare = self._bare + size if self._bare >= 0 else 0
        if self._bare <= MAX_HEAD_BYTES:
            return
        if self._in_body:
            self._refuse_bytes()
            return
        self._is_deaf = True
        self.transport.write(HEAD_TOO_LARGE)
        self._close()

    def _expect_within(self, seconds: float) -> None:
        self._due = self.loop.time() + seconds
        if self._timer is not None:
            if self._timer_at <= self._due:
                return
            self._timer.cancel()
        self._arm()

    def _arm(self) -> None:
        if self.parser is None:  # the connection is lost: a timer would only keep it in memory
            return
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
        call = self._call
        if self.flow.read_paused:  # it is we who keep the client waiting
            self._expect_within(self._relay.body_timeout_s)
        elif self.transport.is_closing():
            self.transport.abort()  # whoever does not read must not keep us
        elif self._incomplete and call is not None and not call.response_complete:
            call.keep_alive = False
            self._relay.refuse(call, body_timeout(self._relay.body_timeout_s))
        else:
            self._close()


def path_of(target: bytes) -> bytes:
    """The path that a request names, with or without a host before it; b"" where it names none."""
    try:
        return httptools.parse_url(target).path or b""
    except httptools.HttpParserInvalidURLError:
        return b""


def length_of(headers: list[Header]) -> int:
    """The announced length of a body; 0 without one. The parser has seen to it that it is a number."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)
