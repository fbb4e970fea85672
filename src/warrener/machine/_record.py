"""The values around `transition`: the record, the policy, and the step that it returns."""

from __future__ import annotations

import math
from typing import Literal

from attrs import field, frozen

from warrener.errors import Fault, SettingsError
from warrener.machine import states
from warrener.machine.backoff import Backoff
from warrener.machine.breaker import Breaker
from warrener.machine.effects import Effect
from warrener.machine.endpoints import Endpoints
from warrener.machine.states import Idle, State
from warrener.records import ConnectionState

__all__ = ["Policy", "Record", "Step", "connection_state", "initial", "next_record"]


@frozen
class Policy:
    """The settings of the machine; they never change while a producer runs. Durations are in seconds.

    Raises `SettingsError` if a duration is negative or not a number.
    """

    backoff: Backoff = field(factory=Backoff)
    #: The breaker at the start; None: there is no breaker.
    breaker: Breaker | None = field(factory=Breaker)
    #: A link that was up for this time is proven: the count of attempts is set to 0.
    stable_for: float = 10.0
    drain_timeout: float = 10.0
    #: The longest time for the close handshake; after it the link is aborted.
    close_timeout: float = 3.0
    #: The longest time for the abort; after it the machine is closed, even if the end of the link was not reported.
    abort_timeout: float = 1.0
    #: The first dial comes after a random delay of at most this time, so that a fleet does not start at one instant.
    start_jitter: float = 0.0
    #: "first": a link to another endpoint than the first one is handed over to the first one, after `stable_for`.
    prefer: Literal["any", "first"] = "any"
    #: The owner asks the program for the endpoints before each pass.
    discovery: bool = False
    #: When all attempts are used: "stay" until `reconnect()` is called, or "raise" an error from `run()`.
    when_exhausted: Literal["stay", "raise"] = "stay"

    def __attrs_post_init__(self) -> None:
        """Refuse values that make no sense."""
        for name in ("stable_for", "start_jitter", "drain_timeout", "close_timeout", "abort_timeout"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} must be 0 seconds or more, not {getattr(self, name)}")
        if self.when_exhausted not in ("stay", "raise"):
            raise SettingsError(f'when_exhausted must be "stay" or "raise", not {self.when_exhausted!r}')
        if self.prefer not in ("any", "first"):
            raise SettingsError(f'prefer must be "any" or "first", not {self.prefer!r}')


@frozen
class Record:
    """Everything that the machine remembers. Only `transition` makes the next record; one owner holds it."""

    state: State = field(factory=Idle)
    #: Passes since a link was last proven; the pass at the start does not count.
    attempts: int = 0
    #: Failures since the last ack, counted by the rules of the breaker, and also if there is no breaker.
    failures: int = 0
    #: None if there is no breaker, and before the start.
    breaker: Breaker | None = None
    #: The newest fault. It stays after the connection works again, so that a status can show it.
    last_fault: Fault | None = None
    #: A drain is under way: accepted messages get their outcome. The states change as usual; users see CLOSING.
    draining: bool = False
    #: When `ReconnectRequested` last led to a dial.
    hinted_at: float = -math.inf
    #: The instants of the last channel closes on this link; at most six.
    channel_closes: tuple[float, ...] = ()
    #: A link was up at least once.
    connected_once: bool = False
    #: Each endpoint's failures, backoff and last fault, and the order of the next dials.
    endpoints: Endpoints = field(factory=Endpoints)
    #: The newest instant that changed the record. Time does not run backwards: an older instant is treated as this one.
    at: float = -math.inf

    @property
    def link(self) -> int:
        """The number of the newest link; 0 before the first."""
        return self.state.link


@frozen
class Step:
    """The answer of `transition`: the next record, and the orders in their order."""

    record: Record
    effects: tuple[Effect, ...] = ()


def initial() -> Record:
    """Return the record of a producer that has not been started."""
    return Record()


def connection_state(subject: Record | State) -> ConnectionState:
    """Return the public state, one of five, for a state of the machine.

    For a record with a drain under way the answer is CLOSING; the machine's own state goes on changing meanwhile.
    """
    if isinstance(subject, Record):
        if subject.draining and not isinstance(subject.state, states.Closed):
            return ConnectionState.CLOSING
        subject = subject.state
    match subject:
        case states.Idle() | states.Waiting() | states.Dropping() | states.GaveUp():
            return ConnectionState.DISCONNECTED
        case states.Dialing() | states.Restoring():
            return ConnectionState.CONNECTING
        case states.Up() | states.HandingOver():
            return ConnectionState.CONNECTED
        case states.Closing():
            return ConnectionState.CLOSING
        case states.Closed():
            return ConnectionState.CLOSED


def next_record(
    record: Record,
    at: float,
    state: states.State | None = None,
    *,
    attempts: int | None = None,
    failures: int | None = None,
    breaker: Breaker | None = None,
    last_fault: Fault | None = None,
    draining: bool | None = None,
    hinted_at: float | None = None,
    channel_closes: tuple[float, ...] | None = None,
    connected_once: bool | None = None,
    endpoints: Endpoints | None = None,
) -> Record:
    """Return the record with the given fields changed. `attrs.evolve` would take several times as long."""
    return Record(
        record.state if state is None else state,
        record.attempts if attempts is None else attempts,
        record.failures if failures is None else failures,
        record.breaker if breaker is None else breaker,
        record.last_fault if last_fault is None else last_fault,
        record.draining if draining is None else draining,
        record.hinted_at if hinted_at is None else hinted_at,
        record.channel_closes if channel_closes is None else channel_closes,
        record.connected_once if connected_once is None else connected_once,
        record.endpoints if endpoints is None else endpoints,
        at,
    )
