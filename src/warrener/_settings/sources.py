"""Where settings come from besides code: the URL's query, environment variables, a settings file. All become `Given`.

No source is ignored in part: an unknown name is refused, with the known name that is most like it. A `Given` keeps its
source, for the error that names it, and its rank: the source with the higher rank wins.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

from attrs import frozen

from warrener._settings.rules import FLAGS, Rule, did_you_mean
from warrener._settings.url import percent_decoded
from warrener.errors import SettingsError, printable

__all__ = ["Given", "Rank", "defaults", "from_environment", "from_query", "from_table", "read_toml", "refuse_unknown"]


class Rank(IntEnum):
    """The sources of settings; the larger rank wins."""

    DEFAULTS = 0
    FILE = 1
    ENVIRONMENT = 2
    QUERY = 3
    CODE = 4


@frozen
class Given:
    """The value of one setting as its source gave it: text, or one of the file's own types."""

    value: object
    #: The name of the source in errors.
    source: str
    rank: Rank

    def read(self, name: str, rule: Rule) -> Any:
        """Return the setting's value, parsed and checked by `rule`."""
        return rule.read(name, self.value, self.source)


def defaults(**texts: str) -> dict[str, Given]:
    """Return settings that every other source replaces: the defaults of a command or a service."""
    return {name: Given(text, "the defaults", Rank.DEFAULTS) for name, text in texts.items()}


def refuse_unknown(name: str, known: Collection[str], kind: str, where: str = "") -> None:
    """Raise `SettingsError` if the name is not known, with the known name that is most like it."""
    if name not in known:
        shown = printable(name, 80)
        raise SettingsError(f"unknown {kind} {shown}{where}{did_you_mean(name, known)}")


# --- the environment --------------------------------------------------------------------------------------------------

#: Variables that Kubernetes sets in each container for each service of the namespace, e.g. WARRENER_PORT_5672_TCP_ADDR.
_KUBERNETES = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_[A-Z]+(_(ADDR|PORT|PROTO))?)?)")


def from_environment(
    environ: Mapping[str, str], variables: Mapping[str, str], prefix: str, *, ignored: Collection[str] = ()
) -> dict[str, Given]:
    """Return the settings of `variables` (variable to setting) that are set and not empty.

    A variable that begins with `prefix` and is neither known nor `ignored` is refused, except those that Kubernetes makes.
    """
    for variable in sorted(environ):
        known = variable in variables or variable in ignored or not variable.startswith(prefix)
        if not known and not _KUBERNETES.fullmatch(variable):
            meant = did_you_mean(variable.upper(), variables)
            raise SettingsError(f"unknown environment variable {printable(variable, 80)}{meant}")
    given: dict[str, Given] = {}
    for variable, setting in variables.items():
        if text := environ.get(variable, ""):
            other = given.get(setting)
            if other is not None and other.value != text:
                raise SettingsError(f"{other.source} and {variable} are both set and differ; keep one of them")
            given[setting] = Given(text, variable, Rank.ENVIRONMENT)
    return given


# --- the URL's query --------------------------------------------------------------------------------------------------

#: Parameters that other clients take from a query, and where they belong here.
_REFUSED_PARAMETERS = {
    "auth_mechanism": "use mechanism instead",
    "cacertfile": "set RABBITMQ_SSL_CACERT",
    "cafile": "set RABBITMQ_SSL_CACERT",
    "certfile": "set RABBITMQ_SSL_CERTFILE",
    "keyfile": "set RABBITMQ_SSL_KEYFILE",
    "password": "set RABBITMQ_SSL_KEYFILE_PASSWORD",
    "server_name_indication": "use server_hostname instead",
    "no_verify_ssl": "a URL cannot turn verification off; pass ssl_context in code",
    "verify": "a URL cannot turn verification off; pass ssl_context in code",
    "ssl_options": "a URL cannot turn verification off; pass ssl_context in code",
    "connection_timeout": "use connect_timeout (in seconds) instead",
    "connection_attempts": "use backoff_attempts instead",
    "retry_delay": "use backoff_initial instead",
}


def from_query(query: str, source: str, rules: Mapping[str, Rule]) -> dict[str, Given]:
    """Return the settings of a URL's query, which is percent-encoded; `source` names the URL in errors."""
    given: dict[str, Given] = {}
    for pair in query.split("&"):
        if not pair:
            continue
        raw_name, equals, raw_value = pair.partition("=")
        name, value = percent_decoded(raw_name, source), percent_decoded(raw_value, source)
        shown = printable(name, 60)
        if name in _REFUSED_PARAMETERS:
            raise SettingsError(f"{source} cannot set {shown}: {_REFUSED_PARAMETERS[name]}")
        refuse_unknown(name, rules, "query parameter", f" in {source}")
        if not equals or not value:
            raise SettingsError(f"the query parameter {shown} in {source} has no value")
        if name in given:
            raise SettingsError(f"the query parameter {shown} is in {source} twice")
        if name == "require_tls" and FLAGS.get(value.lower()) is False:
            raise SettingsError(f"{source} cannot set require_tls=false: a URL cannot lower security")
        given[name] = Given(value, f"the query of {source}", Rank.QUERY)
    return given


# --- a settings file --------------------------------------------------------------------------------------------------


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raise `SettingsError`, which never shows a line of it: a line may hold a password."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _file_refused(path, "is not there") from None
    except OSError as error:
        raise _file_refused(path, f"cannot be read: {os.strerror(error.errno or 0)}") from None
    except ValueError:  # TOMLDecodeError and UnicodeDecodeError
        raise _file_refused(path, "is not valid TOML") from None


def _file_refused(path: Path, reason: str) -> SettingsError:
    return SettingsError(f"the settings file {printable(str(path))} {reason}")


def from_table(table: object, section: str, rules: Mapping[str, Rule], path: Path) -> dict[str, Given]:
    """Return the settings of one table of a settings file; `section` is its name in errors."""
    where = f"[{section}] of {printable(str(path))}"
    if not isinstance(table, dict):
        raise SettingsError(f"{where} must be a table of settings")
    given: dict[str, Given] = {}
    name: str
    value: object
    for name, value in cast("dict[str, Any]", table).items():
        refuse_unknown(name, rules, "setting", f" in {where}")
        if not isinstance(value, str | int | float):
            raise SettingsError(f"{printable(name, 60)} in {where} must be text, a number, true or false")
        if value != "":
            given[name] = Given(value, where, Rank.FILE)
    return given
