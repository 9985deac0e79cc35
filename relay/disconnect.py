"""Notices that a client goes away while its request is worked on."""

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any

Receive = Callable[[], Coroutine[Any, Any, MutableMapping[str, Any]]]


class DisconnectWatch:
    """Calls ``on_gone`` when ASGI's ``receive`` says that the client has disconnected; ``stop`` ends the watch.

    It drives the coroutine of ``receive`` by hand, as a task would, because a task for each request costs more than
    all of the routing (doc/performance.md). Works with any ``receive`` that waits for asyncio's futures.
    """

    __slots__ = ("_loop", "_on_gone", "_receive", "_step", "_waiting")

    def __init__(self, receive: Receive, on_gone: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._on_gone = on_gone
        self._waiting: asyncio.Future[Any] | None = None
        self._step: Coroutine[Any, Any, MutableMapping[str, Any]] | None = receive()
        self._go_on(None)

    def stop(self) -> None:
        step, self._step = self._step, None
        if self._waiting is not None:
            self._waiting.remove_done_callback(self._go_on)
        if step is not None:
            step.close()

    def _go_on(self, _: object) -> None:
        self._waiting = None
        while self._step is not None:
            try:
                waiting = self._step.send(None)
            except StopIteration as stop:
                self._take(stop.value)
            else:
                self._wait_for(waiting)
                return

    def _take(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.disconnect":
            self._step = None
            self._on_gone()
        else:
            self._step = self._receive()

    def _wait_for(self, waiting: "asyncio.Future[Any] | None") -> None:
        if waiting is None:  # a bare yield: asyncio.sleep(0)
            self._loop.call_soon(self._go_on, None)
            return
        # What a task does with a future that a coroutine yields (asyncio.tasks): take it, and come back when done.
        waiting._asyncio_future_blocking = False
        waiting.add_done_callback(self._go_on)
        self._waiting = waiting
