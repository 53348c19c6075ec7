"""A ratio that has grown fails the guard, one that may have does not pass, and what holds passes."""

from typing import Any

import pytest

from bench.guard import Judgement, Outcome, committed_ratios, exit_status, judge, newest_ratios
from bench.report import Results
from bench.sample import Sample
from bench.workloads import WORKLOADS


def results(nginx: list[float], sniproxy: list[float]) -> Results:
    samples: dict[str, list[Sample | None]] = {
        "nginx": [Sample({"short_cpu": value}) for value in nginx],
        "sniproxy": [Sample({"short_cpu": value}) for value in sniproxy],
    }
    return Results(("nginx", "sniproxy"), ("short",), {"short": samples})


@pytest.mark.parametrize(
    ("committed", "nginx", "sniproxy", "outcome", "status"),
    [
        ({"short_cpu": 1.0}, [100, 100], [114, 114], Outcome.HELD, 0),
        ({"short_cpu": 1.0}, [100, 100], [116, 116], Outcome.GROWN, 1),
        ({"short_cpu": 1.0}, [100, 100], [50, 50], Outcome.HELD, 0),
        ({"short_cpu": 1.0}, [100, 120], [150, 150], Outcome.UNSURE, 3),
        ({"short_cpu": 1.0}, [100, 120], [100, 100], Outcome.HELD, 0),
        ({}, [100, 100], [300, 300], Outcome.NEW, 0),
    ],
    ids=["within 15 %", "more than 15 %", "less", "more, and nginx did not hold still", "less, and noisy", "new"],
)
def test_a_ratio_is_judged_by_the_committed_one(
    committed: dict[str, float], nginx: list[float], sniproxy: list[float], outcome: Outcome, status: int
) -> None:
    judgements = judge(results(nginx, sniproxy), committed)
    assert [judgement.outcome for judgement in judgements] == [outcome]
    assert exit_status(judgements) == status


def test_what_has_grown_for_certain_counts_before_what_may_have() -> None:
    judgements = [Judgement("a", 1.0, 2.0, outcome) for outcome in (Outcome.UNSURE, Outcome.GROWN)]
    assert exit_status(judgements) == 1


def test_a_metric_of_sniproxy_alone_is_not_judged() -> None:
    alone = Results(("nginx", "sniproxy"), ("log",), {"log": {"sniproxy": [Sample({"log_on": 90.0})]}})
    assert judge(alone, {}) == []


def test_the_last_document_that_has_a_metric_says_what_it_was() -> None:
    """A run of some workloads does not take back what an earlier one says of the others."""

    def document(**ratios: float | None) -> dict[str, Any]:
        return {"summary": {key: {"sniproxy": {"ratio": ratio}} for key, ratio in ratios.items()}}

    documents = [document(short_cpu=1.5, idle_memory=0.1), document(short_cpu=1.2, idle_memory=None), document()]
    assert newest_ratios(documents) == {"short_cpu": 1.2, "idle_memory": 0.1}


def test_the_committed_results_are_of_metrics_that_still_exist() -> None:
    """Or the guard would compare with nothing, and always pass."""
    known = {metric.key for workload in WORKLOADS.values() for metric in workload.metrics}
    assert set(committed_ratios()) <= known


def test_a_judgement_reads_as_a_line() -> None:
    assert str(Judgement("CPU", 1.0, 1.234, Outcome.GROWN)).split() == ["CPU", "1.00", "->", "1.23", "grown"]
    assert str(Judgement("CPU", None, 1.234, Outcome.NEW)).split()[:4] == ["CPU", "-", "->", "1.23"]
