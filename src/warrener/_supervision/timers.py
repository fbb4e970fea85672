"""`Timers`: the timers that the machine orders, one task for each; a timer that has run out posts its event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias, assert_never

import anyio

from warrener.machine import effects, events

__all__ = ["StartTimer", "Timers"]

#: The orders that start a timer after a delay that is known. For the retry timer the supervisor draws the delay.
StartTimer: TypeAlias = (
    effects.StartStableTimer
    | effects.StartPreferTimer
    | effects.StartCooldownTimer
    | effects.StartDrainTimer
    | effects.StartHandOverTimer
    | effects.StartCloseTimer
)


class Timers:
    """Of each kind at most one timer runs: a new one replaces the one that runs."""

    def __init__(
        self,
        clock: Callable[[], float],
        post: Callable[[events.Event], None],
        spawn: Callable[[Callable[[], Awaitable[None]]], bool],
    ) -> None:
        self._clock = clock
        self._post = post
        #: Starts a task. False: no task may start any more.
        self._spawn = spawn
        self._scopes: dict[effects.Timer, anyio.CancelScope] = {}

    def start(self, order: StartTimer) -> None:
        """Start the timer that the machine has ordered."""
        match order:
            case effects.StartStableTimer(link, delay):
                self.run("stable", delay, lambda at: events.StableTimerFired(link, at=at))
            case effects.StartPreferTimer(link, delay):
                self.run("prefer", delay, lambda at: events.PreferTimerFired(link, at=at))
            case effects.StartCooldownTimer(generation, delay):
                self.run("cooldown", delay, lambda at: events.CooldownTimerFired(generation, at=at))
            case effects.StartDrainTimer(delay):
                self.run("drain", delay, lambda at: events.DrainTimerFired(at=at))
            case effects.StartHandOverTimer(link, delay):
                self.run("hand_over", delay, lambda at: events.HandOverTimerFired(link, at=at))
            case effects.StartCloseTimer(link, delay):
                self.run("close", delay, lambda at: events.CloseTimerFired(link, at=at))
            case _:
                assert_never(order)

    def run(
        self,
        name: effects.Timer,
        delay: float,
        event: Callable[[float], events.Event],
        *,
        ask: Callable[[], Awaitable[Callable[[], events.Event]]] | None = None,
    ) -> None:
        """Post the event after `delay` seconds, unless the timer is cancelled or replaced before that.

        With `ask`, the event of its answer is posted instead, and a cancellation of the timer ends the question, too: an
        answer that comes in the same instant is not taken.
        """
        self.cancel(name)
        scope = anyio.CancelScope()
        deadline = self._clock() + delay

        async def sleep() -> None:
            with scope:
                await anyio.sleep(max(0.0, deadline - self._clock()))
                answer = None if ask is None else await ask()
                current = self._scopes.get(name) is scope
                if current:
                    del self._scopes[name]
                if answer is None:
                    self._post(event(self._clock()))
                elif current:
                    self._post(answer())

        if self._spawn(sleep):
            self._scopes[name] = scope

    def cancel(self, name: effects.Timer) -> None:
        """Stop the timer, if it runs."""
        scope = self._scopes.pop(name, None)
        if scope is not None:
            scope.cancel()
