"""Refusals: which publishes the close of a channel is about, and what is remembered of it.

A channel.close names no delivery tag. But RabbitMQ's text names the exchange that does not exist or may not be written to,
the topic that may not be written to, the size that is too large, or the user_id that is not the connection's user. `named` compares the text with the publishes that were
outstanding. A refusal of an exchange, a topic or a user_id is remembered for `refusal_memory` seconds. Meanwhile one message a second
may be written to it, as a probe on the suspects' channel; all others are refused from memory and no byte of them is written.
A probe that the broker answers ends the memory, and so does a new link. The largest size that the broker takes is
remembered until the next link.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from attrs import define, frozen

from warrener._publishing.ledger.delivery import Delivery
from warrener.errors import Fault, printable

__all__ = ["REFUSALS", "Refusals", "Target", "named"]

#: Reply codes of a channel.close that one publish causes by itself: content-too-large, access-refused, not-found,
#: precondition-failed (AMQP 0-9-1, 1.2; RabbitMQ uses the last three). Any other code may have another cause.
REFUSALS = frozenset({311, 403, 404, 406})
#: Seconds between two probes of one remembered refusal.
PROBE_EVERY = 1.0

_USER_ID = "user_id property set to '{}' but authenticated user was"
_SIZE = re.compile(r"message size \d+\D+max(?:imum)? size (\d+)")


@frozen
class Target:
    """The publishes that a refusal is about: those to an exchange, with one key to it, above a size, or with a user_id."""

    exchange: str = ""
    routing_key: str | None = None
    max_size: int | None = None
    user_id: str | None = None

    def covers(self, delivery: Delivery) -> bool:
        """Whether the refusal is about this publish."""
        if self.max_size is not None:
            return delivery.size > self.max_size
        envelope = delivery.envelope
        if self.user_id is not None:
            return envelope.user_id == self.user_id
        return envelope.exchange == self.exchange and self.routing_key in (None, envelope.routing_key)


def named(fault: Fault, candidates: Iterable[Delivery]) -> Target | None:
    """Return the target that the broker's text names, if one of the candidates belongs to it."""
    text = fault.text
    if fault.reply_code in (403, 404):
        addresses = {(each.envelope.exchange, each.envelope.routing_key) for each in candidates}
        for exchange, key in addresses:
            if "topic '" in text and f"topic '{printable(key)}' in exchange '{printable(exchange)}'" in text:
                return Target(exchange, key)
        found = [exchange for exchange in {name for name, _ in addresses if name} if _names(text, exchange)]
        if found and "topic '" not in text:
            return Target(max(found, key=len))
    elif fault.reply_code in (311, 406) and (size := _SIZE.search(text)) is not None:
        target = Target(max_size=int(size[1]))
        if any(target.covers(each) for each in candidates):
            return target
    elif fault.reply_code == 406:
        for user_id in {each.envelope.user_id for each in candidates} - {None}:
            if _USER_ID.format(printable(user_id or "")) in text:
                return Target(user_id=user_id)
    return None


def _names(text: str, exchange: str) -> bool:
    """Whether the text names the exchange. The broker cuts its text at 255 bytes, perhaps within a long name."""
    name = printable(exchange)
    if f"exchange '{name}'" in text:
        return True
    _, found, rest = text.rpartition("exchange '")
    cut = rest.rstrip("…")
    return bool(found) and "'" not in rest and len(cut) > 100 and name.startswith(cut)


@define
class _Memory:
    fault: Fault
    until: float
    next_probe_at: float


class Refusals:
    """What is remembered of refusals, for at most `limit` targets; then the oldest one is forgotten."""

    def __init__(self, memory: float, limit: int) -> None:
        self._memory = memory
        self._limit = limit
        self._by_target: dict[Target, _Memory] = {}
        self._too_large: Fault | None = None
        #: The largest size that the broker takes, as far as it has told.
        self.max_size: float = math.inf
        #: Whether the refusal of any exchange or topic is remembered, so that each message has to ask `of`.
        self.active = False

    def remember(self, target: Target, fault: Fault, now: float) -> None:
        """The broker has refused this target."""
        if target.max_size is not None:
            self.max_size, self._too_large = target.max_size, fault
            return
        self.active = True
        self._by_target.pop(target, None)
        self._by_target[target] = _Memory(fault, now + self._memory, now + PROBE_EVERY)
        if len(self._by_target) > self._limit:
            del self._by_target[next(iter(self._by_target))]

    def of(self, delivery: Delivery, now: float) -> Fault | None:
        """Return the refusal that answers this message; None if it may be written, perhaps as the probe of this second."""
        if delivery.size > self.max_size:
            return self._too_large
        for target in _targets(delivery):
            memory = self._by_target.get(target)
            if memory is None:
                continue
            if now >= memory.until:
                self._forget(target)
            elif now < memory.next_probe_at:
                return memory.fault
            else:
                memory.next_probe_at = now + PROBE_EVERY
        return None

    def beyond_exchange(self, delivery: Delivery) -> bool:
        """Whether a refusal of exactly this exchange and routing key, or of this user_id, is remembered."""
        return bool(self._by_target) and any(target in self._by_target for target in _targets(delivery)[1:])

    def passed(self, delivery: Delivery) -> None:
        """The broker has taken a message to this exchange and routing key, with this user_id."""
        for target in _targets(delivery):
            self._forget(target)

    def _forget(self, target: Target) -> None:
        self._by_target.pop(target, None)
        self.active = bool(self._by_target)

    def expire(self, now: float) -> None:
        """Forget the refusals whose time is over. They are in the order in which their times end."""
        while self._by_target and (oldest := next(iter(self._by_target.items())))[1].until <= now:
            self._forget(oldest[0])

    def declared(self, exchange: str) -> None:
        """The exchange was declared: forget every refusal of it."""
        for target in [each for each in self._by_target if each.exchange == exchange]:
            self._forget(target)

    def clear(self) -> None:
        """A new link begins: its broker may answer otherwise."""
        self._by_target.clear()
        self.max_size, self._too_large = math.inf, None
        self.active = False


def _targets(delivery: Delivery) -> tuple[Target, ...]:
    envelope = delivery.envelope
    targets = Target(envelope.exchange), Target(envelope.exchange, envelope.routing_key)
    return targets if envelope.user_id is None else (*targets, Target(user_id=envelope.user_id))
