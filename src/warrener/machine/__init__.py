"""A supervised connection of a publisher, as a pure function: the reference implementation of its state machine.

    step = transition(record, event, policy)

A *record* is all that is remembered, an *event* is a fact that has happened, a *policy* is what was configured. The
answer is the next record and a tuple of *effects*, orders for somebody who can do things. Nothing in this package reads
a clock, draws a number, logs, waits or touches a socket, so whoever wants to know what happens when a link dies while
a drain is under way and the breaker is half open can ask:

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

**Grammar.** Tense tells the kind. States are true now (`states.Up`), events have happened (`events.LinkLost`), effects
are orders (`effects.Dial`). All are frozen attrs classes; `State`, `Event` and `Effect` are their unions, so a type
checker proves a `match` complete.

**Time and rng.** Each event carries the monotonic instant `at` at which it happened. A timer is an effect that asks
for an event later. A delay that is to be drawn leaves as a range (`StartRetryTimer.shortest`, `.longest`), and whoever
owns the record draws.

**Numbers.** A *link* is one TCP and AMQP life: 1, 2, 3 … Facts and timers of a link carry its number, and those of an
old one change nothing. The same holds for the breaker's generations. So the owner may be late, may report twice, and may
fail to stop a timer in time; no flag is needed to protect the machine from that.

**What the owner owes.** One task holds the record and feeds events one at a time. It performs the effects in order,
without waiting in between; what takes time is begun, and answers with an event. Every `Dial` is answered by `LinkOpened`
or by one end (`DialFailed`, `LinkLost`, `LinkClosed`), every opened link by one end, every `Start…Timer` by its event
unless it is cancelled or replaced. A `Permit` is answered by `PublishConfirmed`, `PublishNacked` or `PermitReleased`.

**What the machine owes** is listed at the top of `warrener.machine._transitions`, and tabulated in docs/state-table.md,
which is printed from it (`markdown`, `mermaid` and `dot` in `warrener._cli.machine`).

The breaker (`admit`, `succeeded`, `failed`, `released`) and the backoff (`retry_delay`) stand on their own as well.
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
from warrener.machine.events import Event
from warrener.machine.states import State

__all__ = [
    "Backoff",
    "Breaker",
    "BreakerState",
    "Effect",
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
