"""The event loop of a worker: asyncio's, with rounds for connections where it would wait for events.

Signals, name servers, the supervisor's pipes and a worker's tasks are asyncio's as anywhere. What belongs to a
connection has a watcher, a strand or a call in `Rounds`, and asyncio hardly ever hears of it.
"""

import asyncio
import os
import select
from collections.abc import Callable
from contextvars import Context
from selectors import EVENT_READ, EVENT_WRITE, EpollSelector, SelectorKey
from time import monotonic
from typing import TypeVarTuple

from sniproxy.net.calls import Epoll
from sniproxy.net.rounds import Rounds

_Arguments = TypeVarTuple("_Arguments")


class EventLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop that serves what is watched in its `rounds`."""

    # The same clock, without a call in Python each time that a timer is set.
    time = staticmethod(monotonic)

    def __init__(self) -> None:
        selector = _Selector(self._tell)
        self.rounds = selector.rounds
        super().__init__(selector)

    def _tell(self, fault: Exception) -> None:
        self.call_exception_handler({"message": "serving connections failed", "exception": fault})

    # Everything that asyncio has to do begins with one of these two, or with an event.

    def call_soon(
        self,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: Context | None = None,
    ) -> asyncio.Handle:
        self.rounds.is_due = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Arguments], object],
        *args: *_Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.rounds.is_due = True
        return super().call_at(when, callback, *args, context=context)


class _Selector(EpollSelector):
    """Waits for what asyncio watches by way of the rounds, which share its epoll."""

    def __init__(self, on_fault: Callable[[Exception], None]) -> None:
        super().__init__()
        # By a descriptor of its own: the one that we have is not ours to share.
        self.rounds = Rounds(Epoll.fromfd(os.dup(self.fileno())), on_fault)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        ready = []
        keys = self.get_map()
        for fd, events in self.rounds.serve(timeout):
            key = keys.get(fd)
            if key is not None:  # nobody's, if a watcher was forgotten in the round in which its event came
                # An error or a hang-up is told to whoever waits, for either.
                readable = EVENT_READ if events & ~select.EPOLLOUT else 0
                writable = EVENT_WRITE if events & ~select.EPOLLIN else 0
                ready.append((key, (readable | writable) & key.events))
        return ready

    def close(self) -> None:
        self.rounds.epoll.close()
        super().close()
