"""Where a path leads: the directory entries that decide which file it names, and what that file is now.

`policy.yaml` in a ConfigMap's volume is a link to `..data/policy.yaml`, and `..data` one to a folder with a date.
Whoever wants to know when such a path names another file has to look at every entry on the way: the link, the link
that it leads through, and the file at the end. A glob adds each of its matches, and the folder they are in.
"""

import fnmatch
import glob
import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# As many links as the kernel follows in one path (path_resolution(7)).
_MAX_LINKS = 40


class Step(NamedTuple):
    """One entry on the way: a name, or a glob of names, in a directory without links in its path."""

    directory: str
    entry: str
    is_last: bool

    def has(self, name: str) -> bool:
        """Whether this step is about the entry `name` of its directory."""
        if not glob.has_magic(self.entry):
            return name == self.entry
        return _is_match(name, self.entry)


def _is_match(name: str, pattern: str) -> bool:
    """As glob.glob has it: a star matches no leading dot."""
    return fnmatch.fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))


def steps(path: str) -> Iterator[Step]:
    """Every step of the way to `path`, which may be a glob, as far as it leads today."""
    return _walk("/", _names(os.path.join(os.getcwd(), path)), _MAX_LINKS)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _walk(directory: str, names: list[str], links: int) -> Iterator[Step]:
    for number, name in enumerate(names):
        rest = names[number + 1 :]
        if name == "..":
            directory = os.path.dirname(directory)
            continue
        yield Step(directory, name, is_last=not rest)
        if glob.has_magic(name):
            for match in _matches(directory, name):
                yield from _walk(directory, [match, *rest], links)
            return
        here = os.path.join(directory, name)
        try:
            if stat.S_ISLNK(os.lstat(here).st_mode):
                if links:
                    target = os.readlink(here)
                    start = "/" if target.startswith("/") else directory
                    yield from _walk(start, [*_names(target), *rest], links - 1)
                return
        except OSError:
            return  # it leads no further
        directory = here


def _matches(directory: str, pattern: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if _is_match(name, pattern))
    except OSError:
        return []


class Signature(NamedTuple):
    """What a file is: the same numbers mean the same contents, as far as stat(2) can tell."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


Look = dict[str, Signature | None]


def look(paths: Iterable[str]) -> Look:
    """The signature of every file that the paths and globs name now; None where there is none."""
    found: Look = {}
    for path in paths:
        for name in glob.glob(path) if glob.has_magic(path) else [path]:
            found[name] = _signature(name)
    return found


def _signature(path: str) -> Signature | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
