"""One coarse timer for every deadline of every connection.

A timer of asyncio costs 0.6 KB and a heap entry a connection; here an entry is a place in a ring, and one call a tick
looks at the ring that is due. Deadlines hold to one tick, which is fine for time-outs and wrong for anything finer.
While nothing is armed nothing ticks.

It is a hashed wheel with unsorted rings (Varghese and Lauck, Hashed and Hierarchical Timing Wheels, 1987, scheme 6):
there are so many rings and no more, each linked through its timers, so that to arm and to disarm one is a few pointers,
and neither asks for memory nor for a hash. An owner is its own entry: it is a Timer, and in one ring at most.
"""

import math
from collections.abc import Callable
from typing import Final

from sniproxy.net.clock import Clock

TICK: Final = 0.1  # seconds

# A turn of the wheel takes 26 seconds. A timer that has longer is passed by once a turn, which costs a comparison.
_RINGS: Final = 256

# The value of `slot` while a timer is not armed.
UNARMED: Final = -1


class Timer:
    """What a timer wheel can let expire. Its `slot` is UNARMED to begin with; the rest is the wheel's."""

    __slots__ = ("after", "before", "slot")
    after: "Timer | None"
    before: "Timer | None"
    slot: int

    def expire(self) -> None:
        """Its time is up. To raise is a fault."""
        raise NotImplementedError


class _Ring(Timer):
    """Where a ring begins and ends: alone in it, its own neighbour."""

    __slots__ = ()

    def __init__(self) -> None:
        self.slot = UNARMED
        self.after = self.before = self


class TimerWheel:
    """Calls `expire()` of each armed timer within one tick after its time is up."""

    def __init__(self, clock: Clock, on_fault: Callable[[Exception], None]) -> None:
        self.clock = clock
        self._time = clock.time
        self._on_fault = on_fault
        self._rings = [_Ring() for _ in range(_RINGS)]  # a slot's timers are in the ring of its number, modulo _RINGS
        self._armed = 0  # timers
        self.next_tick = self.now  # while any timer is armed, a clock that costs nothing to read
        self._ticking = False

    @property
    def now(self) -> int:
        """The current tick."""
        return int(self._time() / TICK)

    def after(self, seconds: float) -> int:
        """The first tick that begins `seconds` from now, or later."""
        return math.ceil((self._time() + seconds) / TICK)

    def arm(self, timer: Timer, seconds: float) -> None:
        """Let `timer` expire in `seconds`, instead of when it would have."""
        self.arm_at(timer, self.after(seconds))

    def arm_until(self, timer: Timer, deadline: float) -> None:
        """The same at `deadline`, a time of the clock."""
        self.arm_at(timer, math.ceil(deadline / TICK))

    def arm_at(self, timer: Timer, slot: int) -> None:
        """The same at the tick `slot`, or the next one where that is past."""
        if timer.slot != UNARMED:
            self.disarm(timer)
        if not self._ticking:
            self._ticking = True
            self.next_tick = self.now + 1
            self.clock.call_at(self.next_tick * TICK, self._tick)
        slot = max(slot, self.next_tick)
        ring = self._rings[slot % _RINGS]
        timer.slot = slot
        timer.before, timer.after = ring, ring.after
        _neighbour(ring.after).before = timer
        ring.after = timer
        self._armed += 1

    def disarm(self, timer: Timer) -> None:
        """Forget `timer`; nothing happens if it is not armed."""
        if timer.slot == UNARMED:
            return
        before, after = _neighbour(timer.before), _neighbour(timer.after)
        before.after, after.before = after, before
        timer.before = timer.after = None
        timer.slot = UNARMED
        self._armed -= 1

    def _tick(self) -> None:
        # Called at the beginning of the tick `next_tick`; where rounding says otherwise, rounding is wrong.
        now = max(self.now, self.next_tick)
        # One for each slot up to now, but none twice.
        rings = range(self.next_tick, min(now + 1, self.next_tick + _RINGS))
        self.next_tick = now + 1  # what is armed meanwhile is later
        for number in rings:
            for timer in _due(self._rings[number % _RINGS], now):
                # Unless another of them has disarmed it or put it off.
                if UNARMED < timer.slot <= now:
                    self._expire(timer)
        self._ticking = self._armed > 0
        if self._ticking:
            self.clock.call_at(self.next_tick * TICK, self._tick)

    def _expire(self, timer: Timer) -> None:
        self.disarm(timer)
        try:
            timer.expire()
        except Exception as error:
            # One that fails must not take the others' time-outs with it, now or later.
            self._on_fault(error)


def _due(ring: _Ring, now: int) -> list[Timer]:
    """The timers of `ring` whose time is up; the others' is some turns of the wheel away."""
    due = []
    timer = _neighbour(ring.after)
    while timer is not ring:
        if timer.slot <= now:
            due.append(timer)
        timer = _neighbour(timer.after)
    return due


def _neighbour(timer: Timer | None) -> Timer:
    """Of a timer that is armed: there always is one."""
    assert timer is not None  # noqa: S101 - of the wheel's own making
    return timer
