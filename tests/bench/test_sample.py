"""What is wrong with a measured block, and how much work a machine has room for."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench.measure import Cpu, Usage
from bench.processes import Cores
from bench.proxies import Proxy
from bench.sample import (
    FULL,
    Measured,
    Sample,
    Turns,
    finished,
    greatest_growth,
    in_turns,
    measure_in_turns,
    together,
    usage_problems,
)
from bench.stage import GB, Load, LoadResult, Problem

CORES = Cores(proxy=1, load=0)


def usage(*, load: float = 0.5, proxy: float = 1.0, foreign: float = 0.0) -> Usage:
    return Usage(Cpu(1, 0.5, 0.5), 0.0, load, proxy, foreign)


@pytest.mark.parametrize(
    ("seen", "kinds"),
    [
        (usage(), []),
        (usage(load=0.99, proxy=0.99), []),
        (usage(load=0.99, proxy=0.7), ["the load generator was the bottleneck"]),
        (usage(foreign=0.06), ["something else used the proxy's core"]),
    ],
    ids=["quiet", "both full", "the load's core was full and the proxy's was not", "somebody else on the core"],
)
def test_a_block_says_why_its_figures_may_not_be_the_proxys(seen: Usage, kinds: list[str]) -> None:
    assert [problem.kind for problem in usage_problems(seen, CORES, (1,))] == kinds


def test_a_load_that_shares_its_core_by_intent_is_no_bottleneck() -> None:
    assert usage_problems(usage(load=1.0, proxy=0.8), CORES, CORES.both) == []


def test_one_core_is_too_few() -> None:
    kinds = [problem.kind for problem in usage_problems(usage(), Cores(proxy=0, load=0), (0,))]
    assert kinds == ["no core of its own"]


def test_a_sample_that_was_disturbed_is_worth_another_try() -> None:
    problems = usage_problems(usage(foreign=0.5), CORES, (1,))
    assert Sample({}, problems).disturbed
    assert not Sample({}, [Problem("connections failed", "1 of 2")]).disturbed


def test_two_descriptors_a_connection_bound_the_scale() -> None:
    """20,000 are room for all of it; 4,500 are room for 2,000 connections."""
    assert FULL.within(20_000) == FULL
    small = FULL.within(4_500)
    assert (small.idle, small.storm, small.levels) == (2_000, 2_000, (10, 100, 1_000))


def test_growth_is_of_the_first() -> None:
    assert greatest_growth([50, 60, 40]) == 1.2
    assert greatest_growth([50, 40]) == 1.0


def measured(seconds: float, *problems: Problem) -> Measured:
    load = Load(("a.bench.example",), count=4)
    result = LoadResult(4, 4, 4000, 1.0, {}, 4, 1, 1, 1, 1, 1)
    return Measured(load, result, Usage(Cpu(seconds, 0, 0), deferred=1.0), list(problems))


def test_the_cost_of_a_connection_has_what_the_kernel_put_off() -> None:
    assert measured(1.0).us_each == 500_000
    assert measured(1.0).ms_per_gb(2 * GB) == 1000


def test_parts_are_told_apart_in_one_sample() -> None:
    sample = together({"a": 1.0}, {"first": measured(1.0), "second": measured(2.0, Problem("odd", "1"))})
    assert sample.values == {"a": 1.0}
    assert sample.problems == [Problem("odd", "second: 1")]
    assert set(sample.raw) == {"first", "second"}


def test_a_samples_slices_are_shared_out_to_the_starts_of_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has slices of both directions of the turns; CPU is summed over all of them."""
    taken: list[str] = []

    def measure(proxy: Any, load: Load) -> Measured:
        taken.append(f"{proxy.name} {load.count}")
        result = LoadResult(load.count, load.count, 0, 1.0, {}, load.count, 1, 1, 1, 1, 1)
        return Measured(load, result, Usage(Cpu(proxy.seconds, 0, 0)), [])

    monkeypatch.setattr("bench.sample.measure", measure)
    stage = SimpleNamespace(cores=CORES)
    starts = [SimpleNamespace(name=f"start {at}", seconds=at, stage=stage, cores=(1,)) for at in (1, 2)]
    whole = finished(measure_in_turns(cast(list[Proxy], starts), Load(("a.bench.example",), count=20), 4))
    assert taken == ["start 1 5", "start 1 5", "start 2 5", "start 2 5"]
    assert whole.us_each == (1 + 1 + 2 + 2) / 20 * 1e6


def work(told: list[str], name: str, slices: int) -> Turns[str]:
    """Notes when it has a turn, and when it is over or ended before its time."""
    try:
        for number in range(slices):
            yield
            told.append(f"{name}{number}")
    finally:
        told.append(f"{name} over")
    return name


def test_works_have_their_slices_in_turn() -> None:
    """Now one begins, now the other. One that has more than the others goes on alone."""
    told: list[str] = []
    done = finished(in_turns({1: work(told, "a", 2), 2: work(told, "b", 5)}))
    assert done == {1: "a", 2: "b"}
    assert told == ["b0", "a0", "a1", "a over", "b1", "b2", "b3", "b4", "b over"]


def test_works_within_works_give_turns_to_those_outside() -> None:
    told: list[str] = []
    inner = in_turns({1: work(told, "a", 2), 2: work(told, "b", 2)})
    done = finished(in_turns({"inner": inner, "outer": cast(Turns[Any], work(told, "c", 2))}))
    assert sorted(told[:3]) == ["a0", "b0", "c0"]
    assert sorted(done.items()) == [("inner", {1: "a", 2: "b"}), ("outer", "c")]


def test_a_work_that_fails_ends_the_others() -> None:
    """Their proxies are stopped."""
    told: list[str] = []

    def fails() -> Turns[str]:
        yield
        raise ValueError("of a work")

    with pytest.raises(ValueError, match="of a work"):
        finished(in_turns({1: work(told, "a", 9), 2: fails()}))
    assert told == ["a over"]


def test_the_usage_of_slices_is_summed_and_its_shares_are_means() -> None:
    """A share that is less than nothing, for want of a finer clock, makes up for one that is too much."""
    whole = Usage.joined([usage(load=0.2, foreign=-0.04), usage(load=0.4, foreign=0.06)])
    assert whole.seconds == 2.0
    assert whole.load_core_busy == pytest.approx(0.3)
    assert whole.foreign_share == pytest.approx(0.01)
