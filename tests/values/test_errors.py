"""The exceptions: they can be copied and sent to another process, and each says in one line what to do."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import warrener
from warrener.errors import (
    AuthenticationRefused,
    BufferFull,
    ConnectError,
    Fault,
    FaultKind,
    GaveUp,
    NotSent,
    PublishError,
    PublishRefused,
    SettingsError,
    TopologyMismatch,
    Unroutable,
    connect_error,
    printable,
)
from warrener.testing.broker import Violation


def exceptions() -> list[type[Exception]]:
    """Return every exception class that a public module of the library exports."""
    found: set[type[Exception]] = set()
    for name in ("warrener", *(module.name for module in pkgutil.walk_packages(warrener.__path__, "warrener."))):
        if "._" in name:
            continue
        module = importlib.import_module(name)
        for each in (getattr(module, exported) for exported in getattr(module, "__all__", ())):
            if isinstance(each, type) and issubclass(each, Exception):
                found.add(each)
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


FAULTS = st.builds(
    Fault,
    st.sampled_from(FaultKind),
    st.text(max_size=20).map(printable),
    reply_code=st.none() | st.integers(200, 600),
    entity=st.none() | st.text(max_size=20),
)
BY_ANNOTATION: dict[str, st.SearchStrategy[Any]] = {
    "Fault": FAULTS,
    "Fault | None": st.none() | FAULTS,
    "bool": st.booleans(),
    "int": st.integers(0, 600),
    "float": st.floats(0, 60),
    "str": st.text(max_size=20),
    "tuple[Violation, ...]": st.just((Violation(1, "an illegal frame", 2.0),)),
}


@st.composite
def instances(draw: st.DrawFn, kind: type[Exception]) -> Exception:
    """Make an exception of this class: each argument by its annotation, another as text."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    parameters = inspect.signature(kind).parameters.values() if "__init__" in _own_methods(kind) else ()
    for each in parameters:
        value = draw(BY_ANNOTATION.get(each.annotation, st.text(max_size=20)))
        if each.kind is inspect.Parameter.KEYWORD_ONLY:
            keywords[each.name] = value
        elif each.kind is not inspect.Parameter.VAR_KEYWORD:
            positional.append(value)
    if not parameters:
        positional.append(draw(st.text(max_size=20)))
    return kind(*positional, **keywords)


def _own_methods(kind: type[Exception]) -> set[str]:
    return {name for base in kind.__mro__ if base.__module__.startswith("warrener.") for name in vars(base)}


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__qualname__)
@given(data=st.data())
def test_every_exception_can_be_copied_and_pickled(kind: type[Exception], data: st.DataObject) -> None:
    """In a ProcessPoolExecutor one that cannot breaks the whole pool; nothing of it is lost on the way."""
    error = data.draw(instances(kind))
    error.add_note("a note")
    for way in (_sent_to_another_process, copy.copy, copy.deepcopy):
        other = way(error)
        assert type(other) is kind
        assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))


def _sent_to_another_process(error: Exception) -> Exception:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes


PUBLISH_ERRORS = [kind for kind in exceptions() if issubclass(kind, PublishError)]
#: Ways to say whether a queue may hold the message, and orders to the reader.
CERTAIN = ("no queue took it", "it is in no queue", "so no queue holds it")
UNCERTAIN = ("may hold it",)
ORDERS = ("publish it", "correct", "check", "remove", "repair")


@pytest.mark.parametrize("kind", PUBLISH_ERRORS, ids=lambda kind: kind.__qualname__)
@given(data=st.data())
def test_each_publish_error_says_what_happened_where_the_message_may_be_and_what_to_do(
    kind: type[PublishError], data: st.DataObject
) -> None:
    """One line; its words agree with `may_have_been_delivered`; a fault is quoted."""
    error = data.draw(instances(kind))
    error.reason, error.message_id = "REASON", "ID"
    text = str(error)
    assert "\n" not in text
    assert text.startswith("message ID: REASON")
    assert any(words in text for words in (UNCERTAIN if error.may_have_been_delivered else CERTAIN))
    assert not any(words in text for words in (CERTAIN if error.may_have_been_delivered else UNCERTAIN))
    assert any(order in text for order in ORDERS)
    if error.last_fault is not None:
        assert str(error.last_fault) in text


def test_a_refusal_that_time_does_not_end_is_not_to_be_tried_later() -> None:
    """After a wrong password "publish it again later" would be bad advice."""
    refused = Fault(FaultKind.AUTHENTICATION, "the broker refused the password", reply_code=403)
    lost = Fault(FaultKind.CONNECTION_LOST, "connection reset")
    assert str(NotSent("m", "no connection", last_fault=refused)).endswith("remove the cause, then publish it again")
    assert str(NotSent("m", "no connection", last_fault=lost)).endswith("publish it again later")


def test_gave_up_is_a_not_sent_and_a_connect_error() -> None:
    """One `except ConnectError` takes everything that `wait_connected()` raises for a broker that cannot be reached."""
    lost = Fault(FaultKind.UNREACHABLE, "connection refused")
    error = GaveUp("m", "the reconnect attempts are used up", last_fault=lost)
    assert isinstance(error, NotSent)
    assert isinstance(error, ConnectError)
    assert error.fault is lost
    assert GaveUp("", "the reconnect attempts are used up").fault.kind is FaultKind.UNREACHABLE


def test_a_return_may_be_uncertain() -> None:
    """An exchange of a plugin may return a message and deliver it later."""
    assert not Unroutable("m", "r").may_have_been_delivered
    assert Unroutable("m", "r", may_have_been_delivered=True).may_have_been_delivered


@pytest.mark.parametrize("kind", FaultKind)
def test_each_fault_has_its_exception(kind: FaultKind) -> None:
    """The class follows the kind, and the mismatch names the entity."""
    error = connect_error(Fault(kind, "text", entity="queue 'q'"))
    assert isinstance(error, ConnectError)
    assert error.fault.permanent is (kind in PERMANENT)
    if isinstance(error, TopologyMismatch):
        assert error.entity == "queue 'q'"


PERMANENT = {FaultKind.AUTHENTICATION, FaultKind.VHOST, FaultKind.TLS, FaultKind.PROTOCOL, FaultKind.TOPOLOGY}


def test_who_is_what() -> None:
    """The tree of api.md."""
    assert issubclass(SettingsError, ValueError)
    assert issubclass(AuthenticationRefused, ConnectError)
    assert issubclass(BufferFull, NotSent)
    assert not issubclass(PublishRefused, NotSent)
