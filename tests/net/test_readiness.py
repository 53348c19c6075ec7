"""Readiness: all sockets in one epoll, told of edges."""

import asyncio
import contextlib
import os
import socket
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from select import EPOLLIN, EPOLLOUT
from typing import Any

import pytest

from sniproxy.net.readiness import HANGUP, READABLE, WRITABLE, Readiness
from sniproxy.net.rounds import Watcher
from sniproxy.net.timers import TICK, TimerWheel
from tests.net.clock import HandClock
from tests.net.loopback import (
    Hears,
    InStrand,
    Pair,
    Token,
    cut,
    its_rounds,
    no_collection,
    result_of,
    tcp_pair,
    turns,
    until,
    watching,
)

Watched = tuple[Readiness, HandClock]


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    with watching() as both:
        yield both


@pytest.fixture
async def readiness(watched: Watched) -> Readiness:
    return watched[0]


def noting(events: list[int]) -> Watcher:
    return Hears(events.append)


def quietly() -> Watcher:
    """A watcher for what does not matter."""
    return Hears(lambda _: None)


class TestEdges:
    async def test_a_new_descriptor_reports_what_is_ready_already(self, readiness: Readiness) -> None:
        """Bytes that came before anybody watched are told of."""
        with tcp_pair() as (ours, theirs):
            theirs.send(b"early")
            events: list[int] = []
            assert readiness.watch(ours.fileno(), noting(events)) is True
            await until(lambda: bool(events), "the first event")
            assert events[0] & READABLE

    async def test_of_room_only_those_are_told_who_want_to_know(self, readiness: Readiness) -> None:
        """From the first on, or from when they have been without; whoever asks late hears of the room that there is."""
        with tcp_pair() as (dialled, one), tcp_pair() as (accepted, other):
            of_dialled: list[int] = []
            of_accepted: list[int] = []
            readiness.watch(dialled.fileno(), noting(of_dialled), room=True)
            readiness.watch(accepted.fileno(), noting(of_accepted))
            await until(lambda: bool(of_dialled), "the first event")
            await turns()
            assert ([WRITABLE & of_dialled[0]], []) == ([EPOLLOUT], of_accepted)
            readiness.tell_of_room(accepted.fileno())
            await until(lambda: bool(of_accepted), "the news of room")
            assert [EPOLLOUT] == of_accepted
            one.close()
            other.close()

    async def test_a_known_descriptor_reports_nothing_by_itself(self, readiness: Readiness) -> None:
        """The edge has gone to its first watcher; False tells the second one to look."""
        with tcp_pair() as (ours, theirs):
            theirs.send(b"early")
            first: list[int] = []
            second: list[int] = []
            readiness.watch(ours.fileno(), noting(first))
            await until(lambda: bool(first), "the first event")
            assert readiness.watch(ours.fileno(), noting(second)) is False
            await turns()
            assert second == []
            theirs.send(b"late")
            await until(lambda: bool(second), "the next event")
            assert len(first) == 1

    async def test_what_is_not_read_is_not_told_again(self, readiness: Readiness) -> None:
        """One event for one arrival."""
        with tcp_pair() as (ours, theirs):
            events: list[int] = []
            readiness.watch(ours.fileno(), noting(events))
            await turns()
            theirs.send(b"once")
            await turns()
            assert len([event for event in events if event & EPOLLIN]) == 1

    async def test_ends_and_resets_are_readable_hang_ups(self, readiness: Readiness) -> None:
        stories: dict[str, Callable[[socket.socket], object]] = {
            "a half-close": lambda sock: sock.shutdown(socket.SHUT_WR),
            "a close": lambda sock: sock.close(),
            "a reset": cut,
        }
        for story, happens in stories.items():
            with tcp_pair() as (ours, theirs):
                events: list[int] = []
                readiness.watch(ours.fileno(), noting(events))
                await turns()
                happens(theirs)
                await until(lambda: bool(events and events[-1] & HANGUP), story)  # noqa: B023 - called at once
                assert events[-1] & READABLE, story
                readiness.forget(ours.fileno())

    async def test_more_sockets_than_one_turn_serves_all_have_theirs(self, readiness: Readiness) -> None:
        """600 sockets become ready together."""
        with contextlib.ExitStack() as stack:
            pairs: list[Pair] = [stack.enter_context(tcp_pair()) for _ in range(600)]
            heard: list[int] = []

            def note(fd: int, _events: int) -> None:
                heard.append(fd)

            for ours, _ in pairs:
                readiness.watch(ours.fileno(), Hears(partial(note, ours.fileno())), room=True)
            await until(lambda: len(heard) >= 600, "600 events")
            assert sorted(ours.fileno() for ours, _ in pairs) == sorted(heard)


class TestWatchers:
    async def test_one_that_fails_costs_no_other_its_event(self, readiness: Readiness) -> None:
        """Edges come only once, so those behind the fault are still handed out; the fault is reported."""
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))

        def fail(_events: int) -> None:
            raise ValueError("a fault of ours")

        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(tcp_pair()) for _ in range(10)]
            events: list[int] = []
            for number, (ours, _) in enumerate(pairs):
                readiness.watch(ours.fileno(), Hears(fail) if number % 2 else noting(events), room=True)
            await until(lambda: len(events) == 5, "five events")
            assert ["a fault of ours"] * 5 == [str(context["exception"]) for context in reported]

    async def test_a_forgotten_descriptor_is_heard_of_no_more(self, readiness: Readiness) -> None:
        with tcp_pair() as (ours, theirs):
            events: list[int] = []
            readiness.watch(ours.fileno(), noting(events), room=True)
            readiness.forget(ours.fileno())
            readiness.forget(ours.fileno())
            theirs.send(b"x")
            await turns()
            assert events == []

    async def test_a_socket_that_is_closed_already_is_forgotten_in_vain(self, readiness: Readiness) -> None:
        """Its number is -1, which is nobody's: whoever has the highest number is still heard of."""
        with tcp_pair() as (ours, theirs):
            events: list[int] = []
            readiness.watch(ours.fileno(), noting(events))
            with socket.socket() as closed:
                pass
            readiness.forget(closed.fileno())
            theirs.send(b"x")
            await until(lambda: bool(events), "the event")

    async def test_a_descriptor_that_cannot_be_watched_leaves_nothing_behind(self, readiness: Readiness) -> None:
        """The next socket with that number is watched as if nothing had been."""
        with tcp_pair() as (ours, _):
            with tempfile.TemporaryFile() as plain:  # epoll(7) takes no regular file
                number = plain.fileno()
                with pytest.raises(PermissionError):
                    readiness.watch(number, quietly())
            os.dup2(ours.fileno(), number)
            events: list[int] = []
            assert readiness.watch(number, noting(events), room=True) is True
            await until(lambda: bool(events), "the first event")
            readiness.forget(number)
            os.close(number)

    async def test_a_number_that_comes_back_never_hears_of_its_predecessor(self, readiness: Readiness) -> None:
        """Two sockets are ready in one batch; the first one's owner closes both, and opens two others.

        By the rule of the module it does so after the batch, behind a future: the new owner of a number then hears
        of its own socket only.
        """
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            old = [stack.enter_context(tcp_pair()) for _ in range(2)]
            spare = [stack.enter_context(tcp_pair()) for _ in range(2)]
            ready: asyncio.Future[None] = loop.create_future()
            heard: dict[str, list[int]] = {"old": [], "new": []}

            def tell(events: int) -> None:
                heard["old"].append(events)
                if not ready.done():
                    ready.set_result(None)

            numbers = [ours.fileno() for ours, _ in old]
            for number in numbers:
                readiness.watch(number, quietly())
            await turns()
            for number in numbers:
                readiness.watch(number, Hears(tell), room=True)
            for _, theirs in old:
                theirs.send(b"for the old one")
            await ready
            for (old_ours, _), (new_ours, _) in zip(old, spare, strict=True):
                number = old_ours.fileno()
                readiness.forget(number)
                old_ours.close()
                os.dup2(new_ours.fileno(), number)
                assert readiness.watch(number, noting(heard["new"]), room=True) is True
            await turns()
            for number in numbers:
                readiness.forget(number)
                os.close(number)
        assert ([True, True], [EPOLLOUT] * 2) == ([bool(event & EPOLLIN) for event in heard["old"]], heard["new"])


class TestWaitingForAnEdge:
    async def test_it_ends_with_the_edge(self, watched: Watched) -> None:
        readiness, clock = watched
        with tcp_pair() as (ours, theirs):
            readiness.watch(ours.fileno(), quietly())
            await turns()
            waiting = InStrand(readiness.edge(ours.fileno(), readiness.timers.after(5)))
            await turns()
            assert not waiting.done()
            theirs.send(b"x")
            await result_of(waiting)
            clock.advance(2 * TICK)
            assert clock.scheduled == 0

    async def test_it_ends_with_its_deadline(self, watched: Watched) -> None:
        readiness, clock = watched
        with tcp_pair() as (ours, _):
            readiness.watch(ours.fileno(), quietly())
            await turns()
            waiting = InStrand(readiness.edge(ours.fileno(), readiness.timers.after(5)))
            await turns()
            clock.advance(4.9)
            await turns()
            assert not waiting.done()
            clock.advance(0.1 + TICK)
            with pytest.raises(TimeoutError):
                await result_of(waiting)

    async def test_a_deadline_that_is_past_is_the_next_tick(self, watched: Watched) -> None:
        readiness, clock = watched
        with tcp_pair() as (ours, _):
            readiness.watch(ours.fileno(), quietly())
            await turns()
            waiting = InStrand(readiness.edge(ours.fileno(), readiness.timers.now - 50))
            await turns()
            clock.advance(TICK)
            with pytest.raises(TimeoutError):
                await result_of(waiting)

    async def test_a_deadline_keeps_nobody_who_waited_for_it(self, watched: Watched) -> None:
        """The error knows the frames that it was raised through, with all that a connection has in them: a ring of them
        would stay until the garbage is collected, which is rarely.
        """
        readiness, clock = watched
        owned: list[weakref.ref[Token]] = []
        expired: list[bool] = []
        with tcp_pair() as (ours, _):
            readiness.watch(ours.fileno(), quietly())
            await turns()

            async def story() -> None:
                token = Token()
                owned.append(weakref.ref(token))
                try:
                    await readiness.edge(ours.fileno(), readiness.timers.after(1))
                except TimeoutError:
                    expired.append(True)

            with no_collection():
                waiting = InStrand(story())  # as a connection
                await turns()
                clock.advance(1 + 2 * TICK)
                await result_of(waiting)
                readiness.forget(ours.fileno())
                assert (expired, owned[0]()) == ([True], None)

    async def test_of_an_edge_and_a_deadline_the_first_decides(self, watched: Watched) -> None:
        """And the second, of the same turn of the loop, finds it decided."""
        readiness, clock = watched
        for edge_first in (True, False):
            with tcp_pair() as (ours, theirs), tcp_pair() as (other_ours, other_theirs):
                readiness.watch(ours.fileno(), quietly())
                readiness.watch(other_ours.fileno(), quietly())
                await turns()
                waiting = InStrand(readiness.edge(ours.fileno(), readiness.timers.after(1)))
                await turns()
                # Dispatched in the batch of the edge, before whoever waits can go on.
                readiness.watch(other_ours.fileno(), Hears(lambda _: clock.advance(2)))
                for sock in (theirs, other_theirs) if edge_first else (other_theirs, theirs):
                    sock.send(b"x")
                if edge_first:
                    await result_of(waiting)
                else:
                    with pytest.raises(TimeoutError):
                        await result_of(waiting)
                readiness.forget(ours.fileno())
                readiness.forget(other_ours.fileno())

    async def test_one_that_is_cancelled_leaves_nothing(self, watched: Watched) -> None:
        """No timer, and no waiter that the next event or deadline would break."""
        readiness, clock = watched
        with tcp_pair() as (ours, theirs):
            readiness.watch(ours.fileno(), quietly())
            await turns()
            waiting = InStrand(readiness.edge(ours.fileno(), readiness.timers.after(5)))
            await turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await result_of(waiting)
            clock.advance(2 * TICK)
            assert clock.scheduled == 0
            theirs.send(b"x")
            await turns()
            again = InStrand(readiness.edge(ours.fileno(), readiness.timers.after(5)))
            await turns()
            theirs.send(b"y")
            await result_of(again)

    async def test_it_works_by_the_loops_own_time(self) -> None:
        """No clock of ours: a deadline comes without anybody moving it."""
        rounds = its_rounds()
        readiness = Readiness(rounds, TimerWheel(rounds, rounds.on_fault))
        with tcp_pair() as (ours, _):
            readiness.watch(ours.fileno(), quietly())
            await turns()
            with pytest.raises(TimeoutError):
                await result_of(InStrand(readiness.edge(ours.fileno(), readiness.timers.after(0.0))))


class TestListening:
    async def test_it_is_told_of_as_long_as_somebody_waits(self, readiness: Readiness) -> None:
        """Not told of edges: who accepts one of many hears of the others in the next round."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            accepted: list[socket.socket] = []
            readiness.listen(server.fileno(), Hears(lambda _: accepted.append(server.accept()[0])))
            clients = [socket.create_connection(server.getsockname()) for _ in range(3)]
            await until(lambda: len(accepted) == 3, "the third connection")
            for sock in (*clients, *accepted):
                sock.close()

    async def test_who_is_ignored_can_be_listened_to_again(self, readiness: Readiness) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            events: list[int] = []
            readiness.listen(server.fileno(), noting(events))
            readiness.ignore(server.fileno())
            readiness.ignore(server.fileno())  # once more is no matter
            with socket.create_connection(server.getsockname()):
                await turns()
                assert events == []
                readiness.listen(server.fileno(), noting(events))
                await until(lambda: bool(events), "an event")
            readiness.ignore(server.fileno())
