"""Refusals: which publishes the close of a channel is about, and what is remembered of it.

A channel.close names no delivery tag. But RabbitMQ's text names the exchange that does not exist or may not be written to,
the topic that may not be written to, the size that is too large, or the property that it does not take, with its value
(a user_id that is not the connection's user, an expiration). `named` compares the text with the publishes that were
outstanding. A refusal of an exchange, a topic or a property is remembered for `refusal_memory` seconds. Meanwhile one
message a second may be written to it, as a probe on the suspects' channel; all others are refused from memory and no byte
of them is written. A probe that the broker answers ends the memory, and so does a new link. The largest size that the
broker takes is remembered until the next link.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from attrs import define, frozen

from warrener._properties import PROPERTIES
from warrener._publishing.ledger.delivery import Delivery
from warrener.errors import Fault, printable
from warrener.records import Envelope

__all__ = ["REFUSALS", "Refusals", "Target", "named"]

#: Reply codes of a channel.close that one publish causes by itself: content-too-large, access-refused, not-found,
#: precondition-failed (AMQP 0-9-1, 1.2; RabbitMQ uses the last three). Any other code may have another cause.
REFUSALS = frozenset({311, 403, 404, 406})
#: Seconds between two probes of one remembered refusal.
PROBE_EVERY = 1.0

_SIZE = re.compile(r"message size \d+\D+max(?:imum)? size (\d+)")
#: RabbitMQ takes these two headers only as a list of routing keys.
_ROUTES = ("CC", "BCC")
_BAD_ROUTES = re.compile(r"unacceptable_type_in_header\W+(B?CC)\b")
#: The name of a queue that exists only beside a consumer of it on the same channel.
_DIRECT_REPLY = "amq.rabbitmq.reply-to"
_NO_DIRECT_REPLY = "fast reply consumer does not exist"
#: The properties whose value a text can name.
_VALUED = tuple(
    each.field for each in PROPERTIES if each.type in ("shortstr", "octet") and hasattr(Envelope, each.field)
)


@frozen
class Target:
    """The publishes that a refusal is about: those to an exchange, with one key to it, above a size, or with a property."""

    exchange: str = ""
    routing_key: str | None = None
    max_size: int | None = None
    #: The name of a property and its value; see `_value`.
    with_property: tuple[str, object] | None = None

    @property
    def whole_exchange(self) -> bool:
        """Whether it is an exchange with all its routing keys."""
        return self.routing_key is None and self.max_size is None and self.with_property is None

    def covers(self, delivery: Delivery) -> bool:
        """Whether the refusal is about this publish."""
        if self.max_size is not None:
            return delivery.size > self.max_size
        envelope = delivery.envelope
        if self.with_property is not None:
            name, value = self.with_property
            return _value(envelope, name) == value
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
        return _named_property(text, list(dict.fromkeys(each.envelope for each in candidates)))
    return None


def _named_property(text: str, envelopes: list[Envelope]) -> Target | None:
    """Return the property and the value that the text names, if one of the envelopes has it."""
    wanted: list[tuple[str, object]] = []
    if (routes := _BAD_ROUTES.search(text)) is not None:
        wanted += [(routes[1], _value(envelope, routes[1])) for envelope in envelopes]
    elif _NO_DIRECT_REPLY in text:
        wanted += [("reply_to", envelope.reply_to) for envelope in envelopes if envelope.reply_to == _DIRECT_REPLY]
    else:
        for name in _VALUED:
            # RabbitMQ says "invalid expiration '…'" and "user_id property set to '…' but authenticated user was '…'".
            said = re.compile(rf"\b{name.replace('_', '[_ -]')} (?:property set to )?'(.*?)'(?!\w)")
            values = {printable(found) for found in said.findall(text)}
            if values:
                wanted += [
                    (name, _value(each, name)) for each in envelopes if printable(str(_value(each, name))) in values
                ]
    return next((Target(with_property=each) for each in wanted if each[1] is not None), None)


def _value(envelope: Envelope, name: str) -> object:
    """Return the value of a property, or for one of the headers `CC` and `BCC` the type that it may not have; else None."""
    if name in _ROUTES:
        value = None if envelope.headers is None else envelope.headers.get(name)
        return None if value is None or isinstance(value, list) else type(value).__name__
    return getattr(envelope, name)


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
        #: The targets for which the waiting messages have not been searched yet.
        self.new: set[Target] = set()
        #: The properties that a remembered refusal is about.
        self._properties: set[str] = set()
        self._too_large: Fault | None = None
        #: The largest size that the broker takes, as far as it has told.
        self.max_size: float = math.inf
        #: Whether the refusal of any exchange, topic or property is remembered, so that each message has to ask `of`.
        self.active = False

    def remember(self, target: Target, fault: Fault, now: float) -> None:
        """The broker has refused this target."""
        self.new.add(target)
        if target.max_size is not None:
            self.max_size, self._too_large = target.max_size, fault
            return
        self.active = True
        if target.with_property is not None:
            self._properties.add(target.with_property[0])
        self._by_target.pop(target, None)
        self._by_target[target] = _Memory(fault, now + self._memory, now + PROBE_EVERY)
        if len(self._by_target) > self._limit:
            del self._by_target[next(iter(self._by_target))]

    def of(self, delivery: Delivery, now: float) -> Fault | None:
        """Return the refusal that answers this message; None if it may be written, perhaps as the probe of this second."""
        if delivery.size > self.max_size:
            return self._too_large
        for target in self._targets(delivery.envelope):
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

    def answers(self, delivery: Delivery, now: float) -> Fault | None:
        """Return the refusal that is remembered for this message. It asks for no probe."""
        if delivery.size > self.max_size:
            return self._too_large
        remembered = (self._by_target.get(target) for target in self._targets(delivery.envelope))
        return next((each.fault for each in remembered if each is not None and now < each.until), None)

    def newly(self, delivery: Delivery) -> Fault | None:
        """Return the refusal that is remembered for this message, if it is a new one."""
        if delivery.size > self.max_size:
            return self._too_large
        found = (self._by_target.get(target) for target in self._targets(delivery.envelope) if target in self.new)
        return next((each.fault for each in found if each is not None), None)

    def beyond_exchange(self, delivery: Delivery) -> bool:
        """Whether a refusal of exactly this exchange and routing key, or of one of its properties, is remembered."""
        return bool(self._by_target) and any(
            target in self._by_target for target in self._targets(delivery.envelope)[1:]
        )

    def passed(self, delivery: Delivery) -> None:
        """The broker has taken a message to this exchange and routing key, with these properties."""
        for target in self._targets(delivery.envelope):
            self._forget(target)

    def _forget(self, target: Target) -> None:
        self._by_target.pop(target, None)
        self.active = bool(self._by_target)
        if not self.active:
            self._properties.clear()

    def expire(self, now: float) -> None:
        """Forget the refusals whose time is over. They are in the order in which their times end."""
        while self._by_target and (oldest := next(iter(self._by_target.items())))[1].until <= now:
            self._forget(oldest[0])

    def declared(self, exchange: str) -> None:
        """The exchange was declared: forget every refusal of it."""
        for target in [each for each in self._by_target if each.exchange == exchange and each.with_property is None]:
            self._forget(target)

    def clear(self) -> None:
        """A new link begins: its broker may answer otherwise."""
        self._by_target.clear()
        self._properties.clear()
        self.new.clear()
        self.max_size, self._too_large = math.inf, None
        self.active = False

    def concern(self, envelope: Envelope) -> bool:
        """Whether a refusal is remembered that is about messages with this envelope, whatever their size."""
        return self.active and any(target in self._by_target for target in self._targets(envelope))

    def _targets(self, envelope: Envelope) -> list[Target]:
        """Return the targets that a refusal of messages with this envelope can be remembered for."""
        targets = [Target(envelope.exchange), Target(envelope.exchange, envelope.routing_key)]
        for name in self._properties:
            value = _value(envelope, name)
            if value is not None:
                targets.append(Target(with_property=(name, value)))
        return targets
