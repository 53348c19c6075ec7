"""Readiness of many sockets, without an event loop handle an event.

Every socket of a connection is watched edge-triggered and registered once. So it costs one epoll_ctl for its whole
life, or two if it has to wait for room to write, and an event costs a place in a list.

The rules that edge-triggering asks for:

- An event is a hint. A watcher finds out by reading or writing what there is, and treats EAGAIN as an answer.
- A watcher never closes a socket that is watched: a number that comes back from the kernel inside one batch of events
  would receive its predecessor's. Watchers wake strands, which act after the batch.
- Closing a descriptor takes it out of the epoll, for no process shares it; `forget` comes first.
"""

from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from typing import Final

from sniproxy.net.rounds import Rounds, Watcher
from sniproxy.net.strand import Pending
from sniproxy.net.timers import UNARMED, TimerWheel

_EDGES: Final = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET
_EDGES_AND_ROOM: Final = _EDGES | EPOLLOUT

# Something to read: bytes, an end, or an error.
READABLE: Final = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR
WRITABLE: Final = EPOLLOUT | EPOLLHUP | EPOLLERR
# The peer has said its last word: what is in the buffer is all there will be.
HANGUP: Final = EPOLLRDHUP | EPOLLHUP | EPOLLERR


class Readiness:
    """Tells watchers of the epoll events of their descriptors."""

    def __init__(self, rounds: Rounds, timers: TimerWheel) -> None:
        self.clock = timers.clock
        self.timers = timers
        self._epoll = rounds.epoll
        self._watchers = rounds.watchers

    def watch(self, fd: int, watcher: Watcher, *, room: bool = False) -> bool:
        """Tell `watcher` of the events of `fd` from now on; with `room`, also that it can be written to.

        True if the descriptor is new here: the kernel then reports what is ready already. False if it had a
        watcher before: an edge may have gone to that one, and the new owner must look for itself.
        """
        is_new = not self._is_watched(fd)
        if is_new:
            # First, for it may fail: a watcher that stayed would let the number's next owner wait for ever.
            self._epoll.register(fd, _EDGES_AND_ROOM if room else _EDGES)
        self._set(fd, watcher)
        return is_new

    def _is_watched(self, fd: int) -> bool:
        # The kernel gives the smallest number that is free, so that the list is as long as there are descriptors. A
        # closed socket's is -1, which a list would take for its last place.
        return 0 <= fd < len(self._watchers) and self._watchers[fd] is not None

    def _set(self, fd: int, watcher: Watcher) -> None:
        watchers = self._watchers
        while len(watchers) <= fd:
            watchers.append(None)
        watchers[fd] = watcher

    def tell_of_room(self, fd: int) -> None:
        """Tell of room to write, too, from now on, and at once if there is some.

        Nearly every client takes what it is sent, and would wake us once to say that it can.
        """
        self._epoll.modify(fd, _EDGES_AND_ROOM)

    def forget(self, fd: int) -> None:
        """Drop the watcher of a descriptor that is about to be closed."""
        if self._is_watched(fd):
            self._watchers[fd] = None

    def listen(self, fd: int, watcher: Watcher) -> None:
        """Tell `watcher` in each round in which connections wait at the listening socket `fd`."""
        self._epoll.register(fd, EPOLLIN)
        self._set(fd, watcher)

    def ignore(self, fd: int) -> None:
        """Take the listening socket `fd` out again; nothing happens if it is out."""
        if self._is_watched(fd):
            self._watchers[fd] = None
            self._epoll.unregister(fd)

    async def edge(self, fd: int, deadline: int) -> None:
        """Wait until something happens on `fd`, in a strand. Raises TimeoutError at the tick `deadline`."""
        waiter = _Waiter()
        self.watch(fd, waiter)
        self.timers.arm_at(waiter, deadline)
        try:
            await waiter.told
        finally:
            self.timers.disarm(waiter)
            # The TimeoutError knows this frame, and would be known by it: a ring around all that the connection has.
            del waiter


class _Waiter(Watcher):
    """One strand that waits for one descriptor, or for its deadline."""

    __slots__ = ("told",)

    def __init__(self) -> None:
        self.told: Pending[None] = Pending()
        self.slot = UNARMED

    def on_events(self, _fd: int, _events: int) -> None:
        self.told.succeed(None)

    def expire(self) -> None:
        self.told.fail(TimeoutError())
