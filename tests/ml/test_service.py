"""The service as its users see it: a program with an address, signals, a log and an exit status.

Under load, with a real broker that is killed: test_load.py.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import threading

import httpx
import pytest

from tests.ml.conftest import DEAD_PASSWORD
from warrener.testing.broker import EmbeddedBroker

#: Each test starts the program.
pytestmark = pytest.mark.slow

HEALTH = "/v1/ml/analytics/health"
SUMMARIZE = {"share_id": "s", "content": {"text": "x"}}
#: Backoff that is over in a moment.
IMPATIENT = {"WARRENER_BACKOFF_INITIAL": "0.01", "WARRENER_BACKOFF_CAP": "0.01", "WARRENER_BACKOFF_MIN_GAP": "0.01"}


def test_an_absent_broker_at_start_does_not_end_the_process(start_service, dead_url) -> None:
    """Original mistake: broker absent at start killing the process. Health says 503, liveness 200."""
    service = start_service(dead_url)
    with httpx.Client(base_url=service.url) as http:
        assert (503, 200, 503) == tuple(http.get(path).status_code for path in (HEALTH, "/livez", "/readyz"))
        assert http.get(HEALTH).json()["healthy"] is False
        assert "ml_producer_connection_state" in http.get("/metrics").text
    service.signal(signal.SIGTERM)
    assert 0 == service.wait_end()


def test_a_producer_that_gave_up_ends_the_process_with_status_75(start_service, dead_url) -> None:
    """Original mistake: dead for good after the 10th attempt with nobody told. The process manager is told."""
    service = start_service(dead_url, {**IMPATIENT, "WARRENER_BACKOFF_ATTEMPTS": "3"})
    line = json.loads(service.wait_log("gave up, ending"))
    assert (75, "error") == (service.wait_end(), line["level"])


def test_sighup_revives_a_producer_that_gave_up_and_health_names_it(start_service, dead_url) -> None:
    """With when_exhausted=stay the service waits for an operator; `reconnect()` is one signal away."""
    environment = {**IMPATIENT, "WARRENER_BACKOFF_ATTEMPTS": "2", "WARRENER_WHEN_EXHAUSTED": "stay"}
    service = start_service(dead_url, environment)
    with httpx.Client(base_url=service.url) as http:
        service.wait_log("-> gave up")
        answer = http.get(HEALTH)
        assert (503, "gave up") == (answer.status_code, answer.headers["producer-condition"])
        refused = http.post("/v1/ml/tasks/embed", json=SUMMARIZE)
        assert (503, "60", False) == (
            refused.status_code, refused.headers["retry-after"], refused.json()["may_have_been_delivered"],
        )  # fmt: skip
        service.signal(signal.SIGHUP)
        service.wait_log("SIGHUP: the producer is asked to reconnect")
        service.wait_log("gave up -> dialing")


def test_sigterm_settles_what_was_accepted_and_answers_it(start_service, dead_url) -> None:
    """Original mistake: shutdown dropping queued messages. The waiting client is told, then the process ends."""
    service = start_service(dead_url, {"WARRENER_DRAIN_TIMEOUT": "1"})
    answers: list[httpx.Response] = []
    poster = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{service.url}/v1/ml/tasks/embed", json=SUMMARIZE, timeout=30))
    )
    with httpx.Client(base_url=service.url) as http:
        poster.start()
        while not re.search(r"warrener_buffered\S* 1\.0", http.get("/metrics").text):
            pass
    service.signal(signal.SIGTERM)
    poster.join(timeout=30)
    assert 0 == service.wait_end()
    assert (503, False) == (answers[0].status_code, answers[0].json()["may_have_been_delivered"])
    assert any("1 not sent" in line for line in service.lines)


def test_sigterm_under_load_loses_no_answer_and_no_task(start_service) -> None:
    """Each client has its answer or was never connected; each 202 is in a queue, and nothing else is."""
    with EmbeddedBroker.in_thread() as broker:
        service = start_service(broker.url)
        service.wait_log("-> up")
        url = service.url
        taken: set[str] = set()
        told: list[int] = []

        def submit() -> None:
            with httpx.Client(base_url=url, timeout=30) as http:
                while True:
                    try:
                        answer = http.post("/v1/ml/tasks/embed", json=SUMMARIZE)
                    except httpx.ConnectError:
                        return  # it has ended
                    except (httpx.RemoteProtocolError, httpx.ReadError):
                        continue  # a kept connection was closed between two requests; the next one shows
                    told.append(answer.status_code)
                    if answer.status_code == 202:
                        taken.add(answer.json()["task_id"])

        clients = [threading.Thread(target=submit) for _ in range(4)]
        for client in clients:
            client.start()
        while len(taken) < 100:
            pass
        service.signal(signal.SIGTERM)
        assert 0 == service.wait_end()
        for client in clients:
            client.join(30)
        assert {202, 503} >= set(told)
        assert taken == {entry.message_id for entry in broker.log}
    assert not any("longer than" in line for line in service.lines)


def test_a_second_signal_aborts(start_service, dead_url) -> None:
    """The first waits for what was accepted; the second does not."""
    service = start_service(dead_url, {"WARRENER_DRAIN_TIMEOUT": "20"})
    with httpx.Client(base_url=service.url) as http, socket.create_connection(address_of(service.url)) as client:
        client.sendall(request_octets("embed", SUMMARIZE))
        while not re.search(r"warrener_buffered\S* 1\.0", http.get("/metrics").text):
            pass
        service.signal(signal.SIGTERM)
        service.wait_log("SIGTERM: shutting down")
        service.signal(signal.SIGTERM)
        assert 128 + signal.SIGTERM == service.wait_end()


def test_a_browser_that_reads_nothing_does_not_hold_up_the_end(start_service, dead_url) -> None:
    """Watchers of the status page are sent home at SIGTERM, well before any deadline."""
    service = start_service(dead_url)
    with socket.create_connection(address_of(service.url)) as watcher:
        watcher.sendall(b"GET /v1/ml/analytics/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        watcher.settimeout(30)
        assert b"200" in watcher.recv(100)
        service.signal(signal.SIGTERM)
        assert 0 == service.wait_end()
    assert not any("longer than" in line for line in service.lines)


def test_wrong_settings_end_the_start_in_one_line(start_service) -> None:
    """Status 2, the setting by name, no traceback, no secret."""
    service = start_service("amqp://ml:s3cr3t@localhost/", {"PREFERRED_STT": "gpu"})
    assert 2 == service.wait_end()
    assert ["warrener serve: preferred_stt must be 'api' or 'local', not 'gpu' (from PREFERRED_STT)\n"] == service.lines


def test_an_outbox_that_cannot_be_opened_ends_the_start_in_one_line(start_service, dead_url, tmp_path) -> None:
    """Status 2 and what is wrong with it, no traceback."""
    folder = tmp_path / "nowhere"
    service = start_service(dead_url, {"ML_PRODUCER_OUTBOX": str(folder / "tasks.db")})
    assert 2 == service.wait_end()
    (line,) = service.lines
    assert line.startswith(f"warrener serve: the folder {folder} does not exist")


def test_a_taken_address_ends_the_start_in_one_line(start_service, dead_url) -> None:
    """Status 1 and the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        service = start_service(dead_url, bind=bind)
        assert 1 == service.wait_end()
    assert [f"warrener serve: cannot listen on {bind}: Address already in use\n"] == service.lines


def test_a_host_without_an_address_is_named_with_its_cause(start_service, dead_url) -> None:
    """The number of a resolver's error is no errno."""
    service = start_service(dead_url, bind="nosuch.invalid:1")
    assert 1 == service.wait_end()
    (line,) = service.lines
    assert line.startswith("warrener serve: cannot listen on nosuch.invalid:1: ")
    assert "Unknown error" not in line


def test_a_unix_socket_is_served_and_left_clean(start_service, dead_url, tmp_path) -> None:
    """A socket left behind by a killed service is taken over; one that is still served is not; in the end it is gone."""
    path = tmp_path / "service.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    service = start_service(dead_url, bind=f"unix:{path}")
    service.wait_log("listening on")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://service") as http:
        assert 200 == http.get("/livez").status_code
        other = start_service(dead_url, bind=f"unix:{path}")
        assert 1 == other.wait_end()
        assert 200 == http.get("/livez").status_code
    service.signal(signal.SIGTERM)
    assert 0 == service.wait_end()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_never_removed(start_service, dead_url, tmp_path) -> None:
    """A mistyped address costs nobody a file."""
    path = tmp_path / "precious"
    path.write_text("data")
    assert 1 == start_service(dead_url, bind=f"unix:{path}").wait_end()
    assert "data" == path.read_text()


def test_each_line_of_the_json_log_is_one_object_without_secrets(start_service, dead_url) -> None:
    """Machines read it line by line; credentials are in none."""
    service = start_service(dead_url)
    assert service.url
    service.signal(signal.SIGTERM)
    assert 0 == service.wait_end()
    for line in service.lines:
        assert {"time", "level", "logger", "message"} == set(json.loads(line))
        assert DEAD_PASSWORD not in line


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def request_octets(task: str, body: dict[str, object]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/ml/tasks/{task} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content
