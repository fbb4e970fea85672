"""The orders that the supervisor gives to the one that publishes. Its `Sender` is behind this Protocol."""

from __future__ import annotations

from typing import Protocol

from warrener.drivers.base import Link, LinkListener
from warrener.errors import Fault

__all__ = ["Publishing"]


class Publishing(Protocol):
    """The orders of the supervisor to the sender. All except `run_timer` are plain functions without a checkpoint.

    A call is about the link whose number it carries; calls about an older link change nothing.
    """

    def expect_link(self, number: int) -> LinkListener:
        """A dial begins. From now on only facts about this link are handled; facts about other links are ignored."""
        ...

    def link_opened(self, link: Link) -> None:
        """The dialed link is open. `start_publishing` follows when its topology is in place."""

    def link_ended(self) -> None:
        """The driver has ended the link: hand it no more messages. `stop_publishing` follows."""

    def start_publishing(self, number: int) -> None:
        """Write messages on the link, or write them again after a pause. `pump` follows."""

    def pause_publishing(self, number: int) -> None:
        """Hold messages back. What is in flight stays in flight; its confirm clock stands still."""

    def stop_publishing(self, fault: Fault) -> None:
        """The link is lost: end its attempts by the delivery mode. Messages that wait go to the next link."""

    def pump(self) -> None:
        """Write what may be written now. Called between two steps of the machine, never within one."""

    def fail_pending(self, fault: Fault) -> None:
        """The attempts are used up: end all pending messages, and refuse new ones until `accept_again`."""

    def report_settled(self, number: int) -> None:
        """Call `Supervisor.settled` when no message is in flight on the link, at once if none is."""

    def refuse_publishing(self, fault: Fault) -> None:
        """The broker refuses the producer for good: end all pending messages with this fault, and refuse new ones.

        `start_publishing` and `pause_publishing` end this.
        """

    def accept_again(self) -> None:
        """A dial begins after the attempts had been used up: accept new messages."""

    def stop_accepting(self) -> None:
        """The producer closes: refuse new messages, and tell the supervisor when none is pending."""

    def note_fault(self, fault: Fault | None) -> None:
        """Remember the newest fault, which errors quote."""

    def close(self) -> None:
        """End every message that is left. The last call."""

    async def run_timer(self) -> None:
        """End messages at their deadline and report overdue confirms, until cancelled."""
