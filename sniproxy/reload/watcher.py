"""Watching files: which have changed, and which are still being written.

A file counts as whole when its last writer has closed it. One that was created or written to and not closed yet is
*open*, and must not be read: half a policy may be a valid one. So the watcher tells two things apart, what has
changed and what is open, and follows a file that is renamed while it is open.

inotify says all of that. Only directories are watched, for what happens to the entries that `places` names: a watch on
a file would stay with the old one when an editor or the kubelet puts a new one in its place. Where inotify cannot be
had, `Poller` looks once a second, and sees less.
"""

import contextlib
import errno
import fcntl
import math
import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from inotify_simple import Event, INotify, flags  # type: ignore[import-untyped]

from sniproxy.reload.places import Look, Step, look, steps

# What can happen to a directory on the way, and to the file at its end.
_ON_THE_WAY = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
_AT_THE_END = _ON_THE_WAY | flags.MODIFY | flags.CLOSE_WRITE | flags.ATTRIB
# MASK_ADD: two ways may lead through one directory. EXCL_UNLINK: a file that is gone is nobody's business.
_ALWAYS = flags.ONLYDIR | flags.EXCL_UNLINK | flags.MASK_ADD

# Files that are open for writing, or in the middle of a rename, and not ours: enough to follow any editor.
_MAX_STRANGERS = 1024

_POLL_SECONDS = 1.0

# A log in the same folder is written a hundred times a second: after news that is none, we listen no sooner.
_REST_SECONDS = 0.1


class Watching(Protocol):
    """What the reloader needs of a watcher."""

    @property
    def descriptor(self) -> int | None:
        """Readable when `changes` has something to tell; None while it has to be asked, after `seconds_left`."""

    def seconds_left(self) -> float:
        """Until it must be asked, if its descriptor does not say so before."""

    def aim(self, paths: Iterable[str]) -> None:
        """Watch these paths and globs from now on, instead of those before."""

    def changes(self) -> set[str]:
        """The files that something has happened to since we asked."""

    def open_files(self) -> list[str]:
        """The files that are still being written."""

    def close(self) -> None: ...


class _Entry(NamedTuple):
    """A name in a watched directory."""

    watch: int
    name: str


@dataclass(slots=True)
class _Watch:
    """A directory, and the entries that matter in it."""

    directory: str
    steps: list[Step] = field(default_factory=list)

    def has(self, name: str) -> bool:
        return any(step.has(name) for step in self.steps)


class CannotWatchError(Exception):
    """inotify cannot watch what it should; the message says why, and how to mend it."""


class Watcher:
    """Watches by inotify. Raises CannotWatchError where the kernel gives no more watches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rests_until = 0.0
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            raise _cannot_watch(error) from None
        self._watches: dict[int, _Watch] = {}
        self._paths: tuple[str, ...] = ()
        # Open files; True once something was written to them.
        self._open: dict[_Entry, bool] = {}
        # Open files that were moved away, by the cookie of the move; its other half may follow.
        self._moving: dict[int, bool] = {}

    @property
    def descriptor(self) -> int | None:
        return None if self.seconds_left() < math.inf else int(self._inotify.fileno())

    def seconds_left(self) -> float:
        left = self._rests_until - self._clock()
        return left if left > 0.0 else math.inf

    def close(self) -> None:
        self._inotify.close()

    def aim(self, paths: Iterable[str]) -> None:
        self._paths = tuple(paths)
        wanted: dict[str, list[Step]] = {}
        for path in self._paths:
            for step in dict.fromkeys(steps(path)):
                wanted.setdefault(step.directory, []).append(step)
        kept: dict[int, _Watch] = {}
        for directory, its_steps in wanted.items():
            number = self._watch(directory, any(step.is_last for step in its_steps))
            if number is not None:
                kept.setdefault(number, _Watch(directory)).steps.extend(its_steps)
        for number in self._watches.keys() - kept.keys():
            with contextlib.suppress(OSError):  # the kernel drops the watch of a directory that is gone
                self._inotify.rm_watch(number)
        self._watches = kept
        self._open = {entry: written for entry, written in self._open.items() if entry.watch in kept}

    def _watch(self, directory: str, is_last: bool) -> int | None:
        """The number of a directory's watch; None for one that we may not look into."""
        try:
            return int(self._inotify.add_watch(directory, (_AT_THE_END if is_last else _ON_THE_WAY) | _ALWAYS))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM) or (is_last and error.errno == errno.EACCES):
                raise _cannot_watch(error, directory) from None
            return None

    def changes(self) -> set[str]:
        changed: set[str] = set()
        events = self._inotify.read(timeout=0)
        for event in events:
            if event.mask & flags.Q_OVERFLOW:
                # What was lost may be a file's end of writing, or anything else.
                self._open.clear()
                changed.update(self._paths)
            elif event.mask & flags.IGNORED:
                if self._forget(event.wd):
                    changed.update(self._paths)
            elif (watch := self._watches.get(event.wd)) is not None:
                self._note(event, watch)
                if watch.has(event.name):
                    changed.add(os.path.join(watch.directory, event.name))
        if changed:
            self.aim(self._paths)  # the way may lead elsewhere now
        elif events:
            self._rests_until = self._clock() + _REST_SECONDS
        return changed

    def _forget(self, number: int) -> bool:
        """The kernel has dropped a watch: its directory is gone. Whether that was news."""
        self._open = {entry: written for entry, written in self._open.items() if entry.watch != number}
        return self._watches.pop(number, None) is not None

    def _note(self, event: Event, watch: _Watch) -> None:
        """Keep the books of open files."""
        if event.mask & flags.ISDIR:
            return
        entry, mask = _Entry(event.wd, event.name), event.mask
        if mask & flags.CREATE:
            if _is_regular(os.path.join(watch.directory, event.name)):
                self._open[entry] = False
        elif mask & flags.MODIFY:
            self._open[entry] = True
        elif mask & (flags.CLOSE_WRITE | flags.DELETE):
            self._open.pop(entry, None)
        elif mask & flags.MOVED_FROM:
            if entry in self._open:
                self._moving[event.cookie] = self._open.pop(entry)
        elif mask & flags.MOVED_TO:
            self._open.pop(entry, None)
            if event.cookie in self._moving:
                self._open[entry] = self._moving.pop(event.cookie)
        self._bound_books()

    def _bound_books(self) -> None:
        while len(self._moving) > _MAX_STRANGERS:
            del self._moving[next(iter(self._moving))]
        if len(self._open) > _MAX_STRANGERS:
            self._open = {entry: written for entry, written in self._open.items() if self._is_ours(entry)}

    def _is_ours(self, entry: _Entry) -> bool:
        watch = self._watches.get(entry.watch)
        return watch is not None and watch.has(entry.name)

    def open_files(self) -> list[str]:
        found = []
        for entry, was_written in list(self._open.items()):
            if not self._is_ours(entry):
                continue
            path = os.path.join(self._watches[entry.watch].directory, entry.name)
            if _is_whole(path, was_written):
                del self._open[entry]
            else:
                found.append(path)
        return found or _open_elsewhere(self._paths)


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_whole(path: str, was_written: bool) -> bool:
    """Whether a file that was created needs no close: it is gone, or it came by link(2), with its contents."""
    try:
        return not was_written and os.stat(path).st_size > 0
    except OSError:
        return True


def _open_elsewhere(paths: Iterable[str]) -> list[str]:
    """The files that some process has open for writing, where the kernel tells us."""
    return [path for path, signature in look(paths).items() if signature and is_open_for_writing(path)]


def is_open_for_writing(path: str) -> bool:
    """Whether a process has `path` open for writing. False where we may not know.

    A read lease is given only for a file that nobody writes (fcntl(2), F_SETLEASE), and only to the file's owner or
    to CAP_LEASE. A writer who comes in the moment that we hold it waits for that moment, and we get SIGIO, which the
    process must ignore. Network file systems refuse leases for reasons of their own.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN and not _is_remote(os.fstat(descriptor).st_dev)
    finally:
        os.close(descriptor)
    return False


def _is_remote(device: int) -> bool:
    """Whether a device is a network file system, by /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 1].startswith(("nfs", "cifs", "smb"))
    return False


def _cannot_watch(error: OSError, directory: str = "") -> CannotWatchError:
    what = f"cannot watch {directory or 'files'}: {(error.strerror or str(error)).lower()}"
    if error.errno in (errno.ENOSPC, errno.EMFILE):
        return CannotWatchError(f"{what}; raise fs.inotify.max_user_watches and fs.inotify.max_user_instances")
    return CannotWatchError(what)


class Poller:
    """Looks once a second. A file whose numbers have moved since the look before counts as open."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paths: tuple[str, ...] = ()
        self._seen: Look = {}
        self._moving: set[str] = set()
        self._due = 0.0

    @property
    def descriptor(self) -> int | None:
        return None

    def seconds_left(self) -> float:
        return max(0.0, self._due - self._clock())

    def close(self) -> None:
        """There is nothing to close."""

    def aim(self, paths: Iterable[str]) -> None:
        self._paths = tuple(paths)
        self._seen = look(self._paths)
        self._moving.clear()
        self._due = self._clock() + _POLL_SECONDS

    def changes(self) -> set[str]:
        if self._clock() < self._due:
            return set()
        before = self._seen
        self._seen = look(self._paths)
        self._due = self._clock() + _POLL_SECONDS
        changed = {path for path in before.keys() | self._seen if before.get(path) != self._seen.get(path)}
        self._moving = {path for path in changed if self._seen.get(path)}
        return changed

    def open_files(self) -> list[str]:
        return sorted(self._moving) or _open_elsewhere(self._paths)


class FileWatch:
    """Watches by inotify, and from the day that it cannot by polling; `on_fallback` is told why."""

    def __init__(self, on_fallback: Callable[[str], None], watcher: Callable[[], Watching] = Watcher) -> None:
        self._on_fallback = on_fallback
        self._watching: Watching
        try:
            self._watching = watcher()
        except CannotWatchError as error:
            self._fall_back(error)

    def _fall_back(self, error: CannotWatchError) -> None:
        self._on_fallback(str(error))
        self._watching = Poller()

    @property
    def descriptor(self) -> int | None:
        return self._watching.descriptor

    def seconds_left(self) -> float:
        return self._watching.seconds_left()

    def close(self) -> None:
        self._watching.close()

    def aim(self, paths: Iterable[str]) -> None:
        self._paths = tuple(paths)
        try:
            self._watching.aim(self._paths)
        except CannotWatchError as error:
            self._watching.close()
            self._fall_back(error)
            self._watching.aim(self._paths)

    def changes(self) -> set[str]:
        try:
            return self._watching.changes()
        except CannotWatchError:
            self.aim(self._paths)
            return set(self._paths)  # what had changed is lost with the watcher

    def open_files(self) -> list[str]:
        return self._watching.open_files()
