"""What a server counts, under the names of Databricks' export, written by Prometheus' own library.

Requests are counted per endpoint and served entity: the latter is empty where none was asked, the former too where a
request is for no endpoint. Tokens are counted for whatever the process asks, SQL included.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from aiquery_serving.messages import Json
    from aiquery_serving.rest.messages import Exchange
    from aiquery_serving.usage import Invocation

#: Upper bounds of the latency's buckets, in milliseconds.
LATENCIES_MS: Final = (
    1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000,
)  # fmt: skip
#: Where Prometheus' library shares values between processes, if it does: it looks as it is imported.
SHARED_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"

_CLIENT_ERRORS, _SERVER_ERRORS = 400, 500
_ENDPOINT, _ENTITY = "endpoint_name", "served_entity_name"
#: What is told of engines: the number in their report, the metric's name and what it is.
_ENGINE_NUMBERS: Final = {
    "running": ("engine_requests_running", "Requests in the batch of a model's engine"),
    "waiting": ("engine_requests_waiting", "Requests that wait for room in the batch of a model's engine"),
    "completion_tokens": ("engine_tokens_given", "Tokens that a model's engine has given since it was loaded"),
    "prefix_hit_rate": (
        "engine_prefix_hit_ratio",
        "Share of prompts' tokens that were taken over rather than computed",
    ),
    "kv_tokens_used": ("engine_kv_tokens_used", "Tokens in the key-value memory of a model's engine"),
}
#: Of these, what several processes cannot add up: the one that looked last tells it.
_SHARES: Final = {"prefix_hit_rate"}
_STATM: Final = Path("/proc/self/statm")


class _Served(NamedTuple):
    """The counters of one served entity's requests."""

    requests: Counter
    client_errors: Counter
    server_errors: Counter
    latency_ms: Histogram

    def took(self, status: int, latency_ms: float) -> None:
        self.requests.inc()
        self.latency_ms.observe(latency_ms)
        if status >= _SERVER_ERRORS:
            self.server_errors.inc()
        elif status >= _CLIENT_ERRORS:
            self.client_errors.inc()


class Metrics:
    """Counts requests, as an observer of the server, and tokens; several processes may count together.

    Args:
        shared: Whether to export what all processes counted that share a folder (`SHARED_FOLDER`).
    """

    def __init__(self, *, shared: bool = False) -> None:
        registry = CollectorRegistry()
        labels = (_ENDPOINT, _ENTITY)
        self._requests = Counter("request_count", "Requests that were answered", labels, registry=registry)
        self._client_errors = Counter("request_4xx_count", "Requests refused as wrong", labels, registry=registry)
        self._server_errors = Counter("request_5xx_count", "Requests that failed", labels, registry=registry)
        self._latency_ms = Histogram(
            "request_latency_ms", "From a request's headers to the end of its answer, in milliseconds", labels,
            registry=registry, buckets=LATENCIES_MS,
        )  # fmt: skip
        self._under_way = Gauge(
            "requests_in_flight", "Requests that are being answered", [_ENDPOINT],
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._tokens_in = Counter("prompt_tokens", "Tokens sent to models", labels, registry=registry)
        self._tokens_out = Counter("completion_tokens", "Tokens that models answered with", labels, registry=registry)
        self._processor = Gauge(
            "cpu_usage_percentage", "Share of the machine's processors that the server uses",
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._memory = Gauge(
            "mem_usage_percentage", "Share of the machine's memory that the server uses",
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._engines = {
            number: Gauge(
                name,
                text,
                labels,
                registry=registry,
                multiprocess_mode="livemostrecent" if number in _SHARES else "livesum",
            )
            for number, (name, text) in _ENGINE_NUMBERS.items()
        }
        self._known_engines: set[tuple[str, str]] = set()
        self._registry = _of_all_processes() if shared else registry
        self._sampled = (time.monotonic(), time.process_time())
        # Finding a labelled counter takes longer than counting.
        self._served = lru_cache(maxsize=4096)(self._find_served)
        self._of_endpoint = lru_cache(maxsize=4096)(self._under_way.labels)

    def asked(self, exchange: Exchange) -> None:
        """Note that a request for an endpoint came."""
        self._of_endpoint(exchange.endpoint).inc()

    def ended(self, exchange: Exchange) -> None:
        """Count a request that is over."""
        if exchange.endpoint:
            self._of_endpoint(exchange.endpoint).dec()
        latency_ms = (exchange.ended - exchange.began) * 1000
        self._served(exchange.endpoint, exchange.served_entity).took(exchange.status, latency_ms)

    def invoked(self, invocation: Invocation) -> None:
        """Count the tokens of an invocation; any thread may call it."""
        if invocation.prompt_tokens or invocation.completion_tokens:
            names = (invocation.endpoint, invocation.served_entity)
            self._tokens_in.labels(*names).inc(invocation.prompt_tokens)
            self._tokens_out.labels(*names).inc(invocation.completion_tokens)

    def sample(self, engines: Iterable[Json] = ()) -> None:
        """Note what the process uses of the machine, since the last time, and what engines of models report."""
        self._note_engines({(report["endpoint"], report["served_entity"]): report for report in engines})
        at, used = time.monotonic(), time.process_time()
        passed = at - self._sampled[0]
        if passed > 0:
            self._processor.set(100 * (used - self._sampled[1]) / passed / (os.cpu_count() or 1))
            self._sampled = (at, used)
        if _STATM.exists():
            pages = int(_STATM.read_text().split()[1])
            self._memory.set(100 * pages / os.sysconf("SC_PHYS_PAGES"))

    def _note_engines(self, reports: Mapping[tuple[str, str], Json]) -> None:
        self._known_engines |= reports.keys()
        for names in self._known_engines:
            for number, gauge in self._engines.items():
                gauge.labels(*names).set(reports.get(names, {}).get(number, 0))  # one that is gone does nothing

    def export(self, endpoint: str) -> bytes:
        """Return what was counted for one endpoint, and what the server uses, as Prometheus' text."""
        return self._text(lambda labels: labels.get(_ENDPOINT) in (None, endpoint))

    def export_all(self) -> bytes:
        """Return everything that was counted, as Prometheus' text."""
        return self._text(lambda _: True)

    def _text(self, wanted: Callable[[Mapping[str, str]], bool]) -> bytes:
        chosen = CollectorRegistry()
        chosen.register(_Chosen(self._registry, wanted))
        return generate_latest(chosen)

    def _find_served(self, endpoint: str, served_entity: str) -> _Served:
        names = (endpoint, served_entity)
        return _Served(
            self._requests.labels(*names), self._client_errors.labels(*names), self._server_errors.labels(*names),
            self._latency_ms.labels(*names),
        )  # fmt: skip


class _Chosen(Collector):
    """Some of what was counted, without the times at which counting began."""

    def __init__(self, registry: CollectorRegistry, wanted: Callable[[Mapping[str, str]], bool]) -> None:
        self._registry, self._wanted = registry, wanted

    def describe(self) -> Iterable[Metric]:
        """Name nothing: the names are checked where they are given."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return the metrics."""
        for metric in self._registry.collect():
            samples = [each for each in metric.samples if self._wanted(each.labels)]
            metric.samples = [each for each in samples if not each.name.endswith("_created")]
            yield metric


def forget_process(pid: int, folder: str) -> None:
    """Leave out of what processes share the gauges of one that has ended."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


def _of_all_processes() -> CollectorRegistry:
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
