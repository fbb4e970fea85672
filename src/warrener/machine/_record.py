"""The record that `transition` maps to the next one, the policy that it reads, and the step that it answers with."""

from __future__ import annotations

import math
from typing import Literal

from attrs import field, frozen

from warrener.errors import Fault, SettingsError
from warrener.machine import states
from warrener.machine.backoff import Backoff
from warrener.machine.breaker import Breaker
from warrener.machine.effects import Effect
from warrener.machine.states import Idle, State
from warrener.records import ConnectionState

__all__ = ["Policy", "Record", "Step", "connection_state", "initial"]


@frozen
class Policy:
    """What does not change while a producer lives; durations are seconds.

    Raises `SettingsError` where a duration is negative or not a number.
    """

    backoff: Backoff = field(factory=Backoff)
    #: The breaker as it starts out; None turns it off.
    breaker: Breaker | None = field(factory=Breaker)
    #: A link that has been up for so long is proven: the attempts start again from 0.
    stable_for: float = 10.0
    drain_timeout: float = 10.0
    #: For the close handshake; afterwards the link is aborted.
    close_timeout: float = 3.0
    #: For the abort; afterwards the machine is closed whether or not the link's end was reported.
    abort_timeout: float = 1.0
    #: When the attempts are used up: "stay" until a hint revives the producer, or "raise" out of `run()`.
    when_exhausted: Literal["stay", "raise"] = "stay"

    def __attrs_post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("stable_for", "drain_timeout", "close_timeout", "abort_timeout"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} must be 0 seconds or more, not {getattr(self, name)}")
        if self.when_exhausted not in ("stay", "raise"):
            raise SettingsError(f'when_exhausted must be "stay" or "raise", not {self.when_exhausted!r}')


@frozen
class Record:
    """Everything that the machine remembers. Only `transition` makes the next one; one owner holds it."""

    state: State = field(factory=Idle)
    #: Dials since the connection was last proven healthy, the first one at start not counted.
    attempts: int = 0
    #: Failures since the last ack, by the breaker's rules, counted also where the breaker is off.
    failures: int = 0
    #: None where the breaker is off, and before the start.
    breaker: Breaker | None = None
    #: The newest fault; never forgotten, so that a status can quote it after all has been mended.
    last_fault: Fault | None = None
    #: Asked to close and settling what was accepted; the states go on meanwhile, and users see CLOSING.
    draining: bool = False
    #: When the last hint was heeded.
    hinted_at: float = -math.inf
    #: When the broker closed channels of this link, as far back as it matters; at most six instants.
    channel_closes: tuple[float, ...] = ()
    #: The newest instant that changed the record; an older one is treated as this one (I21).
    at: float = -math.inf

    @property
    def link(self) -> int:
        """The number of the newest link; 0 before the first."""
        return self.state.link


@frozen
class Step:
    """The answer of `transition`: what is true now, and what is to be done about it, in this order."""

    record: Record
    effects: tuple[Effect, ...] = ()


def initial() -> Record:
    """Return the record of a producer of which nothing has been asked yet."""
    return Record()


def connection_state(subject: Record | State) -> ConnectionState:
    """Return the one of the five public states that the machine's finer state belongs to.

    Give it the record to have a drain shown as CLOSING: the machine goes on reconnecting while it drains.
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
        case states.Up():
            return ConnectionState.CONNECTED
        case states.Closing():
            return ConnectionState.CLOSING
        case states.Closed():
            return ConnectionState.CLOSED
