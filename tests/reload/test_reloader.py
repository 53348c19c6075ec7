"""When files are read, and which reading counts: the reloader with a clock moved by hand.

What watches and what reads do what a test says; `looks` alone sees real files.
"""

import errno
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sniproxy.config.yaml_source import Problem
from sniproxy.reload.generation import Place, Reading, Unreadable
from sniproxy.reload.places import look
from sniproxy.reload.reader import ReaderFailedError
from sniproxy.reload.reloader import Reloader, Result
from tests.reload.readings import NOWHERE, reading

QUIET, STORM = 0.05, 0.3


@dataclass
class Watch:
    """Tells of the changes and the open files that a test puts there."""

    changed: set[str] = field(default_factory=set)
    open: list[str] = field(default_factory=list)
    aims: list[tuple[str, ...]] = field(default_factory=list)
    descriptor: int | None = 7
    rest: float = math.inf
    is_closed: bool = False

    def seconds_left(self) -> float:
        return self.rest

    def aim(self, paths: Iterable[str]) -> None:
        self.aims.append(tuple(paths))

    def changes(self) -> set[str]:
        changed, self.changed = self.changed, set()
        return changed

    def open_files(self) -> list[str]:
        return self.open

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Read:
    """A reading under way, until a test says what came of it."""

    result: Reading | Unreadable | ReaderFailedError | None = None
    is_abandoned: bool = False

    def fileno(self) -> int:
        return 8

    def is_over(self) -> bool:
        assert not self.is_abandoned
        return self.result is not None

    def outcome(self) -> tuple[Reading | Unreadable, int]:
        if isinstance(self.result, ReaderFailedError):
            raise self.result
        assert self.result is not None
        return self.result, 9

    def abandon(self) -> None:
        assert not self.is_abandoned
        self.is_abandoned = True

    def let_go(self) -> None:
        raise AssertionError("nothing was forked")


class World:
    """A reloader, and all that it has to do with."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watch = Watch()
        self.reads: list[Read] = []
        self.cannot_begin = False
        self.reloader = Reloader(self._begin, self.watch, lambda: self.now)

    def _begin(self) -> Read:
        if self.cannot_begin:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.reads.append(Read())
        return self.reads[-1]

    def change(self, *files: str) -> Result | None:
        self.watch.changed = set(files)
        return self.reloader.step()

    def pass_(self, seconds: float) -> Result | None:
        """Let time pass as the supervisor's loop does: it asks when something is due."""
        end = self.now + seconds
        result = None
        while (left := self.reloader.seconds_left()) <= end - self.now and result is None:
            self.now += left
            result = self.reloader.step()
        self.now = end
        return result or self.reloader.step()

    def finish(self, result: Reading | Unreadable | ReaderFailedError) -> Result | None:
        self.reads[-1].result = result
        return self.reloader.step()


@pytest.fixture
def its() -> World:
    return World()


def test_nothing_is_read_until_somebody_asks(its: World) -> None:
    """And then at once."""
    assert (its.pass_(3600.0), its.reads, list(its.reloader.descriptors())) == (None, [], [7])
    its.reloader.ask()
    its.reloader.step()
    assert (len(its.reads), list(its.reloader.descriptors())) == (1, [7, 8])
    result = its.finish(reading())
    assert result == Result(reading(), 9, (), its.now)
    assert list(its.reloader.descriptors()) == [7]


def test_a_change_waits_until_it_is_quiet(its: World) -> None:
    """Files that change together are read together, and named together."""
    its.change("b")
    its.pass_(QUIET * 0.9)
    its.change("a")
    its.pass_(QUIET * 0.9)
    assert its.reads == []
    its.pass_(QUIET * 0.2)
    assert len(its.reads) == 1
    result = its.finish(reading())
    assert result is not None
    assert (result.files, round(result.since, 3)) == (("a", "b"), 100.0)


def test_a_storm_of_changes_is_not_waited_for(its: World) -> None:
    for _ in range(20):
        its.change("a")
        its.pass_(QUIET * 0.5)
        if its.reads:
            break
    assert round(its.now - 100.0, 6) <= STORM + QUIET


def test_a_storm_of_questions_is_two_readings(its: World) -> None:
    """One that is under way, and one that has seen all that was there at the last question."""
    for _ in range(1000):
        its.reloader.ask()
        its.reloader.step()
    assert len(its.reads) == 1
    its.finish(reading())
    its.pass_(0.0)
    assert len(its.reads) == 2
    its.finish(reading())
    its.pass_(10.0)
    assert len(its.reads) == 2


ASKS: dict[str, Callable[[World], object]] = {
    "it changed itself": lambda its: its.change("half"),
    "another file changed": lambda its: its.change("other"),
    "somebody asks": lambda its: its.reloader.ask(),
}


@pytest.mark.parametrize("case", ASKS)
def test_no_file_is_read_while_it_is_open_although(its: World, case: str) -> None:
    """It waits for the close, however long that takes, and says so after a while, once."""
    its.watch.open = ["half"]
    ASKS[case](its)
    with capture_logs() as logs:
        its.pass_(60.0)
    assert its.reads == []
    assert [(line["log_level"], line["files"]) for line in logs] == [("warning", ["half"])]
    its.watch.open = []
    its.change("half")
    its.pass_(QUIET)
    assert len(its.reads) == 1


def test_a_close_of_which_nothing_tells_is_found_out(its: World) -> None:
    its.watch.open = ["half"]
    its.reloader.ask()
    its.reloader.step()
    its.watch.open = []
    its.pass_(0.5)
    assert len(its.reads) == 1


def test_what_changes_while_it_is_read_is_read_anew(its: World) -> None:
    """The first reading may have seen some files before the change and some after it."""
    its.change("a")
    its.pass_(QUIET)
    its.change("b")
    assert its.reads[0].is_abandoned
    its.pass_(QUIET)
    result = its.finish(reading())
    assert result is not None
    assert (len(its.reads), result.files, round(result.since, 3)) == (2, ("a", "b"), 100.0)


def test_a_reading_that_has_just_ended_does_not_count_if_something_changed(its: World) -> None:
    """The change came first, though we hear of both at once."""
    its.reloader.ask()
    its.reloader.step()
    its.reads[0].result = reading()
    assert its.change("a") is None
    assert its.reads[0].is_abandoned


def test_files_that_go_on_changing_are_read_all_the_same(its: World) -> None:
    """After a while a reading is let through; the next one reads what has changed meanwhile."""
    its.change("a")
    its.pass_(QUIET)
    while its.now < 106.0:
        its.change("a")
        its.pass_(0.5)
    its.change("b")
    assert not its.reads[-1].is_abandoned
    result = its.finish(reading())
    assert result is not None
    assert result.files == ("a",)
    its.pass_(QUIET)
    result = its.finish(reading())
    assert result is not None
    assert result.files == ("a", "b")


def test_but_never_one_that_met_an_open_file(its: World) -> None:
    its.change("a")
    its.pass_(QUIET)
    while its.now < 106.0:
        its.change("a")
        its.pass_(0.5)
    its.watch.open = ["a"]
    its.change("a")
    assert its.reads[-1].is_abandoned


def test_what_was_read_is_watched(its: World) -> None:
    its.reloader.ask()
    its.reloader.step()
    its.finish(reading(place=Place(("config", "policy"), {"config": None, "policy": None})))
    assert its.watch.aims == [("config", "policy")]


def test_after_a_failure_the_old_files_are_watched_too(its: World) -> None:
    """The mend may be in either."""
    places = [Place((name, "config"), {name: None, "config": None}) for name in ("old", "new")]
    problem = Problem("config", 1, "is wrong")
    for outcome in (reading(place=places[0]), Unreadable(places[1], (problem,)), reading(place=places[1])):
        its.reloader.ask()
        its.reloader.step()
        result = its.finish(outcome)
        assert result is not None
        assert result.outcome == outcome
    assert its.watch.aims == [("old", "config"), ("new", "config", "old"), ("new", "config")]


def test_a_change_between_reading_and_watching_is_found(its: World, tmp_path: Path) -> None:
    """No event tells of it, for the folder was not watched yet."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("old")
    place = Place((str(policy),), look([str(policy)]))
    policy.write_text("newer")
    its.reloader.ask()
    its.reloader.step()
    its.finish(reading(place=place))
    its.pass_(QUIET)
    assert len(its.reads) == 2
    result = its.finish(reading(place=Place((str(policy),), look([str(policy)]))))
    its.pass_(10.0)
    assert (len(its.reads), result and result.files) == (2, (str(policy),))


def test_a_reader_that_dies_is_a_failure_and_no_reason_to_read_again(its: World) -> None:
    its.reloader.ask()
    its.reloader.step()
    error = ReaderFailedError("it died")
    assert its.finish(error) == Result(error, -1, (), its.now)
    its.pass_(3600.0)
    assert len(its.reads) == 1


def test_a_reader_that_cannot_be_started_is_a_failure(its: World) -> None:
    """The machine may have no process to spare; the next change tries again."""
    its.cannot_begin = True
    its.reloader.ask()
    result = its.reloader.step()
    assert result is not None
    assert str(result.outcome) == "no process can be started to read the files: Resource temporarily unavailable"
    its.cannot_begin = False
    its.change("a")
    its.pass_(QUIET)
    assert len(its.reads) == 1


def test_a_reader_that_takes_for_ever_is_ended(its: World) -> None:
    its.reloader.ask()
    its.reloader.step()
    assert its.pass_(599.0) is None
    result = its.pass_(2.0)
    assert result is not None
    assert str(result.outcome) == "reading the files took more than 600 seconds"
    assert its.reads[0].is_abandoned


def test_a_watcher_that_must_be_asked_is_asked(its: World) -> None:
    """One that polls has no descriptor that would wake the loop."""
    assert its.reloader.seconds_left() == math.inf
    its.watch.descriptor, its.watch.rest = None, 0.5
    assert (its.reloader.seconds_left(), list(its.reloader.descriptors())) == (0.5, [])


def test_at_the_end_nothing_goes_on(its: World) -> None:
    its.reloader.ask()
    its.reloader.step()
    its.reloader.close()
    assert (its.reads[0].is_abandoned, its.watch.is_closed) == (True, True)


def test_nowhere_is_nothing_to_watch(its: World) -> None:
    """The built-in config comes from no file."""
    its.reloader.ask()
    its.reloader.step()
    its.finish(reading(place=NOWHERE))
    assert its.watch.aims == [()]
