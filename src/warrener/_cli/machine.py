"""The table of transitions and its pictures, printed by running `transition` over representative records and events.

Nothing here repeats the rules of the machine: a row of the table exists because `transition` was called and answered.
Written by hand are only the representatives, one record for each case that a state distinguishes, and a phrase for each
case. `python scripts/machine_docs.py` writes docs/state-table.md, docs/state-diagram.dot and docs/state-diagram.svg. A
test compares these files with the output of this module.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import get_args

from attrs import evolve, frozen

from warrener._cli.common import Commands
from warrener.errors import Fault, FaultKind
from warrener.machine import effects, events, states
from warrener.machine._record import Policy, Record, Step, connection_state
from warrener.machine._transitions import transition
from warrener.machine.backoff import Backoff
from warrener.machine.breaker import Breaker, Permit, admit, cooled, failed, released, retry_after, succeeded
from warrener.machine.endpoints import EndpointRecord, Endpoints

__all__ = [
    "BreakerRow",
    "Line",
    "Row",
    "add_parser",
    "breaker_rows",
    "dot",
    "edges",
    "every_row",
    "lines",
    "markdown",
    "mermaid",
    "rows",
]

#: The instant of every event in the table, the link that the event is about, and the faults of the events.
AT = 100.0
LINK = 3
LOST = Fault(FaultKind.CONNECTION_LOST, "connection reset")
SHUTDOWN = Fault(FaultKind.CLOSED_BY_BROKER, "CONNECTION_FORCED", reply_code=320)
REFUSED = Fault(FaultKind.UNREACHABLE, "connection refused")
PASSWORD = Fault(FaultKind.AUTHENTICATION, "ACCESS_REFUSED", reply_code=403)
MISMATCH = Fault(FaultKind.TOPOLOGY, "PRECONDITION_FAILED", reply_code=406, entity="queue 'tasks'")
NO_ANSWER = Fault(FaultKind.LOOKUP, "endpoints() did not answer")
NO_EXCHANGE = Fault(FaultKind.CHANNEL_CLOSED, "NOT_FOUND", reply_code=404)

#: One endpoint that failed once; two endpoints, of which the other one is ready; two endpoints that both failed, with
#: the second one current; one endpoint that works.
ONE = Endpoints((EndpointRecord(1, AT - 20, LOST, 1),), tried=frozenset({0}))
TWO = Endpoints((ONE.record, EndpointRecord()), (0, 1), tried=frozenset({0}))
SECOND = Endpoints((EndpointRecord(1, AT + 10, PASSWORD, 1), ONE.record), (1, 0), 1, frozenset({0, 1}))
WORKING = Endpoints((EndpointRecord(0, last_fault=LOST, address=1),), tried=frozenset({0}))
#: Discovery has not named any endpoint yet.
NONE_KNOWN = Endpoints((), (), 0)
WORKING_TWO = Endpoints((WORKING.record, EndpointRecord()), (0, 1), tried=frozenset({0}))

#: A breaker with one failure less than its threshold, an open one, a half-open one, and one whose only probe is out.
EDGE = Breaker(failures=4)
OPEN = Breaker(state="open", failures=5, generation=1, opened_at=AT - 10)
HALF_OPEN = Breaker(state="half_open", failures=5, generation=2, opened_at=AT - 30)
PROBE = Permit(2, 1)
PROBING = Breaker(state="half_open", failures=5, generation=2, opened_at=AT - 30, outstanding=frozenset({1}), issued=1)


@frozen
class Row:
    """One answer of the machine. `given` is a condition beside the state; it is "" in the plain case."""

    given: str
    occasion: str
    record: Record
    event: events.Event
    policy: Policy
    step: Step

    @property
    def state(self) -> str:
        """The name of the state before the event."""
        return type(self.record.state).__name__

    @property
    def then(self) -> str:
        """The state and the other fields of the record after the event, if they changed."""
        return _then(self.record, self.step.record)

    @property
    def orders(self) -> str:
        """The effects in their order."""
        return _orders(self.step.effects)


@frozen
class Line:
    """One line of the table: rows of several states or events with the same answer."""

    rows: tuple[Row, ...]

    @property
    def condition(self) -> str:
        """The states and the condition, for example ``Restoring, Up: attempts used up``."""
        names, given = ", ".join(dict.fromkeys(row.state for row in self.rows)), self.rows[0].given
        return f"{names}: {given}" if given else names

    @property
    def occasion(self) -> str:
        """The events, for example ``Drained / DrainTimerFired``."""
        return " / ".join(dict.fromkeys(row.occasion for row in self.rows))

    @property
    def name(self) -> str:
        """The name of the line in the tests."""
        return f"{self.condition} | {self.occasion}"


# --- representatives -------------------------------------------------------------------------------------------------


_BACKOFF = Backoff(cap=60, attempts=10)
_STAY = Policy(backoff=_BACKOFF)
_RAISE = Policy(backoff=_BACKOFF, when_exhausted="raise")
_START_JITTER = Policy(backoff=_BACKOFF, start_jitter=5.0)
_PREFER = Policy(backoff=_BACKOFF, prefer="first")
_DISCOVERY = Policy(backoff=_BACKOFF, discovery=True)
_CLOSES = tuple(AT - seconds for seconds in (9, 7, 5, 3, 1))


def _plain(state: states.State) -> Record:
    """Return the record of a producer that has lost a link: it is at link 3, with 2 attempts and 1 failure."""
    return Record(
        state=state,
        attempts=2,
        failures=1,
        breaker=Breaker(failures=1),
        last_fault=LOST,
        connected_once=True,
        endpoints=ONE,
        at=AT - 20,
    )


def _situations(state: states.State) -> Iterator[tuple[str, Record, Policy]]:
    """Yield the cases that the state distinguishes: the plain case first, each other one with a phrase for it."""
    plain = _plain(state)
    if isinstance(state, states.Idle):
        yield "", Record(), _STAY
        yield "start_jitter of 5 s", Record(), _START_JITTER
        yield "discovery", Record(), _DISCOVERY
        return
    yield "", plain, _STAY
    seeking = isinstance(
        state, (states.Dialing, states.Restoring, states.Up, states.HandingOver, states.Dropping, states.Waiting)
    )
    if isinstance(state, (states.Waiting, states.GaveUp)):
        yield "less than 1 s after the last hint", evolve(plain, hinted_at=AT - 0.5), _STAY
        yield from _with_discovery(state, plain)
    if isinstance(state, (states.Dialing, states.Restoring, states.Up)):
        yield "blocked", evolve(plain, state=evolve(state, blocked=True)), _STAY
    if isinstance(state, (states.Dialing, states.Restoring)):
        yield "never connected", evolve(plain, connected_once=False), _STAY
    if isinstance(state, (states.Dialing, states.Restoring, states.Up)):
        yield "another endpoint is ready", evolve(plain, endpoints=TWO), _STAY
    if isinstance(state, states.Up):
        proven = evolve(plain, state=states.Up(LINK, proven=True), attempts=0, endpoints=WORKING)
        yield "proven", proven, _STAY
        yield "proven, no failures", evolve(proven, failures=0, breaker=Breaker()), _STAY
        yield "proven, another endpoint is ready", evolve(proven, endpoints=WORKING_TWO), _STAY
    if isinstance(state, (states.Restoring, states.Up)):
        yield "five channels closed within 10 s", evolve(plain, channel_closes=_CLOSES), _STAY
    if seeking:
        yield "draining", evolve(plain, draining=True), _STAY
    if seeking and not isinstance(state, states.Waiting):
        used_up = evolve(plain, attempts=10)
        yield "attempts used up", used_up, _STAY
        yield 'attempts used up, when_exhausted="raise"', used_up, _RAISE
        yield "draining, attempts used up", evolve(used_up, draining=True), _STAY
    if seeking or isinstance(state, states.GaveUp):
        for words, breaker in _BREAKERS:
            yield words, evolve(plain, failures=breaker.failures, breaker=breaker), _STAY
    if isinstance(state, states.HandingOver):
        yield "closing", evolve(plain, state=evolve(state, closing=True)), _STAY
        yield "closing, draining", evolve(plain, state=evolve(state, closing=True), draining=True), _STAY
    if isinstance(state, states.Up):
        yield "not on the preferred endpoint", evolve(plain, endpoints=SECOND), _PREFER
    if isinstance(state, states.Restoring):
        yield "not on the preferred endpoint", evolve(plain, endpoints=SECOND), _PREFER
    if isinstance(state, states.Closing):
        yield "aborted", evolve(plain, state=states.Closing(LINK, aborted=True)), _STAY


def _with_discovery(state: states.State, plain: Record) -> Iterator[tuple[str, Record, Policy]]:
    """Yield the cases of a producer that asks for its endpoints."""
    yield "discovery", plain, _DISCOVERY
    if isinstance(state, states.Waiting):
        unknown = evolve(plain, endpoints=NONE_KNOWN)
        yield "discovery, no endpoint known", unknown, _DISCOVERY
        yield "discovery, no endpoint known, attempts used up", evolve(unknown, attempts=9), _DISCOVERY


_BREAKERS = (
    ("one failure below the threshold", EDGE),
    ("breaker open", OPEN),
    ("breaker open, cooldown over", evolve(OPEN, opened_at=AT - 30)),
    ("breaker half open", HALF_OPEN),
    ("breaker half open, probe granted", PROBING),
)

_STATES: tuple[states.State, ...] = (
    states.Idle(),
    states.Dialing(LINK),
    states.Restoring(LINK),
    states.Up(LINK),
    states.HandingOver(LINK, target=0, proven=True),
    states.Dropping(LINK, Fault(FaultKind.CONFIRM_OVERDUE, "no confirm")),
    states.Waiting(LINK),
    states.GaveUp(LINK),
    states.Closing(LINK),
    states.Closed(LINK),
)

#: The events: of each class the plain one first, then the variants that have another answer in some state.
_OCCASIONS: tuple[tuple[str, Callable[[int], events.Event]], ...] = (
    ("StartRequested", lambda _: events.StartRequested(AT)),
    ("LinkOpened", lambda link: events.LinkOpened(link, AT)),
    ("TopologyRestored", lambda link: events.TopologyRestored(link, AT)),
    ("DialFailed", lambda link: events.DialFailed(link, REFUSED, AT)),
    ("DialFailed, permanent", lambda link: events.DialFailed(link, PASSWORD, AT)),
    ("LinkLost", lambda link: events.LinkLost(link, LOST, AT)),
    ("LinkLost, orderly", lambda link: events.LinkLost(link, SHUTDOWN, AT)),
    ("LinkLost, topology refused", lambda link: events.LinkLost(link, MISMATCH, AT)),
    ("LinkClosed", lambda link: events.LinkClosed(link, AT)),
    ("RetryTimerFired", lambda link: events.RetryTimerFired(link, AT)),
    ("EndpointsFound", lambda link: events.EndpointsFound(link, (0,), (0,), AT)),
    ("EndpointsFound, one of them new", lambda link: events.EndpointsFound(link, (0, None), (0, 1), AT)),
    ("EndpointsFound, none", lambda link: events.EndpointsFound(link, (), (), AT)),
    ("DiscoveryFailed", lambda link: events.DiscoveryFailed(link, NO_ANSWER, AT)),
    ("ReconnectRequested", lambda _: events.ReconnectRequested(AT)),
    ("HandOverRequested", lambda _: events.HandOverRequested(AT)),
    ("InFlightSettled", lambda link: events.InFlightSettled(link, AT)),
    ("HandOverTimerFired", lambda link: events.HandOverTimerFired(link, AT)),
    ("PreferTimerFired", lambda link: events.PreferTimerFired(link, AT)),
    ("StableTimerFired", lambda link: events.StableTimerFired(link, AT)),
    ("PublishConfirmed", lambda link: events.PublishConfirmed(link, AT)),
    ("PublishConfirmed, a probe", lambda link: events.PublishConfirmed(link, AT, PROBE)),
    ("ConfirmOverdue", lambda link: events.ConfirmOverdue(link, AT)),
    ("ChannelClosed", lambda link: events.ChannelClosed(link, NO_EXCHANGE, AT)),
    ("PublishingBlocked", lambda link: events.PublishingBlocked(link, AT)),
    ("PublishingUnblocked", lambda link: events.PublishingUnblocked(link, AT)),
    ("AdmissionRequested", lambda _: events.AdmissionRequested(AT)),
    ("PermitReleased", lambda _: events.PermitReleased(PROBE, AT)),
    ("CooldownTimerFired", lambda _: events.CooldownTimerFired(1, AT)),
    ("StopRequested, drain", lambda _: events.StopRequested(AT, drain=True)),
    ("StopRequested, no drain", lambda _: events.StopRequested(AT, drain=False)),
    ("Drained", lambda _: events.Drained(AT)),
    ("DrainTimerFired", lambda _: events.DrainTimerFired(AT)),
    ("CloseTimerFired", lambda link: events.CloseTimerFired(link, AT)),
)


# --- rows ------------------------------------------------------------------------------------------------------------


def rows() -> tuple[Row, ...]:
    """Return the rows of the table. A row is left out if nothing happens, or if a plainer row has the same answer."""
    listed: dict[tuple[str, str, str], tuple[str, str]] = {}
    kept: list[Row] = []
    for row in every_row():
        answer = row.then, row.orders
        if answer != _looked_up(listed, row):
            listed[row.state, row.given, row.occasion] = answer
            kept.append(row)
    return tuple(kept)


def lines() -> tuple[Line, ...]:
    """Return the rows in order; rows of several states with the same answer become one line."""
    by_occasion: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows():
        by_occasion.setdefault((row.given, row.occasion, row.then, row.orders), []).append(row)
    by_states: dict[tuple[tuple[str, ...], str, str, str], list[Row]] = {}
    for (given, _, then, orders), found in by_occasion.items():
        by_states.setdefault((tuple(row.state for row in found), given, then, orders), []).extend(found)
    return tuple(Line(tuple(found)) for found in by_states.values())


def every_row() -> Iterator[Row]:
    """Yield each representative record with each event, also if nothing happens."""
    for state in _STATES:
        for given, record, policy in _situations(state):
            for occasion, event_on in _OCCASIONS:
                event = event_on(record.link)
                yield Row(given, occasion, record, event, policy, transition(record, event, policy))


def _looked_up(listed: dict[tuple[str, str, str], tuple[str, str]], row: Row) -> tuple[str, str]:
    """Return the answer of the listed row that matches this row: first with all conditions, then with fewer and fewer of them."""
    given = row.given
    while True:
        for occasion in (row.occasion, row.occasion.partition(",")[0]):
            if (row.state, given, occasion) in listed:
                return listed[row.state, given, occasion]
        if not given:
            return "", ""
        given = given.rpartition(", ")[0]


def _then(before: Record, after: Record) -> str:
    words = [_state_words(after.state)] if before.state != after.state else []
    if before.attempts != after.attempts:
        words.append(f"attempts {_change(before.attempts, after.attempts)}")
    if before.failures != after.failures:
        words.append(f"failures {_change(before.failures, after.failures)}")
    words.extend(_breaker_words(before.breaker, after.breaker))
    words.extend(_endpoint_words(before.endpoints, after.endpoints))
    if before.draining != after.draining:
        words.append("draining")
    if len(before.channel_closes) < len(after.channel_closes):
        words.append("instant noted")
    return ", ".join(words)


def _change(before: int, after: int) -> str:
    return f"{after - before:+d}" if after else "= 0"


def _state_words(state: states.State) -> str:
    words = [f"**{type(state).__name__}**"]
    if isinstance(state, states.HandingOver):
        words.append(f"to endpoint {state.target}")
    words.extend(name for name in ("blocked", "proven", "closing", "aborted") if getattr(state, name, False))
    return " ".join(words)


def _endpoint_words(before: Endpoints, after: Endpoints) -> Iterator[str]:
    if len(before.records) != len(after.records):
        yield f"endpoints {_change(len(before.records), len(after.records))}"
        return
    if not before.records:
        return
    was, now = before.record, after.records[before.current]
    if now.failures > was.failures:
        yield "endpoint failed"
    if now.address != was.address:
        yield "next address"
    if after.current != before.current:
        yield "next endpoint"


def _breaker_words(before: Breaker | None, after: Breaker | None) -> Iterator[str]:
    if after is None:
        return
    was = before or after
    if before is None or was.state != after.state:
        yield f"breaker {after.state.replace('_', ' ')}"
    if len(after.outstanding) > len(was.outstanding):
        yield "probe granted"
    if len(after.outstanding) < len(was.outstanding) and was.generation == after.generation:
        yield "probe given back"


def _orders(ordered: tuple[effects.Effect, ...]) -> str:
    words: list[str] = []
    cancelled: list[str] = []
    for effect in ordered:
        if isinstance(effect, effects.CancelTimer):
            cancelled.append(effect.timer)
            continue
        if cancelled:
            words.append(_cancellation(cancelled))
            cancelled = []
        words.append(_order(effect))
    if cancelled:
        words.append(_cancellation(cancelled))
    return ", ".join(words)


def _cancellation(timers: list[str]) -> str:
    return f"CancelTimer({'all' if len(timers) >= len(get_args(effects.Timer)) else ', '.join(timers)})"


def _order(effect: effects.Effect) -> str:
    name = type(effect).__name__
    match effect:
        case effects.StartRetryTimer(shortest=shortest, longest=longest):
            return f"{name}({shortest:g} to {longest:g} s)"
        case (
            effects.StartStableTimer()
            | effects.StartPreferTimer()
            | effects.StartHandOverTimer()
            | effects.StartCooldownTimer()
            | effects.StartDrainTimer()
            | effects.StartCloseTimer()
        ):
            return f"{name}({effect.delay:g} s)"
        case effects.Refuse(retry_after=seconds):
            return f"{name}({'never' if seconds == float('inf') else f'{seconds:g} s'})"
        case effects.Admit(permit=permit):
            return name if permit is None else f"{name}(probe)"
        case effects.Finish(fault=fault):
            return name if fault is None else f"{name}(fault)"
        case _:
            return name


@frozen
class BreakerRow:
    """One line of the breaker's table."""

    condition: str
    occasion: str
    then: str
    answer: str


def breaker_rows() -> tuple[BreakerRow, ...]:
    """Return the answers of the breaker's functions for each of its states; a row is left out if nothing happens."""
    situations = (
        ("closed", Breaker(failures=1)),
        *((words.replace("breaker ", ""), each) for words, each in _BREAKERS),
    )
    return tuple(row for words, breaker in situations for row in _breaker_rows_of(words, breaker))


def _breaker_rows_of(condition: str, breaker: Breaker) -> Iterator[BreakerRow]:
    asked, permit = admit(breaker, AT)
    answer = "permit" if permit is not None else f"None; retry after {retry_after(breaker, AT):g} s"
    yield BreakerRow(condition, "admit", _breaker_then(breaker, asked), answer)
    mine = Permit(breaker.generation, max(breaker.outstanding, default=0))
    results: tuple[tuple[str, Breaker], ...] = (
        ("succeeded", succeeded(breaker, None, AT)),
        ("succeeded, with its permit", succeeded(breaker, mine, AT)),
        ("failed", failed(breaker, None, AT)),
        ("failed, with its permit", failed(breaker, mine, AT)),
        ("released", released(breaker, mine)),
        ("cooled", cooled(breaker)),
    )
    for occasion, after in results:
        if after != breaker:
            yield BreakerRow(condition, occasion, _breaker_then(breaker, after), "")


def _breaker_then(before: Breaker, after: Breaker) -> str:
    words = list(_breaker_words(before, after))
    if before.failures != after.failures:
        words.append(f"failures {_change(before.failures, after.failures)}")
    return ", ".join(words)


# --- printing --------------------------------------------------------------------------------------------------------


def markdown() -> str:
    """Return the page docs/state-table.md."""
    return "\n".join(_page())


def _page() -> Iterator[str]:
    yield "# The machine's table of transitions"
    yield ""
    yield "<!-- Printed by running the code: python scripts/machine_docs.py. Do not edit. -->"
    yield ""
    yield "Each row was made by calling `warrener.machine.transition` with one record and one event."
    yield "An event that is not listed for a state changes nothing in that state. An event with the number of an earlier"
    yield "link changes nothing in any state. A line with a special condition, or with a variant of an event, is in the"
    yield "table only if its answer differs from the plainer line: look for the special condition first."
    yield "The durations are those of the default policy when `record.attempts` is 2."
    yield "`StartRetryTimer(2 to 4 s)`: the supervisor draws the delay from that range."
    yield ""
    yield "![The states and what leads from one to another](state-diagram.svg)"
    yield ""
    yield "| state | public state | meaning |"
    yield "|---|---|---|"
    for state in _STATES:
        meaning = " ".join((type(state).__doc__ or "").split("\n\n", maxsplit=1)[0].split())
        yield f"| {type(state).__name__} | {connection_state(state).value} | {meaning} |"
    yield ""
    yield "During a drain (`record.draining`) users see CLOSING in every state."
    yield ""
    yield "| while | when | then | do |"
    yield "|---|---|---|---|"
    for line in lines():
        row = line.rows[0]
        yield f"| {line.condition} | {line.occasion} | {row.then or '—'} | {row.orders or '—'} |"
    yield ""
    yield "## The breaker"
    yield ""
    yield "The breaker of the table has a threshold of 5, a cooldown of 30 s and 1 probe. A result from an earlier generation"
    yield "changes nothing."
    yield ""
    yield "| while | call | then | answer |"
    yield "|---|---|---|---|"
    for each in breaker_rows():
        yield f"| {each.condition} | {each.occasion} | {each.then or '—'} | {each.answer or '—'} |"
    yield ""


def edges() -> dict[tuple[str, str], tuple[str, ...]]:
    """Return, for each pair of states, the classes of events that lead from the first to the second."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows():
        before, after = type(row.record.state).__name__, type(row.step.record.state).__name__
        if before != after:
            found.setdefault((before, after), {})[type(row.event).__name__] = None
    return {pair: tuple(names) for pair, names in found.items()}


def mermaid() -> str:
    """Return the diagram as a Mermaid state diagram."""
    text = ["stateDiagram-v2", "    [*] --> Idle"]
    text.extend(f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in edges().items())
    return "\n".join([*text, "    Closed --> [*]", ""])


#: The colour of each public state in the diagram.
_FILL = {
    "DISCONNECTED": "#f6d5d0",
    "CONNECTING": "#fbe9c3",
    "CONNECTED": "#cfe8cf",
    "CLOSING": "#dcdcec",
    "CLOSED": "#c8c8d0",
}


#: The path of a healthy link, drawn straight down.
_SPINE = (("Idle", "Dialing"), ("Dialing", "Restoring"), ("Restoring", "Up"))


_LEGEND = (
    "Colour: the public state. Dashed: the ways to Closed. "
    "A drain changes no state; it ends with Drained or DrainTimerFired."
)


def dot() -> str:
    """Return the diagram in the language of Graphviz; states with one colour have the same public state."""
    text = [
        "digraph machine {",
        '    graph [rankdir=TB, nodesep=0.5, ranksep=0.6, fontname="Helvetica", bgcolor=white, labelloc=b, fontsize=12,',
        f'           label="{_LEGEND}"];',
        '    node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=15, margin="0.22,0.12"];',
        '    edge [fontname="Helvetica", fontsize=11, color="#404040"];',
    ]
    for state in _STATES:
        name, public = type(state).__name__, connection_state(state).value
        label = f'<<b>{name}</b><br/><font point-size="10">{public}</font>>'
        text.append(f'    {name} [fillcolor="{_FILL[public]}", label={label}];')
    for (before, after), names in edges().items():
        style = ""
        if after in ("Closing", "Closed"):
            style = ', style=dashed, color="#8888a8", fontcolor="#666688"'
        elif (before, after) in _SPINE:
            style = ", weight=20, penwidth=2"
        label = "\\n".join(names)
        text.append(f'    {before} -> {after} [label="{label}"{style}];')
    return "\n".join([*text, "}", ""])


# --- the command ------------------------------------------------------------------------------------------------------


def add_parser(commands: Commands) -> None:
    """Add ``machine`` to the commands."""
    parser = commands.add_parser(
        "machine",
        help="print the state machine: its table, or its diagram",
        description="Print the connection's state machine. The table is derived by running the machine.",
    )
    printers = {"markdown": markdown, "mermaid": mermaid, "dot": dot}
    parser.add_argument(
        "--format", choices=tuple(printers), default="markdown", help="default: markdown, the whole table"
    )

    def run(args: argparse.Namespace) -> int:
        print(printers[args.format](), end="")
        return 0

    parser.set_defaults(run=run)
