"""Rounds: events to their watchers, turns to strands, and back to asyncio when there is something for it."""

import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from select import EPOLLIN

import pytest

from sniproxy.net.rounds import Rounds
from sniproxy.net.strand import Strand, turn
from tests.net.loopback import Hears


@dataclass
class Bench:
    """Rounds over an epoll of their own, the faults they told of, and descriptors with something to read."""

    rounds: Rounds
    faults: list[Exception] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)

    def signal(self) -> int:
        """A descriptor in the epoll that is readable, and told of in each round."""
        fd = os.eventfd(1, os.EFD_NONBLOCK)
        self.signals.append(fd)
        self.rounds.epoll.register(fd, EPOLLIN)
        return fd

    def watch(self, fd: int, function: Callable[[int], object]) -> None:
        """Hand the events of `fd` to a function."""
        watchers = self.rounds.watchers
        watchers += [None] * (fd + 1 - len(watchers))
        watchers[fd] = Hears(function)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with select.epoll() as epoll:
        faults: list[Exception] = []
        its = Bench(Rounds(epoll, faults.append), faults)
        yield its
        for fd in its.signals:
            os.close(fd)


def test_an_event_without_a_watcher_is_told_of(bench: Bench) -> None:
    """It is asyncio's; those that have a watcher are handed to it in the same round."""
    served, other = bench.signal(), bench.signal()
    events: list[int] = []
    bench.watch(served, events.append)
    assert bench.rounds.serve(None) == [(other, EPOLLIN)]
    assert events == [EPOLLIN]


def test_it_goes_round_until_asyncio_has_something_to_do(bench: Bench) -> None:
    fd, rounds = bench.signal(), 0

    def handler(_events: int) -> None:
        nonlocal rounds
        rounds += 1
        bench.rounds.is_due = rounds == 5

    bench.watch(fd, handler)
    assert bench.rounds.serve(None) == []
    assert rounds == 5


def test_it_goes_round_no_longer_than_it_may(bench: Bench) -> None:
    """However much there is to serve, asyncio's timers have their time."""
    fd, rounds = bench.signal(), 0

    def handler(_events: int) -> None:
        nonlocal rounds
        rounds += 1

    bench.watch(fd, handler)
    began = time.monotonic()
    assert bench.rounds.serve(0.05) == []
    assert time.monotonic() - began >= 0.05
    assert rounds > 1
    rounds = 0
    assert bench.rounds.serve(0) == []
    assert rounds == 1


def test_what_asyncio_is_asked_for_at_the_end_of_its_turn_does_not_wait_for_an_event(bench: Bench) -> None:
    """A timer may have been set after asyncio said how long to wait."""

    def ends() -> None:
        bench.rounds.is_due = True

    bench.rounds.on_end = ends
    assert bench.rounds.serve(None) == []


def test_who_wants_a_turn_has_it_though_nothing_happens(bench: Bench) -> None:
    """Strands that were woken outside of a round do not wait for an event."""
    told: list[str] = []

    async def story() -> None:
        told.append("began")
        await turn()
        told.append("went on")
        bench.rounds.is_due = True

    Strand(story(), bench.rounds.turns, lambda _: told.append("ended")).run()
    assert told == ["began"]
    assert bench.rounds.serve(None) == []
    assert told == ["began", "went on", "ended"]


def test_a_story_without_end_keeps_neither_events_nor_timers_from_theirs(bench: Bench) -> None:
    fd = bench.signal()
    seen: list[int] = []
    bench.watch(fd, seen.append)
    stop = False

    async def story() -> None:
        while not stop:
            await turn()

    Strand(story(), bench.rounds.turns, lambda _: None).run()
    assert bench.rounds.serve(0.02) == []
    assert len(seen) > 1
    stop = True
    bench.rounds.serve(0)


def test_a_fault_is_told_and_costs_nobody_else_anything(bench: Bench) -> None:
    """Neither the events behind it in the batch nor the turns."""
    first, second = bench.signal(), bench.signal()
    told: list[str] = []

    def fails(_events: int) -> None:
        raise ValueError("of a watcher")

    async def falls() -> None:
        await turn()
        raise ValueError("of a strand")

    async def stands() -> None:
        await turn()
        told.append("a turn")

    bench.watch(first, fails)
    bench.watch(second, lambda _: told.append("an event"))
    for story in (falls(), stands()):
        Strand(story, bench.rounds.turns, lambda _: None).run()
    bench.rounds.serve(0)
    assert sorted(told) == ["a turn", "an event"]
    assert [str(fault) for fault in bench.faults] == ["of a watcher", "of a strand"]


class TestCalls:
    """It is a clock, too: what is asked of it is done between two waits, and asyncio hears nothing of it."""

    def test_a_call_is_made_at_its_time_though_nothing_else_happens(self, bench: Bench) -> None:
        """Not before; and who waits for events without end is woken for it."""
        rounds, made = bench.rounds, list[float]()

        def call() -> None:
            made.append(rounds.time())
            rounds.is_due = True

        due = rounds.time() + 0.03
        rounds.call_at(due, call)
        assert rounds.serve(None) == []
        assert due <= made[0]

    def test_calls_are_made_in_the_order_of_their_times(self, bench: Bench) -> None:
        """Those of one time in the order in which they were asked for. None is made twice."""
        rounds, made = bench.rounds, list[str]()
        now = rounds.time()
        rounds.call_at(now + 0.02, lambda: made.append("third"))
        rounds.call_later(0.0, lambda: made.append("second"))
        rounds.call_soon(lambda: made.append("first"))
        rounds.call_at(now + 0.02, lambda: made.append("fourth"))
        rounds.call_later(60.0, lambda: made.append("never"))
        rounds.serve(0.05)
        assert made == ["first", "second", "third", "fourth"]

    def test_a_call_comes_after_the_events_and_the_turns_of_its_round(self, bench: Bench) -> None:
        told: list[str] = []

        async def story() -> None:
            await turn()
            told.append("a turn")

        bench.watch(bench.signal(), lambda _: told.append("an event"))
        bench.rounds.call_soon(lambda: told.append("a call"))
        Strand(story(), bench.rounds.turns, lambda _: None).run()
        bench.rounds.serve(0)
        assert told == ["an event", "a turn", "a call"]

    def test_what_a_call_asks_for_waits_for_the_next_round(self, bench: Bench) -> None:
        """So that one which always asks again keeps nobody from his turn."""
        rounds, told = bench.rounds, list[str]()

        def again() -> None:
            told.append("a call")
            rounds.call_soon(again)

        bench.watch(bench.signal(), lambda _: told.append("an event"))
        rounds.call_soon(again)
        for _ in range(3):
            rounds.serve(0)
        assert told == ["an event", "a call"] * 3

    def test_a_call_that_fails_is_told_of_and_keeps_no_other_from_being_made(self, bench: Bench) -> None:
        made: list[str] = []

        def fails() -> None:
            raise ValueError("of a call")

        bench.rounds.call_soon(fails)
        bench.rounds.call_soon(lambda: made.append("the other"))
        bench.rounds.serve(0)
        assert ([str(fault) for fault in bench.faults], made) == (["of a call"], ["the other"])
