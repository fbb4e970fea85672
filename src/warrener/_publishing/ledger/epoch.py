"""`Epoch`: one open publishing channel of one link, its delivery tags, and which publish a return belongs to."""

from __future__ import annotations

import hashlib

from warrener._publishing.ledger.delivery import Delivery
from warrener._publishing.ledger.queues import SLACK
from warrener.records import Lane, Returned

__all__ = ["Epoch", "may_be"]


class Epoch:
    """One open publishing channel of the present link: its tags, and the publishes that wait for an answer.

    Tags count 1, 2, 3 … within an epoch. `multiple` covers the outstanding tags up to its own; the pointer to the lowest
    outstanding tag keeps that, and finding the oldest publish, at O(1) per message.
    """

    __slots__ = (
        "channel", "checked", "indexed", "lane", "last", "lowest", "open_ids", "open_tokens", "outstanding", "watched",
    )  # fmt: skip

    def __init__(self, lane: Lane, channel: int) -> None:
        self.lane = lane
        self.channel = channel
        #: In order of tag.
        self.outstanding: dict[int, Delivery] = {}
        #: The last tag assigned.
        self.last = 0
        #: No tag below this one is outstanding; `oldest` raises it.
        self.lowest = 1
        #: The highest tag that the broker has answered or returned. It takes the publishes of a channel in order and checks
        #: each before the next one, so no publish up to this tag can be the cause of a close.
        self.checked = 0
        #: The highest tag whose message was found to be overdue.
        self.watched = 0
        #: Open attempts by message_id and by token, kept from the first return on. An attempt with an answer stays in the
        #: index until the next `make_index`.
        self.open_ids: dict[str, list[Delivery]] | None = None
        self.open_tokens: dict[str, Delivery] = {}
        self.indexed = 0

    def add(self, delivery: Delivery, tag: int, now: float) -> None:
        """Note that the link has taken the message under this tag."""
        self.last = tag
        self.outstanding[tag] = delivery
        delivery.epoch = self
        delivery.tag = tag
        delivery.published_at = now
        if self.open_ids is not None:
            self.index(delivery)

    def take(self, tag: int, multiple: bool) -> list[Delivery]:
        """Take out the publishes that an ack or a nack of `tag` answers, in order of tag.

        Tag 0 and tags that were never assigned answer nothing.
        """
        take = self.outstanding.pop
        if self.checked < tag <= self.last:
            self.checked = tag
        if not multiple:
            delivery = take(tag, None)
            return [] if delivery is None else [delivery]
        if not 0 < tag <= self.last:
            return []
        tags = range(self.lowest, tag + 1)
        self.lowest = max(self.lowest, tag + 1)
        return [delivery for each in tags if (delivery := take(each, None)) is not None]

    def oldest(self) -> Delivery | None:
        """Return the outstanding publish with the lowest tag."""
        outstanding = self.outstanding
        if not outstanding:
            self.lowest = self.last + 1
            return None
        while self.lowest not in outstanding:
            self.lowest += 1
        return outstanding[self.lowest]

    def unwatched(self) -> Delivery | None:
        """Return the oldest outstanding publish that was not found to be overdue."""
        outstanding = self.outstanding
        if not outstanding:
            return None
        tag = max(self.watched + 1, self.lowest)
        while tag <= self.last:
            delivery = outstanding.get(tag)
            if delivery is not None:
                self.watched = tag - 1
                return delivery
            tag += 1
        self.watched = self.last
        return None

    # --- returns ----------------------------------------------------------------------------------------------------

    def index(self, delivery: Delivery) -> None:
        """Make an outstanding publish findable by its message_id and its token."""
        self.indexed += 1
        if self.open_ids is None or self.indexed > 2 * len(self.outstanding) + SLACK:
            self.make_index()
            return
        self.open_ids.setdefault(delivery.message_id, []).append(delivery)
        if delivery.token is not None:
            self.open_tokens[delivery.token] = delivery

    def make_index(self) -> dict[str, list[Delivery]]:
        """Index the publishes that are outstanding now, and no others."""
        ids: dict[str, list[Delivery]] = {}
        for delivery in self.outstanding.values():
            ids.setdefault(delivery.message_id, []).append(delivery)
        self.open_ids = ids
        self.open_tokens = {each.token: each for each in self.outstanding.values() if each.token is not None}
        self.indexed = len(self.outstanding)
        return ids

    def match(self, returned: Returned) -> Delivery | None:
        """Return the one open attempt that the return is certainly about, or None.

        A token of ours decides. Without one, exactly one open attempt must carry the message_id, and exchange, routing key
        and body must agree.
        """
        ids = self.make_index() if self.open_ids is None else self.open_ids
        if returned.token is not None:
            owner = self.open_tokens.get(returned.token)
            if owner is not None and owner.epoch is self:
                return owner
        if returned.message_id is None:
            return None
        # A message that was written twice is here once, as its later attempt: a return of the earlier one has come before.
        listed = dict.fromkeys(ids.get(returned.message_id, ()))
        carriers = [each for each in listed if each.epoch is self and not _superseded(each)]
        if len(carriers) != 1 or not _agrees(carriers[0], returned):
            return None
        return carriers[0]


def _superseded(delivery: Delivery) -> bool:
    """Whether this is an earlier attempt of a message that was written again in the same epoch."""
    return delivery.earlier_of is not None and delivery.earlier_of.epoch is delivery.epoch


def may_be(delivery: Delivery, returned: Returned) -> bool:
    """Whether an unmatched return could belong to this attempt. A broker may change neither properties nor address."""
    envelope = delivery.envelope
    return (
        envelope.mandatory
        and delivery.returned is None
        and envelope.exchange == returned.exchange
        and envelope.routing_key == returned.routing_key
        and returned.message_id in (None, delivery.message_id)
    )


def _agrees(delivery: Delivery, returned: Returned) -> bool:
    envelope = delivery.envelope
    return (
        envelope.mandatory
        and envelope.exchange == returned.exchange
        and envelope.routing_key == returned.routing_key
        and delivery.size == returned.body_size
        and (not returned.body_hash or returned.body_hash == hashlib.blake2b(delivery.body, digest_size=16).digest())
    )
