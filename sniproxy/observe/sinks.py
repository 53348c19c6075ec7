"""Where access log lines go: a file, a pipe, a terminal, a socket or a syslog. No writer ever waits for one.

What a sink does not take now waits in memory, up to a bound. Past that, and where the sink fails, lines are dropped
and counted, and the operational log tells it once: when it begins, and when it is over.
"""

import errno
import fcntl
import os
import select
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from sniproxy.config.model import SYSLOG

MAX_BATCH: Final = 64 * 1024  # bytes
_MAX_WAITING: Final = 1 << 20  # bytes

# In the place of a descriptor.
_NOT_OPEN: Final = -1

# A loss is over when lines have been written again, and none was lost for so many seconds.
_CALM_SECONDS = 1.0

_log = structlog.get_logger()


class Losses:
    """Counts the lines that one sink drops, and tells of them without flooding the operational log."""

    def __init__(self, path: str, count: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._count = count
        self._clock = clock
        self._lines = 0
        self._last = 0.0
        self._is_told = False
        self.may_end = False  # lines are being written again

    def add(self, lines: int, cause: str) -> None:
        self._count(lines)
        self._lines += lines
        self._last = self._clock()
        self.may_end = False
        if not self._is_told:
            self._is_told = True
            _log.warning("access log lines are being dropped", path=self._path, cause=cause)

    def note_written(self) -> None:
        """The sink has taken everything that there was."""
        self.may_end = self._is_told
        if self._is_told and self._clock() - self._last >= _CALM_SECONDS:
            _log.info("access log lines are written again", path=self._path, dropped=self._lines)
            self._is_told = self.may_end = False
            self._lines = 0


class Sink:
    """Takes lines, and writes them when it is told to.

    `failure` is why the last attempt failed, and "" if it did not.
    """

    def __init__(self, path: str, losses: Losses) -> None:
        self.path = path
        self.losses = losses
        self.waiting = 0  # bytes
        self.failure = ""

    def add(self, line: bytes, level: str = "") -> None:
        """Keep a line for the next `flush`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write what can be written now."""
        raise NotImplementedError

    def reopen(self) -> bool:
        """Open the path anew, as after it was renamed; whether there was any need. Raises OSError, and goes on."""
        return False

    def close(self) -> None:
        """Write what can be written now, and drop the rest."""
        raise NotImplementedError

    def _has_room(self, size: int) -> bool:
        if self.waiting + size <= _MAX_WAITING:
            return True
        self.losses.add(1, "its reader is too slow")
        return False


def open_sink(path: str, on_dropped: Callable[[float], None], *, may_come: bool = False) -> Sink:
    """The sink for a path of the config. Raises OSError, unless it `may_come` later, as a syslog always may."""
    losses = Losses(path, on_dropped)
    return SyslogSink(path, losses) if path.startswith(SYSLOG) else FileSink(path, losses, may_come=may_come)


class FileSink(Sink):
    """Writes batches of whole lines to one file, pipe, terminal or stream socket.

    A pipe that several workers share gets at most PIPE_BUF bytes in a write, for longer ones tear each other's lines
    (pipe(7)); a file opened for appending takes any size at once. One that `may_come` is looked for at each flush.
    """

    def __init__(self, path: str, losses: Losses, *, may_come: bool = False) -> None:
        super().__init__(path, losses)
        self._lines: list[bytes] = []
        self._torn = b""  # what a write left of its batch
        self._is_broken = False  # the sink may have the beginning of a line whose end was dropped
        self._fd = _NOT_OPEN
        self._is_file = False
        self._max_write = select.PIPE_BUF
        try:
            self._use(*_open(path))
        except OSError:
            if not may_come:
                raise

    def _use(self, fd: int, must_ask: bool) -> None:
        self._fd = fd
        # Where writing could wait whatever we do, it is asked first whether it would.
        self._poll = _poll_of(fd) if must_ask else None
        mode = os.fstat(fd).st_mode
        self._is_file = stat.S_ISREG(mode)
        self._max_write = MAX_BATCH if self._is_file else select.PIPE_BUF
        # A socket that others share stays as it is, and is asked not to wait at each write.
        self._socket = socket.socket(fileno=fd) if stat.S_ISSOCK(mode) else None

    def add(self, line: bytes, level: str = "") -> None:  # noqa: ARG002 - a file has no levels
        if self._has_room(len(line)):
            self._lines.append(line)
            self.waiting += len(line)

    def flush(self) -> None:
        while self._lines or self._torn:
            batch, count = self._next_batch()
            try:
                written = self._write(batch)
            except BlockingIOError:
                return
            except OSError as error:
                self._drop_all(os.strerror(error.errno or errno.EIO))
                return
            self.failure = ""
            del self._lines[:count]
            self._torn = batch[written:]
            self.waiting -= written
            self._is_broken = bool(self._torn) and batch[written - 1 : written] != b"\n"
            if not self.waiting:
                self.losses.note_written()
        if self.losses.may_end:
            self.losses.note_written()

    def _write(self, batch: bytes) -> int:
        """How many bytes of the batch are written, 1 at least; BlockingIOError where that would mean to wait."""
        if self._fd == _NOT_OPEN:
            self._use(*_open(self.path))
        if self._is_broken and not self._torn:
            # Not the end that it was to have; but the next line begins a line of its own.
            if not self._ends_a_line():
                self._write_some(b"\n")
            self._is_broken = False
        return self._write_some(batch)

    def _ends_a_line(self) -> bool:
        """Whether the last line of a file is whole: another process that shares it may have seen to that."""
        if not self._is_file:
            return False
        try:
            with open(f"/proc/self/fd/{self._fd}", "rb") as file:  # ours is for writing alone
                return not file.seek(0, os.SEEK_END) or os.pread(file.fileno(), 1, file.tell() - 1) == b"\n"
        except OSError:
            return False

    def _write_some(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._poll is not None and not self._poll.poll(0):
            raise BlockingIOError
        return os.write(self._fd, data)

    def _next_batch(self) -> tuple[bytes, int]:
        """The bytes of the next write, and how many whole lines they take."""
        if self._torn:
            return self._torn, 0
        size = count = 0
        for line in self._lines:
            size += len(line)
            if size > self._max_write and count:
                break
            count += 1
        return b"".join(self._lines[:count]), count

    def _drop_all(self, failure: str) -> None:
        self.failure = failure
        self.losses.add(len(self._lines) + self._torn.count(b"\n"), failure.lower())
        self._lines.clear()
        self._torn = b""
        self.waiting = 0
        # Who shares a full disk with us may have got half a line into the file.
        self._is_broken |= self._is_file

    def reopen(self) -> bool:
        if self.path in _INHERITED:
            return False
        opened = _open(self.path)
        if self._fd == _NOT_OPEN:
            self._use(*opened)
            return True
        self.flush()
        if self.waiting or os.path.samestat(os.fstat(opened[0]), os.fstat(self._fd)):
            # A pipe that is read slowly, or a file that nobody has moved.
            os.close(opened[0])
            return False
        self._is_broken = False
        self._close_descriptor()
        self._use(*opened)
        return True

    def close(self) -> None:
        self.flush()
        if self.waiting:
            self._drop_all("the log was closed before its reader took every line")
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._fd == _NOT_OPEN:
            return
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)


# The descriptors that we inherited.
_INHERITED = {"/dev/stdout": 1, "/dev/stderr": 2}


def _open(path: str) -> tuple[int, bool]:
    """A descriptor for appending, and whether to ask before each write if it would wait.

    O_NONBLOCK belongs to the open file, which others may share, so that an inherited pipe or terminal is opened anew
    rather than changed under them.
    """
    inherited = _INHERITED.get(path)
    if inherited is None:
        # A pipe is opened for reading too, so that there always is a reader: opening it never waits, or fails, for one.
        mode = os.O_RDWR | os.O_NONBLOCK if _is_fifo(path) else os.O_WRONLY
        return os.open(path, mode | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o640), False
    can_wait = stat.S_ISFIFO(os.fstat(inherited).st_mode) or os.isatty(inherited)
    if can_wait:
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            return os.open(f"/proc/self/fd/{inherited}", flags), False
        except OSError:
            pass  # another user's
    return fcntl.fcntl(inherited, fcntl.F_DUPFD_CLOEXEC, 3), can_wait


def _poll_of(fd: int) -> select.poll:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


# RFC 3164, section 4.1.1: facility and severity. local7 is what nginx uses, too.
_LOCAL7 = 23 * 8
_PRIORITIES = {"error": _LOCAL7 + 3, "warning": _LOCAL7 + 4, "info": _LOCAL7 + 6}
# What sending says when the daemon has gone away: perhaps another one listens by now.
_GONE = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE})


class SyslogSink(Sink):
    """Sends each line as a datagram to a syslog daemon on this machine.

    The framing is that of syslog(3), which every such daemon reads from its socket: RFC 3164's, without the host.
    """

    def __init__(self, path: str, losses: Losses) -> None:
        super().__init__(path, losses)
        self._address = path.removeprefix(SYSLOG)
        self._socket: socket.socket | None = None
        self._datagrams: deque[bytes] = deque()
        self._tag = f"sniproxy[{os.getpid()}]: "
        self._second = 0
        self._stamp = ""

    def add(self, line: bytes, level: str = "info") -> None:
        datagram = f"<{_PRIORITIES[level]}>{self._timestamp()} {self._tag}".encode() + line.removesuffix(b"\n")
        if self._has_room(len(datagram)):
            self._datagrams.append(datagram)
            self.waiting += len(datagram)

    def _timestamp(self) -> str:
        """RFC 3164, section 4.1.2: Mmm dd hh:mm:ss, in local time, the day filled up with a space."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%b %e %H:%M:%S", time.localtime(second))
        return self._stamp

    def flush(self) -> None:
        while self._datagrams:
            try:
                self._send(self._datagrams[0])
            except BlockingIOError:
                return
            except OSError as error:
                self._drop(error.errno or errno.EIO)
                continue
            self.failure = ""
            self.waiting -= len(self._datagrams.popleft())
            if not self.waiting:
                self.losses.note_written()
        if self.losses.may_end:
            self.losses.note_written()

    def _send(self, datagram: bytes) -> None:
        if self._socket is not None:
            try:
                self._socket.send(datagram)
                return
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                self._disconnect()
        self._socket = self._connected()
        self._socket.send(datagram)

    def _connected(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._address)
        except OSError:
            sock.close()
            raise
        return sock

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _drop(self, code: int) -> None:
        """The one datagram that is too long, or all of them where there is nobody to take any."""
        self.failure = os.strerror(code)
        if code == errno.EMSGSIZE:
            self.waiting -= len(self._datagrams.popleft())
            self.losses.add(1, self.failure.lower())
            return
        self._disconnect()
        self._drop_all(self.failure.lower())

    def _drop_all(self, cause: str) -> None:
        self.losses.add(len(self._datagrams), cause)
        self._datagrams.clear()
        self.waiting = 0

    def close(self) -> None:
        self.flush()
        if self._datagrams:
            self._drop_all("the log was closed before the syslog took every line")
        self._disconnect()
