"""How the demo is shown: a live table where rich is installed and standard output is a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from attrs import frozen

from warrener.records import Status

__all__ = ["Snapshot", "View", "open_view"]


@frozen
class Snapshot:
    """The numbers at one instant."""

    status: Status
    confirmed: int
    resent: int
    failed_fast: int

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values, in the order in which they are shown."""
        status = self.status
        state = status.connection_state.value + (" (blocked)" if status.blocked else "")
        return [
            ("state", state),
            ("breaker", status.circuit_breaker.replace("_", "-")),
            ("attempts", str(status.reconnect_attempts)),
            ("in flight", str(status.in_flight)),
            ("waiting", str(status.buffered)),
            ("confirmed", str(self.confirmed)),
            ("re-sent", str(self.resent)),
            ("failed fast", str(self.failed_fast)),
        ]


#: The colours of values that a reader should notice.
_COLOURS = {
    "CONNECTED": "green",
    "CONNECTED (blocked)": "yellow",
    "CONNECTING": "yellow",
    "DISCONNECTED": "red",
    "closed": "green",
    "half-open": "yellow",
    "open": "red",
}


class View(Protocol):
    """Shows the demo while it runs."""

    def say(self, text: str) -> None:
        """Print an event."""
        ...

    def show(self, snapshot: Snapshot) -> None:
        """Show the numbers."""
        ...


class _Lines:
    """Plain lines: one line a second, and one line for each event."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._shown = -1

    def say(self, text: str) -> None:
        print(f"{self._elapsed():6.1f} s  -- {text}", flush=True)

    def show(self, snapshot: Snapshot) -> None:
        if int(self._elapsed()) == self._shown:
            return
        self._shown = int(self._elapsed())
        (_, state), (_, breaker), *counts = snapshot.rows()
        told = "  ".join(f"{name} {value:>4}" for name, value in counts)
        print(f"{self._elapsed():6.1f} s  {state:<19}  breaker {breaker:<9}  {told}", flush=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def open_view(*, plain: bool, table: bool = True) -> AbstractContextManager[View]:
    """Return the live table; plain lines if `plain` is set, `table` is False, or rich or a terminal is missing."""
    if plain or not table or not sys.stdout.isatty():
        return nullcontext(_Lines())
    try:
        return _rich_view()
    except ImportError:
        return nullcontext(_Lines())


def _rich_view() -> AbstractContextManager[View]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console()
    began = time.monotonic()

    @contextmanager
    def opened() -> Any:
        with Live(console=console, auto_refresh=False) as live:

            class Rich:
                def say(self, text: str) -> None:
                    console.print(f"[bold]{time.monotonic() - began:6.1f} s[/bold]  {text}", highlight=False)

                def show(self, snapshot: Snapshot) -> None:
                    table = Table(title="warrener demo", show_header=False)
                    table.add_column(width=11)
                    table.add_column(width=19, justify="right")
                    for name, value in snapshot.rows():
                        table.add_row(name, value, style=_COLOURS.get(value))
                    live.update(table, refresh=True)

            yield Rich()

    opener: Callable[[], AbstractContextManager[View]] = opened
    return opener()
