"""How many workers and connections there is room for."""

import os
import resource
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from sniproxy.capacity import connection_limit, worker_count
from sniproxy.config.model import Config, Limits
from sniproxy.net.nameservers import question_sockets


def limited(connections: int) -> Config:
    return Config(limits=Limits(connections=connections))


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[tuple[int, int]]]:
    """Lets this process have so many descriptors, soft and hard; gives the limits that are set."""

    def have(soft: int, hard: int) -> list[tuple[int, int]]:
        limits_set: list[tuple[int, int]] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, limits: limits_set.append(limits))
        return limits_set

    return have


def test_a_number_of_workers_is_that_number() -> None:
    assert worker_count(Config(workers=7)) == 7


def test_auto_is_no_more_than_the_processors_we_may_use() -> None:
    assert 1 <= worker_count(Config()) <= len(os.sched_getaffinity(0))


def test_the_limit_is_what_the_config_says_where_there_is_room(
    descriptors: Callable[[int, int], list[tuple[int, int]]],
) -> None:
    descriptors(100_000, 100_000)
    with capture_logs() as logs:
        assert connection_limit(limited(1000), workers=1) == 1000
    assert logs == []


def test_it_is_lowered_to_what_there_is_room_for(descriptors: Callable[[int, int], list[tuple[int, int]]]) -> None:
    """Two descriptors a connection, in each worker, beside those for DNS, and some to spare; with a warning."""
    descriptors(4000, 4000)
    with capture_logs() as logs:
        assert connection_limit(limited(20_000), workers=2) == 4000 - 256 - question_sockets(4000) == 3244
    assert [(line["configured"], line["used"], line["descriptors"]) for line in logs] == [(20_000, 3244, 4000)]


def test_there_is_room_for_one_connection_however_few_descriptors_there_are(
    descriptors: Callable[[int, int], list[tuple[int, int]]],
) -> None:
    descriptors(100, 100)
    assert connection_limit(limited(20_000), workers=1) == 1


def test_what_we_may_have_is_taken(descriptors: Callable[[int, int], list[tuple[int, int]]]) -> None:
    limits_set = descriptors(1024, 100_000)
    assert (connection_limit(limited(1000), workers=1), limits_set) == (1000, [(100_000, 100_000)])


def test_a_machine_without_limits_has_none(descriptors: Callable[[int, int], list[tuple[int, int]]]) -> None:
    descriptors(1024, resource.RLIM_INFINITY)
    assert connection_limit(limited(10_000_000), workers=1) == 10_000_000
