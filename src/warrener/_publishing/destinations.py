"""Destinations: a circuit breaker for each exchange and routing key whose messages the broker nacks.

A nack says that one queue refuses a message, a full one for instance. It says nothing about the connection. So nacks count
against their destination alone. `threshold` nacks in a row open the destination's breaker: new messages to it are refused
with `CircuitOpen` for `cooldown` seconds, then `probes` at a time are let in, and an ack closes it. Accepted messages are
written in any case. With ``breaker_scope="exchange"`` all messages to one exchange share a breaker, and with `Breaker.slow` a late
confirm counts as a nack does. At most `limit` destinations are remembered; then the one longest without a nack is forgotten.
"""

from __future__ import annotations

import math
from typing import Literal

from warrener._publishing.ledger import Delivery
from warrener.errors import CircuitOpen, printable
from warrener.machine import Breaker
from warrener.machine.breaker import admit, failed, released, retry_after, spotless, succeeded
from warrener.records import Envelope, Receipt

__all__ = ["Destination", "Destinations", "described", "of"]

#: An exchange and a routing key; None stands for every routing key.
Destination = tuple[str, str | None]
Scope = Literal["destination", "exchange"]


def described(destination: Destination) -> str:
    """Return the words for a destination."""
    exchange, key = destination
    where = f"exchange {printable(exchange)!r}" if exchange else "the default exchange"
    return where if key is None else f"{where}, routing key {printable(key)!r}"


class Destinations:
    """The breakers of destinations with nacks. `breaker` is a closed one with the settings of the user; None: off."""

    def __init__(self, breaker: Breaker | None, limit: int, scope: Scope = "destination") -> None:
        self._slow = math.inf if breaker is None or breaker.slow is None else breaker.slow
        #: Whether any destination is remembered, or slow confirms count, so that each outcome has to be told.
        self.active = self._slow < math.inf
        self._scope = scope
        self._breaker = breaker
        self._limit = limit
        #: In the order of the last nack.
        self._breakers: dict[Destination, Breaker] = {}

    def refusal(self, delivery: Delivery, now: float) -> CircuitOpen | None:
        """Ask the breaker of the message's destination. None: the message may be accepted, perhaps as its probe."""
        destination = self._of(delivery)
        breaker = self._breakers.get(destination)
        if breaker is None or breaker.state == "closed":
            return None
        after, permit = admit(breaker, now)
        self._breakers[destination] = after
        if permit is not None:
            delivery.destination_permit = permit
            return None
        wait = retry_after(after, now)
        return CircuitOpen(
            delivery.message_id,
            f"the circuit breaker of its destination is open ({described(destination)}); publish again in {wait:.3g} s",
            retry_after=wait,
        )

    def ended(self, delivery: Delivery, now: float) -> None:
        """A message has its outcome. If the broker nacked it, `nacked` was called before."""
        destination, permit = self._of(delivery), delivery.destination_permit
        confirmed = type(delivery.outcome) is Receipt
        if confirmed and now - delivery.published_at > self._slow:
            self._failed(delivery, now)
        elif (breaker := self._breakers.get(destination)) is not None:
            if confirmed:
                breaker = succeeded(breaker, permit, now)
                if spotless(breaker, now):
                    del self._breakers[destination]
                    self.active = bool(self._breakers) or self._slow < math.inf
                else:
                    self._breakers[destination] = breaker
            elif permit is not None:
                self._breakers[destination] = released(breaker, permit)
        delivery.destination_permit = None

    def nacked(self, delivery: Delivery, now: float) -> None:
        """The broker has nacked a message, whether it is written again or not."""
        self._failed(delivery, now)

    def _failed(self, delivery: Delivery, now: float) -> None:
        if self._breaker is None:
            return
        destination = self._of(delivery)
        breaker = self._breakers.pop(destination, self._breaker)
        permit = delivery.destination_permit
        if permit is not None or breaker.state != "half_open":
            breaker = failed(breaker, permit, now)
        delivery.destination_permit = None
        self._breakers[destination] = breaker
        self.active = True
        if len(self._breakers) > self._limit:
            del self._breakers[next(iter(self._breakers))]

    def left(self, delivery: Delivery) -> None:
        """The message was not written, or its publisher was cancelled: a probe gives its permit back."""
        permit, delivery.destination_permit = delivery.destination_permit, None
        destination = self._of(delivery)
        breaker = self._breakers.get(destination)
        if permit is not None and breaker is not None:
            self._breakers[destination] = released(breaker, permit)

    def wants_outcomes(self, envelope: Envelope) -> bool:
        """Whether each outcome of messages with this envelope has to be told: it can change a breaker."""
        address = (envelope.exchange, envelope.routing_key if self._scope == "destination" else None)
        return self._slow < math.inf or address in self._breakers

    def is_open(self, delivery: Delivery) -> bool:
        """Whether the breaker of the message's destination is open or half open."""
        breaker = self._breakers.get(self._of(delivery))
        return breaker is not None and breaker.state != "closed"

    def _of(self, delivery: Delivery) -> Destination:
        """Return the destination under which the message is counted."""
        return of(delivery) if self._scope == "destination" else (delivery.envelope.exchange, None)

    def open(self) -> list[Destination]:
        """Return the destinations whose breaker is open or half open; the last one nacked comes last."""
        return [destination for destination, breaker in self._breakers.items() if breaker.state != "closed"]


def of(delivery: Delivery) -> tuple[str, str]:
    """Return the destination of a message."""
    return delivery.envelope.exchange, delivery.envelope.routing_key
