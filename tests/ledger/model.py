"""A naive model of the ledger, the oracle of the walks: lists, scans, and every attempt's verdict written down.

It shares nothing with the ledger but the rules: no pointers, counters, heaps or lazy deletion. Where the ledger keeps a
count of unknown attempts, the model keeps all attempts as letters and folds them when it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from warrener.errors import PublishError, PublishRefused
from warrener.records import Receipt

#: Seconds after which a suspect that the broker has not answered has passed.
PASSES_AFTER = 0.25


@dataclass(eq=False)
class Note:
    """What the model knows of one message."""

    number: int
    message_id: str
    key: str
    mandatory: bool
    token: str | None
    deadline: float
    #: Verdicts of the attempts that ended: "U"; the last may be any of "CUNR".
    attempts: list[str] = field(default_factory=list)
    place: str = "fresh"
    channel: int = 0
    tag: int = 0
    sent_at: float = 0.0
    lane: str = "main"
    alone: int = 0
    returned: bool = False
    doubt: bool = False
    passed: bool = False
    overdue: bool = False
    #: "waits", "left" (cancelled after hand-over), "gone" (cancelled before) or "told" (outcome given).
    caller: str = "waits"
    told: str = ""


def said(result: Receipt | PublishError | None) -> str:
    """Write an outcome as the model writes it."""
    if isinstance(result, Receipt):
        return f"Receipt/{result.attempts}/{result.possible_duplicate}/{result.link}"
    if isinstance(result, PublishRefused):
        return f"PublishRefused/{result.may_have_been_delivered}"
    return type(result).__name__


class Model:
    """All messages ever accepted, where each is, and what was said about it."""

    def __init__(self, *, at_least_once: bool, max_in_flight: int, confirm_timeout: float) -> None:
        self.at_least_once = at_least_once
        self.max_in_flight = max_in_flight
        self.confirm_timeout = confirm_timeout
        self.notes: list[Note] = []
        self.fresh: list[Note] = []
        self.again: list[Note] = []
        self.suspects: list[Note] = []
        self.flight: list[Note] = []
        #: Keys of suspects that passed: further ones with such a key go behind all others.
        self.slow: set[str] = set()
        self.lanes: dict[str, int] = {}
        self.last: dict[int, int] = {}
        #: By channel: the highest tag answered or returned.
        self.checked: dict[int, int] = {}
        self.link = 0
        self.open = False
        self.paused = False
        self.clock_floor = self.answered_at = float("-inf")
        self.letters = dict.fromkeys("CUNR", 0)
        self.late: list[tuple[str, str]] = []
        #: Outcomes given in the present step.
        self.given: list[tuple[int, str]] = []

    # what the tests compare

    def pending(self) -> int:
        return sum(note.caller != "told" for note in self.fresh + self.again + self.suspects + self.flight)

    def next(self) -> Note | None:
        if not self.open or self.paused:
            return None
        alone = self.lanes.get("suspect")
        if alone is not None and self.suspects and all(note.passed for note in self.flight if note.channel == alone):
            return self.suspects[0]
        if "main" not in self.lanes:
            return None
        if self.again:
            return self.again[0]
        if self.fresh and len(self.flight) + len(self.suspects) < self.max_in_flight:
            return self.fresh[0]
        return None

    def wakeup(self) -> float:
        everyone = self.fresh + self.again + self.suspects + self.flight
        instants = [note.deadline for note in everyone if note.caller == "waits"]
        if not self.paused and self.flight:
            began = max(min(note.sent_at for note in self.flight), self.clock_floor, self.answered_at)
            instants.append(began + self.confirm_timeout)
            watched = [note.sent_at for note in self.flight if not note.overdue]
            instants += [max(min(watched), self.clock_floor) + self.confirm_timeout] if watched else []
            alone = self.lanes.get("suspect")
            instants += [
                max(note.sent_at, self.clock_floor) + PASSES_AFTER
                for note in self.flight
                if note.channel == alone and not note.passed
            ]
        return min(instants, default=float("inf"))

    # what happens

    def accept(self, note: Note) -> None:
        self.notes.append(note)
        self.fresh.append(note)

    def sent(self, note: Note, channel: int, tag: int, now: float) -> None:
        for queue in (self.fresh, self.again, self.suspects):
            if note in queue:
                queue.remove(note)
        note.place, note.channel, note.tag, note.sent_at = "flight", channel, tag, now
        if note.lane == "suspect":
            note.alone += 1
        self.last[channel] = tag
        self.flight.append(note)

    def answered(self, channel: int, tag: int, multiple: bool, letter: str, now: float) -> None:
        self.answered_at = now
        if 0 < tag <= self.last.get(channel, 0):
            self.checked[channel] = max(self.checked.get(channel, 0), tag)
        if not 0 < tag <= self.last.get(channel, 0):
            return
        for note in list(self.flight):
            if note.channel == channel and (note.tag == tag or (multiple and note.tag < tag)):
                self.flight.remove(note)
                if note.returned:
                    self.end(note, "R", "Unroutable")
                elif letter == "C" and note.doubt:
                    self.end(note, "U")
                else:
                    self.end(note, letter)

    def returned(self, channel: int, token: str | None, message_id: str | None, key: str) -> None:
        here = [note for note in self.flight if note.channel == channel]
        owner = [note for note in here if token is not None and note.token == token]
        if not owner and message_id is not None:
            carriers = [note for note in here if note.message_id == message_id]
            owner = [note for note in carriers if len(carriers) == 1 and note.mandatory and note.key == key]
        if owner:
            owner[0].returned = True
            self.checked[channel] = max(self.checked.get(channel, 0), owner[0].tag)
            return
        for note in here:
            same = note.mandatory and note.key == key and message_id in (None, note.message_id)
            if same and not note.returned:
                note.doubt = True

    def channel_closed(self, lane: str, code: int, written: int) -> None:
        channel = self.lanes.pop(lane)
        here = [note for note in self.flight if note.channel == channel]
        checked = self.checked.get(channel, 0)
        seen = [note for note in here if checked < note.tag <= written and not note.returned]
        explained = len(seen) == 1 and code in (403, 404, 406)
        if explained:
            self.flight.remove(seen[0])
            earlier = "U" in seen[0].attempts
            self.end(seen[0], "R", f"PublishRefused/{earlier}", letter="U" if earlier else "R")
            acquitted = [
                note for note in here if note is not seen[0] and note.lane == "suspect" and note.tag <= written
            ]
            behind: list[Note] = []
        else:
            passed = [note for note in seen if note.passed and note.lane == "suspect"]
            acquitted = behind = passed if len(passed) < len(seen) else []
        for note in acquitted:
            note.alone -= 1
        self._end_epoch(channel, written, suspects=None if explained else checked, behind=behind)

    def link_lost(self, written: int) -> None:
        for channel in sorted(self.last):
            self._end_epoch(channel, written, suspects=None)
        self._down()

    def _down(self) -> None:
        self.lanes, self.last, self.checked, self.open, self.paused = {}, {}, {}, False, False
        self.clock_floor = self.answered_at = float("-inf")

    def _end_epoch(self, channel: int, written: int, *, suspects: int | None, behind: Sequence[Note] = ()) -> None:
        back: list[Note] = []
        for note in sorted((n for n in self.flight if n.channel == channel), key=lambda n: n.tag):
            self.flight.remove(note)
            lane = note.lane
            if note.returned:
                self.end(note, "R", "Unroutable")
            elif note.tag > written:
                if lane == "suspect":
                    note.alone -= 1
                if note.caller == "waits":
                    back.append(note)
                else:
                    self.end(note, None, "NotSent")
            elif note.caller != "waits" or not self.at_least_once or note.alone >= 3:
                self.end(note, "U")
            else:
                note.attempts.append("U")
                if suspects is not None and note.tag > suspects:
                    note.lane = "suspect"
                back.append(note)
        for note in back:
            note.place, note.doubt, note.passed, note.overdue = "queue", False, False, False
        back.sort(key=behind.__contains__)
        self.again[:0] = [note for note in back if note.lane == "main"]
        suspects = [note for note in back if note.lane == "suspect"]
        self.suspects[:0] = [note for note in suspects if note.key not in self.slow]
        self.suspects += [note for note in suspects if note.key in self.slow]

    def expire(self, now: float) -> None:
        for note in self.fresh + self.again + self.suspects + self.flight:
            if note.caller == "waits" and note.deadline <= now:
                if note in self.flight:
                    if note.returned and "U" not in note.attempts:
                        self._tell(note, "R", "Unroutable")
                    else:
                        self._tell(note, "U", "Unconfirmed")
                else:
                    self._leave_queues(note)
                    self.end(note, None, "DeadlineExceeded")

    def look(self, now: float) -> None:
        """What waits for `confirm_timeout` is overdue; a suspect that closed nothing for `PASSES_AFTER` has passed."""
        if self.paused:
            return
        for note in self.flight:
            note.overdue |= max(note.sent_at, self.clock_floor) + self.confirm_timeout <= now
            passes_at = max(note.sent_at, self.clock_floor) + PASSES_AFTER
            if note.channel == self.lanes.get("suspect") and not note.passed and passes_at <= now:
                note.passed = True
                self.slow.add(note.key)
                self.suspects.sort(key=lambda each: each.key in self.slow)
                if not self.suspects:
                    self.slow.clear()

    def resume(self, now: float) -> None:
        if self.paused:
            self.paused, self.clock_floor = False, now

    def refuse(self, note: Note) -> None:
        self._leave_queues(note)
        self.end(note, None, "InvalidMessage")

    def cancel(self, note: Note) -> bool:
        if note.place == "done":
            return note.caller == "gone"
        if note.caller != "waits":
            return False
        if note in self.flight:
            note.caller = "left"
            return False
        self._leave_queues(note)
        if note.attempts:
            note.caller = "left"
            self.end(note, None)
            return False
        note.place, note.caller = "done", "gone"
        self.letters["R"] += 1
        return True

    def end_all(self, kind: str) -> None:
        for note in list(self.flight):
            self.flight.remove(note)
            self.end(note, *(("R", "Unroutable") if note.returned else ("U",)))
        for queue in (self.suspects, self.again, self.fresh):
            for note in list(queue):
                queue.remove(note)
                self.end(note, None, kind)
        self._down()

    def _leave_queues(self, note: Note) -> None:
        for queue in (self.fresh, self.again, self.suspects):
            if note in queue:
                queue.remove(note)

    def end(self, note: Note, verdict: str | None, kind: str = "", letter: str | None = None) -> None:
        """The attempt ended, and with it the message; `kind` names the error where the message is rejected."""
        earlier = note.attempts.count("U")
        if verdict is not None:
            note.attempts.append(verdict)
        best = letter or next((each for each in "CUNR" if each in note.attempts), "R")
        if best == "C":
            text = f"Receipt/{len(note.attempts)}/{earlier > 0}/{self.link}"
        elif letter is not None:
            text = kind
        else:
            text = {"U": "Unconfirmed", "N": "Nacked", "R": kind}[best]
        note.place = "done"
        if note.caller == "told":
            if note.told == "Unconfirmed":
                self.late.append((note.message_id, text))
            return
        self._tell(note, best, text)

    def _tell(self, note: Note, letter: str, text: str) -> None:
        if note.caller == "left":
            self.late.append((note.message_id, text))
        note.caller = "told"
        note.told = text
        self.letters[letter] += 1
        self.given.append((note.number, text))
