"""Forking and signals, with real processes of the test's own."""

import os
import select
import signal
from collections.abc import Iterator

import pytest

from sniproxy.processes import HANDLED, Child, Signals, fork, heed_no_more


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as signals:
        yield signals


def wait_for(signals: Signals) -> set[int]:
    assert select.select([signals], [], [], 20)[0]
    return signals.take()


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fail() -> None:
    raise ValueError("a child that fails")


@pytest.mark.parametrize(("work", "status"), [(lambda: None, 0), (fail, 1), (lambda: os._exit(7), 7)])
def test_a_child_ends_with_its_work(work: object, status: int) -> None:
    """And never goes on with what its parent was doing."""
    assert ended(fork(work)) == status  # type: ignore[arg-type]


def test_signals_are_kept_and_wake(signals: Signals) -> None:
    assert signals.take() == set()
    for number in (signal.SIGHUP, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert wait_for(signals) == {signal.SIGHUP, signal.SIGTERM}
    assert (signals.take(), select.select([signals], [], [], 0)[0]) == (set(), [])


def test_a_storm_loses_no_signal(signals: Signals) -> None:
    """The socket that wakes is full long before; nothing is read of it to know which came."""
    for _ in range(5000):
        os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    assert wait_for(signals) == {signal.SIGHUP, signal.SIGTERM}


def test_the_death_of_a_child_is_a_signal(signals: Signals) -> None:
    pid = fork(lambda: None)
    assert wait_for(signals) == {signal.SIGCHLD}
    assert ended(pid) == 0


def test_afterwards_signals_do_what_they_did_before() -> None:
    before = {number: signal.getsignal(number) for number in HANDLED}
    with Signals():
        assert before != {number: signal.getsignal(number) for number in HANDLED}
    assert before == {number: signal.getsignal(number) for number in HANDLED}
    assert signal.set_wakeup_fd(-1) == -1


# What a signal does to a child that is doing something else: its exit code, or the signal that ended it.
TO_A_CHILD = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 0, signal.SIGHUP: 0, signal.SIGUSR1: 0}


@pytest.mark.parametrize(("number", "status"), TO_A_CHILD.items())
def test_a_child_has_none_of_its_parents_handlers(signals: Signals, number: signal.Signals, status: int) -> None:
    """^C and the end of the terminal are for the parent to decide; SIGTERM is the parent's decision."""
    assert ended(fork(lambda: os.kill(os.getpid(), number))) == status
    assert signals.take() == {signal.SIGCHLD}


@pytest.mark.usefixtures("signals")
def test_a_child_can_be_stopped_from_its_first_moment() -> None:
    """A signal that comes before the child has handlers of its own is not its parent's, and is not lost."""
    for _ in range(50):
        pid = fork(signal.pause)
        os.kill(pid, signal.SIGTERM)
        assert ended(pid) == -signal.SIGTERM


def test_nothing_stays_blocked(signals: Signals) -> None:
    fork(lambda: None)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) & HANDLED == set()
    wait_for(signals)
    os.wait()


def test_on_its_way_out_a_process_dies_of_no_signal() -> None:
    def work() -> None:
        heed_no_more()
        for number in HANDLED:
            os.kill(os.getpid(), number)

    assert ended(fork(work)) == 0


def test_a_child_tells_its_end_once() -> None:
    child = Child("one")
    assert child.has_ended() == ""
    child.start(signal.pause)
    assert child.has_ended() == ""
    child.kill(signal.SIGKILL)
    assert (child.has_ended(wait=True), child.has_ended(), child.pid) == ("signal SIGKILL", "", 0)
    child.start(lambda: None)
    assert child.has_ended(wait=True) == "exit 0"
    child.kill(signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, "signal SIGKILL"), (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}")]
)
def test_a_child_that_was_killed_names_the_signal(number: int, cause: str) -> None:
    """By its number, where Python has no name for it: who sends such a one must not bring down the parent."""
    child = Child("one")
    child.start(signal.pause)
    os.kill(child.pid, number)
    assert child.has_ended(wait=True) == cause


def test_who_keeps_dying_is_started_later_and_later() -> None:
    """And who has lived for a while, soon again."""
    child = Child("one")
    pauses = []
    for _ in range(9):
        child.start(lambda: None)
        child.has_ended(wait=True)
        child.plan_restart()
        pauses.append(child.pause)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]
    child.started -= 11.0
    child.plan_restart()
    assert child.pause == 0.1
