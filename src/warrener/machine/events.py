"""The events: facts that have happened. `transition` takes one. Each carries the monotonic instant `at`, in seconds."""

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
    "DiscoveryFailed",
    "DrainTimerFired",
    "Drained",
    "EndpointsFound",
    "Event",
    "HandOverRequested",
    "HandOverTimerFired",
    "InFlightSettled",
    "LinkClosed",
    "LinkLost",
    "LinkOpened",
    "PermitReleased",
    "PreferTimerFired",
    "PublishConfirmed",
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
    """`run()` was called: dial at once.

    `order` has the index of every endpoint once, in the order in which the first pass dials them. It is empty where the
    endpoints are not known yet (`Policy.discovery`).
    """

    at: float
    order: tuple[int, ...] = (0,)


@frozen
class StopRequested:
    """`aclose()` was called. With `drain`, accepted messages get their outcome first, within `drain_timeout`.

    During the drain the machine reconnects as usual.
    """

    at: float
    drain: bool


@frozen
class ReconnectRequested:
    """`reconnect()` was called: dial now. At most one such event a second is obeyed. It does nothing to a live link."""

    at: float


@frozen
class HandOverRequested:
    """`hand_over()` was called: wait for the confirms, close the link, dial another endpoint. Obeyed in `Up` only.

    `endpoint` is an index; None means the next endpoint that is ready, or the only one.
    """

    at: float
    endpoint: int | None = None


@frozen
class AdmissionRequested:
    """A new publish asks for admission. `Admit` or `Refuse` answers in the same step."""

    at: float


@frozen
class PermitReleased:
    """The message with this permit was not written, or was cancelled: its permit is free again."""

    permit: Permit
    at: float


@frozen
class Drained:
    """Every accepted message has its outcome."""

    at: float


@frozen
class InFlightSettled:
    """No message is in flight on the link (answers `ReportSettled`)."""

    link: int
    at: float


# --- timers ------------------------------------------------------------------------------------------------------


@frozen
class RetryTimerFired:
    """The delay before the next dial is over."""

    link: int
    at: float


@frozen
class EndpointsFound:
    """The delay before the next dial is over, and the program has named the endpoints.

    `kept` has one item for each endpoint of the new list: its index in the list before, or None. `order` has every index of
    the new list once, in the order in which new endpoints are dialed.
    """

    link: int
    kept: tuple[int | None, ...]
    order: tuple[int, ...]
    at: float


@frozen
class DiscoveryFailed:
    """The delay before the next dial is over, and the program has not named the endpoints."""

    link: int
    fault: Fault
    at: float


@frozen
class StableTimerFired:
    """The link was up for `stable_for`."""

    link: int
    at: float


@frozen
class PreferTimerFired:
    """The link was up for the time after which the first endpoint is preferred again."""

    link: int
    at: float


@frozen
class HandOverTimerFired:
    """The wait for the confirms before a hand-over has lasted `drain_timeout`."""

    link: int
    at: float


@frozen
class CooldownTimerFired:
    """The breaker was open for its cooldown; `generation` says which opening it was."""

    generation: int
    at: float


@frozen
class DrainTimerFired:
    """The drain has lasted `drain_timeout`."""

    at: float


@frozen
class CloseTimerFired:
    """The close handshake has lasted `close_timeout`, or the abort has lasted `abort_timeout`."""

    link: int
    at: float


# --- facts about a link ------------------------------------------------------------------------------------------


@frozen
class LinkOpened:
    """The handshake has ended, and the publishing channel is in confirm mode."""

    link: int
    at: float


@frozen
class DialFailed:
    """The dial has tried every address of its endpoint, and has ended without a link."""

    link: int
    fault: Fault
    at: float


@frozen
class LinkLost:
    """A link that was open has ended, and its socket is closed."""

    link: int
    fault: Fault
    at: float


@frozen
class LinkClosed:
    """A link or a dial that `CloseLink` ended is gone."""

    link: int
    at: float


@frozen
class TopologyRestored:
    """The whole topology is declared; publishing can start."""

    link: int
    at: float


@frozen
class ChannelClosed:
    """The broker closed a publishing channel. The driver opens the next channel on the same link."""

    link: int
    fault: Fault
    at: float


@frozen
class PublishingBlocked:
    """The broker sent `connection.blocked` or `channel.flow(false)`."""

    link: int
    at: float


@frozen
class PublishingUnblocked:
    """The broker sent `connection.unblocked` or `channel.flow(true)`."""

    link: int
    at: float


@frozen
class ConfirmOverdue:
    """Messages wait on the link, and the broker has answered none for `confirm_timeout`; blocked time does not count."""

    link: int
    at: float


@frozen
class PublishConfirmed:
    """The broker acked a message. The owner may leave the event out where it would change nothing in the record."""

    link: int
    at: float
    permit: Permit | None = None


Event: TypeAlias = (
    StartRequested
    | StopRequested
    | ReconnectRequested
    | HandOverRequested
    | AdmissionRequested
    | PermitReleased
    | Drained
    | InFlightSettled
    | RetryTimerFired
    | EndpointsFound
    | DiscoveryFailed
    | StableTimerFired
    | PreferTimerFired
    | HandOverTimerFired
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
)
