"""The part of a producer that declares, binds and deletes on its live link."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from warrener._supervision.topology import LiveTopology
from warrener.drivers.base import Link
from warrener.topology import Binding, Declaration

__all__ = ["Declaring"]


class Declaring(ABC):
    """Base class of `Producer`."""

    @abstractmethod
    async def _on_link(self) -> tuple[LiveTopology, Link]:
        """Wait for a link; return the topology and that link."""

    @abstractmethod
    def _declared(self, declarations: Iterable[Declaration]) -> None:
        """The broker has accepted these declarations."""

    async def declare(self, *declarations: Declaration, remember: bool = True) -> list[str]:
        """Declare exchanges, queues and bindings on the live link; return the names of the queues among them.

        It waits at most `publish_timeout` for a link. With `remember` they are declared again on each new link. Raises a
        `ConnectError`: `TopologyMismatch` if the broker refuses one; then nothing of this call is remembered.
        """
        topology, link = await self._on_link()
        names = await topology.declare(link, declarations, remember=remember)
        self._declared(declarations)
        return names

    async def bind(self, binding: Binding, *, remember: bool = True) -> None:
        """Bind a queue or an exchange to an exchange, as `declare` does."""
        await self.declare(binding, remember=remember)

    async def unbind(self, binding: Binding) -> None:
        """End a binding on the live link, and forget it for the next links. Raises as `declare` does."""
        topology, link = await self._on_link()
        await topology.unbind(link, binding)

    async def delete_queue(self, name: str) -> int:
        """Delete a queue, and forget it and its bindings; return how many messages it held. Raises as `declare` does."""
        topology, link = await self._on_link()
        return await topology.delete_queue(link, name)

    async def purge(self, name: str) -> int:
        """Remove the ready messages of a queue and return how many. Raises as `declare` does."""
        topology, link = await self._on_link()
        return await topology.purge(link, name)
