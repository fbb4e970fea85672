"""Properties of the ledger over random inputs; the numbers are those of docs/guarantees.md."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from warrener._publishing.ledger import Delivery
from warrener.errors import PublishError, Unconfirmed, Unroutable
from warrener.records import Lane, Receipt, Returned

from .driving import LOST, NOT_FOUND, Bench, books_balance, returned_of
from .model import said


@st.composite
def coalesced(draw: st.DrawFn) -> tuple[list[bool], list[int], list[tuple[int, bool, bool]]]:
    """Draw the fate of n tags (acked or not), who is returned, and a legal way for a broker to say so.

    The broker settles tags in any order; now and then it flushes what it has gathered, acks before nacks, each flush
    either as single frames or with one `multiple` frame up to just below the lowest tag that is not settled yet (F4).
    """
    fates = draw(st.lists(st.booleans(), min_size=1, max_size=12))
    returned = sorted(draw(st.sets(st.integers(1, len(fates)))))
    order = draw(st.permutations(range(1, len(fates) + 1)))
    frames: list[tuple[int, bool, bool]] = []
    gathered: list[int] = []
    unsettled = set(order)
    for tag in order:
        gathered.append(tag)
        unsettled.discard(tag)
        if not draw(st.booleans()) and unsettled:
            continue
        for fate in (True, False):
            tags = sorted(each for each in gathered if fates[each - 1] is fate)
            others = [each for each in gathered if fates[each - 1] is not fate] if fate else []
            cutoff = min([*unsettled, *others, len(fates) + 1])
            covered = [each for each in tags if each < cutoff]
            if covered:
                frames.append((covered[-1], True, fate))
            frames += [(each, False, fate) for each in tags if each >= cutoff]
        gathered = []
    return fates, returned, frames


@given(coalesced())
def test_every_legal_way_to_confirm_says_the_same(
    case: tuple[list[bool], list[int], list[tuple[int, bool, bool]]],
) -> None:
    """Coalesced or single, in any order: equal outcomes (I11); returns may precede their confirms by far (I13)."""
    fates, returned, frames = case
    plain, clever = Bench(), Bench()
    for bench in (plain, clever):
        deliveries = bench.publish(len(fates))
        for tag in returned:
            bench.bounce(deliveries[tag - 1])
    for tag, acked in enumerate(fates, 1):
        (plain.ack if acked else plain.nack)(tag)
    for tag, multiple, acked in frames:
        (clever.ack if acked else clever.nack)(tag, multiple=multiple)
    assert [said(each.outcome) for each in clever.accepted] == [said(each.outcome) for each in plain.accepted]
    assert [isinstance(each.outcome, Unroutable) for each in clever.accepted] == [
        tag in returned for tag in range(1, len(fates) + 1)
    ]
    assert clever.ledger.counters.anomalies == 0
    assert not clever.ledger.pending


@given(st.integers(1, 20), st.sets(st.integers(1, 20)), st.integers(1, 20), st.booleans())
def test_an_answer_changes_exactly_what_it_covers(count: int, settled: set[int], tag: int, multiple: bool) -> None:
    """One tag, or the outstanding tags up to it; everything else stays as it was (I8)."""
    bench = Bench()
    deliveries = bench.publish(count)
    for each in sorted(settled):
        bench.ack(each)
    outstanding = {each.tag for each in deliveries if each.outcome is None}
    covered = (
        ({each for each in outstanding if each <= tag} if multiple else {tag} & outstanding) if tag <= count else set()
    )
    resolved = bench.nack(tag, multiple=multiple)
    assert {each.tag for each in resolved} == covered
    assert {each.tag for each in deliveries if each.outcome is None} == outstanding - covered


facts = st.tuples(
    st.sampled_from(["ack", "nack", "return", "close"]), st.integers(-1, 9), st.integers(-2, 40), st.booleans()
)


@given(st.integers(0, 8), st.lists(facts, max_size=30), st.booleans())
def test_a_dead_epochs_facts_move_nothing_in_a_live_one(
    count: int, stream: list[tuple[str, int, int, bool]], closed_first: bool
) -> None:
    """Whatever is said about any channel but the open one, no attempt changes (I14)."""
    bench = Bench()
    bench.publish(count)
    if closed_first:
        bench.close_channel()
        bench.open(Lane.MAIN)
    else:
        bench.lose()
        bench.up()
        bench.close_channel()
        bench.open(Lane.MAIN)
    bench.publish(3)
    live = bench.channels[Lane.MAIN]

    def picture() -> list[object]:
        return [
            *((each.outcome, each.tag, each.returned, each.ambiguous, each.attempts) for each in bench.accepted),
            bench.ledger.in_flight,
            bench.ledger.buffered,
            bench.ledger.next(bench.now),
        ]

    before = picture()
    for kind, channel, tag, multiple in stream:
        if channel == live:
            continue
        if kind == "ack":
            bench.ack(tag, multiple=multiple, channel=channel)
        elif kind == "nack":
            bench.nack(tag, multiple=multiple, channel=channel)
        elif kind == "return":
            bench.bounce(bench.accepted[-1], channel=channel)
        else:
            bench.ledger.ends.channel_closed(channel, NOT_FOUND, tag, tag, bench.now)
    assert picture() == before
    assert bench.ledger.counters.stale == sum(channel != live for _, channel, _, _ in stream)


@given(st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=8), st.data())
def test_equal_messages_settle_each_on_its_own(kinds: list[int], data: st.DataObject) -> None:
    """Same id, key and body; each ends as its own return, ack and nack say (I37)."""
    bench = Bench()
    deliveries = [bench.accept(message_id="same", token=f"t{number}") for number in range(len(kinds))]
    bench.write()
    for position in data.draw(st.permutations(range(len(kinds)))):
        if kinds[position] == 1:
            bench.bounce(deliveries[position])
    for position in data.draw(st.permutations(range(len(kinds)))):
        (bench.nack if kinds[position] == 2 else bench.ack)(position + 1)
    names = {1: "Unroutable", 2: "Nacked", 3: "Receipt"}
    assert [type(each.outcome).__name__ for each in deliveries] == [names[kind] for kind in kinds]


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.sets(st.integers(1, 6)), st.integers(0, 8)), max_size=12
    )
)
def test_first_attempts_keep_the_order_and_repeats_go_first(
    lives: list[tuple[int, int, set[int], int]],
) -> None:
    """On every link the messages written are in order of acceptance, so repeats precede the younger (R7, I35)."""
    bench = Bench(max_buffered=1_000, max_in_flight=5)
    for accepted, writes, acks, written in lives:
        for _ in range(accepted):
            bench.accept()
        bench.write(writes)
        for tag in acks:
            bench.ack(tag)
        bench.lose(written=written)
        bench.up()
    position = {each: number for number, each in enumerate(bench.accepted)}
    for _, written in itertools.groupby(bench.wire.items(), key=lambda item: item[0][0]):
        numbers = [position[each] for _, each in written]
        assert numbers == sorted(set(numbers))
    books_balance(bench.ledger, bench.accepted)


@given(
    st.lists(st.tuples(st.sampled_from(["ack", "nack", "bounce", "cancel", "expire", "lose", "close channel"]),
                       st.integers(1, 9), st.integers(0, 9)), max_size=40),
    st.booleans(),
)  # fmt: skip
def test_a_verdict_never_says_more_than_was_seen(steps: list[tuple[str, int, int]], at_least_once: bool) -> None:
    """A receipt only after an ack of one of its tags; "certainly not" only where nothing unanswered was written (I15).

    The witness is the wire: every (link, channel, tag) written, what the broker said about it, and what was written.
    """
    bench = Bench(at_least_once=at_least_once, max_in_flight=6)
    acked: set[Delivery] = set()
    returned: set[Delivery] = set()
    #: Offered, and the epoch ended without an answer.
    lost: set[Delivery] = set()
    #: The highest tag of the channel that the broker has answered or returned.
    checked = 0

    def flying() -> dict[int, Delivery]:
        return {each.tag: each for each in bench.accepted if each.epoch is not None and each.epoch.lane is Lane.MAIN}

    for what, tag, written in steps:
        if len(bench.accepted) < 90:
            bench.publish(2, timeout=7.0)
        channel = bench.channels[Lane.MAIN]
        inside = flying()
        if what in ("ack", "nack") and tag <= bench.last_tag[channel]:
            checked = max(checked, tag)
        if what == "ack":
            acked |= {inside[tag]} if tag in inside else set()
            bench.ack(tag, channel=channel)
        elif what == "nack":
            bench.nack(tag, channel=channel)
        elif what == "bounce" and tag in inside:
            returned.add(inside[tag])
            checked = max(checked, tag)
            bench.bounce(inside[tag], channel=channel)
        elif what == "cancel":
            bench.ledger.cancel(bench.accepted[-tag % len(bench.accepted)])
        elif what == "expire":
            bench.now += written
            bench.ledger.expire(bench.now)
        elif what in ("lose", "close channel"):
            ended = {each for number, each in inside.items() if number <= written and each not in returned}
            # The broker takes publishes in order: an answer shows that it has checked those before it as well.
            unchecked = {each for number, each in inside.items() if number > checked and each in ended}
            if what == "lose":
                lost |= ended
                bench.lose(written=written)
                bench.up()
            else:
                lost |= ended - unchecked if len(unchecked) == 1 else ended
                bench.close_channel(written=written)
                bench.open(Lane.MAIN)
            checked = 0
    bench.ledger.close(bench.now, LOST)
    for delivery in bench.accepted:
        outcome = delivery.outcome
        if isinstance(outcome, Receipt):
            assert delivery in acked
            assert delivery not in returned
            assert outcome.possible_duplicate == (delivery in lost)
        elif isinstance(outcome, PublishError) and not outcome.may_have_been_delivered:
            assert delivery not in lost
        if isinstance(outcome, Unroutable):
            assert delivery in returned
    books_balance(bench.ledger, bench.accepted)
    assert not bench.ledger.pending


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from(["", "x"])), max_size=8), st.booleans())
def test_an_unknown_return_only_ever_downgrades_candidates(messages: list[tuple[bool, bool, str]], named: bool) -> None:
    """Nobody becomes `Unroutable`; mandatory ones to the same address end `Unconfirmed` on ack, no other (I12)."""
    bench = Bench()
    for mandatory, _, key in messages:
        bench.accept(mandatory=mandatory, routing_key=key)
    bench.write()
    returned = Returned(312, "NO_ROUTE", "", "x", "nobody" if named else None, None, 4)
    bench.ledger.answers.returned(1, returned)
    bench.ack(len(messages), multiple=True)
    doubtful = [mandatory and key == "x" and not named for mandatory, _, key in messages]
    assert [isinstance(each.outcome, Unconfirmed) for each in bench.accepted] == doubtful
    assert [isinstance(each.outcome, Receipt) for each in bench.accepted] == [not each for each in doubtful]


@given(st.lists(st.sampled_from(["t0", "t1", "zz", None]), max_size=6))
def test_returns_in_any_number_resolve_nothing(tokens: list[str | None]) -> None:
    """A return alone is no outcome, ever (I12)."""
    bench = Bench()
    deliveries = [bench.accept(message_id="same", token=f"t{number}") for number in range(2)]
    bench.write()
    for token in tokens:
        bench.ledger.answers.returned(1, returned_of(deliveries[0], token=token))
    assert [each.outcome for each in deliveries] == [None, None]
    assert bench.ledger.in_flight == 2
