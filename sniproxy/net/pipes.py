"""Pipes for splice, leased by a direction only while bytes are in them.

A pipe is two descriptors and a quarter of a megabyte of kernel memory, so there are few of them and an idle connection
has none. `pipe-user-pages-soft` (pipe(7)) gives an unprivileged user 256 pipes of this size in all; past that limit
the kernel refuses to enlarge a pipe, and then it serves at the size that it has.
"""

import contextlib
import fcntl
import os
from typing import Final, NamedTuple

# Through 64 KiB, 256 KiB and 1 MiB splice costs about 500, 360 and 430 ms of CPU a gigabyte, with what the kernel does
# in ksoftirqd on its behalf: too small a pipe asks for more system calls, too large a one outruns the caches.
PIPE_SIZE: Final = 1 << 18


class Pipe(NamedTuple):
    reader: int
    writer: int


class PipePool:
    """At most `limit` pipes at once. They are kept for the next lease, for making one costs three system calls."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._made = 0
        self._free: list[Pipe] = []

    def lease(self) -> Pipe | None:
        """An empty pipe, or None when all are out or the process has no descriptor left."""
        if self._free:
            return self._free.pop()
        if self._made == self._limit:
            return None
        try:
            pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return None
        self._made += 1
        # Over the user's soft limit this is refused, and the pipe works at its own size.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Return an empty pipe."""
        self._free.append(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe that still has bytes of a connection that is over."""
        os.close(pipe.reader)
        os.close(pipe.writer)
        self._made -= 1

    def close(self) -> None:
        for pipe in self._free:
            self.discard(pipe)
        self._free.clear()
