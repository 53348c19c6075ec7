"""What a worker remembers: the newest and the most frequent connections, within bounds that no client moves."""

import pytest

from sniproxy.identity.spiffe import parse_principal
from sniproxy.observe import bulletin
from sniproxy.observe.metrics import new_scoreboard
from sniproxy.observe.recent import LATEST, Recent, Remembered
from sniproxy.observe.scoreboard import Scoreboard
from sniproxy.observe.sketch import Counted
from sniproxy.outcome import Event, Reason
from sniproxy.policy.model import DryRun, Ground
from sniproxy.record import Record

RULE = Ground("policy.yaml", "no-english", "policy.yaml", 7)


@pytest.fixture
def board() -> Scoreboard:
    return new_scoreboard(2)


def record(name: str, reason: Reason = Reason.RULE, principal: str = "cluster.local/ns/default/sa/sleep") -> Record:
    it = Record(1, "10.1.2.3", 0.0)
    it.server_name, it.identity, it.ground = name, parse_principal(principal), RULE
    it.end(reason, "a sentence")
    return it


def names(board: Scoreboard, event: Event) -> list[str]:
    return [entry["sni"] for entry in Remembered(board.workers).latest(event)]


def test_a_refusal_is_told_with_its_rule_and_where_it_is_written(board: Scoreboard) -> None:
    recent = Recent(board.workers[1])
    recent.ended(record("en.wikipedia.org"), 5.0)
    recent.publish()
    (entry,) = Remembered(board.workers).latest(Event.DENY)
    del entry["time"]
    assert entry == {
        "worker": 1,
        "event": "deny",
        "sni": "en.wikipedia.org",
        "principal": "cluster.local/ns/default/sa/sleep",
        "sourceIp": "10.1.2.3",
        "destination": "",
        "reason": "rule",
        "detail": "a sentence",
        "policy": "policy.yaml",
        "rule": "no-english",
        "file": "policy.yaml",
        "line": 7,
        "wouldDeny": False,
    }


def test_what_monitor_mode_let_pass_says_so(board: Scoreboard) -> None:
    recent, passed = Recent(board.workers[0]), record("en.wikipedia.org")
    passed.dry_run = DryRun(True, Reason.RULE, RULE)
    recent.opened(passed)
    recent.publish()
    assert [entry["wouldDeny"] for entry in Remembered(board.workers).latest(Event.OPEN)] == [True]


def test_the_newest_of_all_workers_stand_first(board: Scoreboard) -> None:
    for number, row in enumerate(board.workers):
        recent = Recent(row)
        for second in range(3):
            recent.ended(record(f"{number}.{second}"), float(second * 10 + number))
        recent.publish()
    assert names(board, Event.DENY) == ["1.2", "0.2", "1.1", "0.1", "1.0", "0.0"]


def test_each_event_has_a_list_of_its_own_and_a_close_has_none(board: Scoreboard) -> None:
    """A served connection was told of when it was opened."""
    recent = Recent(board.workers[0])
    recent.opened(record("served"))
    recent.ended(record("served", Reason.DONE), 2.0)
    recent.ended(record("refused", Reason.DEFAULT), 3.0)
    recent.ended(record("failed", Reason.DNS_TIMEOUT), 4.0)
    recent.publish()
    assert {event: names(board, event) for event in Event if event is not Event.CLOSE} == {
        Event.OPEN: ["served"],
        Event.DENY: ["refused"],
        Event.FAIL: ["failed"],
    }


def test_names_and_principals_are_counted_by_what_became_of_them(board: Scoreboard) -> None:
    for row in board.workers:
        recent = Recent(row)
        recent.opened(record("a", principal="t/x"))
        recent.opened(record("b", principal="t/x"))
        recent.opened(record("a", principal="t/y"))
        recent.ended(record("c", principal="t/z"), 1.0)
        recent.publish()
    assert Remembered(board.workers).top(2) == {
        "openedNames": [Counted("a", 4, 0), Counted("b", 2, 0)],
        "openedPrincipals": [Counted("t/x", 4, 0), Counted("t/y", 2, 0)],
        "refusedNames": [Counted("c", 2, 0)],
        "refusedPrincipals": [Counted("t/z", 2, 0)],
    }


def test_a_successor_goes_on_with_the_counts_of_a_worker_that_died(board: Scoreboard) -> None:
    for _ in range(2):
        recent = Recent(board.workers[0])
        recent.opened(record("a"))
        recent.publish()
    assert Remembered(board.workers).top(1)["openedNames"] == [Counted("a", 2, 0)]


def test_nothing_new_is_not_written(board: Scoreboard) -> None:
    recent = Recent(board.workers[0])
    recent.opened(record("a"))
    recent.publish()
    bulletin.write(board.workers[0].bulletin, b"")
    recent.publish()
    assert names(board, Event.OPEN) == []


def test_a_hostile_client_fills_the_bulletin_and_no_more(board: Scoreboard) -> None:
    """The longest names, as sent, and the longest principals, all different, of which one writes six bytes a letter."""
    recent = Recent(board.workers[0])
    for number in range(2000):
        hostile = record("\0" * 60_000, Reason.INVALID_SNI, f"{'t' * 200}{number}/{'p' * 1700}")
        hostile.detail = "\x1b" * 60_000
        recent.ended(hostile, float(number))
    recent.publish()
    assert all(len(it.server_name) <= 255 and len(it.detail) <= 300 for _, it in recent._denied)
    assert 0 < len(names(board, Event.DENY)) <= LATEST
    assert 0 < len(bulletin.read(board.workers[0].bulletin)) <= bulletin.ROOM
