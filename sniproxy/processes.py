"""Processes and signals, for a parent that is one plain loop: no event loop and no thread, so that it may always fork.

A signal is kept until the loop looks, and wakes it through a socket. A child starts with the default handlers and
none of its parent's signals: they are blocked while it is forked.
"""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

# What the parent handles, and a child starts without.
HANDLED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1})
# Of these, what a child does not heed unless it says so: its parent turns them into what they mean for it.
_IGNORED = frozenset({signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})

# Of the real-time signals only the first and the last have one.
_SIGNAL_NAMES = {int(number): number.name for number in signal.Signals}

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
# A process that has lived this long starts over with the first pause.
_STABLE_SECONDS = 10.0


class Signals:
    """The signals of HANDLED, kept until they are taken. `fileno()` is readable when there are some.

    A context manager: at its end they do what they did before.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._arrived: set[int] = set()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        for end in (self._reader, self._writer):
            end.setblocking(False)
        # The socket only wakes: a storm that fills it loses no signal, for each has its place in the set.
        self._before_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in HANDLED:
            self._before[number] = signal.signal(number, lambda number, _frame: self._arrived.add(number))
        # A lease that is broken is no concern of ours (see reload.watcher), and must not end us.
        self._before[signal.SIGIO] = signal.signal(signal.SIGIO, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before_wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what signal() itself gave
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        return self._reader.fileno()

    def take(self) -> set[int]:
        """The signals since we asked."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        arrived = self._arrived
        self._arrived = set()
        return arrived


def heed_no_more() -> None:
    """Hold back every signal that still comes: on its way out a process has no handlers, and must not die of one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def fork(work: Callable[[], None]) -> int:
    """Do `work` in a new process, which ends with it: 0 if it returned, 1 if it raised. The pid."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            _live(work)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    return pid


def _live(work: Callable[[], None]) -> None:
    """The life of a child. Never returns into its parent's frames."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        # A terminal's ^C and its end go to the whole group.
        for number, handler in dict.fromkeys(HANDLED, signal.SIG_DFL).items():
            signal.signal(number, signal.SIG_IGN if number in _IGNORED else handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def cause_of(status: int) -> str:
    """How a process ended, from what waitpid(2) says."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"signal {_SIGNAL_NAMES.get(number, number)}"
    return f"exit {os.WEXITSTATUS(status)}"


@dataclass(slots=True)
class Child:
    """A process that is to run: forked, and forked again when it dies, later and later if it keeps dying."""

    name: str
    pid: int = 0
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float = 0.0  # when to start it, while it is not running

    def start(self, work: Callable[[], None]) -> None:
        self.started, self.due = time.monotonic(), 0.0
        self.pid = fork(work)

    def kill(self, number: signal.Signals) -> None:
        if self.pid:
            os.kill(self.pid, number)

    def has_ended(self, *, wait: bool = False) -> str:
        """How it has ended, which is told once; "" while it runs."""
        if not self.pid:
            return ""
        pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
        if not pid:
            return ""
        self.pid = 0
        return cause_of(status)

    def plan_restart(self) -> None:
        now = time.monotonic()
        self.pause = _FIRST_PAUSE if now - self.started > _STABLE_SECONDS else min(self.pause * 2, _LONGEST_PAUSE)
        self.due = now + self.pause
