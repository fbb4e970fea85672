"""What a user can ask of a producer that runs: its status, and to wait until it is connected."""

from __future__ import annotations

from itertools import islice

import anyio
import anyio.lowlevel

from warrener._publishing.destinations import Destinations, described
from warrener._publishing.ledger import Ledger
from warrener._settings.settings import Settings
from warrener._supervision.supervisor import Supervisor
from warrener.errors import Fault, FaultKind, GaveUp, ProducerClosed, Unreachable, connect_error
from warrener.machine import states
from warrener.records import ConnectionState, Endpoint, Status

#: Maximum number of unhealthy destinations that a status names; of those that were nacked, the last ones.
SHOWN = 10

__all__ = ["present_status", "until_connected"]


def present_status(
    state: ConnectionState,
    supervisor: Supervisor | None,
    ledger: Ledger,
    destinations: Destinations,
    settings: Settings,
    now: float,
) -> Status:
    """Return the status of a producer at the instant `now`; the supervisor is None before `run()`."""
    if supervisor is None:
        return Status(
            connection_state=state, reconnect_attempts=0, consecutive_failures=0, circuit_breaker="closed",
            healthy=False, blocked=False, in_flight=0, buffered=0, retry_in=None, last_fault=None,
            endpoint=_name(next(iter(settings.endpoints), None)), heartbeat=None, link=0,
            endpoint_failures=(0,) * len(settings.endpoints),
        )  # fmt: skip
    record, peer = supervisor.record, supervisor.peer
    blocked = isinstance(record.state, states.Up) and record.state.blocked
    breaker = "closed" if record.breaker is None else record.breaker.state
    return Status(
        connection_state=state,
        reconnect_attempts=record.attempts,
        consecutive_failures=record.failures,
        circuit_breaker=breaker,
        healthy=state is ConnectionState.CONNECTED and not blocked and breaker != "open" and not ledger.silent(now),
        blocked=blocked,
        in_flight=ledger.in_flight,
        buffered=ledger.buffered,
        retry_in=supervisor.retry_in,
        last_fault=record.last_fault,
        endpoint=_name(supervisor.endpoint),
        heartbeat=None if peer is None else peer.heartbeat,
        link=record.link,
        open_destinations=_unhealthy(ledger, destinations),
        topology_fault=supervisor.topology.refusal,
        endpoint_position=record.endpoints.current,
        endpoint_failures=tuple(each.failures for each in record.endpoints.records),
    )


def _unhealthy(ledger: Ledger, destinations: Destinations) -> tuple[str, ...]:
    """Return the names of destinations whose breaker is open, and then of those with overdue messages."""
    shown = dict.fromkeys([*destinations.open()[-SHOWN:], *islice(ledger.overdue, SHOWN)])
    return tuple(described(each) for each in islice(shown, SHOWN))


def _name(endpoint: Endpoint | None) -> str:
    """Return the endpoint without secrets; `endpoints` of the settings may not have named one yet."""
    return "not known yet" if endpoint is None else str(endpoint)


async def until_connected(supervisor: Supervisor, timeout: float) -> None:
    """Wait until messages can be written; see `Producer.wait_connected`."""
    await anyio.lowlevel.checkpoint()
    changed = anyio.Event()

    def note() -> None:
        changed.set()

    stop = supervisor.watch(note)
    try:
        with anyio.move_on_after(timeout):
            while not _connected(supervisor):
                changed = anyio.Event()
                await changed.wait()
            return
        if isinstance(supervisor.record.state, states.Up):
            raise Unreachable(Fault(FaultKind.UNREACHABLE, f"the broker has blocked publishers for {timeout:g} s"))
        fault = supervisor.record.last_fault
        why = f"; last fault: {fault}" if fault is not None else ""
        raise Unreachable(Fault(FaultKind.UNREACHABLE, f"no connection within {timeout:g} s{why}"))
    finally:
        stop()


def _connected(supervisor: Supervisor) -> bool:
    """Whether messages can be written now. Raises if it is useless to wait for a connection."""
    record = supervisor.record
    fault = record.last_fault
    if isinstance(record.state, (states.Closed, states.Closing)) or record.draining:
        raise ProducerClosed("", "the producer is closed", last_fault=fault)
    if isinstance(record.state, states.GaveUp):
        raise GaveUp("", "the reconnect attempts are used up", last_fault=fault)
    refused = record.endpoints.all_refused and fault is not None and fault.permanent
    if isinstance(record.state, states.Waiting) and fault is not None and refused:
        raise connect_error(fault)
    return isinstance(record.state, states.Up) and not record.state.blocked
