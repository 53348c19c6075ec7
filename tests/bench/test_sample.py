"""What is wrong with a measured block, and how much work a machine has room for."""

import pytest

from bench.measure import Cpu, Usage
from bench.processes import Cores
from bench.sample import FULL, Measured, Sample, greatest_growth, together, usage_problems
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
