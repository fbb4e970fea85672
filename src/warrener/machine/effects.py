"""What to do: the orders that `transition` answers with. The owner performs them in order, without a checkpoint."""

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
    "ReplayTopology",
    "StartCloseTimer",
    "StartCooldownTimer",
    "StartDrainTimer",
    "StartPublishing",
    "StartRetryTimer",
    "StartStableTimer",
    "StopPublishing",
    "Timer",
]


#: The timers; of each kind at most one runs.
Timer: TypeAlias = Literal["retry", "stable", "cooldown", "drain", "close"]


@frozen
class Dial:
    """Open link `link`: one pass over all addresses, within `connect_timeout`."""

    link: int


@frozen
class ReplayTopology:
    """Declare the topology on the link; `TopologyRestored` follows, or `LinkLost` with a topology fault."""

    link: int


@frozen
class CloseLink:
    """End the link, or the dial, in good order; `LinkClosed` follows."""

    link: int


@frozen
class AbortLink:
    """End the link without a handshake; `LinkLost` (or `LinkClosed`, while closing) follows."""

    link: int
    fault: Fault


@frozen
class StartPublishing:
    """Let publishers in, on this link."""

    link: int


@frozen
class PausePublishing:
    """Hold publishers back, link alive: the broker has blocked us. What is in flight stays pending."""

    link: int


@frozen
class StopPublishing:
    """No link for publishers: what is in flight is settled by the delivery mode, the rest waits."""

    link: int
    fault: Fault


@frozen
class FailPending:
    """Gave up: what was not written ends `GaveUp`, what was written `Unconfirmed`, at once."""

    fault: Fault


@frozen
class StartRetryTimer:
    """Draw a delay in [shortest, longest] seconds; `RetryTimerFired(link)` follows."""

    link: int
    shortest: float
    longest: float


@frozen
class StartStableTimer:
    """`StableTimerFired(link)` follows after `delay` seconds."""

    link: int
    delay: float


@frozen
class StartCooldownTimer:
    """The breaker has tripped: `CooldownTimerFired(generation)` follows after `delay` seconds; replaces a running one."""

    generation: int
    delay: float


@frozen
class StartDrainTimer:
    """`DrainTimerFired` follows after `delay` seconds, unless `Drained` comes first."""

    delay: float


@frozen
class StartCloseTimer:
    """`CloseTimerFired(link)` follows after `delay` seconds; replaces a running one."""

    link: int
    delay: float


@frozen
class CancelTimer:
    """Stop a timer, if it runs."""

    timer: Timer


@frozen
class Admit:
    """Answers `AdmissionRequested`: write this one as a probe. `permit` is None where the breaker is closed or off."""

    permit: Permit | None


@frozen
class Refuse:
    """Answers `AdmissionRequested`: fail fast; `retry_after` is seconds, infinite where no link is being sought."""

    retry_after: float


@frozen
class Announce:
    """The state has changed: log it, tell those who watch. The one place from which transitions are reported.

    Where a drain begins, `before` and `after` are the same state: what users see has changed (`connection_state`).
    """

    before: State
    after: State
    fault: Fault | None = None


@frozen
class Finish:
    """Everything is closed: what is left is settled, and `run()` ends.

    Where a fault is given (`when_exhausted="raise"`), `run()` raises its error.
    """

    fault: Fault | None = None


Effect: TypeAlias = (
    Dial
    | ReplayTopology
    | CloseLink
    | AbortLink
    | StartPublishing
    | PausePublishing
    | StopPublishing
    | FailPending
    | StartRetryTimer
    | StartStableTimer
    | StartCooldownTimer
    | StartDrainTimer
    | StartCloseTimer
    | CancelTimer
    | Admit
    | Refuse
    | Announce
    | Finish
)
