"""Prometheus metrics of any producer, under the prefix ``warrener_``.

    registry.register(ProducerCollector(producer))        # prometheus_client's REGISTRY, or one of your own

Nothing is measured here: a scrape reads the producer's plain counters and its `status()`, which costs the same whatever
has happened before, waits for nothing and changes nothing. All labels come from closed sets, so a broker cannot make
series; every series is there from the start, at zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from warrener._histogram import Histogram
from warrener.errors import FaultKind
from warrener.records import ConnectionState, Status

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError:
    raise ImportError("warrener.metrics needs prometheus_client: pip install 'warrener[metrics]'") from None

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BREAKER_STATES", "Measured", "ProducerCollector", "connection_families", "counter", "gauge", "histogram"]

#: How the breaker's states are numbered in gauges.
BREAKER_STATES: Mapping[str, int] = {"closed": 0, "open": 1, "half_open": 2}

_OUTCOMES = ("confirmed", "rejected", "nacked", "unknown")

_COUNTERS: Mapping[str, tuple[str, str]] = {
    "accepted": ("publishes_accepted", "Publishes that the producer took responsibility for"),
    "cancelled": ("publishes_cancelled", "Publishes cancelled before anything was handed to the network"),
    "resent": ("publishes_resent", "Attempts beyond the first, each of a message whose fate was unknown"),
    "returned": ("publishes_returned", "Messages that the broker returned because no queue took them"),
    "late": ("confirms_late", "Answers that came after the deadline of their publish"),
    "anomalies": ("anomalies", "Facts that a correct broker does not state, such as a tag settled twice"),
    "state_changes": ("connection_state_changes", "Changes of the connection's state, the machine's finer ones included"),
    "reconnect_attempts": ("reconnection_attempts", "Dials made to get a connection back"),
    "breaker_trips": ("circuit_breaker_trips", "How often the circuit breaker opened"),
    "dials_failed": ("dials_failed", "Dials that ended without a link"),
    "links_lost": ("links_lost", "Links that were lost after they had been opened"),
}  # fmt: skip


class Measured(Protocol):
    """What a collector reads of a producer."""

    @property
    def counters(self) -> Mapping[str, int]:
        """What has happened since the start."""
        ...

    @property
    def faults(self) -> Mapping[FaultKind, int]:
        """How often each kind of fault ended a dial or a link."""
        ...

    @property
    def reconnect_times(self) -> Histogram:
        """Seconds from the loss of a link to the next one being up."""
        ...

    def status(self) -> Status:
        """The producer at this instant."""
        ...


def counter(name: str, text: str, value: float) -> Metric:
    """Return one counter without labels; its sample ends in ``_total``."""
    return CounterMetricFamily(name, text, value=value)


def gauge(name: str, text: str, value: float) -> Metric:
    """Return one gauge without labels."""
    return GaugeMetricFamily(name, text, value=value)


def labelled(family: CounterMetricFamily | GaugeMetricFamily, samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """Return the family with a sample for each set of label values."""
    for labels, value in samples:
        family.add_metric(list(labels), value)
    return family


def histogram(name: str, text: str, labels: Sequence[str], items: Iterable[tuple[Sequence[str], Histogram]]) -> Metric:
    """Return a histogram with one set of buckets for each set of label values."""
    family = HistogramMetricFamily(name, text, labels=list(labels))
    for values, item in items:
        below = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, item.bounds), "+Inf"), item.counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(list(values), buckets, item.total)
    return family


def connection_families(producer: Measured, prefix: str) -> Iterator[Metric]:
    """Yield what is the same for the library's collector and the ML service's, under their own prefixes."""
    status = producer.status()
    yield labelled(
        GaugeMetricFamily(f"{prefix}connection_state", "1 for the present state", labels=["state"]),
        (([state.value], float(status.connection_state is state)) for state in ConnectionState),
    )
    yield gauge(
        f"{prefix}circuit_breaker_state", "0 closed, 1 open, 2 half-open", BREAKER_STATES[status.circuit_breaker]
    )
    yield gauge(
        f"{prefix}reconnect_attempts", "Dials since the connection was last proven healthy", status.reconnect_attempts
    )
    yield labelled(
        CounterMetricFamily(
            f"{prefix}connection_errors", "Dials and links that ended by a fault, by its kind", labels=["error_type"]
        ),
        (([kind.value], producer.faults.get(kind, 0)) for kind in FaultKind),
    )


class ProducerCollector(Collector):
    """Collects from one producer; register it once, in any registry."""

    def __init__(self, producer: Measured) -> None:
        self._producer = producer

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        producer = self._producer
        counters, status = producer.counters, producer.status()
        yield from connection_families(producer, "warrener_")
        yield labelled(
            CounterMetricFamily("warrener_publishes", "Publishes that have their outcome", labels=["outcome"]),
            (([outcome], counters.get(outcome, 0)) for outcome in _OUTCOMES),
        )
        for key, (name, text) in _COUNTERS.items():
            yield counter(f"warrener_{name}", text, counters.get(key, 0))
        yield gauge("warrener_in_flight", "Messages written and not yet confirmed", status.in_flight)
        yield gauge("warrener_buffered", "Messages accepted and not yet written", status.buffered)
        yield gauge("warrener_consecutive_failures", "As the breaker counts them", status.consecutive_failures)
        yield gauge("warrener_blocked", "1 while the broker blocks publishing", status.blocked)
        yield gauge(
            "warrener_healthy", "1 when connected, not blocked, breaker not open, no confirm overdue", status.healthy
        )
        yield histogram(
            "warrener_reconnect_seconds",
            "From the loss of a link to the next one being up",
            (),
            [((), producer.reconnect_times)],
        )
