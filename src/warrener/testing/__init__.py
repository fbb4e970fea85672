"""Tools for tests of programs that publish: brokers of one's own, real and embedded, and faults to inflict on them.

Nothing here is for production. Importing this package loads none of it; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warrener.testing.broker import EmbeddedBroker, ProtocolViolated, Tuning
    from warrener.testing.proxy import FaultProxy
    from warrener.testing.rabbitmq import PrivateRabbitMQ
    from warrener.testing.scripted import ScriptedDriver

__all__ = ["EmbeddedBroker", "FaultProxy", "PrivateRabbitMQ", "ProtocolViolated", "ScriptedDriver", "Tuning"]

_HOMES = {
    "EmbeddedBroker": "broker",
    "FaultProxy": "proxy",
    "PrivateRabbitMQ": "rabbitmq",
    "ProtocolViolated": "broker",
    "ScriptedDriver": "scripted",
    "Tuning": "broker",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
