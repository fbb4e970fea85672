"""The operations kit and the examples: every series that a dashboard or an alert names exists in a live scrape."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest
import yaml
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from warrener._settings.settings import Settings
from warrener.errors import SettingsError
from warrener.ml import MLProducer, MLSettings
from warrener.ml.app import ml_app
from warrener.testing.broker import EmbeddedBroker

EXAMPLES = Path(__file__).parents[2] / "examples"
KIT = EXAMPLES / "operations"

SELECTOR = re.compile(r"([a-z_][a-z0-9_]*)\s*(?:\{([^}]*)\})?(?=[\[\s)=<>/]|$)")
MATCHER = re.compile(r'(\w+)\s*(=|!=)\s*"([^"]*)"')


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Return the series that an expression reads, with the label values that it asks for."""
    bare = re.sub(r"\bby\s*\([^)]*\)", "", expression)
    found = []
    for name, matchers in SELECTOR.findall(bare):
        if name.startswith(("ml_producer_", "warrener_")):
            found.append((name, {label: value for label, _, value in MATCHER.findall(matchers)}))
    return found


def expressions() -> list[str]:
    dashboard = json.loads((KIT / "grafana/dashboard.json").read_text())
    alerts = yaml.safe_load((KIT / "alerts.yml").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return panels + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


def test_every_series_of_dashboard_and_alerts_exists_in_a_live_scrape(start_service, dead_url) -> None:
    """Names and label values both: a panel or an alert on a series that does not exist is silent for ever."""
    service = start_service(dead_url)
    scraped: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{service.url}/metrics").text):
        for sample in family.samples:
            scraped.setdefault(sample.name, []).append(sample.labels)
    read = [selector for expression in expressions() for selector in selectors(expression)]
    named = set(re.findall(r"(?:ml_producer|warrener)_\w+", " ".join(expressions())))
    assert named == {name for name, _ in read}, "the reader overlooks none"
    assert 25 < len(read)
    for name, labels in read:
        assert any(labels.items() <= found.items() for found in scraped.get(name, [])), (name, labels)


@pytest.mark.parametrize("series", ["warrener_open_destinations", "warrener_confirms_overdue_total"])
def test_a_destination_that_is_not_answered_has_an_alert_and_a_panel(series: str) -> None:
    """The connection is healthy and other messages are confirmed, so no other alert tells of it."""
    alerts = yaml.safe_load((KIT / "alerts.yml").read_text())
    dashboard = json.loads((KIT / "grafana/dashboard.json").read_text())
    assert any(series in rule["expr"] for group in alerts["groups"] for rule in group["rules"])
    assert any(series in target["expr"] for panel in dashboard["panels"] for target in panel["targets"])


def test_what_reads_expressions_sees_names_and_labels() -> None:
    """The helper of the test above finds what it must."""
    assert [("ml_producer_a", {"b": "c"}), ("warrener_d", {})] == selectors(
        'sum by (le) (rate(ml_producer_a{b="c"}[5m])) / warrener_d > 1'
    )


def test_every_file_of_the_kit_is_what_its_name_says() -> None:
    """YAML parses, and no file holds a password."""
    for path in [*KIT.rglob("*.yml"), *KIT.rglob("*.yaml")]:
        assert list(yaml.safe_load_all(path.read_text())), path
    compose = yaml.safe_load((KIT / "compose.yaml").read_text())
    assert {"rabbitmq", "producer", "prometheus", "grafana"} == set(compose["services"])
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_the_probes_ask_the_right_questions() -> None:
    """Liveness never depends on the broker, readiness does; stopping takes longer than the service's own deadline."""
    objects = yaml.safe_load_all((KIT / "kubernetes.yaml").read_text())
    deployment = next(each for each in objects if each["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert ("/livez", "/readyz") == (
        container["livenessProbe"]["httpGet"]["path"], container["readinessProbe"]["httpGet"]["path"],
    )  # fmt: skip
    shutdown = MLSettings().shutdown_timeout
    assert pod["terminationGracePeriodSeconds"] > shutdown
    compose = yaml.safe_load((KIT / "compose.yaml").read_text())["services"]["producer"]
    assert int(compose["stop_grace_period"].removesuffix("s")) > shutdown
    assert "/livez" in compose["healthcheck"]["test"][-1]
    assert int(re.search(r"TimeoutStopSec=(\d+)", (KIT / "warrener.service").read_text())[1]) > shutdown


def test_the_example_settings_are_valid(monkeypatch) -> None:
    """The file loads as it is, with a URL from the environment."""
    monkeypatch.setenv("RABBITMQ_URL", "amqp://localhost/")
    loaded = MLSettings.load(KIT / "warrener.toml")
    rows = tomllib.loads((KIT / "warrener.toml").read_text())["warrener"]
    assert (rows["preferred_stt"], 30, None) == (
        loaded.preferred_stt, loaded.broker.heartbeat, loaded.broker.backoff.attempts,
    )  # fmt: skip


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.anyio
async def test_the_app_mounts_in_a_program_of_its_own_on_every_backend(dead_url, driver) -> None:
    """examples/mounted_app.py: health, metrics and tasks under a prefix, the producer running with the program."""
    app = load("mounted_app").make_app(MLSettings(broker=Settings.resolve(dead_url, max_block=0.0), driver=driver))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http,
    ):
        health = await http.get("/ml/v1/ml/analytics/health")
        refused = await http.post("/ml/v1/ml/tasks/embed", json={"share_id": ""})
        page = await http.get("/ml/")
        with anyio.fail_after(60):
            while (await http.get("/ml/readyz")).text != "disconnected\n":
                await anyio.lowlevel.checkpoint()
    assert (503, 422, 200) == (health.status_code, refused.status_code, page.status_code)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_app_mounts_in_fastapi(driver) -> None:
    """The same app object under a prefix of a FastAPI program on asyncio: a task is confirmed, a bad one named, health read."""
    async with EmbeddedBroker() as broker:
        ml = MLProducer(MLSettings(broker=Settings.resolve(broker.url), driver=driver))
        gateway = FastAPI()
        gateway.mount("/ml", ml_app(ml))
        async with ml, httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://gateway") as http:
            taken = await http.post("/ml/v1/ml/tasks/embed", json={"share_id": "s", "content": {"text": "x"}})
            refused = await http.post("/ml/v1/ml/tasks/embed", json={"share_id": "s"})
            health = await http.get("/ml/v1/ml/analytics/health")
        assert 1 == len(broker.messages("ml.embed"))
    assert (202, 200, True) == (taken.status_code, health.status_code, health.json()["healthy"])
    assert (422, "content is missing") == (refused.status_code, refused.json()["error"])


def test_the_mounted_app_says_what_it_needs(monkeypatch) -> None:
    """Asked for `app` without a broker in the environment, the module names the variable."""
    monkeypatch.delenv("RABBITMQ_URL", raising=False)
    with pytest.raises(SettingsError, match="RABBITMQ_URL"):
        _ = load("mounted_app").app


@pytest.mark.broker
@pytest.mark.full
def test_the_trio_example_runs(rabbitmq, driver) -> None:
    """examples/ml_tasks.py publishes three tasks and prints their ids."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "ml_tasks.py")],
        env={**os.environ, "RABBITMQ_URL": rabbitmq.url, "ML_PRODUCER_DRIVER": driver},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert 3 == done.stdout.count(" confirmed\n")
