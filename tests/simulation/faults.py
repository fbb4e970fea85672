"""Performs the faults of a plan on the network and the broker, and ends all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import trio
from trio.testing import MockClock

from tests.simulation.network import Network, Wire
from tests.simulation.schedule import FRAME_MAX, Fault
from tests.simulation.trace import Trace
from warrener.testing.broker import EmbeddedBroker, Tuning
from warrener.testing.broker._codec import Content, Method, encode_frame, encode_method
from warrener.testing.broker._protocol import Connection, ConnectionPhase

__all__ = ["VHOST", "FaultInjector"]

VHOST = "sim"
USER = "maker"
_DIALS = frozenset(
    {"refuse", "no name", "black hole", "mute", "not amqp", "accept then drop", "drip handshake", "cut new links"}
)
_RETURN = 312


class FaultInjector:
    """What can go wrong, one method for each kind; `begin` and `end` are told by the plan."""

    def __init__(
        self,
        brokers: Sequence[EmbeddedBroker],
        network: Network,
        trace: Trace,
        rng: random.Random,
        clock: MockClock,
        password: str,
    ) -> None:
        self._brokers = brokers
        self._network = network
        self._trace = trace
        self._rng = rng
        self._clock = clock
        self._password = password
        self._tuning = brokers[0].tuning
        #: Which brokers a fault of this kind has hit, and which addresses.
        self._hit: dict[str, list[EmbeddedBroker]] = {}
        self._addresses: dict[str, list[str]] = {}
        #: Which faults last at this instant, by kind: a second one of a kind prolongs the first.
        self.lasting: dict[str, int] = {}
        #: When all faults had ended.
        self.healed_at: float | None = None
        #: (from, until) of jumps of the clock.
        self.jumps: list[tuple[float, float]] = []
        #: When queues were deleted, by name; "*" for all.
        self.deletions: list[tuple[float, str]] = []
        #: When brokers crashed.
        self.crashes: list[float] = []
        #: When the broker sent a lie that no client can tell from the truth.
        self.credible_lies: list[float] = []
        #: By kind: how it begins, and how it ends where it lasts.
        self._kinds: dict[str, tuple[Callable[[Fault], None], Callable[[], None]]] = {
            "rst": (self._rst, _nothing),
            "fin": (self._fin, _nothing),
            "freeze": (self._freeze, self.thaw),
            "freeze to broker": (self._freeze_to_broker, self.thaw),
            "freeze to client": (self._freeze_to_client, self.thaw),
            "slow": (self._slow, self._not_slow),
            "drip": (self._drip, _nothing),
            "cut to broker": (self._cut_to_broker, _nothing),
            "cut to client": (self._cut_to_client, _nothing),
            "corrupt": (self._corrupt, _nothing),
            "jump": (self._jump, _nothing),
            "silent login": (_nothing, _nothing),
            "close in open": (_nothing, _nothing),
            "bad tune": (self._bad_tune, self._good_tune),
            "crash": (self._crash, self._restart),
            "stop": (self._stop, self._restart),
            "operator close": (self._operator_close, _nothing),
            "close 5xx": (self._close_5xx, _nothing),
            "freeze broker": (self._freeze_broker, self._thaw_broker),
            "alarm": (self._alarm, self._no_alarm),
            "flow": (self._flow, self._flow_again),
            "stall": (self._stall, self._no_stall),
            "mute queue": (self._mute_queue, self._no_mute_queue),
            "close channels": (self._close_channels, _nothing),
            "delete exchange": (self._delete_exchange, _nothing),
            "revoke write": (self._revoke_write, self._grant_write),
            "wrong password": (self._wrong_password, self._right_password),
            "delete vhost": (self._delete_vhost, self._add_vhost),
            "delete user": (self._delete_user, self._add_user),
            "topology mismatch": (self._topology_mismatch, self._topology_match),
            "kill queue": (self._kill_queue, _nothing),
            "delete queue": (self._delete_queue, _nothing),
            "garbage": (self._garbage, _nothing),
            "big frame": (self._big_frame, _nothing),
            "endless frame": (self._endless_frame, _nothing),
            "ack zero": (self._ack_zero, _nothing),
            "ack unassigned": (self._ack_unassigned, _nothing),
            "ack again": (self._ack_again, _nothing),
            "foreign return": (self._foreign_return, _nothing),
        }
        for broker in brokers:
            broker.intercept = self._intercept

    async def run(self, faults: tuple[Fault, ...]) -> None:
        """Perform the faults at their instants; returns after the last has ended."""
        agenda: list[tuple[float, int, bool, Fault]] = []
        for place, fault in enumerate(faults):
            agenda.append((fault.at, place, True, fault))
            if fault.duration:
                agenda.append((fault.at + fault.duration, place, False, fault))
        for at, _, begins, fault in sorted(agenda, key=lambda entry: entry[:3]):
            await trio.sleep_until(at)
            if self.healed_at is not None:
                return  # the clock jumped past the end of the faults
            if begins:
                self.begin(fault)
            else:
                self.end(fault.kind)

    def begin(self, fault: Fault) -> None:
        """Inflict one fault."""
        self._trace.note(f"FAULT {fault}")
        if fault.duration:
            self.lasting[fault.kind] = self.lasting.get(fault.kind, 0) + 1
        if fault.kind in _DIALS:
            self._set_fates(fault.kind)
            return
        self._kinds[fault.kind][0](fault)

    def end(self, kind: str) -> None:
        """End a fault that lasts, unless another of its kind still does."""
        if kind not in self.lasting:
            return
        self.lasting[kind] -= 1
        if self.lasting[kind]:
            return
        del self.lasting[kind]
        self._trace.note(f"over: {kind}")
        if kind in _DIALS:
            self._clear_fates(kind)
            return
        self._kinds[kind][1]()

    def heal(self) -> None:
        """End everything that lasts, but for what is wrong with one connection: its owner has to notice that itself."""
        if self.healed_at is None:
            self.healed_at = trio.current_time()
        for kind in tuple(self.lasting):
            if kind in ("freeze", "freeze to broker", "freeze to client"):
                continue
            self.lasting[kind] = 1
            self.end(kind)
        for broker in self._brokers:
            if "jobs" not in broker.queues(VHOST):
                broker.declare_queue("jobs", vhost=VHOST)

    def _set_fates(self, kind: str) -> None:
        """Have dials fail in this way: to every broker, or, where there are several, perhaps to some only."""
        addresses = self._network.addresses
        count = len(addresses) if self._rng.random() < 0.3 else self._rng.randint(1, len(addresses))
        for address in self._rng.sample(addresses, count):
            self._network.fates[address] = kind

    def _clear_fates(self, kind: str) -> None:
        fates = self._network.fates
        for address in [address for address, fate in fates.items() if fate == kind]:
            del fates[address]

    # --- the network --------------------------------------------------------------------------------------------------

    def _each(self, act: Callable[[Wire], None]) -> None:
        for wire in self._network.live:
            act(wire)

    def _rst(self, fault: Fault) -> None:
        rng = self._rng
        for wire in self._network.live:
            wire.ended_by = "rst"
            wire.reset(rng.randrange(200), rng.choice((0, 50, 1000, 1 << 20)))

    def _fin(self, fault: Fault) -> None:
        for wire in self._network.live:
            wire.ended_by = "fin"
            wire.finish()

    def _freeze(self, fault: Fault) -> None:
        self._each(lambda wire: wire.freeze(to_broker=True, to_client=True))

    def _freeze_to_broker(self, fault: Fault) -> None:
        self._each(lambda wire: wire.freeze(to_broker=True, to_client=False))

    def _freeze_to_client(self, fault: Fault) -> None:
        self._each(lambda wire: wire.freeze(to_broker=False, to_client=True))

    def thaw(self) -> None:
        """Let all frozen bytes go, also on connections that the producer has left."""
        for wire in self._network.wires:
            wire.thaw()

    def _slow(self, fault: Fault) -> None:
        for wire in self._network.live:
            for way in (wire.to_broker, wire.to_client):
                way.latency, way.bandwidth = 0.5, 20_000.0

    def _not_slow(self) -> None:
        for wire in self._network.wires:
            for way in (wire.to_broker, wire.to_client):
                way.latency, way.bandwidth = self._network.plan.latency, self._network.plan.bandwidth

    def _drip(self, fault: Fault) -> None:
        for wire in self._network.live:
            wire.to_client.drip = 1.0

    def _cut_to_broker(self, fault: Fault) -> None:
        for wire in self._network.live:
            wire.to_broker.cut(fault.amount)

    def _cut_to_client(self, fault: Fault) -> None:
        for wire in self._network.live:
            wire.to_client.cut(fault.amount)

    def _corrupt(self, fault: Fault) -> None:
        self.credible_lies.append(trio.current_time())
        for wire in self._network.live:
            wire.to_client.corrupt_next = True

    def _jump(self, fault: Fault) -> None:
        now = trio.current_time()
        seconds = 1.0 + fault.amount % 25
        self.jumps.append((now, now + seconds))
        self._clock.jump(seconds)

    # --- the broker ---------------------------------------------------------------------------------------------------

    def _intercept(self, connection: Connection, channel: int, what: Method | Content) -> bool:
        if isinstance(what, Content):
            return False
        if what.name == "connection.close" and connection.phase is ConnectionPhase.CLOSING:
            self._trace.see("crossed Closes")
        elif what.name == "connection.start_ok" and "silent login" in self.lasting:
            self._trace.see("silent login")
            return True
        elif what.name == "channel.open" and "close in open" in self.lasting:
            self._trace.see("close in open")
            if self._rng.random() < 0.5:
                connection.close(541, "not now")
            else:
                connection.end("reset")
            return True
        return False

    def _some(self, kind: str) -> list[EmbeddedBroker]:
        """Choose whom a fault hits that befalls one machine: one broker, or all."""
        hit = self._hit.get(kind, [])
        chosen = list(self._brokers) if self._rng.random() < 0.5 else [self._rng.choice(self._brokers)]
        self._hit[kind] = [*hit, *(broker for broker in chosen if broker not in hit)]
        return chosen

    def _crash(self, fault: Fault) -> None:
        self.crashes.append(trio.current_time())
        for broker in self._some("down"):
            broker.crash()

    def _stop(self, fault: Fault) -> None:
        for broker in self._some("down"):
            broker.stop()

    def _restart(self) -> None:
        if not self.lasting.get("crash") and not self.lasting.get("stop"):
            for broker in self._hit.pop("down", []):
                broker.restart()

    def _operator_close(self, fault: Fault) -> None:
        for broker in self._brokers:
            broker.close_all_connections()

    def _close_5xx(self, fault: Fault) -> None:
        code = self._rng.choice((501, 504, 505, 506, 540, 541))
        for broker in self._brokers:
            broker.close_all_connections(code, "so be it")

    def _freeze_broker(self, fault: Fault) -> None:
        for broker in self._some("freeze broker"):
            broker.freeze()

    def _thaw_broker(self) -> None:
        for broker in self._hit.pop("freeze broker", []):
            broker.thaw()

    def _alarm(self, fault: Fault) -> None:
        for broker in self._brokers:
            broker.alarm()

    def _no_alarm(self) -> None:
        for broker in self._brokers:
            broker.alarm(on=False)

    def _flow(self, fault: Fault) -> None:
        for broker in self._brokers:
            broker.flow(active=False)

    def _flow_again(self) -> None:
        for broker in self._brokers:
            broker.flow(active=True)

    def _stall(self, fault: Fault) -> None:
        for broker in self._brokers:
            broker.stall_confirms()

    def _no_stall(self) -> None:
        for broker in self._brokers:
            broker.stall_confirms(on=False)

    def _mute_queue(self, fault: Fault) -> None:
        name = ("jobs", "quorum")[fault.amount]
        for broker in self._brokers:
            if name in self._queues_of(broker):
                broker.stall_confirms(queue=name, vhost=VHOST)

    def _no_mute_queue(self) -> None:
        for broker in self._brokers:
            for name in {"jobs", "quorum"} & self._queues_of(broker):
                broker.stall_confirms(on=False, queue=name, vhost=VHOST)

    def _queues_of(self, broker: EmbeddedBroker) -> set[str]:
        """Return the queues of the broker; none while its virtual host is deleted."""
        return set() if "delete vhost" in self.lasting else set(broker.queues(VHOST))

    def _close_channels(self, fault: Fault) -> None:
        # Not one of the codes that RabbitMQ closes a publisher's channel with because of a publish: it would be a lie.
        code = self._rng.choice((312, 405))
        for broker in self._brokers:
            broker.close_channels(code, "closed by the simulation")

    def _bad_tune(self, fault: Fault) -> None:
        floor = Tuning(frame_max=self._rng.choice((1000, 4095)), frame_min=1, heartbeat=self._tuning.heartbeat)
        for broker in self._brokers:
            broker.tuning = floor

    def _good_tune(self) -> None:
        for broker in self._brokers:
            broker.tuning = self._tuning

    def _delete_exchange(self, fault: Fault) -> None:
        if "delete vhost" not in self.lasting:
            for broker in self._brokers:
                broker.delete_exchange("work", vhost=VHOST)

    def _revoke_write(self, fault: Fault) -> None:
        self._permit("^$")

    def _grant_write(self) -> None:
        self._permit(".*")

    def _permit(self, write: str) -> None:
        if "delete user" not in self.lasting and "delete vhost" not in self.lasting:
            for broker in self._brokers:
                broker.set_permissions(USER, vhost=VHOST, write=write)

    def _wrong_password(self, fault: Fault) -> None:
        # New credentials end the connections that were made with the old ones, as an expired token does.
        self._set_password("another")
        for broker in self._brokers:
            broker.close_all_connections(320, "the credentials have expired")

    def _right_password(self) -> None:
        self._set_password(self._password)

    def _set_password(self, password: str) -> None:
        if "delete user" not in self.lasting:
            for broker in self._brokers:
                broker.add_user(USER, password, None)

    def _delete_vhost(self, fault: Fault) -> None:
        if self.lasting["delete vhost"] == 1:
            self.deletions.append((trio.current_time(), "*"))
            for broker in self._brokers:
                broker.delete_vhost(VHOST)

    def _add_vhost(self) -> None:
        for broker in self._brokers:
            broker.add_vhost(VHOST)
            if "delete user" not in self.lasting:
                broker.set_permissions(USER, vhost=VHOST)

    def _delete_user(self, fault: Fault) -> None:
        if self.lasting["delete user"] == 1:
            for broker in self._brokers:
                broker.delete_user(USER)

    def _add_user(self) -> None:
        password = "another" if "wrong password" in self.lasting else self._password
        for broker in self._brokers:
            broker.add_user(USER, password, VHOST if "delete vhost" not in self.lasting else None)

    def _queues(self, broker: EmbeddedBroker) -> list[str]:
        return [] if "delete vhost" in self.lasting else list(broker.queues(VHOST))

    def _delete(self, broker: EmbeddedBroker, queue: str) -> bool:
        if queue not in self._queues(broker):
            return False
        self.deletions.append((trio.current_time(), queue))
        broker.delete_queue(queue, vhost=VHOST)
        return True

    def _topology_mismatch(self, fault: Fault) -> None:
        for broker in self._brokers:
            if self._delete(broker, "quorum"):
                broker.declare_queue("quorum", vhost=VHOST, arguments={"x-max-length": 5})
                broker.close_all_connections()

    def _topology_match(self) -> None:
        for broker in self._brokers:
            self._delete(broker, "quorum")

    def _kill_queue(self, fault: Fault) -> None:
        for broker in self._brokers:
            for queue in self._queues(broker):
                broker.kill_queue(queue, vhost=VHOST)

    def _delete_queue(self, fault: Fault) -> None:
        queue = self._rng.choice(("jobs", "quorum", "small"))
        for broker in self._brokers:
            if any(client.unconfirmed for client in broker.clients) and self._delete(broker, queue):
                self._trace.see("queue deleted while confirms are pending")
            else:
                self._delete(broker, queue)

    # --- lies ---------------------------------------------------------------------------------------------------------

    def _garbage(self, fault: Fault) -> None:
        lies = (
            encode_frame(1, 1, b"\x00\x3c\x00\x50" + bytes(9))[:-1] + b"\x00",
            b"\x07\x00\x00\x00\x00\x00\x00\xce",
            encode_frame(8, 1, b""),
            encode_frame(1, 0, b"\x00\x0a\x00\x0b"),
            encode_frame(1, 1, b"\x03\xe7\x03\xe7"),
            encode_frame(3, 1, b"unexpected"),
            self._rng.randbytes(30),
        )
        self._tell(self._rng.choice(lies))

    def _tell(self, data: bytes) -> None:
        for broker in self._brokers:
            broker.send_bytes(data)

    def _big_frame(self, fault: Fault) -> None:
        self._tell(b"\x01\x00\x01" + (FRAME_MAX * 4).to_bytes(4) + bytes(100))

    def _endless_frame(self, fault: Fault) -> None:
        self._tell(b"\x01\x00\x01" + (100).to_bytes(4) + bytes(10))

    def _lie(self, name: str, **fields: int | bool) -> None:
        for broker in self._brokers:
            for client in broker.clients:
                if client.channels:
                    broker.send_bytes(encode_method(client.channels[0], name, **fields), client.number)

    def _ack_zero(self, fault: Fault) -> None:
        self._trace.see("lie: ack zero")
        self._lie("basic.ack", delivery_tag=0, multiple=fault.amount % 2 == 0)

    def _ack_unassigned(self, fault: Fault) -> None:
        self._trace.see("lie: ack unassigned")
        self._lie(self._rng.choice(("basic.ack", "basic.nack")), delivery_tag=1 << 40, multiple=fault.amount % 2 == 0)

    def _ack_again(self, fault: Fault) -> None:
        self._trace.see("lie: ack again")
        self.credible_lies.append(trio.current_time())
        self._lie("basic.ack", delivery_tag=1, multiple=False)

    def _foreign_return(self, fault: Fault) -> None:
        # Nobody's message, to an address that others use: it may be anybody's, as far as the producer can tell.
        self.credible_lies.append(trio.current_time())
        for broker in self._brokers:
            for client in broker.clients:
                if client.channels:
                    broker.send_bytes(_return_of_nothing(client.channels[0]), client.number)


def _return_of_nothing(channel: int) -> bytes:
    return b"".join(
        (
            encode_method(
                channel, "basic.return", reply_code=_RETURN, reply_text="NO_ROUTE", exchange="", routing_key="jobs"
            ),
            encode_frame(2, channel, b"\x00\x3c\x00\x00" + (3).to_bytes(8) + b"\x00\x00"),
            encode_frame(3, channel, b"abc"),
        )
    )


def _nothing(*_: object) -> None:
    """A kind that only `_intercept` looks at, or that is over at once."""
