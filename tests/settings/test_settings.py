"""Settings: what each source may say, who wins, and what is refused by name."""

from __future__ import annotations

import base64
import math
import os
import ssl
from typing import Any
from urllib.parse import quote

import attrs
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from warrener._settings.addresses import Addresses
from warrener._settings.settings import RULES, Settings, SettingsFields, endpoint_from_url
from warrener._settings.sources import defaults
from warrener.errors import SettingsError
from warrener.machine.backoff import Backoff
from warrener.machine.breaker import Breaker
from warrener.records import Credentials, Endpoint
from warrener.topology import Exchange, Queue

URL = "amqp://ml:s3cret-w0rd@broker.example/"
TLS_URL = "amqps://ml:s3cret-w0rd@broker.example/"


def _resolve(url: object = URL, environ: dict[str, str] | None = None, **explicit: object) -> Settings:
    return Settings.resolve(url, environ=environ or {}, **explicit)  # type: ignore[arg-type]


# --- defaults and precedence ------------------------------------------------------------------------------------------

DEFAULTS = {
    "endpoint_order": "shuffled",
    "start_jitter": 0.0,
    "prefer": "any",
    "links": 1,
    "connect_timeout": 10.0,
    "heartbeat": 60.0,
    "prefetch": 100,
    "backoff": Backoff(initial=1, factor=2, cap=15, attempts=None, jitter=0.5, min_gap=0.1),
    "breaker": Breaker(threshold=5, cooldown=30, probes=1),
    "breaker_scope": "destination",
    "stable_for": 10.0,
    "when_exhausted": "stay",
    "publish_timeout": 60.0,
    "confirm_timeout": 30.0,
    "delivery": "at_least_once",
    "retry": None,
    "max_buffered": 10_000,
    "max_buffered_bytes": 67_108_864,
    "max_block": 5.0,
    "max_in_flight": 10_000,
    "max_in_flight_bytes": 67_108_864,
    "declare_timeout": 10.0,
    "topology_errors": "strict",
    "refusal_memory": 5.0,
    "max_destinations": 1000,
    "drain_timeout": 10.0,
    "close_timeout": 3.0,
    "abort_timeout": 1.0,
    "write_stall_timeout": 30.0,
    "frame_timeout": 30.0,
    "max_inbound_body": 1_048_576,
    "require_tls": False,
    "ssl_context": None,
    "credentials": None,
    "discovery": None,
    "addresses": Addresses(),
    "topology": (),
}


def test_the_defaults_are_the_documented_ones() -> None:
    """Every row of the table of defaults has its value, and there is no other row."""
    settings = _resolve()
    actual = {name: getattr(settings, name) for name in DEFAULTS}
    assert actual == DEFAULTS
    assert {attribute.alias for attribute in attrs.fields(Settings)} == {"endpoints", "name", *DEFAULTS}


def test_the_name_says_which_program_and_process() -> None:
    """The default connection name ends with the process id; None in code means the default."""
    assert _resolve().name.startswith("warrener:")
    assert _resolve(name=None).name.endswith(f":{os.getpid()}")


def test_code_wins_over_query_over_environment() -> None:
    """Explicit arguments beat the URL's query, which beats the environment, which beats the defaults."""
    environ = {"WARRENER_HEARTBEAT": "7", "WARRENER_PREFETCH": "7", "WARRENER_MAX_BLOCK": "7"}
    settings = _resolve(URL + "?heartbeat=8&prefetch=8", environ, heartbeat=9)
    assert (settings.heartbeat, settings.prefetch, settings.max_block) == (9.0, 8, 7.0)


def test_the_url_comes_from_the_environment_when_none_is_given() -> None:
    """RABBITMQ_URL stands in for a missing URL, its query included."""
    settings = _resolve(None, {"RABBITMQ_URL": URL + "?heartbeat=5"})
    assert (settings.endpoint.host, settings.heartbeat) == ("broker.example", 5.0)


def test_an_explicit_url_leaves_the_environments_alone() -> None:
    """An explicit URL wins whole: not even the query of RABBITMQ_URL counts."""
    settings = _resolve(URL, {"RABBITMQ_URL": "amqp://a:b@other/?heartbeat=5"})
    assert (settings.endpoint.host, settings.heartbeat) == ("broker.example", 60.0)


@pytest.mark.parametrize("environ", [{}, {"RABBITMQ_URL": ""}])
def test_no_url_at_all_is_an_error(environ: dict[str, str]) -> None:
    """Neither URL nor RABBITMQ_URL: refused, naming both ways out."""
    with pytest.raises(SettingsError, match="RABBITMQ_URL"):
        _resolve(None, environ)


def test_settings_pass_through_with_changes() -> None:
    """A Settings is taken as it is, but for what is explicit; the environment is not asked again."""
    settings = _resolve(heartbeat=5)
    assert _resolve(settings, {"WARRENER_PREFETCH": "3"}) is not None
    assert _resolve(settings, {"WARRENER_PREFETCH": "3"}, max_block=1) == attrs.evolve(settings, max_block=1.0)


# --- text -------------------------------------------------------------------------------------------------------------

TEXTS = [
    ("NAME", "billing", "name", "billing"),
    ("ENDPOINT_ORDER", "ordered", "endpoint_order", "ordered"),
    ("START_JITTER", "2.5", "start_jitter", 2.5),
    ("PREFER", "first", "prefer", "first"),
    ("LINKS", "4", "links", 4),
    ("CONNECT_TIMEOUT", "2.5", "connect_timeout", 2.5),
    ("HEARTBEAT", "0", "heartbeat", 0.0),
    ("PREFETCH", "0", "prefetch", 0),
    ("BACKOFF_INITIAL", "0.5", "backoff", Backoff(initial=0.5)),
    ("BACKOFF_FACTOR", "1", "backoff", Backoff(factor=1)),
    ("BACKOFF_CAP", "5", "backoff", Backoff(cap=5)),
    ("BACKOFF_ATTEMPTS", "forever", "backoff", Backoff(attempts=None)),
    ("BACKOFF_ATTEMPTS", "0", "backoff", Backoff(attempts=0)),
    ("BACKOFF_JITTER", "0", "backoff", Backoff(jitter=0)),
    ("BACKOFF_MIN_GAP", "1", "backoff", Backoff(min_gap=1)),
    ("BREAKER", "off", "breaker", None),
    ("BREAKER", "on", "breaker", Breaker()),
    ("BREAKER_THRESHOLD", "2", "breaker", Breaker(threshold=2)),
    ("BREAKER_COOLDOWN", "2", "breaker", Breaker(cooldown=2)),
    ("BREAKER_PROBES", "2", "breaker", Breaker(probes=2)),
    ("BREAKER_RATE", "off", "breaker", Breaker()),
    ("BREAKER_OVER", "off", "breaker", Breaker()),
    ("BREAKER_WITHIN", "off", "breaker", Breaker()),
    ("BREAKER_SLOW", "2", "breaker", Breaker(slow=2.0)),
    ("BREAKER_SCOPE", "exchange", "breaker_scope", "exchange"),
    ("STABLE_FOR", "1", "stable_for", 1.0),
    ("WHEN_EXHAUSTED", "raise", "when_exhausted", "raise"),
    ("PUBLISH_TIMEOUT", "inf", "publish_timeout", math.inf),
    ("CONFIRM_TIMEOUT", "3", "confirm_timeout", 3.0),
    ("DELIVERY", "at_most_once", "delivery", "at_most_once"),
    ("MAX_BUFFERED", "1", "max_buffered", 1),
    ("MAX_BUFFERED_BYTES", "1024", "max_buffered_bytes", 1024),
    ("MAX_BLOCK", "0", "max_block", 0.0),
    ("MAX_IN_FLIGHT", "1", "max_in_flight", 1),
    ("MAX_IN_FLIGHT_BYTES", "1024", "max_in_flight_bytes", 1024),
    ("DECLARE_TIMEOUT", "2.5", "declare_timeout", 2.5),
    ("TOPOLOGY_ERRORS", "report", "topology_errors", "report"),
    ("REFUSAL_MEMORY", "0", "refusal_memory", 0.0),
    ("MAX_DESTINATIONS", "1", "max_destinations", 1),
    ("DRAIN_TIMEOUT", "0", "drain_timeout", 0.0),
    ("CLOSE_TIMEOUT", "1", "close_timeout", 1.0),
    ("ABORT_TIMEOUT", "0.5", "abort_timeout", 0.5),
    ("WRITE_STALL_TIMEOUT", "5", "write_stall_timeout", 5.0),
    ("FRAME_TIMEOUT", "5", "frame_timeout", 5.0),
    ("MAX_INBOUND_BODY", "0", "max_inbound_body", 0),
    ("REQUIRE_TLS", "true", "require_tls", True),
]


@pytest.mark.parametrize(("variable", "text", "setting", "expected"), TEXTS)
def test_the_environment_sets_every_row(variable: str, text: str, setting: str, expected: object) -> None:
    """WARRENER_<SETTING> sets every row of the defaults, and only that one."""
    settings = _resolve(TLS_URL, {f"WARRENER_{variable}": text})
    assert getattr(settings, setting) == expected
    assert {setting} >= {name for name in DEFAULTS if getattr(settings, name) != DEFAULTS[name] and name != "name"}


@pytest.mark.parametrize(("variable", "text", "setting", "expected"), TEXTS)
def test_the_query_sets_every_row(variable: str, text: str, setting: str, expected: object) -> None:
    """What the environment can set, the URL's query can set under the same name."""
    settings = _resolve(f"{TLS_URL}?{variable.lower()}={text}")
    assert getattr(settings, setting) == expected


def test_every_row_that_text_can_set_is_in_the_table_above() -> None:
    """The table of texts misses no row: those that hold a function or a value of a class are for code only."""
    code_only = {"topology", "ssl_context", "retry", "credentials", "discovery", "addresses"}
    assert {setting for _, _, setting, _ in TEXTS} == {"name", *DEFAULTS} - code_only
    assert {variable.lower() for variable, _, _, _ in TEXTS} | {"mechanism", "server_hostname"} == set(RULES)


@pytest.mark.parametrize(
    ("variable", "text", "setting", "expected"),
    [
        ("RABBITMQ_HEARTBEAT", "15", "heartbeat", 15.0),
        ("RABBITMQ_CONNECTION_TIMEOUT", "3", "connect_timeout", 3.0),
        ("RABBITMQ_RECONNECT_ATTEMPTS", "forever", "backoff", Backoff(attempts=None)),
        ("RABBITMQ_RECONNECT_ATTEMPTS", "3", "backoff", Backoff(attempts=3)),
    ],
)
def test_the_older_variables(variable: str, text: str, setting: str, expected: object) -> None:
    """The service's older names work; the heartbeat among them is not ignored."""
    assert getattr(_resolve(environ={variable: text}), setting) == expected


def test_empty_variables_count_as_unset() -> None:
    """A variable that is set but empty changes nothing."""
    assert _resolve(environ={"WARRENER_HEARTBEAT": "", "RABBITMQ_HEARTBEAT": ""}).heartbeat == 60.0


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WARRENER_HARTBEAT": "1"}, ["WARRENER_HARTBEAT", "did you mean WARRENER_HEARTBEAT?"]),
        ({"WARRENER_XYZZY": "1"}, ["WARRENER_XYZZY"]),
        ({"WARRENER_heartbeat": "1"}, ["WARRENER_heartbeat", "WARRENER_HEARTBEAT"]),
        ({"WARRENER_DRIVER": "native"}, ["WARRENER_DRIVER"]),
        ({"WARRENER_TOPOLOGY": "x"}, ["WARRENER_TOPOLOGY"]),
        ({"WARRENER_BACKOFF": "1"}, ["WARRENER_BACKOFF"]),
        ({"WARRENER_PORTS": "1"}, ["WARRENER_PORTS"]),
        ({"WARRENER_PORT_5672": "1"}, ["WARRENER_PORT_5672"]),
        ({"WARRENER_HEARTBEAT": "ten"}, ["heartbeat", "'ten'", "WARRENER_HEARTBEAT", "whole seconds"]),
        ({"WARRENER_HEARTBEAT": "1.5"}, ["heartbeat", "1.5", "whole seconds"]),
        ({"WARRENER_MAX_BLOCK": "nan"}, ["max_block", "nan"]),
        ({"WARRENER_REQUIRE_TLS": "maybe"}, ["require_tls", "'maybe'", "true or false"]),
        ({"WARRENER_DELIVERY": "exactly_once"}, ["delivery", "'exactly_once'", "'at_least_once' or 'at_most_once'"]),
        ({"WARRENER_BACKOFF_JITTER": "2"}, ["backoff_jitter", "2.0", "WARRENER_BACKOFF_JITTER", "0 to 1"]),
        ({"WARRENER_BACKOFF_INITIAL": "90"}, ["initial", "cap"]),
        ({"WARRENER_BREAKER": "off", "WARRENER_BREAKER_PROBES": "2"}, ["WARRENER_BREAKER", "WARRENER_BREAKER_PROBES"]),
        ({"RABBITMQ_CONNECTION_TIMEOUT": "10000"}, ["RABBITMQ_CONNECTION_TIMEOUT", "not milliseconds"]),
        ({"RABBITMQ_CONNECTION_TIMEOUT": "1000"}, ["RABBITMQ_CONNECTION_TIMEOUT", "not milliseconds"]),
        ({"RABBITMQ_RECONNECT_ATTEMPTS": "-1"}, ["RABBITMQ_RECONNECT_ATTEMPTS", "forever"]),
        ({"RABBITMQ_HEARTBEAT": "5", "WARRENER_HEARTBEAT": "6"}, ["RABBITMQ_HEARTBEAT", "WARRENER_HEARTBEAT"]),
        ({"RABBITMQ_USE_SSL": "true"}, ["RABBITMQ_USE_SSL", "amqps://"]),
        ({"RABBITMQ_USE_SSL": "perhaps"}, ["RABBITMQ_USE_SSL", "'perhaps'"]),
        ({"RABBITMQ_SSL_CACERT": __file__}, ["RABBITMQ_SSL_CACERT", "amqps://"]),
        ({"WARRENER_REQUIRE_TLS": "true"}, ["require_tls", "amqps://"]),
    ],
)
def test_what_the_environment_may_not_say(environ: dict[str, str], words: list[str]) -> None:
    """A mistake in the environment is refused by name, with the value, its source and what is allowed."""
    with pytest.raises(SettingsError) as caught:
        _resolve(environ=environ)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("hartbeat=5", ["hartbeat", "did you mean heartbeat?"]),
        ("heartbeat=5&heartbeat=6", ["heartbeat", "twice"]),
        ("heartbeat", ["heartbeat", "no value"]),
        ("heartbeat=", ["heartbeat", "no value"]),
        ("heartbeat=x", ["heartbeat", "'x'", "the query of the URL"]),
        ("no_verify_ssl=1", ["no_verify_ssl", "cannot turn verification off"]),
        ("verify=verify_none", ["verify", "cannot turn verification off"]),
        ("cacertfile=/tmp/x", ["cacertfile", "RABBITMQ_SSL_CACERT"]),
        ("require_tls=false", ["require_tls", "cannot lower security"]),
        ("require_tls=off", ["require_tls", "cannot lower security"]),
        ("connection_timeout=10000", ["connect_timeout", "in seconds"]),
        ("driver=native", ["driver"]),
        ("topology=x", ["topology"]),
        ("ssl_context=x", ["ssl_context"]),
    ],
)
def test_what_the_query_may_not_say(query: str, words: list[str]) -> None:
    """Unknown, repeated and empty parameters are refused by name, and so is everything that lowers security."""
    with pytest.raises(SettingsError) as caught:
        _resolve(f"{TLS_URL}?{query}", {"WARRENER_REQUIRE_TLS": "true"})
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("explicit", "words"),
    [
        ({"hartbeat": 5}, ["hartbeat", "did you mean heartbeat?"]),
        ({"endpoints": ()}, ["endpoints"]),
        ({"heartbeat": "60"}, ["heartbeat", "'60'"]),
        ({"heartbeat": True}, ["heartbeat", "True"]),
        ({"heartbeat": None}, ["heartbeat", "None"]),
        ({"heartbeat": 65536}, ["heartbeat", "65535"]),
        ({"prefetch": 1.5}, ["prefetch", "1.5"]),
        ({"prefetch": 65536}, ["prefetch", "65535"]),
        ({"connect_timeout": 0}, ["connect_timeout", "more than 0"]),
        ({"connect_timeout": math.inf}, ["connect_timeout"]),
        ({"publish_timeout": 0}, ["publish_timeout", "more than 0"]),
        ({"publish_timeout": None}, ["publish_timeout", "None"]),
        ({"drain_timeout": -1}, ["drain_timeout", "0 or more"]),
        ({"close_timeout": math.inf}, ["close_timeout", "finite"]),
        ({"max_buffered": 0}, ["max_buffered", "at least 1"]),
        ({"max_in_flight_bytes": 0}, ["max_in_flight_bytes", "at least 1"]),
        ({"declare_timeout": 0}, ["declare_timeout", "more than 0"]),
        ({"topology_errors": "ignore"}, ["topology_errors", "'strict' or 'report'"]),
        ({"refusal_memory": -1}, ["refusal_memory", "0 or more"]),
        ({"max_destinations": 0}, ["max_destinations", "at least 1"]),
        ({"when_exhausted": "explode"}, ["when_exhausted", "'stay' or 'raise'"]),
        ({"delivery": []}, ["delivery"]),
        ({"require_tls": 1}, ["require_tls", "true or false"]),
        ({"name": ""}, ["name"]),
        ({"name": "a\nb"}, ["name", "printable"]),
        ({"name": "x" * 256}, ["name", "255"]),
        ({"backoff": 3}, ["backoff", "int"]),
        ({"breaker": False}, ["breaker", "None"]),
        ({"breaker": Breaker(state="open")}, ["breaker must be new", "threshold, cooldown, probes"]),
        ({"breaker": Breaker(failures=1)}, ["breaker must be new"]),
        ({"breaker": None, "breaker_probes": 2}, ["breaker and breaker_probes"]),
        ({"backoff": Backoff(), "backoff_cap": 2.0}, ["backoff and backoff_cap"]),
        ({"backoff_initial": "0.1"}, ["backoff_initial", "'0.1'", "number of seconds"]),
        ({"backoff_attempts": -1}, ["backoff_attempts", "-1", "None in code"]),
        ({"breaker_threshold": 0}, ["breaker_threshold", "at least 1"]),
        ({"mechanism": "GSSAPI"}, ["mechanism", "'GSSAPI'", "'EXTERNAL'"]),
        ({"mechanism": "EXTERNAL"}, ["mechanism", "amqps://"]),
        ({"server_hostname": "other"}, ["server_hostname", "amqps://"]),
        ({"breaker": Breaker(threshold=2.5)}, ["breaker.threshold", "2.5"]),
        ({"publish_timeout": 5, "confirm_timeout": 6}, ["confirm_timeout (6 s)", "publish_timeout (5 s)"]),
        ({"ssl_context": "x"}, ["ssl_context", "str"]),
        ({"ssl_context": ssl.create_default_context()}, ["ssl_context", "amqps://"]),
        ({"topology": "queue"}, ["topology"]),
        ({"topology": Queue("q")}, ["topology"]),
        ({"topology": 3}, ["topology"]),
        ({"topology": ["queue"]}, ["topology", "str"]),
        ({"topology": [Queue.server_named(), Queue.server_named()]}, ["topology", "one server-named queue"]),
        ({"links": 4, "max_in_flight": 3}, ["max_in_flight is 3", "links=4", "at least 4"]),
        ({"links": 2, "max_buffered": 1}, ["max_buffered is 1", "links=2"]),
        ({"require_tls": True}, ["require_tls", "plain text"]),
    ],
)
def test_what_code_may_not_say(explicit: dict[str, object], words: list[str]) -> None:
    """A bad argument is refused by name, whether it is of the wrong type, out of range or contradictory."""
    with pytest.raises(SettingsError) as caught:
        _resolve(**explicit)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("url", [{URL}, [b"amqp://localhost/"], b"amqp://", 5])
def test_urls_are_text_or_a_list_of_text(url: object) -> None:
    """A list or a tuple of URLs is failover; anything else that is no text is refused."""
    with pytest.raises(SettingsError):
        _resolve(url)


def test_a_short_publish_timeout_shortens_the_confirm_timeout() -> None:
    """Who gives publish_timeout alone need not think of confirm_timeout; given both, a contradiction raises."""
    assert _resolve(publish_timeout=5).confirm_timeout == 5.0
    assert _resolve(publish_timeout=90).confirm_timeout == 30.0
    with pytest.raises(SettingsError, match="confirm_timeout"):
        _resolve(environ={"WARRENER_CONFIRM_TIMEOUT": "20"}, publish_timeout=5)


def test_a_copy_with_a_shorter_publish_timeout_shortens_the_confirm_timeout() -> None:
    """A derived default is not frozen in the record: it follows in each copy, both ways; one that was given stays."""
    settings = _resolve()
    assert _resolve(settings, publish_timeout=5).confirm_timeout == 5.0
    assert _resolve(_resolve(settings, publish_timeout=5), publish_timeout=60).confirm_timeout == 30.0
    assert attrs.evolve(settings, publish_timeout=2).confirm_timeout == 2.0
    with pytest.raises(SettingsError, match="confirm_timeout"):
        _resolve(_resolve(confirm_timeout=20), publish_timeout=5)


# --- every row is a keyword -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [URL, Settings.resolve(URL, environ={})], ids=["url", "settings"])
def test_the_parts_of_backoff_and_breaker_are_keywords(base: object) -> None:
    """Each row of the table is a keyword, also beside a ready Settings; the other parts stay as they are."""
    settings = _resolve(base, backoff_initial=0.1, backoff_attempts=None, breaker_threshold=2)
    assert settings.backoff == Backoff(initial=0.1)
    assert settings.breaker == Breaker(threshold=2)


def test_parts_of_several_sources_come_together() -> None:
    """One part from each source: the higher source wins part by part, and a whole record in code wins over all."""
    environ = {"WARRENER_BACKOFF_CAP": "9", "WARRENER_BACKOFF_INITIAL": "3"}
    url = URL + "?backoff_initial=2"
    assert _resolve(url, environ, backoff_jitter=0).backoff == Backoff(cap=9, initial=2, jitter=0)
    assert _resolve(url, environ, backoff=Backoff(factor=3)).backoff == Backoff(factor=3)


def test_a_breaker_with_a_rate_from_several_sources() -> None:
    """Each part may come from another one; parts that contradict each other are refused."""
    settings = _resolve(URL + "?breaker_rate=0.5", {"WARRENER_BREAKER_OVER": "20"}, breaker_threshold=10)
    assert settings.breaker == Breaker(threshold=10, rate=0.5, over=20)
    with pytest.raises(SettingsError, match="a rate needs a window"):
        _resolve(URL + "?breaker_rate=0.5")
    with pytest.raises(SettingsError, match="breaker_rate must be a number more than 0 and at most 1, or 'off'"):
        _resolve(URL + "?breaker_rate=2")


def test_the_source_that_wins_turns_the_breaker_off() -> None:
    """The query's off wins over the environment's threshold; a threshold of a higher source is a contradiction."""
    assert _resolve(URL + "?breaker=off", {"WARRENER_BREAKER_THRESHOLD": "2"}).breaker is None
    assert _resolve(URL, {"WARRENER_BREAKER_THRESHOLD": "2"}, breaker=None).breaker is None
    with pytest.raises(SettingsError, match=r"WARRENER_BREAKER turns the breaker off, but the keyword breaker_probes"):
        _resolve(URL, {"WARRENER_BREAKER": "off"}, breaker_probes=2)
    with pytest.raises(SettingsError, match="the Settings record turns the breaker off"):
        _resolve(_resolve(breaker=None), breaker_probes=2)


def test_defaults_of_a_command_give_way_to_everything() -> None:
    """A command's or a service's own defaults stand below the environment."""
    below = defaults(heartbeat="7", prefetch="7")
    settings = Settings.resolve(URL, environ={"WARRENER_HEARTBEAT": "8"}, below=below)
    assert (settings.heartbeat, settings.prefetch) == (8.0, 7)


@pytest.mark.parametrize(
    "variable",
    [
        "WARRENER_SERVICE_HOST",
        "WARRENER_SERVICE_PORT",
        "WARRENER_SERVICE_PORT_HTTP",
        "WARRENER_SERVICE_PORT_AMQP_TLS",
        "WARRENER_PORT",
        "WARRENER_PORT_5672_TCP",
        "WARRENER_PORT_5672_TCP_ADDR",
        "WARRENER_PORT_5672_TCP_PORT",
        "WARRENER_PORT_5672_UDP_PROTO",
        "WARRENER_API_SERVICE_HOST",
        "WARRENER_API_PORT_443_TCP_PORT",
    ],
)
def test_variables_that_kubernetes_makes_for_a_service_are_ignored(variable: str) -> None:
    """A Service that is called warrener, or warrener-api, does not end the start."""
    assert _resolve(environ={variable: "tcp://10.0.0.1:5672"}) == _resolve()


def test_topology_is_kept_as_given() -> None:
    """Any iterable of declarations becomes a tuple."""
    declarations = [Exchange("e"), Queue("q")]
    assert _resolve(topology=iter(declarations)).topology == tuple(declarations)


def test_link_options_carry_what_a_driver_needs() -> None:
    """What the driver is opened with has the settings' values, name and TLS context among them."""
    context = ssl.create_default_context()
    options = _resolve(TLS_URL, name="n", heartbeat=5, require_tls=True, ssl_context=context).link_options()
    actual = (options.connection_name, options.heartbeat, options.require_tls, options.ssl_context)
    assert actual == ("n", 5.0, True, context)


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_tls_files_come_from_the_environment(tmp_path: object) -> None:
    """RABBITMQ_SSL_CACERT, CERTFILE and KEYFILE reach the endpoint: a custom authority works."""
    variables = ("RABBITMQ_SSL_CACERT", "RABBITMQ_SSL_CERTFILE", "RABBITMQ_SSL_KEYFILE")
    endpoint = _resolve(TLS_URL, {"RABBITMQ_USE_SSL": "1"} | dict.fromkeys(variables, __file__)).endpoint
    assert (endpoint.cafile, endpoint.certfile, endpoint.keyfile, endpoint.tls) == (*[__file__] * 3, True)


def test_the_login_by_certificate_is_chosen_by_url_environment_or_keyword() -> None:
    """EXTERNAL needs no user in the URL, and sends none; a user in the URL does not change the choice."""
    files = {
        "RABBITMQ_SSL_CERTFILE": __file__,
        "RABBITMQ_SSL_KEYFILE": __file__,
        "RABBITMQ_SSL_KEYFILE_PASSWORD": "pa55",
    }
    for settings in (
        _resolve("amqps://broker.example/?mechanism=external", files),
        _resolve("amqps://broker.example/", files | {"WARRENER_MECHANISM": "EXTERNAL"}),
        _resolve("amqps://broker.example/", files, mechanism="EXTERNAL"),
    ):
        endpoint = settings.endpoint
        assert (endpoint.mechanism, endpoint.credentials) == ("EXTERNAL", Credentials("", ""))
        assert endpoint.keyfile_password == "pa55"
        assert "pa55" not in _texts(settings)
    assert _resolve(TLS_URL + "?mechanism=EXTERNAL", files).endpoint.mechanism == "EXTERNAL"
    assert _resolve(TLS_URL + "?mechanism=auto", files).endpoint.mechanism is None
    with pytest.raises(SettingsError, match="logs in by the client's certificate, but there is none"):
        _resolve(TLS_URL, mechanism="EXTERNAL")


def test_the_name_in_the_certificate_may_differ_from_the_host() -> None:
    """server_hostname is a row as any other, also beside a ready Settings."""
    assert _resolve(TLS_URL + "?server_hostname=rabbit.internal").endpoint.server_hostname == "rabbit.internal"
    assert _resolve(_resolve(TLS_URL), server_hostname="rabbit.internal").endpoint.server_hostname == "rabbit.internal"


@pytest.mark.parametrize(
    ("environ", "explicit", "word"),
    [
        ({"RABBITMQ_SSL_KEYFILE_PASSWORD": "x"}, {}, "certificate"),
        ({"RABBITMQ_SSL_CACERT": "/nowhere/ca.pem"}, {}, "RABBITMQ_SSL_CACERT"),
        ({"RABBITMQ_SSL_KEYFILE": __file__}, {}, "certificate"),
        ({"RABBITMQ_USE_SSL": "false"}, {}, "RABBITMQ_USE_SSL"),
        ({"RABBITMQ_SSL_CACERT": __file__}, {"ssl_context": ssl.create_default_context()}, "ssl_context"),
    ],
)
def test_tls_contradictions(environ: dict[str, str], explicit: dict[str, object], word: str) -> None:
    """Missing files, a key without certificate, two sources of trust, and USE_SSL=false beside amqps are refused."""
    with pytest.raises(SettingsError, match=word):
        _resolve(TLS_URL, environ, **explicit)


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(port=0),
        Endpoint(port=65536),
        Endpoint(host=""),
        Endpoint(vhost="v" * 256),
        Endpoint(vhost="a\nb"),
        Endpoint(cafile="x"),
        Endpoint(credentials=Credentials("a\0b", "c")),
        "amqp://localhost",
    ],
)
def test_endpoints_made_in_code_are_checked(endpoint: Endpoint) -> None:
    """An Endpoint that was built by hand is held to the same rules as a URL."""
    with pytest.raises(SettingsError):
        Settings(endpoints=(endpoint,))


def test_require_tls_leaves_local_brokers_alone() -> None:
    """A local broker may be spoken to in plain text even with require_tls."""
    for endpoint in (Endpoint("localhost"), Endpoint("127.1.2.3"), Endpoint("::1"), Endpoint("far", socket_path="/s")):
        assert Settings(endpoints=(endpoint,), require_tls=True).endpoint is endpoint


# --- the URL ----------------------------------------------------------------------------------------------------------


def _address(url: str) -> tuple[str, int, str, bool, str, str]:
    e = endpoint_from_url(url)
    return (e.host, e.port, e.vhost, e.tls, e.credentials.username, e.credentials.password)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://u:p@h", ("h", 5672, "/", False, "u", "p")),
        ("amqp://u:p@h/", ("h", 5672, "/", False, "u", "p")),
        ("AMQPS://u:p@h", ("h", 5671, "/", True, "u", "p")),
        ("amqp://u:p@h:1234/v", ("h", 1234, "v", False, "u", "p")),
        ("amqp://u:p@h:/v", ("h", 5672, "v", False, "u", "p")),
        ("amqp://u:p@h/%2F", ("h", 5672, "/", False, "u", "p")),
        ("amqp://u:p@h//", ("h", 5672, "/", False, "u", "p")),
        ("amqp://u:p@h/%252F", ("h", 5672, "%2F", False, "u", "p")),
        ("amqp://u:p@h/a/b", ("h", 5672, "a/b", False, "u", "p")),
        ("amqp://u:p@h/a+b", ("h", 5672, "a+b", False, "u", "p")),
        ("amqp://u%40x:%3A%2F%3F%23@h/%C3%A9", ("h", 5672, "é", False, "u@x", ":/?#")),
        ("amqp://u:a:b@h", ("h", 5672, "/", False, "u", "a:b")),
        ("amqp://u:@h", ("h", 5672, "/", False, "u", "")),
        ("amqp://u:p@[::1]:99/v", ("::1", 99, "v", False, "u", "p")),
        ("amqp://u:p@[2001:db8::1]", ("2001:db8::1", 5672, "/", False, "u", "p")),
        ("amqp://u:p@[fe80::1%25eth0]/", ("fe80::1%eth0", 5672, "/", False, "u", "p")),
        ("amqp://u:p@my_broker-1.svc.", ("my_broker-1.svc.", 5672, "/", False, "u", "p")),
        ("amqp://localhost", ("localhost", 5672, "/", False, "guest", "guest")),
        ("amqps://127.0.0.1/v", ("127.0.0.1", 5671, "v", True, "guest", "guest")),
        ("amqp://u:p@h?heartbeat=5", ("h", 5672, "/", False, "u", "p")),
        ("  amqp://u:p@h/\n", ("h", 5672, "/", False, "u", "p")),
    ],
)
def test_urls(url: str, expected: tuple[object, ...]) -> None:
    """Scheme, host, port, virtual host and credentials, percent-decoded once."""
    assert _address(url) == expected


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "amqp://"),
        ("localhost", "amqp://"),
        ("http://u:p@h", "amqp://"),
        ("amqp:h", "amqp://"),
        ("amqp://", "no host"),
        ("amqp://u:p@", "no host"),
        ("amqp://u:p@/v", "no host"),
        ("amqp://u:p@:5672", "no host"),
        ("amqp://h", "no user"),
        ("amqp://rabbit.example:5672/v", "no user"),
        ("amqp://u@h", "no password"),
        ("amqp://:p@h", "no user"),
        ("amqp://u:p@h:0", "port"),
        ("amqp://u:p@h:65536", "port"),
        ("amqp://u:p@h:99999999999", "port"),
        ("amqp://u:p@h:http", "port"),
        ("amqp://u:secret", "port"),
        ("amqp://u:p@h:٣", "port"),
        ("amqp://u:p@fe80::1", "brackets"),
        ("amqp://u:p@[::1", "brackets"),
        ("amqp://u:p@[zz]", "IPv6"),
        ("amqp://u:p@[127.0.0.1]", "IPv6"),
        ("amqp://u:p@a,b", "several"),
        ("amqp://u:p@h/%zz", "'%'"),
        ("amqp://u:100%@h", "'%'"),
        ("amqp://u:p@h/%ff", "UTF-8"),
        ("amqp://u:p@h/%00", "control"),
        ("amqp://u:p%00q@h", "NUL"),
        ("amqp://u:p@h/" + "v" * 256, "255"),
        ("amqp://u:p@h/a b", "white space"),
        ("amqp://u:p@h\x1b[2J", "control"),
        ("amqp://u:p#q@h", "%23"),
        ("amqp://u:p/q@h", "%2F"),
        ("amqp://u:p?q@h", "%3F"),
        ("amqp://u:p@" + "a" * 64, "host"),
        ("amqp://u:p@a..b", "host"),
    ],
)
def test_bad_urls(url: str, word: str) -> None:
    """A URL that cannot be meant is refused, and the reason says what to mend."""
    with pytest.raises(SettingsError) as caught:
        endpoint_from_url(url)
    assert word in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# --- properties -------------------------------------------------------------------------------------------------------

_secrets = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=6, max_size=20)


def _forms(secret: str) -> set[str]:
    raw = secret.encode()
    return {secret, quote(secret), quote(secret, safe=""), base64.b64encode(raw).decode(), repr(secret)[1:-1]}


def _texts(thing: BaseException | Settings) -> str:
    if isinstance(thing, Settings):
        return f"{thing!r} {thing} {thing.endpoint} {thing.endpoint!r} {thing.link_options()!r}"
    chained = [thing.__context__] if thing.__context__ is not None and not thing.__suppress_context__ else []
    return " ".join([str(thing), repr(thing), *getattr(thing, "__notes__", ()), *map(_texts, chained)])


@given(
    password=_secrets, escaped=st.booleans(), tail=st.text(max_size=20), scheme=st.sampled_from(["amqp", "amqps", "x"])
)
@example(password="pa/ss?word=1", escaped=False, tail="", scheme="amqp")
@example(password="p#s&heartbeat=", escaped=False, tail="/v?heartbeat=x", scheme="amqp")
@example(password="heartbeat=5", escaped=False, tail="", scheme="amqp")
@example(password="[secret", escaped=False, tail="", scheme="amqp")
@example(password="100%secret", escaped=False, tail="", scheme="amqp")
@example(password="sec\nret", escaped=False, tail="", scheme="amqp")
def test_the_password_is_in_no_text(password: str, escaped: bool, tail: str, scheme: str) -> None:
    """Whatever the rest of the URL, and however the password is written, no text of ours shows it (I38)."""
    written = quote(password, safe="") if escaped else password
    around = f"{scheme}://user:@broker.example:5672{tail}"
    assume(not any(form in around for form in _forms(password)))
    try:
        outcome: BaseException | Settings = _resolve(f"{scheme}://user:{written}@broker.example:5672{tail}")
    except SettingsError as error:
        outcome = error
    shown = _texts(outcome)
    allowed = _texts_without_secret(around)
    assert [form for form in _forms(password) if form in shown and form not in allowed] == []


def _texts_without_secret(url: str) -> str:
    """Return what is said of the same URL with another password: our own words may hold a short secret by rng."""
    try:
        return _texts(_resolve(url.replace("user:@", "user:x@")))
    except SettingsError as error:
        return _texts(error)


@given(st.one_of(st.text(max_size=60), st.text("amqps:/@?#[]%&=.0123456789ab ", max_size=60).map("amqp://{}".format)))
def test_any_text_is_a_valid_url_or_a_settings_error(text: str) -> None:
    """No garbage leaves the parser as anything but a Settings or a SettingsError."""
    try:
        settings = _resolve(text)
    except SettingsError:
        return
    assert settings.endpoint.host
    assert 1 <= settings.endpoint.port <= 65535


@given(
    user=st.text(min_size=1, max_size=20),
    password=st.text(max_size=20),
    vhost=st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20),
    port=st.integers(1, 65535),
    tls=st.booleans(),
)
def test_a_url_that_was_escaped_comes_back(user: str, password: str, vhost: str, port: int, tls: bool) -> None:
    """Decoding inverts encoding: user, password and virtual host survive a URL, whatever is in them."""
    try:
        parts = [quote(part, safe="") for part in (user, password, vhost)]
    except UnicodeEncodeError:
        assume(False)
        raise
    assume("\0" not in user + password)
    url = f"amqp{'s' if tls else ''}://{parts[0]}:{parts[1]}@h:{port}/{parts[2]}"
    assert _address(url) == ("h", port, vhost, tls, user, password)


@given(st.dictionaries(st.sampled_from([name.upper() for name in DEFAULTS]), st.text(max_size=12), max_size=3))
def test_any_environment_is_valid_or_a_settings_error(texts: dict[str, str]) -> None:
    """No value of any variable leaves as anything but a Settings or a SettingsError."""
    try:
        settings = _resolve(TLS_URL, {f"WARRENER_{name}": text for name, text in texts.items()})
    except SettingsError:
        return
    assert settings.confirm_timeout <= settings.publish_timeout


def test_the_keywords_that_type_checkers_know_are_the_settings() -> None:
    """Every row of the record, every row that text can set, and no other; a callable for the endpoints is `discovery`."""
    rows = {attribute.alias for attribute in attrs.fields(Settings)} - {"discovery", "addresses"}
    assert set(SettingsFields.__annotations__) == rows | set(RULES)


# --- several URLs ------------------------------------------------------------------------------------------------


def test_several_urls_are_several_endpoints() -> None:
    """A list, or one text with commas between the URLs, in code and in the environment; a comma in a password stays."""
    urls = ["amqp://u:a,b@one/", "amqp://u:c@two/x"]
    wanted = [("one", "/", "a,b"), ("two", "x", "c")]
    for settings in (
        Settings.resolve(urls, environ={}),
        Settings.resolve(tuple(urls), environ={}),
        Settings.resolve(", ".join(urls), environ={}),
        Settings.resolve(environ={"RABBITMQ_URL": ",".join(urls)}),
    ):
        assert [(each.host, each.vhost, each.credentials.password) for each in settings.endpoints] == wanted
        assert settings.endpoint == settings.endpoints[0]
        assert (settings.endpoint_order, settings.prefer) == ("shuffled", "any")


@pytest.mark.parametrize(
    ("urls", "keywords", "says"),
    [
        ([], {}, "empty"),
        ([1], {}, "list of str"),
        (["amqp://localhost/", "amqps://localhost/"], {}, "mixes amqp:// and amqps://"),
        (["amqp://localhost/?heartbeat=5", "amqp://localhost/?heartbeat=6"], {}, "heartbeat has different values"),
        (["amqps://u:p@one/", "amqps://u:p@two/"], {"server_hostname": "x"}, "each with its own"),
        ("amqp://localhost/", {"prefer": "last"}, "prefer"),
        ("amqp://localhost/", {"endpoint_order": "random"}, "endpoint_order"),
    ],
)
def test_urls_that_contradict_each_other_are_refused(urls: object, keywords: dict[str, object], says: str) -> None:
    """The error says which setting, and shows no URL."""
    with pytest.raises(SettingsError, match=says):
        Settings.resolve(urls, environ={}, **keywords)  # type: ignore[arg-type]


def test_schemes_may_be_mixed_where_that_is_written_down() -> None:
    """``require_tls=False`` says that plain text is meant; equal values in both queries are one setting."""
    urls = ["amqp://localhost/?heartbeat=5", "amqps://localhost/?heartbeat=5"]

    settings = Settings.resolve(urls, environ={}, require_tls=False)

    assert [each.tls for each in settings.endpoints] == [False, True]
    assert settings.heartbeat == 5.0


# --- what the program is asked for ------------------------------------------------------------------------------------


async def _never() -> Any:
    raise AssertionError("resolving settings asks for nothing")


def test_endpoints_stand_in_for_a_url() -> None:
    """With `endpoints` no URL is needed, and RABBITMQ_URL is not read; a URL beside it is a contradiction."""
    settings = _resolve(None, {"RABBITMQ_URL": "amqp://no user"}, endpoints=_never)
    assert (settings.endpoints, settings.discovery) == ((), _never)
    with pytest.raises(SettingsError, match="a URL and endpoints are both given"):
        _resolve(URL, endpoints=_never)
    with pytest.raises(SettingsError, match="has its endpoints already"):
        _resolve(_resolve(), endpoints=_never)
    with pytest.raises(SettingsError, match="keep one of them"):
        Settings(endpoints=_resolve().endpoints, discovery=_never)


def test_credentials_stand_in_for_the_user_of_a_url() -> None:
    """A host that is not local needs a user, unless the program is asked for it."""
    with pytest.raises(SettingsError, match="has no user"):
        _resolve("amqp://broker.example/")
    assert _resolve("amqp://broker.example/", credentials=_never).credentials is _never


@pytest.mark.parametrize("name", ["credentials", "endpoints"])
def test_what_is_asked_must_be_callable(name: str) -> None:
    """A value in place of a function is refused by the keyword's own name, without showing it."""
    wrong: dict[str, Any] = {name: "s3cret"}
    with pytest.raises(SettingsError, match=f"{name} must be an async function, not str") as refused:
        _resolve(None if name == "endpoints" else URL, **wrong)
    assert "s3cret" not in str(refused.value)


def test_a_certificate_and_credentials_are_a_contradiction() -> None:
    """EXTERNAL sends neither user nor password."""
    context = ssl.create_default_context()
    with pytest.raises(SettingsError, match="EXTERNAL"):
        _resolve("amqps://broker.example/", mechanism="EXTERNAL", ssl_context=context, credentials=_never)
