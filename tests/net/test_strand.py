"""A strand runs a coroutine as a task would, but at once and without the event loop's queue at its ends."""

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

from sniproxy.net.strand import Pending, Strand, Turns, turn
from tests.net.loopback import Token, its_rounds, no_collection


def strand_of(coroutine: Coroutine[Any, None, None], on_end: Callable[[Strand], None]) -> Strand:
    """A strand that has its turns in the running loop."""
    return Strand(coroutine, its_rounds().turns, on_end)


async def ended(strands: list[Strand], count: int = 1) -> None:
    """Wait until `count` strands have appended themselves to `strands`."""
    async with asyncio.timeout(10):
        while len(strands) < count:
            await asyncio.sleep(0)


async def test_it_begins_at_once_and_ends_in_a_call() -> None:
    """A coroutine that waits for nothing is over when `run` returns."""
    steps: list[str] = []

    async def story() -> None:
        steps.append("told")

    strand_of(story(), lambda _: steps.append("ended")).run()
    assert steps == ["told", "ended"]


async def test_it_goes_on_when_what_it_awaits_is_done() -> None:
    """With the future's result."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    heard: list[str] = []
    over: list[Strand] = []

    async def story() -> None:
        heard.append(await future)

    strand = strand_of(story(), over.append)
    strand.run()
    assert (heard, over) == ([], [])
    future.set_result("news")
    await ended(over)
    assert (heard, over) == (["news"], [strand])


async def test_an_error_of_the_future_is_raised_where_it_is_awaited() -> None:
    """As `await` in a task would."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    caught: list[str] = []
    over: list[Strand] = []

    async def story() -> None:
        try:
            await future
        except TimeoutError as error:
            caught.append(str(error))

    strand_of(story(), over.append).run()
    future.set_exception(TimeoutError("too late"))
    await ended(over)
    assert caught == ["too late"]


async def test_cancelling_raises_at_the_await_and_lets_the_story_finish() -> None:
    """What is in `finally` runs, and may await again."""
    told: list[str] = []
    over: list[Strand] = []

    async def story() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            told.append("cancelled")
        finally:
            await asyncio.sleep(0)
            told.append("finished")

    strand = strand_of(story(), over.append)
    strand.run()
    strand.cancel()
    await ended(over)
    assert told == ["cancelled", "finished"]


async def test_a_shared_task_survives_the_cancellation_of_one_who_waits_for_it() -> None:
    """asyncio.shield works in a strand: a DNS lookup is shared by many connections."""
    release = asyncio.Event()

    async def lookup() -> str:
        await release.wait()
        return "answer"

    task = asyncio.get_running_loop().create_task(lookup())
    heard: list[str] = []
    over: list[Strand] = []

    async def story() -> None:
        try:
            heard.append(await asyncio.shield(task))
        except asyncio.CancelledError:
            heard.append("cancelled")

    first, second = strand_of(story(), over.append), strand_of(story(), over.append)
    first.run()
    second.run()
    first.cancel()
    await ended(over)
    release.set()
    await task
    await ended(over, 2)
    assert heard == ["cancelled", "answer"]


async def test_cancelling_what_is_over_changes_nothing() -> None:
    """There is no await left to raise at."""
    over: list[Strand] = []

    async def story() -> None:
        return

    strand = strand_of(story(), over.append)
    strand.run()
    strand.cancel()
    assert over == [strand]


async def test_those_who_wait_for_a_turn_go_on_together() -> None:
    """A phase is gone through by all that have come to it before the first begins the next one."""
    turns = its_rounds().turns
    told: list[str] = []
    over: list[Strand] = []

    async def story(name: str) -> None:
        for phase in ("hello", "dial"):
            told.append(f"{phase} of {name}")
            await turn()

    for name in ("a", "b", "c"):
        Strand(story(name), turns, over.append).run()
    await ended(over, 3)
    assert told == ["hello of a", "hello of b", "hello of c", "dial of a", "dial of b", "dial of c"]


async def test_a_story_has_a_few_turns_a_round_and_keeps_nobody_from_theirs() -> None:
    """Phases follow each other without the event loop between them; one that never ends has its next turns later."""
    turns_taken = 0
    over: list[Strand] = []

    async def story() -> None:
        nonlocal turns_taken
        while turns_taken < 40:
            turns_taken += 1
            await turn()

    strand_of(story(), over.append).run()
    seen = []
    while not over:
        await asyncio.sleep(0)
        seen.append(turns_taken)
    steps = [later - sooner for sooner, later in pairwise(seen)]
    assert 2 <= max(steps) <= 4
    assert max(steps[:-1]) == min(steps[:-1])


async def test_who_is_cancelled_while_waiting_for_a_turn_hears_of_it_at_the_next_await() -> None:
    """And of that once: what it awaits while it ends is left alone."""
    told: list[str] = []
    over: list[Strand] = []

    async def story() -> None:
        await turn()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)
            told.append("cancelled once")

    strand = strand_of(story(), over.append)
    strand.run()
    strand.cancel()
    await ended(over)
    assert told == ["cancelled once"]


async def test_a_turn_is_a_turn_in_a_task_as_well() -> None:
    """What strands await, tasks may."""

    async def story() -> str:
        await turn()
        return "told"

    assert await asyncio.create_task(story()) == "told"


class TestPending:
    """A result that one strand waits for."""

    async def test_its_strand_goes_on_with_the_result_in_the_next_turn(self) -> None:
        pending: Pending[str] = Pending()
        heard: list[str] = []
        over: list[Strand] = []

        async def story() -> None:
            heard.append(await pending)

        strand_of(story(), over.append).run()
        pending.succeed("news")
        assert heard == []
        await ended(over)
        assert heard == ["news"]

    async def test_an_error_is_raised_where_it_is_awaited(self) -> None:
        pending: Pending[None] = Pending()
        caught: list[str] = []
        over: list[Strand] = []

        async def story() -> None:
            try:
                await pending
            except TimeoutError as error:
                caught.append(str(error))

        strand_of(story(), over.append).run()
        pending.fail(TimeoutError("too late"))
        await ended(over)
        assert caught == ["too late"]

    async def test_an_error_keeps_nobody_who_waited_for_it(self) -> None:
        """It knows the frames that it was raised through, and they have the pending result: a ring that would hold all
        that a connection had, until the garbage is collected, which is rarely.
        """
        owned: list[weakref.ref[Token]] = []
        over: list[Strand] = []

        async def wait() -> None:
            token, pending = Token(), Pending[None]()
            owned.append(weakref.ref(token))
            asyncio.get_running_loop().call_soon(pending.fail, TimeoutError("too late"))
            await pending

        async def story() -> None:
            with contextlib.suppress(TimeoutError):
                await wait()

        with no_collection():
            strand_of(story(), over.append).run()
            await ended(over)
            await asyncio.sleep(0)
            assert owned[0]() is None

    async def test_what_is_there_already_is_not_waited_for(self) -> None:
        pending: Pending[int] = Pending()
        pending.succeed(7)
        heard: list[int] = []
        over: list[Strand] = []

        async def story() -> None:
            heard.append(await pending)

        strand_of(story(), over.append).run()
        assert (heard, len(over)) == ([7], 1)

    async def test_the_first_outcome_stands(self) -> None:
        pending: Pending[int] = Pending()
        pending.succeed(1)
        pending.succeed(2)
        pending.fail(ValueError("3"))
        heard: list[int] = []

        async def story() -> None:
            heard.append(await pending)

        strand_of(story(), lambda _: None).run()
        assert heard == [1]

    async def test_cancelling_the_strand_raises_at_the_await(self) -> None:
        """And what comes of it later is nobody's business."""
        pending: Pending[None] = Pending()
        steps: list[str] = []
        over: list[Strand] = []

        async def story() -> None:
            try:
                await pending
            except asyncio.CancelledError:
                steps.append("cancelled")

        strand = strand_of(story(), over.append)
        strand.run()
        strand.cancel()
        pending.succeed(None)
        await ended(over)
        assert steps == ["cancelled"]

    async def test_those_whose_results_come_together_go_on_together(self) -> None:
        """In one turn, in the order in which the results came."""
        first: Pending[str] = Pending()
        second: Pending[str] = Pending()
        steps: list[str] = []
        over: list[Strand] = []
        turns = its_rounds().turns

        async def story(name: str, pending: Pending[str]) -> None:
            steps.append(name + await pending)

        Strand(story("a", first), turns, over.append).run()
        Strand(story("b", second), turns, over.append).run()
        second.succeed("2")
        first.succeed("1")
        await asyncio.sleep(0)
        assert steps == ["b2", "a1"]


class TestTurns:
    """Who has a turn in which round: one is busy if it had an event."""

    def setup_method(self) -> None:
        self.faults: list[Exception] = []
        self.turns = Turns(self.faults.append)
        self.told: list[str] = []

    def done(self, name: str, *, is_urgent: bool) -> None:
        """A strand awaits a result, which is there now."""
        pending: Pending[None] = Pending()

        async def story() -> None:
            await pending
            self.told.append(name)

        Strand(story(), self.turns, lambda _: None).run()
        pending.succeed(None, is_urgent=is_urgent)

    def test_who_is_not_urgent_waits_for_a_round_without_an_event(self) -> None:
        self.done("end", is_urgent=False)
        self.done("answer", is_urgent=True)
        assert self.turns.are_wanted

        self.turns.give(is_busy=True)
        assert self.told == ["answer"]
        assert self.turns.are_wanted

        self.turns.give(is_busy=False)
        assert self.told == ["answer", "end"]
        assert not self.turns.are_wanted

    def test_but_not_for_ever(self) -> None:
        """Under load each round is busy. The third has a turn for all that have waited, in their order."""
        self.done("first end", is_urgent=False)
        self.turns.give(is_busy=True)
        self.done("second end", is_urgent=False)
        self.turns.give(is_busy=True)
        assert self.told == []
        self.turns.give(is_busy=True)
        assert self.told == ["first end", "second end"]

    def test_in_a_round_without_an_event_who_is_urgent_is_first(self) -> None:
        self.done("end", is_urgent=False)
        self.done("answer", is_urgent=True)
        self.turns.give(is_busy=False)
        assert self.told == ["answer", "end"]

    def test_one_that_raises_costs_nobody_else_a_turn(self) -> None:
        async def story() -> None:
            await turn()
            raise RuntimeError("at fault")

        Strand(story(), self.turns, lambda _: None).run()
        self.done("answer", is_urgent=True)
        self.turns.give(is_busy=True)
        assert self.told == ["answer"]
        assert [str(fault) for fault in self.faults] == ["at fault"]
