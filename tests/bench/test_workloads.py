"""The workloads as a set, and what is read off a log."""

import json
from collections import Counter
from pathlib import Path

import pytest

from bench.sample import FULL, QUICK
from bench.workloads import DEFAULT_WORKLOADS, WORKLOADS, busiest_share


def write_log(path: Path, **connections: int) -> Path:
    lines = [{"connectionId": f"{process}-7f-{n}"} for process, count in connections.items() for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_busiest_worker_is_the_one_with_most_lines(tmp_path: Path) -> None:
    assert busiest_share(write_log(tmp_path / "log", a=60, b=40), workers=2) == 0.6


def test_a_worker_that_got_nothing_makes_the_other_have_it_all(tmp_path: Path) -> None:
    assert busiest_share(write_log(tmp_path / "log", a=10), workers=2) == 1.0


def test_more_processes_than_workers_are_no_spread(tmp_path: Path) -> None:
    """One has died, and its successor counts anew."""
    with pytest.raises(ValueError, match="3 processes"):
        busiest_share(write_log(tmp_path / "log", a=1, b=1, c=1), workers=2)


def test_every_metric_has_a_key_of_its_own() -> None:
    keys = Counter(metric.key for workload in WORKLOADS.values() for metric in workload.metrics)
    assert keys.total() == len(keys)


def test_the_full_run_has_a_hundred_thousand_connections_at_the_fixed_rate() -> None:
    assert FULL.rounds * FULL.rate * FULL.latency_seconds >= 100_000


def test_quick_levels_are_among_those_that_have_a_row() -> None:
    rows = {metric.key for metric in WORKLOADS["crowd"].metrics}
    assert {f"crowd_{level}" for level in (*FULL.levels, *QUICK.levels)} < rows


def test_what_must_be_reached_is_measured_by_default() -> None:
    """Each is a ratio to a peer, or a figure by itself."""
    targets = {
        metric.key: [(target.limit, target.of) for target in metric.targets]
        for name in DEFAULT_WORKLOADS
        for metric in WORKLOADS[name].metrics
        if metric.targets
    }
    assert targets == {
        "short_cpu": [(1.0, "nginx")],
        "stream_cpu": [(0.35, "nginx"), (0.7, "envoy")],
        "idle_memory": [(3.0, None)],
        "rest_memory": [(60.0, None)],
        "latency_p99": [(1.0, "nginx")],
        "roundtrip_added": [(1.1, "nginx")],
        "crowd_growth": [(1.15, None)],
        "workers_growth": [(1.1, None)],
        "workers_spread": [(55.0, None)],
        "shared_growth": [(1.1, None)],
        "shared_spread": [(55.0, None)],
        "log_cost": [(1.15, None)],
    }
