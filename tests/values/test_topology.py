"""Declarations are checked when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from warrener.errors import SettingsError
from warrener.topology import Binding, Exchange, Queue, in_order

LONG = "x" * 256


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Queue(None), ["name of a queue", "NoneType"]),
        (lambda: Queue(""), ["name of a queue", "Queue.server_named()"]),
        (lambda: Queue(b"q"), ["name of a queue", "bytes"]),
        (lambda: Queue(LONG), ["name of a queue", "256 bytes"]),
        (lambda: Queue("é" * 128), ["name of a queue", "256 bytes"]),
        (lambda: Queue("\ud800"), ["name of a queue", "UTF-8"]),
        (lambda: Queue("q", durable=None), ["durable of a queue", "None"]),
        (lambda: Queue("q", exclusive=1), ["exclusive of a queue", "1"]),
        (lambda: Queue("q", arguments=None), ["arguments must be a mapping", "NoneType"]),
        (lambda: Queue("q", arguments={"x-max-length": object()}), ["arguments['x-max-length']", "object"]),
        (lambda: Queue("q", arguments={1: 2}), ["arguments", "int"]),
        (lambda: Exchange(None), ["name of an exchange", "NoneType"]),
        (lambda: Exchange(""), ["name of an exchange", "empty"]),
        (lambda: Exchange("e", ""), ["type of an exchange", "empty"]),
        (lambda: Exchange("e", None), ["type of an exchange", "NoneType"]),
        (lambda: Exchange("e", internal="no"), ["internal of an exchange", "no"]),
        (lambda: Binding(source=None, destination="q"), ["source of a binding", "NoneType"]),
        (lambda: Binding(source="", destination="q"), ["source of a binding", "empty"]),
        (lambda: Binding(source="e", destination=""), ["destination of a binding", "an empty name"]),
        (lambda: Binding(source="e", destination=None), ["destination of a binding", "NoneType"]),
        (lambda: Binding(source="e", destination="q", routing_key=None), ["routing key of a binding", "NoneType"]),
        (lambda: Binding(source="e", destination="q", routing_key=LONG), ["routing key of a binding", "256"]),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused(make: Any, words: list[str]) -> None:
    """By name, when it is made, and not by the broker of each new link."""
    with pytest.raises(SettingsError) as caught:
        make()
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_binding_takes_keywords_only() -> None:
    """Source and destination are two names of one type: by position they would be mixed up."""
    with pytest.raises(TypeError):
        Binding("e", "q")  # type: ignore[misc]


def test_a_binding_takes_names_and_declarations() -> None:
    """A name is a queue's; an exchange is bound by its value; the same binding is equal, however it was written."""
    named = Binding(source="e", destination="q", routing_key="k")
    assert named == Binding(source=Exchange("e", "topic"), destination=Queue("q", exclusive=True), routing_key="k")
    assert named != Binding(source="e", destination=Exchange("q"), routing_key="k")
    assert str(named) == "binding of queue 'q' to exchange 'e' by 'k'"


def test_only_a_server_named_queue_has_no_name() -> None:
    """It lives as long as its link, so that none is left behind for each link."""
    queue = Queue.server_named(arguments={"x-max-length": 5})
    assert (queue.name, queue.durable, queue.exclusive, queue.auto_delete) == ("", False, True, True)
    assert queue.is_server_named
    assert not Queue("q").is_server_named
    assert str(Binding(source="e", destination=queue)) == "binding of a server-named queue to exchange 'e' by ''"


def test_declarations_keep_nothing_mutable_of_the_callers() -> None:
    """Arguments that change after the declaration was made change nothing."""
    nested = {"a": [1]}
    queue = Queue("q", arguments={"x": nested})
    nested["a"].append(2)
    assert queue.arguments == {"x": {"a": [1]}}


def test_the_order_of_declarations() -> None:
    """Exchanges, then queues, the server-named one last of them, then bindings; else as given."""
    exchange, queue, unnamed = Exchange("e"), Queue("q"), Queue.server_named()
    bindings = [Binding(source="e", destination=unnamed), Binding(source="e", destination=queue)]
    assert in_order([*bindings, unnamed, queue, exchange]) == (exchange, queue, unnamed, *bindings)
