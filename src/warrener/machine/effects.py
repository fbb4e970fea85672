"""The effects: orders that `transition` gives. The owner carries them out in their order, without a checkpoint between."""

from __future__ import annotations

from typing import Literal, TypeAlias

from attrs import frozen

from warrener.errors import Fault
from warrener.machine.breaker import Permit
from warrener.machine.states import State

__all__ = [
    "AbortLink",
    "Admit",
    "Announce",
    "CancelTimer",
    "CloseLink",
    "Dial",
    "Effect",
    "FailPending",
    "Finish",
    "PausePublishing",
    "Refuse",
    "RefusePublishing",
    "ReplayTopology",
    "ReportSettled",
    "StartCloseTimer",
    "StartCooldownTimer",
    "StartDrainTimer",
    "StartHandOverTimer",
    "StartPreferTimer",
    "StartPublishing",
    "StartRetryTimer",
    "StartStableTimer",
    "StopPublishing",
    "Timer",
]


#: The kinds of timers. Of each kind at most one runs.
Timer: TypeAlias = Literal["retry", "stable", "prefer", "cooldown", "drain", "hand_over", "close"]


@frozen
class Dial:
    """Open link `link` to the endpoint with index `endpoint`, within `connect_timeout`.

    The dial tries every address of the endpoint's name. It begins with the address of index `address`, taken modulo the
    number of addresses.
    """

    link: int
    endpoint: int = 0
    address: int = 0


@frozen
class ReplayTopology:
    """Declare the topology on the link. `TopologyRestored` follows, or `LinkLost` with a topology fault."""

    link: int


@frozen
class ReportSettled:
    """Post `InFlightSettled(link)` when no message is in flight on the link any more, at once if none is."""

    link: int


@frozen
class CloseLink:
    """Close the link with the AMQP handshake, or cancel the dial. `LinkClosed` follows."""

    link: int


@frozen
class AbortLink:
    """Cut the link without a handshake. `LinkLost` follows, or `LinkClosed` while the producer closes."""

    link: int
    fault: Fault


@frozen
class StartPublishing:
    """Publish messages on this link."""

    link: int


@frozen
class PausePublishing:
    """Publish nothing more for now; the link stays. Messages in flight wait for their confirms."""

    link: int


@frozen
class StopPublishing:
    """The link can no longer be used. Messages in flight are treated by the delivery mode; the other ones wait."""

    link: int
    fault: Fault


@frozen
class FailPending:
    """End every waiting message at once: `GaveUp` if it was not written, `Unconfirmed` if it was."""

    fault: Fault


@frozen
class RefusePublishing:
    """End every waiting message at once as in `FailPending`, but with `NotSent` in place of `GaveUp`.

    The broker refuses this producer for a reason that time does not end. New messages get the same answer, until
    `StartPublishing` or `PausePublishing` comes. The machine goes on dialing.
    """

    fault: Fault


@frozen
class StartRetryTimer:
    """Draw a delay between `shortest` and `longest` seconds. `RetryTimerFired(link)` follows after it."""

    link: int
    shortest: float
    longest: float


@frozen
class StartStableTimer:
    """`StableTimerFired(link)` follows after `delay` seconds."""

    link: int
    delay: float


@frozen
class StartPreferTimer:
    """`PreferTimerFired(link)` follows after `delay` seconds. A timer of this kind that runs is replaced."""

    link: int
    delay: float


@frozen
class StartHandOverTimer:
    """`HandOverTimerFired(link)` follows after `delay` seconds."""

    link: int
    delay: float


@frozen
class StartCooldownTimer:
    """`CooldownTimerFired(generation)` follows after `delay` seconds. A cooldown timer that runs is replaced."""

    generation: int
    delay: float


@frozen
class StartDrainTimer:
    """`DrainTimerFired` follows after `delay` seconds, unless `Drained` comes first."""

    delay: float


@frozen
class StartCloseTimer:
    """`CloseTimerFired(link)` follows after `delay` seconds. A close timer that runs is replaced."""

    link: int
    delay: float


@frozen
class CancelTimer:
    """Stop a timer, if it runs."""

    timer: Timer


@frozen
class Admit:
    """Answers `AdmissionRequested` with yes. `permit` is None if the breaker is closed or off."""

    permit: Permit | None


@frozen
class Refuse:
    """Answers `AdmissionRequested` with no. `retry_after` is in seconds, and infinite if no dial will follow."""

    retry_after: float


@frozen
class Announce:
    """The state has changed: log the change and wake the readers of `changes()`.

    When a drain begins, `before` and `after` are the same state: users now see CLOSING (`connection_state`).
    """

    before: State
    after: State
    fault: Fault | None = None


@frozen
class Finish:
    """Everything is closed: end the messages that are left, and end `run()`.

    If `fault` is given (`when_exhausted="raise"`), `run()` raises the error for it.
    """

    fault: Fault | None = None


Effect: TypeAlias = (
    Dial
    | ReplayTopology
    | ReportSettled
    | CloseLink
    | AbortLink
    | StartPublishing
    | PausePublishing
    | StopPublishing
    | FailPending
    | RefusePublishing
    | StartRetryTimer
    | StartStableTimer
    | StartPreferTimer
    | StartHandOverTimer
    | StartCooldownTimer
    | StartDrainTimer
    | StartCloseTimer
    | CancelTimer
    | Admit
    | Refuse
    | Announce
    | Finish
)
