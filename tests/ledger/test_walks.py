"""Long walks of the ledger beside the naive model, both delivery modes, nine steps in ten on the live link."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from warrener._publishing.ledger import Delivery
from warrener.errors import Fault, FaultKind
from warrener.records import Lane, Returned

from .driving import LOST, Bench, books_balance
from .model import Model, Note, said

MAX_IN_FLIGHT = 6
MAX_BUFFERED = 8
CONFIRM_TIMEOUT = 5.0

mostly = st.sampled_from([True, True, True, False])
#: message_id, routing key, mandatory, timeout.
messages = st.tuples(
    st.sampled_from([None, None, None, "a", "b"]),
    st.sampled_from(["q", "q", "r"]),
    mostly,
    st.sampled_from([1.0, 3.0, 20.0, 20.0, 20.0, math.inf]),
)


class Walk(RuleBasedStateMachine):
    """Each step does the same to the ledger and to the model, then both are compared.

    One rule that draws among weighted actions, not a rule per action: chosen evenly, sixty steps accepted four messages
    and confirmed one in four walks, and planted bugs got through.
    """

    @initialize(at_least_once=st.booleans())
    def begin(self, at_least_once: bool) -> None:
        self.bench = Bench(
            up=False,
            max_buffered=MAX_BUFFERED,
            max_in_flight=MAX_IN_FLIGHT,
            at_least_once=at_least_once,
            confirm_timeout=CONFIRM_TIMEOUT,
        )
        self.model = Model(at_least_once=at_least_once, max_in_flight=MAX_IN_FLIGHT, confirm_timeout=CONFIRM_TIMEOUT)
        self.ledger = self.bench.ledger
        self.ever: set[tuple[int, int, int]] = set()
        self.outcomes: dict[Delivery, object] = {}
        self.start_link()

    # --- helpers

    def compare(self, resolved: list[Delivery]) -> None:
        """The same deliveries got the same outcomes in this step, each for the first time (I4)."""
        numbers = {each: number for number, each in enumerate(self.bench.accepted)}
        assert sorted((numbers[each], said(each.outcome)) for each in resolved) == sorted(self.model.given)
        for each in resolved:
            assert each not in self.outcomes
            self.outcomes[each] = each.outcome
        self.model.given.clear()

    def connect(self, draw: st.DataObject) -> None:
        self.start_link()
        if draw.draw(mostly):
            self.write(draw)

    def start_link(self) -> None:
        self.bench.up()
        self.model.link += 1
        self.model.lanes = {"main": 1}
        self.model.last = {1: 0}
        self.model.open = True

    # --- what may happen, and how often

    @rule(draw=st.data())
    def step(self, draw: st.DataObject) -> None:
        """Draw one of the things that can happen now, nine times in ten something on the live link."""
        model = self.model
        actions: list[tuple[int, Callable[[st.DataObject], None]]] = [
            (8, self.publish),
            (1, self.cancel),
            (2, self.tick),
            (2, self.answer_anything),
        ]
        if model.open:
            actions += [(4, self.write), (1, self.block), (2, self.lose), (2, self.close_channel)]
            if model.paused:
                actions.append((4, self.block))
            if model.next() is not None:
                actions.append((1, self.refuse))
            if "main" not in model.lanes:
                actions.append((12, self.open_main))
            if model.suspects and "suspect" not in model.lanes:
                actions.append((8, self.open_suspect_channel))
            if "suspect" in model.lanes and any(note.lane == "suspect" for note in model.flight):
                actions.append((3, self.close_channel))
        else:
            actions += [(12, self.connect), (1, self.give_up)]
        if model.flight:
            actions += [(9, self.answer), (3, self.bounce)]
        weighted = [action for weight, action in actions for _ in range(weight)]
        draw.draw(st.sampled_from(weighted), label="action")(draw)

    # --- callers

    def publish(self, draw: st.DataObject) -> None:
        for _ in range(draw.draw(st.integers(1, 3))):
            assert self.ledger.full(4) == (len(self.model.fresh) >= MAX_BUFFERED)
            if self.ledger.full(4):
                break
            own_id, key, mandatory, timeout = draw.draw(messages)
            number = len(self.bench.accepted)
            token = f"t{number}" if own_id else None
            delivery = self.bench.accept(
                message_id=own_id, timeout=timeout, token=token, routing_key=key, mandatory=mandatory
            )
            self.model.accept(Note(number, delivery.message_id, key, mandatory, token, delivery.deadline))
        if draw.draw(mostly):
            self.write(draw)

    def cancel(self, draw: st.DataObject) -> None:
        if not self.bench.accepted:
            return
        # Mostly one that is still pending.
        notes = [note for note in self.model.notes if note.place != "done"] if draw.draw(mostly) else self.model.notes
        if not notes:
            return
        number = draw.draw(st.sampled_from(notes)).number
        delivery = self.bench.accepted[number]
        before = delivery.outcome
        assert self.ledger.cancel(delivery) == self.model.cancel(self.model.notes[number])
        self.compare([delivery] if delivery.outcome is not before else [])

    # --- the owner

    def write(self, draw: st.DataObject) -> None:
        self.expire()
        for _ in range(draw.draw(st.integers(1, 8))):
            note = self.model.next()
            delivery = self.ledger.next(self.bench.now)
            assert delivery is (None if note is None else self.bench.accepted[note.number])
            if note is None or delivery is None:
                return
            assert delivery.lane.value == note.lane
            self.bench.write(1)
            # Tags of an epoch are 1..n, in order, never reused (I6).
            epoch_tag = (self.model.link, self.model.lanes[note.lane], delivery.tag)
            assert epoch_tag not in self.ever
            assert delivery.tag == self.model.last[epoch_tag[1]] + 1
            self.ever.add(epoch_tag)
            self.model.sent(note, epoch_tag[1], delivery.tag, self.bench.now)

    def tick(self, draw: st.DataObject) -> None:
        self.bench.now += draw.draw(st.sampled_from([0.0, 0.1, 0.5, 0.5, 1.0, 4.0]))
        self.expire()
        assert self.ledger.expire(self.bench.now) == []
        self.ledger.look(self.bench.now, lambda channel: self.model.last[channel])
        self.model.look(self.bench.now)

    def expire(self) -> None:
        self.model.expire(self.bench.now)
        self.compare(self.ledger.expire(self.bench.now))

    def open_suspect_channel(self, draw: st.DataObject) -> None:
        assert self.ledger.wants_suspect_channel
        channel = self.bench.open(Lane.SUSPECT)
        self.model.lanes["suspect"] = channel
        self.model.last[channel] = 0
        self.write(draw)

    def refuse(self, draw: st.DataObject) -> None:
        self.expire()
        note = self.model.next()
        if note is not None:
            self.model.refuse(note)
            self.compare(self.ledger.refuse(self.bench.accepted[note.number], "too long"))

    # --- the broker

    def answer(self, draw: st.DataObject) -> None:
        note = draw.draw(st.sampled_from(self.model.flight))
        self.say(note.channel, note.tag, multiple=draw.draw(st.booleans()), acked=draw.draw(mostly))

    def answer_anything(self, draw: st.DataObject) -> None:
        """Settled tags, tag 0, tags never assigned, channels that are not open."""
        channel = draw.draw(st.sampled_from([*self.model.lanes.values(), 1, 2, 3]))
        tag = draw.draw(st.integers(-1, self.model.last.get(channel, 0) + 2))
        self.say(channel, tag, multiple=draw.draw(st.booleans()), acked=draw.draw(st.booleans()))

    def say(self, channel: int, tag: int, *, multiple: bool, acked: bool) -> None:
        if channel in self.model.lanes.values():
            self.model.answered(channel, tag, multiple, "C" if acked else "N", self.bench.now)
        fact = self.ledger.answers.confirmed if acked else self.ledger.answers.nacked
        self.compare(fact(channel, tag, multiple, self.bench.now))

    def bounce(self, draw: st.DataObject) -> None:
        note = draw.draw(st.sampled_from(self.model.flight))
        how = draw.draw(st.sampled_from(["own", "own", "own", "own", "stripped", "foreign", "anonymous", "nobody"]))
        if how == "own" and not note.mandatory:
            return
        token = {"own": note.token, "foreign": "zz"}.get(how)
        message_id = {"anonymous": None, "nobody": "zz"}.get(how, note.message_id)
        self.model.returned(note.channel, token, message_id, note.key)
        returned = Returned(312, "NO_ROUTE", "", note.key, message_id, token, 4)
        self.ledger.answers.returned(note.channel, returned)

    def written(self, draw: st.DataObject, channel: int) -> int:
        """Mostly everything; otherwise the last few tags had not left."""
        last = self.model.last.get(channel, 0)
        return last if draw.draw(mostly) else draw.draw(st.integers(max(0, last - 3), last))

    def close_channel(self, draw: st.DataObject) -> None:
        if not self.model.lanes:
            return
        name = draw.draw(st.sampled_from(sorted(self.model.lanes)))
        code = draw.draw(st.sampled_from([403, 404, 404, 406, 541]))
        written = self.written(draw, self.model.lanes[name])
        self.model.channel_closed(name, code, written)
        fault = Fault(FaultKind.CHANNEL_CLOSED, "closed", reply_code=code)
        self.compare(self.bench.close_channel(fault, lane=Lane(name), written=written))
        if name == "main" and draw.draw(mostly):
            self.open_main(draw)

    def open_main(self, draw: st.DataObject) -> None:
        channel = self.bench.open(Lane.MAIN)
        self.model.lanes["main"] = channel
        self.model.last[channel] = 0
        if draw.draw(mostly):
            self.write(draw)

    def block(self, draw: st.DataObject) -> None:
        if self.model.paused and draw.draw(mostly):
            self.ledger.resume(self.bench.now)
            self.model.resume(self.bench.now)
        elif draw.draw(mostly):
            self.ledger.pause()
            self.model.paused = True
        else:
            self.ledger.resume(self.bench.now)
            self.model.resume(self.bench.now)

    def lose(self, draw: st.DataObject) -> None:
        written = self.written(draw, self.model.lanes.get("main", 0))
        self.model.link_lost(written)
        self.compare(self.bench.lose(written=written))
        if draw.draw(mostly):
            self.connect(draw)

    def give_up(self, draw: st.DataObject) -> None:
        self.model.expire(self.bench.now)
        self.model.end_all("GaveUp")
        self.compare(self.ledger.give_up(LOST, self.bench.now))

    # --- what is true after every step

    @invariant()
    def counts_agree(self) -> None:
        """R24, I5, I34: every count is the model's; nothing beyond its bound."""
        if not hasattr(self, "model"):
            return
        model, ledger = self.model, self.ledger
        assert ledger.in_flight == len(model.flight) <= MAX_IN_FLIGHT
        assert ledger.buffered == len(model.fresh) + len(model.again) + len(model.suspects)
        assert ledger.buffered_bytes == 4 * ledger.buffered
        assert ledger.in_flight + len(model.again) + len(model.suspects) <= MAX_IN_FLIGHT
        assert len(model.fresh) <= MAX_BUFFERED
        assert ledger.pending == model.pending()
        assert (ledger.pending == 0) == (model.pending() == 0)
        counters = ledger.counters
        assert [counters.confirmed, counters.unknown, counters.nacked, counters.rejected] == [
            model.letters[c] for c in "CUNR"
        ]
        books_balance(ledger, self.bench.accepted)

    @invariant()
    def late_agrees(self) -> None:
        """The same late outcomes, in any order within a step."""
        if not hasattr(self, "model"):
            return
        late = sorted((each.message_id, said(each.result)) for each in self.ledger.settlement.late)
        assert late == sorted(self.model.late)
        self.ledger.settlement.late.clear()
        self.model.late.clear()

    @invariant()
    def wakes_in_time(self) -> None:
        """`next_wakeup` is the earliest deadline or the confirm instant (I19), and `overdue` agrees with it."""
        if not hasattr(self, "model"):
            return
        assert self.ledger.next_wakeup() == self.model.wakeup()

    @invariant()
    def outcomes_stay(self) -> None:
        """An outcome is never replaced (I10, I36)."""
        for delivery, outcome in getattr(self, "outcomes", {}).items():
            assert delivery.outcome is outcome

    @invariant()
    def once_is_once(self) -> None:
        """at_most_once: no message is on the wire again after an attempt that may have arrived (I17)."""
        if hasattr(self, "model") and not self.model.at_least_once:
            assert not any(note.attempts.count("U") > 1 for note in self.model.notes)
            assert all(each.attempts <= 1 for each in self.bench.accepted)


Walk.TestCase.settings = settings(
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestWalk = Walk.TestCase
