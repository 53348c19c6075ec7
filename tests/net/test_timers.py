"""The timer wheel, on a clock that is moved by hand."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.net.timers import TICK, UNARMED, Timer, TimerWheel
from tests.net.clock import HandClock

# Of the floating point numbers that times are.
EPSILON = 1e-6


class Alarm(Timer):
    """A timer that notes when it expired, and then does what the test says."""

    def __init__(self, clock: HandClock, then: Callable[[], object] = lambda: None) -> None:
        self.slot = UNARMED
        self.rang: list[float] = []
        self._clock = clock
        self._then = then

    def expire(self) -> None:
        self.rang.append(self._clock.now)
        self._then()


def no_fault(fault: Exception) -> None:
    raise AssertionError("there was none to be told") from fault


def wheel_at(now: float = 1000.0) -> tuple[HandClock, TimerWheel]:
    clock = HandClock(now=now)
    return clock, TimerWheel(clock, no_fault)


times = st.floats(0, 100_000)
delays = st.floats(0, 60)  # up to some turns of the wheel


@given(times, st.lists(st.tuples(delays, delays), min_size=1, max_size=20))
def test_a_timer_expires_within_one_tick_after_its_time_and_never_before(
    start: float, plans: list[tuple[float, float]]
) -> None:
    """Many timers, each armed at a moment of its own for a while of its own."""
    clock, wheel = wheel_at(start)
    armed: list[tuple[Alarm, float]] = []
    for moment, delay in sorted(plans):
        clock.advance(max(0.0, start + moment - clock.now))
        alarm = Alarm(clock)
        wheel.arm(alarm, delay)
        armed.append((alarm, clock.now + delay))
    clock.advance(61)
    for alarm, due in armed:
        (rang,) = alarm.rang
        assert due - EPSILON <= rang <= due + TICK + EPSILON


@given(times, delays, st.floats(0.0, 100.0))
def test_a_loop_that_was_busy_is_late_once(start: float, delay: float, stall: float) -> None:
    """Ticks that were missed are made up for together; none is counted twice, and none is lost."""
    clock, wheel = wheel_at(start)
    alarm = Alarm(clock)
    wheel.arm(alarm, delay)
    due = clock.now + delay
    clock.stall(stall)
    clock.advance(61)
    (rang,) = alarm.rang
    assert due - EPSILON <= rang <= max(due, start + stall) + TICK + EPSILON


def test_arming_again_replaces_what_was_armed() -> None:
    """Later as well as sooner; the timer expires once."""
    for first, second in ((1.0, 5.0), (5.0, 1.0)):
        clock, wheel = wheel_at()
        alarm = Alarm(clock)
        wheel.arm(alarm, first)
        wheel.arm(alarm, second)
        clock.advance(10)
        assert alarm.rang == [pytest.approx(1000 + second, abs=TICK + EPSILON)]


def test_a_disarmed_timer_does_not_expire() -> None:
    """Disarming twice, or what was never armed, is nothing."""
    clock, wheel = wheel_at()
    alarm, other = Alarm(clock), Alarm(clock)
    wheel.disarm(alarm)
    wheel.arm(alarm, 1.0)
    wheel.arm(other, 1.0)
    wheel.disarm(alarm)
    wheel.disarm(alarm)
    clock.advance(10)
    assert ([], UNARMED, 1) == (alarm.rang, alarm.slot, len(other.rang))


def test_a_timer_may_arm_itself_when_it_expires() -> None:
    """As the relay's does, that has seen bytes meanwhile. It is never called twice in one tick."""
    clock, wheel = wheel_at()
    alarm = Alarm(clock, lambda: wheel.arm(alarm, 0.0) if len(alarm.rang) < 5 else None)
    wheel.arm(alarm, 0.0)
    clock.advance(10)
    gaps = [later - sooner for sooner, later in pairwise(alarm.rang)]
    assert (5, True) == (len(alarm.rang), all(gap >= TICK - EPSILON for gap in gaps))


def test_a_timer_that_is_disarmed_by_another_of_the_same_tick_does_not_expire() -> None:
    """Of two that disarm each other one expires, whichever comes first."""
    clock, wheel = wheel_at()
    one = Alarm(clock, lambda: wheel.disarm(other))
    other = Alarm(clock, lambda: wheel.disarm(one))
    wheel.arm(one, 1.0)
    wheel.arm(other, 1.0)
    clock.advance(10)
    assert len(one.rang) + len(other.rang) == 1


def test_a_timer_that_is_armed_anew_by_another_of_the_same_tick_expires_later() -> None:
    """Of two that put each other off, one expires at once and the other at its new time."""
    clock, wheel = wheel_at()
    one = Alarm(clock, lambda: wheel.arm(other, 5.0) if not other.rang else None)
    other = Alarm(clock, lambda: wheel.arm(one, 5.0) if not one.rang else None)
    wheel.arm(one, 1.0)
    wheel.arm(other, 1.0)
    clock.advance(20)
    rang = sorted(one.rang + other.rang)
    expected = [pytest.approx(1001, abs=TICK + EPSILON), pytest.approx(1006, abs=2 * TICK + EPSILON)]
    assert expected == rang


def test_a_time_that_is_past_is_the_next_tick() -> None:
    """Whether the wheel turns already or not."""
    for others in (0, 1):
        clock, wheel = wheel_at()
        for _ in range(others):
            wheel.arm(Alarm(clock), 60)
        clock.advance(5)
        alarm = Alarm(clock)
        wheel.arm_at(alarm, wheel.now - 20)
        assert alarm.rang == []
        clock.advance(TICK)
        assert len(alarm.rang) == 1


def test_a_wheel_at_rest_does_not_tick() -> None:
    """Nothing is scheduled before the first timer, after the last one, or when the last is disarmed."""
    clock, wheel = wheel_at()
    assert clock.scheduled == 0
    alarm = Alarm(clock)
    wheel.arm(alarm, 1.0)
    assert clock.scheduled == 1
    clock.advance(1.0 + 2 * TICK)
    assert clock.scheduled == 0
    wheel.arm(alarm, 600.0)
    wheel.disarm(alarm)
    clock.advance(2 * TICK)
    assert clock.scheduled == 0


def test_a_wheel_that_has_rested_turns_again() -> None:
    """The time that it slept is not walked through tick by tick, nor is a timer lost in it."""
    clock, wheel = wheel_at()
    alarm = Alarm(clock)
    for _ in range(3):
        wheel.arm(alarm, 1.0)
        clock.advance(100_000)
    rests = [pytest.approx(1001 + 100_000 * n, abs=TICK + EPSILON) for n in range(3)]
    assert rests == alarm.rang


def test_many_timers_make_one_call_a_tick() -> None:
    clock, wheel = wheel_at()
    alarms = [Alarm(clock) for _ in range(10_000)]
    for number, alarm in enumerate(alarms):
        wheel.arm(alarm, number / 1000)
    assert clock.scheduled == 1
    clock.advance(10 + 2 * TICK)
    assert {1} == {len(alarm.rang) for alarm in alarms}


def test_a_timer_that_fails_takes_no_other_with_it() -> None:
    """The fault is reported, and those of the same tick and of later ones expire as they should."""

    def fail() -> None:
        raise ValueError("a fault of ours")

    clock, reported = HandClock(), list[Exception]()
    wheel = TimerWheel(clock, reported.append)
    faulty, later = [Alarm(clock, fail) for _ in range(5)], Alarm(clock)
    same = [Alarm(clock) for _ in range(5)]
    for alarm in (*faulty, *same):
        wheel.arm(alarm, 1.0)
    wheel.arm(later, 2.0)
    clock.advance(10)
    assert ["ValueError('a fault of ours')"] * 5 == [repr(fault) for fault in reported]
    assert [1] * 6 == [len(alarm.rang) for alarm in (*same, later)]
