"""What has happened: the facts that are fed to `transition`. Each carries the monotonic instant `at`, in seconds."""

from __future__ import annotations

from typing import TypeAlias

from attrs import frozen

from warrener.errors import Fault
from warrener.machine.breaker import Permit

__all__ = [
    "AdmissionRequested",
    "ChannelClosed",
    "CloseTimerFired",
    "ConfirmOverdue",
    "CooldownTimerFired",
    "DialFailed",
    "DrainTimerFired",
    "Drained",
    "Event",
    "LinkClosed",
    "LinkLost",
    "LinkOpened",
    "PermitReleased",
    "PublishConfirmed",
    "PublishNacked",
    "PublishingBlocked",
    "PublishingUnblocked",
    "ReconnectRequested",
    "RetryTimerFired",
    "StableTimerFired",
    "StartRequested",
    "StopRequested",
    "TopologyRestored",
]


# --- asked for by the owner --------------------------------------------------------------------------------------


@frozen
class StartRequested:
    """`run()` was called: dial at once."""

    at: float


@frozen
class StopRequested:
    """Close: with `drain`, what was accepted is settled first, within the drain timer, over reconnects if need be."""

    at: float
    drain: bool


@frozen
class ReconnectRequested:
    """A hint that the broker is back: dial now. Heeded once a second; nothing on a live link."""

    at: float


@frozen
class AdmissionRequested:
    """A publish asks to be let in while the breaker is not closed; answered by `Admit` or `Refuse` in the same step."""

    at: float


@frozen
class PermitReleased:
    """A probe was never written, or was cancelled: its permit goes back."""

    permit: Permit
    at: float


@frozen
class Drained:
    """Nothing accepted is unsettled any more."""

    at: float


# --- timers ------------------------------------------------------------------------------------------------------


@frozen
class RetryTimerFired:
    """Time for the next attempt."""

    link: int
    at: float


@frozen
class StableTimerFired:
    """The link has been up for `stable_for`."""

    link: int
    at: float


@frozen
class CooldownTimerFired:
    """The breaker has been open for its cooldown; `generation` names the trip."""

    generation: int
    at: float


@frozen
class DrainTimerFired:
    """The drain has taken `drain_timeout`."""

    at: float


@frozen
class CloseTimerFired:
    """The close handshake, or the abort, has taken its time."""

    link: int
    at: float


# --- facts about a link ------------------------------------------------------------------------------------------


@frozen
class LinkOpened:
    """The handshake is done and the publishing channel confirms."""

    link: int
    at: float


@frozen
class DialFailed:
    """One pass over all addresses ended without a link."""

    link: int
    fault: Fault
    at: float


@frozen
class LinkLost:
    """A link that had been opened is gone, and already closed on our side."""

    link: int
    fault: Fault
    at: float


@frozen
class LinkClosed:
    """A link or a dial that we ended on purpose is gone (answers `CloseLink`)."""

    link: int
    at: float


@frozen
class TopologyRestored:
    """Everything is declared; publishers may come in."""

    link: int
    at: float


@frozen
class ChannelClosed:
    """The broker closed a publishing channel; the driver replaces it on the same link."""

    link: int
    fault: Fault
    at: float


@frozen
class PublishingBlocked:
    """The broker sent connection.blocked, or channel.flow(false)."""

    link: int
    at: float


@frozen
class PublishingUnblocked:
    """The broker sent connection.unblocked, or channel.flow(true)."""

    link: int
    at: float


@frozen
class ConfirmOverdue:
    """The oldest publish of the link has waited longer than `confirm_timeout`, blocked time not counted."""

    link: int
    at: float


@frozen
class PublishConfirmed:
    """The broker acked. Only sent where it changes something: breaker not clean, or link not yet proven."""

    link: int
    at: float
    permit: Permit | None = None


@frozen
class PublishNacked:
    """The broker nacked."""

    link: int
    at: float
    permit: Permit | None = None


Event: TypeAlias = (
    StartRequested
    | StopRequested
    | ReconnectRequested
    | AdmissionRequested
    | PermitReleased
    | Drained
    | RetryTimerFired
    | StableTimerFired
    | CooldownTimerFired
    | DrainTimerFired
    | CloseTimerFired
    | LinkOpened
    | DialFailed
    | LinkLost
    | LinkClosed
    | TopologyRestored
    | ChannelClosed
    | PublishingBlocked
    | PublishingUnblocked
    | ConfirmOverdue
    | PublishConfirmed
    | PublishNacked
)
