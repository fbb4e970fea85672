"""`LinkFacts`: carries the facts that one link reports to the ledger, the sender and the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warrener.drivers.base import Lane
from warrener.errors import Fault, FaultKind
from warrener.records import Returned

if TYPE_CHECKING:
    from warrener._publishing.sender import Sender

__all__ = ["LinkFacts"]


_UNEXPLAINED = Fault(
    FaultKind.CHANNEL_CLOSED,
    "the broker closed the channel; each of its unconfirmed messages was then published alone, and none was refused",
)


class LinkFacts:
    """The `LinkListener` of one link. Once the sender has another link, or none, its facts change nothing."""

    __slots__ = ("_ledger", "_number", "_sender")

    def __init__(self, sender: Sender, number: int) -> None:
        self._sender = sender
        self._ledger = sender.ledger
        self._number = number

    def channel_opened(self, lane: Lane, channel: int) -> None:
        """A channel is open for publishing."""
        if self._sender.settling.number == self._number:
            self._ledger.channel_opened(lane, channel)
            self._sender.pump()

    def channel_closed(self, lane: Lane, channel: int, fault: Fault, written: int) -> None:
        """The broker closed a channel."""
        sender = self._sender
        if sender.settling.number == self._number:
            settled, explained = self._ledger.ends.channel_closed(
                channel, fault, written, sender.begun(channel), sender.backend.clock()
            )
            sender.settling.settle(settled)
            sender.admission.refuse_waiters()
            sender.keep_sweep()
            if lane is Lane.MAIN and not explained:
                sender.supervisor.channel_closed(self._number, fault)
            if self._ledger.ends.doubtful:
                self._count_unexplained(fault)
            sender.pump()

    def _count_unexplained(self, fault: Fault | None) -> None:
        """Tell the supervisor of closes whose suspects have all been tried, and none of which was guilty."""
        for _ in range(self._ledger.ends.unexplained()):
            self._sender.supervisor.channel_closed(self._number, fault or _UNEXPLAINED)

    def confirmed(self, channel: int, tag: int, multiple: bool) -> None:
        """basic.ack."""
        sender = self._sender
        if sender.settling.number == self._number:
            sender.settling.settle(self._ledger.answers.confirmed(channel, tag, multiple, sender.backend.clock()))
            if self._ledger.ends.doubtful:
                self._count_unexplained(None)
            if sender.supervisor.wants_confirms:
                sender.supervisor.confirmed(self._number, None)
            sender.go_on()

    def nacked(self, channel: int, tag: int, multiple: bool) -> None:
        """basic.nack."""
        sender = self._sender
        if sender.settling.number == self._number:
            now = sender.backend.clock()
            settled = self._ledger.answers.nacked(channel, tag, multiple, now)
            sender.note_nacks(now)
            sender.settling.settle(settled)
            if self._ledger.ends.doubtful:
                self._count_unexplained(None)
            sender.pump()

    def returned(self, channel: int, returned: Returned) -> None:
        """basic.return with its content."""
        sender = self._sender
        if sender.settling.number == self._number:
            sender.returns_log.note(returned, sender.backend.clock())
            self._ledger.answers.returned(channel, returned)

    def blocked(self, reason: str) -> None:
        """The broker blocks publishers."""
        if self._sender.settling.number == self._number:
            self._sender.blocked_log.blocked(reason, self._sender.backend.clock())
            self._sender.supervisor.blocked(self._number)

    def unblocked(self) -> None:
        """The broker takes publishes again."""
        if self._sender.settling.number == self._number:
            self._sender.blocked_log.unblocked()
            self._sender.supervisor.unblocked(self._number)

    def pull(self) -> None:
        """The link is about to send."""
        if self._sender.settling.number == self._number:
            self._sender.pull()

    def writable(self) -> None:
        """The link is no longer congested."""
        if self._sender.settling.number == self._number:
            self._sender.pump()
