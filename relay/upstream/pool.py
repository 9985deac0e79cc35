"""All connections to all workers: a pool, and one clock for all that they are asked."""

import asyncio
from functools import partial
from typing import Final

from relay.upstream.connection import Connection
from relay.upstream.exchange import Address, ConnectFailed, ConnectionBroken, Exchange, Reader, UpstreamError

MAX_IDLE_S: Final = 60.0
"""A pooled connection unused for longer is not trusted: something between may have dropped it silently."""
MAX_IDLE_CONNECTIONS: Final = 1024
"""Per worker; more than this many idle connections are closed."""


class Upstream:
    """Where exchanges are opened and closed."""

    def __init__(self, *, connect_timeout_s: float, answer_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._idle: dict[Address, dict[Connection, None]] = {}  # the one that was used last is the last
        self._open: set[Exchange] = set()
        self._connecting: dict[Exchange, asyncio.Task[None]] = {}
        # One timer for all exchanges: a timer for each, or a look at the clock for each chunk, costs more.
        self._sweep_s = min(1.0, answer_timeout_s / 5)
        self._sweeper: asyncio.TimerHandle | None = None

    def open(self, address: Address, head: bytes, body: bytes, reader: Reader, *, is_fresh: bool = False) -> Exchange:
        """Ask; the answer, or an error, comes to ``reader``, never before this returns. On a pooled connection the
        request goes out at once. ``head`` is the request line and headers with the blank line. ``is_fresh``: not on
        a pooled one, for a body that cannot be sent again.
        """
        exchange = Exchange(address, head, body, reader, self._replace_stale)
        self._open.add(exchange)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)
        self._ask(exchange, is_fresh=is_fresh)
        return exchange

    def close(self, exchange: Exchange) -> None:
        """To be called for every open exchange, on every way out: a connection whose answer is whole goes back to
        the pool, any other is cut, so that the engine aborts. The reader hears no more of it.
        """
        exchange.is_closed = True
        self._open.discard(exchange)
        if exchange.connection is not None:
            exchange.connection.release(exchange)
        elif (task := self._connecting.pop(exchange, None)) is not None:
            task.cancel()

    def forget(self, address: Address) -> None:
        """Close the idle connections to a worker that is gone."""
        for connection in self._idle.pop(address, ()):
            connection.abort()

    def shutdown(self) -> None:
        for address in list(self._idle):
            self.forget(address)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _ask(self, exchange: Exchange, *, is_fresh: bool = False) -> None:
        connection = None if is_fresh else self._take(exchange.address)
        if connection is not None:
            connection.send(exchange)
        else:
            self._connecting[exchange] = asyncio.get_running_loop().create_task(self._connect(exchange))

    def _replace_stale(self, exchange: Exchange, error: UpstreamError) -> bool:
        """A pooled connection that the worker closed just now is replaced: nobody has read the request then, so this
        is no second attempt.
        """
        connection = exchange.connection
        if exchange.started or not isinstance(error, ConnectionBroken) or connection is None or not connection.used:
            return False
        connection.release(exchange)
        exchange.connection = None
        self._ask(exchange)
        return True

    def _sweep(self) -> None:
        self._sweeper = None
        for exchange in list(self._open):
            if not exchange.is_closed and exchange not in self._connecting:
                exchange.measure_silence(self._sweep_s, self._answer_timeout_s)
        if self._open:
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _take(self, address: Address) -> Connection | None:
        idle = self._idle.get(address)
        while idle:
            connection, _ = idle.popitem()
            if not connection.closed and connection.loop.time() - connection.idle_since < MAX_IDLE_S:
                return connection
            connection.abort()
        return None

    def _keep(self, address: Address, connection: Connection) -> None:
        idle = self._idle.get(address)
        if idle is None:
            idle = self._idle[address] = {}
        if len(idle) < MAX_IDLE_CONNECTIONS:
            idle[connection] = None
        else:
            connection.abort()

    def _lose(self, address: Address, connection: Connection) -> None:
        """It is closed. Workers come and go under many addresses: nothing is kept of one without connections."""
        idle = self._idle.get(address)
        if idle is not None:
            idle.pop(connection, None)
            if not idle:
                del self._idle[address]

    async def _connect(self, exchange: Exchange) -> None:
        """The top of the task that connects for one exchange."""
        loop, address = asyncio.get_running_loop(), exchange.address
        keep, lose = partial(self._keep, address), partial(self._lose, address)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(lambda: Connection(loop, keep, lose), *address)
        except TimeoutError:
            message = f"did not accept a connection within {self._connect_timeout_s:g} s"
            self._fail(exchange, ConnectFailed(message, refused=False))
        except ConnectionRefusedError:
            self._fail(exchange, ConnectFailed("refused the connection", refused=True))
        except (OSError, UnicodeError) as error:  # a name may be none that can be looked up
            self._fail(exchange, ConnectFailed(f"cannot be connected to: {error}", refused=False))
        else:
            del self._connecting[exchange]
            connection.send(exchange)

    def _fail(self, exchange: Exchange, error: ConnectFailed) -> None:
        del self._connecting[exchange]
        exchange.fail(error)
