"""A guided walk over machine, sender and ledger together, with a record of the wire as the oracle.

The walks of the machine and of the ledger have a model each; what lies between them (permits of the breaker, confirms that
prove a link, links that die under messages, closing) is walked here. The world keeps only what an observer would write
down: what was handed to which link, what the broker said about it, when callers came and left. From that list alone it
says, each time anew, what each caller may have been told, and how many failures there were in a row.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.ledger.driving import books_balance, returned_of
from warrener._publishing.admission import Admission
from warrener._publishing.destinations import Destinations
from warrener._publishing.ledger import Delivery, Ledger, Ticket
from warrener._publishing.sender import Sender
from warrener._retry_rules import RetryRules
from warrener.errors import Fault, FaultKind, Nacked, PublishError, Unconfirmed
from warrener.machine import Backoff, Breaker, Permit, Policy, effects, events, initial, retry_after, states, transition
from warrener.records import Envelope, Lane, Receipt

LOST = Fault(FaultKind.CONNECTION_LOST, "connection reset")
REFUSED = Fault(FaultKind.UNREACHABLE, "connection refused")
SHUTDOWN = Fault(FaultKind.CLOSED_BY_BROKER, "CONNECTION_FORCED", reply_code=320)
CLOSED_BY_US = Fault(FaultKind.CLOSED, "closed")

POLICY = Policy(
    backoff=Backoff(jitter=0, initial=1, cap=4, attempts=4),
    breaker=Breaker(threshold=3, cooldown=6.0),
    stable_for=5.0,
    drain_timeout=8.0,
    close_timeout=2.0,
    abort_timeout=1.0,
)
CONFIRM_TIMEOUT = 10.0
MAX_BUFFERED, MAX_IN_FLIGHT = 6, 5

QUEUE = Envelope(routing_key="q")

mostly = st.sampled_from([True, True, True, False])


Message = Any
"""A `Delivery` or a `Member`."""


@define(eq=False)
class Attempt:
    """One message handed to one link: what an observer of the wire writes down."""

    delivery: Message
    link: int
    channel: int
    tag: int
    returned: bool = False
    #: "open", then "acked", "nacked", "refused", "lost" (it may have left) or "unsent".
    fate: str = "open"


class Member(Ticket):
    """A message that was accepted into a batch, seen as a delivery: it becomes one when its flight is expanded."""

    envelope, body, size, token = Envelope(routing_key="q"), b"body", 4, None

    def __init__(self, world: Joint, timeout: float) -> None:
        super().__init__()
        self.world = world
        self.deadline = world.now + timeout
        self.message_id = ""
        self.on_wire = False
        self._receipt: Receipt | None = None

    def _or(self, name: str, value: Any) -> Any:
        return value if self.delivery is None else getattr(self.delivery, name)

    @property
    def outcome(self) -> Any:
        if self.code and self._receipt is None:
            outcome = self.world.sender.outcome(self)
            assert isinstance(outcome, Receipt)
            self._receipt = outcome
        return self._receipt or self._or("outcome", None)

    queue = property(lambda self: self._or("queue", None if self.on_wire else "a batch"))
    lane = property(lambda self: self._or("lane", Lane.MAIN))
    attempts = property(lambda self: self._or("attempts", int(self.on_wire)))
    permit = property(lambda self: self._or("permit", None))
    waiting = property(lambda self: self._or("waiting", not self.code))
    abandoned = property(lambda self: self._or("abandoned", False))


class ScriptedLink:
    """The link of the walk: takes what it is given, counts tags."""

    congested = False

    def __init__(self, number: int, world: Joint) -> None:
        self.number = number
        self.world = world
        self.channels = {Lane.MAIN: 1}
        self.opened = 1
        self.wants_suspects = False
        self.wants_to_pull = False
        self.tags = {1: 0}
        #: By channel, the highest tag that the broker has answered or returned.
        self.checked: dict[int, int] = {}
        self.offered_tags: dict[int, int] = {}

    def validate(self, *_args: object) -> None:
        return None

    def written(self, channel: int) -> int:
        return self.offered_tags.get(channel, self.tags[channel])

    def begun(self, channel: int) -> int:
        return self.written(channel)

    def abort(self, _fault: object) -> None:
        """The walk ends links by itself."""

    def open_suspect_channel(self) -> None:
        self.wants_suspects = True

    def request_pull(self) -> None:
        self.wants_to_pull = True

    def publish_batch(
        self, envelopes: list[Envelope], message_ids: Any, bodies: list[bytes], _tokens: Any = None
    ) -> int:
        assert len(envelopes) == len(message_ids) == len(bodies) > 0
        tags = [self.publish(Lane.MAIN, QUEUE, message_id, b"body", None) for message_id in message_ids]
        return tags[0]

    def publish(self, lane: Lane, _envelope: Envelope, message_id: str, _body: bytes, _token: str | None) -> int:
        channel = self.channels[lane]
        self.tags[channel] += 1
        self.world.written(self, lane, channel, self.tags[channel], message_id)
        return self.tags[channel]


class Parking:
    """Nobody really waits: the walk looks at outcomes."""

    leaves_late = False

    def __init__(self, world: Joint) -> None:
        self.clock = lambda: world.now

    def wake(self, delivery: Message) -> None:
        assert delivery.outcome is not None

    def land(self, tickets: list[Ticket], code: int) -> None:
        for place, ticket in enumerate(tickets):
            assert ticket.code == 0, "settled twice"
            ticket.code = code + place


@define
class Owner:
    """What a supervisor is to the sender: a mailbox in front of the machine."""

    world: Joint
    mailbox: deque[events.Event] = field(factory=deque)
    answer: Any = None

    @property
    def breaker_closed(self) -> bool:
        breaker = self.world.record.breaker
        return breaker is None or breaker.state == "closed"

    @property
    def wants_confirms(self) -> bool:
        record = self.world.record
        proven = isinstance(record.state, states.Up) and record.state.proven
        return isinstance(record.state, states.Up) and (not proven or record.failures > 0 or record.attempts > 0)

    def admit(self) -> Any:
        self.world.drain_mailbox()
        self.world.step_machine(events.AdmissionRequested(self.world.now))
        return self.answer

    def patience(self) -> float:
        assert self.world.record.breaker is not None
        return retry_after(self.world.record.breaker, self.world.now) or 1.0

    def holds(self, permit: Permit) -> bool:
        breaker = self.world.record.breaker
        return breaker is not None and breaker.generation == permit.generation

    def confirmed(self, link: int, permit: Permit | None) -> None:
        self.mailbox.append(events.PublishConfirmed(link, self.world.now, permit))

    def released(self, permit: Permit) -> None:
        self.mailbox.append(events.PermitReleased(permit, self.world.now))

    def channel_closed(self, link: int, fault: Fault) -> None:
        self.mailbox.append(events.ChannelClosed(link, fault, self.world.now))

    def blocked(self, link: int) -> None:
        self.mailbox.append(events.PublishingBlocked(link, self.world.now))

    def unblocked(self, link: int) -> None:
        self.mailbox.append(events.PublishingUnblocked(link, self.world.now))

    def confirm_overdue(self, link: int) -> None:
        self.mailbox.append(events.ConfirmOverdue(link, self.world.now))

    def settled(self, link: int) -> None:
        self.mailbox.append(events.InFlightSettled(link, self.world.now))

    def drained(self) -> None:
        self.mailbox.append(events.Drained(self.world.now))


class Joint(RuleBasedStateMachine):
    """One producer without its loop, and a broker that may do anything that a broker may do."""

    @initialize(at_least_once=st.booleans())
    def begin(self, at_least_once: bool) -> None:
        self.now = 100.0
        self.at_least_once = at_least_once
        self.record = initial()
        self.owner = Owner(self)
        #: A step has let publishers in, or made the breaker less strict; they are let in between steps.
        self.may_write = False
        self.ledger = Ledger(
            max_buffered=MAX_BUFFERED,
            max_buffered_bytes=10_000,
            max_in_flight=MAX_IN_FLIGHT,
            retry=RetryRules(unknown=at_least_once),
            confirm_timeout=CONFIRM_TIMEOUT,
        )
        parking: Any = Parking(self)
        owner: Any = self.owner
        self.admission = Admission(self.ledger, parking, owner, Destinations(None, 10), max_block=5.0)
        self.sender = Sender(
            self.ledger,
            parking,
            owner,
            self.admission,
            name="p",
            confirm_timeout=CONFIRM_TIMEOUT,
            tell=lambda _outcome: None,
        )
        #: Timers that run: when they are due, and what they say then.
        self.timers: dict[str, tuple[float, Callable[[float], events.Event]]] = {}
        self.dialed = 0
        self.listener: Any = None
        self.link: ScriptedLink | None = None
        self.blocked = False
        #: Told to close, or to abort with this fault.
        self.told: Fault | None = None
        self.finished = False
        self.stopped = False
        self.accepted: list[Message] = []
        #: By message_id.
        self.places: dict[str, int] = {}
        self.attempts: list[Attempt] = []
        self.outcomes: dict[Message, object] = {}
        self.failures = 0
        self.tell(events.StartRequested(self.now))

    # --- what a supervisor does

    def tell(self, event: events.Event) -> None:
        self.owner.mailbox.append(event)
        self.drain_mailbox()

    def drain_mailbox(self) -> None:
        while self.owner.mailbox:
            self.step_machine(self.owner.mailbox.popleft())
        if self.may_write:
            self.may_write = False
            self.sender.pump()

    def step_machine(self, event: events.Event) -> None:
        self.count(event)
        before = self.record
        step = transition(before, event, POLICY)
        self.record = step.record
        for effect in step.effects:
            self.perform(effect)
        if self.record is not before:
            self.ledger.settlement.last_fault = self.record.last_fault
            self.may_write |= self.breaker(before) != self.breaker(self.record) != "open"

    @staticmethod
    def breaker(record: Any) -> str:
        return "closed" if record.breaker is None else record.breaker.state

    def perform(self, effect: effects.Effect) -> None:  # noqa: C901 - one case for each effect
        sender = self.sender
        match effect:
            case effects.Dial(link):
                assert self.link is None
                assert self.dialed == 0, "two dials"
                sender.accept_again()
                self.dialed, self.told = link, None
                self.listener = sender.expect_link(link)
            case effects.ReportSettled(link):
                sender.report_settled(link)
            case effects.StartPreferTimer(link, delay):
                self.timers["prefer"] = (self.now + delay, lambda at: events.PreferTimerFired(link, at))
            case effects.StartHandOverTimer(link, delay):
                self.timers["hand_over"] = (self.now + delay, lambda at: events.HandOverTimerFired(link, at))
            case effects.StartPublishing(link):
                sender.start_publishing(link)
                self.may_write = True
            case effects.PausePublishing(link):
                sender.pause_publishing(link)
            case effects.StopPublishing(_, fault):
                self.write_off()
                sender.stop_publishing(fault)
            case effects.FailPending(fault):
                sender.fail_pending(fault)
            case effects.RefusePublishing(fault):
                sender.refuse_publishing(fault)
            case effects.CloseLink():
                self.told = self.told or CLOSED_BY_US
            case effects.AbortLink(_, fault):
                self.told = self.told or fault
            case effects.StartRetryTimer(link, _, longest):
                self.timers["retry"] = (self.now + longest, lambda at: events.RetryTimerFired(link, at))
            case effects.StartStableTimer(link, delay):
                self.timers["stable"] = (self.now + delay, lambda at: events.StableTimerFired(link, at))
            case effects.StartCooldownTimer(generation, delay):
                self.timers["cooldown"] = (self.now + delay, lambda at: events.CooldownTimerFired(generation, at))
            case effects.StartDrainTimer(delay):
                self.timers["drain"] = (self.now + delay, events.DrainTimerFired)
            case effects.StartCloseTimer(link, delay):
                self.timers["close"] = (self.now + delay, lambda at: events.CloseTimerFired(link, at))
            case effects.CancelTimer(timer):
                self.timers.pop(timer, None)
            case effects.Admit(permit):
                self.owner.answer = permit
            case effects.Refuse(retry_after):
                self.owner.answer = retry_after
            case effects.Finish():
                self.finished = True
            case effects.ReplayTopology() | effects.Announce():
                pass

    def keep_time(self) -> None:
        """What the sender's timer does at its instant."""
        self.sender.settling.settle(self.ledger.expire(self.now))
        if self.ledger.silent(self.now) and self.sender.settling.number:
            self.owner.confirm_overdue(self.sender.settling.number)
        self.sender.pump()
        self.drain_mailbox()

    # --- what the observer writes down

    def count(self, event: events.Event) -> None:
        """Failures in a row: those of links here, those of publishes where the broker answers."""
        state = self.record.state
        if getattr(event, "link", state.link) != state.link or isinstance(state, (states.Closing, states.Closed)):
            return
        alive = isinstance(state, (states.Restoring, states.Up))
        match event:
            case events.DialFailed() if isinstance(state, states.Dialing):
                self.failures += 1
            case events.LinkLost(fault=fault) if alive:
                self.failures += not fault.orderly
            case events.ConfirmOverdue() if isinstance(state, states.Up) and not state.blocked:
                self.failures += 1
            case _:
                pass

    def written(self, link: ScriptedLink, lane: Lane, channel: int, tag: int, message_id: str) -> None:
        """The sender hands a message over: only to the live link, only with the breaker's leave, only in order."""
        state = self.record.state
        assert link is self.link
        assert isinstance(state, states.Up), state
        assert not state.blocked
        place = self.places[message_id]
        delivery = self.accepted[place]
        breaker = self.breaker(self.record)
        assert breaker != "open"
        if breaker == "half_open":
            assert delivery.permit is not None
            assert delivery.permit.number in self.record.breaker.outstanding, "a permit that no longer counts"
            assert delivery.permit.generation == self.record.breaker.generation
        mine = [each for each in self.attempts if each.delivery is delivery and each.fate != "unsent"]
        assert all(each.fate == "lost" for each in mine), "answered, and sent again"
        assert self.at_least_once or not mine
        if lane is Lane.MAIN:
            before = self.accepted[:place]
            assert not any(each.queue is not None and each.lane is Lane.MAIN for each in before), "overtaken"
        assert delivery.outcome is None
        if isinstance(delivery, Member):
            delivery.on_wire = True
        self.attempts.append(Attempt(delivery, link.number, channel, tag))

    def write_off(self) -> None:
        """The sender asks the link how far it got, and no answer of the broker counts any more."""
        for attempt in self.open_attempts():
            attempt.fate = "lost" if attempt.tag <= self.newest.written(attempt.channel) else "unsent"

    def open_attempts(self, channel: int | None = None) -> list[Attempt]:
        return [each for each in self.attempts if each.fate == "open" and channel in (None, each.channel)]

    # --- what may happen, and how often

    @rule(draw=st.data())
    def step(self, draw: st.DataObject) -> None:
        """Draw one of the things that can happen now; nine in ten concern the live link, where there is one."""
        actions: list[tuple[int, Callable[[st.DataObject], None]]] = [(2, self.time_passes)]
        if self.finished:
            actions = [(1, self.time_passes), (1, self.publish), (1, self.say_something_late)]
        else:
            actions += [(6, self.publish), (1, self.leave), (1, self.say_something_late), (1, self.hint)]
            if self.link is None and self.dialed:
                actions += [(14, self.link_opens), (5, self.dial_fails)]
            elif self.link is not None:
                actions += [(2, self.link_ends), (1, self.block_or_unblock), (1, self.channel_closes)]
                if self.told is not None:
                    actions.append((10, self.link_ends))
                elif isinstance(self.record.state, states.Restoring):
                    actions += [(16, self.topology_restored), (4, self.block_or_unblock)]
                if self.blocked:
                    actions.append((5, self.block_or_unblock))
                if self.link.wants_suspects or Lane.MAIN not in self.link.channels:
                    actions.append((12, self.channel_opens))
                if self.link.wants_to_pull:
                    actions.append((12, self.pull))
            if self.open_attempts():
                actions += [(12, self.answer), (2, self.bounce), (1, self.wait_for_a_confirm)]
            if not self.stopped and draw.draw(st.integers(0, 9)) == 0:
                actions.append((2, self.stop))
            if "retry" in self.timers:
                actions.append((8, self.wait_for_the_dial))
        weighted = [action for weight, action in actions for _ in range(weight)]
        draw.draw(st.sampled_from(weighted), label="action")(draw)
        self.drain_mailbox()
        self.keep_time()
        if self.finished:
            self.write_off()
            self.sender.close()

    def pull(self, _draw: st.DataObject) -> None:
        assert self.link is not None
        self.link.wants_to_pull = False
        self.listener.pull()

    def joins(self, timeout: float) -> bool:
        """A message joins a batch, if the sender lets it."""
        member = Member(self, timeout)
        number = self.sender.join(QUEUE, b"body", member, timeout)
        if number:
            member.message_id = self.sender.message_id(number)
            self.places[member.message_id] = len(self.accepted)
            self.accepted.append(member)
            member.waiter = member
        return number > 0

    def publish(self, draw: st.DataObject) -> None:
        for _ in range(draw.draw(st.integers(1, 3))):
            timeout = draw.draw(st.sampled_from([2.0, 9.0, 40.0, 40.0, math.inf]))
            if draw.draw(mostly) and self.joins(timeout):
                continue
            number = len(self.accepted)
            self.places[str(number)] = number
            delivery = Delivery(Envelope(routing_key="q"), b"body", str(number), self.now + timeout, f"t{number}")
            self.accepted.append(delivery)
            refusal = self.admission.refused(delivery)
            if refusal is None and self.admission.try_accept(delivery):
                self.sender.accepted(delivery, self.now)
                if delivery.outcome is None:
                    delivery.waiter = delivery
                continue
            self.admission.give_back(delivery)
            self.accepted.pop()
            if refusal is not None:
                assert not refusal.may_have_been_delivered
                assert self.stopped or self.finished or self.breaker(self.record) != "closed" or self.gave_up
            break

    @property
    def gave_up(self) -> bool:
        return isinstance(self.record.state, states.GaveUp)

    def leave(self, draw: st.DataObject) -> None:
        waiting = [each for each in self.accepted if each.waiter is not None]
        if waiting:
            one = draw.draw(st.sampled_from(waiting))
            if isinstance(one, Member):
                self.sender.leaving.left(one)
            else:
                self.sender.leaving.cancelled(one)

    def time_passes(self, draw: st.DataObject) -> None:
        self.wait(draw.draw(st.sampled_from([0.1, 0.5, 1.0, 3.0])))

    def wait_for_the_dial(self, _draw: st.DataObject) -> None:
        self.wait(self.timers["retry"][0] - self.now)

    def wait_for_a_confirm(self, _draw: st.DataObject) -> None:
        self.wait(CONFIRM_TIMEOUT)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers:
            name = min(self.timers, key=lambda each: self.timers[each][0])
            at, event = self.timers[name]
            if at > end:
                break
            self.now = max(self.now, at)
            del self.timers[name]
            self.tell(event(self.now))
        self.now = end

    def hint(self, draw: st.DataObject) -> None:
        if self.gave_up or not draw.draw(mostly):
            self.tell(events.ReconnectRequested(self.now))

    def stop(self, draw: st.DataObject) -> None:
        self.stopped = True
        self.owner.mailbox.append(events.StopRequested(self.now, draw.draw(mostly)))
        self.sender.stop_accepting()

    # --- the link

    def link_opens(self, _draw: st.DataObject) -> None:
        self.link = self.newest = ScriptedLink(self.dialed, self)
        self.blocked = False
        self.listener.channel_opened(Lane.MAIN, 1)
        self.sender.link_opened(self.link)  # type: ignore[arg-type]
        self.tell(events.LinkOpened(self.dialed, self.now))

    def dial_fails(self, _draw: st.DataObject) -> None:
        link, self.dialed = self.dialed, 0
        self.sender.link_ended()
        self.tell(events.LinkClosed(link, self.now) if self.told else events.DialFailed(link, REFUSED, self.now))

    def topology_restored(self, _draw: st.DataObject) -> None:
        self.tell(events.TopologyRestored(self.dialed, self.now))

    def link_ends(self, draw: st.DataObject) -> None:
        """Lost, shut down by the broker, or closed as it was told to; what the last send held may not have left."""
        assert self.link is not None
        link, self.link, self.dialed = self.link, None, 0
        for channel, last in link.tags.items():
            unsent = 0 if draw.draw(mostly) else draw.draw(st.integers(0, 2))
            link.offered_tags[channel] = max(0, last - unsent)
        self.sender.link_ended()
        fault = draw.draw(st.sampled_from([LOST, LOST, SHUTDOWN])) if self.told is None else self.told
        if fault is CLOSED_BY_US:
            self.tell(events.LinkClosed(link.number, self.now))
        else:
            self.tell(events.LinkLost(link.number, fault, self.now))

    def block_or_unblock(self, _draw: st.DataObject) -> None:
        self.blocked = not self.blocked
        if self.blocked:
            self.listener.blocked("memory")
        else:
            self.listener.unblocked()

    def channel_closes(self, draw: st.DataObject) -> None:
        link = self.link
        if link is None or not link.channels or not isinstance(self.record.state, states.Up):
            return
        lane = draw.draw(st.sampled_from(list(link.channels)))
        channel = link.channels.pop(lane)
        link.wants_suspects = link.wants_suspects and lane is Lane.MAIN
        code = draw.draw(st.sampled_from([404, 404, 541]))
        last = link.tags[channel]
        written = last if draw.draw(mostly) else draw.draw(st.integers(max(0, last - 2), last))
        link.offered_tags[channel] = written
        there = self.open_attempts(channel)
        # The broker takes publishes in order: an answer or a return shows that it has checked those before it, too.
        checked = link.checked.get(channel, 0)
        seen = [each for each in there if checked < each.tag <= written and not each.returned]
        for attempt in there:
            attempt.fate = "lost" if attempt.tag <= written else "unsent"
        if len(seen) == 1 and code == 404:
            seen[0].fate = "refused"
        fault = Fault(FaultKind.CHANNEL_CLOSED, "closed", reply_code=code)
        self.listener.channel_closed(lane, channel, fault, written)

    def channel_opens(self, _draw: st.DataObject) -> None:
        link = self.link
        if link is None:
            return
        lane = Lane.SUSPECT if Lane.MAIN in link.channels else Lane.MAIN
        if lane is Lane.SUSPECT and (Lane.SUSPECT in link.channels or not link.wants_suspects):
            return
        link.opened += 1
        link.wants_suspects = link.wants_suspects and lane is Lane.MAIN
        link.channels[lane] = link.opened
        link.tags[link.opened] = 0
        self.listener.channel_opened(lane, link.opened)

    # --- the broker

    def answer(self, draw: st.DataObject) -> None:
        """Ack or nack one, or all of its channel up to it."""
        one = draw.draw(st.sampled_from(self.open_attempts()))
        multiple, acked = draw.draw(st.booleans()), draw.draw(mostly)
        there = self.open_attempts(one.channel)
        answered = [each for each in there if each is one or (multiple and each.tag < one.tag)]
        for attempt in answered:
            attempt.fate = "acked" if acked else "nacked"
        self.note_checked(one)
        if acked:
            self.failures = 0
            self.listener.confirmed(one.channel, one.tag, multiple)
        else:
            self.listener.nacked(one.channel, one.tag, multiple)

    def note_checked(self, attempt: Attempt) -> None:
        assert self.link is not None
        checked = self.link.checked
        checked[attempt.channel] = max(attempt.tag, checked.get(attempt.channel, 0))

    def bounce(self, draw: st.DataObject) -> None:
        one = draw.draw(st.sampled_from(self.open_attempts()))
        one.returned = True
        self.note_checked(one)
        self.listener.returned(one.channel, returned_of(one.delivery))

    def say_something_late(self, draw: st.DataObject) -> None:
        """A report of a link that has ended: it may come at any time, and must change nothing."""
        if self.link is not None or self.dialed or self.listener is None:
            return
        before = self.record
        if draw.draw(st.booleans()):
            self.listener.confirmed(1, 1, True)
        else:
            self.listener.channel_closed(Lane.MAIN, 1, LOST, 1)
        self.drain_mailbox()
        assert self.record is before

    # --- what is true after every step

    @invariant()
    def the_books_balance(self) -> None:
        """Every accepted message is settled or pending, once (R24, I5); the bounds hold (R8)."""
        if not hasattr(self, "ledger"):
            return
        books_balance(self.ledger, self.accepted)
        assert self.ledger.in_flight <= MAX_IN_FLIGHT
        assert len([each for each in self.accepted if each.queue is not None and not each.attempts]) <= (
            MAX_BUFFERED + MAX_IN_FLIGHT
        )

    @invariant()
    def outcomes_are_what_the_wire_says(self) -> None:
        """From the record of the wire alone: what may be told, and what must have been by now (R1, R2, R3, R5)."""
        if not hasattr(self, "ledger"):
            return
        tried: dict[Message, list[Attempt]] = {}
        for attempt in self.attempts:
            tried.setdefault(attempt.delivery, []).append(attempt)
        for delivery in self.accepted:
            self.judge(delivery, [each for each in tried.get(delivery, []) if each.fate != "unsent"])

    def judge(self, delivery: Message, attempts: list[Attempt]) -> None:
        outcome = delivery.outcome
        if delivery in self.outcomes:  # told, and judged by what was known then
            assert outcome is self.outcomes[delivery], "told twice"
            return
        if outcome is not None:
            self.outcomes[delivery] = outcome
        unanswered = sum(each.fate == "lost" and not each.returned for each in attempts)
        last = attempts[-1] if attempts else None
        if outcome is None:
            assert delivery.deadline > self.now or delivery.abandoned or not delivery.waiting
            assert last is None or last.fate in ("open", "lost"), "answered, and nobody was told"
            return
        if isinstance(outcome, Receipt):
            assert last is not None
            assert (last.fate, last.returned) == ("acked", False)
            assert outcome == Receipt(delivery.message_id, len(attempts), unanswered > 0, last.link)
            return
        assert isinstance(outcome, PublishError)
        if type(outcome) is Nacked:
            assert last is not None
            assert (last.fate, last.returned, unanswered) == ("nacked", False, 0)
        elif not outcome.may_have_been_delivered:
            assert unanswered == 0
            assert all(each.returned or each.fate == "refused" for each in attempts)
        else:
            assert attempts, "certainly not sent, and called unknown"
            # PublishRefused says so of a suspect whose first attempt was lost.
            assert isinstance(outcome, Unconfirmed) or unanswered > 0

    @invariant()
    def failures_in_a_row_agree(self) -> None:
        if hasattr(self, "record") and not isinstance(self.record.state, (states.Closing, states.Closed)):
            assert self.record.failures == self.failures

    @invariant()
    def permits_are_out_for_what_is_not_settled(self) -> None:
        """No half-open permit leaks: each one that is out belongs to a message that still waits (I26, I36)."""
        if not hasattr(self, "record") or isinstance(self.record.state, (states.Closing, states.Closed)):
            return
        breaker = self.record.breaker
        assert breaker is not None
        held = {
            each.permit.number
            for each in self.accepted
            if each.permit is not None and each.permit.generation == breaker.generation
        }
        assert breaker.outstanding <= held

    @invariant()
    def the_end_leaves_nothing(self) -> None:
        """Finished: no timer, no link, and nobody waits."""
        if getattr(self, "finished", False):
            assert not self.timers
            assert not self.ledger.pending
            assert self.ledger.in_flight == 0


Joint.TestCase.settings = settings(stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestJoint = Joint.TestCase
