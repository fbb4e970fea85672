"""Destinations: a circuit breaker for each exchange and routing key whose messages the broker nacks.

A nack says that one queue refuses a message, a full one for instance. It says nothing about the connection. So nacks count
against their destination alone. `threshold` nacks in a row open the destination's breaker: new messages to it are refused
with `CircuitOpen` for `cooldown` seconds, then `probes` at a time are let in, and an ack closes it. Accepted messages are
written in any case. At most `limit` destinations are remembered; then the one longest without a nack is forgotten.
"""

from __future__ import annotations

from warrener._publishing.ledger import Delivery
from warrener.errors import CircuitOpen, printable
from warrener.machine import Breaker
from warrener.machine.breaker import admit, failed, released, retry_after, succeeded
from warrener.records import Receipt

__all__ = ["Destination", "Destinations", "described", "of"]

Destination = tuple[str, str]


def described(destination: Destination) -> str:
    """Return the words for a destination."""
    exchange, key = destination
    where = f"exchange {printable(exchange)!r}" if exchange else "the default exchange"
    return f"{where}, routing key {printable(key)!r}"


class Destinations:
    """The breakers of destinations with nacks. `breaker` is a closed one with the settings of the user; None: off."""

    def __init__(self, breaker: Breaker | None, limit: int) -> None:
        #: Whether any destination is remembered, so that each outcome has to be told.
        self.active = False
        self._breaker = breaker
        self._limit = limit
        #: In the order of the last nack.
        self._breakers: dict[Destination, Breaker] = {}

    def refusal(self, delivery: Delivery, now: float) -> CircuitOpen | None:
        """Ask the breaker of the message's destination. None: the message may be accepted, perhaps as its probe."""
        destination = of(delivery)
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
            f"the circuit breaker of its destination is open ({described(destination)}); ask again in {wait:.3g} s",
            retry_after=wait,
        )

    def ended(self, delivery: Delivery, now: float) -> None:
        """A message has its outcome; a nack was told before."""
        destination, permit = of(delivery), delivery.destination_permit
        if (breaker := self._breakers.get(destination)) is not None:
            if type(delivery.outcome) is Receipt:
                breaker = succeeded(breaker, permit, now)
                if breaker.state == "closed":
                    del self._breakers[destination]
                    self.active = bool(self._breakers)
                else:
                    self._breakers[destination] = breaker
            elif permit is not None:
                self._breakers[destination] = released(breaker, permit)
        delivery.destination_permit = None

    def nacked(self, delivery: Delivery, now: float) -> None:
        """The broker has nacked a message, whether it is written again or not."""
        if self._breaker is None:
            return
        destination = of(delivery)
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
        """The message was not written, or its caller left: a probe gives its permit back."""
        permit, delivery.destination_permit = delivery.destination_permit, None
        breaker = self._breakers.get(of(delivery))
        if permit is not None and breaker is not None:
            self._breakers[of(delivery)] = released(breaker, permit)

    def remembers(self, destination: Destination) -> bool:
        """Whether the broker has nacked messages to the destination since the last ack."""
        return destination in self._breakers

    def is_open(self, destination: Destination) -> bool:
        """Whether the destination's breaker is open or half open."""
        breaker = self._breakers.get(destination)
        return breaker is not None and breaker.state != "closed"

    def open(self) -> list[Destination]:
        """Return the destinations whose breaker is open or half open; the last one nacked comes last."""
        return [destination for destination, breaker in self._breakers.items() if breaker.state != "closed"]


def of(delivery: Delivery) -> Destination:
    """Return the destination of a message."""
    return delivery.envelope.exchange, delivery.envelope.routing_key
