"""A strand runs a coroutine as a task would, but at once and without the event loop's queue at its ends."""

import asyncio

from sniproxy.net.strand import Strand


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

    Strand(story(), lambda _: steps.append("ended")).run()
    assert steps == ["told", "ended"]


async def test_it_goes_on_when_what_it_awaits_is_done() -> None:
    """With the future's result."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    heard: list[str] = []
    over: list[Strand] = []

    async def story() -> None:
        heard.append(await future)

    strand = Strand(story(), over.append)
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

    Strand(story(), over.append).run()
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

    strand = Strand(story(), over.append)
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

    first, second = Strand(story(), over.append), Strand(story(), over.append)
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

    strand = Strand(story(), over.append)
    strand.run()
    strand.cancel()
    assert over == [strand]
