"""Metrics: every series there from the start, closed label sets, and a scrape that costs the same whatever happened."""

from __future__ import annotations

import gc
import uuid

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.ml.conftest import FakeProducer
from warrener import Producer, open_producer
from warrener._histogram import Histogram
from warrener.errors import FaultKind
from warrener.metrics import ProducerCollector
from warrener.ml.metrics import MLCollector
from warrener.ml.task_counters import FAILURES, STATUSES, TASK_TYPES
from warrener.records import ConnectionState
from warrener.testing.scripted import ScriptedDriver, lives, refuses

pytestmark = pytest.mark.anyio


def scrape(*collectors) -> dict[str, dict[tuple[str, ...], float]]:
    """Return sample name → label values, in the order of their labels' names → value, as Prometheus parses the text."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = (
                sample.value
            )
    return samples


KINDS = set(TASK_TYPES.values())

EXPECTED = {
    "ml_producer_tasks_sent_total": {(status, kind) for kind in KINDS for status in STATUSES},
    "ml_producer_task_retries_total": {(kind,) for kind in KINDS},
    "ml_producer_connection_errors_total": {(kind.value,) for kind in FaultKind},
    "ml_producer_circuit_breaker_trips_total": {()},
    "ml_producer_task_publish_duration_seconds_count": {(status, kind) for kind in KINDS for status in STATUSES},
    "ml_producer_message_size_bytes_count": {(kind,) for kind in KINDS},
    "ml_producer_connection_state": {(state.value,) for state in ConnectionState},
    "ml_producer_circuit_breaker_state": {()},
    "ml_producer_reconnect_attempts": {()},
    "ml_producer_connection_state_changes_total": {()},
    "ml_producer_reconnection_attempts_total": {()},
    "ml_producer_publish_failures_total": {(reason,) for reason in {*FAILURES.values(), "other"}},
    "ml_producer_reconnect_seconds_count": {()},
}


async def test_each_series_of_the_ml_table_is_emitted_from_the_start(ml) -> None:
    """Names kept from the original; each really emitted, with labels from closed sets only."""
    found = scrape(MLCollector(ml))
    assert EXPECTED == {name: set(found[name]) for name in EXPECTED}


async def test_the_library_emits_the_same_ideas_under_its_own_prefix() -> None:
    """ProducerCollector works for any producer."""
    producer = FakeProducer(f"of its own {uuid.uuid4()}")
    producer.counters = {
        "accepted": 9,
        "confirmed": 5,
        "unknown": 1,
        "breaker_trips": 2,
        "resent": 3,
        "state_changes": 4,
    }
    producer.faults = {FaultKind.SILENT: 2}
    producer.becomes(in_flight=3)
    producer.reconnect_times.observe(3.0)
    found = scrape(ProducerCollector(producer))
    name = producer.name
    assert all(series.startswith("warrener_") for series in found)
    assert {("confirmed", name): 5, ("rejected", name): 0, ("nacked", name): 0, ("unknown", name): 1} == found[
        "warrener_publishes_total"
    ]
    assert (9, 2, 3, 4, 3, 2, 1) == (
        found["warrener_publishes_accepted_total"][name,],
        found["warrener_circuit_breaker_trips_total"][name,],
        found["warrener_publishes_resent_total"][name,],
        found["warrener_connection_state_changes_total"][name,],
        found["warrener_in_flight"][name,],
        found["warrener_connection_errors_total"]["silent", name],
        found["warrener_reconnect_seconds_count"][name,],
    )


def in_flight(*collectors: ProducerCollector) -> dict[tuple[str, ...], float]:
    return scrape(*collectors)["warrener_in_flight"]


def test_two_producers_share_a_registry() -> None:
    """Each series has the producer's name as its label; one collector for both, or one collector each."""
    first, second = FakeProducer("first"), FakeProducer("second")
    first.becomes(in_flight=1)
    second.becomes(in_flight=2)
    assert {("first",): 1, ("second",): 2} == in_flight(ProducerCollector(first, second))
    assert {("first",): 1, ("second",): 2} == in_flight(ProducerCollector(first), ProducerCollector(second))


def test_each_metric_of_a_shared_collector_is_emitted_once() -> None:
    """Prometheus allows one TYPE line for each name."""
    registry = CollectorRegistry()
    registry.register(ProducerCollector(FakeProducer("one"), FakeProducer("other")))
    types = [line for line in generate_latest(registry).decode().splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


def test_producers_of_one_name_are_told_apart() -> None:
    """Two series with equal labels would be one series with two values; a name that is free again is used again."""
    first, second = FakeProducer("same"), FakeProducer("same")
    assert {("same",), ("same#2",)} == set(in_flight(ProducerCollector(first), ProducerCollector(second)))
    assert {("same",), ("same#2",)} == set(in_flight(ProducerCollector(first, second)))
    del first, second
    gc.collect()
    assert {("same",)} == set(in_flight(ProducerCollector(FakeProducer("same"))))


async def test_the_ml_series_have_no_label_of_the_producer(ml) -> None:
    """Dashboards read names and labels of ml_producer_* as they are."""
    registry = CollectorRegistry()
    registry.register(MLCollector(ml))
    assert [] == [sample for family in registry.collect() for sample in family.samples if "producer" in sample.labels]


@pytest.mark.parametrize("state", list(ConnectionState))
async def test_the_connection_state_is_one_hot(ml, producer, state) -> None:
    """Exactly the present state is 1."""
    producer.becomes(connection_state=state)
    assert {(other.value,): float(other is state) for other in ConnectionState} == scrape(MLCollector(ml))[
        "ml_producer_connection_state"
    ]


@pytest.mark.parametrize(("breaker", "number"), [("closed", 0), ("open", 1), ("half_open", 2)])
async def test_the_breaker_gauge_is_never_stale(ml, producer, breaker, number) -> None:
    """Original mistake: gauge stale. It is read from the status at each scrape."""
    producer.becomes(circuit_breaker=breaker)
    assert {(): number} == scrape(MLCollector(ml))["ml_producer_circuit_breaker_state"]


async def test_a_call_shows_in_counter_duration_and_size_once(ml) -> None:
    """One call: one count, one duration, one size."""
    await ml.transcribe(share_id="s", media_url="/a.mp3")
    found = scrape(MLCollector(ml))
    assert (1, 1, 1) == (
        found["ml_producer_tasks_sent_total"]["success", "transcribe_whisper"],
        found["ml_producer_task_publish_duration_seconds_count"]["success", "transcribe_whisper"],
        found["ml_producer_message_size_bytes_count"]["transcribe_whisper",],
    )
    assert 1 == sum(found["ml_producer_tasks_sent_total"].values())


async def test_error_text_never_becomes_a_label(ml, producer) -> None:
    """Original mistake: raw error text as a label. An error of unknown kind is counted as other."""
    producer.outcome = RuntimeError('rogue"} text\nrogue_metric 1')
    with pytest.raises(RuntimeError):
        await ml.summarize(share_id="s", text="x")
    found = scrape(MLCollector(ml))
    assert 1 == found["ml_producer_publish_failures_total"]["other",]
    assert EXPECTED == {name: set(found[name]) for name in EXPECTED}


async def test_a_scrape_yields_as_many_samples_after_a_thousand_calls_as_before(ml) -> None:
    """The cost of a scrape does not grow with what has happened."""
    before = {name: len(samples) for name, samples in scrape(MLCollector(ml)).items()}
    for _ in range(1000):
        await ml.embed(share_id="s", text="x")
    assert before == {name: len(samples) for name, samples in scrape(MLCollector(ml)).items()}


async def test_both_collectors_live_in_one_registry(ml, producer) -> None:
    """Their names do not clash."""
    found = scrape(MLCollector(ml), ProducerCollector(producer))
    assert "warrener_connection_state" in found
    assert "ml_producer_connection_state" in found


def test_a_histogram_counts_a_bound_as_inside_and_the_rest_as_beyond() -> None:
    """As Prometheus has it: le is less or equal."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert ([2, 1, 1], 4, 12.0) == (histogram.counts, histogram.count, histogram.total)


async def test_endpoints_are_named_by_their_place() -> None:
    """Every place has its series from the start; no label holds a host name."""
    producer = Producer(["amqp://u:p@one.example/", "amqp://u:p@two.example/"], endpoint_order="ordered")
    found = scrape(ProducerCollector(producer))
    assert {labels[0] for labels in found["warrener_endpoint_connected"]} == {"0", "1"}
    assert set(found["warrener_endpoint_failures"].values()) == {0.0}
    assert "example" not in str(found)

    driver = ScriptedDriver(refuses(), lives())
    async with open_producer(
        ["amqp://localhost:1/", "amqp://localhost:2/"], driver=driver, endpoint_order="ordered"
    ) as up:
        await up.wait_connected()
        found = scrape(ProducerCollector(up))
        assert list(found["warrener_endpoint_connected"].values()) == [0.0, 1.0]
        assert list(found["warrener_endpoint_failures"].values()) == [1.0, 0.0]
