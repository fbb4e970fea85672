"""The states of the machine: what is true now. `connection_state` maps each to one of the five states that users see."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from attrs import frozen

from warrener.errors import Fault

__all__ = [
    "Closed",
    "Closing",
    "Dialing",
    "Dropping",
    "GaveUp",
    "HandingOver",
    "Idle",
    "Restoring",
    "State",
    "Up",
    "Waiting",
]


@frozen
class Idle:
    """`run()` has not been called yet."""

    #: Every state has a link number; before the first link it is 0.
    link: ClassVar[int] = 0


@frozen
class Waiting:
    """There is no link. The retry timer runs; `link` is the number of the last link that was tried, 0 before the first."""

    link: int


@frozen
class Dialing:
    """Link `link` is being opened: from name resolution to `confirm.select-ok`."""

    link: int
    #: The broker has blocked the connection already: its frame can arrive together with the end of the handshake.
    blocked: bool = False


@frozen
class Restoring:
    """The link is open, and the topology is being declared on it. Nothing is published yet."""

    link: int
    blocked: bool = False


@frozen
class Up:
    """Messages are published, unless the broker has blocked the connection."""

    link: int
    blocked: bool = False
    #: A confirm has arrived on this link, or the link was up for `stable_for`: the count of attempts was set to 0.
    proven: bool = False


@frozen
class HandingOver:
    """Publishing has stopped on this link; after the confirms of the messages in flight, `target` is dialed."""

    link: int
    #: The index of the endpoint that the next dial goes to.
    target: int
    #: As in `Up`.
    proven: bool = False
    #: The wait for the confirms is over, and the link is being closed.
    closing: bool = False


@frozen
class Dropping:
    """The link is being aborted because of `fault`. The next dial waits for its end (`LinkLost`)."""

    link: int
    fault: Fault


@frozen
class GaveUp:
    """All attempts are used. Only `ReconnectRequested` or `StopRequested` ends this state."""

    link: int


@frozen
class Closing:
    """The drain is over, or there was none. The link is being closed, and the close timer runs."""

    link: int
    #: The close handshake took longer than `close_timeout`; the link is being aborted.
    aborted: bool = False


@frozen
class Closed:
    """The end: no event changes this state."""

    link: int


State: TypeAlias = Idle | Waiting | Dialing | Restoring | Up | HandingOver | Dropping | GaveUp | Closing | Closed
