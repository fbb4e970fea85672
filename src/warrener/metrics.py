"""Prometheus metrics of any producer, under the prefix ``warrener_``.

    registry.register(ProducerCollector(producer))        # prometheus_client's REGISTRY, or your own registry

Each series has the label ``producer``, the producer's name, so several producers can share a registry.

A scrape reads the producer's plain counters and its `status()`. It always costs the same, waits for nothing and changes
nothing. The values of all other labels come from closed sets, so a broker cannot make series. Every series exists from the
start, at zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from warrener._histogram import Histogram
from warrener.errors import FaultKind
from warrener.records import ConnectionState, Status

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError:
    raise ImportError(
        "metrics need prometheus_client: pip install 'warrener[metrics]'", name="prometheus_client"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BREAKER_STATES", "Measured", "ProducerCollector", "connection_families", "counter", "gauge", "histogram"]

#: How the breaker's states are numbered in gauges.
BREAKER_STATES: Mapping[str, int] = {"closed": 0, "open": 1, "half_open": 2}

#: The largest number of endpoints that have series of their own.
_MAX_ENDPOINTS = 32

_OUTCOMES = ("confirmed", "rejected", "nacked", "unknown")

_COUNTERS: Mapping[str, tuple[str, str]] = {
    "accepted": ("publishes_accepted", "Publishes that the producer accepted"),
    "cancelled": ("publishes_cancelled", "Publishes cancelled before they were begun"),
    "resent": ("publishes_resent", "Attempts beyond the first, each of a message without an outcome"),
    "suppressed": ("publishes_suppressed", "Further attempts that a retry budget or the share of a destination forbade"),
    "returned": ("publishes_returned", "Messages that the broker returned because no queue took them"),
    "overdue": ("confirms_overdue", "Messages that waited longer than confirm_timeout while the broker answered others"),
    "late": ("confirms_late", "Confirms that came after the deadline of their publish"),
    "anomalies": ("anomalies", "Answers that a correct broker does not give, such as two confirms of one tag"),
    "state_changes": (
        "connection_state_changes",
        "Changes of the connection's state, also those between two internal states of one public state",
    ),
    "reconnect_attempts": ("reconnection_attempts", "Dials after the first one"),
    "breaker_trips": ("circuit_breaker_trips", "How often the circuit breaker opened"),
    "dials_failed": ("dials_failed", "Dials that ended without a link"),
    "links_lost": ("links_lost", "Links that were lost after they had been opened"),
}  # fmt: skip


class Measured(Protocol):
    """The part of a producer that a collector reads."""

    @property
    def name(self) -> str:
        """The value of the label ``producer``."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """Numbers of events since the start."""
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
        for bound, observed in zip((*map(str, item.bounds), "+Inf"), item.counts, strict=True):
            below += observed
            buckets.append((bound, below))
        family.add_metric(list(values), buckets, item.total)
    return family


def connection_families(producer: Measured, prefix: str) -> Iterator[Metric]:
    """Yield the metrics that the library and the ML service have in common, under the prefix of either."""
    status = producer.status()
    yield labelled(
        GaugeMetricFamily(f"{prefix}connection_state", "1 for the present state", labels=["state"]),
        (([state.value], float(status.connection_state is state)) for state in ConnectionState),
    )
    yield gauge(
        f"{prefix}circuit_breaker_state", "0 closed, 1 open, 2 half-open", BREAKER_STATES[status.circuit_breaker]
    )
    if status.outbox is not None:
        held = status.outbox
        rows = (("waiting", held.waiting), ("leased", held.leased), ("set_aside", held.set_aside))
        yield labelled(
            GaugeMetricFamily(f"{prefix}outbox_rows", "Rows in the outbox, by state", labels=["state"]),
            (([state], float(count)) for state, count in rows),
        )
        yield gauge(f"{prefix}outbox_bytes", "Bytes of the bodies in the outbox", held.bytes)
        yield gauge(f"{prefix}outbox_oldest_age_seconds", "Age of the oldest row that waits", held.oldest_age or 0.0)
    yield gauge(f"{prefix}reconnect_attempts", "Dials since the connection was last stable", status.reconnect_attempts)
    yield labelled(
        CounterMetricFamily(
            f"{prefix}connection_errors", "Dials and links that ended by a fault, by its kind", labels=["error_type"]
        ),
        (([kind.value], producer.faults.get(kind, 0)) for kind in FaultKind),
    )


#: The labels that are in use, so that two producers with equal names are told apart.
_labels: WeakValueDictionary[str, Measured] = WeakValueDictionary()


def _label_of(producer: Measured) -> str:
    """Return the producer's name; the second producer of that name gets ``name#2``."""
    labels = (producer.name if number == 1 else f"{producer.name}#{number}" for number in count(1))
    return next(label for label in labels if _labels.setdefault(label, producer) is producer)


class ProducerCollector(Collector):
    """Collects from one or several producers, for any registry.

    One collector for all producers of a registry is best: it emits each metric once, with a sample for each producer.
    """

    def __init__(self, *producers: Measured) -> None:
        self._producers = [(_label_of(producer), producer) for producer in producers]

    def describe(self) -> Iterable[Metric]:
        """Return nothing: a registry refuses a second collector that describes the same names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        for same in zip(*(self._collect(*pair) for pair in self._producers), strict=True):
            whole = same[0]
            for other in same[1:]:
                whole.samples.extend(other.samples)
            yield whole

    def _collect(self, label: str, producer: Measured) -> Iterator[Metric]:
        for metric in self._unlabelled(producer):
            metric.samples = [sample._replace(labels={"producer": label, **sample.labels}) for sample in metric.samples]
            yield metric

    def _unlabelled(self, producer: Measured) -> Iterator[Metric]:
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
        yield gauge(
            "warrener_consecutive_failures",
            "Failures in a row, as the breaker counts them",
            status.consecutive_failures,
        )
        yield gauge(
            "warrener_open_destinations",
            "Destinations whose own breaker is open, or which have an overdue message",
            counters.get("open_destinations", 0),
        )
        yield gauge("warrener_blocked", "1 while the broker blocks publishing", status.blocked)
        yield gauge(
            "warrener_healthy", "1 when connected, not blocked, breaker not open, no confirm overdue", status.healthy
        )
        up = status.connection_state is ConnectionState.CONNECTED
        links = status.links or (status,)
        yield labelled(
            GaugeMetricFamily("warrener_link_connected", "1 for each link that is up", labels=["link"]),
            (
                ([str(place)], float(link.connection_state is ConnectionState.CONNECTED))
                for place, link in enumerate(links)
            ),
        )
        yield labelled(
            GaugeMetricFamily("warrener_link_pending", "Messages of each link without an outcome", labels=["link"]),
            (([str(place)], float(link.in_flight + link.buffered)) for place, link in enumerate(links)),
        )
        # An endpoint has its place as a label: a host name can be secret, and discovery could name any number of them.
        places = status.endpoint_failures[:_MAX_ENDPOINTS]
        yield labelled(
            GaugeMetricFamily(
                "warrener_endpoint_connected",
                "1 for the endpoint in use, by its place in the list",
                labels=["endpoint"],
            ),
            (([str(place)], float(up and place == status.endpoint_position)) for place in range(len(places))),
        )
        yield labelled(
            GaugeMetricFamily(
                "warrener_endpoint_failures", "Failures in a row of each endpoint, by its place", labels=["endpoint"]
            ),
            (([str(place)], float(failures)) for place, failures in enumerate(places)),
        )
        yield histogram(
            "warrener_reconnect_seconds",
            "From the loss of a link to the next one being up",
            (),
            [((), producer.reconnect_times)],
        )
