"""The scoreboard: counts that workers share, that outlive a worker, and that cannot grow."""

from hypothesis import given
from hypothesis import strategies as st

from sniproxy.observe.scoreboard import Row, Scoreboard, UndecidedCounts

WIDTH = 3
MOST_LABELS = 511  # sets of labels that a worker's table has room for, beside `other`


def board(workers: int = 2) -> Scoreboard:
    return Scoreboard(workers, 4, [WIDTH, WIDTH])


def totals(of: Scoreboard) -> dict[tuple[str, ...], float]:
    """The labelled counts, without those that are nothing."""
    return {labels: count for labels, count in of.labelled_totals(0).items() if count}


def test_a_total_is_the_sum_over_all_workers() -> None:
    shared = board(3)
    for number, row in enumerate(shared.workers):
        row.slots[1] += 10.0**number
    assert [shared.total(slot) for slot in range(4)] == [0.0, 111.0, 0.0, 0.0]


def test_labelled_counts_are_added_by_their_labels() -> None:
    shared = board()
    first, second = (row.labelled(0) for row in shared.workers)
    first.add(("p", "r", "rule"))
    first.add(("p", "r", "rule"))
    second.add(("p", "r", "rule"))
    second.add(("p", "s", "rule"))
    assert totals(shared) == {("p", "r", "rule"): 3.0, ("p", "s", "rule"): 1.0}


def test_labels_may_be_empty_or_hold_any_letters() -> None:
    shared = board()
    written = [("", "", ""), ("p.yaml", "früh", "rule"), ("a b", "\U0001d400" * 100, "rule")]
    for labels in written:
        shared.workers[0].labelled(0).add(labels)
    assert totals(shared) == dict.fromkeys(written, 1.0)


def test_a_successor_goes_on_where_its_predecessor_ended() -> None:
    """Both count in one row; the labels of the first are found again, and none stands there twice."""
    shared = board()
    for _ in range(2):
        worker = shared.workers[0]
        worker.slots[0] += 5
        counts = worker.labelled(0)
        counts.add(("p", "r", "rule"))
        counts.add(("p", "s", "rule"))
    assert shared.total(0) == 10.0
    assert totals(shared) == {("p", "r", "rule"): 2.0, ("p", "s", "rule"): 2.0}
    assert len(list(shared.workers[0].labelled_counts(0))) == 3  # with `other`


def test_labels_past_the_size_of_the_table_are_counted_as_other() -> None:
    shared = board(1)
    counts = shared.workers[0].labelled(0)
    for number in range(MOST_LABELS + 100):
        counts.add(("p", str(number), "rule"))
    counts.add(("p", "0", "rule"))
    told = totals(shared)
    assert (len(told), told["other", "other", "other"], told["p", "0", "rule"]) == (MOST_LABELS + 1, 100.0, 2.0)


def test_labels_that_are_too_long_for_a_row_are_counted_as_other() -> None:
    shared = board(1)
    shared.workers[0].labelled(0).add(("p" * 600, "r", "rule"))
    assert totals(shared) == {("other", "other", "other"): 1.0}


def test_reading_writes_nothing() -> None:
    """The admin process reads rows of workers that have not begun."""
    shared = board(1)
    assert shared.labelled_totals(0) == {}
    assert list(shared.workers[0].labelled_counts(0)) == []


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["a", "b", "c"]))))
def test_no_count_is_lost_or_made(events: list[tuple[int, str]]) -> None:
    shared = board()
    for worker, name in events:
        shared.workers[worker].slots[0] += 1
        shared.workers[worker].labelled(0).add((name, name, name))
    assert shared.total(0) == sum(totals(shared).values()) == len(events)


# Undecided connections.


def undecided(shared: Scoreboard, limit: int) -> list[UndecidedCounts]:
    """What each worker counts by."""
    return [UndecidedCounts(shared.workers, row, limit) for row in shared.workers]


def test_a_source_is_limited_in_all_workers_together() -> None:
    first, second = undecided(board(), 3)
    assert [first.enter("10.0.0.1"), second.enter("10.0.0.1"), first.enter("10.0.0.1")] == [True, True, True]
    assert [first.enter("10.0.0.1"), second.enter("10.0.0.1")] == [False, False]


def test_one_source_takes_nothing_from_another() -> None:
    first, second = undecided(board(), 1)
    others = [
        f"10.0.0.{number}" for number in range(2, 100) if hash(f"10.0.0.{number}") % 16384 != hash("10.0.0.1") % 16384
    ]
    assert first.enter("10.0.0.1")
    assert second.enter(others[0])


def test_who_leaves_makes_room_in_every_worker() -> None:
    first, second = undecided(board(), 1)
    assert first.enter("10.0.0.1")
    assert not second.enter("10.0.0.1")
    first.leave("10.0.0.1")
    assert second.enter("10.0.0.1")


def test_the_limit_may_change_while_some_wait() -> None:
    (counts,) = undecided(board(1), 1)
    assert [counts.enter("10.0.0.1"), counts.enter("10.0.0.1")] == [True, False]
    counts.limit = 2
    assert [counts.enter("10.0.0.1"), counts.enter("10.0.0.1")] == [True, False]
    counts.limit = 1
    counts.leave("10.0.0.1")
    assert not counts.enter("10.0.0.1")


def test_what_was_refused_is_not_counted() -> None:
    (counts,) = undecided(board(1), 1)
    assert counts.enter("10.0.0.1")
    assert [counts.enter("10.0.0.1") for _ in range(5)] == [False] * 5
    counts.leave("10.0.0.1")
    assert counts.enter("10.0.0.1")


def test_a_dead_worker_gives_back_what_it_held_and_no_other_does() -> None:
    shared = board()
    dead, alive = undecided(shared, 2)
    assert dead.enter("10.0.0.1")
    assert alive.enter("10.0.0.1")
    UndecidedCounts.clear(shared.workers[0])
    assert [sum(undecided_of(row)) for row in shared.workers] == [0, 1]
    assert alive.enter("10.0.0.1")
    assert not alive.enter("10.0.0.1")


def undecided_of(row: Row) -> list[int]:
    return list(row.undecided)


def test_each_table_counts_for_itself() -> None:
    """Even when one of them is full."""
    shared = board()
    full, other = (shared.workers[0].labelled(table) for table in (0, 1))
    for number in range(1000):
        full.add((f"p{number}", "r", "rule"))
    other.add(("p", "r", "rule"))
    assert {("p", "r", "rule"): 1.0} == {labels: count for labels, count in shared.labelled_totals(1).items() if count}
