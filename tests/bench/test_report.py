"""From samples to ratios, verdicts and warnings."""

import pytest

from bench.report import Results, Summary, Verdict, as_json, cell, number, ratio, summarise, table, tally, warnings
from bench.sample import Sample, Target
from bench.stage import Problem


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
    ("verdict", "text"),
    [
        (Verdict(Target(1.0, of="nginx"), "us", (0.99, 0.98)), "<= 1 x nginx: met"),
        (Verdict(Target(1.0, of="nginx"), "us", (1.01,)), "<= 1 x nginx: missed"),
        (Verdict(Target(0.7, of="envoy"), "ms", (0.6, 0.65, 0.8)), "<= 0.7 x Envoy: met (2 of 3 rounds)"),
        (Verdict(Target(0.7, of="envoy"), "ms", ()), "<= 0.7 x Envoy: not measured"),
        (Verdict(Target(3.0), "KiB", (2.5, 2.6)), "<= 3 KiB: met"),
        (Verdict(Target(3.0), "KiB", (2.5, 3.5, 3.6)), "<= 3 KiB: missed (2 of 3 rounds)"),
    ],
)
def test_the_verdict_is_by_the_median_and_says_where_rounds_dissent(verdict: Verdict, text: str) -> None:
    assert str(verdict) == text


def stream(*values: float) -> list[Sample | None]:
    return [Sample({"stream_cpu": value}) for value in values]


def test_a_metric_can_have_targets_against_several_peers() -> None:
    rounds = {"nginx": stream(100, 100), "envoy": stream(50, 50), "sniproxy": stream(33, 34)}
    run = Results(tuple(rounds), ("stream",), {"stream": rounds})
    assert "<= 0.35 x nginx: met; <= 0.7 x Envoy: met" in table(run)
    assert tally(run) == "Targets: 2 met, 0 missed"


def test_a_peer_that_was_left_out_leaves_its_target_unmeasured() -> None:
    rounds = {"nginx": stream(100), "sniproxy": stream(40)}
    run = Results(tuple(rounds), ("stream",), {"stream": rounds})
    assert "<= 0.35 x nginx: missed; <= 0.7 x Envoy: not measured" in table(run)
    assert tally(run) == "Targets: 0 met, 1 missed, 1 not measured"


def test_a_metric_that_only_some_samples_have_is_a_dash_elsewhere() -> None:
    """Connections by worker are read from sniproxy's log."""
    rounds: dict[str, list[Sample | None]] = {
        "nginx": [Sample({"workers_1": 60.0})],
        "sniproxy": [Sample({"workers_1": 70.0, "workers_spread": 51.0})],
    }
    lines = table(Results(tuple(rounds), ("workers",), {"workers": rounds})).splitlines()
    spread = next(line for line in lines if "the busier worker" in line)
    assert [part.strip() for part in spread.split("|")[2:5]] == ["-", "51.0 (51.0-51.0)", "<= 55 %: met"]


def test_a_row_without_any_value_or_target_is_left_out() -> None:
    rounds: dict[str, list[Sample | None]] = {"nginx": [Sample({"crowd_10": 60.0})]}
    text = table(Results(("nginx",), ("crowd",), {"crowd": rounds}))
    assert "10 at a time" in text
    assert "8,000 at a time" not in text


def test_a_quiet_run_has_no_warnings() -> None:
    assert "(!)" not in table(results(nginx=short(70, 72), sniproxy=short(60, 61)))


def test_a_baseline_that_spreads_is_noisy() -> None:
    text = table(results(nginx=short(60, 80), sniproxy=short(60, 61)))
    assert "CPU per short connection (us) (!)" in text
    assert "nginx's own values spread by 29% of their median" in text


def test_a_run_with_many_marked_rows_is_too_noisy_to_quote() -> None:
    assert warnings(results(nginx=short(60, 80)))[0] == "this run is too noisy to quote: 1 of 1 rows are marked"


def test_what_only_sniproxy_has_is_noisy_by_its_own_spread() -> None:
    rounds: dict[str, list[Sample | None]] = {"sniproxy": [Sample({"log_on": 60.0}), Sample({"log_on": 90.0})]}
    found = warnings(Results(("nginx", "sniproxy"), ("log",), {"log": rounds}))
    assert any("noisy: sniproxy's own values spread by 40%" in each for each in found)


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
    target = {"metric": "short_cpu", "limit": 1.0, "of": "nginx", "reached": None, "met": None}
    assert document["targets"] == [target]
    assert document["marked"] == ["short_cpu"]
