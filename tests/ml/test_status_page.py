"""The status page in a real browser, before, during and after an outage, on a wide screen and on a phone.

The browser is driven over its DevTools protocol by the few calls in `Browser`; screenshots go to the folder named by
STATUS_PAGE_SHOTS, for people to look at.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

websocket = pytest.importorskip("wsproto", reason="the DevTools protocol is spoken over a WebSocket")

pytestmark = [pytest.mark.broker, pytest.mark.full]


class Browser:
    """A headless Chromium and one page in it."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = subprocess.Popen(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={folder}", "--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.program.stderr is not None
        line = "it printed nothing"
        for line in self.program.stderr:
            if "DevTools listening on" in line:
                self._port = int(line.rpartition("127.0.0.1:")[2].partition("/")[0])
                break
        else:
            self.program.communicate()
            raise RuntimeError(f"{program} ended with status {self.program.returncode}: {line.strip()}")
        pages = httpx.get(f"http://127.0.0.1:{self._port}/json").json()
        path = next(page for page in pages if page["type"] == "page")["webSocketDebuggerUrl"].partition(
            str(self._port)
        )[2]
        self._socket = WebSocket(self._port, path)
        self._calls = 0
        self.console: list[str] = []
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.receive())
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.console.append(json.dumps(answer["params"]))

    def evaluate(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_text(self, element: str, text: str) -> None:
        """Wait until the element shows exactly this text."""
        shown = self.evaluate(
            f"""new Promise((done) => {{
                const look = () => document.getElementById({element!r})?.textContent === {text!r};
                const end = setTimeout(() => done(document.getElementById({element!r})?.textContent), 60000);
                const tick = () => look() ? (clearTimeout(end), done({text!r})) : requestAnimationFrame(tick);
                tick();
            }})"""
        )
        assert text == shown

    def screen(self, width: int, height: int, *, phone: bool) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def shot(self, name: str) -> None:
        if folder := os.environ.get("STATUS_PAGE_SHOTS"):
            data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
            Path(folder, f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._socket.close()
        self.program.terminate()
        self.program.wait(timeout=30)
        assert self.program.stderr is not None
        self.program.stderr.close()


class WebSocket:
    """Just enough of a client: whole text messages."""

    def __init__(self, port: int, path: str) -> None:
        import socket

        from wsproto import WSConnection
        from wsproto.connection import ConnectionType
        from wsproto.events import AcceptConnection, Request

        self._socket = socket.create_connection(("127.0.0.1", port), timeout=90)
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._socket.sendall(self._connection.send(Request(host=f"127.0.0.1:{port}", target=path)))
        self._events: list[Any] = []
        assert isinstance(self._next(), AcceptConnection)

    def _next(self) -> Any:
        while not self._events:
            self._connection.receive_data(self._socket.recv(65536))
            self._events.extend(self._connection.events())
        return self._events.pop(0)

    def send(self, text: str) -> None:
        from wsproto.events import TextMessage

        self._socket.sendall(self._connection.send(TextMessage(data=text)))

    def receive(self) -> str:
        text = ""
        while True:
            event = self._next()
            text += event.data
            if event.message_finished:
                return text

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    browser = Browser(program, tmp_path / "profile")
    yield browser
    browser.close()


def submit(url: str, count: int) -> None:
    with httpx.Client(base_url=url) as http:
        for _ in range(count):
            http.post("/v1/ml/tasks/embed", json={"share_id": "s", "content": {"text": "x"}}).raise_for_status()


def test_the_page_tells_an_outage_from_beginning_to_end(start_service, rabbitmq, browser) -> None:
    """State, breaker and transitions follow the broker without a reload; nothing breaks the page's own policy."""
    service = start_service(rabbitmq.url, {"WARRENER_BREAKER_THRESHOLD": "1", "WARRENER_BACKOFF_CAP": "2"})
    service.wait_log("-> up")
    browser.screen(1100, 900, phone=False)
    browser.call("Page.navigate", url=f"{service.url}/")
    browser.wait_text("condition", "ready")
    submit(service.url, 50)
    browser.wait_text("confirmed", "50")
    browser.wait_text("feed", "live")
    browser.shot("1-before")

    rabbitmq.kill()
    browser.wait_text("state", "DISCONNECTED")
    browser.wait_text("breaker", "open")
    browser.shot("2-during")
    browser.screen(375, 800, phone=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 375, "a phone must not scroll sideways"
    browser.shot("3-during-phone")

    rabbitmq.start()
    browser.wait_text("condition", "ready")
    browser.wait_text("state", "CONNECTED")
    browser.shot("4-after-phone")
    browser.screen(1100, 900, phone=False)
    browser.shot("5-after")
    rows = browser.evaluate(
        "[...document.querySelectorAll('#transitions td:nth-child(2)')].map((cell) => cell.textContent)"
    )
    assert "ready" == rows[0]
    assert "disconnected" in rows
    assert not [line for line in browser.console if "Content Security Policy" in line or "exceptionThrown" in line]

    # Nothing is written during an alarm that nobody has seen: the broker says "blocked" to the first who publishes.
    rabbitmq.memory_alarm(True)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.url}/v1/ml/tasks/embed", json={"share_id": "s", "content": {"text": "x"}}, timeout=1)
    browser.wait_text("condition", "blocked")
    browser.wait_text("fault", "")
    rabbitmq.memory_alarm(False)
    browser.wait_text("condition", "ready")

    service.signal(15)
    browser.wait_text("condition", "unknown")
    assert 0 == service.wait_end()


def test_text_of_a_broker_is_shown_and_never_run(start_service, dead_url, browser) -> None:
    """Everything goes through textContent: markup in an event is text on the page."""
    service = start_service(dead_url)
    browser.call("Page.navigate", url=f"{service.url}/")
    browser.wait_text("feed", "live")
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    event = {
        "at": 0, "condition": hostile, "state": hostile, "healthy": False, "breaker": "open", "blocked": False,
        "attempts": 1, "failures": 1, "retry_in": 1, "in_flight": 0, "buffered": 0, "link": 1, "fault": hostile,
        "confirmed": 0, "samples": [],
        "transitions": [{"at": 0, "condition": hostile, "breaker": "open", "link": 1, "fault": hostile}],
    }  # fmt: skip
    browser.evaluate(f"show({json.dumps(event)})")
    assert [0, 1] == browser.evaluate("[document.images.length, document.scripts.length]")
    assert hostile in browser.evaluate("document.getElementById('transitions').textContent")
    assert "owned" != browser.evaluate("document.title")
