"""Rounds: what a worker's event loop does for its connections, between two things that it does for anything else.

A round waits for events, hands each to the watcher of its descriptor, and gives turns to the strands that want one.
asyncio makes an object and a call in Python of every event, and a round of it costs as much as a phase of a connection;
here an event costs a place in a list, and asyncio is back only when there is something for it to do.

Its own descriptors are in the same epoll, so that who waits for both waits once.
"""

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Final

from sniproxy.net.calls import Epoll
from sniproxy.net.strand import Turns
from sniproxy.net.timers import Timer

# How many events one round takes before turns and timers get theirs.
_BATCH: Final = 256

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
    """Serves the descriptors that have a watcher, and tells of the events of the others."""

    def __init__(self, epoll: Epoll, on_fault: Callable[[Exception], None]) -> None:
        self.epoll = epoll
        self.watchers: list[Watcher | None] = []  # by the number of their descriptor
        self.turns = Turns(on_fault)
        self.is_due = False  # asyncio has something to do
        self.on_end: Callable[[], None] = _nothing  # of each round, and before the first after asyncio
        self._on_fault = on_fault

    def serve(self, timeout: float | None) -> list[tuple[int, int]]:
        """Go round until there is something for asyncio to do, or until `timeout` seconds are over; None is never.

        What it returns are the events of descriptors without a watcher: number and epoll mask.
        """
        end = inf if timeout is None else _now() + timeout
        self.is_due = False
        self.on_end()
        if self.is_due:  # so that `timeout` is no longer right
            return []
        while True:
            others = self._dispatch(0.0 if self.turns.are_wanted else timeout)
            self.turns.give()
            self.on_end()
            if others or self.is_due:
                return others
            if end != inf:
                timeout = end - _now()
                if timeout <= 0.0:
                    return others

    def _dispatch(self, timeout: float | None) -> list[tuple[int, int]]:
        """Hand out what happens within `timeout` seconds. Returns the events that have no watcher."""
        others: list[tuple[int, int]] = []
        watchers = self.watchers
        for fd, events in self.epoll.poll(timeout, _BATCH):
            watcher = watchers[fd] if fd < len(watchers) else None
            if watcher is None:
                others.append((fd, events))
                continue
            try:
                watcher.on_events(fd, events)
            except Exception as fault:
                # The edges behind this one are other connections', and come only once.
                self._on_fault(fault)
        return others
