"""A supervised connection of a publisher, as a pure function: the reference implementation of its state machine.

    step = transition(record, event, policy)

A *record* holds everything that the machine remembers. An *event* is a fact that has happened. A *policy* holds the
settings. The answer is the next record and a tuple of *effects*: orders that the owner of the record carries out.
Nothing in this package reads a clock, draws a random number, logs, waits or touches a socket. A test or a tool can
therefore ask at any time what the machine would do:

    >>> from warrener.errors import Fault, FaultKind
    >>> record = initial()
    >>> for event in (events.StartRequested(0.0), events.LinkOpened(1, 0.2), events.TopologyRestored(1, 0.3)):
    ...     record = transition(record, event, Policy()).record
    >>> record.state
    Up(link=1, blocked=False, proven=False)
    >>> lost = events.LinkLost(1, Fault(FaultKind.CONNECTION_LOST, "connection reset"), 7.0)
    >>> step = transition(record, lost, Policy())
    >>> step.record.state
    Waiting(link=1)
    >>> [type(effect).__name__ for effect in step.effects]
    ['StopPublishing', 'CancelTimer', 'StartRetryTimer', 'Announce']

**Grammar.** The form of a name tells its kind. States are true now (`states.Up`), events have happened
(`events.LinkLost`), effects are orders (`effects.Dial`). All are frozen attrs classes. `State`, `Event` and `Effect`
are their unions, so a type checker can prove that a `match` handles every case.

**Time and chance.** Each event carries the monotonic instant `at` at which it happened. A timer is an effect that asks
for an event later. A random delay is an effect with a range, for example `StartRetryTimer(link, 0.5, 1.0)`: the owner
draws a number between the two.

**Numbers.** A *link* is one TCP connection with its AMQP session; links have the numbers 1, 2, 3 … The events of a link
and of its timers carry that number, and an event with an old number changes nothing. The generations of the breaker work
the same way. An owner may therefore report late, report twice, or fail to stop a timer in time.

**Duties of the owner.** One task holds the record and feeds it one event at a time. The task carries out the effects in
their order, without a pause between them. An effect that takes time is only started, and answers with an event later.
Every `Dial` is answered by `LinkOpened` or by one end (`DialFailed`, `LinkLost`, `LinkClosed`), every opened link by one
end, and every `Start…Timer` by its event, unless the timer is cancelled or replaced. A `Permit` is answered by
`PublishConfirmed` or `PermitReleased`.

**Duties of the machine.** `warrener.machine._transitions` lists the invariants. docs/state-table.md has every
transition as a table; `warrener machine` prints it by running the code.

The breaker (`admit`, `succeeded`, `failed`, `released`) and the backoff (`retry_delay`) can be used without the rest.
"""

from __future__ import annotations

from warrener.machine import effects, events, states
from warrener.machine._record import Policy, Record, Step, connection_state, initial
from warrener.machine._transitions import transition
from warrener.machine.backoff import Backoff, retry_delay, slowest_delay
from warrener.machine.breaker import (
    Breaker,
    BreakerState,
    Permit,
    admit,
    cooled,
    failed,
    released,
    retry_after,
    succeeded,
)
from warrener.machine.effects import Effect
from warrener.machine.endpoints import EndpointRecord, Endpoints
from warrener.machine.events import Event
from warrener.machine.states import State

__all__ = [
    "Backoff",
    "Breaker",
    "BreakerState",
    "Effect",
    "EndpointRecord",
    "Endpoints",
    "Event",
    "Permit",
    "Policy",
    "Record",
    "State",
    "Step",
    "admit",
    "connection_state",
    "cooled",
    "effects",
    "events",
    "failed",
    "initial",
    "released",
    "retry_after",
    "retry_delay",
    "slowest_delay",
    "states",
    "succeeded",
    "transition",
]
