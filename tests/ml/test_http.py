"""The HTTP side: health in the seed's shape, tasks in, every answer truthful, no request without an end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from attrs import evolve
from starlette.applications import Starlette
from starlette.routing import Mount

from warrener.errors import (
    BufferFull,
    CircuitOpen,
    DeadlineExceeded,
    Fault,
    FaultKind,
    GaveUp,
    InvalidMessage,
    Nacked,
    NotSent,
    ProducerClosed,
    PublishRefused,
    Unconfirmed,
    Unroutable,
)
from warrener.http import condition, health_app
from warrener.ml.app import ml_app
from warrener.records import ConnectionState

pytestmark = pytest.mark.anyio

HEALTH = "/v1/ml/analytics/health"
TASK_ID = "6f2c9a3e-4a57-4b92-8f39-0d6f4c1e2b77"
SUMMARIZE = {"share_id": "s", "content": {"text": "x"}}


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


# --- health ---------------------------------------------------------------------------------------------------------


async def test_health_has_exactly_the_shape_that_dashboards_read(ml) -> None:
    """The seed's JSON, 200 when healthy."""
    async with client(ml_app(ml)) as http:
        answer = await http.get(HEALTH)
    assert (200, {
        "healthy": True,
        "rabbitmq": {
            "connectionState": "CONNECTED",
            "reconnectAttempts": 0,
            "consecutiveFailures": 0,
            "circuitBreakerOpen": False,
        },
    }) == (answer.status_code, answer.json())  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"connection_state": ConnectionState.DISCONNECTED, "retry_in": 3.0, "reconnect_attempts": 2}, "disconnected"),
        (
            {"connection_state": ConnectionState.DISCONNECTED, "last_fault": Fault(FaultKind.UNREACHABLE, "refused")},
            "gave up",
        ),
        ({"connection_state": ConnectionState.CONNECTING}, "connecting"),
        ({"blocked": True}, "blocked"),
        ({"circuit_breaker": "open"}, "breaker open"),
        ({}, "confirms overdue"),
        ({"connection_state": ConnectionState.CLOSING}, "closing"),
        ({"connection_state": ConnectionState.CLOSED}, "closed"),
    ],
)
async def test_an_unhealthy_producer_answers_503_and_names_its_condition(ml, producer, changes, word) -> None:
    """Original mistakes: health always 200; dead for good after the 10th attempt with nobody told; a stalled confirm with health fine."""
    producer.becomes(healthy=False, **changes)
    async with client(ml_app(ml)) as http:
        health, ready, alive = await http.get(HEALTH), await http.get("/readyz"), await http.get("/livez")
    assert (503, word, 503, f"{word}\n", 200) == (
        health.status_code, health.headers["producer-condition"], ready.status_code, ready.text, alive.status_code,
    )  # fmt: skip
    assert ("open" == changes.get("circuit_breaker")) == health.json()["rabbitmq"]["circuitBreakerOpen"]


async def test_half_open_is_not_open(ml, producer) -> None:
    """circuitBreakerOpen is true for "open" only."""
    producer.becomes(circuit_breaker="half_open")
    async with client(ml_app(ml)) as http:
        assert (await http.get(HEALTH)).json()["rabbitmq"]["circuitBreakerOpen"] is False
        assert (await http.get("/readyz")).status_code == 200


async def test_health_shows_no_host_and_no_text_of_the_broker(ml, producer) -> None:
    """Details are for operators: the public view is a status word."""
    producer.becomes(healthy=False, last_fault=Fault(FaultKind.VHOST, "secret-vhost refused at broker.internal"))
    async with client(ml_app(ml)) as http:
        for path in (HEALTH, "/readyz", "/livez", "/metrics"):
            answer = await http.get(path)
            assert "broker.internal" not in answer.text + str(answer.headers)


#: What an operator's texts hold and a stranger must not read: host, port, virtual host, exchange and routing key.
SECRETS = ("broker.internal", "5672", "secret-vhost", "secret-exchange", "secret-key")


@pytest.mark.parametrize(
    "error",
    [
        CircuitOpen, BufferFull, GaveUp, ProducerClosed, DeadlineExceeded, Nacked, Unroutable, PublishRefused, Unconfirmed,
        NotSent,
    ],
)  # fmt: skip
async def test_no_answer_names_the_broker_or_the_destination(ml, producer, error) -> None:
    """The texts of errors are for the log: a client may be a stranger."""
    text = "exchange 'secret-exchange' in vhost 'secret-vhost' refused 'secret-key' (broker.internal:5672)"
    more: dict[str, Any] = {"retry_after": 1.0} if error is CircuitOpen else {}
    more |= {"reply_code": 404, "reply_text": text, "may_have_been_delivered": True} if error is PublishRefused else {}
    producer.outcome = error(TASK_ID, text, **more)
    producer.outcome.last_fault = Fault(FaultKind.UNREACHABLE, text)
    async with client(ml_app(ml)) as http:
        answer = await http.post("/v1/ml/tasks/embed", json=SUMMARIZE)
    assert [] == [word for word in SECRETS if word in answer.text + str(answer.headers)]
    assert ("not sent" in answer.json()["error"]) == isinstance(producer.outcome, NotSent)
    assert ("a queue may hold it" in answer.json()["error"]) == answer.json()["may_have_been_delivered"]


async def test_the_stream_names_the_kind_of_a_fault_only(ml, producer) -> None:
    """The status page may be open to strangers, too."""
    text = "the vhost 'secret-vhost' at broker.internal:5672 is down"
    producer.becomes(
        connection_state=ConnectionState.DISCONNECTED, healthy=False, last_fault=Fault(FaultKind.VHOST, text)
    )
    event = await first_event(ml_app(ml))
    assert ("vhost", "vhost") == (event["fault"], event["transitions"][0]["fault"])
    assert [] == [word for word in SECRETS if word in json.dumps(event)]


async def test_reading_health_only_reads(ml, producer) -> None:
    """One look at the status, nothing published, nothing dialed."""
    async with client(ml_app(ml)) as http:
        await http.get(HEALTH)
    assert (1, []) == (producer.looks, producer.published)


async def test_health_app_mounts_in_any_starlette_program(producer) -> None:
    """warrener.http works for any producer, on Trio and asyncio."""
    app = Starlette(routes=[Mount("/rabbitmq", health_app(producer))])
    async with client(app) as http:
        assert (await http.get("/rabbitmq/health")).json()["healthy"] is True
        assert (await http.get("/rabbitmq/readyz")).text == "ready\n"
        assert "warrener_connection_state" in (await http.get("/rabbitmq/metrics")).text


def test_conditions_are_a_closed_set(producer) -> None:
    """A condition is a word for the state, never text from elsewhere."""
    producer.becomes(connection_state=ConnectionState.DISCONNECTED)
    assert "disconnected" == condition(producer.status())


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("summarize", SUMMARIZE, "ml.summarize"),
        ("transcribe", {"share_id": "s", "content": {"mediaUrl": "https://example.org/a.mp3"}, "options": {"backend": "local"}},
         "ml.transcribe_local"),
        ("embed", SUMMARIZE, "ml.embed"),
        ("embed-batch", {"tasks": [SUMMARIZE]}, "ml.embed"),
    ],
)  # fmt: skip
async def test_a_confirmed_task_is_202_with_its_id(ml, producer, path, body, key) -> None:
    """The id in the answer is the id in the queue."""
    async with client(ml_app(ml)) as http:
        answer = await http.post(f"/v1/ml/tasks/{path}", json=body)
    ((message, timeout),) = producer.published
    assert (202, {"task_id": message.message_id, "possible_duplicate": False}, key) == (
        answer.status_code, answer.json(), message.routing_key,
    )  # fmt: skip
    assert 24.0 < timeout <= 25.0


async def test_an_idempotency_key_becomes_the_task_id(ml, producer) -> None:
    """A client's retry of a 504 can be recognised: both tries carry the same id."""
    producer.outcome = Unconfirmed(TASK_ID, "deadline")
    async with client(ml_app(ml)) as http:
        first = await http.post("/v1/ml/tasks/embed", json=SUMMARIZE, headers={"Idempotency-Key": TASK_ID})
        producer.outcome = None
        second = await http.post("/v1/ml/tasks/embed", json=SUMMARIZE, headers={"Idempotency-Key": TASK_ID})
    assert (504, TASK_ID, 202, TASK_ID) == (
        first.status_code, first.json()["task_id"], second.status_code, second.json()["task_id"],
    )  # fmt: skip
    assert [TASK_ID, TASK_ID] == [message.message_id for message, _ in producer.published]


async def test_the_callers_trace_reaches_the_message(ml, producer) -> None:
    """The traceparent of the request goes on."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with client(ml_app(ml)) as http:
        await http.post("/v1/ml/tasks/embed", json=SUMMARIZE, headers={"traceparent": parent})
    ((message, _),) = producer.published
    assert parent.split("-")[1] == message.headers["traceparent"].split("-")[1]


@pytest.mark.parametrize(
    ("error", "status", "retry_after", "may"),
    [
        (InvalidMessage(TASK_ID, "headers are too large"), 422, None, False),
        (CircuitOpen(TASK_ID, "open", retry_after=12.3), 503, "13", False),
        (BufferFull(TASK_ID, "full"), 503, "1", False),
        (GaveUp(TASK_ID, "gave up"), 503, "60", False),
        (ProducerClosed(TASK_ID, "closed"), 503, "1", False),
        (DeadlineExceeded(TASK_ID, "late"), 503, "1", False),
        (Nacked(TASK_ID, "nack"), 502, None, True),
        (Unroutable(TASK_ID, "NO_ROUTE"), 502, None, False),
        (PublishRefused(TASK_ID, "refused", reply_code=403, reply_text="no"), 502, None, False),
        (Unconfirmed(TASK_ID, "deadline"), 504, None, True),
    ],
)
async def test_every_failure_has_its_status_and_says_whether_the_task_may_be_queued(
    ml, producer, error, status, retry_after, may
) -> None:
    """Original mistake: a publish parked for retry in memory reported as success. Here nothing but a confirm is a 202."""
    producer.outcome = error
    async with client(ml_app(ml)) as http:
        answer = await http.post("/v1/ml/tasks/summarize", json=SUMMARIZE, headers={"Idempotency-Key": TASK_ID})
    told = answer.json()
    assert (status, retry_after, TASK_ID, may, {"error", "task_id", "may_have_been_delivered"}) == (
        answer.status_code, answer.headers.get("retry-after"), told["task_id"], told["may_have_been_delivered"], set(told),
    )  # fmt: skip


async def test_retry_after_is_when_the_next_dial_is_due(ml, producer) -> None:
    """A client that comes back then may succeed."""
    producer.outcome = BufferFull(TASK_ID, "full")
    producer.becomes(retry_in=16.2)
    async with client(ml_app(ml)) as http:
        answer = await http.post("/v1/ml/tasks/summarize", json=SUMMARIZE)
    assert "17" == answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "named"),
    [
        (b'{"share_id": "s", "content": {"text": ""}}', {}, 422, "content.text"),
        (b'{"share_id": "s"}', {}, 422, "content is missing"),
        (b"{", {}, 422, "the body is not valid JSON"),
        (b"\xff", {}, 422, "the body is not valid JSON"),
        (b'{"share_id": NaN}', {}, 422, "the body is not valid JSON"),
        (b"[" * 100_000, {}, 422, "the body is not valid JSON"),
        (b"[]", {}, 422, "the payload must be an object"),
        (b"{}", {"Idempotency-Key": "mine"}, 422, "Idempotency-Key must be a UUID"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "application/json"),
        (b"{}", {"Content-Length": "99999999999999999999"}, 413, "at most 4194304 bytes"),
        (b" " * (4 * 1024 * 1024 + 1), {}, 413, "at most 4194304 bytes"),
    ],
)
async def test_what_cannot_be_a_task_is_refused_by_name_and_nothing_is_sent(
    ml, producer, content, headers, status, named
) -> None:
    """422 names the field; 413 and 415 say what is allowed."""
    async with client(ml_app(ml)) as http:
        answer = await http.post(
            "/v1/ml/tasks/summarize", content=content, headers={"Content-Type": "application/json", **headers}
        )
    assert (status, [], False) == (answer.status_code, producer.published, answer.json()["may_have_been_delivered"])
    assert named in answer.json()["error"]
    assert {"error", "task_id", "may_have_been_delivered"} == set(answer.json())


async def test_a_body_without_end_is_cut_off_at_the_limit(ml_with, producer) -> None:
    """No Content-Length, no trust: bytes are counted as they come, and the rest is not read."""
    ml = ml_with(max_body=2048)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1_000_000:
            sent += 512
            yield b" " * 512

    scope, answers = asgi_scope(), []
    chunks = endless()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await anext(chunks), "more_body": True}

    await ml_app(ml)(scope, receive, recorder(answers))
    assert (413, 2048 + 512) == (answers[0]["status"], sent)


def asgi_scope() -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/ml/tasks/summarize", "raw_path": b"/v1/ml/tasks/summarize", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": None, "server": None,
    }  # fmt: skip


def recorder(answers: list[dict[str, Any]]):
    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    return send


async def test_a_body_that_never_comes_ends_with_the_request_deadline(ml_with, producer) -> None:
    """A client that drips bytes cannot hold a request for ever: 408."""
    ml = ml_with(request_timeout=0.1)
    answers: list[dict[str, Any]] = []
    await ml_app(ml)(asgi_scope(), anyio.sleep_forever, recorder(answers))
    assert (408, []) == (answers[0]["status"], producer.published)


async def test_more_tasks_than_allowed_at_once_are_told_to_come_back(ml_with, producer) -> None:
    """Memory stays bounded: the one too many is a 503 at once, and the next is taken when one has ended."""
    ml = ml_with(max_requests=2)
    producer.hold = anyio.Event()
    codes: list[int] = []

    async with client(ml_app(ml)) as http:

        async def post() -> None:
            codes.append((await http.post("/v1/ml/tasks/embed", json=SUMMARIZE)).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(post)
            with anyio.fail_after(60):
                while len(producer.published) < 2:
                    await anyio.lowlevel.checkpoint()
            await post()
            producer.hold.set()
        await post()
    assert [503, 202, 202, 202] == codes


async def test_bodies_that_do_not_fit_together_are_told_to_come_back(ml_with, producer) -> None:
    """max_held bounds what all requests hold, announced or not; an ended request gives its bytes back."""
    ml = ml_with(max_body=2000, max_held=3000)
    producer.hold = anyio.Event()
    large = SUMMARIZE | {"content": {"text": "x" * 1900}}
    codes: list[int] = []
    app = ml_app(ml)

    async with client(app) as http:

        async def post() -> None:
            codes.append((await http.post("/v1/ml/tasks/embed", json=large)).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post)
            with anyio.fail_after(60):
                while not producer.published:
                    await anyio.lowlevel.checkpoint()
            await post()
            unannounced: list[dict[str, Any]] = []
            body = json.dumps(large).encode()
            await post_unannounced(app, body, unannounced)
            producer.hold.set()
        await post()
    assert ([503, 202, 202], 503) == (codes, unannounced[0]["status"])


async def test_the_app_says_when_no_task_is_being_taken_in(ml, producer) -> None:
    """The service ends only then."""
    app = ml_app(ml)
    producer.hold = anyio.Event()
    order: list[str] = []

    async def post(http: httpx.AsyncClient) -> None:
        await http.post("/v1/ml/tasks/embed", json=SUMMARIZE)

    async def wait() -> None:
        await app.state.wait_empty()
        order.append("empty")

    await app.state.wait_empty()
    async with client(app) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(post, http)
        with anyio.fail_after(60):
            while not producer.published:
                await anyio.lowlevel.checkpoint()
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        order.append("released")
        producer.hold.set()
    assert ["released", "empty"] == order


async def post_unannounced(app: Any, body: bytes, answers: list[dict[str, Any]]) -> None:
    """Post a body without a Content-Length."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    await app(asgi_scope(), receive, recorder(answers))


async def test_answers_escape_whatever_a_client_sends(ml) -> None:
    """No text of a client's or a broker's gets out as markup, line breaks or marks that turn text around."""
    async with client(ml_app(ml)) as http:
        answer = await http.post("/v1/ml/tasks/summarize", json={"<script>\u202e\n": 1})
    assert ("application/json", "nosniff") == (answer.headers["content-type"], answer.headers["x-content-type-options"])
    assert answer.text.isprintable()


# --- the status page ------------------------------------------------------------------------------------------------------


async def test_the_page_is_one_self_contained_file_under_a_strict_policy(ml) -> None:
    """Nothing is loaded from anywhere; only the page's own script and style run."""
    async with client(ml_app(ml)) as http:
        answer = await http.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in answer.text
    assert "innerHTML" not in answer.text
    assert "style=" not in answer.text


async def first_event(app: Any) -> dict[str, Any]:
    """Return the first event of the stream, and leave."""
    scope = asgi_scope() | {"method": "GET", "path": "/v1/ml/analytics/events"}
    event: dict[str, Any] = {}
    gone = anyio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            event["status"] = message["status"]
        elif message.get("body", b"").startswith(b"data: "):
            event.update(json.loads(message["body"][6:]))
            gone.set()

    with anyio.fail_after(60):
        await app(scope, receive, send)
    return event


async def test_the_stream_says_how_the_producer_is(ml, producer) -> None:
    """State, breaker, attempts, next retry, in flight, and the past."""
    fault = Fault(FaultKind.CONNECTION_LOST, "reset")
    producer.becomes(
        connection_state=ConnectionState.DISCONNECTED, healthy=False, retry_in=2.5, reconnect_attempts=3, in_flight=7,
        last_fault=fault, circuit_breaker="open",
    )  # fmt: skip
    event = await first_event(ml_app(ml))
    assert {
        "condition": "disconnected", "state": "DISCONNECTED", "breaker": "open", "attempts": 3, "retry_in": 2.5,
        "in_flight": 7, "fault": "connection lost",
    }.items() <= event.items()  # fmt: skip
    assert ["disconnected"] == [transition["condition"] for transition in event["transitions"]]
    assert 1 == len(event["samples"])


async def test_the_number_of_watchers_is_bounded_and_places_are_given_back(ml_with) -> None:
    """A watcher that has left makes room; with no room, 503."""
    app = ml_app(ml_with(max_watchers=1))
    for _ in range(3):
        assert (await first_event(app))["status"] == 200
    none = ml_app(ml_with(max_watchers=0))
    async with client(none) as http:
        answer = await http.get("/v1/ml/analytics/events")
    assert (503, "10") == (answer.status_code, answer.headers["retry-after"])


async def test_a_producer_with_one_link_down_is_ready(ml, producer) -> None:
    """The health check tells that not all links are up; readiness does not take the service out of use for it."""
    up = producer.status()
    down = evolve(up, connection_state=ConnectionState.DISCONNECTED)
    producer.becomes(healthy=False, links=(up, down))
    async with client(ml_app(ml)) as http:
        health, ready = await http.get(HEALTH), await http.get("/readyz")
    assert (503, "links down", 200) == (health.status_code, health.headers["producer-condition"], ready.status_code)
