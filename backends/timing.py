"""What became of one request within the engine: how long it waited, was read, and was answered."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Times:
    """Moments of one sequence in the engine, in seconds of the engine's own clock; 0: not known, or not reached."""

    queued: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Spans:
    """Where a request's time went, in seconds, and how many tokens came of it; None: not known."""

    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    tokens: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Over prefill and decode."""
        busy_s = (self.prefill_s or 0.0) + (self.decode_s or 0.0)
        return self.tokens / busy_s if busy_s and self.tokens else None


class Recorder:
    """Collects the times of one request's sequences: there are several for ``n`` > 1, and for a list of prompts."""

    def __init__(self) -> None:
        self._sources: list[Callable[[], Times]] = []

    def note(self, source: Callable[[], Times]) -> None:
        """``source`` gives a sequence's times once the request has been answered."""
        self._sources.append(source)

    def spans(self) -> Spans | None:
        """None where the engine said nothing."""
        return combine([source() for source in self._sources])


def combine(all_times: list[Times]) -> Spans | None:
    """Of a request with several sequences: from the first one's start to the last one's end."""
    queued, scheduled = earliest(all_times, "queued"), earliest(all_times, "scheduled")
    first_token, last_token = latest(all_times, "first_token"), latest(all_times, "last_token")
    if not scheduled:
        return None
    return Spans(
        queue_s=span(queued, scheduled),
        prefill_s=span(scheduled, first_token),
        decode_s=span(first_token, last_token),
        tokens=sum(times.tokens for times in all_times),
    )


def earliest(all_times: list[Times], name: str) -> float:
    return min((getattr(times, name) for times in all_times if getattr(times, name)), default=0.0)


def latest(all_times: list[Times], name: str) -> float:
    return max((getattr(times, name) for times in all_times), default=0.0)


def span(start: float, end: float) -> float | None:
    return max(end - start, 0.0) if start and end else None


RECORDER: ContextVar[Recorder | None] = ContextVar("ichat_recorder", default=None)
"""That of the request which the running task answers."""


def note_times(source: Callable[[], Times]) -> None:
    """For an engine's hooks: the times belong to the request at hand, if somebody wants to know."""
    recorder = RECORDER.get()
    if recorder is not None:
        recorder.note(source)


def times_of_stats(stats: Any) -> Times:
    """vLLM's ``RequestStateStats``, which grow with the request."""
    return Times(stats.queued_ts, stats.scheduled_ts, stats.first_token_ts, stats.last_token_ts,
                 stats.num_generation_tokens)  # fmt: skip


def times_of_meta_info(meta_info: dict[str, Any]) -> Times:
    """SGLang's ``meta_info`` of a finished sequence (with ``--enable-metrics``, which a worker gives)."""
    scheduled = float(meta_info.get("forward_entry_time") or 0.0)
    return Times(
        queued=scheduled - float(meta_info.get("queue_time") or 0.0) if scheduled else 0.0,
        scheduled=scheduled,
        first_token=float(meta_info.get("prefill_finished_time") or 0.0),
        last_token=float(meta_info.get("request_finished_ts") or 0.0),
        tokens=int(meta_info.get("completion_tokens") or 0),
    )
