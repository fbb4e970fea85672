"""Settings of the ML producer and its service: one frozen record, from the environment and a TOML file.

Precedence, highest first: explicit arguments, environment, file, defaults. An unknown key or section of the file, an
unknown ``ML_PRODUCER_*`` variable and a value out of its range are each one `SettingsError` that names the setting. The
connection is set up as for every producer: ``RABBITMQ_URL`` and its companions, ``WARRENER_*``, or the table
``[warrener.producer]``, whose rows have the names of the settings. There is no default URL, so no default password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import frozen

from warrener._settings.rules import FLAG, Rule, count, number, one_of, row, rules_of
from warrener._settings.settings import RULES as PRODUCER_RULES
from warrener._settings.settings import Settings
from warrener._settings.sources import Given, defaults, from_environment, from_table, read_toml, refuse_unknown
from warrener.errors import SettingsError, printable
from warrener.ml.payloads import BACKENDS, Backend, Embed, EmbedBatch, Payload, Summarize, Transcribe
from warrener.ml.server_settings import ServerSettings
from warrener.ml.topology import DEFAULT_EXCHANGE

__all__ = ["CONFIG_VARIABLE", "PRODUCER_DEFAULTS", "MLSettings"]

#: Names the TOML file, where `--config` does not.
CONFIG_VARIABLE = "ML_PRODUCER_CONFIG"
_PREFIX = "ML_PRODUCER_"
_SECTION = "warrener"
#: Rows of the producer with the service's own defaults: it gives up after eleven failed dials in a row.
PRODUCER_DEFAULTS: Mapping[str, str] = {"backoff_cap": "60", "backoff_attempts": "10"}


def _is_exchange(value: object) -> bool:
    # The name of the dead-letter exchange is four bytes longer, and AMQP short strings end at 255.
    return (
        isinstance(value, str)
        and 0 < len(value.encode(errors="replace")) <= 251
        and printable(value) == value
        and not value.startswith("amq.")
    )


_BIND_FORM = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+):(\d{1,5})|unix:.+", re.ASCII)


def _is_bind(value: object) -> bool:
    match = _BIND_FORM.fullmatch(value) if isinstance(value, str) else None
    return match is not None and (match[1] is None or int(match[1]) <= 65535)


_EXCHANGE = Rule(
    "1 to 251 bytes of printable text that does not start with amq. (those names belong to the broker)",
    str,
    _is_exchange,
)
_BIND = Rule("host:port, [IPv6]:port or unix:path", str, _is_bind)
_BACKEND = one_of(*BACKENDS)


@frozen(kw_only=True)
class MLSettings(ServerSettings):
    """All settings of the ML producer and its service; durations are float seconds.

    Make it with `MLSettings.load`, or directly. Raises `SettingsError`, which names the setting and shows no secret.
    """

    #: The backend of a task that names none: "api" or "local".
    preferred_llm_backend: Backend = row(_BACKEND, "api", variable="PREFERRED_LLM_BACKEND")
    preferred_stt: Backend = row(_BACKEND, "api", variable="PREFERRED_STT")
    preferred_embedding_backend: Backend = row(_BACKEND, "api", variable="PREFERRED_EMBEDDING_BACKEND")

    exchange: str = row(_EXCHANGE, DEFAULT_EXCHANGE)
    #: Keep tasks that failed too often, in ``<exchange>.dlx``. To be chosen before the queues exist.
    dead_letter: bool = row(FLAG, False)

    #: The driver that speaks to the broker; see docs/drivers.md.
    driver: Literal["native", "aiormq"] = row(one_of("native", "aiormq"), "native")

    #: The address at which the service listens.
    bind: str = row(_BIND, "127.0.0.1:3001")
    #: A request is answered within this time, whatever the broker does.
    request_timeout: float = row(number(0.1, 3600, "seconds"), 25.0)
    #: Larger request bodies are refused (413); bytes.
    max_body: int = row(count(1024, 2**27, "bytes"), 4 * 1024 * 1024)
    #: Maximum number of tasks whose body is whole and that wait for their outcome; further ones get 503.
    max_requests: int = row(count(1, 100_000), 256)
    #: Maximum bytes of the bodies of all concurrent requests together, and of the tasks that wait; further requests get 503.
    max_held: int = row(count(1024, 2**34, "bytes"), 32 * 1024 * 1024)
    #: Maximum number of browsers on the status page.
    max_watchers: int = row(count(0, 1000), 20)
    #: From the first SIGTERM to the end of the process.
    shutdown_timeout: float = row(number(1, 3600, "seconds"), 20.0)
    log: Literal["human", "json"] = row(one_of("human", "json"), "human")
    log_level: Literal["debug", "info", "warning", "error"] = row(one_of("debug", "info", "warning", "error"), "info")

    #: How the broker is reached; None: by the environment, read when the producer is made.
    broker: Settings | None = None

    def __attrs_post_init__(self) -> None:
        if self.max_held < self.max_body:
            raise SettingsError(
                f"max_held ({self.max_held} bytes) is less than max_body ({self.max_body} bytes), so the largest body "
                "could never be accepted; raise max_held or lower max_body"
            )
        if self.broker is None:
            return
        if self.broker.drain_timeout > self.shutdown_timeout:
            raise SettingsError(
                f"drain_timeout ({self.broker.drain_timeout:g} s) is longer than shutdown_timeout "
                f"({self.shutdown_timeout:g} s), so closing could never finish in time; lower drain_timeout or raise "
                "shutdown_timeout"
            )

    def backend_for(self, payload: Payload, chosen: Backend | None) -> Backend:
        """Return the backend of `payload`: the `chosen` one, else the preferred one for its kind."""
        if chosen is not None:
            return chosen
        match payload:
            case Summarize():
                return self.preferred_llm_backend
            case Transcribe():
                return self.preferred_stt
            case Embed() | EmbedBatch():
                return self.preferred_embedding_backend

    @classmethod
    def load(
        cls,
        file: str | Path | None = None,
        *,
        url: str | None = None,
        producer_defaults: Mapping[str, str] | None = None,
        **explicit: Any,
    ) -> MLSettings:
        """Read the environment and the TOML file: `file`, or the one that ``ML_PRODUCER_CONFIG`` names, or none.

        `url` is the broker's; `explicit` are settings that win over everything; `producer_defaults` are rows of
        ``[warrener.producer]`` that every other source replaces. Raises `SettingsError`.
        """
        for name in explicit:
            refuse_unknown(name, {*_RULES, "broker"}, "setting")
        path = file if file is not None else os.environ.get(CONFIG_VARIABLE) or None
        in_file, producer, file_url = _read(None if path is None else Path(path))
        given = in_file | from_environment(os.environ, _VARIABLES, _PREFIX, ignored=(CONFIG_VARIABLE,))
        values: dict[str, Any] = {name: one.read(name, _RULES[name]) for name, one in given.items()}
        if "broker" not in explicit:
            below = defaults(**{**PRODUCER_DEFAULTS, **(producer_defaults or {})}) | producer
            values["broker"] = Settings.resolve(url or os.environ.get("RABBITMQ_URL") or file_url, below=below)
        return cls(**(values | explicit))


_RULES = rules_of(MLSettings)


def _variables() -> list[str]:
    """Return the environment variable of each row, in the order of the rows."""
    return [
        attribute.metadata["variable"] or f"{_PREFIX}{attribute.name.upper()}"
        for attribute in attrs.fields(MLSettings)
        if attribute.name in _RULES
    ]


_VARIABLES = dict(zip(_variables(), _RULES, strict=True))


def _popped(table: object, key: str, default: object) -> object:
    """Take a value out of a table; `from_table` refuses a value that is no table."""
    if not isinstance(table, dict):
        return default
    entries: dict[str, object] = table  # pyright: ignore[reportUnknownVariableType]
    return entries.pop(key, default)


def _read(path: Path | None) -> tuple[dict[str, Given], dict[str, Given], str | None]:
    """Return the file's settings, its rows of ``[warrener.producer]``, and the broker's URL if the file has one."""
    if path is None:
        return {}, {}, None
    sections = read_toml(path)
    for name in sections:
        refuse_unknown(name, {_SECTION}, "key or section", f" at the top of {printable(str(path))}")
    table = sections.get(_SECTION, {})
    producer = _popped(table, "producer", {})
    url = _popped(producer, "url", None)
    if url is not None and not isinstance(url, str):
        raise SettingsError(f"url in [{_SECTION}.producer] of {printable(str(path))} must be text")
    return (
        from_table(table, _SECTION, _RULES, path),
        from_table(producer, f"{_SECTION}.producer", PRODUCER_RULES, path),
        url,
    )
