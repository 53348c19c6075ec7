"""The reloader: decides when the files are read, and that what was read is what they say.

1. A change waits until it is quiet for a moment, so that files which change together are read together; in a storm of
   changes it does not wait for ever.
2. No file may be open for writing, whoever asked for the reading. It waits for the last close, and says so when that
   takes long.
3. The files are read by a process of its own, one at a time.
4. What changes meanwhile makes the reading worthless, for it may have seen some files before and some after: it begins
   anew. Only files that go on changing, each time whole, are let through after a while, or they would never be read.
5. The result is handed out once, and tells what to watch from then on.

It is a part of the supervisor's loop: it never waits, and wants to be asked by `step` when one of its descriptors is
readable, and when `seconds_left` are over.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import structlog

from sniproxy.reload.generation import Place, Reading, Unreadable
from sniproxy.reload.places import look
from sniproxy.reload.reader import ReaderFailedError
from sniproxy.reload.watcher import Watching

_log = structlog.get_logger()

_QUIET_SECONDS = 0.05
_STORM_SECONDS = 0.3

# How often to look at open files: of a writer that was there before us, the kernel may not tell.
_LOOK_SECONDS = 0.25
_PATIENCE_SECONDS = 2.0  # until we say that we wait

# From the first change until a reading that others overtake is good enough.
_OVERTAKEN_SECONDS = 5.0

NO_POLICY = -1

# Of a list in the log.
_TOLD = 20

# The largest policies take half a minute of a slow machine's time.
_MAX_READING_SECONDS = 600.0


class ReaderProcess(Protocol):
    """What the reloader needs of a reader."""

    def fileno(self) -> int: ...
    def is_over(self) -> bool: ...
    def outcome(self) -> tuple[Reading | Unreadable, int]: ...
    def abandon(self) -> None: ...
    def let_go(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one reading. `policy` is the descriptor of the compiled policy, and the caller's to close."""

    outcome: Reading | Unreadable | ReaderFailedError
    policy: int
    files: tuple[str, ...]  # that had changed; none if somebody asked
    since: float  # when it began to be wanted, by the monotonic clock


class _Wish:
    """A reading that is wanted: since when, and for which changes. Without one it is due at once."""

    def __init__(self, now: float) -> None:
        self.since = self.due = now
        self.files: set[str] = set()
        self.waits_since = math.inf  # for open files
        self.has_said_so = False
        self._storm_ends = math.inf

    def add(self, now: float, files: set[str]) -> None:
        self._storm_ends = min(self._storm_ends, now + _STORM_SECONDS)
        self.due = min(now + _QUIET_SECONDS, self._storm_ends)
        self.files |= files

    def take_over(self, other: "_Wish") -> None:
        """Stand for another one, too, which was granted in vain."""
        self.since = other.since
        self.files |= other.files


class Reloader:
    """Reads by `begin`, which starts a reader. `clock` is monotonic; tests bring their own."""

    def __init__(
        self, begin: Callable[[], ReaderProcess], watching: Watching, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._begin = begin
        self._watching = watching
        self._clock = clock
        self._wish: _Wish | None = None
        self._reader: ReaderProcess | None = None
        self._granted = _Wish(0.0)  # what the reader was begun for
        self._began = 0.0
        self._next_look = 0.0
        self._paths: tuple[str, ...] = ()

    def descriptors(self) -> Iterator[int]:
        if self._watching.descriptor is not None:
            yield self._watching.descriptor
        if self._reader is not None:
            yield self._reader.fileno()

    def ask(self) -> None:
        """Somebody wants the files to be read, changed or not."""
        if self._wish is None:
            self._wish = _Wish(self._clock())

    def close(self) -> None:
        """End what is under way."""
        if self._reader is not None:
            self._reader.abandon()
            self._reader = None
        self._watching.close()

    def let_go(self) -> None:
        """In a process that was forked: close the descriptors, and leave the rest to the one that they are for."""
        if self._reader is not None:
            self._reader.let_go()
        self._watching.close()

    def seconds_left(self) -> float:
        """Until the next step, if no descriptor wants one before."""
        due = self._clock() + self._watching.seconds_left()
        if self._reader is not None:
            due = min(due, self._began + _MAX_READING_SECONDS)
        elif self._wish is not None:
            due = min(due, max(self._wish.due, self._next_look))
        return max(0.0, due - self._clock())

    def step(self) -> Result | None:
        """Do what is due. The result of a reading that has come to its end."""
        # Before anything that a reader said is believed: it may have read what was just being written.
        if changed := self._watching.changes():
            self._want(changed)
        if self._reader is not None:
            return self._finish(self._reader)
        if self._wish is not None and self._clock() >= max(self._wish.due, self._next_look):
            return self._read_if_whole(self._wish)
        return None

    def _want(self, files: set[str]) -> None:
        now = self._clock()
        self._wish = self._wish or _Wish(now)
        self._wish.add(now, files)
        self._next_look = 0.0
        if self._reader is not None and self._is_overtaken():
            self._reader.abandon()
            self._reader = None
            self._wish.take_over(self._granted)

    def _is_overtaken(self) -> bool:
        return self._clock() < self._granted.since + _OVERTAKEN_SECONDS or bool(self._watching.open_files())

    def _read_if_whole(self, wish: _Wish) -> Result | None:
        now = self._clock()
        if open_files := self._watching.open_files():
            self._next_look = now + _LOOK_SECONDS
            wish.waits_since = min(wish.waits_since, now)
            if not wish.has_said_so and now >= wish.waits_since + _PATIENCE_SECONDS:
                wish.has_said_so = True
                _log.warning("reload waits for files that are open for writing", files=open_files[:_TOLD])
            return None
        self._granted, self._wish, self._began = wish, None, now
        try:
            self._reader = self._begin()
        except OSError as error:  # no more processes, or descriptors
            return self._result(ReaderFailedError(f"no process can be started to read the files: {error.strerror}"))
        return None

    def _finish(self, reader: ReaderProcess) -> Result | None:
        outcome: Reading | Unreadable | ReaderFailedError
        policy = NO_POLICY
        if reader.is_over():
            self._reader = None
            try:
                outcome, policy = reader.outcome()
                self._aim(outcome.place, keep=isinstance(outcome, Unreadable))
            except ReaderFailedError as error:
                outcome = error
        elif self._clock() < self._began + _MAX_READING_SECONDS:
            return None
        else:
            self._reader = None
            reader.abandon()
            outcome = ReaderFailedError(f"reading the files took more than {_MAX_READING_SECONDS:g} seconds")
        return self._result(outcome, policy)

    def _result(self, outcome: Reading | Unreadable | ReaderFailedError, policy: int = NO_POLICY) -> Result:
        return Result(outcome, policy, tuple(sorted(self._granted.files)), self._granted.since)

    def _aim(self, place: Place, *, keep: bool) -> None:
        """Watch what was read from; after a failure also what was before, for the mend may be there."""
        self._paths = tuple(dict.fromkeys((*place.paths, *(self._paths if keep else ()))))
        self._watching.aim(self._paths)
        now = look(place.paths)
        # What has changed between the reading and the watching has raised no event.
        if changed := {path for path in now.keys() | place.seen if now.get(path) != place.seen.get(path)}:
            self._want(changed)
