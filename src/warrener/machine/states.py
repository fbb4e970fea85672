"""What is true now: the states of the machine, finer than the five that users see (`connection_state`)."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from attrs import frozen

from warrener.errors import Fault

__all__ = ["Closed", "Closing", "Dialing", "Dropping", "GaveUp", "Idle", "Restoring", "State", "Up", "Waiting"]


@frozen
class Idle:
    """Nothing has been asked for yet."""

    #: Every state has a link number; before the first link it is 0.
    link: ClassVar[int] = 0


@frozen
class Waiting:
    """No link; the retry timer of link `link` (the last one tried) runs."""

    link: int


@frozen
class Dialing:
    """Link `link` is being opened: name resolution to confirm.select-ok."""

    link: int
    #: The broker may block us in the same segment that ends the handshake, before `LinkOpened` is posted.
    blocked: bool = False


@frozen
class Restoring:
    """The link is open; the topology is being declared on it. Publishers are not let in yet."""

    link: int
    blocked: bool = False


@frozen
class Up:
    """Publishers are let in, unless the broker has blocked them."""

    link: int
    blocked: bool = False
    #: A confirm has arrived on this link, or it has been up for `stable_for`: the attempts were reset.
    proven: bool = False


@frozen
class Dropping:
    """The link is being aborted because of `fault`; its end (`LinkLost`) is awaited before the next dial."""

    link: int
    fault: Fault


@frozen
class GaveUp:
    """The attempts are used up; only `ReconnectRequested` or `StopRequested` leave this state."""

    link: int


@frozen
class Closing:
    """Drained, or not asked to drain: the link is being closed; the close timer runs."""

    link: int
    #: The close handshake took too long; the link is being aborted.
    aborted: bool = False


@frozen
class Closed:
    """Final: nothing leaves this state."""

    link: int


State: TypeAlias = Idle | Waiting | Dialing | Restoring | Up | Dropping | GaveUp | Closing | Closed
