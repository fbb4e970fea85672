"""The checks at the end of a run: what the producer said against what the brokers, the network and the seam saw.

Each check is one function from a run to what it finds wrong, named after what it checks (the S numbers are those of
docs/testing.md). A check gives no false alarm: where the simulation lied to the producer in a way that no client
can see through (`FaultInjector.credible_lies`), those who were in flight then are left out.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote

from attrs import frozen

from tests.simulation.network import FIRST_PORT
from tests.simulation.run import Run
from tests.simulation.schedule import ADDRESSES, LARGEST, Item
from tests.simulation.trace import Attempt, LinkRecord, Publish, verdict
from tests.simulation.workload import describe
from warrener import CircuitOpen, ConnectionState, Nacked, NotSent, PublishRefused, Receipt, Unroutable
from warrener.drivers.base import Lane
from warrener.errors import FaultKind, PublishError
from warrener.machine.backoff import Backoff, retry_delay, slowest_delay

__all__ = ["CHECKS", "Evidence", "Finding", "judge"]

#: Virtual seconds that what happens "at once" may take; a tick of the scheduler takes none.
TICK: Final = 0.001
#: The settings that a simulated producer leaves at their defaults.
CLOSE_TIMEOUT, ABORT_TIMEOUT, MIN_GAP, LAST_WORDS = 3.0, 1.0, 0.1, 1.0
#: A producer's tasks: run, timer, life of the link, its reader, writer and watch, six timers, two dials that race, and
#: what a dial or a new channel needs for a while.
MOST_TASKS: Final = 20

#: Where each address leads.
QUEUES: Final = {
    "jobs": ("jobs",), "work": ("jobs",), "quorum": ("quorum",), "both": ("jobs", "small"), "small": ("small",),
    "nowhere": (), "missing": (), "absent": ("spare",), "returning": ("spare",), "forbidden": ("spare",),
    "delayed": ("spare",), "full": ("full",), "slow": ("slow",), "mute": ("mute",),
    **{f"deleted-{number}": ("spare",) for number in range(8)},
}  # fmt: skip


@frozen
class Finding:
    """Something that is wrong: the check that says so, and the particulars."""

    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"


class Evidence:
    """A run, with what several checks ask of it."""

    def __init__(self, run: Run) -> None:
        assert run.network is not None
        assert run.injector is not None
        assert run.workload is not None
        self.run = run
        self.plan = run.plan
        self.trace = run.trace
        self.network = run.network
        self.injector = run.injector
        self.workload = run.workload
        self.publishes = list(run.trace.publishes.values())
        self.links = list(run.trace.links.values())
        #: The links of each member of the producer, in the order of their dials.
        self.members: dict[int, list[LinkRecord]] = {}
        for record in self.links:
            self.members.setdefault(record.member, []).append(record)
        self.by_hash = {_hash(publish.body): publish for publish in self.publishes}
        link_of = {wire.source: wire.link for wire in run.network.wires if wire.source is not None}
        #: By number of the message: (instant, broker, queue, link) of each enqueue.
        self.enqueued: dict[int, list[tuple[float, int, str, int]]] = {}
        self.foreign: list[str] = []
        for place, line in run.log:
            publish = self.by_hash.get(line.body_hash)
            if publish is None or line.message_id != publish.message_id:
                self.foreign.append(f"{line} on broker {place}")
            else:
                where = (line.at, place, line.queue, link_of.get((place, line.connection), 0))
                self.enqueued.setdefault(publish.item.number, []).append(where)

    def again(self, publish: Publish) -> list[Attempt]:
        """Return the attempts that a retry policy asked for: after a nack, or while an earlier one was in flight."""
        found: list[Attempt] = []
        for earlier, attempt in itertools.pairwise(publish.attempts):
            answered = earlier.answered_at is not None and earlier.answered_at <= attempt.at
            # On one channel, the earlier one was in flight, even where the link ended at that instant.
            alive = (earlier.link, earlier.channel) == (attempt.link, attempt.channel) or self.lives(
                earlier, attempt.at
            )
            if (answered and earlier.answer == "nack") or (not answered and alive):
                found.append(attempt)
        return found

    def lives(self, attempt: Attempt, at: float) -> bool:
        """Whether the link and the channel of an attempt were open at an instant."""
        ended = self.trace.links[attempt.link].ended_at
        closed = self.trace.channel_ends.get((attempt.link, attempt.channel))
        return attempt.reached is not False and all(each is None or each > at for each in (ended, closed and closed[0]))

    def lied_to(self, publish: Publish) -> bool:
        """Whether the broker told a credible lie while the message was under way."""
        until = self.run.ended_at if publish.ended_at is None else publish.ended_at
        return any(publish.called_at <= lie <= until + 30.0 for lie in self.injector.credible_lies)

    def stretched(self, instant: float) -> float:
        """Return the instant, or the end of the jump of the clock that it falls into."""
        for begin, end in self.injector.jumps:
            if begin <= instant <= end:
                instant = end
        return instant

    def jumped(self, begin: float, end: float) -> float:
        """Return how many seconds of a time the clock jumped over."""
        return sum(max(0.0, min(end, until) - max(begin, since)) for since, until in self.injector.jumps)

    def deleted(self, queue: str, since: float) -> bool:
        """Whether the queue was deleted at or after an instant."""
        return any(at >= since - TICK and name in (queue, "*") for at, name in self.injector.deletions)


def _hash(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _reached(publish: Publish) -> int:
    return sum(attempt.reached is not False for attempt in publish.attempts)


def _name(publish: Publish) -> str:
    return f"message {publish.item.number}"


# --- what was confirmed is there, what was rejected is not ---------------------------------------------------------------


def confirmed_is_stored(seen: Evidence) -> Iterator[str]:
    """S1: what was confirmed was acked, by the broker, in that epoch, was enqueued, and outlived every crash."""
    for publish in seen.publishes:
        receipt = publish.final
        if not isinstance(receipt, Receipt) or seen.lied_to(publish):
            continue
        acked = [each for each in publish.attempts if each.answer == "ack" and not each.returned]
        attempt = next((each for each in acked if seen.trace.links[each.link].own_number == receipt.link), None)
        if attempt is None:
            yield f"{_name(publish)} is confirmed on link {receipt.link}, where no ack came for it"
            continue
        for queue in QUEUES[publish.item.address]:
            # One of two queues may have been missing since the link began to declare both; the broker acks for the other alone.
            alone = len(QUEUES[publish.item.address]) == 1
            opened_at = seen.trace.links[attempt.link].opened_at or 0.0
            if seen.deleted(queue, attempt.at if alone else opened_at):
                continue
            if not publish.item.mandatory and seen.deleted(queue, 0.0):
                continue  # there may have been no queue, and without `mandatory` the broker says nothing
            enqueues = [each for each in seen.enqueued.get(publish.item.number, ()) if each[2] == queue]
            if not any(link == attempt.link for _, _, _, link in enqueues):
                yield f"{_name(publish)} is confirmed and never came into {queue!r} by link {attempt.link}"
            elif (publish.item.persistent or queue == "quorum") and publish.body not in seen.run.left.get(queue, ()):
                yield f"{_name(publish)} is confirmed and was lost from {queue!r}"


def rejected_is_nowhere(seen: Evidence) -> Iterator[str]:
    """S2: a message that was rejected, or cancelled before it was begun, came into no queue."""
    for publish in seen.publishes:
        enqueues = seen.enqueued.get(publish.item.number)
        if enqueues is None:
            continue
        final = publish.final
        if final is not None and verdict(final) == "rejected":
            yield f"{_name(publish)} is rejected ({describe(final)}) and came into {enqueues}"
        elif final is None and not publish.attempts:
            yield f"{_name(publish)} was cancelled before it was sent, and came into {enqueues}"


def nothing_unexpected(seen: Evidence) -> Iterator[str]:
    """S3: what is in a queue was published, with that body and that message_id."""
    yield from seen.foreign


def no_silent_duplicates(seen: Evidence) -> Iterator[str]:
    """S4: more than one enqueue only where it was announced; at_most_once sends nothing twice."""
    for publish in seen.publishes:
        reached = _reached(publish)
        queues = Counter(queue for _, _, queue, _ in seen.enqueued.get(publish.item.number, ()))
        most = max(queues.values(), default=0)
        final = publish.final
        if most > reached:
            yield f"{_name(publish)} was enqueued {most} times by {reached} attempts that may have been sent"
        if not seen.plan.producer.at_least_once and max(reached, most) > 1:
            yield f"{_name(publish)} was sent {reached} times and enqueued {most} times, at most once"
        if most > 1 and final is not None:
            uncertain = final.possible_duplicate if isinstance(final, Receipt) else final.may_have_been_delivered
            certain = not uncertain
            if certain:
                yield f"{_name(publish)} was enqueued {most} times without a word: {describe(final)}"
        if isinstance(final, Receipt):
            if final.attempts != reached:
                yield f"{_name(publish)}: the receipt counts {final.attempts} attempts, {reached} may have been sent"
            if final.possible_duplicate != (reached > 1):
                yield f"{_name(publish)}: possible_duplicate is {final.possible_duplicate} after {reached} attempts"


# --- outcomes ------------------------------------------------------------------------------------------------------------


def one_outcome_in_time(seen: Evidence) -> Iterator[str]:
    """S5: every call ends, once, by its deadline; an answer reaches its caller at once; the outcome of a cancelled call comes later."""
    yield from seen.workload.wrong
    if seen.run.crash is not None:
        yield f"run() raised {seen.run.crash!r}"
    if seen.run.calls_left:
        yield f"{seen.run.calls_left} calls have not returned"
    if seen.run.outcomes_missed:
        return
    for publish in seen.publishes:
        if publish.ended_at is None:
            yield f"{_name(publish)} has no outcome"
            continue
        if publish.ended_at > seen.stretched(publish.deadline) + TICK:
            yield f"{_name(publish)} ended {publish.ended_at - publish.deadline:.3f} s after its deadline"
        if isinstance(publish.result, CircuitOpen) and publish.call.how not in ("many", "run"):
            waited = publish.ended_at - publish.called_at - seen.jumped(publish.called_at, publish.ended_at)
            if waited > TICK or publish.attempts:
                yield f"{_name(publish)}: CircuitOpen after {waited:.3f} s and {len(publish.attempts)} attempts"
        yield from _told_at_once(seen, publish)
    yield from _late_outcomes(seen)
    yield from (f"an outcome of no known message: {stray}" for stray in seen.run.stray)


def _told_at_once(seen: Evidence, publish: Publish) -> Iterator[str]:
    retry = seen.plan.producer.retry
    if publish.call.how in ("many", "run") or publish.cancelled or publish.ended_at is None:
        return
    for attempt in publish.attempts:
        if attempt.answer == "nack" and retry is not None:
            continue  # the message may have waited to be written again, or an earlier attempt was overdue
        if attempt.answered_at is not None and publish.ended_at > attempt.answered_at + TICK:
            wait = publish.ended_at - attempt.answered_at
            yield f"{_name(publish)} was answered ({attempt.answer}) and its caller waited {wait:.3f} s more"


def _late_outcomes(seen: Evidence) -> Iterator[str]:
    """Who left while the message was under way, or heard Unconfirmed at the deadline, gets one outcome later."""
    least: Counter[str] = Counter()
    most: Counter[str] = Counter()
    told: Counter[str] = Counter()
    for publish in seen.publishes:
        name = publish.message_id or ""
        told[name] += len(publish.late)
        if publish.cancelled:
            most[name] += 1
            least[name] += any(attempt.reached for attempt in publish.attempts)
        elif isinstance(publish.result, PublishError) and verdict(publish.result) == "unknown":
            at_deadline = publish.ended_at is not None and publish.ended_at >= publish.deadline - TICK
            most[name] += at_deadline
            retry = seen.plan.producer.retry
            again = retry is not None and retry.overdue  # the last attempt, or an earlier one, may tell it
            least[name] += at_deadline and bool(publish.attempts) and not again and _was_open(seen, publish)
    for name, count in told.items():
        if not least[name] <= count <= most[name]:
            yield f"{count} late outcomes of {name!r}, not {least[name]} to {most[name]}"


def _was_open(seen: Evidence, publish: Publish) -> bool:
    """Whether the last attempt was still unanswered, on a link and a channel that lived, when its caller was told."""
    last, told = publish.attempts[-1], publish.ended_at
    assert told is not None
    over = seen.trace.links[last.link].ended_at
    closed = seen.trace.channel_ends.get((last.link, last.channel))
    return (
        (last.answered_at is None or last.answered_at > told + TICK)
        and (over is None or over > told + TICK)
        and (closed is None or closed[0] > told + TICK)
        and told < seen.run.closing_began_at - TICK
    )


def outcomes_match(seen: Evidence) -> Iterator[str]:
    """S5: each kind of outcome says what was seen at the seam."""
    for publish in seen.publishes:
        final = publish.final
        if final is None or isinstance(final, Receipt) or seen.lied_to(publish):
            continue
        reached = [attempt for attempt in publish.attempts if attempt.reached is not False]
        match final:
            case Nacked():
                nacked = [attempt for attempt in reached if attempt.answer == "nack" and not attempt.returned]
                right = bool(nacked) and all(attempt.returned for attempt in reached if attempt not in nacked)
                right = right and (len(reached) == 1 or seen.plan.producer.retry is not None)
            case Unroutable():
                right = len(reached) == 1 and reached[0].returned
            case PublishRefused(reply_code=code):
                right = _was_refused(seen, publish, code) and (final.may_have_been_delivered or len(reached) <= 1)
            case NotSent():
                right = not reached
            case _:  # at its deadline a message may be in the link's own buffer still: Unconfirmed does not claim that it was written
                right = bool(publish.attempts)
        if not right:
            yield f"{_name(publish)} ended as {describe(final)}, and what was seen is {publish.attempts}"


def _alike(one: Item, other: Item, code: int) -> bool:
    """Whether the broker refuses both for the same reason: their exchange, their user_id, or their size."""
    if code == 406:
        return one is other or (one.poison and other.poison) or min(one.size, other.size) > LARGEST
    return ADDRESSES[one.address][0] == ADDRESSES[other.address][0]


def _was_refused(seen: Evidence, publish: Publish, code: int) -> bool:
    """Whether a channel was closed with this code while a message to the same exchange, with the same user_id or of such a size was on it."""
    return any(
        attempt.reached is not False
        and _alike(seen.trace.publishes[attempt.number].item, publish.item, code)
        and (seen.trace.channel_ends.get((attempt.link, attempt.channel)) or (0.0, None))[1] == code
        for attempt in seen.trace.attempts.values()
    )


# --- nothing is unknown without a cause ------------------------------------------------------------------------------


def unknown_has_a_cause(seen: Evidence) -> Iterator[str]:
    """S6: every Unconfirmed has a cause that was seen; none in a quiet seed, none on a link that came after all faults."""
    for publish in seen.publishes:
        final = publish.final
        if final is None:
            continue
        kind = verdict(final)
        if kind == "unknown" and not any(_causes(seen, publish)):
            yield f"{_name(publish)} is unknown without a cause: {describe(final)}"
        if not seen.plan.faults and kind in ("unknown", "nacked") and not _left_early(seen, publish):
            yield f"{_name(publish)} ended as {describe(final)}, and there was no fault"
    for record in seen.links:
        if record.overdue is not None:
            yield from _overdue(seen, record)
        excused = {FaultKind.CHANNEL_STORM, *((FaultKind.CONFIRM_OVERDUE,) if "mute" in seen.plan.bad else ())}
        if not seen.plan.faults and record.fault is not None and record.fault.kind not in excused:
            yield f"link {record.number} was lost without a fault: {record.fault}"
        healed_at = seen.injector.healed_at
        if (
            seen.plan.mode == "liveness"
            and healed_at is not None
            and record.at > healed_at + TICK
            and _lost_while_open(seen, record)
        ):
            yield f"link {record.number} was lost after all faults had ended: {record.fault}"


def _causes(seen: Evidence, publish: Publish) -> Iterator[bool]:
    ended = publish.ended_at if publish.result is not None else None
    ended = seen.run.ended_at if ended is None else ended
    yield ended >= publish.deadline - TICK
    yield ended >= seen.run.closing_began_at - TICK
    yield bool(seen.injector.credible_lies)
    # A return from an exchange of a plugin proves nothing: the plugin may deliver later.
    yield publish.item.address == "delayed" and any(attempt.returned for attempt in publish.attempts)
    producer = seen.plan.producer
    for attempt in publish.attempts:
        record = seen.trace.links[attempt.link]
        closed = seen.trace.channel_ends.get((attempt.link, attempt.channel))
        # A policy wrote an overdue message again, and the attempt that was overdue has no answer yet.
        unanswered = attempt.answered_at is None or attempt.answered_at > ended + TICK
        waits = unanswered and attempt.at + producer.confirm_timeout <= ended + TICK
        yield waits and producer.retry is not None and producer.retry.overdue and len(publish.attempts) > 1
        yield any(over is not None and over <= ended + TICK for over in (record.aborted_at, record.ended_at))
        yield closed is not None and closed[0] <= ended + TICK


def _left_early(seen: Evidence, publish: Publish) -> bool:
    """Whether the caller asked for it: a deadline shorter than a confirm may take, an abrupt end, or a full queue."""
    cut_off = seen.plan.ending != "close" and (publish.ended_at or 0.0) >= seen.run.closing_began_at - TICK
    hurried = publish.call.timeout < 5.0 or publish.cancelled
    refused = any(
        (seen.trace.channel_ends.get((each.link, each.channel)) or (0.0, None))[1] in (403, 404, 406)
        for each in publish.attempts
    )
    return cut_off or hurried or refused or publish.item.address in ("small", "both", "full", "mute", "delayed")


def _overdue(seen: Evidence, record: LinkRecord) -> Iterator[str]:
    assert record.overdue is not None
    since, at = record.overdue
    timeout = seen.plan.producer.confirm_timeout
    if since is None:
        yield f"link {record.number} was replaced for a missing confirm, and none was missing"
    elif at - since < timeout - TICK:
        yield f"link {record.number} was replaced for a missing confirm after {at - since:.3f} s, not {timeout} s"


def _lost_while_open(seen: Evidence, record: LinkRecord) -> bool:
    if record.fault is None or record.fault.kind in (FaultKind.CHANNEL_STORM, FaultKind.CLOSED):
        return False
    return record.ended_at is not None and record.ended_at < seen.run.closing_began_at - TICK


# --- order, pace, limits -----------------------------------------------------------------------------------------------


def order_is_kept(seen: Evidence) -> Iterator[str]:
    """S7: on a main channel, messages to one exchange go out in the order of the calls, re-sends first; tags count 1, 2, 3.

    The messages of one `publish_many` are accepted as there is room for them, so others may come between them. They keep their
    own order. In the reserve of the window, a message to another queue may pass.
    """
    last: dict[tuple[int, int], int] = {}
    written: dict[tuple[int, int, str, int], list[tuple[int, Attempt]]] = {}
    for attempt in seen.trace.attempts.values():
        link, channel = epoch = attempt.link, attempt.channel
        if attempt.tag != last.get(epoch, 0) + 1:
            yield f"tag {attempt.tag} on link {link} channel {channel} came after {last.get(epoch, 0)}"
        last[epoch] = attempt.tag
        publish = seen.trace.publishes[attempt.number]
        if any(attempt.at >= again.at for again in seen.again(publish)[:1]):
            continue  # a policy that writes again after a nack, or when overdue, keeps no order from then on
        if attempt.lane is Lane.MAIN:
            run = publish.call.messages[0].number if publish.call.how in ("run", "many") else -1
            place = (*epoch, ADDRESSES[publish.item.address][0], run)
            written.setdefault(place, []).append((publish.order, attempt))
    for (link, channel, _, _), sent in written.items():
        for (before, one), (after, other) in itertools.pairwise(sent):
            if after < before and not _passed_in_reserve(seen, one, other):
                yield f"message {other.number} overtook message {one.number} on link {link} channel {channel}"
    for publish in seen.publishes:
        arrivals = seen.enqueued.get(publish.item.number, ())
        if arrivals and arrivals[0][0] < publish.called_at - TICK:
            yield f"{_name(publish)} arrived before it was published"


def links_are_apart(seen: Evidence) -> Iterator[str]:
    """S12: of several links, a message stays on the one that took it, and all messages of a key are on one (S7: in order)."""
    homes: dict[str, int] = {}
    for publish in seen.publishes:
        members = {seen.trace.links[attempt.link].member for attempt in publish.attempts}
        if len(members) > 1:
            yield f"{_name(publish)} was written on the links {sorted(members)}"
        for member in members if publish.call.key is not None else ():
            if homes.setdefault(publish.call.key or "", member) != member:
                yield f"{_name(publish)} of {publish.call.key!r} was written on link {member}, not {homes[publish.call.key or '']}"


def _passed_in_reserve(seen: Evidence, one: Attempt, other: Attempt) -> bool:
    """Whether a message passed an older one of another destination that had waited while nine tenths of the window were taken.

    A message that was set aside then stays behind those that passed it, also if the link is lost meanwhile.
    """
    window = seen.plan.producer.max_in_flight // seen.plan.links
    passed, waited = (seen.trace.publishes[each.number] for each in (one, other))
    if window < 10 or passed.item.address == waited.item.address:
        return False
    written = seen.trace.attempts.values()
    instants = {(each.link, each.at) for each in written if waited.called_at <= each.at <= one.at}
    return any(
        sum(
            each.link == link and each.at <= at and (each.answered_at is None or each.answered_at >= at)
            for each in written
        )
        > window - window // 10
        for link, at in instants
    )


def dials_keep_their_distance(seen: Evidence) -> Iterator[str]:
    """S8: between the end of a link and the next dial lies the backoff; it starts anew only for a link that was proven.

    With several endpoints it lies between two passes: within a pass there is no delay, and at most one dial for each endpoint.
    """
    for links in seen.members.values():
        yield from _dials_of(seen, links)


def _dials_of(seen: Evidence, links: list[LinkRecord]) -> Iterator[str]:
    plan = seen.plan.producer
    backoff = Backoff(initial=plan.initial, cap=plan.cap, attempts=plan.attempts, jitter=plan.jitter)
    attempt = 0
    endpoints, at_once = len({record.port for record in links}), 0
    for record, following in itertools.pairwise(links):
        if record.ended_at is None or record.ended_at > following.at + TICK:
            yield f"link {following.number} was dialed while link {record.number} was there"
            continue
        up = 0.0 if record.declared_at is None else record.ended_at - record.declared_at
        if record.acked or up >= plan.stable_for - TICK:
            attempt = at_once = 0
        gap = following.at - record.ended_at
        # A hand-over, ended by us, begins a new pass; so does a loss during one, hence one dial more than endpoints.
        at_once = 0 if record.fault is None or record.fault.kind is FaultKind.CLOSED else at_once + 1
        if endpoints > 1 and gap <= TICK and at_once <= endpoints:
            continue
        at_once = 0
        if any(record.ended_at - TICK <= hint <= following.at + TICK for hint in seen.workload.hints):
            attempt = 0
            continue
        shortest = max(MIN_GAP, retry_delay(backoff, attempt)[0])
        longest = max(MIN_GAP, plan.cap) + seen.jumped(record.ended_at, following.at)
        if not shortest - TICK <= gap <= longest + TICK:
            yield (
                f"link {following.number} was dialed {gap:.3f} s after the last ended; attempt {attempt} takes "
                f"{shortest:.3f} to {longest:.3f} s"
            )
        attempt += 1


def endpoints_take_turns(seen: Evidence) -> Iterator[str]:
    """S8: an endpoint that has just failed is not dialed again while another one is ready; none is forgotten."""
    for links in seen.members.values():
        yield from _turns_of(seen, links)


def _turns_of(seen: Evidence, links: list[LinkRecord]) -> Iterator[str]:
    plan = seen.plan.producer
    backoff = Backoff(initial=plan.initial, cap=plan.cap, attempts=plan.attempts, jitter=plan.jitter)
    ports = {record.port for record in links}
    failures = dict.fromkeys(ports, 0)
    ready_at = dict.fromkeys(range(FIRST_PORT, FIRST_PORT + seen.plan.brokers), -math.inf)
    if not seen.plan.several_endpoints or len(ready_at) < 2:
        return
    for record, following in itertools.pairwise(links):
        ours = record.fault is None or record.fault.kind is FaultKind.CLOSED
        if record.ended_at is None or ours:
            continue
        up = 0.0 if record.declared_at is None else record.ended_at - record.declared_at
        if record.acked or up >= plan.stable_for - TICK:
            failures[record.port], ready_at[record.port] = 0, -math.inf
        if record.fault is not None and not record.fault.orderly:
            slow = slowest_delay(backoff) if record.fault.permanent else retry_delay(backoff, failures[record.port])
            failures[record.port] += 1
            # A link that is replaced has failed when it is aborted.
            ready_at[record.port] = record.ended_at + slow[0]
        others = [port for port, at in ready_at.items() if port != record.port and at < following.at - TICK]
        if following.port == record.port and others:
            yield f"link {following.number} went to port {record.port}, which had just failed; {others} were ready"


def hand_overs_lose_nothing(seen: Evidence) -> Iterator[str]:
    """S6: when we close a link to go on elsewhere, each message on it was answered, or had `drain_timeout` for that."""
    for record in seen.links:
        ours = record.fault is None or record.fault.kind is FaultKind.CLOSED
        if not ours or record.ended_at is None or record.ended_at >= seen.run.closing_began_at - TICK:
            continue
        since = record.ended_at - seen.plan.producer.drain_timeout
        for attempt in seen.trace.attempts.values():
            answered = attempt.answered_at is not None and attempt.answered_at <= record.ended_at
            closed = (attempt.link, attempt.channel) in seen.trace.channel_ends
            if attempt.link == record.number and attempt.at > since + TICK and not answered and not closed:
                yield f"message {attempt.number} had no answer when link {record.number} was handed over, and had not waited"


def budgets_hold(seen: Evidence) -> Iterator[str]:
    """S8: attempts after a nack and of overdue messages cost no more than the one budget that all calls share, in any while."""
    retry = seen.plan.producer.retry
    if retry is None or retry.budget is None:
        return
    ratio, floor, window = retry.budget
    #: When each was paid for, at the earliest and at the latest.
    paid = sorted(
        (earlier.at if earlier.answered_at is None else min(earlier.answered_at, attempt.at), attempt.at)
        for publish in seen.publishes
        for attempt in seen.again(publish)
        for earlier in publish.attempts[publish.attempts.index(attempt) - 1 :][:1]
    )
    for since in sorted({earliest for earliest, _ in paid}):
        ends = sorted(latest for earliest, latest in paid if earliest >= since)
        for number, until in enumerate(ends, 1):
            called = sum(publish.called_at <= until for publish in seen.publishes)
            most = floor * (window + until - since) + ratio * called
            if number > most + TICK:
                yield f"{number} further attempts from {since:.3f} to {until:.3f}, and the budget allows {most:.1f}"
                return


def limits_hold(seen: Evidence) -> Iterator[str]:
    """S9: buffers, tasks and connections stay within their limits; closing is bounded, and nothing is left behind."""
    plan, run = seen.plan.producer, seen.run
    for at, status, _ in run.statuses:
        if status.in_flight > plan.max_in_flight:
            yield f"{at:.1f}: {status.in_flight} in flight, {plan.max_in_flight} allowed"
        if status.in_flight + status.buffered > plan.max_buffered + plan.max_in_flight:
            yield f"{at:.1f}: {status.buffered} buffered beside {status.in_flight} in flight"
    if run.peak_tasks > MOST_TASKS * run.plan.links:
        yield f"the producer had {run.peak_tasks} tasks"
    for wire in seen.network.wires:
        if wire.client_closed_at is None:
            yield f"wire {wire.number} was left open by the producer"
    if run.clients_left:
        yield f"the brokers still have {run.clients_left} connections"
    yield from _closing(seen)


def _closing(seen: Evidence) -> Iterator[str]:
    plan, run = seen.plan.producer, seen.run
    if run.closed_at is None:
        yield "run() never returned"
        return
    drain = plan.drain_timeout if run.plan.ending.startswith("close") else 0.0
    most = drain + CLOSE_TIMEOUT + 2 * ABORT_TIMEOUT + LAST_WORDS
    if run.plan.ending == "kill":
        most = 2 * ABORT_TIMEOUT
    took = run.closed_at - run.closing_began_at - seen.jumped(run.closing_began_at, run.closed_at)
    if took > most + TICK:
        yield f"closing took {took:.3f} s, not {most} s at most"
    ids = {"rejected": set[str](), "unknown": set[str](), "confirmed": set[str](), "nacked": set[str]()}
    for publish in seen.publishes:
        for final in (publish.result, *publish.late):
            if final is not None:
                ids[verdict(final)].add(publish.message_id or "")
    if run.report is not None:
        if run.report.confirmed != run.counters["confirmed"]:
            yield f"{run.report.confirmed} are reported as confirmed, {run.counters['confirmed']} are counted"
        yield from (
            f"{name!r} is reported as unconfirmed" for name in run.report.unconfirmed if name not in ids["unknown"]
        )
        # A publish that was cancelled before it was begun has no other outcome.
        cancelled = {publish.message_id for publish in seen.publishes if publish.cancelled}
        certain = ids["rejected"] | cancelled
        yield from (f"{name!r} is reported as not sent" for name in run.report.not_sent if name not in certain)


def dead_peers_are_noticed(seen: Evidence) -> Iterator[str]:
    """R12: a link does not outlive silence, a frame that never becomes whole, or a write that does not finish."""
    plan = seen.plan.producer
    leaving = CLOSE_TIMEOUT + 2 * ABORT_TIMEOUT + LAST_WORDS
    for wire in seen.network.wires:
        if wire.client_closed_at is None:
            continue
        record = seen.trace.links[wire.link]
        # A broker that has blocked us does not read: a write is overdue only from the unblocking on.
        stalled = 0.0 if record.blocked else min(wire.stalled, wire.client_closed_at - record.unblocked_at)
        for what, length, limit in (
            ("silence", wire.silence, max(2 * plan.heartbeat, plan.connect_timeout)),
            ("a frame that did not end", wire.unfinished, max(plan.frame_timeout, plan.connect_timeout)),
            ("a write that did not end", stalled, plan.write_stall_timeout),
        ):
            took = length - seen.jumped(wire.client_closed_at - length, wire.client_closed_at)
            if took > limit + leaving + TICK:
                yield f"wire {wire.number} was held through {took:.3f} s of {what}; the limit is {limit} s"


def every_byte_is_legal(seen: Evidence) -> Iterator[str]:
    """R18: what the producer sent was AMQP."""
    yield from (str(violation) for violation in seen.run.violations)


# --- what it says about itself -------------------------------------------------------------------------------------------


def counters_are_true(seen: Evidence) -> Iterator[str]:
    """S11: the counters equal the trace, nothing is up without a connection, and no secret is in any text."""
    yield from seen.run.unbalanced
    counters = seen.run.counters
    settled = sum(counters[name] for name in ("confirmed", "rejected", "nacked", "unknown"))
    if counters["accepted"] != settled:
        yield f"{counters['accepted']} accepted, {settled} settled: {counters}"
    shared = Counter(publish.message_id for publish in seen.publishes)
    if not any(publish.cancelled and shared[publish.message_id] > 1 for publish in seen.publishes):
        finals = Counter(verdict(publish.final) for publish in seen.publishes if publish.final is not None)
        for name in ("confirmed", "nacked", "unknown"):
            if finals[name] != counters[name]:
                yield f"{counters[name]} {name} are counted, {finals[name]} were seen"
    for at, status, holds in seen.run.statuses:
        if any(abs(at - landed) <= TICK for _, landed in seen.injector.jumps):
            continue  # what happened in this very tick seems to be long ago
        if status.connection_state is ConnectionState.CONNECTED and not holds:
            yield f"{at:.1f}: CONNECTED on link {status.link}, which has no connection"
        if status.healthy and status.connection_state is not ConnectionState.CONNECTED:
            yield f"{at:.1f}: healthy and {status.connection_state.value}"
    yield from _secrets(seen)


def _secrets(seen: Evidence) -> Iterator[str]:
    password = seen.run.password
    forms = (password, quote(password, safe=""), base64.b64encode(password.encode()).decode())
    texts = [*seen.run.texts, *(str(publish.result) for publish in seen.publishes)]
    yield from (f"a secret is in {text!r}" for text in texts if any(form in text for form in forms))


def it_recovers(seen: Evidence) -> Iterator[str]:
    """I40: once the faults are over, the link is up within a bound and publishes are confirmed (liveness mode)."""
    if seen.plan.mode != "liveness":
        return
    if seen.run.up_again_at is None:
        yield "no link came up within the bound"
    for probe in seen.run.probes:
        if not isinstance(probe, Receipt):
            yield f"a publish after the recovery ended as {probe and describe(probe)}"


#: Every check by its name.
CHECKS: Final[dict[str, Callable[[Evidence], Iterator[str]]]] = {
    "S1 confirmed is stored": confirmed_is_stored,
    "S2 rejected is nowhere": rejected_is_nowhere,
    "S3 nothing unexpected": nothing_unexpected,
    "S4 no silent duplicates": no_silent_duplicates,
    "S5 one outcome in time": one_outcome_in_time,
    "S5 outcomes match": outcomes_match,
    "S6 unknown has a cause": unknown_has_a_cause,
    "S6 hand-overs lose nothing": hand_overs_lose_nothing,
    "S7 order": order_is_kept,
    "S8 dials keep their distance": dials_keep_their_distance,
    "S8 endpoints take turns": endpoints_take_turns,
    "S8 budgets hold": budgets_hold,
    "S9 limits": limits_hold,
    "S11 counters and secrets": counters_are_true,
    "S12 links are apart": links_are_apart,
    "R12 dead peers are noticed": dead_peers_are_noticed,
    "R18 every byte is legal": every_byte_is_legal,
    "I40 it recovers": it_recovers,
}


def judge(seen: Evidence) -> list[Finding]:
    """Return what is wrong with a run; nothing, if all is well."""
    return [Finding(name, text) for name, check in CHECKS.items() for text in check(seen)]
