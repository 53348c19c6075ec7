"""What the benchmark of decisions asks, and how it reports."""

from itertools import islice

from bench.decisions import FORMATS, Subject, report, requests, subject
from sniproxy.outcome import Reason
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Allowed, Rulebook


def engines(rules: int) -> dict[str, Engine]:
    return {name: Engine.of(Rulebook(tuple(make(number) for number in range(rules)))) for name, make in FORMATS.items()}


def test_no_request_is_asked_twice() -> None:
    """Or what is remembered would be measured, too."""
    for rules in (10, 1_000):
        asked = islice(requests(rules), 20_000)
        assert len({(request.server_name, request.identity) for request in asked}) == 20_000


def test_both_formats_decide_alike() -> None:
    """They are the same rules."""
    own, istio = engines(100).values()
    for request in islice(requests(100), 1_000):
        assert isinstance(own.decide(request), Allowed) is isinstance(istio.decide(request), Allowed)


def test_every_kind_of_decision_is_among_those_measured() -> None:
    for rules in (10, 1_000):
        engine = engines(rules)["own"]
        decisions = [engine.decide(request) for request in islice(requests(rules), 5_000)]
        allowed = sum(isinstance(decision, Allowed) for decision in decisions)
        refused = {decision.reason for decision in decisions if not isinstance(decision, Allowed)}
        assert 0.3 < allowed / 5_000 < 0.6
        assert refused == {Reason.RULE, Reason.DEFAULT}


def measured(name: str, rules: int, times: list[float]) -> Subject:
    it = subject(name, rules, [])
    it.compile_seconds, it.size, it.adopt_milliseconds = 1.5, 60_000_000, 0.25
    it.uncached, it.remembered = times, [0.2] * len(times)
    return it


def test_the_report_has_medians_spread_and_the_ratio_of_each_round() -> None:
    subjects = [
        measured(name, rules, times)
        for name in FORMATS
        for rules, times in ((10, [2.0, 1.0, 4.0]), (1_000, [2.0, 2.0, 2.0]), (20, [3.0, 2.0, 4.0]))
    ]
    lines = list(report(subjects))
    assert lines[1].split() == ["own", "10", "2.00", "(1.00", "to", "4.00)", "0.20", "1.50", "60.0", "0.25"]
    assert lines[-2:] == ["own: 20 rules take 1.50 x the time of 10", "istio: 20 rules take 1.50 x the time of 10"]
