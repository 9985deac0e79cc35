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
from collections.abc import Sequence
from typing import Final

import httptools
import uvloop

from bench.answers import answer_to, request_body

SEEDS: Final = 16
"""So many different questions are asked in turn: a mixed-up answer is noticed."""
CLIENT_KEY: Final = "bench-key"
PLAIN_HEADERS: Final = ("accept: */*", "user-agent: ichat-bench", f"authorization: Bearer {CLIENT_KEY}")
OPENAI_HEADERS: Final = (
    "accept-encoding: gzip, deflate", "connection: keep-alive", "accept: application/json",
    "user-agent: AsyncOpenAI/Python 2.54.0", "x-stainless-lang: python", "x-stainless-package-version: 2.54.0",
    "x-stainless-os: Linux", "x-stainless-arch: x64", "x-stainless-runtime: CPython",
    "x-stainless-runtime-version: 3.11.7", f"authorization: Bearer {CLIENT_KEY}", "x-stainless-async: async:asyncio",
    "x-stainless-retry-count: 0", "x-stainless-read-timeout: 600",
)  # fmt: skip
"""What the openai package sends besides host, type and length."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """``requests`` and ``warm_up`` are totals over all connections. ``chunks`` per stream; 0: not streamed.

    ``spread_s``: the connections' first requests are spread over this time, so that streams do not march in step.
    """

    port: int
    connections: int
    requests: int
    warm_up: int
    chunks: int = 0
    spread_s: float = 0.0
    limit_s: float = 120.0
    openai_headers: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """``answers``: whole and right ones. ``reads``: pieces of body as they came; chunks that melt together are one."""

    answers: int
    errors: int
    trouble: list[str]
    wall_s: float
    reads: int
    first_byte_p50_us: float
    first_byte_p99_us: float
    gap_p50_us: float
    gap_p99_us: float


class Tally:
    """Counts a run, and hands out its requests."""

    def __init__(self, requests: int) -> None:
        self.left = requests
        self.answers = 0
        self.errors = 0
        self.trouble: list[str] = []
        self.reads = 0
        self.first_byte_s = array.array("d")
        self.gaps_s = array.array("d")

    def fail(self, what: str) -> None:
        self.errors += 1
        if what not in self.trouble and len(self.trouble) < 5:
            self.trouble.append(what)

    def outcome(self, wall_s: float) -> Outcome:
        return Outcome(
            self.answers, self.errors, self.trouble, wall_s, self.reads,
            quantile(self.first_byte_s, 0.5) * 1e6, quantile(self.first_byte_s, 0.99) * 1e6,
            quantile(self.gaps_s, 0.5) * 1e6, quantile(self.gaps_s, 0.99) * 1e6,
        )  # fmt: skip


class Client(asyncio.Protocol):
    """One keep-alive connection that asks, checks the answer, and asks again."""

    def __init__(self, questions: Sequence[tuple[bytes, bytes]]) -> None:
        self._questions = questions
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._tally: Tally
        self._ended: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._expected = b""
        self._asked = self._last = 0.0

    async def run(self, tally: Tally, delay_s: float) -> None:
        """Asks until the tally has no request left, or this connection breaks."""
        await asyncio.sleep(delay_s)
        self._tally = tally
        self._ended = asyncio.get_running_loop().create_future()
        self._ask()
        try:
            await self._ended
        finally:
            self._ended = None

    def close(self) -> None:
        self._transport.abort()

    def _ask(self) -> None:
        if not self._tally.left:
            self._end()
            return
        self._tally.left -= 1
        request, self._expected = self._questions[self._tally.left % len(self._questions)]
        self._pieces = []
        self._asked = time.perf_counter()
        self._transport.write(request)

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

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
        now = time.perf_counter()
        if self._pieces:
            self._tally.gaps_s.append(now - self._last)
        else:
            self._tally.first_byte_s.append(now - self._asked)
        self._pieces.append(body)
        self._last = now

    def on_message_complete(self) -> None:
        body = b"".join(self._pieces)
        self._tally.reads += len(self._pieces)
        if self._parser.get_status_code() != 200:
            self._tally.fail(f"status {self._parser.get_status_code()}: {body[:200].decode(errors='replace')}")
        elif body != self._expected:
            self._tally.fail(f"{len(body)} bytes that differ from the {len(self._expected)} expected")
        else:
            self._tally.answers += 1
        self._ask()


class Generator:
    """The connections of one plan: made, warmed up, then measured."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        questions = [question(plan, seed) for seed in range(SEEDS)]
        self._clients = [Client(questions) for _ in range(plan.connections)]

    async def warm_up(self) -> Tally:
        loop = asyncio.get_running_loop()
        for client in self._clients:
            await loop.create_connection(lambda client=client: client, "127.0.0.1", self._plan.port)  # type: ignore[misc]
        return await self._run(Tally(self._plan.warm_up), 0.0)

    async def measure(self) -> tuple[Tally, float]:
        """The tally, and the seconds that it took."""
        start = time.perf_counter()
        tally = await self._run(Tally(self._plan.requests), self._plan.spread_s)
        return tally, time.perf_counter() - start

    async def _run(self, tally: Tally, spread_s: float) -> Tally:
        share_s = spread_s / len(self._clients)
        try:
            async with asyncio.timeout(self._plan.limit_s):
                await asyncio.gather(*(client.run(tally, share_s * i) for i, client in enumerate(self._clients)))
        except TimeoutError:
            tally.fail(f"not done within {self._plan.limit_s:g} s")
        return tally

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        await asyncio.sleep(0)


def question(plan: Plan, seed: int) -> tuple[bytes, bytes]:
    """A request's bytes, and the body of the right answer to it."""
    body = request_body(seed, plan.chunks)
    lines = (
        "POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{plan.port}",
        *(OPENAI_HEADERS if plan.openai_headers else PLAIN_HEADERS),
        "content-type: application/json", f"content-length: {len(body)}", "\r\n",
    )  # fmt: skip
    return "\r\n".join(lines).encode() + body, answer_to(body).body


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed; 0 of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0.0


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            generator = Generator(Plan(**json.loads(line)))
            warm_up = runner.run(generator.warm_up())
            print("ready", flush=True)
            sys.stdin.readline()
            tally, wall_s = runner.run(generator.measure())
            tally.errors += warm_up.errors
            tally.trouble += warm_up.trouble
            print(json.dumps(dataclasses.asdict(tally.outcome(wall_s))), flush=True)
            runner.run(generator.close())


if __name__ == "__main__":
    main()
