"""The load generator: a process that asks on many connections and checks every byte of every answer.

    python -m bench.load

Reads a ``Plan`` a line from standard input (JSON). For each it connects and warms up, prints ``ready``, waits for a
line ``go``, then asks, and prints an ``Outcome``. Ends with its input.
"""

import array
import asyncio
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import httptools
import uvloop

from bench.answers import text_of
from bench.plan import Outcome, Plan
from bench.questions import Question, questions
from utils.common import raise_open_files_limit

WRONG_SHOWN: Final = 200
"""Bytes of a body with a wrong status that are shown."""


class Tally:
    """Counts a run, and hands out its requests."""

    def __init__(self, requests: int, window: tuple[float, float] = (0.0, 0.0)) -> None:
        self.left = requests
        self.answers = 0
        self.errors = 0
        self.trouble: list[str] = []
        self.reads = 0
        self.window_reads = 0
        self.first_byte_s = array.array("d")
        self.gaps_s = array.array("d")
        self._from, self._to = window

    def fail(self, what: str) -> None:
        self.errors += 1
        if what not in self.trouble and len(self.trouble) < 5:
            self.trouble.append(what)

    def count_read(self, now: float) -> None:
        self.reads += 1
        self.window_reads += self._from <= now < self._to

    def outcome(self, wall_s: float) -> Outcome:
        return Outcome(
            self.answers, self.errors, self.trouble, wall_s, self.reads, self.window_reads,
            quantile(self.first_byte_s, 0.5) * 1e6, quantile(self.first_byte_s, 0.99) * 1e6,
            quantile(self.gaps_s, 0.5) * 1e6, quantile(self.gaps_s, 0.99) * 1e6,
        )  # fmt: skip


class Client(asyncio.Protocol):
    """One keep-alive connection that asks, checks the answer, and asks again."""

    def __init__(self, question: Callable[[int], Question], by_text: bool) -> None:
        self._question = question
        self._by_text = by_text
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._tally: Tally
        self._ended: asyncio.Future[bool] | None = None
        self._asked_for = Question(b"", b"")
        self._pieces: list[bytes] = []
        self._asked = self._last = 0.0

    async def run(self, tally: Tally) -> bool:
        """Asks until the tally has no request left, or this connection is done; True: another has to go on for it."""
        self._tally = tally
        self._ended = asyncio.get_running_loop().create_future()
        self._ask()
        try:
            return await self._ended
        finally:
            self._ended = None

    def close(self) -> None:
        self._transport.abort()

    def _ask(self) -> None:
        if not self._tally.left or self._transport.is_closing():  # a server may close what is idle
            self._end(to_be_replaced=self._tally.left > 0)
            return
        self._tally.left -= 1
        self._asked_for = self._question(self._tally.left)
        self._pieces = []
        self._asked = time.perf_counter()
        self._transport.write(self._asked_for.request)

    def _end(self, to_be_replaced: bool = False) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(to_be_replaced)

    def _break(self, what: str) -> None:
        if self._ended is not None and not self._ended.done():
            self._tally.fail(what)
            self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(f"the connection was closed within an answer ({exc})")

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(f"no HTTP: {error}")
            self.close()

    def on_body(self, body: bytes) -> None:
        if self._transport.is_closing():  # gone already, within the same piece of input
            return
        now = time.perf_counter()
        self._tally.count_read(now)
        if self._pieces:
            self._tally.gaps_s.append(now - self._last)
        else:
            self._tally.first_byte_s.append(now - self._asked)
        self._pieces.append(body)
        self._last = now
        if self._asked_for.leaves:
            self._tally.answers += 1
            self._end(to_be_replaced=True)
            self.close()

    def on_message_complete(self) -> None:
        if self._transport.is_closing():
            return
        body = b"".join(self._pieces)
        if trouble := self._wrong_with(self._parser.get_status_code(), body):
            self._tally.fail(trouble)
        else:
            self._tally.answers += 1
        self._ask()

    def _wrong_with(self, status: int, body: bytes) -> str:
        asked = self._asked_for
        if status != asked.status:
            return f"status {status}, not {asked.status}: {body[:WRONG_SHOWN].decode(errors='replace')}"
        if asked.body is None or body == asked.body or (self._by_text and says_the_same(body, asked.body)):
            return ""
        return f"{len(body)} bytes that differ from the {len(asked.body)} expected"


class Generator:
    """The connections of one plan: made, warmed up, then measured."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._question = questions(plan)
        self._clients: list[Client] = []

    async def warm_up(self) -> Tally:
        tally = Tally(self._plan.warm_up)
        try:
            for _ in range(self._plan.connections):
                self._clients.append(await self._connect())
        except OSError as error:
            tally.fail(f"no connection: {error}")
        return await self._run(tally, 0.0)

    async def measure(self) -> tuple[Tally, float]:
        """The tally, and the seconds that it took."""
        start = time.perf_counter()
        opens, closes = self._plan.window_s
        tally = await self._run(Tally(self._plan.requests, (start + opens, start + closes)), self._plan.spread_s)
        return tally, time.perf_counter() - start

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        await asyncio.sleep(0)

    async def _run(self, tally: Tally, spread_s: float) -> Tally:
        share_s = spread_s / self._plan.connections
        try:
            async with asyncio.timeout(self._plan.limit_s):
                await asyncio.gather(*(self._work(i, tally, share_s * i) for i in range(len(self._clients))))
        except TimeoutError:
            tally.fail(f"not done within {self._plan.limit_s:g} s")
        return tally

    async def _work(self, number: int, tally: Tally, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            while await self._clients[number].run(tally):
                self._clients[number] = await self._connect()
        except OSError as error:
            tally.fail(f"no new connection: {error}")

    async def _connect(self) -> Client:
        client = Client(self._question, self._plan.by_text)
        await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", self._plan.port)
        return client


def says_the_same(body: bytes, other: bytes) -> bool:
    try:
        return text_of(body) == text_of(other)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed; 0 of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0.0


def carry_out(plan: Plan, runner: asyncio.Runner) -> Outcome:
    generator = Generator(plan)
    warm_up = runner.run(generator.warm_up())
    print("ready", flush=True)
    sys.stdin.readline()
    tally, wall_s = runner.run(generator.measure())
    runner.run(generator.close())
    tally.errors += warm_up.errors
    tally.trouble += warm_up.trouble
    return tally.outcome(wall_s)


def main() -> None:
    raise_open_files_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            outcome = carry_out(Plan(**json.loads(line)), runner)
            print(json.dumps(dataclasses.asdict(outcome)), flush=True)


if __name__ == "__main__":
    main()
