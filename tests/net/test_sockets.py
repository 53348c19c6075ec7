"""Ways to close a socket: what the other side gets to see of each."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

import pytest

from sniproxy.net.readiness import Readiness
from sniproxy.net.sockets import cut_off, hang_up, reset, unsent
from sniproxy.net.timers import TICK
from tests.net.clock import HandClock
from tests.net.loopback import (
    InStrand,
    Pair,
    cut,
    fill,
    read_to_end,
    result_of,
    tcp_pair,
    turns,
    unix_pair,
    unread,
    until,
    watching,
)

ALERT = bytes.fromhex("15030300020231")  # TLS: fatal, access_denied

Watched = tuple[Readiness, HandClock]
PAIRS: dict[str, Callable[[], AbstractContextManager[Pair]]] = {"TCP": tcp_pair, "Unix": unix_pair}


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    with watching() as both:
        yield both


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> "AbstractContextManager[Pair]":
    return PAIRS[request.param]()


class TestHangingUp:
    async def test_the_farewell_arrives_although_the_client_had_more_to_say(
        self, watched: Watched, pair: AbstractContextManager[Pair]
    ) -> None:
        """What it sent and nobody read must not turn the close into a reset."""
        readiness, _ = watched
        with pair as (ours, theirs):
            theirs.send(b"x" * 30_000)
            hanging = InStrand(hang_up(ours, ALERT, readiness))
            await turns()
            theirs.send(b"y" * 30_000)
            await turns()
            theirs.shutdown(socket.SHUT_WR)
            await result_of(hanging)
            readiness.forget(ours.fileno())
            ours.close()
            assert await read_to_end(theirs) == ALERT

    async def test_the_client_hears_the_end_before_it_has_to_hang_up(self, watched: Watched) -> None:
        """Alert and end go out at once; only the close waits for the client's own end."""
        readiness, _ = watched
        with tcp_pair() as (ours, theirs):
            hanging = InStrand(hang_up(ours, ALERT, readiness))
            assert await read_to_end(theirs) == ALERT
            await turns()
            assert not hanging.done()
            theirs.close()
            await result_of(hanging)

    async def test_a_client_that_stays_has_its_time_and_no_more(self, watched: Watched) -> None:
        """One second, whether it is silent or sends a little now and then."""
        readiness, clock = watched
        for trickle in (b"", b"x"):
            with tcp_pair() as (ours, theirs):
                hanging = InStrand(hang_up(ours, ALERT, readiness))
                for _ in range(9):
                    await turns()
                    clock.advance(0.1)
                    if trickle:
                        theirs.send(trickle)
                    assert not hanging.done()
                await turns()
                clock.advance(0.1 + TICK)
                await result_of(hanging)
                readiness.forget(ours.fileno())

    async def test_a_client_that_sends_without_end_is_heard_out_for_64_kib(self, watched: Watched) -> None:
        """Then it is cut off, with no time passing."""
        readiness, _ = watched
        with tcp_pair() as (ours, theirs):
            sent = fill(theirs)
            hanging = InStrand(hang_up(ours, ALERT, readiness))
            await result_of(hanging)
            assert sent > 64 * 1024
            await until(lambda: unread(ours) > 0, "the rest")
            readiness.forget(ours.fileno())

    async def test_a_client_that_is_gone_is_no_error(
        self, watched: Watched, pair: AbstractContextManager[Pair]
    ) -> None:
        readiness, _ = watched
        with pair as (ours, theirs):
            theirs.send(b"x")
            cut(theirs)
            await result_of(InStrand(hang_up(ours, ALERT, readiness)))
            readiness.forget(ours.fileno())

    async def test_a_client_that_resets_meanwhile_is_no_error(self, watched: Watched) -> None:
        readiness, _ = watched
        with tcp_pair() as (ours, theirs):
            hanging = InStrand(hang_up(ours, ALERT, readiness))
            await turns()
            cut(theirs)
            await result_of(hanging)
            readiness.forget(ours.fileno())

    async def test_one_that_is_cancelled_leaves_no_timer(self, watched: Watched) -> None:
        """The fixture looks for timers that are still armed."""
        readiness, _ = watched
        with tcp_pair() as (ours, _):
            hanging = InStrand(hang_up(ours, ALERT, readiness))
            await turns()
            hanging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await result_of(hanging)
            readiness.forget(ours.fileno())


class TestCuttingOff:
    @pytest.mark.parametrize("said", [b"", b"\x16\x03\x01", b"x" * 60_000], ids=["silent", "a little", "a lot"])
    async def test_the_farewell_arrives(self, pair: AbstractContextManager[Pair], said: bytes) -> None:
        """Whatever the client has sent until then; nothing is waited for."""
        with pair as (ours, theirs):
            if said:
                theirs.send(said)
                await until(lambda: unread(ours) == len(said), "all that was said")
            cut_off(ours, ALERT)
            ours.close()
            assert await read_to_end(theirs) == ALERT

    async def test_a_client_that_is_gone_is_no_error(self, pair: AbstractContextManager[Pair]) -> None:
        with pair as (ours, theirs):
            theirs.send(b"x")
            cut(theirs)
            cut_off(ours, ALERT)


class TestResetting:
    async def test_the_close_becomes_a_reset(self) -> None:
        with tcp_pair() as (ours, theirs):
            await result_of(asyncio.create_task(reset(ours)))
            ours.close()
            with pytest.raises(ConnectionResetError):
                await read_to_end(theirs)

    async def test_but_only_when_the_peer_has_all_that_we_sent(self) -> None:
        """A reset drops what is in flight, so it waits until nothing is."""
        with tcp_pair(buffers=4096) as (ours, theirs):
            sent = fill(ours)
            resetting = asyncio.create_task(reset(ours))
            await turns()
            assert unsent(ours) > 0
            assert not resetting.done()
            received = 0
            while not resetting.done():
                with contextlib.suppress(BlockingIOError):
                    received += len(theirs.recv(1 << 16))
                await asyncio.sleep(0)
            ours.close()
            with contextlib.suppress(ConnectionResetError):
                while chunk := theirs.recv(1 << 16):
                    received += len(chunk)
                pytest.fail("an end, where a reset was to be")
            assert sent == received

    async def test_a_peer_that_takes_nothing_gets_an_end_after_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After its time; the bytes that are still on their way then come before the end."""
        monkeypatch.setattr("sniproxy.net.sockets._FLUSH_SECONDS", 0.1)
        with tcp_pair(buffers=4096) as (ours, theirs):
            sent = fill(ours)
            await result_of(asyncio.create_task(reset(ours)))
            ours.close()
            assert sent == len(await read_to_end(theirs))

    async def test_nobody_waits_for_a_peer_that_has_reset_it_himself(self) -> None:
        """The kernel goes on counting what he never took."""
        with tcp_pair(buffers=4096) as (ours, theirs):
            fill(ours)
            cut(theirs)
            await turns()
            assert unsent(ours) > 0
            with pytest.raises(StopIteration):  # at once
                reset(ours).send(None)

    async def test_a_unix_socket_has_no_reset(self) -> None:
        """Its peer sees an end."""
        with unix_pair() as (ours, theirs):
            ours.send(b"x")
            resetting = asyncio.create_task(reset(ours))
            assert await until_read(theirs) == b"x"
            await result_of(resetting)
            ours.close()
            assert await read_to_end(theirs) == b""


async def until_read(sock: socket.socket) -> bytes:
    await until(lambda: unread(sock) > 0, "bytes")
    return sock.recv(1 << 16)
