"""The supervisor: opens the listeners, forks the workers and the admin process, and keeps them running.

It is one plain loop over signals, with no event loop and no thread, so that it can fork at any time. What it owns
outlives a worker: the listening sockets, with the connections that wait in them, and the scoreboard, with every
count. A worker that dies is replaced, later and later if it keeps dying, and the others never notice.
"""

import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog

from sniproxy.app import WorkerTask, run_worker
from sniproxy.config.model import Config
from sniproxy.config.units import UnixAddress
from sniproxy.connection import Snapshot
from sniproxy.net.guard import Endpoint, Guard
from sniproxy.net.listener import CannotOpenError, address_of, open_listener
from sniproxy.observe.access_log import LineFormat, LogIdentity, Sink
from sniproxy.observe.metrics import (
    ACTIVE,
    GENERATION,
    HEARTBEAT,
    LOST,
    RELOAD_SUCCESS,
    RELOAD_TIME,
    RESTARTS,
    SERVING,
    new_scoreboard,
    slot_of,
)
from sniproxy.observe.scoreboard import Scoreboard, UndecidedCounts
from sniproxy.policy.engine import Engine, Rulebook

_log = structlog.get_logger()

_STOP = {signal.SIGTERM, signal.SIGINT}
_SIGNALS = {*_STOP, signal.SIGCHLD, signal.SIGHUP}

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
# A process that has lived this long starts over with the first pause.
_STABLE_SECONDS = 10.0
# After the drain, this much more for lines to be written; then SIGKILL.
_GRACE_SECONDS = 5.0

# A connection is two sockets. Beside them a worker has its listeners, its logs, DNS, and the pipes.
_DESCRIPTORS_PER_CONNECTION = 2
_SPARE_DESCRIPTORS = 320


class _Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """A signal asks the supervisor to end."""


@dataclass(slots=True)
class _Child:
    """A process that is to run: forked, and forked again when it dies."""

    name: str
    work: Callable[[int], None]  # given the read end of the lifeline
    on_death: Callable[[], None]
    keeps: list[socket.socket]  # of the listening sockets; the others it closes, or they would outlive their workers
    pid: int = 0
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float = 0.0  # when to start it, while it is not running


@dataclass(slots=True)
class _Listeners:
    """The open sockets: for each address of the config, one a worker."""

    workers: int
    proxies: list[list[socket.socket]] = field(default_factory=list)
    admins: list[socket.socket] = field(default_factory=list)

    def every(self) -> Iterator[socket.socket]:
        for sockets in self.proxies:
            yield from sockets
        yield from self.admins


class Supervisor:
    """Runs one config until it is told to stop."""

    def __init__(self, config: Config, rulebook: Rulebook) -> None:
        self._config = config
        self._workers = worker_count(config)
        self._listeners = _Listeners(self._workers)
        self._board: Scoreboard = new_scoreboard(self._workers)
        self._rulebook = rulebook
        self._children: list[_Child] = []
        self._lifeline: tuple[int, int] = (-1, -1)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises CannotOpenError before anything is started."""
        try:
            self._try_access_log()
            self._open_listeners()
            self._start()
            self._watch()
        finally:
            self._close_listeners()
            self._remove_socket_files()

    # Starting.

    def _try_access_log(self) -> None:
        """Every worker will open it; one that cannot must be an error now, and not a worker that dies and dies."""
        path = self._config.access_log.path
        try:
            Sink(path, lambda _: None).close()
        except OSError as error:
            raise CannotOpenError(
                f"cannot write access_log.path {path}: {(error.strerror or str(error)).lower()}"
            ) from None

    def _open_listeners(self) -> None:
        config, listeners = self._config, self._listeners
        for listener in config.listeners:
            listeners.proxies.append(open_listener(listener.address, self._workers))
        for address in (config.admin.address, config.admin.metrics_address):
            if address is not None:
                listeners.admins += open_listener(address, 1)
        for sock in listeners.every():
            sock.set_inheritable(False)

    def _start(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        limit = connection_limit(self._config, self._workers)
        snapshot = Snapshot(self._config, Engine(self._rulebook), self._guard())
        own = self._board.supervisor.slots
        own[slot_of(GENERATION)] = own[slot_of(RELOAD_SUCCESS)] = 1.0
        own[slot_of(RELOAD_TIME)] = time.time()
        self._lifeline = os.pipe()
        for number in range(self._workers):
            self._children.append(self._worker(number, snapshot, limit))
        if self._listeners.admins:
            self._children.append(_Child("admin", self._run_admin, lambda: None, self._listeners.admins))
        # What is shared so far stays shared: the collector would write into every page of it.
        gc.collect()
        gc.freeze()
        _log.info(
            "listening",
            addresses=[str(address_of(sockets[0])) for sockets in self._listeners.proxies],
            admin=[str(address_of(sock)) for sock in self._listeners.admins],
            workers=self._workers,
            rules=len(self._rulebook.rules),
        )
        for child in self._children:
            self._fork(child)

    def _worker(self, number: int, snapshot: Snapshot, limit: int) -> _Child:
        sockets = [sockets[number] for sockets in self._listeners.proxies]
        listening = tuple(zip(self._config.listeners, sockets, strict=True))

        def work(lifeline: int) -> None:
            run_worker(WorkerTask(number, snapshot, listening, self._board, limit, lifeline))

        return _Child(f"worker {number}", work, lambda: self._bury_worker(number), sockets)

    def _run_admin(self, lifeline: int) -> None:
        # Loaded here and nowhere else: 20 MB that no worker needs.
        from sniproxy.observe.admin import AdminTask, run_admin  # noqa: PLC0415

        run_admin(AdminTask(self._board, self._listeners.admins, lifeline))

    def _guard(self) -> Guard:
        """The destination guard, which knows every address that this proxy listens on."""
        upstream = self._config.upstream
        own = [
            Endpoint(sock.getsockname()[0], sock.getsockname()[1], sock.family)
            for sock in self._listeners.every()
            if sock.family != socket.AF_UNIX
        ]
        return Guard(upstream.allow_networks, upstream.deny_networks, own)

    def _fork(self, child: _Child) -> None:
        child.started, child.due = time.monotonic(), 0.0
        sys.stdout.flush()
        sys.stderr.flush()
        child.pid = os.fork()
        if child.pid == 0:
            for sock in self._listeners.every():
                if sock not in child.keeps:
                    sock.close()
            _run_child(child, self._lifeline)

    # Watching.

    def _watch(self) -> None:
        """Replace what dies, until a signal asks to stop."""
        try:
            while True:
                self._handle(signal.sigtimedwait(_SIGNALS, self._time_to_next_start()))
                for child in self._children:
                    if not child.pid and time.monotonic() >= child.due:
                        self._fork(child)
        except _Stopped:
            self._stop()

    def _handle(self, info: signal.struct_siginfo | None) -> None:
        if info is None:
            return
        if info.si_signo in _STOP:
            _log.info("stopping", signal=signal.Signals(info.si_signo).name)
            raise _Stopped
        if info.si_signo == signal.SIGHUP:
            _log.warning("reload is not supported by this version; restart to read the config again")
        self._reap()

    def _time_to_next_start(self) -> float:
        due = [child.due for child in self._children if not child.pid]
        return max(0.0, min(due) - time.monotonic()) if due else 3600.0

    def _reap(self) -> None:
        for child, status in self._ended():
            lived = time.monotonic() - child.started
            child.pause = _FIRST_PAUSE if lived > _STABLE_SECONDS else min(child.pause * 2, _LONGEST_PAUSE)
            child.due = time.monotonic() + child.pause
            _log.error("process died", process=child.name, status=status, restart_in=child.pause)
            child.on_death()

    def _ended(self) -> Iterator[tuple[_Child, str]]:
        """The children that have ended since we looked, and how."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.pid == pid:
                    child.pid = 0
                    yield child, _cause(status)

    def _bury_worker(self, number: int) -> None:
        """Account for the connections that a dead worker took with it."""
        row = self._board.workers[number]
        lost = int(row.slots[slot_of(ACTIVE)])
        row.slots[slot_of(ACTIVE)] = row.slots[slot_of(HEARTBEAT)] = row.slots[slot_of(SERVING)] = 0.0
        own = self._board.supervisor.slots
        own[slot_of(LOST)] += lost
        own[slot_of(RESTARTS)] += 1
        UndecidedCounts.clear(row)
        sink = Sink(self._config.access_log.path, lambda _: None)
        form = LineFormat(LogIdentity.of(self._config.policy.gateway, os.environ), "supervisor")
        sink.add(form.worker_lost(number, lost))
        sink.close()

    # Stopping.

    def _stop(self) -> None:
        """Drain: nothing new comes in, and what is live has its time. The admin process tells of it to the end."""
        # Ours first: while a listener is open here the kernel accepts for nobody.
        self._close_listeners()
        admins = [child for child in self._children if child.work == self._run_admin]
        self._end([child for child in self._children if child not in admins], self._config.timeouts.drain)
        self._end(admins, 0.0)
        _log.info("stopped")

    def _end(self, children: list[_Child], seconds: float) -> None:
        """SIGTERM, `seconds` and some grace to end, then SIGKILL."""
        _signal_all(children, signal.SIGTERM)
        deadline = time.monotonic() + seconds + _GRACE_SECONDS
        while any(child.pid for child in children) and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, max(0.0, deadline - time.monotonic()))
            for child, status in self._ended():
                if status != "exit 0":
                    _log.error("process died while stopping", process=child.name, status=status)
                    child.on_death()
        _signal_all(children, signal.SIGKILL)
        for child in children:
            if child.pid:
                os.waitpid(child.pid, 0)
                child.pid = 0
                _log.error("process was killed", process=child.name)
                child.on_death()

    def _close_listeners(self) -> None:
        for sock in self._listeners.every():
            sock.close()

    def _remove_socket_files(self) -> None:
        for listener in self._config.listeners[: len(self._listeners.proxies)]:
            if isinstance(listener.address, UnixAddress):
                with contextlib.suppress(OSError):
                    os.unlink(listener.address.path)


def _signal_all(children: list[_Child], number: signal.Signals) -> None:
    for child in children:
        if child.pid:
            os.kill(child.pid, number)


def _run_child(child: _Child, lifeline: tuple[int, int]) -> None:
    """The life of a forked process. Never returns into the supervisor's frames."""
    status = 1
    try:
        os.close(lifeline[1])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        # A terminal's ^C goes to the whole group; the supervisor turns it into an orderly drain.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        child.work(lifeline[0])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit {os.WEXITSTATUS(status)}"


def worker_count(config: Config) -> int:
    """`workers`, or for auto: min(CPU affinity, ceil(cgroup cpu.max))."""
    if config.workers != "auto":
        return config.workers
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, _cgroup_cpus() or allowed))


def _cgroup_cpus() -> int | None:
    """The CPU quota of this cgroup (cgroup v2, cpu.max: "quota period" in microseconds), rounded up."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            path = next(line.strip()[3:] for line in file if line.startswith("0::"))
        with open(f"/sys/fs/cgroup{path}/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, StopIteration, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def connection_limit(config: Config, workers: int) -> int:
    """limits.connections, or as many as there are descriptors for, with a warning."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return config.limits.connections
    possible = max(1, (hard - _SPARE_DESCRIPTORS) // _DESCRIPTORS_PER_CONNECTION) * workers
    if config.limits.connections > possible:
        _log.warning(
            "limits.connections is more than there are descriptors for",
            configured=config.limits.connections,
            used=possible,
            descriptors=hard,
            mend="raise ulimit -n, or lower limits.connections",
        )
    return min(config.limits.connections, possible)
