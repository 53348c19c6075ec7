"""The publisher: what becomes a generation, what is only told, and what the metrics say of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from sniproxy.config.model import AccessLog, Config, Limits
from sniproxy.config.yaml_source import BadInputError, Problem
from sniproxy.net.listener import CannotOpenError
from sniproxy.observe.metrics import RELOAD_SUCCESS, RELOAD_TIME, new_scoreboard, slot_of
from sniproxy.publisher import Publisher, first_reading
from sniproxy.reload.channel import new_channel
from sniproxy.reload.fanout import Fanout
from sniproxy.reload.generation import Unreadable
from sniproxy.reload.reader import ReaderFailedError
from tests.net.loopback import open_descriptors
from tests.reload.readings import NOWHERE, new_policy, reading, result


class World:
    """A publisher with its first generation, a process that has it, and the metrics."""

    def __init__(self) -> None:
        self.slots = new_scoreboard(1).supervisor.slots
        self.fanout = Fanout()
        self.publisher = Publisher(reading(), new_policy(), 2, self.fanout, self.slots)
        outbox, self.inbox = new_channel()
        self.fanout.add("worker", outbox)
        self._confirm()

    def _confirm(self) -> None:
        self.inbox.confirm(self.publisher.generation.number)
        self.fanout.collect()

    def take(self, outcome: object, *files: str) -> list[EventDict]:
        """What is logged when a reading ends, and after all processes have taken what came of it."""
        with capture_logs() as logs:
            self.publisher.take(result(outcome, *files))  # type: ignore[arg-type]
            self.publisher.tell_if_in_force()
            while (got := self.inbox.receive()) is not None:
                os.close(got.policy)
            self._confirm()
            self.publisher.tell_if_in_force()
            self.publisher.tell_if_in_force()
        return logs

    @property
    def success(self) -> float:
        return float(self.slots[slot_of(RELOAD_SUCCESS)])


@pytest.fixture
def its() -> Iterator[World]:
    before = open_descriptors()
    world = World()
    yield world
    world.fanout.close()
    world.inbox.close()
    assert before == open_descriptors()


def problems(count: int) -> Unreadable:
    return Unreadable(NOWHERE, tuple(Problem("policy.yaml", line, "is wrong") for line in range(1, count + 1)))


def test_the_first_generation_is_number_one(its: World) -> None:
    assert (its.publisher.generation.number, its.fanout.newest, its.success) == (1, 1, 1.0)
    assert its.slots[slot_of(RELOAD_TIME)] > 1.6e9


def test_what_is_new_becomes_the_next_generation(its: World) -> None:
    """It is told once it is in force everywhere, and not before."""
    (line,) = its.take(reading(digest=b"new"), "policy.yaml")
    assert (line["event"], line["generation"], line["rules"], line["files"]) == ("reloaded", 2, 0, ("policy.yaml",))
    assert its.publisher.generation.number == 2


def test_a_new_config_is_new_too(its: World) -> None:
    its.take(reading(Config(limits=Limits(connections=7))))
    generation = its.publisher.generation
    assert (generation.number, generation.config.limits.connections, generation.connection_limit) == (2, 7, 7)


def test_what_is_the_same_is_no_generation(its: World) -> None:
    (line,) = its.take(reading(), "policy.yaml")
    assert (line["event"], line["generation"]) == ("reload found nothing new", 1)


def test_what_is_bad_is_told_and_changes_nothing(its: World) -> None:
    """Every problem by file and line, up to a bound, and what is in force."""
    (line,) = its.take(problems(30), "policy.yaml")
    assert (line["event"], line["log_level"], line["more"]) == ("reload failed", "error", 10)
    assert line["problems"] == [f"policy.yaml:{number}: is wrong" for number in range(1, 21)]
    assert line["consequence"] == "generation 1 stays in force"
    assert (its.publisher.generation.number, its.success) == (1, 0.0)


def test_a_reader_that_died_is_a_failure_too(its: World) -> None:
    (line,) = its.take(ReaderFailedError("it died"))
    assert (line["event"], line["problems"], its.success) == ("reload failed", ["it died"], 0.0)


@pytest.mark.parametrize(("digest", "number"), [(b"same", 1), (b"new", 2)])
def test_a_failure_is_over_when_the_files_are_good_again(its: World, digest: bytes, number: int) -> None:
    """Whether they are what they were, or others."""
    its.take(problems(1))
    its.take(reading(digest=digest))
    assert (its.publisher.generation.number, its.success) == (number, 1.0)


def test_what_needs_a_restart_is_told_and_the_rest_is_taken(its: World) -> None:
    lines = its.take(reading(Config(workers=7, limits=Limits(connections=7))))
    assert [(line["event"], line.get("change")) for line in lines] == [
        ("a change needs a restart", "workers: 7 takes the place of auto after the restart"),
        ("reloaded", None),
    ]
    config = its.publisher.generation.config
    assert (config.workers, config.limits.connections) == ("auto", 7)


def test_a_change_that_waits_for_the_restart_is_not_told_again_by_itself(its: World) -> None:
    """The files are what they were last time, though not all of it is in force."""
    its.take(reading(Config(workers=7)))
    assert [line["event"] for line in its.take(reading(Config(workers=7)))] == ["reload found nothing new"]


def test_a_log_that_cannot_be_written_is_a_failure(its: World, tmp_path: Path) -> None:
    """No worker is to find that out."""
    path = f"{tmp_path}/nowhere/access.log"
    (line,) = its.take(reading(Config(access_log=(AccessLog(path=path),))))
    assert line["problems"] == [f"cannot write access_log.path {path}: no such file or directory"]
    assert its.publisher.generation.number == 1


def test_warnings_are_told_up_to_a_bound(its: World) -> None:
    warnings = tuple(Problem("policy.yaml", line, "is odd") for line in range(1, 31))
    lines = its.take(reading(digest=b"new", warnings=warnings))
    assert [line["event"] for line in lines] == ["doubtful input"] * 20 + ["more doubtful input", "reloaded"]
    assert (lines[0]["problem"], lines[20]["count"]) == ("policy.yaml:1: is odd", 10)


def test_no_start_without_good_files() -> None:
    with pytest.raises(BadInputError) as caught:
        first_reading(result(problems(30)))
    assert len(caught.value.problems) == 30


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (ReaderFailedError("it died"), "it died"),
        (reading(Config(access_log=(AccessLog(path="/"),))), "cannot write access_log.path /: is a directory"),
    ],
)
def test_no_start_without_what_the_system_has_to_give(outcome: Exception, message: str) -> None:
    found = result(outcome)
    with pytest.raises(CannotOpenError, match=f"^{message}$"):
        first_reading(found)
    if found.policy >= 0:
        os.close(found.policy)
