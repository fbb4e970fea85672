"""What a seed draws: the settings of the producer, the network, the workload and the faults, all before the run begins.

One integer gives independent random streams (`stream`), so that a change to one part of the simulation does not
reshuffle the others. The faults are drawn as a swarm: first which kinds exist in this seed, then how often each comes,
because a seed in which everything happens never lets any one thing go far.

A `Plan` is a value. The same plan gives the same run, and a smaller plan (fewer faults, fewer calls) is still a plan:
that is how a failing seed is shrunk.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

from attrs import evolve, frozen

__all__ = [
    "DELAYED",
    "FAULTS",
    "HOSTILE",
    "Call",
    "Fault",
    "Item",
    "Mode",
    "NetworkPlan",
    "Plan",
    "ProducerPlan",
    "RetryPlan",
    "calm",
    "draw",
    "network_of",
    "producer_of",
    "stream",
]

Mode: TypeAlias = Literal["safety", "liveness"]
Ending: TypeAlias = Literal["close", "close under load", "abort", "kill"]

#: The largest frame that the simulated broker allows; small, so that bodies of several frames are cheap.
FRAME_MAX = 8192
#: What fits into one body frame.
ROOM = FRAME_MAX - 8
#: The broker refuses larger bodies (406).
LARGEST = 20_000

#: Where messages go: (exchange, routing key). "jobs" and "small" are queues, "work" is an exchange.
ADDRESSES = {
    "jobs": ("", "jobs"),
    "work": ("work", "jobs"),
    "quorum": ("work", "quorum"),
    #: "small" refuses what it has no room for (reject-publish) and "jobs" keeps it: a nack, and a copy (F2).
    "both": ("work", "both"),
    "small": ("", "small"),
    "nowhere": ("work", "nowhere"),
    "missing": ("missing", "jobs"),
    # the bad destinations of tests.simulation.isolation
    "absent": ("absent", "spare"),
    "returning": ("returning", "spare"),
    "full": ("", "full"),
    "slow": ("", "slow"),
    "mute": ("", "mute"),
    "forbidden": ("forbidden", "spare"),
    "delayed": ("delayed", "spare"),
    **{f"deleted-{number}": (f"deleted-{number}", "spare") for number in range(8)},
}
#: The type of exchange of RabbitMQ's plugin for delayed messages.
DELAYED = "x-delayed-message"

#: The kinds of fault with how likely each exists in a seed, and the longest it lasts in seconds (0: an instant).
FAULTS: dict[str, tuple[float, float]] = {
    # the network
    "rst": (0.35, 0), "fin": (0.2, 0), "freeze": (0.2, 40), "freeze to broker": (0.15, 40),
    "freeze to client": (0.15, 40), "slow": (0.15, 20), "drip": (0.1, 0), "cut to broker": (0.3, 0),
    "cut to client": (0.25, 0), "cut new links": (0.1, 25),
    # the dial
    "refuse": (0.2, 40), "no name": (0.06, 15), "black hole": (0.15, 40), "mute": (0.12, 30), "not amqp": (0.04, 10),
    "accept then drop": (0.12, 30), "drip handshake": (0.05, 10), "bad tune": (0.05, 10), "silent login": (0.05, 10),
    "close in open": (0.06, 15),
    # the broker
    "crash": (0.3, 15), "stop": (0.15, 15), "operator close": (0.15, 0), "close 5xx": (0.1, 0), "freeze broker": (0.15, 40),
    "alarm": (0.2, 40), "flow": (0.12, 20), "stall": (0.2, 30), "close channels": (0.12, 0), "channel storm": (0.04, 0),
    "delete exchange": (0.12, 15), "revoke write": (0.1, 10), "wrong password": (0.08, 15), "delete vhost": (0.06, 15),
    "delete user": (0.06, 10), "topology mismatch": (0.06, 15), "kill queue": (0.15, 0), "delete queue": (0.12, 0),
    # the machine the producer runs on
    "jump": (0.1, 20),
}  # fmt: skip

#: What only a broken or malicious broker does; drawn in hostile seeds instead of much else.
HOSTILE: dict[str, tuple[float, float]] = {
    "garbage": (0.4, 0), "big frame": (0.3, 0), "ack zero": (0.3, 0), "ack unassigned": (0.3, 0), "ack again": (0.4, 0),
    "foreign return": (0.4, 0), "corrupt": (0.3, 0), "endless frame": (0.3, 0),
}  # fmt: skip


def stream(seed: int, name: str) -> random.Random:
    """Return the random stream of one part of the seed."""
    return random.Random(f"{seed}/{name}")


@frozen
class Fault:
    """Something that goes wrong at an instant, or for a while (seconds of virtual time)."""

    at: float
    kind: str
    duration: float = 0.0
    #: What the kind makes of it; for a cut the number of bytes that still pass, negative for a RST behind them.
    amount: int = 0

    def __str__(self) -> str:
        lasting = f" for {self.duration:.3g} s" if self.duration else ""
        return f"{self.kind} at {self.at:.3f}{lasting}" + (f" ({self.amount})" if self.amount else "")


@frozen
class Call:
    """One call of the workload: `publish`, of the producer or of a target (`to`), `publish_many` of messages (`many`) or of bodies
    (`run`), `publish_nowait`, or a `reconnect` hint.
    """

    at: float
    how: Literal["publish", "to", "many", "run", "nowait", "hint"]
    #: The numbers of its messages.
    messages: tuple[Item, ...] = ()
    timeout: float = math.inf
    #: Cancel after this many checkpoints of a neighbour task, or after these seconds; None: never.
    cancel_ticks: int | None = None
    cancel_after: float | None = None
    #: The key that chooses one of several links.
    key: str | None = None


@frozen
class Item:
    """One message; `number` is its own in the run, `size` that of its body."""

    number: int
    size: int
    address: str
    message_id: str | None = None
    mandatory: bool = True
    persistent: bool = True
    #: A property that RabbitMQ refuses with 406.
    poison: bool = False
    #: Whether the text of that close is cut before the end of the name, so that it names nothing.
    nameless: bool = False
    #: Larger than a header frame can hold: refused before it is sent.
    invalid: bool = False
    #: Milliseconds for which a delayed exchange keeps it.
    delay_ms: int = 0


@frozen
class NetworkPlan:
    """What every connection of the run is like."""

    latency: float
    jitter: float
    window: int
    #: Bytes are carried in pieces of 1 to this many, far into a large body in larger ones; 0: as they come.
    slices: int
    #: Bytes in a second.
    bandwidth: float
    #: How long a FIN of one side takes to reach the other, beyond the latency.
    close_delay: float


@frozen
class RetryPlan:
    """What the producer's retry policy adds to `at_least_once`."""

    nacked: bool
    overdue: bool
    attempts: int | None
    #: The delay after a first nack.
    initial: float
    #: Ratio, floor and window; None: no budget.
    budget: tuple[float, float, float] | None


@frozen
class ProducerPlan:
    """The settings of the producer."""

    heartbeat: int
    connect_timeout: float
    initial: float
    cap: float
    attempts: int | None
    jitter: float
    breaker: tuple[int, float, int] | None
    stable_for: float
    publish_timeout: float
    confirm_timeout: float
    at_least_once: bool
    max_buffered: int
    max_buffered_bytes: int
    max_block: float
    max_in_flight: int
    drain_timeout: float
    write_stall_timeout: float
    frame_timeout: float
    max_inbound_body: int
    retry: RetryPlan | None = None


@frozen
class Plan:
    """Everything that decides a run, except the random streams of broker, network and scheduler, which the seed gives too."""

    seed: int
    mode: Mode
    hostile: bool
    duration: float
    #: When the faults are over; infinite in safety mode.
    healed_at: float
    ending: Ending
    ends_at: float
    producer: ProducerPlan
    network: NetworkPlan
    #: Brokers behind the one name; each has its own queues, unless they share them as the nodes of a cluster do.
    brokers: int
    sync_interval: float
    #: The broker repeats each ack of several tags: the last one alone, then all of them.
    chatty: bool
    calls: tuple[Call, ...]
    faults: tuple[Fault, ...]
    #: Whether the destinations of tests.simulation.isolation exist, and those of them that are bad.
    neighbours: bool = False
    bad: frozenset[str] = frozenset()
    #: Each broker is an endpoint of its own, in place of one name that leads to all of them.
    several_endpoints: bool = False
    #: The brokers share their queues: a message that one of them has is not in another one's queue as well.
    shared_queues: bool = False
    #: How many links the producer has.
    links: int = 1

    @property
    def messages(self) -> int:
        """How many messages the calls publish."""
        return sum(len(call.messages) for call in self.calls)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of the faults."""
        return frozenset(fault.kind for fault in self.faults)


def draw(seed: int) -> Plan:
    """Return the plan of a seed."""
    rng = stream(seed, "schedule")
    mode: Mode = "safety" if rng.random() < 0.65 else "liveness"
    hostile = mode == "safety" and rng.random() < 0.12
    quiet = not hostile and rng.random() < 0.06
    duration = rng.uniform(120, 140)
    early = mode == "liveness" and rng.random() < 0.15
    healed_at = math.inf if mode == "safety" else duration * (0.2 if early else 0.5)
    endings: tuple[Ending, ...] = ("close", "close under load", "close under load", "abort", "kill")
    ending: Ending = "close" if mode == "liveness" or quiet else rng.choice(endings)
    producer = producer_of(seed, mode, quiet=quiet)
    calls = _workload(seed, duration, producer, from_=healed_at + 1 if early else 0.0, quiet=quiet)
    links = stream(seed, "links").choice((1, 1, 1, 1, 1, 1, 2, 3, 4))
    links = min(links, producer.max_in_flight, producer.max_buffered)
    if links > 1:
        calls = tuple(_with_keys(seed, calls))
    faults = () if quiet else _faults(seed, min(duration, healed_at), calls, hostile=hostile)
    if producer.at_least_once and not quiet:
        producer = evolve(producer, retry=_retry_of(seed))
        if producer.retry is not None and producer.retry.overdue:
            faults = _by_instant((*faults, *_mute_queues(seed, min(duration, healed_at))))
    ends_at = duration if ending == "close" else _ending_instant(seed, duration, calls)
    network, brokers = network_of(seed, quiet=quiet), stream(seed, "brokers").choice((1, 1, 1, 1, 1, 2, 2, 3))
    # Each address has an equal part of `connect_timeout`. A handshake takes some ten round trips.
    least = brokers * 20 * network.latency * (1 + network.jitter)
    producer = evolve(producer, connect_timeout=max(producer.connect_timeout, least))
    if mode == "safety" and ending == "close under load":
        faults += _crossing(seed, ends_at)
    return Plan(
        seed=seed,
        mode=mode,
        hostile=hostile,
        duration=duration,
        healed_at=healed_at,
        ending=ending,
        ends_at=ends_at,
        producer=producer,
        network=network,
        brokers=brokers,
        several_endpoints=stream(seed, "endpoints").random() < 0.6,
        shared_queues=stream(seed, "shared queues").random() < 0.5,
        sync_interval=rng.choice((0.0, 0.05, 0.2)),
        chatty=rng.random() < 0.2,
        calls=calls,
        faults=faults,
        links=links,
    )


def _with_keys(seed: int, calls: tuple[Call, ...]) -> Iterator[Call]:
    """Half of the calls have one of five keys."""
    rng = stream(seed, "keys")
    for call in calls:
        yield evolve(call, key=f"customer {rng.randrange(5)}") if rng.random() < 0.5 else call


def calm(calls: tuple[Call, ...], faults: tuple[Fault, ...] = (), *, seed: int = 0, at_least_once: bool = True) -> Plan:
    """Return a plan made by hand: one broker, a fast network, plain settings, and only the faults that are given."""
    return Plan(
        seed=seed,
        mode="safety",
        hostile=False,
        duration=60.0,
        healed_at=math.inf,
        ending="close",
        ends_at=60.0,
        producer=ProducerPlan(
            heartbeat=60,
            connect_timeout=5.0,
            initial=1.0,
            cap=8.0,
            attempts=None,
            jitter=0.5,
            breaker=(5, 30.0, 1),
            stable_for=10.0,
            publish_timeout=30.0,
            confirm_timeout=20.0,
            at_least_once=at_least_once,
            max_buffered=1000,
            max_buffered_bytes=1_000_000,
            max_block=5.0,
            max_in_flight=1000,
            drain_timeout=10.0,
            write_stall_timeout=10.0,
            frame_timeout=10.0,
            max_inbound_body=1_000_000,
        ),
        network=NetworkPlan(0.0005, 0.0, 65536, 0, math.inf, 0.0),
        brokers=1,
        sync_interval=0.05,
        chatty=False,
        calls=calls,
        faults=faults,
    )


def _crossing(seed: int, ends_at: float) -> tuple[Fault, ...]:
    """Have the broker close, now and then, in the very instant in which the producer does: the two Closes cross."""
    rng = stream(seed, "crossing")
    if rng.random() < 0.8:
        return ()
    return (Fault(ends_at + rng.choice((0.0, 0.001, 0.01, 0.05)) * rng.random(), "operator close"),)


def _ending_instant(seed: int, duration: float, calls: tuple[Call, ...]) -> float:
    """End shortly after a call, late in the run, so that there is something to settle."""
    rng = stream(seed, "ending")
    late = [call.at for call in calls if call.at > duration * 0.8] or [duration]
    return rng.choice(late) + rng.choice((0.0, 0.001, 0.01, 0.1, 1.0)) * rng.random()


def producer_of(seed: int, mode: Mode, *, quiet: bool) -> ProducerPlan:
    """Draw the settings of the producer."""
    rng = stream(seed, "producer")
    pick = rng.choice
    initial = pick((0.2, 0.5, 1.0))
    publish_timeout = pick((20.0, 40.0, 60.0))
    roomy = quiet or mode == "liveness" or rng.random() < 0.5
    return ProducerPlan(
        heartbeat=pick((4, 6, 10)),
        connect_timeout=pick((3.0, 5.0, 8.0)),
        initial=initial,
        cap=initial * pick((4, 8, 16)),
        attempts=None if mode == "liveness" or rng.random() < 0.6 else pick((2, 4, 8)),
        jitter=pick((0.0, 0.5, 1.0)),
        breaker=None if rng.random() < 0.3 else (pick((1, 2, 3, 5)), pick((3.0, 8.0, 20.0)), pick((1, 1, 2))),
        stable_for=pick((2.0, 5.0, 10.0)),
        publish_timeout=publish_timeout,
        confirm_timeout=pick((8.0, 12.0, 20.0)),
        at_least_once=rng.random() < 0.75,
        max_buffered=1000 if roomy else pick((1, 3, 10)),
        max_buffered_bytes=1_000_000 if roomy else pick((9_000, 20_000, 60_000)),
        max_block=pick((0.0, 1.0, 5.0)),
        max_in_flight=1000 if roomy else pick((1, 2, 5, 20)),
        drain_timeout=pick((1.0, 5.0, 10.0)),
        write_stall_timeout=pick((3.0, 6.0, 10.0)),
        frame_timeout=pick((3.0, 5.0, 8.0)),
        max_inbound_body=pick((0, 5_000, 1_000_000)),
    )


def network_of(seed: int, *, quiet: bool) -> NetworkPlan:
    """Draw the network."""
    rng = stream(seed, "network plan")
    latency = rng.choice((0.0005, 0.005, 0.03, 0.1))
    window = 65536 if quiet else rng.choice((300, 1000, 4096, 65536))
    return NetworkPlan(
        latency=latency,
        jitter=rng.choice((0.0, 0.5, 1.0)),
        # At most a window is on its way at a time. A network that carries less in a second is a fault, not a network.
        window=max(window, round(2 * latency * 60_000)),
        slices=rng.choice((0, 0, 0, 0, 40, 400)),
        bandwidth=rng.choice((math.inf, math.inf, 1e6, 1e5)),
        close_delay=rng.choice((0.0, 0.0, 0.5, 4.0)),
    )


# --- the workload -----------------------------------------------------------------------------------------------------


def _workload(seed: int, duration: float, producer: ProducerPlan, *, from_: float, quiet: bool) -> tuple[Call, ...]:
    rng = stream(seed, "workload")
    # A publish_many that is cancelled never comes to its last messages: some more than the 50 that are promised.
    wanted = rng.randint(60, 80)
    calls: list[Call] = []
    number = 0
    habits = _Habits(rng, producer, quiet=quiet)
    while number < wanted:
        # Bursts: what is in flight together meets the same fault.
        at = from_ + rng.random() * (duration - from_)
        for _ in range(rng.choice((1, 2, 4, 8))):
            call = habits.call(at, number)
            number += len(call.messages)
            calls.append(call)
            at += rng.choice((0.0, 0.0, 0.001, 0.02, 0.3))
    if rng.random() < 0.4:
        calls += [Call(rng.uniform(from_, duration), "hint") for _ in range(rng.randint(1, 3))]
    return tuple(sorted(calls, key=lambda call: call.at))


class _Habits:
    """How the callers of one seed use the producer."""

    def __init__(self, rng: random.Random, producer: ProducerPlan, *, quiet: bool) -> None:
        self._rng = rng
        self._producer = producer
        self._large = rng.random() < 0.5
        self._cancels = rng.choice((0.0, 0.0, 0.15, 0.4))
        self._hurried = rng.choice((0.0, 0.05, 0.3))
        self._unroutable = rng.choice((0.0, 0.1, 0.3))
        self._wrong = 0.0 if quiet else rng.choice((0.0, 0.0, 0.05, 0.15))
        tame = ("jobs", "jobs", "work", "work", "quorum")
        self._addresses = tame if quiet or rng.random() < 0.6 else (*tame, "both", "small")
        self._twins = rng.choice((0.0, 0.2, 0.6))
        self._lax = rng.choice((0.0, 0.2))
        self._empty_used = False

    def call(self, at: float, number: int) -> Call:
        rng = self._rng
        how: Literal["publish", "to", "many", "run", "nowait"] = rng.choice(
            ("publish", "publish", "to", "to", "many", "run", "nowait")
        )
        if number == 0:
            how = "run"  # each seed has one
        count = 1 if how in ("publish", "to") else rng.randint(1, 12 if how == "run" else 6)
        timeout = self._producer.publish_timeout
        if rng.random() < self._hurried:
            timeout = rng.choice((0.0, 0.01, 0.1, 0.5, 2.0))
        ticks: int | None = None
        after: float | None = None
        if rng.random() < self._cancels:
            if rng.random() < 0.5:
                ticks = rng.randint(0, 12)
            else:
                after = rng.choice((0.001, 0.01, 0.1, 1.0, 5.0)) * rng.random()
        # An id that several share would leave open whose late outcome it is.
        stays = ticks is None and after is None
        items = [self._item(number + index, stays) for index in range(count)]
        if how == "run":
            # Bodies that share their fields, each with an id of its own.
            items = [evolve(items[0], message_id=None, number=each.number, size=each.size) for each in items]
        elif how == "to":
            items = [evolve(each, message_id=None) for each in items]
        return Call(at, how, tuple(items), timeout, ticks, after)

    def _item(self, number: int, may_be_twin: bool) -> Item:
        rng = self._rng
        address = rng.choice(self._addresses)
        if rng.random() < self._unroutable:
            address = "nowhere"
        poison = invalid = False
        if rng.random() < self._wrong:
            match rng.randrange(4):
                case 0:
                    address = "missing"
                case 1:
                    poison = True
                case 2:
                    invalid = True
                case _:
                    return Item(number, LARGEST + 1 + rng.randrange(100), address)
        twin = rng.random() < self._twins and may_be_twin
        return Item(
            number,
            self._size(),
            address,
            message_id=f"twin-{rng.randrange(3)}" if twin else None,
            mandatory=rng.random() >= self._lax,
            persistent=rng.random() >= self._lax,
            poison=poison,
            invalid=invalid,
        )

    def _size(self) -> int:
        rng = self._rng
        if rng.random() < 0.03 and not self._empty_used:
            self._empty_used = True
            return 0
        if rng.random() < 0.03:
            return 1
        if self._large and rng.random() < 0.3:
            return rng.choice((ROOM - 1, ROOM, ROOM + 1, 2 * ROOM, LARGEST))
        return rng.choice((20, 50, 200, 700))


# --- the faults -------------------------------------------------------------------------------------------------------


def _faults(seed: int, until: float, calls: tuple[Call, ...], *, hostile: bool) -> tuple[Fault, ...]:
    rng = stream(seed, "faults")
    pool = dict(FAULTS)
    if hostile:
        pool = {kind: (likely / 3, longest) for kind, (likely, longest) in pool.items()} | HOSTILE
    kinds = [kind for kind, (likely, _) in pool.items() if rng.random() < likely]
    if not kinds:
        kinds = ["rst"]
    faults: list[Fault] = []
    instants = [call.at for call in calls if call.at < until] or [until * 0.5]
    eager = rng.choice((0.5, 1.0, 1.5))
    for kind in kinds:
        for _ in range(max(1, round(eager * rng.choice((1, 1, 2, 3))))):
            # Mostly right after a call, while something is on its way; sometimes before all, sometimes anywhere.
            dice = rng.random()
            if dice < 0.7:
                at = rng.choice(instants) + rng.choice((0.0, 0.001, 0.01, 0.05, 0.2)) * rng.random()
            elif dice < 0.77:
                at = 0.0
            else:
                at = rng.uniform(0, until)
            longest = pool[kind][1]
            length = longest * rng.random() ** 2 + 0.05 if longest else 0.0
            at = min(at, until * 0.99)
            amount = rng.randrange(1, 100 if kind == "cut to client" else 400)
            if kind.startswith("cut to"):
                amount *= rng.choice((1, -1))
            if kind == "channel storm":
                faults += [Fault(at + 0.5 * index, "close channels", 0.0, amount) for index in range(8)]
            else:
                faults.append(Fault(at, kind, min(length, until - at), amount))
    return _by_instant(faults)


def _by_instant(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: (fault.at, fault.kind)))


# --- retry policies ---------------------------------------------------------------------------------------------------


def _retry_of(seed: int) -> RetryPlan | None:
    """Draw a policy for two seeds in five; most of them write again after a nack, half of them when overdue."""
    rng = stream(seed, "retry")
    if rng.random() < 0.6:
        return None
    overdue = rng.random() < 0.5
    return RetryPlan(
        nacked=not overdue or rng.random() < 0.7,
        overdue=overdue,
        attempts=rng.choice((None, None, 2, 4)),
        initial=rng.choice((0.3, 1.0, 4.0)),
        budget=rng.choice((None, (0.0, 0.1, 10.0), (0.1, 0.05, 10.0), (0.1, 1.0, 10.0))),
    )


def _mute_queues(seed: int, until: float) -> Iterator[Fault]:
    """One queue does not confirm for a while; the others do, so that the link is well."""
    rng = stream(seed, "mute queues")
    for _ in range(rng.randint(1, 3)):
        at = rng.uniform(0, until * 0.8)
        yield Fault(at, "mute queue", min(rng.uniform(10, 60), until - at), rng.randrange(2))
