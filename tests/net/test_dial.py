"""Dialling, with real sockets on loopback: who is tried, in which order, and what is left behind.

Time is moved by hand where a test says so, and waits for nothing.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.names import ServerName
from sniproxy.net.dial import ATTEMPT_DELAY, Connected, dial, interleave
from sniproxy.net.guard import Endpoint
from sniproxy.net.readiness import READABLE, Readiness
from sniproxy.net.timers import TICK, TimerWheel
from sniproxy.outcome import ConnectionEndedError, Reason
from sniproxy.policy.model import Permit
from tests.net.clock import HandClock
from tests.net.loopback import (
    LOCALHOST,
    PATIENCE,
    InStrand,
    black_hole,
    cut,
    its_rounds,
    no_descriptor_left,
    open_descriptors,
    packets_sent,
    result_of,
    turns,
    watching,
)
from tests.support.dns_server import unused_port

NAME = ServerName("en.wikipedia.org")
PERMIT = Permit(NAME, ())
FOUR, SIX = socket.AF_INET, socket.AF_INET6

# A multicast address is refused by the kernel before any packet is sent.
UNREACHABLE = Endpoint("224.0.0.1", 443, FOUR)


def at(port: int, family: socket.AddressFamily = FOUR) -> Endpoint:
    return Endpoint(LOCALHOST[family], port, family)


@contextlib.contextmanager
def origin(family: socket.AddressFamily = FOUR) -> Iterator[tuple[socket.socket, Endpoint]]:
    """A listening socket, and where it listens."""
    with socket.create_server((LOCALHOST[family], 0), family=family) as server:
        server.setblocking(False)
        yield server, at(server.getsockname()[1], family)


def accept(server: socket.socket) -> socket.socket:
    """Who has connected, which is seen when they send something, or when the kernel acknowledges for them."""
    server.settimeout(PATIENCE)
    return server.accept()[0]


@pytest.fixture
async def watched() -> AsyncIterator[tuple[Readiness, HandClock]]:
    with watching() as both:
        yield both


@pytest.fixture
async def readiness(watched: tuple[Readiness, HandClock]) -> Readiness:
    return watched[0]


async def failure(dialling: asyncio.Future[Connected]) -> tuple[Reason, str]:
    with pytest.raises(ConnectionEndedError) as caught:
        await result_of(dialling)
    return caught.value.reason, caught.value.detail


def dialling(readiness: Readiness, *endpoints: Endpoint, timeout: float = 5.0) -> asyncio.Future[Connected]:
    return InStrand(dial(PERMIT, endpoints, timeout, readiness))


def hang_up(readiness: Readiness, attempt: Connected) -> None:
    readiness.forget(attempt.socket.fileno())
    attempt.socket.close()


async def winner_of(readiness: Readiness, dialled: asyncio.Future[Connected]) -> Endpoint:
    """Where a dial ended up. Its socket is closed."""
    attempt = await result_of(dialled)
    hang_up(readiness, attempt)
    return attempt.endpoint


class TestOneAddress:
    @pytest.mark.parametrize("family", [FOUR, SIX])
    async def test_it_connects(self, readiness: Readiness, family: socket.AddressFamily) -> None:
        """The socket is connected, non-blocking, without Nagle's algorithm, and closed on exec."""
        with origin(family) as (server, endpoint):
            attempt = await result_of(dialling(readiness, endpoint))
            with contextlib.closing(attempt.socket) as sock:
                assert sock.getpeername()[:2] == (endpoint.host, endpoint.port)
                assert (False, False) == (sock.getblocking(), os.get_inheritable(sock.fileno()))
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                sock.send(b"through")
                with server.accept()[0] as accepted:
                    assert accepted.recv(100) == b"through"
                readiness.forget(sock.fileno())

    async def test_what_is_sent_first_acknowledges_the_handshake(self, readiness: Readiness) -> None:
        """Two packets went out, the SYN and the bytes, unless this machine took 200 ms from one to the other."""
        with origin() as (_, endpoint):
            for _ in range(20):
                attempt = await result_of(dialling(readiness, endpoint))
                attempt.socket.send(b"hello")
                sent = packets_sent(attempt.socket)
                hang_up(readiness, attempt)
                if sent == 2:
                    return
        pytest.fail(f"{sent} packets went out")

    @pytest.mark.parametrize("family", [FOUR, SIX])
    async def test_a_refusal_names_the_address(self, readiness: Readiness, family: socket.AddressFamily) -> None:
        port = unused_port()
        spelled = {FOUR: f"127.0.0.1:{port}", SIX: f"[::1]:{port}"}[family]
        expected = (Reason.CONNECT_REFUSED, f"{NAME}: {spelled} connection refused")
        assert expected == await failure(dialling(readiness, at(port, family)))

    async def test_what_cannot_even_begin_is_told(self, readiness: Readiness) -> None:
        expected = (Reason.CONNECT_FAILED, f"{NAME}: 224.0.0.1:443 network is unreachable")
        assert expected == await failure(dialling(readiness, UNREACHABLE))

    async def test_silence_is_a_timeout(self, watched: tuple[Readiness, HandClock]) -> None:
        readiness, clock = watched
        with black_hole() as port:
            dialled = dialling(readiness, at(port), timeout=0.5)
            await turns()
            clock.advance(0.4)
            await turns()
            assert not dialled.done()
            clock.advance(0.1 + TICK)
            expected = (Reason.CONNECT_TIMEOUT, f"{NAME}: 127.0.0.1:{port} gave no answer within 0.5s")
            assert expected == await failure(dialled)

    async def test_silence_is_a_timeout_by_the_loops_own_time(self) -> None:
        rounds = its_rounds()
        readiness = Readiness(rounds, TimerWheel(rounds, rounds.on_fault))
        with black_hole() as port:
            reason, _ = await failure(dialling(readiness, at(port), timeout=0.2))
            assert reason is Reason.CONNECT_TIMEOUT

    async def test_events_of_before_are_handed_over(self, readiness: Readiness) -> None:
        """A server that speaks first may have spoken before anybody else watches the socket."""
        with origin() as (server, endpoint):
            dialled = dialling(readiness, endpoint)
            with accept(server) as accepted:
                accepted.send(b"220 ready")
                attempt = await result_of(dialled)
                assert attempt.events & READABLE
                hang_up(readiness, attempt)

    async def test_a_connection_that_is_reset_at_once_has_failed(self, readiness: Readiness) -> None:
        """Nothing was sent yet, so the next address can serve."""
        with origin() as (server, endpoint), origin() as (_, good):
            dialled = dialling(readiness, endpoint, good)
            cut(accept(server))
            assert good == await winner_of(readiness, dialled)


class TestSeveralAddresses:
    async def test_a_refusal_starts_the_next_at_once(self, watched: tuple[Readiness, HandClock]) -> None:
        """No time passes. The refused one may be of either family."""
        readiness, clock = watched
        for refusing, serving in ((FOUR, FOUR), (SIX, FOUR), (FOUR, SIX)):
            with origin(serving) as (_, good):
                dialled = dialling(readiness, at(unused_port(), refusing), at(unused_port(), refusing), good)
                assert good == await winner_of(readiness, dialled)
        assert clock.now == 1000.0

    async def test_a_silent_one_delays_the_next(self, watched: tuple[Readiness, HandClock]) -> None:
        """By the Connection Attempt Delay; both are then under way."""
        readiness, clock = watched
        with black_hole() as silent, origin() as (server, good):
            dialled = dialling(readiness, at(silent), good)
            await turns()
            with pytest.raises(BlockingIOError):
                server.accept()
            clock.advance(ATTEMPT_DELAY + TICK)
            assert good == await winner_of(readiness, dialled)

    async def test_one_that_cannot_begin_is_passed_over(self, readiness: Readiness) -> None:
        with origin() as (_, good):
            assert good == await winner_of(readiness, dialling(readiness, UNREACHABLE, UNREACHABLE, good))

    async def test_a_slow_one_may_still_win(self, watched: tuple[Readiness, HandClock]) -> None:
        """It is not given up when the next is started: here the first answers while the second is silent."""
        readiness, clock = watched
        with silent_for_now() as (slow, answer), black_hole() as silent:
            dialled = dialling(readiness, slow, at(silent), timeout=60)
            await turns()
            clock.advance(ATTEMPT_DELAY + TICK)
            await turns()
            answer()
            assert slow == await winner_of(readiness, dialled)

    async def test_the_failures_of_all_are_told(self, watched: tuple[Readiness, HandClock]) -> None:
        """In the order in which they failed; one that ran out of time makes it a timeout."""
        readiness, clock = watched
        refused = unused_port()
        with black_hole() as silent:
            dialled = dialling(readiness, at(refused, SIX), at(silent), UNREACHABLE, timeout=0.5)
            for _ in range(10):
                await turns()
                clock.advance(TICK)
            expected = (
                f"{NAME}: [::1]:{refused} connection refused; 224.0.0.1:443 network is unreachable; "
                f"127.0.0.1:{silent} gave no answer within 0.5s"
            )
            assert (Reason.CONNECT_TIMEOUT, expected) == await failure(dialled)

    async def test_refusals_and_other_failures_together_are_failures(self, readiness: Readiness) -> None:
        reason, detail = await failure(dialling(readiness, at(unused_port()), UNREACHABLE))
        assert (Reason.CONNECT_FAILED, 2) == (reason, len(detail.split(";")))

    async def test_refusals_alone_are_refusals(self, readiness: Readiness) -> None:
        ports = [unused_port() for _ in range(3)]
        reason, detail = await failure(dialling(readiness, *map(at, ports)))
        told = "; ".join(f"127.0.0.1:{port} connection refused" for port in ports)
        assert (Reason.CONNECT_REFUSED, f"{NAME}: {told}") == (reason, detail)


# Each is a list of what the addresses do, in the order of dialling, where a silent one is not the last to be started.
# However it ends, it must end in time.
SILENT_AND_MORE: dict[str, Sequence[str]] = {
    "all are silent": ("silent", "silent", "silent"),
    "the last cannot begin": ("silent", "unreachable"),
    "the last refuses": ("silent", "refusing"),
    "one refuses, and the last cannot begin": ("silent", "refusing", "unreachable"),
    "several cannot begin": ("silent", "unreachable", "unreachable", "unreachable"),
    "one between silent ones cannot begin": ("silent", "unreachable", "silent"),
    "one refuses between silent ones": ("silent", "refusing", "silent"),
}


@pytest.mark.parametrize("case", SILENT_AND_MORE)
async def test_the_time_of_all_is_bounded(case: str, watched: tuple[Readiness, HandClock]) -> None:
    """A dial that has one silent address ends with its timeout, whatever became of the others."""
    readiness, clock = watched
    with contextlib.ExitStack() as stack:
        addresses: dict[str, Callable[[], Endpoint]] = {
            "silent": lambda: at(stack.enter_context(black_hole())),
            "refusing": lambda: at(unused_port()),
            "unreachable": lambda: UNREACHABLE,
        }
        before = open_descriptors()
        endpoints = [addresses[kind]() for kind in SILENT_AND_MORE[case]]
        held = open_descriptors() - before
        dialled = dialling(readiness, *endpoints, timeout=2.0)
        for _ in range(22):
            await turns()
            clock.advance(TICK)
        reason, detail = await failure(dialled)
        assert (Reason.CONNECT_TIMEOUT, len(endpoints)) == (reason, len(detail.split(";")))
        await turns()
        assert held == open_descriptors() - before


async def test_a_refusal_and_the_timeout_in_one_turn_are_told_once(watched: tuple[Readiness, HandClock]) -> None:
    """The loop was busy, and finds both at once: the address has refused, and not run out of time as well."""
    readiness, clock = watched
    refused, other = unused_port(), unused_port()
    with black_hole() as silent:
        dialled = dialling(readiness, at(silent), at(refused), at(other), timeout=0.5)
        await turns()
        clock.advance(ATTEMPT_DELAY + TICK)  # the second is started, and its refusal is there
        # The next turn hands the refusal out; the time-out comes before what it made ready.
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(clock.advance, 5))
        _, detail = await failure(dialled)
        assert detail.count(str(refused)) == 1


class TestNothingIsLeft:
    """The fixture adds that no timer is armed."""

    async def test_losers_are_closed(self, watched: tuple[Readiness, HandClock]) -> None:
        readiness, clock = watched
        with black_hole() as silent, origin() as (_, good):
            before = open_descriptors()
            dialled = dialling(readiness, at(silent), at(unused_port()), UNREACHABLE, good)
            await turns()
            clock.advance(1)
            attempt = await result_of(dialled)
            await turns()
            assert before + 1 == open_descriptors()
            hang_up(readiness, attempt)

    async def test_a_failed_dial_is_closed(self, readiness: Readiness) -> None:
        before = open_descriptors()
        await failure(dialling(readiness, at(unused_port()), UNREACHABLE, at(unused_port(), SIX)))
        await turns()
        assert before == open_descriptors()

    async def test_a_cancelled_dial_is_closed(self, watched: tuple[Readiness, HandClock]) -> None:
        """With no, one or two attempts under way, or with one that has just refused."""
        readiness, clock = watched
        with black_hole() as silent:
            for steps in range(6):
                for endpoints in ((at(silent), at(silent)), (at(unused_port()), at(silent))):
                    before = open_descriptors()
                    dialled = dialling(readiness, *endpoints)
                    for _ in range(steps):
                        await asyncio.sleep(0)
                        clock.advance(0.15)
                    dialled.cancel()
                    await asyncio.gather(dialled, return_exceptions=True)
                    await turns()
                    assert before == open_descriptors()
                    clock.advance(1)

    async def test_a_winner_that_nobody_waits_for_is_closed(self, readiness: Readiness) -> None:
        """Cancelled in the very turn in which the connection stood."""
        with origin() as (_, good):
            before = open_descriptors()
            for turn in range(6):
                dialled = dialling(readiness, good)
                for _ in range(turn):
                    await asyncio.sleep(0)
                dialled.cancel()
                (outcome,) = await asyncio.gather(dialled, return_exceptions=True)
                if isinstance(outcome, Connected):
                    hang_up(readiness, outcome)
                await turns()
                assert before == open_descriptors()


async def test_without_descriptors_it_fails_and_says_so(readiness: Readiness) -> None:
    with origin() as (_, good):
        with no_descriptor_left():
            outcome = await failure(dialling(readiness, good))
        expected = (Reason.CONNECT_FAILED, f"{NAME}: 127.0.0.1:{good.port} too many open files")
        assert expected == outcome
        assert good == await winner_of(readiness, dialling(readiness, good))


async def test_a_socket_that_cannot_be_watched_has_failed(
    watched: tuple[Readiness, HandClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past fs.epoll.max_user_watches (epoll(7)), whether it is the first address or a later one."""
    readiness, clock = watched

    def refuse(_fd: int, _handler: object, **_room: bool) -> bool:
        raise OSError(errno.ENOSPC, "no space")

    with black_hole() as silent, origin() as (_, good):
        before = open_descriptors()
        dialled = dialling(readiness, at(silent), good, timeout=0.5)
        await turns()
        monkeypatch.setattr(readiness, "watch", refuse)
        clock.advance(ATTEMPT_DELAY + TICK)
        await turns()
        clock.advance(0.5)
        reason, detail = await failure(dialled)
        assert (Reason.CONNECT_TIMEOUT, True) == (reason, f"{good.port} no space left on device" in detail)
        reason, detail = await failure(dialling(readiness, good))
        assert (Reason.CONNECT_FAILED, True) == (reason, "no space left on device" in detail)
        await turns()
        assert before == open_descriptors()


@contextlib.contextmanager
def silent_for_now() -> Iterator[tuple[Endpoint, Callable[[], None]]]:
    """An endpoint that answers once it is told to: until then its queue is full."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind((LOCALHOST[FOUR], 0))
        server.listen(0)
        address = server.getsockname()
        filler = stack.enter_context(socket.socket())
        filler.connect(address)

        def answer() -> None:
            # The next attempt of the kernel's own finds room.
            server.listen(8)
            stack.enter_context(server.accept()[0])

        yield at(address[1]), answer


def spelled(*texts: str) -> list[Endpoint]:
    return [Endpoint(text, 443, SIX if ":" in text else FOUR) for text in texts]


ORDERS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "one address": (["192.0.2.1"], ["192.0.2.1"]),
    "one family keeps its order": (["192.0.2.2", "192.0.2.1"], ["192.0.2.2", "192.0.2.1"]),
    "IPv6 is first": (["192.0.2.1", "2001:db8::1"], ["2001:db8::1", "192.0.2.1"]),
    "families alternate": (
        ["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"],
        ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"],
    ),
    "what is left of the longer one comes last": (
        ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"],
        ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"],
    ),
    "nothing": ([], []),
}


@pytest.mark.parametrize("case", ORDERS)
def test_the_order_of_dialling(case: str) -> None:
    """RFC 8305 section 4."""
    given_order, expected = ORDERS[case]
    assert spelled(*expected) == interleave(spelled(*given_order))


@given(st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"])))
def test_no_address_is_lost_and_none_is_added(texts: list[str]) -> None:
    """And each family keeps its order."""
    endpoints = spelled(*texts)
    ordered = interleave(endpoints)
    for family in (FOUR, SIX):
        expected = [endpoint for endpoint in endpoints if endpoint.family == family]
        assert expected == [endpoint for endpoint in ordered if endpoint.family == family]
    assert len(endpoints) == len(ordered)
