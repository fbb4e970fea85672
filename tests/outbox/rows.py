"""Rows for the tests of the stores."""

from __future__ import annotations

from warrener.outbox._rows import encode
from warrener.outbox.records import Want, Work
from warrener.records import Message

WANT = Want(rows=100, bytes=1 << 20, per_key=10)
LEASE = 30.0


def insert(store, *keys, body=b"body"):
    done = store.transact(Work(inserts=[encode(Message(body, routing_key="q"), key) for key in keys]), "", 0.0)
    return list(done.stored)


def claim(store, token="relay", lease=LEASE):
    return store.transact(Work(want=WANT), token, lease).claimed.rows


def positions(rows):
    return [row.position for row in rows]
