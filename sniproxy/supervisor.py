"""The supervisor: opens the listeners, forks the workers and the admin process, and keeps them running and of one mind.

It is one plain loop, with no event loop and no thread, so that it can fork at any time. What it owns outlives a
worker: the listening sockets, with the connections that wait in them, and the scoreboard, with every count. A worker
that dies is replaced, later and later if it keeps dying, and the others never notice.

What it runs is a generation of config and policy. `reload.reloader` has the files read anew when they change, and what
is good and different becomes the next generation, which `reload.fanout` brings to every process. What is bad is told,
and changes nothing.
"""

import contextlib
import gc
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import structlog

from sniproxy.app import WorkerTask, run_worker
from sniproxy.capacity import worker_count
from sniproxy.config.model import Config
from sniproxy.config.units import UnixAddress
from sniproxy.limits import LimitTable
from sniproxy.net.guard import Endpoint
from sniproxy.net.listener import address_of, open_listener
from sniproxy.observe.access_log import write_worker_lost
from sniproxy.observe.lines import LogIdentity
from sniproxy.observe.metrics import ACTIVE, HEARTBEAT, LOST, RESTARTS, SERVING, new_scoreboard, slot_of
from sniproxy.observe.scoreboard import Scoreboard, UndecidedCounts
from sniproxy.processes import Child, Signals, heed_no_more
from sniproxy.publisher import Publisher, first_reading
from sniproxy.reload.channel import Inbox, new_channel
from sniproxy.reload.fanout import Fanout
from sniproxy.reload.generation import Generation, Source
from sniproxy.reload.reader import Reader
from sniproxy.reload.reloader import Reloader, Result
from sniproxy.reload.watcher import FileWatch

_log = structlog.get_logger()

_STOP = {signal.SIGTERM, signal.SIGINT}

# How a process ends that was told to. One that is told before it can listen has nothing yet to bring to an end.
_ORDERLY = {"exit 0", "signal SIGTERM"}

# After the drain, this much more for lines to be written; then SIGKILL.
_GRACE_SECONDS = 5.0


class _Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """A signal asks the supervisor to end."""


@dataclass(slots=True, kw_only=True)
class _Process(Child):
    """A worker, or the admin process."""

    work: Callable[[Generation, Inbox], None]
    # Of the listening sockets. The others it closes, or they would outlive their own workers.
    keeps: Sequence[socket.socket]
    on_death: Callable[[], None] = lambda: None


@dataclass(slots=True)
class _Listeners:
    """The open sockets: for each address of the config, one a worker."""

    proxies: list[list[socket.socket]] = field(default_factory=list)
    admins: list[socket.socket] = field(default_factory=list)
    metrics: list[socket.socket] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # of Unix sockets

    def open(self, config: Config, workers: int) -> None:
        """Raises CannotOpenError."""
        for listener in config.listeners:
            self.proxies.append(open_listener(listener.address, workers))
            if isinstance(listener.address, UnixAddress):
                self.files.append(listener.address.path)
        for address, sockets in ((config.admin.address, self.admins), (config.admin.metrics_address, self.metrics)):
            if address is not None:
                sockets.extend(open_listener(address, 1))
            if isinstance(address, UnixAddress):
                self.files.append(address.path)
        for sock in self.every():
            sock.set_inheritable(False)

    def every(self) -> Iterator[socket.socket]:
        for sockets in self.proxies:
            yield from sockets
        yield from (*self.admins, *self.metrics)

    def endpoints(self) -> list[Endpoint]:
        """Every address that this proxy listens on."""
        return [
            Endpoint(sock.getsockname()[0], sock.getsockname()[1], sock.family)
            for sock in self.every()
            if sock.family != socket.AF_UNIX
        ]

    def close(self, *, but: Sequence[socket.socket] = ()) -> None:
        for sock in self.every():
            if sock not in but:
                sock.close()

    def remove_files(self) -> None:
        for path in self.files:
            with contextlib.suppress(OSError):
                os.unlink(path)


class Supervisor:
    """Runs what `source` says, as it changes, until it is told to stop."""

    _publisher: Publisher  # from the first generation on
    _board: Scoreboard
    _limits: LimitTable

    def __init__(self, source: Source) -> None:
        self._source = source
        self._signals = Signals()
        self._fanout = Fanout()
        self._reloader = Reloader(self._begin_reading, FileWatch(_tell_fallback))
        self._listeners = _Listeners()
        self._lifeline = os.pipe()
        self._processes: list[_Process] = []

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises BadInputError or CannotOpenError before anything is started."""
        with self._signals:
            try:
                self._prepare(self._first_result())
                self._start()
                while True:
                    self._turn()
            except _Stopped:
                self._stop()
                heed_no_more()
            finally:
                self._reloader.close()
                self._fanout.close()
                self._listeners.close()
                self._listeners.remove_files()
                for end in self._lifeline:
                    os.close(end)

    # Starting.

    def _first_result(self) -> Result:
        self._reloader.ask()
        while True:
            if (result := self._reloader.step()) is not None:
                return result
            self._wait(self._reloader.seconds_left())

    def _prepare(self, result: Result) -> None:
        reading = first_reading(result)
        workers = worker_count(reading.config)
        self._listeners.open(reading.config, workers)
        self._board = new_scoreboard(workers)
        self._limits = LimitTable(workers)
        self._publisher = Publisher(reading, result.policy, workers, self._fanout, self._board.supervisor.slots)
        self._processes = [self._worker(number) for number in range(workers)]
        if keeps := [*self._listeners.admins, *self._listeners.metrics]:
            self._processes.append(_Process(name="admin", work=self._run_admin, keeps=keeps))

    def _start(self) -> None:
        # What is shared so far stays shared: the collector would write into every page of it.
        gc.collect()
        gc.freeze()
        _log.info(
            "listening",
            addresses=[str(address_of(sockets[0])) for sockets in self._listeners.proxies],
            admin=[str(address_of(sock)) for sock in (*self._listeners.admins, *self._listeners.metrics)],
            workers=len(self._board.workers),
            rules=self._publisher.rules,
        )
        for process in self._processes:
            self._fork(process)

    def _worker(self, number: int) -> _Process:
        sockets = [sockets[number] for sockets in self._listeners.proxies]
        endpoints = self._listeners.endpoints()

        def work(generation: Generation, inbox: Inbox) -> None:
            board, limits, lifeline = self._board, self._limits, self._lifeline[0]
            run_worker(WorkerTask(number, generation, inbox, sockets, endpoints, board, limits, lifeline))

        return _Process(name=f"worker {number}", work=work, keeps=sockets, on_death=lambda: self._bury_worker(number))

    def _run_admin(self, generation: Generation, inbox: Inbox) -> None:
        # Loaded here and nowhere else: 3 MB that no worker needs.
        from sniproxy.observe.admin.server import AdminTask, run_admin  # noqa: PLC0415

        listeners = self._listeners
        run_admin(AdminTask(self._board, listeners.admins, listeners.metrics, generation, inbox, self._lifeline[0]))

    def _fork(self, process: _Process) -> None:
        outbox, inbox = new_channel()

        def work() -> None:
            outbox.close()
            newest = self._publisher.generation
            generation = replace(newest, policy=os.dup(newest.policy))
            self._let_go(process.keeps)
            process.work(generation, inbox)

        try:
            process.start(work)
        except OSError as error:
            process.plan_restart()
            _log.error("cannot start a process", process=process.name, error=error.strerror, retry_in=process.pause)
            outbox.close()
        else:
            self._fanout.add(process.name, outbox)
        finally:
            inbox.close()

    def _begin_reading(self) -> Reader:
        return Reader(self._source, self._let_go)

    def _let_go(self, keeps: Sequence[socket.socket] = ()) -> None:
        """In a new process: close what is the supervisor's alone, or it would outlive it there."""
        self._signals.close()
        self._reloader.let_go()
        self._fanout.close()
        self._listeners.close(but=keeps)
        os.close(self._lifeline[1])

    # Watching.

    def _turn(self) -> None:
        """Do what is due, and wait for what comes next."""
        self._start_the_dead()
        if (result := self._reloader.step()) is not None:
            self._publisher.take(result)
        self._fanout.collect()
        self._publisher.tell_if_in_force()
        self._kill_the_stuck()
        self._wait(min(self._seconds_to_next_start(), self._reloader.seconds_left(), self._fanout.seconds_left()))

    def _wait(self, seconds: float) -> None:
        """Until something happens, `seconds` at most. Raises _Stopped."""
        poll = select.poll()
        for descriptor in (self._signals.fileno(), *self._reloader.descriptors(), *self._fanout.descriptors()):
            poll.register(descriptor, select.POLLIN)
        poll.poll(None if seconds == math.inf else math.ceil(seconds * 1000))
        signals = self._signals.take()
        if stop := signals & _STOP:
            _log.info("stopping", signal=signal.Signals(min(stop)).name)
            raise _Stopped
        if signal.SIGHUP in signals:
            self._reloader.ask()
        if signal.SIGUSR1 in signals:
            self._reopen_logs()
        if signal.SIGCHLD in signals:
            self._reap()

    def _reopen_logs(self) -> None:
        """Pass the word on to the workers, which have the access log open; to others it means nothing."""
        for process in self._processes:
            process.kill(signal.SIGUSR1)

    def _start_the_dead(self) -> None:
        for process in self._processes:
            if not process.pid and time.monotonic() >= process.due:
                self._fork(process)

    def _seconds_to_next_start(self) -> float:
        due = min((process.due for process in self._processes if not process.pid), default=math.inf)
        return max(0.0, due - time.monotonic())

    def _kill_the_stuck(self) -> None:
        for name in self._fanout.stuck():
            _log.error("process is stuck: it takes no new generation", process=name)
            next(process for process in self._processes if process.name == name).kill(signal.SIGKILL)

    def _reap(self) -> None:
        for process in self._processes:
            if cause := process.has_ended():
                process.plan_restart()
                _log.error("process died", process=process.name, status=cause, restart_in=process.pause)
                self._bury(process)

    def _bury(self, process: _Process) -> None:
        self._fanout.remove(process.name)
        process.on_death()

    def _bury_worker(self, number: int) -> None:
        """Account for the connections that a dead worker took with it."""
        row = self._board.workers[number]
        lost = int(row.slots[slot_of(ACTIVE)])
        row.slots[slot_of(ACTIVE)] = row.slots[slot_of(HEARTBEAT)] = row.slots[slot_of(SERVING)] = 0.0
        own = self._board.supervisor.slots
        own[slot_of(LOST)] += lost
        own[slot_of(RESTARTS)] += 1
        UndecidedCounts.clear(row)
        self._limits.clear(number)
        config = self._publisher.generation.config
        write_worker_lost(config.access_log, LogIdentity.of(config.policy.gateway, os.environ), number, lost)

    # Stopping.

    def _stop(self) -> None:
        """Drain: nothing new comes in, and what is live has its time. The admin process tells of it to the end."""
        # Ours first: while a listener is open here the kernel accepts for nobody.
        self._reloader.close()
        self._listeners.close()
        admins = [process for process in self._processes if process.name == "admin"]
        workers = [process for process in self._processes if process not in admins]
        if workers:
            self._end(workers, self._publisher.generation.config.timeouts.drain)
        self._end(admins, 0.0)
        _log.info("stopped")

    def _end(self, processes: Sequence[_Process], seconds: float) -> None:
        """SIGTERM, `seconds` and some grace to end, then SIGKILL."""
        for process in processes:
            process.kill(signal.SIGTERM)
        deadline = time.monotonic() + seconds + _GRACE_SECONDS
        self._bury_ended(processes)
        while any(process.pid for process in processes) and time.monotonic() < deadline:
            self._wait_for_signal(deadline)
            self._bury_ended(processes)
        for process in processes:
            if process.pid:
                process.kill(signal.SIGKILL)
                process.has_ended(wait=True)
                _log.error("process was killed", process=process.name)
                self._bury(process)

    def _bury_ended(self, processes: Sequence[_Process]) -> None:
        for process in processes:
            if (cause := process.has_ended()) and cause not in _ORDERLY:
                _log.error("process died while stopping", process=process.name, status=cause)
                self._bury(process)

    def _wait_for_signal(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._signals.fileno(), select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if signal.SIGUSR1 in self._signals.take():
            self._reopen_logs()


def _tell_fallback(why: str) -> None:
    _log.warning("files are looked at once a second for changes, because inotify cannot watch them", cause=why)
