"""Which login mechanisms a link may use."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from warrener.drivers._login import mechanisms_of
from warrener.records import Credentials, Endpoint

NOBODY = Credentials("", "")


@pytest.mark.parametrize(
    ("endpoint", "own_context", "mechanisms"),
    [
        ({}, False, ["PLAIN", "AMQPLAIN"]),
        ({"tls": True}, False, ["PLAIN", "AMQPLAIN"]),
        ({"tls": True}, True, ["PLAIN", "AMQPLAIN"]),
        ({"tls": True, "certfile": "c.pem"}, False, ["PLAIN", "AMQPLAIN", "EXTERNAL"]),
        ({"tls": True, "certfile": "c.pem", "credentials": NOBODY}, False, ["EXTERNAL"]),
        ({"tls": True, "credentials": NOBODY}, True, ["EXTERNAL"]),
        ({"tls": True, "credentials": NOBODY}, False, ["PLAIN", "AMQPLAIN"]),
        ({"credentials": NOBODY}, True, ["PLAIN", "AMQPLAIN"]),
        ({"tls": True, "certfile": "c.pem", "mechanism": "EXTERNAL"}, False, ["EXTERNAL"]),
        ({"tls": True, "certfile": "c.pem", "credentials": NOBODY, "mechanism": "PLAIN"}, False, ["PLAIN"]),
        ({"mechanism": "AMQPLAIN"}, False, ["AMQPLAIN"]),
    ],
)
def test_mechanisms(endpoint: dict[str, Any], own_context: bool, mechanisms: list[str]) -> None:
    """A certificate, from files or in a context from code, logs in where there is no user; `mechanism` overrides that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if own_context else None
    assert list(mechanisms_of(Endpoint(**endpoint), context)) == mechanisms
