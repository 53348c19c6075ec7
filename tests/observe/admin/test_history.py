"""The history: what the chart is drawn from."""

from sniproxy.observe.admin.history import History
from sniproxy.observe.metrics import Meter, new_scoreboard
from sniproxy.outcome import Reason


def test_a_sample_has_the_counts_of_all_workers() -> None:
    board = new_scoreboard(2)
    history = History(board)
    history.take()
    for row in board.workers:
        meter = Meter(row)
        for _ in range(4):
            meter.accepted()
        meter.opened()
        meter.ended(Reason.RULE, "p", "r")
        meter.ended(Reason.DNS_TIMEOUT, "none", "none")
        meter.settle()
    history.take()
    assert [counts for _, *counts in history.samples] == [[0, 0, 0, 0], [4, 2, 2, 2]]


def test_it_goes_back_ten_minutes_and_no_more() -> None:
    history = History(new_scoreboard(1))
    for _ in range(400):
        history.take()
    assert len(history.samples) == 300
