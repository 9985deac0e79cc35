"""The pool of connections to all workers."""

import asyncio
from typing import Final

from relay.exchange import ConnectFailed, Connection, ConnectionBroken, Exchange

MAX_IDLE_S: Final = 60.0
"""A pooled connection unused for longer is not trusted: something between may have dropped it silently."""
MAX_IDLE_CONNECTIONS: Final = 1024
"""Per worker; more than this many idle connections are closed."""

Address = tuple[str, int]


class Upstream:
    """All connections to all workers."""

    def __init__(self, *, connect_timeout_s: float, answer_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._idle: dict[Address, list[Connection]] = {}
        self._open: set[Exchange] = set()
        # One timer for all exchanges: a timer for each, or a look at the clock for each chunk, costs more.
        self._sweep_s = min(1.0, answer_timeout_s / 5)
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(self, address: Address, head: bytes, body: bytes) -> Exchange:
        """Send a request and wait for the head of its answer. Raises UpstreamError.

        ``head`` is the request line and headers with the blank line. A pooled connection that the worker closed just
        now is replaced by a fresh one: nobody has read the request then, so this is no second attempt.
        """
        while True:
            connection = self._take(address) or await self._connect(address)
            exchange = connection.send(head, body)
            self._watch(exchange)
            try:
                await exchange.head()
            except ConnectionBroken:
                self.close(exchange)
                if connection.used:
                    continue
                raise
            except BaseException:
                self.close(exchange)
                raise
            return exchange

    def close(self, exchange: Exchange) -> None:
        """To be called for every open exchange, on every way out: a connection whose answer is whole goes back to
        the pool, any other is cut, so that the engine aborts.
        """
        self._open.discard(exchange)
        exchange.close()

    def forget(self, address: Address) -> None:
        """Close the idle connections to a worker that is gone."""
        for connection in self._idle.pop(address, []):
            connection.abort()

    def shutdown(self) -> None:
        for address in list(self._idle):
            self.forget(address)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _watch(self, exchange: Exchange) -> None:
        self._open.add(exchange)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        for exchange in list(self._open):
            exchange.measure_silence(self._sweep_s, self._answer_timeout_s)
        if self._open:
            self._sweeper = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)

    def _take(self, address: Address) -> Connection | None:
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if not connection.closed and connection.loop.time() - connection.idle_since < MAX_IDLE_S:
                return connection
            connection.abort()
        return None

    async def _connect(self, address: Address) -> Connection:
        loop = asyncio.get_running_loop()

        def keep(connection: Connection) -> None:
            idle = self._idle.setdefault(address, [])
            if len(idle) < MAX_IDLE_CONNECTIONS:
                idle.append(connection)
            else:
                connection.abort()

        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(lambda: Connection(loop, keep), *address)
        except TimeoutError:
            message = f"did not accept a connection within {self._connect_timeout_s:g} s"
            raise ConnectFailed(message, refused=False) from None
        except ConnectionRefusedError as error:
            raise ConnectFailed("refused the connection", refused=True) from error
        except (OSError, UnicodeError) as error:  # a name may be none that can be looked up
            raise ConnectFailed(f"cannot be connected to: {error}", refused=False) from error
        return connection
