"""The service with an outbox: a task is accepted while the broker is away, and is in a queue afterwards."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest as exposed

from warrener import Backoff
from warrener._cli.main import main
from warrener._settings.settings import Settings
from warrener.ml import MLProducer, MLSettings
from warrener.ml.app import ml_app
from warrener.ml.metrics import MLCollector
from warrener.outbox import SQLiteOutbox
from warrener.testing import EmbeddedBroker

pytestmark = pytest.mark.anyio

TASKS = "/v1/ml/tasks/summarize"
SUMMARIZE = {"share_id": "s", "content": {"text": "x"}}


def service(broker, path):
    backoff = Backoff(initial=0.05, cap=0.05, min_gap=0.05, attempts=None)
    settings = MLSettings(
        broker=Settings.resolve(broker.url, backoff=backoff), outbox=str(path), preferred_llm_backend="api"
    )
    return MLProducer(settings)


def client(ml):
    return httpx.AsyncClient(transport=httpx.ASGITransport(ml_app(ml)), base_url="http://service")


async def test_a_task_is_stored_during_an_outage_and_published_after_it(tmp_path) -> None:
    """202 with `stored`, ready all the while, health in the seed's shape and the backlog in the metrics."""
    async with EmbeddedBroker() as broker:
        async with service(broker, tmp_path / "tasks.db") as ml, client(ml) as http:
            await ml.producer.wait_connected()
            confirmed = await http.post(TASKS, json=SUMMARIZE)
            broker.stop()
            stored = [await http.post(TASKS, json=SUMMARIZE) for _ in range(2)]
            ready, health = await http.get("/readyz"), await http.get("/v1/ml/analytics/health")
            registry = CollectorRegistry()
            registry.register(MLCollector(ml))
            backlog = ml.status().outbox.backlog
            metrics = exposed(registry).decode()
            broker.restart()
            await ml.producer.wait_flushed(30)
        published = {line.message_id for line in broker.log}

    assert (confirmed.status_code, confirmed.json()["possible_duplicate"]) == (202, False)
    assert [(answer.status_code, answer.json()["stored"]) for answer in stored] == [(202, True)] * 2
    assert {answer.json()["task_id"] for answer in (confirmed, *stored)} <= published
    assert (ready.status_code, health.status_code, set(health.json())) == (200, 503, {"healthy", "rabbitmq"})
    assert backlog == 2
    assert "ml_producer_outbox_oldest_age_seconds" in metrics
    assert 'ml_producer_outbox_rows{state="set_aside"} 0.0' in metrics


async def test_a_task_that_cannot_be_stored_is_refused(tmp_path, monkeypatch) -> None:
    """503 with Retry-After, and the service is not ready until the outbox takes messages again."""
    monkeypatch.setattr(
        "warrener.ml.producer.outbox_at", lambda place: SQLiteOutbox(place, max_rows=1, poll_interval=0.02)
    )
    async with EmbeddedBroker() as broker:
        broker.stop()
        async with service(broker, tmp_path / "tasks.db") as ml, client(ml) as http:
            first, second = [await http.post(TASKS, json=SUMMARIZE) for _ in range(2)]
            not_ready = await http.get("/readyz")
            broker.restart()
            await ml.producer.wait_flushed(30)
            ready = await http.get("/readyz")

    assert first.status_code == 202
    assert (second.status_code, second.json()["error"]) == (503, "the outbox is full")
    assert "retry-after" in second.headers
    assert (not_ready.status_code, not_ready.text) == (503, "outbox full\n")
    assert ready.status_code == 200


def test_the_place_of_the_outbox_is_a_secret(tmp_path) -> None:
    """A connection string may hold a password; it is shown nowhere."""
    settings = MLSettings(outbox="postgresql://user:secret@host/db", preferred_llm_backend="api")

    assert "secret" not in repr(settings)


def test_serve_takes_the_place_as_an_argument(capsys) -> None:
    """`--outbox` is in its help."""
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "--outbox FILE-OR-DSN" in capsys.readouterr().out
