"""Clients that are hostile, clumsy or many: each costs itself its connection, and the service nothing."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import struct
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest

from tests.ml.conftest import Service
from tests.ml.http_inputs import HOSTILE, POST
from tests.ml.test_http import SUMMARIZE, client
from tests.ml.test_service import address_of
from warrener.errors import SettingsError
from warrener.ml import MLSettings, http_server, task_endpoint
from warrener.ml import service as service_module
from warrener.ml.app import ml_app
from warrener.ml.guard import Guard
from warrener.ml.http_server import ServerCounters, serve_http
from warrener.ml.logs import MAX_LINES, BoundedHandler, RateLimit
from warrener.ml.parsing import parsed_size

pytestmark = pytest.mark.slow


@pytest.fixture
def service(start_service: Callable[..., Service], dead_url: str) -> Service:
    return start_service(dead_url, header_timeout="1", body_timeout="1", idle_timeout="1", max_connections="20")


def attack(url: str, data: bytes, *, reset: bool) -> None:
    """Send the bytes on a connection of its own, and close it: in order after the answer, or with a reset at once."""
    with socket.create_connection(address_of(url)) as peer:
        try:
            peer.sendall(data)
            if reset:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(30)
            while peer.recv(65536):
                pass
        except TimeoutError:
            raise
        except (
            OSError
        ):  # the service has closed the connection before this side was done: reset, broken pipe, not connected
            pass


def test_no_bytes_end_the_service_or_another_connection(service: Service) -> None:
    """Each sequence in turn, read to the end and cut: a client that was there before is answered after all of them."""
    with httpx.Client(base_url=service.url) as bystander:
        for data in HOSTILE.values():
            for reset in (False, True):
                attack(service.url, data, reset=reset)
            assert 200 == bystander.get("/livez").status_code
    assert service.program.poll() is None
    assert [] == [line for line in service.lines if "Traceback" in line]


def answer_to(url: str, data: bytes) -> bytes:
    """Return all that comes back until the service closes the connection."""
    with socket.create_connection(address_of(url)) as peer:
        peer.settimeout(30)
        peer.sendall(data)
        answer = b""
        while part := peer.recv(65536):
            answer += part
        return answer


@pytest.mark.parametrize(
    ("name", "status"),
    [("HTTP/2 unasked", b"505"), ("WebSocket", b"200"), ("HTTP/2 by upgrade", b"200"), ("an endless head", b"431")],
)
def test_what_is_not_offered_is_not_there(service: Service, name: str, status: bytes) -> None:
    """HTTP/2 in clear text and WebSocket: a request for an upgrade is answered without one."""
    with socket.create_connection(address_of(service.url)) as peer:
        peer.settimeout(30)
        peer.sendall(HOSTILE[name][:20_000])
        assert b"HTTP/1.1 " + status == peer.recv(65536)[:12]


def test_a_head_and_a_body_that_do_not_come_are_408(service: Service) -> None:
    """A slow client is told; one that sends nothing is closed without an answer."""
    assert b"408" == answer_to(service.url, b"GET /livez HTTP/1.1\r\nHost: loc")[9:12]
    assert (
        b"408" == answer_to(service.url, POST + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{")[9:12]
    )
    assert b"" == answer_to(service.url, b"")


def test_a_head_that_drips_is_cut_off(service: Service) -> None:
    """Each byte that comes gives no more time."""
    with socket.create_connection(address_of(service.url)) as peer:
        peer.settimeout(0.05)
        answer = b""
        for byte in b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 10_000:
            try:
                peer.sendall(bytes((byte,)))
                answer = peer.recv(65536)
                break
            except TimeoutError:
                continue
    assert b"408" == answer[9:12]


def test_a_connection_that_waits_makes_place_for_one_that_has_something_to_say(service: Service) -> None:
    """More connections than allowed: the one that waits longest is closed, and a new client is answered."""
    waiting = [socket.create_connection(address_of(service.url)) for _ in range(60)]
    try:
        for peer in waiting:
            peer.sendall(b"GET /livez HTTP/1.1\r\n")
        assert 200 == httpx.get(f"{service.url}/livez").status_code
    finally:
        for peer in waiting:
            peer.close()
    service.wait_log("too many connections: closed 2 that waited longest for their clients")


def test_a_client_that_sends_no_more_still_gets_its_answers(service: Service) -> None:
    """A half-closed connection: all whole requests are answered, and then it is closed; a request that is cut is not."""
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for number, data in ((3, request * 3), (2, request * 2 + request[:20]), (0, b""), (0, request[:20])):
        with socket.create_connection(address_of(service.url)) as peer:
            peer.settimeout(30)
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            answer = b""
            while part := peer.recv(65536):
                answer += part
        assert number == answer.count(b"HTTP/1.1 200 ")


def test_a_head_of_too_many_fields_is_431(service: Service) -> None:
    """Each field costs time, however short it is; a request behind another one is no exception."""
    first = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for before in (b"", first):
        allowed = answer_to(service.url, before + first[:-2] + b"a:\r\n" * 98 + b"Connection: close\r\n\r\n")
        refused = answer_to(service.url, before + first[:-2] + b"a:\r\n" * 100 + b"\r\n")
        assert 1 + bool(before) == allowed.count(b"HTTP/1.1 200 ")
        assert b"at most 16384 bytes and 100 fields" in refused
        assert b"HTTP/1.1 431 " in refused


@pytest.mark.anyio
async def test_bodies_that_do_not_come_keep_no_task_out(ml_with, producer) -> None:
    """Only a task whose body is whole has one of the places; at the head and behind the body it is asked."""
    ml = ml_with(max_requests=1)
    app = ml_app(ml)
    arrive = anyio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await arrive.wait()
        yield b"}"

    async with client(app) as http, anyio.create_task_group() as tasks:
        statuses: list[int] = []

        async def post(**body: Any) -> None:
            headers = {"Content-Type": "application/json"}
            statuses.append((await http.post("/v1/ml/tasks/embed", headers=headers, **body)).status_code)

        tasks.start_soon(lambda: post(content=slow()))
        await anyio.wait_all_tasks_blocked()
        await post(json=SUMMARIZE)
        assert [202] == statuses
        producer.hold = anyio.Event()
        tasks.start_soon(lambda: post(json=SUMMARIZE))
        await anyio.wait_all_tasks_blocked()
        await post(json=SUMMARIZE)
        arrive.set()
        await anyio.wait_all_tasks_blocked()
        assert [202, 503, 503] == statuses
        producer.hold.set()
    assert [202, 503, 503, 202] == statuses


@pytest.mark.anyio
@pytest.mark.parametrize("number", ["9" * 401, "1." + "0" * 400, "-" + "9" * 400])
async def test_a_number_that_is_too_long_is_refused(ml, number) -> None:
    """The cost of reading a number grows with the square of its digits."""
    body = f'{{"share_id": "s", "content": {{"text": "x", "metadata": {{"a": {number}}}}}}}'
    async with client(ml_app(ml)) as http:
        answer = await http.post("/v1/ml/tasks/embed", content=body, headers={"Content-Type": "application/json"})
    assert (422, "the body must not hold a number of more than 400 characters") == (
        answer.status_code, answer.json()["error"],
    )  # fmt: skip


def test_no_limit_of_open_files_is_no_bound(monkeypatch) -> None:
    """The system's number for "no limit" is -1."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert http_server._files() > 2**31


@pytest.mark.parametrize("known", [True, False])
def test_few_descriptors_and_many_clients(start_service: Callable[..., Service], dead_url: str, known: bool) -> None:
    """64 open files and 100 idle connections, which stay: a new client is answered.

    The limit is there at the start, or it is lowered later.
    """
    service = start_service(dead_url, files=64 if known else None, header_timeout="60")
    address = address_of(service.url)
    if not known:
        resource.prlimit(service.program.pid, resource.RLIMIT_NOFILE, (64, 64))
    waiting = [socket.create_connection(address) for _ in range(100)]
    try:
        assert 200 == httpx.get(f"{service.url}/livez", timeout=30).status_code
    finally:
        for peer in waiting:
            peer.close()
    assert service.program.poll() is None


def test_no_descriptor_for_any_connection(start_service: Callable[..., Service], dead_url: str) -> None:
    """Accepting fails: it is logged, nothing ends, and clients are answered when there are descriptors again."""
    service = start_service(dead_url)
    address = address_of(service.url)
    resource.prlimit(service.program.pid, resource.RLIMIT_NOFILE, (4, 64))
    with socket.create_connection(address):
        service.wait_log("socket.accept() out of system resource")
        resource.prlimit(service.program.pid, resource.RLIMIT_NOFILE, (64, 64))
        assert 200 == httpx.get(f"{service.url}/livez", timeout=30).status_code
    assert service.program.poll() is None


# --- who may use it -------------------------------------------------------------------------------------------------------


def guarded(ml: Any, *, token: str | None = None, **settings: Any) -> httpx.AsyncClient:
    app = Guard(ml_app(ml), MLSettings(**settings), token=token)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:3001")


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio; its app is tested on each backend in test_http.py."""
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:3001", 200), ("localhost.", 200), ("127.0.0.1:3001", 200), ("10.1.2.3", 200),
        ("[::1]:3001", 200), ("[fd00::1]", 200), ("ml.example.org", 200), ("rebind.test", 421), ("localhost.rebind.test", 421),
        ("rebind.test:3001", 421), ("127.0.0.1.rebind.test", 421), ("1.2.3", 421), ("[rebind.test]", 421), ("", 421),
        ("localhost@rebind.test", 421), ("0x7f000001", 421),
    ],
)  # fmt: skip
async def test_hosts_are_an_allow_list(ml, producer, host, status) -> None:
    """A page whose name was rebound to this machine reads and sends nothing; probes that use an address pass."""
    async with guarded(ml, allowed_hosts=("ml.example.org",)) as http:
        answers = [
            await http.get("/metrics", headers={"Host": host}),
            await http.post("/v1/ml/tasks/embed", json=SUMMARIZE, headers={"Host": host}),
        ]
    assert [status, 202 if status == 200 else status] == [answer.status_code for answer in answers]
    assert (status == 200) == bool(producer.published)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3001", 202), ("https://portal.example.org", 202), ("http://localhost:8080", 403), ("null", 403),
        ("https://localhost:3001", 403), ("http://localhost:3001.evil.test", 403), ("", 403),
    ],
)  # fmt: skip
async def test_a_page_of_another_origin_sends_nothing(ml, producer, origin, status) -> None:
    """Only a request that changes something asks for the origin."""
    async with guarded(ml, allowed_origins=("https://portal.example.org",)) as http:
        headers = {"Origin": origin}
        sent = await http.post("/v1/ml/tasks/embed", json=SUMMARIZE, headers=headers)
        read = await http.get("/livez", headers=headers)
    assert (status, 200, status == 202) == (sent.status_code, read.status_code, bool(producer.published))


@pytest.mark.anyio
async def test_a_token_guards_publishing_and_metrics(ml, producer) -> None:
    """Health, liveness and the page need none."""
    token = "0123456789abcdef-._~+/"
    async with guarded(ml, token=token) as http:
        for given in (None, "Bearer", "Bearer wrong", f"Basic {token}", f"Bearer {token}x", token):
            headers = {} if given is None else {"Authorization": given}
            for answer in (
                await http.post("/v1/ml/tasks/embed", json=SUMMARIZE, headers=headers),
                await http.get("/metrics", headers=headers),
            ):
                assert (401, "Bearer") == (answer.status_code, answer.headers["www-authenticate"])
                assert token not in answer.text
        assert [] == producer.published
        headers = {"Authorization": f"bearer {token}"}
        assert 202 == (await http.post("/v1/ml/tasks/embed", json=SUMMARIZE, headers=headers)).status_code
        assert 200 == (await http.get("/metrics", headers=headers)).status_code
        for path in ("/livez", "/readyz", "/v1/ml/analytics/health", "/"):
            assert 200 == (await http.get(path)).status_code


def test_the_token_comes_from_a_setting_or_from_a_file(tmp_path: Path) -> None:
    """Not from both; it is shown nowhere."""
    token = "0123456789abcdef"
    path = tmp_path / "token"
    path.write_text(f"{token}\n")
    assert token == MLSettings(token=token).read_token()
    assert token == MLSettings(token_file=str(path)).read_token()
    assert token not in repr(MLSettings(token=token))
    assert MLSettings().read_token() is None
    with pytest.raises(SettingsError, match="both set"):
        MLSettings(token=token, token_file=str(path)).read_token()
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        MLSettings(token_file=str(tmp_path / "absent")).read_token()
    path.write_text("short")
    with pytest.raises(SettingsError, match="must hold 16 or more"):
        MLSettings(token_file=str(path)).read_token()
    with pytest.raises(SettingsError) as caught:
        MLSettings(token="sec ret")
    assert "sec ret" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("allowed_hosts", ("a b",)), ("allowed_hosts", ("*",)), ("allowed_hosts", "a"), ("allowed_origins", ("a.org",)),
        ("forwarded_from", ("proxy",)), ("media_schemes", ("gopher",)), ("max_connections", 0), ("header_timeout", "soon"),
        ("max_parsed", 1.5),
    ],
)  # fmt: skip
def test_a_bound_that_makes_no_sense_is_refused_by_name(setting: str, value: Any) -> None:
    """At the start, in one sentence."""
    with pytest.raises(SettingsError, match=f"^{setting} must be "):
        MLSettings(**{setting: value})


def test_forwarded_headers_are_believed_from_named_addresses_only(start_service, dead_url) -> None:
    """Behind a proxy that ends TLS the own origin is https; a stranger's X-Forwarded-Proto changes nothing."""
    for trusted, status in (("127.0.0.1", 503), ("10.0.0.0/8", 403)):
        service = start_service(dead_url, {"WARRENER_MAX_BLOCK": "0.1"}, forwarded_from=trusted, request_timeout="1")
        headers = {"Origin": "https://127.0.0.1", "Host": "127.0.0.1", "X-Forwarded-Proto": "https"}
        answer = httpx.post(f"{service.url}/v1/ml/tasks/embed", json=SUMMARIZE, headers=headers)
        assert status == answer.status_code


# --- bodies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["+2345678-1234-1234-1234-123456789012", "0x345678-1234-1234-1234-123456789012",
    "{12345678-1234-1234-1234-123456789012}", "urn:uuid:12345678-1234-1234-1234-123456789012",
    "12345678123412341234123456789012", ""])  # fmt: skip
async def test_an_idempotency_key_is_taken_as_written_or_refused(ml, producer, key) -> None:
    """Two keys never become one id."""
    async with client(ml_app(ml)) as http:
        answer = await http.post("/v1/ml/tasks/embed", json=SUMMARIZE, headers={"Idempotency-Key": key})
    assert (422, []) == (answer.status_code, producer.published)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "schemes", "status"),
    [
        ("https://example.org/a.mp3", None, 202), ("HTTP://example.org/a.mp3", None, 202), ("s3://bucket/a.mp3", None, 422),
        ("/etc/passwd", None, 422), ("file:///etc/passwd", None, 422), ("gopher://example.org/", None, 422),
        ("s3://bucket/a.mp3", ("s3",), 202), ("/data/a.mp3", ("file",), 202), ("https://example.org/a.mp3", ("s3",), 422),
    ],
)  # fmt: skip
async def test_a_client_may_use_the_schemes_that_are_set(ml_with, producer, url, schemes, status) -> None:
    """http and https, unless set otherwise: a worker must not read its own files for a stranger."""
    ml = ml_with() if schemes is None else ml_with(media_schemes=schemes)
    async with client(ml_app(ml)) as http:
        answer = await http.post("/v1/ml/tasks/transcribe", json={"share_id": "s", "content": {"media_url": url}})
    assert (status, status == 202) == (answer.status_code, bool(producer.published))


@pytest.mark.anyio
@pytest.mark.parametrize("unit", ["[],", "{},", '"aa",', "1.5,", "[[[]]],", '{"a":{"b":[]}},'])
async def test_a_body_is_measured_as_parsed(ml_with, producer, unit) -> None:
    """A few bytes for each object: 413, before it is parsed."""
    body = f"[{unit * (300_000 // len(unit))}0]"
    async with client(ml_app(ml_with(max_parsed=1_000_000))) as http:
        answer = await http.post("/v1/ml/tasks/embed-batch", content=body, headers={"Content-Type": "application/json"})
    assert (413, []) == (answer.status_code, producer.published)
    assert "once parsed" in answer.json()["error"]


@pytest.mark.parametrize(
    "unit", ["[],", "{},", '"aa",', "1.5,", "[[[]]],", '{"a":{"b":[]}},', '{"%06d":1},', '"\\ud83d\\ude00aaaa",']
)
def test_the_measure_is_no_less_than_what_the_objects_take(unit: str) -> None:
    """Compared with what the interpreter allocates."""
    items = [unit % number if "%" in unit else unit for number in range(20_000)]
    body = f"[{''.join(items)}0]".encode()
    tracemalloc.start()
    try:
        value = json.loads(body)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert value
    assert taken <= parsed_size(body)


@pytest.mark.anyio
async def test_parsing_a_large_body_does_not_hold_the_loop(ml, producer, monkeypatch) -> None:
    """While one is parsed, liveness is answered; and bodies are parsed one at a time."""
    release, parsing = threading.Event(), []

    def slow(body: Any) -> object:
        parsing.append(threading.get_ident())
        release.wait(30)
        return json.loads(body)

    monkeypatch.setattr(task_endpoint, "decoded", slow)
    large = SUMMARIZE | {"content": {"text": "x" * 100_000}}
    answers: list[httpx.Response] = []
    async with client(ml_app(ml)) as http:

        async def post() -> None:
            answers.append(await http.post("/v1/ml/tasks/embed", json=large))

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(post)
                while not parsing:
                    await anyio.lowlevel.checkpoint()
                assert 200 == (await http.get("/livez")).status_code
                assert 1 == len(parsing)
                release.set()
    assert [202, 202, 202] == [answer.status_code for answer in answers]
    assert threading.get_ident() not in parsing


# --- the server and the producer fail apart ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_server_that_ends_is_started_again(monkeypatch) -> None:
    """Its error is logged; the listener stays, so that clients that come meanwhile wait."""
    failures = [RuntimeError("planted"), OSError(24, "planted"), OSError(24, "planted before the start")]
    main_loop, startup = http_server._Server.main_loop, http_server._Server.startup

    async def fail_at_first(server: Any) -> None:
        if failures:
            raise failures.pop()
        await main_loop(server)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def fail_before(server: Any, sockets: Any) -> None:
        if len(failures) == 3:
            raise failures.pop()
        await startup(server, sockets)

    monkeypatch.setattr(http_server._Server, "main_loop", fail_at_first)
    monkeypatch.setattr(http_server._Server, "startup", fail_before)
    monkeypatch.setattr(http_server, "RESTART_FIRST", 0.001)
    stopping, counters = anyio.Event(), ServerCounters()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(30):
                await tasks.start(partial(serve_http, app, listener, MLSettings(), stopping, counters=counters))
            async with httpx.AsyncClient() as http:
                with anyio.fail_after(30):
                    while failures or counters.restarts < 3:
                        await anyio.lowlevel.checkpoint()
                    assert 204 == (await http.get(url)).status_code
            stopping.set()
    assert 3 == counters.restarts


@pytest.mark.anyio
async def test_a_producer_that_fails_by_itself_ends_the_service_with_its_own_status(monkeypatch, dead_url) -> None:
    """70, after an orderly end: not a traceback's 1, which stands for an address that is taken."""

    async def run(_ml: Any, *, task_status: Any) -> None:
        task_status.started()
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("planted")

    monkeypatch.setenv("RABBITMQ_URL", dead_url)
    monkeypatch.setattr(service_module.MLProducer, "run", run)
    with anyio.fail_after(60):
        assert service_module.EXIT_BROKEN == await service_module.serve(MLSettings.load(bind="127.0.0.1:0"))


@pytest.mark.anyio
async def test_an_error_in_the_handling_of_a_connection_is_that_connections(monkeypatch) -> None:
    """Whatever its kind: the connection is closed and counted, the next is served."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    events = http_server.H11Protocol.handle_events
    errors: list[BaseException] = [RecursionError("planted"), MemoryError("planted"), KeyError("planted")]

    def fail_at_first(connection: Any) -> None:
        if errors:
            raise errors.pop()
        events(connection)

    monkeypatch.setattr(http_server.H11Protocol, "handle_events", fail_at_first)
    stopping, counters = anyio.Event(), ServerCounters()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: serve_http(app, listener, MLSettings(), stopping, counters=counters))
            async with httpx.AsyncClient() as http:
                for _ in range(3):
                    with pytest.raises(httpx.TransportError):
                        await http.get(url)
                assert 204 == (await http.get(url)).status_code
            stopping.set()
    assert (3, 0) == (counters.broken, counters.restarts)


# --- the log --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes no more bytes."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_log_that_nobody_reads_holds_nobody_up(full_pipe: tuple[int, int]) -> None:
    """Lines wait in bounded number, the others are dropped; when it is read again, it says how many."""
    reader, writer = full_pipe
    handler = BoundedHandler(writer)
    logger = logging.Logger("test")  # noqa: LOG001 - one of its own
    logger.addHandler(handler)
    for number in range(MAX_LINES + 500):
        logger.warning("line %d %s", number, "y" * 100_000)
    assert 498 <= handler.dropped <= 500  # the writer holds one line, or waits for its first
    read = b""
    while b"lines of the log were dropped" not in read:
        read = read[-200:] + os.read(reader, 1_000_000)
    handler.close()


def test_a_log_whose_reader_is_gone_ends_nothing() -> None:
    """A closed pipe is no error of the service's."""
    reader, writer = os.pipe()
    os.close(reader)
    handler = BoundedHandler(writer)
    for _ in range(10):
        handler.emit(logging.LogRecord("test", logging.WARNING, "", 0, "line", (), None))
    handler.close()
    os.close(writer)
    assert not handler._writer.is_alive()


def test_one_line_of_a_kind_is_written_in_ten_seconds() -> None:
    """The others are counted, and the next line says how many there were."""
    now = [0.0]
    limit = RateLimit(clock=lambda: now[0])

    def passes(text: str, *arguments: object) -> str | None:
        record = logging.LogRecord("test", logging.WARNING, "", 0, text, arguments, None)
        return record.getMessage() if limit.filter(record) else None

    assert ("a 1", None, None, "b") == (passes("a %d", 1), passes("a %d", 2), passes("a %d", 3), passes("b"))
    now[0] = 10.0
    assert ("a 4 (and 2 more of this kind since the last line)", None) == (passes("a %d", 4), passes("a %d", 5))
