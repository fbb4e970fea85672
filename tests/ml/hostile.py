"""Hostile, clumsy and many HTTP clients against `warrener serve`, kind after kind, and what each got.

    python -m tests.ml.hostile [--seconds 6] [KIND …]

The service, a broker and a prober are processes of their own. The prober asks for /livez on a new connection twenty times a second.
For each kind one line says how many inputs were tried, what they were answered, how long the slowest answer of /livez
took, and the largest memory of the service. The status is 1 if the service ended, if /livez failed or took longer than a
second, if the memory went above 256 MiB, or if a task that was submitted after the attack did not get its 202.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from attrs import define, field

from tests.ml.conftest import Service
from tests.ml.http_inputs import HOSTILE, POST, illegal, task_request
from warrener.testing.broker import EmbeddedBroker

ROOT = Path(__file__).resolve().parents[2]
#: What is promised: seconds until /livez answers, and bytes of the service.
SLOWEST, LARGEST = 1.0, 256 * 2**20
HEALTH = "/v1/ml/analytics/health"


# --- the processes beside the service ------------------------------------------------------------------------------------


def be_broker() -> None:
    """Hold an embedded broker; each line of the input is a control of it."""
    with EmbeddedBroker.in_thread() as broker:
        print(broker.url, flush=True)
        for line in sys.stdin:
            broker.alarm(line.strip() == "block")
            print("done", flush=True)


LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def be_prober(address: tuple[str, int]) -> None:
    """Ask for /livez on a new connection, again and again, and submit a task now and then, as an honest client would.

    A line of the input asks for the account since the last one.
    """
    task = task_request("embed", {"share_id": "s", "content": {"text": "x"}})
    took: list[float] = []
    failed: Counter[str] = Counter()
    tasks: Counter[str] = Counter()

    def submit() -> None:
        tasks[answer_to(address, task)] += 1

    os.set_blocking(sys.stdin.fileno(), False)
    for number in itertools.count():
        began = time.monotonic()
        answer = answer_to(address, LIVEZ)
        took.append(time.monotonic() - began)
        if answer != "200":
            failed[answer] += 1
        if number % 10 == 5:
            threading.Thread(target=submit, daemon=True).start()
        if (line := sys.stdin.readline()) != "":
            if line.strip() == "end":
                return
            print(json.dumps({"probes": len(took), "slowest": max(took), "failed": failed, "tasks": tasks}), flush=True)
            took, failed = [], Counter()
            tasks.clear()
        time.sleep(max(0.0, began + 0.05 - time.monotonic()))


def answer_to(address: tuple[str, int], request: bytes) -> str:
    """Return the status of the answer, or why there is none."""
    try:
        with socket.create_connection(address, timeout=30) as peer:
            peer.sendall(request)
            return peer.recv(65536)[9:12].decode() or "closed"
    except OSError as error:
        return type(error).__name__


class Helper:
    """A process of this module, with lines in and out."""

    def __init__(self, *arguments: str) -> None:
        self.program = subprocess.Popen(
            [sys.executable, "-m", "tests.ml.hostile", *arguments],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def line(self) -> str:
        assert self.program.stdout is not None
        return self.program.stdout.readline().strip()

    def ask(self, text: str) -> str:
        assert self.program.stdin is not None
        self.program.stdin.write(f"{text}\n")
        self.program.stdin.flush()
        return self.line()

    def end(self) -> None:
        self.program.kill()
        self.program.wait()


# --- clients --------------------------------------------------------------------------------------------------------------


@define
class Attack:
    """The clients of one kind: they count their inputs and what came back."""

    address: tuple[str, int]
    until: float
    tried: int = 0
    got: Counter[str] = field(factory=Counter[str])
    rng: random.Random = field(factory=lambda: random.Random(7))

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address)
        return reader, writer

    async def say(self, pieces: list[bytes], *, pause: float = 0.0, cut: str = "", wait: float = 30.0) -> None:
        """Send the pieces on a new connection, with a pause between them, and count the first answer.

        `cut`: "half" closes this side's direction behind the last piece, "reset" cuts the connection there.
        """
        self.tried += 1
        try:
            reader, writer = await asyncio.wait_for(self.open(), 30)
        except (OSError, TimeoutError):
            self.got["not connected"] += 1
            return
        answer = b""
        try:
            for number, piece in enumerate(pieces):
                if number and pause:
                    with suppress(TimeoutError):
                        answer = await asyncio.wait_for(reader.read(65536), pause)
                        break
                writer.write(piece)
                await asyncio.wait_for(writer.drain(), wait)
            if cut == "reset":
                writer.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.got["(reset by the client)"] += 1
                return
            if cut == "half":
                writer.write_eof()
            answer = answer or await asyncio.wait_for(reader.read(65536), wait)
            self.got[answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.") else "closed"] += 1
        except TimeoutError:
            self.got["nothing yet"] += 1
        except OSError:
            self.got["closed"] += 1
        finally:
            writer.transport.abort()

    async def crowd(self, size: int, client: Callable[[], Awaitable[None]]) -> None:
        """Have this number of clients, each of which begins again until the time is over."""

        async def again() -> None:
            while self.goes_on:
                await client()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(size):
                tasks.create_task(again())

    @property
    def left(self) -> float:
        return max(0.1, self.until - time.monotonic())


# --- the kinds ------------------------------------------------------------------------------------------------------------


async def sequences(attack: Attack) -> None:
    """Each byte sequence of the list, whole, half-closed, cut off and byte by byte; and generated ones."""
    for data in HOSTILE.values():
        await attack.say([data], wait=2, cut="half")
        await attack.say([data], cut="reset")
        await attack.say([data[at : at + 1] for at in range(min(len(data), 300))], wait=2, cut="half")
    rng = attack.rng
    await attack.crowd(8, lambda: attack.say([illegal(rng)], wait=2, cut=rng.choice(["half", "reset"])))


async def slow_heads(attack: Attack) -> None:
    """1,000 connections, each of which sends a byte of its head a second."""
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1000
    await attack.crowd(1000, lambda: attack.say([head[at : at + 1] for at in range(1000)], pause=1))


async def slow_bodies(attack: Attack) -> None:
    """1,000 connections, each of which sends a byte of its body a second."""
    head = POST + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    await attack.crowd(1000, lambda: attack.say([head, *[b" "] * 1000], pause=1))


async def small_chunks(attack: Attack) -> None:
    """200 connections, each with a body of 300,000 chunks of one byte."""
    head = POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"1\r\n \r\n" * 10_000
    await attack.crowd(200, lambda: attack.say([head, *[body] * 30], wait=attack.left))


async def large_heads(attack: Attack) -> None:
    """200 connections, each with a head of 3,000 fields, and with one that is too large."""
    fields = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"%x:\r\n" % n for n in range(2500)) + b"\r\n"
    large = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n"
    await attack.crowd(200, lambda: attack.say([attack.rng.choice([fields, large])], wait=attack.left))


async def pipelines(attack: Attack) -> None:
    """200 connections, each with requests behind each other; half of the clients read no answer."""
    line = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def client() -> None:
        data = line * 2000
        if attack.rng.random() < 0.5:
            await attack.say([data], cut="reset", wait=attack.left)
            return
        attack.tried += 2000
        with suppress(OSError):
            reader, writer = await attack.open()
            writer.write(data)
            left = 2000
            while left > 0 and attack.goes_on:
                part = b""
                with suppress(TimeoutError):
                    part = await asyncio.wait_for(reader.read(65536), attack.left)
                if not part:
                    break
                attack.got["200"] += part.count(b"HTTP/1.1 200")
                left -= part.count(b"HTTP/1.1 200")
            writer.transport.abort()

    await attack.crowd(200, client)


async def idle_connections(attack: Attack) -> None:
    """5,000 connections that send nothing, and more that come and go."""
    await attack.crowd(2000, lambda: attack.say([], wait=attack.left))


async def comers_and_goers(attack: Attack) -> None:
    """Connections that are opened and cut at once."""
    await attack.crowd(100, lambda: attack.say([b"GET /livez"], cut="reset"))


async def half_closed(attack: Attack) -> None:
    """A request, a part of one, or nothing, and then the end of the client's direction."""
    rng = attack.rng
    whole = task_request("embed", {"share_id": "s", "content": {"text": "x"}})
    await attack.crowd(50, lambda: attack.say([whole[: rng.randrange(len(whole) + 1)]], cut="half", wait=attack.left))


NAMES = ["rebind.test", "localhost", "127.0.0.1.rebind.test", "", "[::1", "a" * 5000, "localhost:x", "\u00e9"]
ORIGINS = ["null", "http://evil.test", "http://localhost", "x" * 3000]
TOKENS = ["", "Bearer ", "Bearer " + "x" * 8000, "Basic QQ==", "Bearer \u00e9"]


async def who(attack: Attack) -> None:
    """Names of other sites, other origins, tokens of all sorts, forwarded headers of strangers."""
    rng = attack.rng

    async def client() -> None:
        name = rng.choice(NAMES)
        proxies = "1.2.3.4, " * rng.randrange(300)
        lines = [f"Host: {name}", f"X-Forwarded-For: {proxies}", "X-Forwarded-Proto: https"]
        lines += [f"Origin: {rng.choice(ORIGINS)}", f"Authorization: {rng.choice(TOKENS)}"]
        rng.shuffle(lines)
        body = b'{"share_id": "s", "content": {"text": "x"}}'
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        head = "POST /v1/ml/tasks/embed HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n"
        await attack.say([head.encode() + body])

    await attack.crowd(30, client)


#: Bodies that cost more than they weigh.
BODIES: dict[str, Callable[[], bytes]] = {
    "arrays in arrays": lambda: b"[" * 4_000_000,
    "objects in objects": lambda: b'{"a":' * 800_000,
    "empty arrays": lambda: b"[" + b"[]," * 1_300_000 + b"0]",
    "a long number": lambda: b"[" + b"9" * 4_000_000 + b"]",
    "many long numbers": lambda: b"[" + b"9" * 4299 + (b"," + b"9" * 4299) * 900 + b"]",
    "small numbers": lambda: b"[" + b"1," * 2_000_000 + b"1]",
    "long exponents": lambda: b"[" + b"1e999999," * 400_000 + b"1]",
    "a long key": lambda: b'{"' + b"k" * 4_000_000 + b'": 1}',
    "many keys": lambda: b"{" + b",".join(b'"%x":1' % number for number in range(350_000)) + b"}",
    "one key often": lambda: b"{" + b'"share_id":"s",' * 260_000 + b'"share_id":"s"}',
    "escapes": lambda: b'{"share_id":"s","content":{"text":"' + b"\\ud83d\\ude00" * 330_000 + b'"}}',
    "wide text": lambda: b'{"share_id":"s","content":{"text":"' + "\U0001f600".encode() * 1_000_000 + b'"}}',
    "text": lambda: b'{"share_id":"s","content":{"text":"' + b"x" * 4_000_000 + b'"}}',
    "no UTF-8": lambda: b'{"share_id":"s","content":{"text":"' + b"\xff" * 4_000_000 + b'"}}',
    "UTF-32": lambda: ("[" * 900_000).encode("utf-32"),
    "white space": lambda: b" " * 4_000_000 + b"{}",
    "a batch": lambda: b'{"tasks":[' + b",".join([b'{"share_id":"s","content":{"text":"x"}}'] * 10_000) + b"]}",
    "deep metadata": lambda: b'{"share_id":"s","content":{"text":"x","metadata":' + b'{"a":' * 900 + b"1" + b"}" * 903,
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(1000),
}


async def heavy_bodies(attack: Attack) -> None:
    """40 clients at once, each with a body of up to 4 MiB that is expensive to parse or to hold."""
    bodies = [make() for make in BODIES.values()]
    rng = attack.rng

    async def client() -> None:
        body, task = rng.choice(bodies), rng.choice(["embed", "embed-batch", "summarize", "transcribe"])
        head = f"POST /v1/ml/tasks/{task} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        await attack.say([head.encode(), body], wait=attack.left + 5)

    await attack.crowd(40, client)


async def readers_of_nothing(attack: Attack) -> None:
    """600 clients that ask for much and read none of it."""
    data = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
    events = b"GET /v1/ml/analytics/events HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def client() -> None:
        attack.tried += 1
        with suppress(OSError), socket.socket() as peer:
            peer.setblocking(False)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.get_running_loop().sock_connect(peer, attack.address)
            await asyncio.get_running_loop().sock_sendall(peer, attack.rng.choice([data, events]))
            await asyncio.sleep(attack.left)
            attack.got["(read nothing)"] += 1

    await attack.crowd(600, client)


async def a_flood_of_requests(attack: Attack) -> None:
    """64 clients that ask as fast as they can, for everything there is, /metrics included."""
    task = task_request("embed", {"share_id": "s", "content": {"text": "x"}})
    asked = [
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in ("/", "/metrics", HEALTH, "/nowhere")
    ]

    async def client() -> None:
        try:
            reader, writer = await attack.open()
            while attack.goes_on:
                attack.tried += 1
                writer.write(attack.rng.choice([task, *asked]))
                answer = await asyncio.wait_for(reader.read(65536), 30)
                if not answer:
                    break
                attack.got[answer[9:12].decode()] += 1
                length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                rest = length - len(answer.partition(b"\r\n\r\n")[2])
                while rest > 0:
                    rest -= len(await reader.read(rest))
            writer.transport.abort()
        except (OSError, TimeoutError):
            attack.got["closed"] += 1

    await attack.crowd(64, client)


async def everything(attack: Attack) -> None:
    """All of it at once."""
    async with asyncio.TaskGroup() as tasks:
        for kind in KINDS.values():
            if kind is not everything:
                tasks.create_task(kind(attack))


KINDS: dict[str, Callable[[Attack], Awaitable[None]]] = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        sequences, slow_heads, slow_bodies, small_chunks, large_heads, pipelines, idle_connections, comers_and_goers,
        half_closed, who, heavy_bodies, readers_of_nothing, a_flood_of_requests, everything,
    )
}  # fmt: skip


# --- the account ----------------------------------------------------------------------------------------------------------


@define
class Victim:
    """The service under attack, its broker and its prober."""

    broker: Helper
    service: Service
    prober: Helper

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.service.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def reset_peak(self) -> None:
        Path(f"/proc/{self.service.program.pid}/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes that were resident at most since `reset_peak`."""
        status = Path(f"/proc/{self.service.program.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextmanager
def victim(*, first: bool, files: int | None = None, **settings: str) -> Iterator[Victim]:
    """Start the three processes; `first`: other programs wait for the service and the prober."""
    broker = Helper("--be-broker")
    service = Service({}, "native", broker.line(), files=files, **settings)
    prober = None
    try:
        service.wait_log("-> up")
        host, _, port = service.url.removeprefix("http://").rpartition(":")
        prober = Helper("--be-prober", host, port)
        if first:
            for program in (service.program, prober.program):
                os.sched_setscheduler(program.pid, os.SCHED_RR, os.sched_param(1))
        yield Victim(broker, service, prober)
    finally:
        service.program.kill()
        service.program.wait()
        broker.end()
        if prober is not None:
            prober.end()


@define
class Line:
    """What one kind of attack did."""

    kind: str
    attack: Attack
    probes: dict[str, Any]
    peak: int
    ended: bool
    task: int

    @property
    def held(self) -> bool:
        return not (
            self.ended
            or self.probes["failed"]
            or self.probes["slowest"] > SLOWEST
            or self.peak > LARGEST
            or self.task != 202
        )

    def __str__(self) -> str:
        got = ", ".join(f"{count:,} × {what}" for what, count in self.attack.got.most_common())
        failed = f", failed {dict(self.probes['failed'])}" if self.probes["failed"] else ""
        return (
            f"{'held  ' if self.held else 'BROKE '} {self.kind}: {self.attack.tried:,} inputs; {got or 'no answer'}; "
            f"/livez at most {self.probes['slowest']:.2f} s of {self.probes['probes']} probes{failed}; {self.peak / 2**20:.0f} MiB; "
            f"honest tasks: {', '.join(f'{n} × {what}' for what, n in self.probes['tasks'].items())}; "
            f"a task behind it: {self.task or 'none'}{', and the service ENDED' if self.ended else ''}"
        )


def strike(target: Victim, name: str, seconds: float) -> Line:
    """Attack for this time, and account for it."""
    target.prober.ask("")
    target.reset_peak()
    attack = Attack(target.address, time.monotonic() + seconds)
    asyncio.run(KINDS[name](attack))
    probes = json.loads(target.prober.ask(""))
    ended = target.service.program.poll() is not None
    target.broker.ask("unblock")
    task = 0
    if not ended:
        with suppress(httpx.HTTPError):
            body = {"share_id": "s", "content": {"text": "x"}}
            task = httpx.post(f"{target.service.url}/v1/ml/tasks/embed", json=body, timeout=30).status_code
    return Line(name, attack, probes, 0 if ended else target.peak(), ended, task)


def few_files(seconds: float, *, first: bool) -> bool:
    """64 file descriptors for the whole service."""
    with victim(first=first, files=64) as target:
        line = strike(target, "idle connections", seconds)
        line.kind = "idle connections, 64 descriptors"
        print(line, flush=True)
        return line.held


def end_under_attack(seconds: float, *, first: bool) -> bool:
    """SIGTERM in the middle of everything: the service ends in time and in order."""
    with victim(first=first, shutdown_timeout="10") as target:
        attack = Attack(target.address, time.monotonic() + seconds)

        async def strike_and_end() -> float:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(everything(attack))
                await asyncio.sleep(seconds / 2)
                target.service.signal(signal.SIGTERM)
                began = time.monotonic()
                await asyncio.to_thread(target.service.wait_end)
                return time.monotonic() - began

        took = asyncio.run(strike_and_end())
        status = target.service.program.returncode
        held = status == 0 and took < 10 + 3
        print(
            f"{'held  ' if held else 'BROKE '} SIGTERM in the middle of everything: status {status} after {took:.1f} s",
            flush=True,
        )
        return held


def main() -> int:
    """Run the kinds."""
    if sys.argv[1:2] == ["--be-broker"]:
        be_broker()
        return 0
    if sys.argv[1:2] == ["--be-prober"]:
        be_prober((sys.argv[2], int(sys.argv[3])))
        return 0
    parser = argparse.ArgumentParser(
        prog="python -m tests.ml.hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "kinds",
        nargs="*",
        metavar="KIND",
        help=f"of {', '.join(KINDS)}; default: all, and SIGTERM in the middle of everything",
    )
    parser.add_argument(
        "--first",
        action="store_true",
        help="give the service and the prober the processors before other programs (needs root)",
    )
    parser.add_argument("--seconds", type=float, default=6, help="for each kind (default: 6)")
    options = parser.parse_args()
    held = True
    with victim(first=options.first) as target:
        target.prober.ask("")
        time.sleep(3)
        print(
            f"       nobody: /livez at most {json.loads(target.prober.ask(''))['slowest']:.2f} s; {target.peak() / 2**20:.0f} MiB",
            flush=True,
        )
        for name in options.kinds or KINDS:
            for blocked in (False, True) if name == "heavy bodies" else (False,):
                if blocked:
                    target.broker.ask("block")
                line = strike(target, name, options.seconds)
                print(line, "(the broker is blocked)" if blocked else "", flush=True)
                held &= line.held
            if target.service.program.poll() is not None:
                print(*target.service.lines[-20:], sep="")
                return 1
    if not options.kinds:
        held &= few_files(options.seconds, first=options.first)
        held &= end_under_attack(options.seconds, first=options.first)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
