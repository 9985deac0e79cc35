"""All Prometheus families of the gateway, one place. The worker's own are in ``worker/metrics.py``."""

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from monitor.registry import Worker

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Upper bounds of the buckets."""
BUCKETS: Final = (*map(floatToGoString, SECONDS), "+Inf")


class Seconds:
    """A histogram's numbers for one model."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * len(BUCKETS)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        return list(zip(BUCKETS, accumulate(map(float, self.counts)), strict=True))


class RelayMetrics(Collector):
    """What the relay counts, in plain numbers that become families when they are asked for.

    prometheus_client's own counters lock and look up at every request, which costs a tenth of the relay's time
    (doc/performance.md). All calls but ``collect`` are made on one event loop's thread; that is made in another, and so
    takes what it reads out of each dictionary at once.
    """

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self._worker_errors: dict[tuple[str, str], int] = defaultdict(int)
        self._seconds: dict[str, Seconds] = defaultdict(Seconds)
        self._first_byte: dict[str, Seconds] = defaultdict(Seconds)
        self._gone_on: dict[str, int] = defaultdict(int)
        self._queued: dict[str, Seconds] = defaultdict(Seconds)
        self._queue_left: dict[tuple[str, str], int] = defaultdict(int)

    def observe(self, model: str, route: str, status: int, arrived: float, first_byte_at: float) -> None:
        """A request has ended. The times are ``time.perf_counter()`` values; ``first_byte_at`` 0: there was none.

        ``model`` is "" for an unknown one.
        """
        self._requests[model, route, status] += 1
        self._seconds[model].add(time.perf_counter() - arrived)
        if first_byte_at:
            self._first_byte[model].add(first_byte_at - arrived)

    def queue_left(self, model: str, outcome: str, seconds: float) -> None:
        """A request waited so long in its model's queue; ``outcome``: see ``relay/admission/admission.py``."""
        self._queue_left[model, outcome] += 1
        if outcome == "served":
            self._queued[model].add(seconds)

    def stream_went_on(self, model: str) -> None:
        """A stream broke, and another replica was asked to go on with it."""
        self._gone_on[model] += 1

    def worker_error(self, worker_id: str, kind: str) -> None:
        self._worker_errors[worker_id, kind] += 1

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "ichat_gateway_requests", "Answered requests. status 499: the client went away first.",
            labels=["model", "route", "status"],
        )  # fmt: skip
        for (model, route, status), count in list(self._requests.items()):
            requests.add_metric([model, route, str(status)], count)
        yield requests
        yield histogram("request", "From a request's arrival to the end of its answer.", self._seconds)
        yield histogram("first_byte", "From a request's arrival to the first byte of its answer.", self._first_byte)
        yield histogram("queue", "What requests waited that found no free replica, and were served.", self._queued)
        left = CounterMetricFamily(
            "ichat_gateway_queue_left", "Requests that found no free replica, by what became of them.",
            labels=["model", "outcome"],
        )  # fmt: skip
        for (model, outcome), count in list(self._queue_left.items()):
            left.add_metric([model, outcome], count)
        yield left
        gone_on = CounterMetricFamily(
            "ichat_gateway_streams_gone_on",
            "Streams that broke, for which another replica was asked.",
            labels=["model"],
        )
        for model, count in list(self._gone_on.items()):
            gone_on.add_metric([model], count)
        yield gone_on
        errors = CounterMetricFamily(
            "ichat_gateway_worker_errors", "Attempts that failed at a worker.", labels=["worker_id", "kind"]
        )
        for (worker_id, kind), count in list(self._worker_errors.items()):
            errors.add_metric([worker_id, kind], count)
        yield errors


def histogram(what: str, documentation: str, models: Mapping[str, Seconds]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"ichat_gateway_{what}_seconds", documentation, labels=["model"])
    for model, seconds in list(models.items()):
        family.add_metric([model], seconds.buckets(), seconds.total)
    return family


class WorkersCollector(Collector):
    """The workers, their requests in flight, and those that wait; read at the time of the scrape, in its thread."""

    def __init__(
        self,
        workers: Callable[[], Iterable[Worker]],
        in_flight: Callable[[], Mapping[str, int]],
        waiting: Callable[[], Mapping[str, int]],
    ) -> None:
        self._workers = workers
        self._in_flight = in_flight
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("ichat_gateway_workers", "Workers by model and state.", labels=["model", "state"])
        counts: dict[tuple[str, str], int] = {}
        for worker in self._workers():
            key = (worker.beat.model_name, worker.state.value)
            counts[key] = counts.get(key, 0) + 1
        for labels, count in counts.items():
            states.add_metric(labels, count)
        yield states
        flying = GaugeMetricFamily(
            "ichat_gateway_in_flight", "Requests that this gateway has at a worker.", labels=["worker_id"]
        )
        for worker_id, count in list(self._in_flight().items()):
            flying.add_metric([worker_id], count)
        yield flying
        waiting = GaugeMetricFamily("ichat_gateway_waiting", "Requests in a model's queue.", labels=["model"])
        for model, count in self._waiting().items():
            waiting.add_metric([model], count)
        yield waiting
