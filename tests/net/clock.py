"""A clock that a test moves by hand, in front of a real event loop."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, cast


class Call:
    """A call that waits for its time, and can be cancelled."""

    def __init__(self, when: float, number: int, make: Callable[[], object]) -> None:
        self.place = (when, number)
        self.when = when
        self.make = make
        self.is_cancelled = False

    def __lt__(self, other: "Call") -> bool:
        return self.place < other.place

    def cancel(self) -> None:
        self.is_cancelled = True


class HandClock:
    """An event loop's time and timers, moved by `advance` and by nothing else; the rest is the real loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, now: float = 1000.0) -> None:
        self.now = now
        self._loop = loop
        self._calls: list[Call] = []
        self._number = count()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """This clock, as who is given an event loop sees it."""
        return cast(asyncio.AbstractEventLoop, self)

    @property
    def scheduled(self) -> int:
        """How many calls wait for their time."""
        return sum(not call.is_cancelled for call in self._calls)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> Call:
        call = Call(when, next(self._number), lambda: callback(*args))
        heapq.heappush(self._calls, call)
        return call

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Call:
        return self.call_at(self.now + delay, callback, *args)

    def advance(self, seconds: float) -> None:
        """Let time pass, and each call have its turn at the moment it asked for."""
        end = self.now + seconds
        while self._calls and self._calls[0].when <= end:
            call = heapq.heappop(self._calls)
            if not call.is_cancelled:
                self.now = max(self.now, call.when)
                call.make()
        self.now = end

    def stall(self, seconds: float) -> None:
        """Let time pass while the loop is busy: what was due meanwhile is called late."""
        self.now += seconds
        self.advance(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)
