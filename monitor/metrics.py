"""All Prometheus families of the gateway, one place. The worker's own are in ``worker/metrics.py``."""

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from monitor.registry import Worker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class RelayMetrics:
    """What the relay counts. Label sets are looked up once and kept: this is the hot path."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "ichat_gateway_requests_total",
            "Answered requests. status 499: the client went away first.",
            ["model", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "ichat_gateway_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._first_byte = Histogram(
            "ichat_gateway_first_byte_seconds",
            "From a request's arrival to the head of the worker's answer.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._upstream_errors = Counter(
            "ichat_gateway_worker_errors_total",
            "Attempts that failed at a worker.",
            ["worker_id", "kind"],
            registry=registry,
        )
        self._request_children: dict[tuple[str, str, int], Counter] = {}
        self._seconds_children: dict[str, Histogram] = {}
        self._first_byte_children: dict[str, Histogram] = {}

    def observe(self, model: str, route: str, status: int, arrived: float) -> None:
        """A request has ended. ``arrived`` is a ``time.perf_counter()`` value; ``model`` is "" for an unknown one."""
        key = (model, route, status)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_children[key] = self._requests.labels(model, route, str(status))
        child.inc()
        seconds = self._seconds_children.get(model)
        if seconds is None:
            seconds = self._seconds_children[model] = self._seconds.labels(model)
        seconds.observe(time.perf_counter() - arrived)

    def first_byte(self, model: str, arrived: float) -> None:
        child = self._first_byte_children.get(model)
        if child is None:
            child = self._first_byte_children[model] = self._first_byte.labels(model)
        child.observe(time.perf_counter() - arrived)

    def upstream_error(self, worker_id: str, kind: str) -> None:
        self._upstream_errors.labels(worker_id, kind).inc()


class WorkersCollector(Collector):
    """The workers and their requests in flight, read at the time of the scrape."""

    def __init__(self, workers: Callable[[], Iterable[Worker]], in_flight: Callable[[], dict[str, int]]) -> None:
        self._workers = workers
        self._in_flight = in_flight

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
        for worker_id, count in self._in_flight().items():
            flying.add_metric([worker_id], count)
        yield flying
