"""The worker's own Prometheus families, beside the engine's."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from backends.base import Progress
from backends.status import WorkerStatus
from backends.timing import Spans
from config.states import WorkerState
from monitor.heartbeat import GpuMemory


class Traffic:
    """Requests that went to the engine."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.requests = 0
        self.turned_away = 0
        self.timed = 0
        self.queue_s = 0.0
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self.tokens = 0

    def report(self) -> dict[str, float]:
        """For the heartbeat; the gateway learns from the sums how fast this worker is (``relay/routing/speeds.py``)."""
        return {
            "in_flight": self.in_flight,
            "requests": self.requests,
            "timed": self.timed,
            "queue_s": round(self.queue_s, 6),
            "prefill_s": round(self.prefill_s, 6),
            "decode_s": round(self.decode_s, 6),
            "tokens": self.tokens,
        }

    def add_spans(self, spans: Spans | None) -> None:
        """Where an answered request's time went; None where the engine does not tell."""
        if spans is not None and spans.prefill_s is not None:
            self.timed += 1
            self.queue_s += spans.queue_s or 0.0
            self.prefill_s += spans.prefill_s or 0.0
            self.decode_s += spans.decode_s or 0.0
            self.tokens += spans.tokens


class WorkerCollector(Collector):
    """State, load time, traffic and GPU memory, read at the time of the scrape."""

    def __init__(
        self,
        status: WorkerStatus,
        traffic: Traffic,
        progress: Callable[[], Progress],
        gpus: Callable[[], Sequence[GpuMemory]],
        restarts: int,
    ) -> None:
        self._status = status
        self._traffic = traffic
        self._progress = progress
        self._gpus = gpus
        self._restarts = restarts

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("ichat_worker_state", "1 for the state the worker is in.", labels=["state"])
        for each in WorkerState:
            state.add_metric([each.value], float(each is self._status.state))
        yield state
        if self._status.load_seconds is not None:
            yield GaugeMetricFamily(
                "ichat_worker_load_seconds", "From the open door to ready.", value=self._status.load_seconds
            )
        yield GaugeMetricFamily(
            "ichat_worker_in_flight", "Requests that came in and are not answered.", value=self._traffic.in_flight
        )
        progress = self._progress()
        yield GaugeMetricFamily(
            "ichat_worker_engine_running", "Requests that are in the engine, by its own word.", value=progress.running
        )
        yield CounterMetricFamily(
            "ichat_worker_engine_steps", "Times that the engine got on with some request.", value=progress.steps
        )
        yield CounterMetricFamily(
            "ichat_worker_requests", "Requests passed to the engine.", value=self._traffic.requests
        )
        yield CounterMetricFamily(
            "ichat_worker_turned_away", "Requests refused because of the state.", value=self._traffic.turned_away
        )
        yield CounterMetricFamily(
            "ichat_worker_restarts", "Times that its gateway started this worker again.", value=self._restarts
        )
        yield from self._collect_times()
        yield from gpu_families(self._gpus())

    def _collect_times(self) -> Iterator[Metric]:
        """By the engine's own clock, of requests that were answered."""
        traffic = self._traffic
        for name, what, value in (
            ("timed_requests", "Requests whose times the engine told.", traffic.timed),
            ("queue_seconds", "Time that requests waited in the engine.", traffic.queue_s),
            ("prefill_seconds", "Time from there to the first token.", traffic.prefill_s),
            ("decode_seconds", "Time from the first token to the last.", traffic.decode_s),
            ("generated_tokens", "Tokens generated for these requests.", traffic.tokens),
        ):
            yield CounterMetricFamily(f"ichat_worker_{name}", what, value=value)


def gpu_families(gpus: Sequence[GpuMemory]) -> Iterator[Metric]:
    """Nothing where there are no GPUs. ``gpu`` is the physical id."""
    used = GaugeMetricFamily(
        "ichat_worker_gpu_memory_used_bytes", "Memory in use on a GPU of the worker, by all programs.", labels=["gpu"]
    )
    total = GaugeMetricFamily("ichat_worker_gpu_memory_total_bytes", "Memory of a GPU of the worker.", labels=["gpu"])
    for gpu in gpus:
        for family, value in ((used, gpu.used), (total, gpu.total)):
            if value is not None:
                family.add_metric([str(gpu.gpu_id)], value)
    yield from (family for family in (used, total) if family.samples)


def create_registry(
    status: WorkerStatus,
    traffic: Traffic,
    progress: Callable[[], Progress],
    gpus: Callable[[], Sequence[GpuMemory]] = tuple,
    restarts: int = 0,
) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(WorkerCollector(status, traffic, progress, gpus, restarts))
    return registry
