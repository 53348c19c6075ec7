"""Pairs of connected sockets, and what to ask of sockets, descriptors and conditions."""

import array
import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import resource
import socket
import struct
import termios
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from sniproxy.net.event_loop import EventLoop
from sniproxy.net.readiness import Readiness
from sniproxy.net.rounds import Rounds, Watcher
from sniproxy.net.strand import Strand
from sniproxy.net.timers import TICK, TimerWheel
from tests.net.clock import HandClock

T = TypeVar("T")

PATIENCE = 20.0  # seconds until a test gives up on something that must happen
LOCALHOST = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

Pair = tuple[socket.socket, socket.socket]


async def until(happened: Callable[[], bool], what: str) -> None:
    """Let the loop turn until something has happened, for as long as patience lasts."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what}")
        await asyncio.sleep(0)


async def turns(count: int = 10) -> None:
    """Let the loop turn a few times: enough for all that is ready, and for what that makes ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def its_rounds() -> Rounds:
    """Those of the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, EventLoop)
    return loop.rounds


class InStrand(asyncio.Future[T]):
    """The result of a coroutine that runs in a strand, as in the proxy. To cancel it is to cancel the strand."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self._strand = Strand(self._tell(coroutine), its_rounds().turns, lambda _: None)
        self._strand.run()

    async def _tell(self, coroutine: Coroutine[Any, Any, T]) -> None:
        try:
            self.set_result(await coroutine)
        except asyncio.CancelledError:
            super().cancel()
        except Exception as error:
            self.set_exception(error)

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002
        self._strand.cancel()
        return True


async def result_of(task: asyncio.Future[T]) -> T:
    """The result of a task, or of a strand, that is about to end."""
    return await asyncio.wait_for(asyncio.shield(task), PATIENCE)


@contextlib.contextmanager
def tcp_pair(buffers: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Iterator[Pair]:
    """Two ends of a TCP connection, non-blocking: ours and theirs. `buffers` is their size in bytes, 0 the kernel's."""
    with socket.socket(family) as listener, contextlib.ExitStack() as stack:
        _size_buffers(listener, buffers)
        listener.bind((LOCALHOST[family], 0))
        listener.listen()
        theirs = stack.enter_context(socket.socket(family))
        _size_buffers(theirs, buffers)
        theirs.connect(listener.getsockname())
        ours = stack.enter_context(listener.accept()[0])
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield ours, theirs


@contextlib.contextmanager
def unix_pair(buffers: int = 0) -> Iterator[Pair]:
    """The same on a Unix socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
            _size_buffers(sock, buffers)
        yield ours, theirs


def _size_buffers(sock: socket.socket, size: int) -> None:
    if size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def unread(sock: socket.socket) -> int:
    """Bytes that have arrived and wait to be read."""
    answer = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, answer)
    return answer[0]


def read_some(sock: socket.socket, size: int = 1 << 20) -> bytes | None:
    """What is there; b"" is the end, None is nothing yet."""
    try:
        return sock.recv(size)
    except BlockingIOError:
        return None


async def read_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes, or what came before an end."""
    data = bytearray()

    def complete() -> bool:
        chunk = read_some(sock, min(size - len(data), 1 << 20))
        data.extend(chunk or b"")
        return len(data) == size or chunk == b""

    await until(complete, f"{size} bytes")
    return bytes(data)


async def read_to_end(sock: socket.socket) -> bytes:
    """Everything up to the end. Raises ConnectionResetError where there is a reset instead."""
    return await read_exactly(sock, 1 << 40)


def fill(sock: socket.SocketType) -> int:
    """Send until neither buffer takes any more; how many bytes that took."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(1 << 16))
    return sent


def cut(sock: socket.SocketType) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def packets_sent(sock: socket.SocketType) -> int:
    """tcpi_segs_out of struct tcp_info (include/uapi/linux/tcp.h)."""
    (count,) = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 140), 136)
    return int(count)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def no_descriptor_left(but: int = 0) -> Iterator[None]:
    """This process may open `but` more descriptors, and then gets EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        # The limit is on the numbers, so the gaps below it are filled.
        highest = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        fillers: list[int] = []
        try:
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE  # noqa: PT017 - the end of the loop
        if but > len(fillers):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + but - len(fillers), hard))
        for filler in fillers[:but]:
            os.close(filler)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers[but:]:
                os.close(filler)


@contextlib.contextmanager
def watching() -> Iterator[tuple[Readiness, HandClock]]:
    """A readiness on the running loop, its time moved by hand. At the end no timer may be armed."""
    clock = HandClock(asyncio.get_running_loop())
    rounds = its_rounds()
    yield Readiness(rounds, TimerWheel(clock, rounds.on_fault)), clock
    clock.advance(2 * TICK)
    assert clock.scheduled == 0, "a timer is still armed"


class Hears(Watcher):
    """A watcher that hands the events to a function."""

    def __init__(self, function: Callable[[int], object]) -> None:
        self._function = function

    def on_events(self, _fd: int, events: int) -> None:
        self._function(events)


class Token:
    """Something that can be seen to be gone, by a weak reference."""


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """What goes now, goes because nothing refers to it; rings of garbage stay."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def black_hole(family: socket.AddressFamily = socket.AF_INET) -> Iterator[int]:
    """A port whose queue is full, so that the kernel answers no SYN: connecting hangs."""
    with socket.socket(family) as server, contextlib.ExitStack() as stack:
        server.bind((LOCALHOST[family], 0))
        server.listen(0)
        address = server.getsockname()
        for _ in range(8):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address[1]
