"""The native driver: a `warrener.wire` session on a socket of the running backend.

A link is four tasks in one task group:

* **the body** of ``async with driver.open(…)``, in a cancel scope of its own, which the end of the link cancels;
* **the reader** (`_reader`) receives at most 16 KiB at a time, has the session say what they mean, and passes the events on;
* **the writer** (`_writer`), the only task that sends, takes all pending bytes and sends them at once. Messages that are
  published meanwhile go out together in its next turn. No publisher waits in it, so no publisher's cancellation reaches it;
* **the watch** (`_link`) sends a heartbeat when nothing was sent for half an interval and ends the link when nothing was
  heard for two. It sleeps until the earlier of the two is due: an idle link wakes for nothing else.

**Ending.** The task that finds the link dead records the `Fault` and cancels the body; no task raises into the group, so
one `LinkDown` is raised without an ExceptionGroup. An exception of the body is raised again outside of the task
group. After the body, in this order: our close handshake if the body ended by itself, or the answer to the broker's
close; then the tasks are cancelled and the stream is closed, shielded, whatever happened.

**A write that fails is not the end yet.** The broker may have said why, and confirmed more, before it closed; so the
reader has a second to come to the end of the bytes that have arrived. Likewise after a late wake-up (a machine that
slept, an event loop that stood still) the reader takes the readable bytes before silence is declared.

Reader and writer use a `Transport` (`_transport`): one for Trio, one for asyncio and uvloop, each with or without TLS.
All times come from the event loop's clock. So everything runs under a mock clock, with streams in memory from `dial`.
"""

from warrener.drivers.native._driver import Dial, NativeDriver
from warrener.drivers.native._link import NativeLink

__all__ = ["Dial", "NativeDriver", "NativeLink"]
