"""The metrics: what is counted where, and sums that say so."""

import pytest

from sniproxy.observe.metrics import (
    ACCEPTED,
    ACTIVE,
    BYTES,
    CATALOGUE,
    CLOSED,
    CONNECTION_SECONDS,
    DENIED,
    DNS_CACHE,
    DNS_SECONDS,
    FAILED,
    GENERATION,
    HEARTBEAT,
    HELLO_SECONDS,
    INTERNAL,
    LOG_DROPPED,
    OPENED,
    SERVING,
    SHED,
    SLOTS,
    Kind,
    Meter,
    Metric,
    Sample,
    labelled_totals,
    new_scoreboard,
    read_samples,
    slot_of,
)
from sniproxy.observe.scoreboard import Scoreboard
from sniproxy.outcome import Event, Reason


@pytest.fixture
def board() -> Scoreboard:
    return new_scoreboard(2)


@pytest.fixture
def meter(board: Scoreboard) -> Meter:
    return Meter(board.workers[0])


def sample(board: Scoreboard, metric: Metric) -> Sample:
    (found,) = [sample for sample in read_samples(board) if sample.metric is metric]
    return found


def series(board: Scoreboard, metric: Metric) -> dict[str, float]:
    """What is counted under each value of the family's label; those of nothing are left out."""
    return {labels[0] if labels else "": count for labels, count in sample(board, metric).series if count}


def ended(board: Scoreboard) -> dict[str, dict[str, float]]:
    """The three families that ended connections are counted in."""
    return {
        "denied": {labels[-1]: count for labels, count in labelled_totals(board, DENIED) if count},
        "failed": series(board, FAILED),
        "closed": series(board, CLOSED),
    }


FAMILIES = {Event.DENY: "denied", Event.FAIL: "failed", Event.CLOSE: "closed"}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_counted_in_exactly_one_family(reason: Reason, board: Scoreboard, meter: Meter) -> None:
    meter.accepted()
    meter.ended(reason, "policy.yaml", "r")
    meter.settle()
    expected: dict[str, dict[str, float]] = {"denied": {}, "failed": {}, "closed": {}}
    expected[FAMILIES[reason.event]] = {reason.word: 1.0}
    assert ended(board) == expected


def test_a_refusal_is_counted_by_policy_rule_and_reason(board: Scoreboard, meter: Meter) -> None:
    meter.ended(Reason.RULE, "policy.yaml", "no-english")
    meter.ended(Reason.RULE, "policy.yaml", "no-english")
    meter.ended(Reason.DEFAULT, "none", "none")
    assert [it for it in labelled_totals(board, DENIED) if it[1]] == [
        (("none", "none", "default"), 1.0),
        (("policy.yaml", "no-english", "rule"), 2.0),
    ]


def test_a_connection_is_active_from_accept_to_end(board: Scoreboard, meter: Meter) -> None:
    told = []

    def tell() -> None:
        meter.settle()
        told.append(sample(board, ACTIVE).series)

    meter.accepted()
    meter.accepted()
    tell()
    meter.opened()
    meter.ended(Reason.DONE, "p", "r")
    tell()
    meter.ended(Reason.NO_SNI, "none", "none")
    tell()
    assert told == [(((), 2.0),), (((), 1.0),), (((), 0.0),)]
    assert (series(board, ACCEPTED), series(board, OPENED)) == ({"": 2.0}, {"": 1.0})


def test_amounts_are_added(board: Scoreboard, meter: Meter) -> None:
    meter.received.add(300.0)
    meter.received.add(20.0)
    meter.sent.add(4711.0)
    meter.shed(1.0)
    meter.log_dropped(7.0)
    meter.dns_cache_hit(1.0)
    meter.dns_cache_miss(1.0)
    meter.dns_cache_miss(1.0)
    meter.dns_cache_stale(1.0)
    meter.settle()
    assert {metric.name: series(board, metric) for metric in (BYTES, SHED, LOG_DROPPED, DNS_CACHE)} == {
        "sniproxy_bytes": {"received": 320.0, "sent": 4711.0},
        "sniproxy_connections_shed": {"": 1.0},
        "sniproxy_access_log_dropped_lines": {"": 7.0},
        "sniproxy_dns_cache_requests": {"hit": 1.0, "miss": 2.0, "stale": 1.0},
    }


def test_a_duration_is_counted_in_the_first_bucket_that_holds_it(board: Scoreboard, meter: Meter) -> None:
    """A bound belongs to its bucket, and what is past every bound to the last."""
    bounds = HELLO_SECONDS.buckets
    for seconds in (0.0, bounds[0], bounds[0] * 1.01, bounds[-1], bounds[-1] * 2):
        meter.hello_seconds.observe(seconds)
    meter.settle()
    histogram = sample(board, HELLO_SECONDS)
    counts = dict(zip((*bounds, float("inf")), histogram.bucket_counts, strict=True))
    assert {bound: count for bound, count in counts.items() if count} == {
        bounds[0]: 2.0,
        bounds[1]: 1.0,
        bounds[-1]: 1.0,
        float("inf"): 1.0,
    }
    assert histogram.total == pytest.approx(bounds[0] * 2.01 + bounds[-1] * 3)


def test_each_histogram_has_slots_of_its_own(board: Scoreboard, meter: Meter) -> None:
    meter.hello_seconds.observe(1.0)
    meter.dns_seconds.observe(2.0)
    meter.dns_seconds.observe(2.0)
    meter.connection_seconds.observe(1e6)
    meter.settle()
    told = {metric: sample(board, metric) for metric in (HELLO_SECONDS, DNS_SECONDS, CONNECTION_SECONDS)}
    assert [(sum(it.bucket_counts), it.total) for it in told.values()] == [(1.0, 1.0), (2.0, 4.0), (1.0, 1e6)]


def test_the_row_has_what_was_counted_once_it_is_settled(board: Scoreboard, meter: Meter) -> None:
    """The worker itself knows at once how many connections it has."""
    meter.accepted()
    meter.accepted()
    assert (meter.active, series(board, ACTIVE)) == (2.0, {})
    meter.settle()
    meter.ended(Reason.DONE, "p", "r")
    assert (meter.active, series(board, ACTIVE)) == (1.0, {"": 2.0})
    meter.settle()
    meter.settle()
    assert (meter.active, series(board, ACTIVE)) == (1.0, {"": 1.0})


def test_what_was_counted_of_connections_can_be_told_before_all_else(board: Scoreboard, meter: Meter) -> None:
    """The limit holds for all workers together, and what a killed one takes with it adds up."""
    meter.accepted()
    meter.opened()
    meter.sent.add(100.0)
    meter.settle_connections()
    assert [series(board, metric) for metric in (ACCEPTED, ACTIVE, OPENED, BYTES)] == [{"": 1.0}] * 3 + [{}]
    meter.ended(Reason.DONE, "p", "r")
    meter.settle_connections()
    assert (series(board, ACTIVE), series(board, CLOSED), meter.is_settled) == ({}, {"done": 1.0}, False)
    meter.settle()
    assert (series(board, BYTES), meter.is_settled) == ({"sent": 100.0}, True)


def test_all_workers_are_summed(board: Scoreboard) -> None:
    for row in board.workers:
        meter = Meter(row)
        meter.accepted()
        meter.ended(Reason.RULE, "p", "r")
        meter.connect_seconds.observe(1.0)
        meter.settle()
    assert series(board, ACCEPTED) == {"": 2.0}
    assert ended(board) == {"denied": {"rule": 2.0}, "failed": {}, "closed": {}}


def test_a_successor_counts_on(board: Scoreboard) -> None:
    for _ in range(2):
        meter = Meter(board.workers[0])
        meter.accepted()
        meter.ended(Reason.IDLE_TIMEOUT, "p", "r")
        meter.ended(Reason.RULE, "p", "r")
        meter.settle()
    assert ended(board) == {"denied": {"rule": 2.0}, "failed": {}, "closed": {"idle_timeout": 2.0}}


def test_a_worker_says_that_it_lives_and_serves(board: Scoreboard, meter: Meter) -> None:
    meter.beat()
    meter.serving(yes=True)
    assert board.workers[0].slots[slot_of(HEARTBEAT)] > 0
    assert [row.slots[slot_of(SERVING)] for row in board.workers] == [1.0, 0.0]


def test_the_generation_in_force_is_the_one_that_every_worker_has(board: Scoreboard, meter: Meter) -> None:
    """Not the newest that one of them has taken, and none before all have one."""
    meter.in_force(7)
    assert series(board, GENERATION) == {}
    Meter(board.workers[1]).in_force(6)
    assert series(board, GENERATION) == {"": 6.0}


def test_no_two_series_share_a_slot() -> None:
    taken = [slot for metric in CATALOGUE for slot in range(slot_of(metric), slot_of(metric) + metric.slots)]
    assert taken == list(range(SLOTS))


def test_every_family_is_read_but_the_internal_ones(board: Scoreboard) -> None:
    assert [sample.metric for sample in read_samples(board)] == [it for it in CATALOGUE if it not in INTERNAL]


def test_a_label_takes_only_words_that_we_chose() -> None:
    words = {reason.word for reason in Reason} | {"received", "sent", "hit", "miss", "stale"}
    assert {value for metric in CATALOGUE for value in metric.values} <= words
    assert {metric.name for metric in CATALOGUE if metric.kind is Kind.HISTOGRAM and metric.label} == set()
