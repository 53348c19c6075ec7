"""The worker's event loop: asyncio as anywhere, with connections served in between."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator

import pytest

from sniproxy.net.event_loop import EventLoop
from sniproxy.net.readiness import Readiness
from tests.net.loopback import Hears, open_descriptors, tcp_pair, turns, until, watching


@pytest.fixture
async def readiness() -> AsyncIterator[Readiness]:
    with watching() as (readiness, _):
        yield readiness


def test_it_gives_back_both_descriptors_of_its_epoll() -> None:
    before = open_descriptors()
    EventLoop().close()
    assert open_descriptors() == before


async def test_readers_and_writers_are_told_as_by_asyncios_own() -> None:
    """Of bytes, of room, and of an end."""
    loop = asyncio.get_running_loop()
    with tcp_pair() as (ours, theirs):
        told: list[str] = []
        loop.add_writer(ours, told.append, "writable")
        await until(lambda: bool(told), "room to write")
        loop.remove_writer(ours)
        loop.add_reader(ours, told.append, "readable")
        await turns()
        assert set(told) == {"writable"}
        theirs.send(b"x")
        await until(lambda: told[-1] == "readable", "something to read")
        loop.remove_reader(ours)
        ours.recv(1)
        loop.add_reader(ours, told.append, "over")
        await turns()
        assert told[-1] == "readable"
        theirs.close()
        await until(lambda: told[-1] == "over", "the end")
        loop.remove_reader(ours)


async def test_a_writer_hears_of_a_connection_that_failed() -> None:
    """What connect(2) waits for is an error, and no room."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().sock_connect(sock, address)


async def test_what_a_watcher_asks_for_is_done_though_nothing_else_happens(readiness: Readiness) -> None:
    """A call, a timer, and a future that somebody waits for: asyncio has its turn at once."""
    loop = asyncio.get_running_loop()
    called, waited, woken = asyncio.Event(), asyncio.Event(), loop.create_future()

    def watcher(_events: int) -> None:
        readiness.ignore(fd)
        loop.call_soon(called.set)
        loop.call_later(0.01, waited.set)
        woken.set_result("woken")

    fd = os.eventfd(1, os.EFD_NONBLOCK)
    readiness.listen(fd, Hears(watcher))
    await called.wait()
    await waited.wait()
    assert await woken == "woken"
    os.close(fd)


async def test_other_threads_and_signals_come_through() -> None:
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, os.getpid) == os.getpid()
    signalled = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, signalled.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await signalled.wait()
    loop.remove_signal_handler(signal.SIGUSR1)


async def test_a_fault_of_a_watcher_is_told_as_asyncio_tells_of_one(readiness: Readiness) -> None:
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    fault = ValueError("a fault")

    def watcher(_events: int) -> None:
        readiness.ignore(fd)
        raise fault

    fd = os.eventfd(1, os.EFD_NONBLOCK)
    readiness.listen(fd, Hears(watcher))
    await until(lambda: bool(told), "the fault")
    assert told == [fault]
    os.close(fd)
