"""What the server counts, for Prometheus.

Responsible for names and values. Not responsible for when something happens (service.py).
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest

SECONDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
LAG = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
REALTIME = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50)


class Metrics:
    """The metrics of one server.

    Args:
        active: number of requests that are queued or being synthesized.
    """

    def __init__(self, active: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        name = "chatterbox_requests"
        self.requests = Counter(name, "Requests by outcome.", ["outcome"], registry=self._registry)
        self._gauge(f"{name}_active", "Requests that are queued or being synthesized.", active)
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

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"chatterbox_{name}", help_, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, help_: str, value: Callable[[], float]) -> None:
        Gauge(name, help_, registry=self._registry).set_function(value)
