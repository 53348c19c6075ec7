"""Rounds: what a worker's event loop does for its connections, between two things that it does for anything else.

A round waits for events, hands each to the watcher of its descriptor, gives turns to the strands that want one, and
makes the calls that are due. asyncio makes an object and a call in Python of every event, and a round of it costs as
much as a phase of a connection; here an event costs a place in a list, and asyncio is back only when there is something
for it to do.

Its own descriptors are in the same epoll, so that who waits for both waits once.
"""

from collections.abc import Callable
from math import inf
from operator import itemgetter
from time import monotonic
from typing import Final

from sniproxy.net.calls import Epoll
from sniproxy.net.strand import Turns
from sniproxy.net.timers import Timer

# How many events one round takes before turns and calls get theirs.
_BATCH: Final = 256

_FOR_EVER: Final = -1.0  # as epoll_wait(2) has it

# As in the ledger: a constant of the module's own is at hand.
_now: Final = monotonic


def _nothing() -> None:
    """What is to be done at the end of a round, until somebody says."""


class Watcher(Timer):
    """Who is told of the events of descriptors, and of the end of a time where one is set."""

    __slots__ = ()

    def on_events(self, fd: int, events: int) -> None:
        """What the epoll says of the descriptor `fd`. To raise is a fault."""
        raise NotImplementedError


class Rounds:
    """Serves the descriptors that have a watcher, and tells of the events of the others.

    It is a `Clock`, for calls of which few wait at a time: they are in no order.
    """

    def __init__(self, epoll: Epoll, on_fault: Callable[[Exception], None]) -> None:
        self.epoll = epoll
        self.watchers: list[Watcher | None] = []  # by the number of their descriptor
        self.turns = Turns(on_fault)
        self.is_due = False  # asyncio has something to do
        self.on_end: Callable[[], None] = _nothing  # of each round, and before the first after asyncio
        self.on_fault = on_fault
        self._calls: list[tuple[float, Callable[[], object]]] = []  # when, and what
        self._next_call = inf  # when the first of them is due

    def time(self) -> float:
        return _now()

    def call_soon(self, call: Callable[[], object], /) -> None:
        self.call_at(0.0, call)

    def call_later(self, seconds: float, call: Callable[[], object], /) -> None:
        self.call_at(_now() + seconds, call)

    def call_at(self, when: float, call: Callable[[], object], /) -> None:
        self._calls.append((when, call))
        self._next_call = min(self._next_call, when)

    def serve(self, timeout: float | None) -> list[tuple[int, int]]:
        """Go round until there is something for asyncio to do, or until `timeout` seconds are over; None is never.

        What it returns are the events of descriptors without a watcher: number and epoll mask.
        """
        now = _now()
        end = inf if timeout is None else now + timeout
        self.is_due = False
        self.on_end()
        if self.is_due:  # so that `timeout` is no longer right
            return []
        while True:
            happened = self.epoll.poll(self._patience(now, end), _BATCH)
            others = self._dispatch(happened)
            self.turns.give(is_busy=bool(happened))
            now = _now()
            if now >= self._next_call:
                self._make_calls(now)
            self.on_end()
            if others is not None:
                return others
            if self.is_due or now >= end:
                return []

    def _patience(self, now: float, end: float) -> float:
        """For how many seconds to wait for events, or _FOR_EVER."""
        if self.turns.are_wanted:
            return 0.0
        until = min(end, self._next_call)
        return _FOR_EVER if until == inf else max(0.0, until - now)

    def _dispatch(self, happened: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """Hand out what has happened. Returns the events that have no watcher, if any."""
        others: list[tuple[int, int]] | None = None
        watchers = self.watchers
        for fd, events in happened:
            watcher = watchers[fd] if fd < len(watchers) else None
            if watcher is None:
                if others is None:
                    others = []
                others.append((fd, events))
                continue
            try:
                watcher.on_events(fd, events)
            except Exception as fault:
                # The edges behind this one are other connections', and come only once.
                self.on_fault(fault)
        return others

    def _make_calls(self, now: float) -> None:
        """Make those that are due; what they ask for waits for the next round."""
        due = [(when, call) for when, call in self._calls if when <= now]
        self._calls = [(when, call) for when, call in self._calls if when > now]
        self._next_call = min([when for when, _ in self._calls], default=inf)
        due.sort(key=itemgetter(0))
        for _, call in due:
            try:
                call()
            except Exception as fault:
                self.on_fault(fault)
