"""Dialling: the vetted addresses of one name, raced by Happy Eyeballs version 2 (RFC 8305, sections 4 and 5).

Families alternate, IPv6 first; an attempt that fails starts the next at once, one that is slow starts it after the
Connection Attempt Delay; the first to connect wins and the others are closed. Only these addresses are tried: they
are the ones that the guard has judged.
"""

import errno
import os
import socket
from collections.abc import Sequence
from functools import partial
from itertools import chain, zip_longest
from select import EPOLLERR, EPOLLHUP
from typing import Final

from sniproxy.config.units import host_and_port
from sniproxy.names import ServerName
from sniproxy.net.calls import Socket, connect
from sniproxy.net.guard import Endpoint
from sniproxy.net.readiness import WRITABLE, Readiness
from sniproxy.net.rounds import Watcher
from sniproxy.net.strand import Pending
from sniproxy.net.timers import UNARMED
from sniproxy.outcome import ConnectionEndedError, Reason
from sniproxy.policy.model import Permit

# RFC 8305 section 5 recommends 250 ms.
ATTEMPT_DELAY = 0.25

_connect: Final = connect  # compiled, what is imported would be looked up by its name each time
_BROKEN: Final = EPOLLERR | EPOLLHUP


class Connected:
    """What came of a dial: a socket that is connected, non-blocking and watched.

    `events` is what it has reported so far, to the attempt: the next owner must not wait for it to be said again.
    `since` is when the dial began, by the monotonic clock.
    """

    __slots__ = ("endpoint", "events", "since", "socket")

    def __init__(self, sock: Socket, endpoint: Endpoint, events: int, since: float) -> None:
        self.socket: Final = sock
        self.endpoint: Final = endpoint
        self.events: Final = events
        self.since: Final = since


class _Attempt:
    """One connect(2)."""

    __slots__ = ("endpoint", "events", "fd", "socket")

    def __init__(self, endpoint: Endpoint, sock: Socket) -> None:
        self.endpoint = endpoint
        self.socket = sock
        self.fd = sock.fileno()
        self.events = 0

    def error(self) -> int:
        """Why it has failed, by its events; 0 if it is connected."""
        if not self.events & _BROKEN:
            return 0
        # Both ways are closed already. Without an error of its own, it was reset before we came to look.
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNRESET


class _Race(Watcher):
    """The attempts of one dial, and the timer of the next step."""

    __slots__ = (
        "_deadline",
        "_endpoints",
        "_failures",
        "_name",
        "_next",
        "_readiness",
        "_running",
        "_timeout",
        "began",
        "winner",
    )

    def __init__(self, name: ServerName, endpoints: Sequence[Endpoint], timeout: float, readiness: Readiness) -> None:
        self.winner: Pending[_Attempt] = Pending()
        self.slot = UNARMED
        self._name = name
        self._endpoints = endpoints
        self._next = 0  # of them, to be tried
        self._running: list[_Attempt] = []
        self._failures: list[tuple[Endpoint, int]] = []
        self._readiness = readiness
        self._timeout = timeout
        self.began = readiness.clock.time()
        self._deadline = self.began + timeout

    def start_next(self) -> None:
        """Start attempts until one more is under way, and set the timer of what comes after it."""
        while self._next < len(self._endpoints):
            endpoint = self._endpoints[self._next]
            self._next += 1
            error = self._start(endpoint)
            if error == 0:
                break
            self._failures.append((endpoint, error))
        if not self._running:
            self._lose()
        elif self._next < len(self._endpoints):
            left = self._deadline - self._readiness.clock.time()
            self._readiness.timers.arm(self, min(ATTEMPT_DELAY, left))
        else:
            self._readiness.timers.arm_until(self, self._deadline)

    def _start(self, endpoint: Endpoint) -> int:
        """Begin to connect. The errno if that failed at once."""
        try:
            sock = _connect(endpoint.family, endpoint.host, endpoint.port)
        except OSError as error:
            return error.errno or errno.EIO
        attempt = _Attempt(endpoint, sock)
        try:
            self._readiness.watch(attempt.fd, self, room=True)
        except OSError as error:
            sock.close()
            return error.errno or errno.EIO
        self._running.append(attempt)
        return 0

    def on_events(self, fd: int, events: int) -> None:
        for attempt in self._running:
            if attempt.fd == fd:
                attempt.events |= events
                if events & WRITABLE and not self.winner.is_done:
                    self._settle(attempt)
                return

    def _settle(self, attempt: _Attempt) -> None:
        """An attempt has connected or failed. Runs inside a dispatch, so the next one starts after it."""
        error = attempt.error()
        if error == 0:
            self.winner.succeed(attempt)
            return
        self._running.remove(attempt)
        self._failures.append((attempt.endpoint, error))
        self._readiness.clock.call_soon(partial(self._replace, attempt))

    def _replace(self, failed: _Attempt) -> None:
        self._close(failed)
        if not self.winner.is_done:
            self.start_next()

    def expire(self) -> None:
        if self.winner.is_done:
            return
        if self._readiness.clock.time() < self._deadline:
            self.start_next()
        else:
            self._failures += [(attempt.endpoint, errno.ETIMEDOUT) for attempt in self._running]
            self._lose()

    def _lose(self) -> None:
        self.winner.fail(_failure(self._name, self._failures, self._timeout))

    def close(self, winner: _Attempt | None) -> None:
        """Forget the timer and every attempt but the winner."""
        self._readiness.timers.disarm(self)
        for attempt in self._running:
            if attempt is not winner:
                self._close(attempt)
        self._running.clear()

    def _close(self, attempt: _Attempt) -> None:
        self._readiness.forget(attempt.fd)
        attempt.socket.close()


async def dial(permit: Permit, endpoints: Sequence[Endpoint], timeout: float, readiness: Readiness) -> Connected:
    """Connect to the first of `endpoints` that answers, within `timeout` seconds in all.

    The permit says that a rule allowed this. Raises ConnectionEndedError with what became of each address.
    """
    race = _Race(permit.server_name, interleave(endpoints), timeout, readiness)
    try:
        race.start_next()
        winner = await race.winner
    except BaseException:
        race.close(None)
        raise
    race.close(winner)
    return Connected(winner.socket, winner.endpoint, winner.events, race.began)


def interleave(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """RFC 8305 section 4: families alternate, IPv6 first, each in the order of the answer."""
    if len(endpoints) == 1:
        return endpoints
    six = [endpoint for endpoint in endpoints if endpoint.family == socket.AF_INET6]
    four = [endpoint for endpoint in endpoints if endpoint.family == socket.AF_INET]
    return [endpoint for endpoint in chain.from_iterable(zip_longest(six, four)) if endpoint is not None]


def _failure(name: ServerName, failures: Sequence[tuple[Endpoint, int]], timeout: float) -> ConnectionEndedError:
    """One failure out of all of them: refused if all refused, timed out if any ran out of time."""
    errors = {error for _, error in failures}
    if errors == {errno.ECONNREFUSED}:
        reason = Reason.CONNECT_REFUSED
    elif errno.ETIMEDOUT in errors:
        reason = Reason.CONNECT_TIMEOUT
    else:
        reason = Reason.CONNECT_FAILED
    told = [f"{host_and_port(endpoint.host, endpoint.port)} {_words(error, timeout)}" for endpoint, error in failures]
    return ConnectionEndedError(reason, f"{name}: {'; '.join(told)}")


def _words(error: int, timeout: float) -> str:
    return f"gave no answer within {timeout:g}s" if error == errno.ETIMEDOUT else os.strerror(error).lower()
