"""One coarse timer for every deadline of every connection.

A timer of asyncio costs 0.6 KB and a heap entry a connection; here an entry is a place in a ring, and one call a tick
looks at the rings that are due. Deadlines hold to one tick, which is fine for time-outs and wrong for anything finer.
While nothing is armed nothing ticks.

An owner is its own entry: it is a Timer, and in one ring at most. A ring is linked through its timers (Varghese and
Lauck, Hashed and Hierarchical Timing Wheels, 1987), so that to arm and to disarm one is a few pointers, and neither
asks for memory nor for a hash.
"""

import math
from collections.abc import Callable
from typing import Final

from sniproxy.net.clock import Clock

TICK: Final = 0.1  # seconds

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

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.after = self.before = self


class TimerWheel:
    """Calls `expire()` of each armed timer within one tick after its time is up."""

    def __init__(self, clock: Clock, on_fault: Callable[[Exception], None]) -> None:
        self.clock = clock
        self._time = clock.time
        self._on_fault = on_fault
        self._rings: dict[int, _Ring] = {}  # by their slot; none is empty
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
        ring = self._rings.get(slot)
        if ring is None:
            ring = self._rings[slot] = _Ring(slot)
        timer.slot = slot
        timer.before, timer.after = ring, ring.after
        _neighbour(ring.after).before = timer
        ring.after = timer

    def disarm(self, timer: Timer) -> None:
        """Forget `timer`; nothing happens if it is not armed."""
        if timer.slot == UNARMED:
            return
        before, after = _neighbour(timer.before), _neighbour(timer.after)
        before.after, after.before = after, before
        if before is after:
            # Nothing is left but the ring, which would keep the wheel turning, and itself.
            del self._rings[timer.slot]
            before.after = before.before = None
        timer.before = timer.after = None
        timer.slot = UNARMED

    def _tick(self) -> None:
        # Called at the beginning of the tick `next_tick`; where rounding says otherwise, rounding is wrong.
        now = max(self.now, self.next_tick)
        # Each slot up to now is visited once; a slot that is armed meanwhile is later than all of them.
        while self.next_tick <= now:
            slot = self.next_tick
            self.next_tick += 1
            # Taken one by one, for each may disarm or put off others of its own tick.
            while (ring := self._rings.get(slot)) is not None:
                self._expire(_neighbour(ring.after))
        self._ticking = bool(self._rings)
        if self._ticking:
            self.clock.call_at(self.next_tick * TICK, self._tick)

    def _expire(self, timer: Timer) -> None:
        self.disarm(timer)
        try:
            timer.expire()
        except Exception as error:
            # One that fails must not take the others' time-outs with it, now or later.
            self._on_fault(error)


def _neighbour(timer: Timer | None) -> Timer:
    """Of a timer that is armed: there always is one."""
    assert timer is not None  # noqa: S101 - of the wheel's own making
    return timer
