"""`LiveTopology`: the declarations of one producer, made on each new link, and changed on a live one.

With ``topology_errors="strict"`` the first declaration that the broker refuses ends the link. With "report" the refused
declarations are remembered and the other ones are made, so that the link comes up without them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from attrs import evolve

from warrener.drivers.base import Link, LinkDown
from warrener.errors import Fault, FaultKind, SettingsError, connect_error, printable
from warrener.topology import Binding, Declaration, Exchange, Queue, in_order

__all__ = ["LiveTopology"]

T = TypeVar("T")


class LiveTopology:
    """One per producer. Methods that take a link raise `LinkDown` while it is new, and `ConnectError` later."""

    def __init__(self, declarations: Iterable[Declaration], *, strict: bool) -> None:
        self._declarations = list(declarations)
        self._strict = strict
        #: The refused declarations, by their text, with the broker's answer.
        self._refusals: dict[str, Fault] = {}
        #: Those for which the broker closed the whole connection; "report" leaves them out on the next links.
        self._left_out: set[str] = set()

    @property
    def declarations(self) -> tuple[Declaration, ...]:
        """The declarations that are made on each new link, in their order."""
        return in_order(self._declarations)

    @property
    def refusal(self) -> Fault | None:
        """The broker's answer to the first declaration that it refuses; None if it refuses none."""
        return next(iter(self._refusals.values()), None)

    # --- a new link -------------------------------------------------------------------------------------------------

    async def restore(self, link: Link) -> None:
        """Make all declarations on a new link."""
        waiting = [each for each in self.declarations if _text(each) not in self._left_out]
        self._refusals = {entity: fault for entity, fault in self._refusals.items() if entity in self._left_out}
        while waiting:
            try:
                await link.declare(waiting)
            except LinkDown as down:
                texts = [_text(each) for each in waiting]
                entity = down.fault.entity
                if down.fault.kind is not FaultKind.TOPOLOGY or entity is None:
                    raise
                self._refusals[entity] = down.fault
                if self._strict or entity not in texts:
                    raise
                # The declarations before it are made, in their order.
                waiting = waiting[texts.index(entity) + 1 :]
            else:
                return

    def after(self, fault: Fault) -> Fault:
        """Return the fault that counts for a link that has ended by `fault`.

        If the broker closed the connection because of a declaration, "report" dials again, as after any other close.
        """
        if self._strict or fault.kind is not FaultKind.TOPOLOGY or fault.entity is None:
            return fault
        self._refusals[fault.entity] = fault
        self._left_out.add(fault.entity)
        return evolve(fault, kind=FaultKind.CLOSED_BY_BROKER)

    # --- a live link ------------------------------------------------------------------------------------------------

    async def declare(self, link: Link, declarations: Iterable[Declaration], *, remember: bool) -> list[str]:
        """Declare on a live link; return the names of the queues. Only if all succeed, all are remembered."""
        wanted = in_order(declarations)
        changed = [each for each in self._declarations if not any(_same(each, other) for other in wanted)]
        changed += wanted
        if remember and sum(isinstance(each, Queue) and each.is_server_named for each in changed) > 1:
            raise SettingsError("a producer remembers one server-named queue; declare this one with remember=False")
        names = await _answer(link.declare(wanted))
        if remember:
            self._declarations = changed
        for each in wanted:
            self._refusals.pop(_text(each), None)
            self._left_out.discard(_text(each))
        return names

    async def unbind(self, link: Link, binding: Binding) -> None:
        """End a binding, and forget it."""
        await _answer(link.unbind(binding))
        self._forget(lambda each: each == binding)

    async def delete_queue(self, link: Link, name: str) -> int:
        """Delete a queue, and forget it and its bindings. Return how many messages it held."""
        messages = await _answer(link.delete_queue(name))
        queue = Queue(name)
        self._forget(lambda each: _same(each, queue) or (isinstance(each, Binding) and each.destination == queue))
        return messages

    async def purge(self, link: Link, name: str) -> int:
        """Remove the ready messages of a queue. Return how many there were."""
        return await _answer(link.purge(name))

    def _forget(self, gone: Callable[[Declaration], bool]) -> None:
        for each in [each for each in self._declarations if gone(each)]:
            self._declarations.remove(each)
            self._refusals.pop(_text(each), None)
            self._left_out.discard(_text(each))


def _text(declaration: Declaration) -> str:
    """Return the name of a declaration in a fault."""
    return printable(str(declaration))


def _same(one: Declaration, other: Declaration) -> bool:
    """Whether both declare the same exchange, queue or binding."""
    match one, other:
        case (Exchange(name=name), Exchange(name=other_name)) | (Queue(name=name), Queue(name=other_name)):
            return name == other_name and bool(name)
        case _:
            return one == other


async def _answer(request: Awaitable[T]) -> T:
    """Return the broker's answer. A refusal and a lost link are a `ConnectError`."""
    try:
        return await request
    except LinkDown as down:
        raise connect_error(down.fault) from None
