"""What the load generator is told, and what it tells: the records on the pipe between a bench and ``bench.load``."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """``requests`` and ``warm_up`` are totals over all connections. ``chunks`` per stream; 0: not streamed.

    ``spread_s``: the connections' first requests are spread over this time, so that streams do not march in step.
    ``by_text``: what an answer says is compared, not its bytes, for peers that write answers anew.
    ``mixture``: the requests of ``bench.soak`` instead, numbered from ``first``, so that each is asked once.
    ``window_s``: from when to when, in seconds after the start, ``Outcome.window_reads`` are counted.
    """

    port: int
    connections: int
    requests: int
    warm_up: int
    chunks: int = 0
    spread_s: float = 0.0
    limit_s: float = 120.0
    openai_headers: bool = False
    by_text: bool = False
    mixture: bool = False
    first: int = 0
    window_s: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """``answers``: requests that went as planned. ``reads``: pieces of body as they came; chunks that melt are one."""

    answers: int
    errors: int
    trouble: list[str]
    wall_s: float
    reads: int
    window_reads: int
    first_byte_p50_us: float
    first_byte_p99_us: float
    gap_p50_us: float
    gap_p99_us: float
