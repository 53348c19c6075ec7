"""Limits of rules: exact in all workers together, the same after a reload, given back by the dead, and bounded."""

import contextlib
import mmap
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.identity.spiffe import UNKNOWN, Identity, parse_principal
from sniproxy.limits import Lease, Limiter, LimitTable, OverLimit
from sniproxy.policy.model import Ground, Per, RuleLimits

US = parse_principal("cluster.local/ns/default/sa/sleep-us")
CANADA = parse_principal("cluster.local/ns/default/sa/sleep-canada")
FOR_US = "for cluster.local/ns/default/sa/sleep-us"
BUCKETS_OF_A_SET = 32


def ground(rule: str = "wikipedia", policy: str = "policy.yaml", line: int = 3) -> Ground:
    return Ground(policy, rule, f"/etc/sniproxy/{policy}", line)


RULE = ground()


@dataclass
class Clock:
    """What time it is, for all workers."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def a_table(workers: int = 2, sets: int = 256) -> Iterator[LimitTable]:
    table = LimitTable(workers, sets)
    try:
        yield table
    finally:
        table.close()


@pytest.fixture
def table() -> Iterator[LimitTable]:
    with a_table() as table:
        yield table


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(table: LimitTable, clock: Clock) -> Limiter:
    return table.limiter(0, clock)


def enter(limiter: Limiter, limits: RuleLimits, identity: Identity = US, rule: Ground = RULE) -> Lease:
    """A place that there must be."""
    entered = limiter.enter(rule, limits, identity)
    assert isinstance(entered, Lease), entered.detail
    return entered


def refusal(limiter: Limiter, limits: RuleLimits, identity: Identity = US, rule: Ground = RULE) -> str:
    """Why there is no place, where there must be none."""
    refused = limiter.enter(rule, limits, identity)
    assert isinstance(refused, OverLimit)
    return refused.detail


def enter_while_there_is_room(limiter: Limiter, limits: RuleLimits, tries: int) -> int:
    return sum(isinstance(limiter.enter(RULE, limits, US), Lease) for _ in range(tries))


# One worker.


def test_a_rule_has_its_connections_and_no_more(limiter: Limiter) -> None:
    limits = RuleLimits(connections=3)
    leases = [enter(limiter, limits) for _ in range(3)]
    assert [refusal(limiter, limits) for _ in range(5)] == ["rule wikipedia has its 3 connections"] * 5
    leases[1].leave()
    enter(limiter, limits)
    refusal(limiter, limits)


def test_a_rate_lets_a_burst_in_and_then_one_at_a_time(limiter: Limiter, clock: Clock) -> None:
    """The bucket is full at first, and the rate fills it again as far as the burst."""
    limits = RuleLimits(rate=4.0, burst=3)
    assert enter_while_there_is_room(limiter, limits, tries=10) == 3
    clock.now += 0.125
    assert refusal(limiter, limits) == "rule wikipedia is over its rate of 4/s"
    clock.now += 0.125
    assert enter_while_there_is_room(limiter, limits, tries=10) == 1
    clock.now += 3600
    assert enter_while_there_is_room(limiter, limits, tries=10) == 3


def test_leaving_gives_nothing_of_the_rate_back(limiter: Limiter) -> None:
    limits = RuleLimits(rate=1.0, burst=1)
    enter(limiter, limits).leave()
    refusal(limiter, limits)


def test_a_rate_without_a_burst_lets_one_in_at_a_time(limiter: Limiter, clock: Clock) -> None:
    limits = RuleLimits(rate=1.0)
    enter(limiter, limits)
    refusal(limiter, limits)
    clock.now += 1.0
    enter(limiter, limits)


def test_what_one_limit_refuses_the_other_does_not_count(limiter: Limiter, clock: Clock) -> None:
    limits = RuleLimits(connections=1, rate=1.0, burst=2)
    lease = enter(limiter, limits)
    for _ in range(5):
        refusal(limiter, limits)  # for its connections: the rest of the burst is still there
    lease.leave()
    lease = enter(limiter, limits)
    lease.leave()
    refusal(limiter, limits)  # for its rate: the connection is still there
    clock.now += 1.0
    enter(limiter, limits)


def test_a_clock_that_does_not_move_refills_nothing_and_one_that_goes_back_takes_nothing(
    limiter: Limiter, clock: Clock
) -> None:
    limits = RuleLimits(rate=1.0, burst=2)
    enter(limiter, limits)
    clock.now -= 10.0
    enter(limiter, limits)
    refusal(limiter, limits)


SENTENCES: dict[str, tuple[RuleLimits, Identity, str]] = {
    "one connection of a rule": (RuleLimits(connections=1), US, "rule wikipedia has its 1 connection"),
    "several": (RuleLimits(connections=2), US, "rule wikipedia has its 2 connections"),
    "the connections of one principal": (
        RuleLimits(connections=2, per=Per.PRINCIPAL),
        US,
        f"rule wikipedia has its 2 connections {FOR_US}",
    ),
    "the connections of nobody known": (
        RuleLimits(connections=2, per=Per.PRINCIPAL),
        UNKNOWN,
        "rule wikipedia has its 2 connections for callers without identity",
    ),
    "the rate of a rule": (RuleLimits(rate=5.0, burst=2), US, "rule wikipedia is over its rate of 5/s"),
    "a rate below one a second": (RuleLimits(rate=0.5, burst=2), US, "rule wikipedia is over its rate of 0.5/s"),
    "the rate of one principal": (
        RuleLimits(rate=5.0, burst=2, per=Per.PRINCIPAL),
        US,
        f"rule wikipedia is over its rate of 5/s {FOR_US}",
    ),
    "both, of which the connections are told": (
        RuleLimits(connections=2, rate=5.0, burst=2),
        US,
        "rule wikipedia has its 2 connections",
    ),
}


@pytest.mark.parametrize("what", SENTENCES)
def test_a_refusal_says_which_limit_and_whose(limiter: Limiter, what: str) -> None:
    limits, identity, sentence = SENTENCES[what]
    for _ in range(limits.connections or limits.burst):
        enter(limiter, limits, identity)
    assert refusal(limiter, limits, identity) == sentence


# What is counted together.

ONE = RuleLimits(connections=1)
ONE_EACH = RuleLimits(connections=1, per=Per.PRINCIPAL)

Entry = tuple[Ground, RuleLimits, Identity]

SHARED: dict[str, tuple[Entry, Entry]] = {
    "a rule, for two principals": ((RULE, ONE, US), (RULE, ONE, CANADA)),
    "a rule, for a principal and nobody known": ((RULE, ONE, US), (RULE, ONE, UNKNOWN)),
    "all callers that are not known": ((RULE, ONE_EACH, UNKNOWN), (RULE, ONE_EACH, UNKNOWN)),
    "a rule that a reload moved to another line": ((RULE, ONE, US), (ground(line=99), ONE, US)),
    "a rule that a reload gave another rate": ((RULE, ONE, US), (RULE, RuleLimits(connections=1, rate=5.0), US)),
}

APART: dict[str, tuple[Entry, Entry]] = {
    "two principals, where each has its own": ((RULE, ONE_EACH, US), (RULE, ONE_EACH, CANADA)),
    "a principal and nobody known, where each has its own": ((RULE, ONE_EACH, US), (RULE, ONE_EACH, UNKNOWN)),
    "two rules": ((RULE, ONE, US), (ground("other"), ONE, US)),
    "two rules of one name in two policies": ((RULE, ONE, US), (ground(policy="other.yaml"), ONE, US)),
    "a rule for all, and the same since it counts each": ((RULE, ONE, US), (RULE, ONE_EACH, US)),
    "names that read the same end to end": ((ground("bc", "a"), ONE, US), (ground("c", "ab"), ONE, US)),
    "a rule and a principal that read the same end to end": (
        (ground("r1", "p"), ONE_EACH, parse_principal("0.example")),
        (ground("r", "p"), ONE_EACH, parse_principal("10.example")),
    ),
}


@pytest.mark.parametrize("what", SHARED)
def test_these_share_their_limits(limiter: Limiter, what: str) -> None:
    (first, first_limits, one), (second, second_limits, other) = SHARED[what]
    enter(limiter, first_limits, one, first)
    refusal(limiter, second_limits, other, second)


@pytest.mark.parametrize("what", APART)
def test_these_do_not(limiter: Limiter, what: str) -> None:
    (first, first_limits, one), (second, second_limits, other) = APART[what]
    enter(limiter, first_limits, one, first)
    enter(limiter, second_limits, other, second)


# Reload.


def test_new_limits_hold_at_once_for_what_is_in_use(limiter: Limiter) -> None:
    """Fewer connections: none comes until enough have left. More: there is room now."""
    leases = [enter(limiter, RuleLimits(connections=3)) for _ in range(3)]
    assert refusal(limiter, RuleLimits(connections=2)) == "rule wikipedia has its 2 connections"
    enter(limiter, RuleLimits(connections=4))
    for lease in leases:
        lease.leave()
    enter(limiter, RuleLimits(connections=2))
    refusal(limiter, RuleLimits(connections=2))


def test_connections_are_counted_before_there_is_a_limit_on_them(limiter: Limiter) -> None:
    """A rule that had a rate alone gets a limit on connections, and those that it has count."""
    enter(limiter, RuleLimits(rate=100.0, burst=10))
    refusal(limiter, RuleLimits(connections=1))


def test_a_new_rate_fills_the_same_bucket(limiter: Limiter, clock: Clock) -> None:
    slow, quick = RuleLimits(rate=0.5, burst=1), RuleLimits(rate=8.0, burst=1)
    enter(limiter, slow)
    clock.now += 0.125
    refusal(limiter, slow)
    enter(limiter, quick)


def test_a_larger_burst_adds_its_difference(limiter: Limiter) -> None:
    assert enter_while_there_is_room(limiter, RuleLimits(rate=1.0, burst=3), tries=10) == 3
    assert enter_while_there_is_room(limiter, RuleLimits(rate=1.0, burst=5), tries=10) == 2


def test_a_smaller_burst_that_was_used_up_is_empty_and_no_worse(limiter: Limiter, clock: Clock) -> None:
    """Nobody pays off at the new rate what the old burst had allowed."""
    assert enter_while_there_is_room(limiter, RuleLimits(rate=1.0, burst=100), tries=100) == 100
    small = RuleLimits(rate=1.0, burst=2)
    refusal(limiter, small)
    clock.now += 1.0
    assert enter_while_there_is_room(limiter, small, tries=10) == 1


# The arithmetic of rates.

EIGHTHS = st.integers(0, 80).map(lambda eighths: eighths / 8)  # exact as floats: nothing is rounded
RATES = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0, 16.0])


@given(st.lists(EIGHTHS, max_size=60), RATES, st.integers(1, 6))
def test_a_rate_is_a_token_bucket_to_the_letter(gaps: list[float], rate: float, burst: int) -> None:
    """Against the definition, in exact fractions: as many tokens as the burst, one a connection, refilled with time."""
    with a_table() as table:
        clock, limits = Clock(), RuleLimits(rate=rate, burst=burst)
        limiter, tokens = table.limiter(0, clock), Fraction(burst)
        for gap in gaps:
            clock.now += gap
            tokens = min(Fraction(burst), tokens + Fraction(gap) * Fraction(rate))
            assert isinstance(limiter.enter(RULE, limits, US), Lease) == (tokens >= 1)
            tokens -= tokens >= 1


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1)), min_size=1, max_size=80),
    st.floats(0.01, 100),
    st.integers(1, 10),
)
def test_no_window_of_time_sees_more_than_the_burst_and_what_the_rate_adds(
    arrivals: list[tuple[float, int]], rate: float, burst: int
) -> None:
    """Whenever they come, and whichever worker they come to."""
    with a_table() as table:
        clock, limits = Clock(), RuleLimits(rate=rate, burst=burst)
        limiters = [table.limiter(number, clock) for number in range(2)]
        let_in: list[float] = []
        for gap, worker in arrivals:
            clock.now += gap
            if isinstance(limiters[worker].enter(RULE, limits, US), Lease):
                let_in.append(clock.now)
    for first, begin in enumerate(let_in):
        for last, end in enumerate(let_in[first:], first):
            assert last - first + 1 <= burst + rate * (end - begin) + 1e-6


# Several workers, one after the other.


def test_a_limit_is_one_for_all_workers(table: LimitTable, clock: Clock) -> None:
    first, second = table.limiter(0, clock), table.limiter(1, clock)
    limits = RuleLimits(connections=2, rate=1.0, burst=3)
    lease = enter(first, limits)
    enter(second, limits)
    refusal(first, limits)
    refusal(second, limits)
    lease.leave()
    enter(second, limits)
    assert "connections" in refusal(first, limits)


def test_a_dead_worker_gives_back_its_connections_and_no_other_does(table: LimitTable, clock: Clock) -> None:
    limits = RuleLimits(connections=4)
    dead, alive = table.limiter(0, clock), table.limiter(1, clock)
    for _ in range(3):
        enter(dead, limits)
    enter(alive, limits)
    refusal(alive, limits)
    table.clear(0)
    assert enter_while_there_is_room(alive, limits, tries=10) == 3


def test_what_a_dead_worker_used_of_a_rate_stays_used(table: LimitTable, clock: Clock) -> None:
    """A client that brings workers down gets no burst for it."""
    limits = RuleLimits(rate=1.0, burst=1)
    enter(table.limiter(0, clock), limits)
    table.clear(0)
    refusal(table.limiter(0, clock), limits)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.integers(0, 1), st.sampled_from("abc"), st.sampled_from([US, CANADA, UNKNOWN])),
        st.tuples(st.just("leave"), st.integers(0, 100), st.none(), st.none()),
        st.tuples(st.just("die"), st.integers(0, 1), st.none(), st.none()),
    )
)


@given(STEPS, st.integers(1, 4), st.sampled_from(Per))
def test_connections_are_counted_like_in_a_plain_list(
    steps: list[tuple[str, int, str, Identity]], most: int, per: Per
) -> None:
    """Entering, leaving and dying in any order: there is room exactly where the list has fewer than the limit."""
    limits = RuleLimits(connections=most, per=per)
    live: list[tuple[int, tuple[object, ...], Lease]] = []
    with a_table() as table:
        limiters = [table.limiter(number, Clock()) for number in range(2)]
        for step, number, rule, identity in steps:
            if step == "enter":
                whose = (rule, identity if per is Per.PRINCIPAL else None)
                entered = limiters[number].enter(ground(rule), limits, identity)
                assert isinstance(entered, Lease) == (Counter(owner for _, owner, _ in live)[whose] < most)
                if isinstance(entered, Lease):
                    live.append((number, whose, entered))
            elif step == "leave" and live:
                live.pop(number % len(live))[2].leave()
            elif step == "die":
                table.clear(number)
                live = [one for one in live if one[0] != number]


# The bound.


def fill(limiter: Limiter, limits: RuleLimits) -> list[Lease]:
    """A lease of a rule each, until a table of one set has no room."""
    return [enter(limiter, limits, US, ground(f"rule-{number}")) for number in range(BUCKETS_OF_A_SET)]


FULL = "rule wikipedia has limits, and the table of all limits in use has no room"


def test_without_a_bucket_to_count_in_it_refuses_and_says_so() -> None:
    """It fails closed: a limit that cannot be kept is not waived."""
    with a_table(sets=1) as table:
        limiter = table.limiter(0, Clock())
        fill(limiter, ONE)
        assert refusal(limiter, ONE) == FULL
        assert refusal(limiter, RuleLimits(rate=100.0, burst=100)) == FULL


def test_a_bucket_whose_last_connection_left_is_given_to_the_next_rule() -> None:
    with a_table(sets=1) as table:
        limiter = table.limiter(0, Clock())
        leases = fill(limiter, ONE)
        leases[7].leave()
        enter(limiter, ONE)
        assert refusal(limiter, ONE) == "rule wikipedia has its 1 connection"
        refusal(limiter, ONE, US, ground("rule-7"))  # whose bucket it was: now there is none for it


def test_a_bucket_is_kept_until_its_burst_is_whole_again() -> None:
    """Otherwise whoever came back would find a full one."""
    with a_table(sets=1) as table:
        clock = Clock()
        limiter = table.limiter(0, clock)
        for lease in fill(limiter, RuleLimits(rate=0.5, burst=10)):
            lease.leave()
        clock.now += 1.5
        assert refusal(limiter, ONE) == FULL
        clock.now += 0.5
        enter(limiter, ONE)


def test_who_is_given_a_bucket_finds_nothing_of_its_former_owner() -> None:
    with a_table(sets=1) as table:
        clock = Clock()
        limiter, limits = table.limiter(0, clock), RuleLimits(connections=5, rate=1.0, burst=5)
        for lease in fill(limiter, limits):
            lease.leave()
        clock.now += 1.0
        assert enter_while_there_is_room(limiter, limits, tries=10) == 5


def test_connections_of_another_worker_keep_a_bucket() -> None:
    with a_table(sets=1) as table:
        here, there = table.limiter(0, Clock()), table.limiter(1, Clock())
        fill(there, ONE)
        assert refusal(here, ONE) == FULL
        table.clear(1)
        enter(here, ONE)


def test_principals_take_no_room_from_rules() -> None:
    """A rule that counts each of its callers may have any number of them; the limits of other rules hold on."""
    with a_table(sets=1) as table:
        limiter = table.limiter(0, Clock())
        for number in range(BUCKETS_OF_A_SET):
            enter(limiter, ONE_EACH, parse_principal(f"cluster.local/ns/default/sa/{number}"))
        assert refusal(limiter, ONE_EACH) == f"{FULL} {FOR_US}"
        enter(limiter, ONE)


def test_thousands_of_principals_have_their_limits_each() -> None:
    with a_table() as table:
        limiter = table.limiter(0, Clock())
        principals = [parse_principal(f"cluster.local/ns/default/sa/{number}") for number in range(2000)]
        for principal in principals:
            enter(limiter, ONE_EACH, principal)
        for principal in principals:
            assert "has its 1 connection for" in refusal(limiter, ONE_EACH, principal)


# Several workers at once: real processes.


def worker_process(work: Callable[[], int]) -> tuple[int, int]:
    """Fork a process that does `work`; its pid, and a pipe that will hold the number that it returns."""
    answer, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _work_and_exit(work, write)
    os.close(write)
    return pid, answer


def _work_and_exit(work: Callable[[], int], write: int) -> NoReturn:
    """The life of the forked process: nothing of the test's own goes on in it."""
    status = 1
    try:
        os.write(write, b"%d" % work())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def answers(processes: list[tuple[int, int]]) -> list[int]:
    numbers = []
    for pid, answer in processes:
        with open(answer, "rb") as pipe:
            text = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "a process failed; its traceback is above"
        numbers.append(int(text))
    return numbers


def start_together(works: Sequence[Callable[[], int]]) -> list[int]:
    """Do each of `works` in a process of its own, all from the same moment on; what each returned."""
    gate, opener = os.pipe()

    def behind_the_gate(work: Callable[[], int]) -> int:
        os.close(opener)
        os.read(gate, 1)  # ends with the last opener
        return work()

    processes = [worker_process(partial(behind_the_gate, work)) for work in works]
    os.close(opener)
    os.close(gate)
    return answers(processes)


def test_processes_that_hammer_one_bucket_get_its_connections_exactly(table: LimitTable) -> None:
    limits = RuleLimits(connections=3000)
    limiters = [table.limiter(number) for number in range(2)]
    hammers = [partial(enter_while_there_is_room, limiter, limits, 4000) for limiter in limiters]
    assert sum(start_together(hammers)) == 3000


def test_processes_that_hammer_one_bucket_get_its_burst_exactly(table: LimitTable, clock: Clock) -> None:
    """With a clock that stands, so that the rate adds nothing."""
    limits = RuleLimits(rate=1.0, burst=3000)
    limiters = [table.limiter(number, clock) for number in range(2)]
    hammers = [partial(enter_while_there_is_room, limiter, limits, 4000) for limiter in limiters]
    assert sum(start_together(hammers)) == 3000


def test_one_connection_is_never_two_while_processes_come_and_go(table: LimitTable) -> None:
    """Each leaves a mark for as long as it is inside, and never finds the other's."""
    inside = mmap.mmap(-1, 1)

    def come_and_go(worker: int) -> int:
        limiter, was_inside, intruders = table.limiter(worker), 0, 0
        while was_inside < 3000:
            entered = limiter.enter(RULE, ONE, US)
            if isinstance(entered, Lease):
                was_inside += 1
                intruders += inside[0]
                inside[0] = 1
                inside[0] = 0
                entered.leave()
        return intruders

    assert start_together([partial(come_and_go, 0), partial(come_and_go, 1)]) == [0, 0]
    enter(table.limiter(0), ONE)


def test_processes_that_ask_for_new_buckets_at_once_never_make_two_of_one() -> None:
    """Both come with the same 30 principals, in opposite order; each principal gets one connection."""
    principals = [parse_principal(f"cluster.local/ns/default/sa/{number}") for number in range(30)]

    def enter_each(limiter: Limiter, order: int) -> int:
        return sum(
            isinstance(limiter.enter(ground(f"round-{number}"), ONE_EACH, who), Lease)
            for number in range(100)
            for who in principals[::order]
        )

    with a_table(sets=2048) as table:
        first, second = (table.limiter(number) for number in range(2))
        assert sum(start_together([partial(enter_each, first, 1), partial(enter_each, second, -1)])) == 3000


def killed(work: Callable[[], object]) -> None:
    """Do `work` in a process of its own that is killed by it, as the kernel would for want of memory."""

    def until_killed() -> int:
        work()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    pid, answer = worker_process(until_killed)
    os.close(answer)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_killed_process_gives_back_what_it_held_once_it_is_cleared(table: LimitTable, clock: Clock) -> None:
    limits = RuleLimits(connections=5)
    killed(lambda: [enter(table.limiter(0, clock), limits) for _ in range(5)])
    alive = table.limiter(1, clock)
    refusal(alive, limits)
    table.clear(0)
    assert enter_while_there_is_room(alive, limits, tries=10) == 5


def test_a_process_that_is_killed_with_the_lock_leaves_it_free(table: LimitTable, clock: Clock) -> None:
    """The clock is read under the lock, and this one is the last that its process reads."""

    def deadly_clock() -> float:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    killed(lambda: table.limiter(0, deadly_clock).enter(RULE, ONE, US))
    enter(table.limiter(1, clock), ONE)
