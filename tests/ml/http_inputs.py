"""Bytes that clients may send: the list of hostile sequences, and a generator of legal and illegal HTTP/1.1."""

from __future__ import annotations

import json
import random

__all__ = ["H2_REQUEST", "HOSTILE", "POST", "PREFACE", "illegal", "task_request"]


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return an HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


#: :method GET, :scheme http, :path /, and the header "a" with a value that is not text.
H2_REQUEST = frame(1, 5, 1, b"\x82\x86\x84\x00\x01a\x02\xff\xfe")


def task_request(task: str, body: dict[str, object]) -> bytes:
    """Return a whole request that submits a task."""
    content = json.dumps(body).encode()
    head = f"POST /v1/ml/tasks/{task} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


POST = b"POST /v1/ml/tasks/embed HTTP/1.1\r\nHost: localhost\r\n"

#: Each is sent on a connection of its own, which is then closed.
HOSTILE: dict[str, bytes] = {
    "HTTP/2 unasked": PREFACE + frame(4, 0, 0, b"") + H2_REQUEST,
    "HTTP/2 preface cut": PREFACE[:20],
    "HTTP/2 by upgrade": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n" + PREFACE + frame(4, 0, 0, b"") + H2_REQUEST,
    "WebSocket": b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\x81\x85\x00\x00\x00\x00hello",
    "a request behind the last one": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" * 2,
    "many requests at once": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200,
    "garbage behind a request": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n\x16\x03\x01\x02\x00"
    + bytes(range(256)),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "NULs": bytes(4096),
    "HTTP/0.9": b"GET /livez\r\n",
    "HTTP/9.9": b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: example.org\r\n\r\n",
    "a header that is not text": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: \xff\xfe\xc0\r\n\r\n",
    "a header with a NUL": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "a path that is not text": b"GET /%ff%fe%c0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a raw path that is not text": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "another host as target": b"GET http://example.org/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an endless head": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000,
    "a million headers": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * 250_000,
    "a negative length": POST + b"Content-Length: -1\r\n\r\nx",
    "a length that is no number": POST + b"Content-Length: 0x10\r\n\r\nx",
    "a length of 5,000 digits": POST
    + b"Content-Type: application/json\r\nContent-Length: "
    + b"9" * 5000
    + b"\r\n\r\nx",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "length and chunks": POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk of a wrong size": POST
    + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "a chunk of endless size": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 100_000,
    "an endless trailer": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 100_000,
    "an unknown encoding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a body behind a 415": POST + b"Content-Type: text/plain\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
    "a body behind a 404": b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    + b"x" * 100_000,
    "a body that is cut": POST + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    "100-continue and gone": POST
    + b"Expect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n",
    "deep JSON": task_request("embed", {}).replace(b"{}", b"[" * 2),
}

_METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"get",
    b"P\x00ST",
    b"",
    b"X" * 5000,
    b"G(T",
]
_TARGETS = [
    b"/livez", b"/metrics", b"/", b"/v1/ml/tasks/embed", b"/v1/ml/tasks/embed-batch", b"/v1/ml/analytics/events", b"*", b"",
    b"http://evil.test/livez", b"/%00", b"/%zz", b"/../../etc/passwd", b"//", b"/livez?" + b"a=b&" * 500, b"/\xff", b"/a b",
]  # fmt: skip
_VERSIONS = [
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.10",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"",
    b"XTTP/1.1",
]
_FIELDS = [
    b"Host: localhost", b"Host: localhost", b"Host: localhost", b"Host: rebind.test", b"Host:", b"Host : localhost",
    b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: 5, 5", b"Content-Length: 5,6", b"Content-Length: +5",
    b"Content-Length: 18446744073709551617", b"Content-Length: \xb2", b"Content-Length : 5", b"content-length:5",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding: x", b"transfer-encoding: Chunked", b"TE: trailers",
    b"Connection: close", b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: h2c",
    b"Expect: 100-continue", b"Expect: 200-ok", b"Content-Type: application/json", b"Content-Type: application/json",
    b"Content-Type: multipart/form-data; boundary=x", b"Content-Encoding: gzip", b" folded: yes", b"\tfolded", b": empty",
    b"no colon", b"nul: \x00", b"bare cr: a\rb", b"high: \xff\xfe", b"x" * 3000 + b": y", b"a:" * 900, b"{}: x",
    b"Origin: http://evil.test", b"Authorization: Bearer x", b"Idempotency-Key: +x", b"traceparent: 00-x-y-z",
    b"X-Forwarded-For: 1.2.3.4", b"X-Forwarded-Proto: https",
]  # fmt: skip
_BODIES = [
    b"", b"hello", b"{}", b"5\r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n", b"0\r\n\r\n", b"5;ext=1\r\nhello\r\n0\r\nA: b\r\n\r\n",
    b"-1\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffffff\r\n", b"5\r\nhelloX\r\n", b"1\r\nx\r\n" * 50, b"GET / HTTP/1.1\r\n\r\n",
    b'{"share_id": "s", "content": {"text": "x"}}', b"[" * 5000, b"\x00" * 100, b"9" * 5000,
]  # fmt: skip
_ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r\n"]


def illegal(rng: random.Random) -> bytes:
    """Return one to four requests behind each other, each of parts that are legal or not, sometimes cut or with bytes changed."""
    data = b""
    for _ in range(rng.randint(1, 4)):
        end = rng.choice(_ENDS)
        lines = [
            b" ".join(
                (
                    rng.choice(_METHODS[:2] * 5 + _METHODS),
                    rng.choice(_TARGETS),
                    rng.choice(_VERSIONS[:1] * 8 + _VERSIONS),
                )
            )
        ]
        lines += rng.choices(_FIELDS, k=rng.randint(0, 6))
        if rng.random() < 0.7:
            lines.insert(1, b"Host: localhost")
        data += end.join(lines) + end * 2 + rng.choice(_BODIES)
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data) + 1)]
    if rng.random() < 0.3:
        changed = bytearray(data)
        for _ in range(min(5, len(changed))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        data = bytes(changed)
    return data
