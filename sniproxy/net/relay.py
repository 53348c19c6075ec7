"""The relay: bytes of two sockets, each way, until both ways have ended.

Each direction is a `_Flow`. Small exchanges are copied through one buffer that all connections share; a flow whose
reads fill that buffer moves to `os.splice`, so that its bytes stay in the kernel, through a pipe that it has only
while bytes are in it. An idle connection owns neither.

What must hold, whatever the order of events:

- Byte-exact: nothing is read from a source while bytes wait for its sink. That is the back-pressure, too.
- Edge-triggered: a flow stops only at EAGAIN, at the end, or at a read that did not fill its buffer while no
  hang-up was reported (epoll(7): the kernel will tell of what comes after). Where an orderly end was reported, such a
  read is the last one. A flow that stops for its budget asks for another turn.
- Half-close: the end of one direction is passed on by shutdown(2), and the other goes on.
- A reset is no end: the flow that meets one is over, what the peer had sent before it is still delivered, and the
  outcome names the side.
- Until the server has chosen, a `HelloWatch` sees what is copied, and nothing is spliced. It may hold a part of a hello
  back; if the client ends or resets there, that part is dropped, for it was not judged. The idle time bounds the wait.
"""

import os
import socket
from select import EPOLLERR, EPOLLPRI, EPOLLRDHUP
from typing import Final

from sniproxy.net.calls import Socket, send_first
from sniproxy.net.pipes import PIPE_SIZE, Pipe, PipePool
from sniproxy.net.readiness import HANGUP, READABLE, WRITABLE, Readiness
from sniproxy.net.rounds import Watcher
from sniproxy.net.strand import Pending
from sniproxy.net.timers import TICK, UNARMED
from sniproxy.outcome import Reason
from sniproxy.usual import CLIENT_RESET, DONE, UPSTREAM_RESET
from sniproxy.wire.hello_retry import ChangedHelloError, HelloWatch

# One read of a copied flow. One that fills it has more behind it, and moves to splice.
_BUFFER_SIZE: Final = 64 * 1024
_BUFFER: Final = bytearray(_BUFFER_SIZE)
_VIEW: Final = memoryview(_BUFFER)

_send_first: Final = send_first  # compiled, what is imported would be looked up by its name each time
_SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
# A spliced turn that moved less than this goes back to copying: two system calls either way, and no pipe.
_FLOWING: Final = 16 * 1024
_MORE: Final = int(socket.MSG_MORE)
_SHUT_WR: Final = int(socket.SHUT_WR)
# An end, and whether it is an orderly one: a reset drops what we would hold back for it, and a read stops short at an
# urgent mark (tcp(7)), so that with one it does not show how much there is.
_ENDING: Final = EPOLLRDHUP | EPOLLERR | EPOLLPRI
_ORDERLY: Final = EPOLLRDHUP
_ERROR: Final = EPOLLERR
# Moves in one turn, before the other connections get theirs.
_BUDGET: Final = 16


class Tally:
    """What counts the bytes of all connections, in one direction."""

    __slots__ = ()

    def add(self, amount: float) -> None:
        raise NotImplementedError


class _Flow:
    """One direction."""

    __slots__ = (
        "flowing",
        "has_turn",
        "hears_of_room",
        "is_broken",
        "is_ending",
        "is_over",
        "moved",
        "pending",
        "pipe",
        "piped",
        "reset",
        "sink",
        "source",
        "tally",
    )

    def __init__(self, source: Socket, sink: Socket, reset: Reason, tally: Tally) -> None:
        self.source = source
        self.sink = sink
        self.hears_of_room = False  # an event will say when the sink takes bytes again
        self.reset = reset  # the outcome if the source is reset
        self.tally = tally  # of the bytes that reached the sink
        self.moved = 0
        self.pending = b""
        self.pipe: Pipe | None = None
        self.piped = 0
        self.flowing = False
        self.has_turn = False  # one that spent its budget and has asked for another turn
        self.is_ending = False  # the source has ended behind what is still to be read; a short read shows where
        self.is_broken = False  # the source was reset; behind an end of its own no read will tell
        self.is_over = False

    @property
    def taken(self) -> int:
        """Bytes read from the source."""
        return self.moved + len(self.pending) + self.piped


class Relay(Watcher):
    """Relays between two connected, non-blocking sockets. `start` it once, and `close` it; it closes no socket."""

    __slots__ = (
        "_done",
        "_down",
        "_down_fd",
        "_idle",
        "_outcome",
        "_pipes",
        "_readiness",
        "_request",
        "_response",
        "_timers",
        "_touched",
        "_up",
        "_watch",
    )

    def __init__(
        self,
        downstream: Socket,
        upstream: Socket,
        readiness: Readiness,
        pipes: PipePool,
        idle: float,
        received: Tally,
        sent: Tally,
    ) -> None:
        self._down = downstream
        self._down_fd = downstream.fileno()
        self._up = upstream
        self._readiness = readiness
        self._timers = readiness.timers
        self._pipes = pipes
        self._idle = idle
        self._request = _Flow(downstream, upstream, CLIENT_RESET, received)
        self._response = _Flow(upstream, downstream, UPSTREAM_RESET, sent)
        self._done: Pending[Reason] = Pending()
        self._outcome = DONE
        self._touched = 0
        self._watch: HelloWatch | None = None
        self.slot = UNARMED

    @property
    def received(self) -> int:
        """Bytes that came from downstream."""
        return self._request.taken + (self._watch.held if self._watch is not None else 0)

    @property
    def sent(self) -> int:
        """Bytes that went to downstream."""
        return self._response.moved

    @property
    def detail(self) -> str:
        """What there is to say of an end for SNI_CHANGED."""
        return self._watch.detail if self._watch is not None else ""

    def start(self, head: bytes, heard: int, watch: HelloWatch | None = None) -> Pending[Reason]:
        """Relay until both directions have ended: to DONE, CLIENT_RESET, UPSTREAM_RESET, IDLE_TIMEOUT, SNI_CHANGED or
        `stop`'s.

        `head` is what was read from downstream already, and `heard` the epoll events that upstream's owner before
        us was told of. `watch` says what of it all may go upstream.
        """
        self._timers.arm(self, self._idle)
        self._touched = self._timers.next_tick
        self._watch = watch
        try:
            self._request.pending = head if watch is None else watch.begin(head)
        except ChangedHelloError:
            self._done.succeed(Reason.SNI_CHANGED)
            return self._done
        self._start(heard)
        return self._done

    def close(self) -> None:
        """Give back the timer and the pipes. The counts stay."""
        self._done.succeed(self._outcome)
        self._timers.disarm(self)
        self._drop_pipe(self._request)
        self._drop_pipe(self._response)

    def stop(self, reason: Reason) -> None:
        """End now, for `reason`; what waits to be passed on is dropped."""
        self._done.succeed(reason)

    def _start(self, heard: int) -> None:
        readiness = self._readiness
        readiness.watch(self._up.fileno(), self)
        is_new = readiness.watch(self._down_fd, self)
        if self._flush(self._request) and not is_new:
            # It was watched while we waited for the hello: edges may have gone by.
            self._pump(self._request, ended=True)
        if heard & READABLE:
            self._response.is_ending = heard & _ENDING == _ORDERLY
            self._pump(self._response, ended=True)

    def on_events(self, fd: int, events: int) -> None:
        if self._done.is_done:
            return
        from_it, to_it = self._request, self._response
        if fd != self._down_fd:
            from_it, to_it = to_it, from_it
        self._touched = self._timers.next_tick
        if events & WRITABLE and (to_it.pending or to_it.piped):
            # What kept this flow from reading is gone, so it must look for what came meanwhile.
            self._pump(to_it, ended=True)
        if events & READABLE:
            from_it.is_ending = events & _ENDING == _ORDERLY
            self._pump(from_it, ended=bool(events & HANGUP))
            if events & _ERROR:
                from_it.is_broken = True
                if from_it.is_over and not to_it.is_over:
                    self._sink_reset(to_it)

    def expire(self) -> None:
        """The idle timer is due: end, unless bytes flowed since it was armed."""
        if self._done.is_done:
            return
        timers = self._timers
        quiet = (timers.next_tick - self._touched) * TICK
        if quiet < self._idle:
            timers.arm(self, self._idle - quiet)
        else:
            self._done.succeed(Reason.IDLE_TIMEOUT)

    def _pump(self, flow: _Flow, *, ended: bool) -> None:
        """Move what can be moved. `ended`: read on until EAGAIN or the end, for no event will say so again."""
        if flow.is_over or flow.has_turn or ((flow.pending or flow.piped) and not self._flush(flow)):
            return
        for _ in range(_BUDGET):
            pipe = self._lease_pipe(flow) if flow.flowing else None
            if pipe is not None:
                self._splice(flow, pipe)
                return
            size = self._copy(flow)
            is_full = size == _BUFFER_SIZE
            flow.flowing = is_full and self._watch is None
            if size == 0 or not (ended or is_full):
                return
        self._again(flow)

    def _copy(self, flow: _Flow) -> int:
        """Copy what one read gives. The size of it; 0 when the flow cannot go on now, or has ended."""
        try:
            size = flow.source.recv_into(_BUFFER)
        except BlockingIOError:
            return 0
        except OSError:
            self._source_reset(flow)
            return 0
        if size == 0:
            self._finish(flow)
            return 0
        is_last = flow.is_ending and size < _BUFFER_SIZE
        # The last bytes wait for the end that is passed on next, and go with it in one packet.
        flags = _MORE if is_last else 0
        if self._watch is not None:
            size = self._copy_watched(flow, size, flags, self._watch)
        elif not self._send(flow, _BUFFER, size, flags):
            size = 0
        # Of the upstream, which is TCP, that is proof enough. A Unix socket also stops where descriptors were passed.
        if is_last and size and flow is self._response:
            self._finish(flow)
            return 0
        return size

    def _copy_watched(self, flow: _Flow, size: int, flags: int, watch: HelloWatch) -> int:
        """The same, for what the watch lets pass of it."""
        data: bytes | bytearray = _BUFFER
        passed = size
        if flow is self._response:
            watch.note(_VIEW[:size])
        else:
            try:
                data = watch.pass_on(bytes(_VIEW[:size]))
            except ChangedHelloError:
                self._done.succeed(Reason.SNI_CHANGED)
                return 0
            passed = len(data)
        if watch.is_over:
            self._watch = None
        return size if not passed or self._send(flow, data, passed, flags) else 0

    def _splice(self, flow: _Flow, pipe: Pipe) -> None:
        """Fill the empty pipe, empty it, and so on: with an empty pipe EAGAIN can only mean the source."""
        source, before = flow.source.fileno(), flow.moved
        for _ in range(_BUDGET):
            try:
                flow.piped = os.splice(source, pipe.writer, PIPE_SIZE, flags=_SPLICE)
            except BlockingIOError:
                flow.flowing = flow.moved - before >= _FLOWING
                self._drop_pipe(flow)
                return
            except OSError:
                self._source_reset(flow)
                return
            if flow.piped == 0:
                self._finish(flow)
                return
            if not self._flush_pipe(flow, pipe):
                return
        self._again(flow)

    def _flush(self, flow: _Flow) -> bool:
        """Send what waits for the sink. True when nothing waits any more."""
        if flow.pipe is not None:
            return self._flush_pipe(flow, flow.pipe)
        if flow.pending:
            waiting, flow.pending = flow.pending, b""
            return self._send(flow, waiting, len(waiting), 0)
        return True

    def _send(self, flow: _Flow, data: bytes | bytearray, size: int, flags: int) -> bool:
        """Send the first `size` bytes of `data`; True if all went. What did not is kept, in memory of its own."""
        try:
            sent = _send_first(flow.sink, data, size, flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._sink_reset(flow)
            return False
        if sent:
            flow.moved += sent
            flow.tally.add(sent)
        if sent == size:
            return True
        flow.pending = bytes(data[sent:size])
        self._await_room(flow)
        return False

    def _flush_pipe(self, flow: _Flow, pipe: Pipe) -> bool:
        """Move the pipe's bytes to the sink. True when it is empty."""
        sink = flow.sink.fileno()
        while flow.piped:
            try:
                sent = os.splice(pipe.reader, sink, flow.piped, flags=_SPLICE)
            except BlockingIOError:
                self._await_room(flow)
                return False
            except OSError:
                self._sink_reset(flow)
                return False
            flow.piped -= sent
            flow.moved += sent
            flow.tally.add(sent)
        return True

    def _await_room(self, flow: _Flow) -> None:
        """Hear of it when the sink takes bytes again."""
        if not flow.hears_of_room:
            flow.hears_of_room = True
            self._readiness.tell_of_room(flow.sink.fileno())

    def _again(self, flow: _Flow) -> None:
        """The budget is spent: let the others have their turn, then go on. Events until then add no second turn."""
        flow.has_turn = True
        self._readiness.clock.call_soon(self._resume)

    def _resume(self) -> None:
        for flow in (self._request, self._response):
            if flow.has_turn and not self._done.is_done:
                flow.has_turn = False
                self._pump(flow, ended=True)

    def _lease_pipe(self, flow: _Flow) -> Pipe | None:
        if flow.pipe is None:
            flow.pipe = self._pipes.lease()
        return flow.pipe

    def _drop_pipe(self, flow: _Flow) -> None:
        if flow.pipe is None:
            return
        if flow.piped:
            self._pipes.discard(flow.pipe)
        else:
            self._pipes.give_back(flow.pipe)
        flow.pipe = None

    def _finish(self, flow: _Flow) -> None:
        """The source has ended and all that it sent has been passed on: pass the end on, too."""
        flow.is_over = True
        self._drop_pipe(flow)
        if self._other(flow).is_over:
            self._end(flow.sink)
            return
        try:
            flow.sink.shutdown(_SHUT_WR)
        except OSError:
            self._outcome = self._other(flow).reset
        if flow.is_broken:
            self._sink_reset(self._other(flow))

    def _source_reset(self, flow: _Flow) -> None:
        """The source is gone, and with it the sink of the other flow."""
        self._outcome = flow.reset
        self._end(flow.sink)

    def _sink_reset(self, flow: _Flow) -> None:
        """The sink is gone. What it sent before may still wait in its buffer: the other flow reads to its end."""
        other = self._other(flow)
        self._outcome = other.reset
        flow.is_over = True
        if other.is_over:
            self._end(flow.source)
        else:
            self._pump(other, ended=True)

    def _end(self, told: Socket) -> None:
        """It is over. What tells `told` of it is the close of its socket: a client waits for that, and no server."""
        self._done.succeed(self._outcome, is_urgent=told is self._down)

    def _other(self, flow: _Flow) -> _Flow:
        return self._response if flow is self._request else self._request
