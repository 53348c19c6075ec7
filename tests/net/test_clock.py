"""Beats: the times at which everything is done that can wait a little."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from sniproxy.net.clock import BEAT, Clock, call_on_beat
from sniproxy.net.timers import TICK
from tests.net.clock import HandClock


def beats(clock: HandClock, *pauses: float) -> list[float]:
    """When calls are made that are asked for between pauses."""
    made: list[float] = []
    for pause in pauses:
        clock.advance(pause)
        call_on_beat(clock, lambda: made.append(clock.now))
    clock.advance(2 * BEAT)
    return made


@given(st.floats(0, 100_000))
def test_it_is_made_within_a_beat_and_never_at_once(now: float) -> None:
    """One that asks again each time is not called for ever in one moment."""
    (made,) = beats(HandClock(now=now), 0.0)
    assert now < made <= now + BEAT * 1.0001


@given(st.integers(0, 4_000_000))
def test_all_that_can_wait_have_the_same_time(number: int) -> None:
    """Whoever asks between two beats is called at the second."""
    first, second = beats(HandClock(now=number * BEAT), BEAT / 4, BEAT / 2)
    assert first == second


def test_ticks_of_timers_fall_on_beats() -> None:
    assert (TICK / BEAT).is_integer()


async def test_an_event_loop_is_a_clock() -> None:
    loop: Clock = asyncio.get_running_loop()
    called = asyncio.Event()
    call_on_beat(loop, called.set)
    async with asyncio.timeout(10):
        await called.wait()
