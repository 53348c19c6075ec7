"""One coarse timer for every deadline of every connection.

A timer of the event loop costs 0.6 KB and a heap entry a connection; here an entry is a place in a set, and one
callback a tick looks at the sets that are due. Deadlines hold to one tick, which is fine for time-outs and wrong
for anything finer. While nothing is armed nothing ticks.

An owner is its own entry: it is a Timer, and in one slot at most.
"""

import asyncio
import math
from typing import Final

TICK: Final = 0.1  # seconds

# The value of `slot` while a timer is not armed.
UNARMED: Final = -1


class Timer:
    """What a timer wheel can let expire. Its `slot` is the wheel's, and UNARMED to begin with."""

    __slots__ = ("slot",)
    slot: int

    def expire(self) -> None:
        """Its time is up. To raise is a fault."""
        raise NotImplementedError


class TimerWheel:
    """Calls `expire()` of each armed timer within one tick after its time is up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, set[Timer]] = {}
        self.next_tick = self.now  # while any timer is armed, a clock that costs nothing to read
        self._ticking = False

    @property
    def now(self) -> int:
        """The current tick."""
        return int(self._loop.time() / TICK)

    def after(self, seconds: float) -> int:
        """The first tick that begins `seconds` from now, or later."""
        return math.ceil((self._loop.time() + seconds) / TICK)

    def arm(self, timer: Timer, seconds: float) -> None:
        """Let `timer` expire in `seconds`, instead of when it would have."""
        self.arm_at(timer, self.after(seconds))

    def arm_until(self, timer: Timer, deadline: float) -> None:
        """The same at `deadline`, a time of the event loop's clock."""
        self.arm_at(timer, math.ceil(deadline / TICK))

    def arm_at(self, timer: Timer, slot: int) -> None:
        """The same at the tick `slot`, or the next one where that is past."""
        if timer.slot != UNARMED:
            self.disarm(timer)
        if not self._ticking:
            self._ticking = True
            self.next_tick = self.now + 1
            self._loop.call_at(self.next_tick * TICK, self._tick)
        slot = max(slot, self.next_tick)
        timer.slot = slot
        bucket = self._slots.get(slot)
        if bucket is None:
            self._slots[slot] = {timer}
        else:
            bucket.add(timer)

    def disarm(self, timer: Timer) -> None:
        """Forget `timer`; nothing happens if it is not armed."""
        bucket = self._slots.get(timer.slot)
        if bucket is not None:
            bucket.discard(timer)
            if not bucket:
                del self._slots[timer.slot]  # what is left empty would keep the wheel turning
        timer.slot = UNARMED

    def _tick(self) -> None:
        # Called at the beginning of the tick `next_tick`; where rounding says otherwise, rounding is wrong.
        now = max(self.now, self.next_tick)
        # Each slot up to now is visited once; a slot that is armed meanwhile is later than all of them.
        while self.next_tick <= now:
            slot = self.next_tick
            self.next_tick += 1
            # Taken one by one, for each may disarm or put off others of its own tick.
            due = self._slots.get(slot)
            while due:
                self._expire(due.pop())
            self._slots.pop(slot, None)
        self._ticking = bool(self._slots)
        if self._ticking:
            self._loop.call_at(self.next_tick * TICK, self._tick)

    def _expire(self, timer: Timer) -> None:
        timer.slot = UNARMED
        try:
            timer.expire()
        except Exception as error:
            # One that fails must not take the others' time-outs with it, now or later.
            self._loop.call_exception_handler({"message": "timer failed", "exception": error})
