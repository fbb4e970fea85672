"""Plans with bad destinations beside sound ones, and how a broker gets them.

Each seed has one plan of this kind, which `tests.simulation.isolation` runs twice: `beside` several bad destinations, and
`alone`, with the same calls while each destination is well.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

import trio
from attrs import evolve

from tests.simulation.schedule import (
    DELAYED,
    Call,
    Fault,
    Item,
    Plan,
    calm,
    network_of,
    producer_of,
    stream,
)
from warrener.testing.broker import EmbeddedBroker

__all__ = ["BAD", "DELETED", "FAULTS_FROM", "FIRST_BAD", "alone", "beside", "prepare"]

#: Kinds of bad destination: the address that its messages go to, and the virtual second at which it is mended.
BAD: Final = {
    "absent": ("absent", None),  # an exchange that never exists
    "returning": ("returning", 6.0),  # an exchange that is declared in the middle of the run
    "full": ("full", None),  # a queue that refuses every message
    "slow": ("slow", None),  # a queue that confirms late
    "mute": ("mute", None),  # a queue that never confirms
    "forbidden": ("forbidden", None),  # an exchange without the permission to write
    "poisoned": ("jobs", None),  # messages that cost the channel (406), to a queue that is well
    "nameless": ("jobs", None),  # the same, and the broker's text does not say which message it was
    "delayed": ("delayed", None),  # an exchange of a plugin: return and ack, and yet delivered
    "deleted": ("deleted-{}", None),  # eight exchanges that are deleted after a message to each was confirmed
}
#: The exchanges that are deleted, and the virtual second at which that happens.
DELETED: Final = tuple(f"deleted-{number}" for number in range(8))
DELETED_AT: Final = 5.0
#: The window of plans in which a burst that would fill it goes to the queue that never confirms, and the size of the burst.
#: Its reserve has places for all messages to the slow queue at once.
WINDOW: Final = 300
BURST: Final = range(270, 391)
#: Messages from this number on belong to a bad destination.
FIRST_BAD: Final = 3000
#: Virtual seconds. Calls begin after the first and end before the second; only later may the link have faults.
BEGIN, END, FAULTS_FROM, ENDS_AT = 1.5, 16.0, 30.0, 45.0
SLOWNESS = 3.0
_SOUND = ("jobs", "jobs", "work", "quorum")
_TROUBLES = ("rst", "fin", "freeze", "crash", "operator close", "cut to broker", "cut to client", "alarm")


def beside(seed: int) -> Plan:
    """Return the plan of a seed with bad destinations."""
    rng = stream(seed, "isolation")
    # A destination that holds a tenth of a tiny window or buffer would hold less than one message.
    producer = producer_of(seed, "liveness", quiet=False)
    # A network on which a channel is opened and a message sent again well within a second; and with two addresses, a
    # handshake within half of `connect_timeout`.
    network, brokers = network_of(seed, quiet=False), rng.choice((1, 1, 2))
    kinds = rng.sample(sorted(BAD), rng.randint(3, len(BAD)))
    calls = [*_sound_calls(rng, producer.publish_timeout)]
    number = FIRST_BAD
    for kind in kinds:
        for call in _bad_calls(rng, kind, number):
            calls.append(call)
            number += len(call.messages)
    if "mute" in kinds and (burst := stream(seed, "burst")).random() < 0.5:
        producer = evolve(producer, max_in_flight=WINDOW)
        calls += _burst(burst, number)
    faults = [*_lost_dials(rng)]
    faults += [
        Fault(rng.uniform(FAULTS_FROM, ENDS_AT), rng.choice(_TROUBLES), 2.0, 50) for _ in range(rng.randint(0, 3))
    ]
    plan = calm(
        tuple(sorted(calls, key=lambda call: call.at)), tuple(sorted(faults, key=lambda fault: fault.at)), seed=seed
    )
    return evolve(
        plan,
        duration=ENDS_AT,
        ends_at=ENDS_AT,
        producer=producer,
        network=evolve(
            network,
            latency=min(network.latency, 0.005),
            window=max(network.window, 4096),
            bandwidth=max(network.bandwidth, 1e6),
            slices=0,
        ),
        brokers=brokers,
        sync_interval=rng.choice((0.0, 0.05)),
        neighbours=True,
        bad=frozenset(kinds),
    )


def _lost_dials(rng: random.Random) -> Iterator[Fault]:
    """Half of the plans lose the link while dials fail for a time."""
    if rng.random() < 0.5:
        at = rng.uniform(FAULTS_FROM, FAULTS_FROM + 5.0)
        yield Fault(at, rng.choice(("refuse", "mute", "accept then drop")), 9.0)
        yield Fault(at + 0.01, "rst")


def alone(plan: Plan) -> Plan:
    """Return the same plan with each destination well."""
    calls = tuple(evolve(call, messages=tuple(_well(item) for item in call.messages)) for call in plan.calls)
    return evolve(plan, bad=frozenset(), calls=calls, faults=(), ends_at=FAULTS_FROM)


def _well(item: Item) -> Item:
    return evolve(item, poison=False, nameless=False, delay_ms=0)


def _sound_calls(rng: random.Random, timeout: float) -> Iterator[Call]:
    number = 0
    while number < 40:
        at = rng.uniform(BEGIN, END)
        count = rng.choice((1, 1, 1, 1, 4))
        items = tuple(Item(number + index, rng.choice((20, 200, 700)), rng.choice(_SOUND)) for index in range(count))
        yield Call(at, "publish" if count == 1 else rng.choice(("many", "nowait")), items, timeout)
        number += count


def _bad_calls(rng: random.Random, kind: str, number: int) -> Iterator[Call]:
    address, mended_at = BAD[kind]
    if kind == "deleted":
        yield from _calls_to_deleted(rng, number)
        return
    count = rng.randint(3, 12)
    timeout = rng.choice((6.0, 12.0, 25.0))
    items = [
        Item(
            number + index,
            rng.choice((20, 200)),
            address,
            poison=kind in ("poisoned", "nameless"),
            nameless=kind == "nameless",
            delay_ms=2000 if kind == "delayed" else 0,
        )
        for index in range(count)
    ]
    if rng.random() < 0.5 and mended_at is None:
        yield Call(rng.uniform(BEGIN, END), rng.choice(("many", "nowait")), tuple(items), timeout)
        return
    for item in items:
        yield Call(rng.uniform(BEGIN, END), "publish", (item,), timeout)


def _burst(rng: random.Random, number: int) -> Iterator[Call]:
    """As many messages at once as the window has places, to a queue that has been healthy until then."""
    at, how, timeout = (
        rng.uniform(BEGIN, END - 2.0),
        rng.choice(("publish", "many", "run", "nowait")),
        rng.choice((12.0, 25.0, 60.0)),
    )
    items = [Item(number + index, 20, "mute") for index in range(rng.choice(BURST))]
    if how == "publish":
        yield from (Call(at, "publish", (item,), timeout) for item in items)
    else:
        yield Call(at, how, tuple(items), timeout)


def _calls_to_deleted(rng: random.Random, number: int) -> Iterator[Call]:
    """Two messages to each exchange: one is confirmed, so that the exchange is covered; the other closes the main channel."""
    for place, address in enumerate(DELETED):
        size = rng.choice((20, 200))
        yield Call(rng.uniform(BEGIN, BEGIN + 1.5), "publish", (Item(number + 2 * place, size, address),), 12.0)
        at = DELETED_AT + 0.2 + 0.3 * place
        yield Call(at, "publish", (Item(number + 2 * place + 1, size, address),), 12.0)


# --- the brokers --------------------------------------------------------------------------------------------------------


def prepare(plan: Plan, brokers: Sequence[EmbeddedBroker], user: str, vhost: str, tasks: trio.Nursery) -> None:
    """Make the destinations, bad or well, on each broker."""
    for broker in brokers:
        for queue in ("spare", "slow", "mute"):
            broker.declare_queue(queue, vhost)
        limits: dict[str, str | int] = {"x-max-length": 0, "x-overflow": "reject-publish"}
        broker.declare_queue("full", vhost, limits if "full" in plan.bad else None)
        broker.declare_exchange("forbidden", vhost=vhost)
        broker.bind_queue("spare", "forbidden", "spare", vhost)
        broker.declare_exchange("delayed", DELAYED, vhost, {"x-delayed-type": "direct"})
        broker.bind_queue("spare", "delayed", "spare", vhost)
        for exchange in DELETED:
            _declare(broker, exchange, vhost)
        for exchange in ("absent", "returning"):
            if exchange not in plan.bad:
                _declare(broker, exchange, vhost)
        if "forbidden" in plan.bad:
            broker.set_permissions(user, vhost=vhost, write="^(?!forbidden$)")
        if "slow" in plan.bad:
            broker.delay_confirms(SLOWNESS, "slow", vhost)
        if "mute" in plan.bad:
            broker.stall_confirms(queue="mute", vhost=vhost)
        if "deleted" in plan.bad:
            tasks.start_soon(_delete, broker, vhost)
        if "returning" in plan.bad:
            tasks.start_soon(_return, broker, vhost)


def _declare(broker: EmbeddedBroker, exchange: str, vhost: str) -> None:
    broker.declare_exchange(exchange, vhost=vhost)
    broker.bind_queue("spare", exchange, "spare", vhost)


async def _delete(broker: EmbeddedBroker, vhost: str) -> None:
    await trio.sleep_until(DELETED_AT)
    for exchange in DELETED:
        broker.delete_exchange(exchange, vhost)


async def _return(broker: EmbeddedBroker, vhost: str) -> None:
    at = BAD["returning"][1]
    assert at is not None
    await trio.sleep_until(at)
    _declare(broker, "returning", vhost)
