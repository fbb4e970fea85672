"""What both drivers say in the handshake: which logins they allow, and how they describe themselves."""

from __future__ import annotations

import importlib.metadata
import platform
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypedDict, TypeVar

from warrener.drivers.base import LinkDown, LinkOptions
from warrener.errors import Fault, FaultKind
from warrener.records import Endpoint, FieldValue
from warrener.wire import MECHANISMS

__all__ = ["Login", "encodable", "login_of", "mechanisms_of"]

T = TypeVar("T")


class Login(TypedDict):
    """Arguments of `warrener.wire.Session` and of its `Handshake`."""

    vhost: str
    heartbeat: float
    mechanisms: Sequence[str]
    client_properties: Mapping[str, FieldValue]


def login_of(endpoint: Endpoint, options: LinkOptions, product: str) -> Login:
    """Return what the handshake says about us."""
    return Login(
        vhost=endpoint.vhost,
        heartbeat=options.heartbeat,
        mechanisms=mechanisms_of(endpoint, options.ssl_context),
        client_properties={
            "product": product,
            "version": _version(),
            "platform": f"Python {platform.python_version()}",
            "connection_name": options.connection_name,
        },
    )


def mechanisms_of(endpoint: Endpoint, ssl_context: ssl.SSLContext | None) -> Sequence[str]:
    """Return the login mechanisms in the order of preference.

    EXTERNAL logs in by the client's certificate. It is allowed where there may be a certificate: without a user name it
    is the only mechanism, with a user name it comes last. An `ssl_context` does not say whether it holds a certificate.
    """
    if endpoint.mechanism is not None:
        return (endpoint.mechanism,)
    if not endpoint.tls or (endpoint.certfile is None and ssl_context is None):
        return MECHANISMS
    if not endpoint.credentials.username:
        return ("EXTERNAL",)
    return MECHANISMS if endpoint.certfile is None else (*MECHANISMS, "EXTERNAL")


def encodable(make: Callable[[], T]) -> T:
    """Return what `make` makes; a `ValueError` (a vhost of more than 255 bytes …) becomes one `LinkDown`."""
    try:
        return make()
    except ValueError as error:
        raise LinkDown(Fault(FaultKind.VHOST, f"the endpoint cannot be put into AMQP: {error}")) from None


@cache
def _version() -> str:
    try:
        return importlib.metadata.version("warrener")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# Read from the disk now: a later dial may find no free file descriptor.
_version()
