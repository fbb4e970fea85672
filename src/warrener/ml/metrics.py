"""Prometheus metrics of the ML producer, with the names of the former system, so that existing dashboards work.

Each call is counted once, an unknown outcome has a status of its own, and no label holds free text. Breaker
activations, one of the five numbers that operators were told to watch, are ``ml_producer_circuit_breaker_trips_total``.
"""

from __future__ import annotations

from collections.abc import Iterator

from warrener.metrics import connection_families, counter, histogram, labelled
from warrener.ml.producer import MLProducer

try:
    from prometheus_client.core import CounterMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError:
    raise ImportError("warrener.ml.metrics needs prometheus_client: pip install 'warrener[ml]'") from None

__all__ = ["MLCollector"]


class MLCollector(Collector):
    """Collects from one `MLProducer`."""

    def __init__(self, ml: MLProducer) -> None:
        self._ml = ml

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        tasks, producer = self._ml.counters, self._ml.producer
        counters = producer.counters
        yield labelled(
            CounterMetricFamily(
                "ml_producer_tasks_sent", "Tasks, by how the call ended", labels=["task_type", "status"]
            ),
            tasks.sent.items(),
        )
        yield labelled(
            CounterMetricFamily("ml_producer_task_retries", "Attempts beyond the first", labels=["task_type"]),
            (([kind], count) for kind, count in tasks.retries.items()),
        )
        yield from connection_families(producer, "ml_producer_")
        yield counter(
            "ml_producer_circuit_breaker_trips",
            "How often the circuit breaker opened",
            counters.get("breaker_trips", 0),
        )
        yield histogram(
            "ml_producer_task_publish_duration_seconds",
            "From the call to its end",
            ("task_type", "status"),
            tasks.durations.items(),
        )
        yield histogram(
            "ml_producer_message_size_bytes",
            "Size of the bodies",
            ("task_type",),
            (([kind], sizes) for kind, sizes in tasks.sizes.items()),
        )
        yield counter(
            "ml_producer_connection_state_changes",
            "Changes of the connection's state, also those between two internal states of one public state",
            counters.get("state_changes", 0),
        )
        yield counter(
            "ml_producer_reconnection_attempts",
            "Dials made to get a connection back",
            counters.get("reconnect_attempts", 0),
        )
        yield labelled(
            CounterMetricFamily("ml_producer_publish_failures", "Calls that raised, by their error", labels=["reason"]),
            (([reason], count) for reason, count in tasks.failures.items()),
        )
        yield histogram(
            "ml_producer_reconnect_seconds",
            "From the loss of a link to the next one being up",
            (),
            [((), producer.reconnect_times)],
        )
