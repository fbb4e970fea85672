"""Refusals: which publishes the close of a channel is about, and what is remembered of it.

A channel.close names no delivery tag. But RabbitMQ's text names the cause. It is an exchange that does not exist or may
not be written to, a topic that may not be written to, a size that is too large, or a property with its value. An
example is a user_id that is not the connection's user, or an invalid expiration. `named` compares the text with the
publishes that were outstanding. A refusal of an exchange, a topic or a property is remembered for `refusal_memory`
seconds. Meanwhile one message a second may be written to it, as a probe on the suspects' channel; all others are
refused from memory and no byte of them is written. The refusal is forgotten when the broker answers a probe, and when a new
link begins. The largest size that the broker takes is remembered until the next link.

The topics of one exchange are a *family*, and so are the values of one property. When two values of a family are
remembered, the family is *distrusted*: the first message with each further value goes to the suspects' channel. So a
stream of different user_ids that are all refused does not close the main channel for each.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from attrs import define, frozen

from warrener._properties import PROPERTIES
from warrener._publishing.ledger.delivery import Delivery
from warrener.errors import MASKED, Fault, printable
from warrener.records import Envelope

__all__ = ["REFUSALS", "Refusals", "Target", "named"]

#: Reply codes of a channel.close that one publish causes by itself: content-too-large, access-refused, not-found,
#: precondition-failed (AMQP 0-9-1, 1.2; RabbitMQ uses the last three). Any other code may have another cause.
REFUSALS = frozenset({311, 403, 404, 406})
#: Seconds between two probes of one remembered refusal.
PROBE_EVERY = 1.0

_SIZE = re.compile(r"message size \d+\D+max(?:imum)? size (\d+)")
#: RabbitMQ's name of the default exchange in its texts.
_DEFAULT_EXCHANGE = "amq.default"
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


Family: TypeAlias = tuple[str, str]


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

    @property
    def family(self) -> Family | None:
        """The topics of one exchange, or the values of one property; None for other targets."""
        if self.with_property is not None:
            return "property", self.with_property[0]
        return None if self.routing_key is None else ("topic", self.exchange)

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
            if "topic '" in text and _quotes(text, "topic", key) and _quotes(text, "exchange", exchange):
                return Target(exchange, key)
        exchanges = {exchange for exchange, _ in addresses}
        if "topic '" not in text and (found := [exchange for exchange in exchanges if _names(text, exchange)]):
            exact = [exchange for exchange in found if f"'{printable(exchange or _DEFAULT_EXCHANGE)}'" in text]
            # A masked name in the text can match several exchanges: then the text names none of them.
            if exact or len(found) == 1:
                return Target(max(exact or found))
    elif fault.reply_code in (311, 406) and (size := _SIZE.search(text)) is not None:
        target = Target(max_size=int(size[1]))
        if any(target.covers(each) for each in candidates):
            return target
    elif fault.reply_code == 406:
        return _named_property(text, list(dict.fromkeys(each.envelope for each in candidates)))
    return None


def _named_property(text: str, envelopes: list[Envelope]) -> Target | None:
    """Return the property and the value that the text names, if one of the envelopes has it."""
    wanted: list[tuple[str, object]]
    if (routes := _BAD_ROUTES.search(text)) is not None:
        wanted = [(routes[1], _value(envelope, routes[1])) for envelope in envelopes]
    elif _NO_DIRECT_REPLY in text:
        wanted = [("reply_to", envelope.reply_to) for envelope in envelopes if envelope.reply_to == _DIRECT_REPLY]
    else:
        wanted = []
        for name in _VALUED:
            # RabbitMQ says "invalid expiration '…'" and "user_id property set to '…' but authenticated user was '…'".
            before = rf"\b{name.replace('_', '[_ -]')}(?: property set to)?"
            if re.search(before, text) is not None:
                wanted += [
                    (name, _value(each, name)) for each in envelopes if _quotes(text, before, _value(each, name))
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
    if _quotes(text, "exchange", exchange or _DEFAULT_EXCHANGE):
        return True
    _, found, rest = text.rpartition("exchange '")
    cut = rest.rstrip("…")
    return found != "" and len(cut) > 100 and printable(exchange).startswith(cut)


def _quotes(text: str, before: str, value: object) -> bool:
    """Whether the text has the value in quotes behind the pattern `before`; a password in it is masked in the text."""
    shown = printable(str(value))
    for said in re.findall(rf"{before} '(.*?)'(?!\w)", text):
        if said == shown:
            return True
        if MASKED in said and re.fullmatch(".+".join(map(re.escape, said.split(MASKED))), shown) is not None:
            return True
    return False


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
        #: Number of remembered targets in each family.
        self._families: Counter[Family] = Counter()
        #: The distrusted families, and the keys in them that the broker has taken since; the oldest comes first.
        self._distrusted: set[Family] = set()
        self._trusted: dict[tuple[str, str], None] = {}
        self._too_large: Fault | None = None
        #: The largest size that the broker takes; infinite until it refuses a size.
        self.max_size: float = math.inf
        #: Whether the refusal of any exchange, topic or property is remembered: then `of` is called for each message.
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
        if self._by_target.pop(target, None) is None and target.family is not None:
            self._families[target.family] += 1
            if self._families[target.family] > 1:
                self._distrusted.add(target.family)
        self._by_target[target] = _Memory(fault, now + self._memory, now + PROBE_EVERY)
        if len(self._by_target) > self._limit:
            self._forget(next(iter(self._by_target)))

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
        """Return the refusal that is remembered for this message. Unlike `of`, this does not make it a probe."""
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

    def doubt(self, envelope: Envelope) -> tuple[str, str] | None:
        """Return the key under which a message has to be introduced although its exchange is covered.

        None: an introduction is not necessary.

        A refusal of exactly this exchange and routing key, or of one of its properties, is remembered, or is to be expected.
        """
        if any(target in self._by_target for target in self._targets(envelope)[1:]):
            return envelope.exchange, envelope.routing_key
        if not self._distrusted:
            return None
        return next((key for key in self._distrusted_keys(envelope) if key not in self._trusted), None)

    def _distrusted_keys(self, envelope: Envelope) -> Iterator[tuple[str, str]]:
        if ("topic", envelope.exchange) in self._distrusted:
            yield envelope.exchange, envelope.routing_key
        for name in self._properties:
            if ("property", name) in self._distrusted and (value := _value(envelope, name)) is not None:
                yield name, str(value)

    def passed(self, delivery: Delivery) -> None:
        """The broker has taken a message to this exchange and routing key, with these properties."""
        for target in self._targets(delivery.envelope):
            self._forget(target)
        for key in self._distrusted_keys(delivery.envelope) if self._distrusted else ():
            self._trusted[key] = None
            if len(self._trusted) > self._limit:
                del self._trusted[next(iter(self._trusted))]

    def _forget(self, target: Target) -> None:
        if self._by_target.pop(target, None) is None:
            return
        family = target.family
        if family is not None:
            self._families[family] -= 1
            if not self._families[family]:
                del self._families[family]
                self._distrusted.discard(family)
        self.active = bool(self._by_target)
        if not self.active:
            self._properties.clear()
            self._trusted.clear()

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
        self._families.clear()
        self._distrusted.clear()
        self._trusted.clear()
        self.new.clear()
        self.max_size, self._too_large = math.inf, None
        self.active = False

    def concern(self, envelope: Envelope) -> bool:
        """Whether a refusal is remembered, or to be expected, that is about messages with this envelope, whatever their size."""
        return self.active and (Target(envelope.exchange) in self._by_target or self.doubt(envelope) is not None)

    def _targets(self, envelope: Envelope) -> list[Target]:
        """Return the targets that a refusal of messages with this envelope can be remembered for."""
        targets = [Target(envelope.exchange), Target(envelope.exchange, envelope.routing_key)]
        for name in self._properties:
            value = _value(envelope, name)
            if value is not None:
                targets.append(Target(with_property=(name, value)))
        return targets
