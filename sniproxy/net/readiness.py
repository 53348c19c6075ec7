"""Readiness of many sockets, without an event loop handle an event.

One epoll of our own watches every socket, edge-triggered and registered once; the event loop watches only the
epoll. So a connection costs one epoll_ctl a socket for its whole life, or two if it has to wait for room to write, and
an event costs a dictionary look-up.

The rules that edge-triggering asks for:

- An event is a hint. A handler finds out by reading or writing what there is, and treats EAGAIN as an answer.
- A handler never closes or registers a socket while events are being dispatched: a number that comes back from
  the kernel inside one batch would receive its predecessor's event. Handlers resolve futures, and the coroutines
  behind them act after the batch.
- Closing a descriptor takes it out of the epoll, for no process shares it; `forget` comes first.
"""

import asyncio
import select
from collections.abc import Callable
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from typing import Final

from sniproxy.net.timers import UNARMED, Timer, TimerWheel

_EDGES: Final = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET
_EDGES_AND_ROOM: Final = _EDGES | EPOLLOUT

# Something to read: bytes, an end, or an error.
READABLE: Final = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR
WRITABLE: Final = EPOLLOUT | EPOLLHUP | EPOLLERR
# The peer has said its last word: what is in the buffer is all there will be.
HANGUP: Final = EPOLLRDHUP | EPOLLHUP | EPOLLERR

# How many sockets one turn of the event loop serves before timers and new connections get theirs.
_BATCH: Final = 256

Handler = Callable[[int], None]


class Readiness:
    """Calls a handler with the epoll events of its descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timers: TimerWheel) -> None:
        self.loop = loop
        self.timers = timers
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, fd: int, handler: Handler, *, room: bool = False) -> bool:
        """Hand the events of `fd` to `handler` from now on; with `room`, also that it can be written to.

        True if the descriptor is new here: the kernel then reports what is ready already. False if it had a
        handler before: an edge may have gone to that one, and the new owner must look for itself.
        """
        is_new = fd not in self._handlers
        if is_new:
            # First, for it may fail: a handler that stayed would let the number's next owner wait for ever.
            self._epoll.register(fd, _EDGES_AND_ROOM if room else _EDGES)
        self._handlers[fd] = handler
        return is_new

    def tell_of_room(self, fd: int) -> None:
        """Tell of room to write, too, from now on, and at once if there is some.

        Nearly every client takes what it is sent, and would wake us once to say that it can.
        """
        self._epoll.modify(fd, _EDGES_AND_ROOM)

    def forget(self, fd: int) -> None:
        """Drop the handler of a descriptor that is about to be closed."""
        self._handlers.pop(fd, None)

    async def edge(self, fd: int, deadline: int) -> None:
        """Wait until something happens on `fd`. Raises TimeoutError at the tick `deadline`."""
        waiter = _Waiter(self.loop.create_future())
        self.watch(fd, waiter.wake)
        self.timers.arm_at(waiter, deadline)
        try:
            await waiter.future
        finally:
            self.timers.disarm(waiter)
            # The TimeoutError knows this frame, and would be known by it: a ring around all that the connection has.
            del waiter

    def close(self) -> None:
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _dispatch(self) -> None:
        handlers = self._handlers
        for fd, events in self._epoll.poll(0, _BATCH):
            handler = handlers.get(fd)
            if handler is None:
                continue
            try:
                handler(events)
            except Exception as error:
                # The edges behind this one are other connections', and come only once.
                self.loop.call_exception_handler({"message": "readiness handler failed", "exception": error})


class _Waiter(Timer):
    """One coroutine that waits for one descriptor, or for its deadline."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        self.slot = UNARMED

    def wake(self, _events: int) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(TimeoutError())
