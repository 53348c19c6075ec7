"""The DNS cache: how long an outcome may be believed, and what brings an answer back."""

from sniproxy.names import ServerName
from sniproxy.net.dns_cache import STALE_RECHECK, Answer, DnsCache, Entry, Failure, FailureKind, Outcome

NAME = ServerName("en.wikipedia.org")
ANSWER = Answer(("185.15.59.224",), ttl=60)
GONE = Failure(FailureKind.NXDOMAIN, "gone", ttl=5)
SILENCE = Failure(FailureKind.TIMEOUT, "silence", ttl=1)
BROKEN = Failure(FailureKind.FAILED, "broken", ttl=1)


def outcome_at(cache: DnsCache, now: float) -> Outcome | None:
    entry = cache.find(NAME, now)
    return entry.outcome if entry else None


def test_an_outcome_is_fresh_for_its_time_to_live_and_not_a_moment_longer() -> None:
    for outcome in (ANSWER, GONE, SILENCE):
        cache = DnsCache(10, stale_ttl=0)
        cache.settle(NAME, outcome, now=1000)
        expected = [outcome, outcome, None]
        assert expected == [outcome_at(cache, 1000 + age) for age in (0, outcome.ttl - 0.001, outcome.ttl)]


def test_an_expired_answer_is_not_used_while_nobody_knows_whether_the_servers_fail() -> None:
    cache = DnsCache(10, stale_ttl=600)
    cache.settle(NAME, ANSWER, now=0)
    assert cache.find(NAME, now=61) is None


# What the next lookup came to, the moment of it, and what askers get right after. The answer expires at 60,
# and may be used for 600 seconds more.
AFTER_EXPIRY: dict[str, tuple[Outcome, float, Outcome]] = {
    "a new answer replaces it": (Answer(("185.15.59.225",), 60), 100, Answer(("185.15.59.225",), 60)),
    "silence brings it back": (SILENCE, 100, ANSWER),
    "an error brings it back": (BROKEN, 100, ANSWER),
    "a name that is gone is gone": (GONE, 100, GONE),
    "after its last moment silence is silence": (SILENCE, 660, SILENCE),
}


def test_what_becomes_of_an_expired_answer() -> None:
    for case, (outcome, now, expected) in AFTER_EXPIRY.items():
        cache = DnsCache(10, stale_ttl=600)
        cache.settle(NAME, ANSWER, now=0)
        returned = cache.settle(NAME, outcome, now)
        assert (expected, expected) == (returned.outcome, outcome_at(cache, now)), case


def test_a_stale_answer_serves_until_its_last_moment_and_asks_for_rechecks() -> None:
    """However often the servers fail, `stale_ttl` is counted from when the answer expired."""
    cache = DnsCache(10, stale_ttl=600)
    cache.settle(NAME, ANSWER, now=0)
    cache.settle(NAME, SILENCE, now=100)
    assert Entry(ANSWER, 660, 660, recheck_at=100 + STALE_RECHECK) == cache.find(NAME, now=100)
    cache.settle(NAME, SILENCE, now=200)
    assert Entry(ANSWER, 660, 660, recheck_at=200 + STALE_RECHECK) == cache.find(NAME, now=659)
    assert cache.find(NAME, now=660) is None


def test_a_failure_is_never_brought_back() -> None:
    cache = DnsCache(10, stale_ttl=600)
    cache.settle(NAME, GONE, now=0)
    assert cache.settle(NAME, SILENCE, now=10).outcome == SILENCE


def test_the_least_recently_used_name_is_forgotten() -> None:
    cache = DnsCache(2, stale_ttl=0)
    first, second, third = (ServerName(f"{letter}.test") for letter in "abc")
    cache.settle(first, ANSWER, now=0)
    cache.settle(second, ANSWER, now=0)
    cache.find(first, now=1)
    cache.settle(third, ANSWER, now=2)
    known = [name for name in (first, second, third) if cache.find(name, now=3)]
    assert ([first, third], 2) == (known, len(cache))


def test_an_outcome_that_is_never_fresh_takes_no_room() -> None:
    """Nor does it drive out a name that is still good."""
    cache = DnsCache(1, stale_ttl=0)
    cache.settle(NAME, ANSWER, now=0)
    passing = Failure(FailureKind.FAILED, "too many", ttl=0)
    assert passing == cache.settle(ServerName("other.test"), passing, now=1).outcome
    assert outcome_at(cache, now=1) == ANSWER
