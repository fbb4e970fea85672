"""Tools for tests of programs that publish: a private RabbitMQ, an embedded broker, a fault proxy, a scripted driver.

Nothing here is for production. Importing this package loads none of it; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warrener.testing.broker import EmbeddedBroker, ProtocolViolated, Tuning
    from warrener.testing.postgresql import PrivatePostgreSQL
    from warrener.testing.proxy import FaultProxy
    from warrener.testing.rabbitmq import PrivateRabbitMQ
    from warrener.testing.scripted import ScriptedDriver

__all__ = [
    "EmbeddedBroker",
    "FaultProxy",
    "PrivatePostgreSQL",
    "PrivateRabbitMQ",
    "ProtocolViolated",
    "ScriptedDriver",
    "Tuning",
]

_MODULES = {
    "EmbeddedBroker": "broker",
    "FaultProxy": "proxy",
    "PrivatePostgreSQL": "postgresql",
    "PrivateRabbitMQ": "rabbitmq",
    "ProtocolViolated": "broker",
    "ScriptedDriver": "scripted",
    "Tuning": "broker",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
