"""What the server counts, for Prometheus.

Responsible for names and values. Not responsible for when something happens (service.py).

Several processes behind one port count together: each keeps its values in files of the directory
``METRICS_DIRECTORY`` (prometheus-client's multiprocess mode), and whichever is asked answers
with the sums. Otherwise a counter would jump between the values of the processes.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from chatterbox_opt.server.settings import METRICS_DIRECTORY

SECONDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
LAG = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
REALTIME = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._process = ProcessCollector(registry=self._registry)
        name = "chatterbox_requests"
        self.requests = Counter(name, "Requests by outcome.", ["outcome"], registry=self._registry)
        self.active = self._gauge(
            "requests_active", "Requests that are queued or being synthesized."
        )
        self.slots = self._gauge("slots", "Decode slots of the engines that are loaded.")
        self._memory = self._gauge("memory_bytes", "Memory of all server processes.")
        self.first_audio = self._histogram(
            "first_audio_seconds", "From a request to the first bytes of sound.", SECONDS
        )
        self.realtime = self._histogram(
            "realtime_factor", "Seconds of sound a second, of finished requests.", REALTIME
        )
        self.lag = self._histogram(
            "event_loop_lag_seconds",
            "How late the event loop wakes a task, ten times a second.",
            LAG,
        )
        self.audio = Counter(
            "chatterbox_audio_seconds", "Seconds of sound that were made.", registry=self._registry
        )

    def measure_memory(self) -> None:
        """Note this process's memory, where the system tells it."""
        for metric in self._process.collect():
            if metric.name == "process_resident_memory_bytes":
                self._memory.set(metric.samples[0].value)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format, of all processes."""
        self.measure_memory()
        if METRICS_DIRECTORY not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"chatterbox_{name}", help_, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, help_: str) -> Gauge:
        """A value of which that of the server is the sum over its processes."""
        return Gauge(
            f"chatterbox_{name}", help_, registry=self._registry, multiprocess_mode="livesum"
        )
