"""A clock that a test moves by hand, in front of a real event loop."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count


class HandClock:
    """A `Clock` that is moved by `advance` and by nothing else; what is to be soon is left to the real loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, now: float = 1000.0) -> None:
        self.now = now
        self._loop = loop
        self._calls: list[tuple[float, int, Callable[[], object]]] = []  # when, in which order, and what
        self._number = count()

    @property
    def scheduled(self) -> int:
        """How many calls wait for their time."""
        return len(self._calls)

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[[], object], /) -> object:
        assert self._loop is not None
        return self._loop.call_soon(call)

    def call_at(self, when: float, call: Callable[[], object], /) -> None:
        heapq.heappush(self._calls, (when, next(self._number), call))

    def call_later(self, seconds: float, call: Callable[[], object], /) -> None:
        self.call_at(self.now + seconds, call)

    def advance(self, seconds: float) -> None:
        """Let time pass, and each call have its turn at the moment it asked for."""
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            when, _, call = heapq.heappop(self._calls)
            self.now = max(self.now, when)
            call()
        self.now = end

    def stall(self, seconds: float) -> None:
        """Let time pass while the loop is busy: what was due meanwhile is called late."""
        self.now += seconds
        self.advance(0)
