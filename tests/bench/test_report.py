"""From samples to ratios, verdicts and warnings."""

import pytest

from bench.report import Results, Summary, as_json, cell, number, ratio, summarise, table, verdict
from bench.stage import Problem
from bench.workloads import Metric, Sample

CPU = Metric("short_cpu", "CPU per short connection", "us", target=1.0)
MEMORY = Metric("idle_memory", "memory per idle connection", "KiB", target_value=3.0)


def short(*values: float | None) -> list[Sample | None]:
    return [None if value is None else Sample({"short_cpu": value}) for value in values]


def results(**rounds: list[Sample | None]) -> Results:
    return Results(peers=tuple(rounds), workloads=("short",), samples={"short": rounds})


def test_the_ratio_is_taken_within_each_round() -> None:
    """A machine that was twice as slow in the second round was so for both."""
    assert ratio([50, 100, 60], [100, 200, 100]) == 0.5


def test_a_round_that_one_side_lacks_gives_no_ratio() -> None:
    assert ratio([50, None, 60], [None, 100, 100]) == 0.6
    assert ratio([50], [None]) is None


def test_a_summary_is_the_median_and_the_spread() -> None:
    assert summarise([3, 1, 2], [1, 1, 1]) == Summary(median=2, least=1, greatest=3, ratio=2)
    assert summarise([None], [1]) is None


@pytest.mark.parametrize(("value", "text"), [(123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (-0.5, "-0.50")])
def test_three_digits_matter(value: float, text: str) -> None:
    assert number(value) == text


def test_a_cell_shows_median_spread_and_ratio() -> None:
    assert cell(Summary(72, 70, 75, 1.0)) == "72.0 (70.0-75.0) **1.00**"
    assert cell(Summary(72, 70, 75, None)) == "72.0 (70.0-75.0)"
    assert cell(None) == "-"


@pytest.mark.parametrize(
    ("metric", "summary", "text"),
    [
        (CPU, Summary(72, 70, 75, 0.99), "<= 1: met"),
        (CPU, Summary(72, 70, 75, 1.01), "<= 1: missed"),
        (CPU, Summary(72, 70, 75, None), "<= 1"),
        (CPU, None, "<= 1"),
        (MEMORY, Summary(2.6, 2.5, 2.7, None), "<= 3 KiB: met"),
        (Metric("x", "x", "us"), Summary(1, 1, 1, 1), ""),
    ],
)
def test_the_verdict_is_by_the_target(metric: Metric, summary: Summary | None, text: str) -> None:
    assert verdict(metric, summary) == text


def test_a_quiet_run_has_no_warnings() -> None:
    assert "(!)" not in table(results(nginx=short(70, 72), sniproxy=short(60, 61)))


def test_a_baseline_that_spreads_is_noisy() -> None:
    text = table(results(nginx=short(60, 80), sniproxy=short(60, 61)))
    assert "CPU per short connection (us) (!)" in text
    assert "nginx's own values spread by 29% of their median" in text


def test_a_problem_is_listed_with_its_rounds() -> None:
    disturbed = [Sample({"short_cpu": 60}, [Problem("connections failed", "1 of 9: reset 1")]), None]
    text = table(results(nginx=short(70, 70), sniproxy=disturbed))
    assert "- short: sniproxy: connections failed (round 1: 1 of 9: reset 1)" in text
    assert "- short: sniproxy: failed (round 2: see above)" in text


def test_the_json_has_the_summary_and_every_sample() -> None:
    document = as_json(results(nginx=short(70, None)), {"kernel": "6"})
    assert document["about"] == {"kernel": "6"}
    assert document["summary"]["short_cpu"]["nginx"]["median"] == 70
    assert document["samples"]["short"]["nginx"][0]["values"] == {"short_cpu": 70}
    assert document["samples"]["short"]["nginx"][1] is None
