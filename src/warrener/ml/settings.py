"""Settings of the ML producer and its service: one frozen record, from the environment and a TOML file.

Precedence, highest first: explicit arguments, environment, file, defaults. Nothing is ignored: an unknown key of the file,
an unknown ``ML_PRODUCER_*`` variable and a value outside its range are each one `SettingsError` that names the setting.
(The system that this one replaces read PREFERRED_LLM_BACKEND and did nothing with it.) The connection itself is set up
as for every producer: ``RABBITMQ_URL`` and its companions, ``WARRENER_*``, or the table ``[warrener.producer]``, whose
rows are called as the settings are. There is no default URL, so no default password.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from attrs import Attribute, asdict, field, fields, frozen, make_class

from warrener._settings.settings import Settings
from warrener.errors import SettingsError, printable
from warrener.ml.payloads import BACKENDS, Backend, Embed, EmbedBatch, Payload, Summarize, Transcribe
from warrener.ml.server_settings import ServerSettings
from warrener.ml.topology import DEFAULT_EXCHANGE

__all__ = ["CONFIG_VARIABLE", "MLSettings"]

#: Names the TOML file, where `--config` does not.
CONFIG_VARIABLE = "ML_PRODUCER_CONFIG"
#: Rows of the producer that the service sets in its own way: it gives up after eleven failed dials in a row.
PRODUCER_DEFAULTS = {"backoff_cap": "60", "backoff_attempts": "10"}
_PREFIX = "ML_PRODUCER_"
_SECTION = "warrener"


# --- checks: each says what is allowed, and works on text (environment) as on TOML's types ---------------------------


def _refuse(attribute: Attribute[Any], allowed: str, value: object) -> SettingsError:
    name = cast("str", attribute.metadata.get("variable") or attribute.name)
    return SettingsError(f"{name} must be {allowed}, not {printable(repr(value), 60)}")


def _choice(*choices: str) -> Callable[[object, Attribute[Any], object], None]:
    def check(_settings: object, attribute: Attribute[Any], value: object) -> None:
        if value not in choices:
            raise _refuse(attribute, " or ".join(choices), value)

    return check


def _number(lowest: float, highest: float, unit: str) -> Callable[[object, Attribute[Any], object], None]:
    def check(_settings: object, attribute: Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= highest:
            raise _refuse(attribute, f"{unit} from {lowest:g} to {highest:g}", value)

    return check


def _is_flag(_settings: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise _refuse(attribute, "true or false", value)


def _is_exchange(_settings: object, attribute: Attribute[Any], value: object) -> None:
    # The name of the dead-letter exchange is four bytes longer, and AMQP short strings end at 255.
    if not isinstance(value, str) or not 0 < len(value.encode(errors="replace")) <= 251 or printable(value) != value:
        raise _refuse(attribute, "1 to 251 bytes of printable text", value)
    if value.startswith("amq."):
        raise _refuse(attribute, "a name that does not start with amq., which the broker keeps for itself", value)


_BIND = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+):(\d{1,5})|unix:.+", re.ASCII)


def _is_bind(_settings: object, attribute: Attribute[Any], value: object) -> None:
    match = _BIND.fullmatch(value) if isinstance(value, str) else None
    if match is None or (match[1] is not None and int(match[1]) > 65535):
        raise _refuse(attribute, "host:port, [IPv6]:port or unix:path", value)


_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

# Converters of the environment's text. What they cannot read they leave to the validator, which says what is allowed.


def _as_number(value: object) -> Any:
    return _read(float, value)


def _as_count(value: object) -> Any:
    return _read(int, value)


def _as_flag(value: object) -> Any:
    return _FLAGS.get(value.lower(), value) if isinstance(value, str) else value


def _read(kind: Callable[[str], object], value: object) -> object:
    try:
        return kind(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _preference(variable: str) -> Any:
    return field(default="api", validator=_choice(*BACKENDS), metadata={"variable": variable})


@frozen(kw_only=True)
class MLSettings(ServerSettings):
    """What the ML producer and its service are told; durations are float seconds.

    Make it with `MLSettings.load`, or directly. Raises `SettingsError`, which names the setting and shows no secret.
    """

    #: Who does a task that names no backend: "api" or "local".
    preferred_llm_backend: Backend = _preference("PREFERRED_LLM_BACKEND")
    preferred_stt: Backend = _preference("PREFERRED_STT")
    preferred_embedding_backend: Backend = _preference("PREFERRED_EMBEDDING_BACKEND")

    exchange: str = field(default=DEFAULT_EXCHANGE, validator=_is_exchange)
    #: Keep tasks that failed too often, in ``<exchange>.dlx``. To be chosen before the queues exist.
    dead_letter: bool = field(default=False, converter=_as_flag, validator=_is_flag)

    #: What speaks to the broker; see docs/drivers.md.
    driver: Literal["native", "aiormq"] = field(default="native", validator=_choice("native", "aiormq"))

    #: Where the service listens.
    bind: str = field(default="127.0.0.1:3001", validator=_is_bind)
    #: A request is answered within this time, whatever the broker does.
    request_timeout: float = field(default=25.0, converter=_as_number, validator=_number(0.1, 3600, "seconds"))
    #: Larger request bodies are refused (413); bytes.
    max_body: int = field(default=4 * 1024 * 1024, converter=_as_count, validator=_number(1024, 2**27, "bytes"))
    #: So many tasks are taken in at once; one more is told to come back (503).
    max_requests: int = field(default=256, converter=_as_count, validator=_number(1, 100_000, "a number"))
    #: What does not fit into so many bytes of request bodies, all together, is told to come back (503).
    max_held: int = field(default=32 * 1024 * 1024, converter=_as_count, validator=_number(1024, 2**34, "bytes"))
    #: So many browsers may watch the status page.
    max_watchers: int = field(default=20, converter=_as_count, validator=_number(0, 1000, "a number"))
    #: From the first SIGTERM to the end of the process.
    shutdown_timeout: float = field(default=20.0, converter=_as_number, validator=_number(1, 3600, "seconds"))
    log: Literal["human", "json"] = field(default="human", validator=_choice("human", "json"))
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info", validator=_choice("debug", "info", "warning", "error")
    )

    #: How the broker is reached; None: as a plain `Producer()` would find out, when it is made.
    broker: Settings | None = None

    def __attrs_post_init__(self) -> None:
        if self.max_held < self.max_body:
            raise SettingsError(
                f"max_held ({self.max_held} bytes) is less than max_body ({self.max_body} bytes), so the largest body "
                "could never be taken in; raise the one or lower the other"
            )
        if self.broker is None:
            return
        if self.broker.drain_timeout > self.shutdown_timeout:
            raise SettingsError(
                f"drain_timeout ({self.broker.drain_timeout:g} s) is longer than shutdown_timeout "
                f"({self.shutdown_timeout:g} s), so closing could never finish in time; lower the one or raise the other"
            )

    def backend_for(self, payload: Payload, chosen: Backend | None) -> Backend:
        """Return who does `payload`: what is `chosen`, else what is preferred for its kind."""
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
        producer_defaults: Mapping[str, object] | None = None,
        **explicit: Any,
    ) -> MLSettings:
        """Read the environment and the TOML file: `file`, or what ``ML_PRODUCER_CONFIG`` names, or none.

        `url` is the broker's; `explicit` are settings that win over everything; `producer_defaults` are rows of
        ``[warrener.producer]`` for when nobody says otherwise. Raises `SettingsError`.
        """
        _refuse_unknown(explicit, [attribute.name for attribute in fields(cls)], "setting")
        _refuse_unknown(
            (name for name in os.environ if name.startswith(_PREFIX) and name != CONFIG_VARIABLE),
            _variables(),
            "environment variable",
        )
        path = file if file is not None else os.environ.get(CONFIG_VARIABLE) or None
        table, loaded = _load(None if path is None else Path(path))
        in_file = table.pop("url", None)
        url = url or os.environ.get("RABBITMQ_URL") or in_file
        broker = Settings.resolve(
            url,
            environ=_as_environment({**(producer_defaults or {}), **table}) | dict(os.environ),
            defaults=PRODUCER_DEFAULTS,
        )
        rows: dict[str, Any] = {"broker": broker} | loaded | explicit
        return cls(**rows)


def _refuse_unknown(names: Iterable[str], known: Iterable[str], what: str) -> None:
    for name in sorted(set(names) - set(known)):
        close = difflib.get_close_matches(name, list(known), n=1)
        raise SettingsError(f"unknown {what} {printable(name, 80)}" + (f"; did you mean {close[0]}?" if close else ""))


def _variable(attribute: Attribute[Any]) -> str:
    return cast("str", attribute.metadata.get("variable") or f"{_PREFIX}{attribute.name.upper()}")


def _variables() -> list[str]:
    return [_variable(attribute) for attribute in fields(MLSettings) if attribute.name != "broker"]


class _AsItIs:
    """The converter for typed-settings: values stay as they are, because `MLSettings` itself checks and converts them.

    (A converter that fails quotes the value, and a value may be secret.)
    """

    def structure(self, value: Any, kind: type[Any]) -> Any:
        return kind(**value) if kind is _Found else value

    def get_structure_hook(self, _kind: type[Any]) -> Callable[[Any, type[Any]], Any]:
        return self.structure


#: What file and environment may set: every row but the broker, which has a table of its own.
_ANYTHING: Any = Any
_Found: Any = make_class(
    "_Found",
    {
        name: field(default=None, type=_ANYTHING)
        for name in (*(row.name for row in fields(MLSettings) if row.name != "broker"), "producer")
    },
)


def _load(path: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rows of ``[warrener.producer]``, and what file and environment say of the other settings."""
    try:
        import typed_settings as ts
        from typed_settings.exceptions import ConfigFileLoadError, InvalidOptionsError, UnknownFormatError
    except ModuleNotFoundError:
        raise SettingsError("the ML settings need typed-settings: pip install 'warrener[ml]'") from None

    variables = {attribute.name: _variable(attribute) for attribute in fields(MLSettings)}

    class Environment(ts.EnvLoader):
        def get_envvar(self, option: Any) -> str:
            return variables.get(option.path, "")

    loaders: list[Any] = [Environment(_PREFIX)]
    if path is not None:
        loaders.insert(0, ts.FileLoader({"*": ts.TomlFormat(_SECTION)}, [f"!{path}"]))
    try:
        found: Any = ts.load_settings(_Found, loaders, converter=cast("Any", _AsItIs()))
    # Of their texts only the names of unknown keys are shown: a line of the file may hold a password.
    except FileNotFoundError:
        raise _file_refused(path, "is not there") from None
    except OSError as error:
        raise _file_refused(path, f"cannot be read: {os.strerror(error.errno or 0)}") from None
    except InvalidOptionsError as error:
        raise _file_refused(path, f"has unknown settings: {printable(str(error).rpartition(': ')[2])}") from None
    except (ConfigFileLoadError, UnknownFormatError, UnicodeDecodeError):
        raise _file_refused(path, "is not valid TOML") from None
    values = {name: value for name, value in asdict(found, recurse=False).items() if value not in (None, "")}
    table = values.pop("producer", {})
    if not isinstance(table, dict):
        raise SettingsError(f"[{_SECTION}.producer] must be a table of settings, as in docs/ml-service.md")
    return dict(cast("dict[str, Any]", table)), values


def _file_refused(path: Path | None, reason: str) -> SettingsError:
    return SettingsError(f"the settings file {printable(str(path))} {reason}")


def _as_environment(table: Mapping[str, object]) -> dict[str, str]:
    """Return the rows of ``[warrener.producer]`` as the variables that they stand for, so that one parser knows them all."""
    for name, value in table.items():
        if not isinstance(value, (str, int, float)):
            raise SettingsError(f"[{_SECTION}.producer] {printable(name, 60)} must be text, a number, true or false")
    return {
        f"WARRENER_{name.upper()}": str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in table.items()
    }
