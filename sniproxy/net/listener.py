"""Listening: the sockets that the supervisor opens, and the accept loop of each worker.

The supervisor opens every socket before it forks, so that an address in use is a start-up error with its line, and
a worker that dies leaves its queue to its successor. A TCP address has one socket a worker (SO_REUSEPORT), between
which the kernel spreads connections; a Unix socket is one that all workers accept from.
"""

import errno
import os
import socket
import stat
import struct
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import Final

from sniproxy.config.model import Listener
from sniproxy.config.units import Network, TcpAddress, Uid, UnixAddress
from sniproxy.memo import Memo
from sniproxy.net.calls import Socket, accept
from sniproxy.net.readiness import Readiness
from sniproxy.net.rounds import Watcher
from sniproxy.value import Value

_BACKLOG = 4096

# Accept when the hello is there (tcp(7)). One second, not more: a silent client is then delivered after about that
# time, and its timer starts.
_DEFER_ACCEPT_SECONDS = 1

# Connections accepted in one round at most, and how much longer one burst may be than that before.
_MAX_BURST: Final = 64
_GROWTH: Final = 1.125

# What accept(2) gives when this process, or the machine, has no room for one more connection.
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_SECONDS = 0.1

_accept: Final = accept  # compiled, what is imported would be looked up by its name each time
_UCRED = struct.Struct("iII")  # pid, uid, gid: struct ucred, unix(7)


class Peer(Value):
    """The other end of an accepted connection. On a Unix socket it has no address, but a user.

    `source` is what limits on one source count it by.
    """

    __slots__ = ("ip", "source", "uid")

    def __init__(self, ip: str, uid: int | None = None) -> None:
        self.ip: Final = ip
        self.uid: Final = uid
        self.source: Final = ip if uid is None else f"uid:{uid}"

    def fields(self) -> tuple[object, ...]:
        return self.ip, self.uid


class Trust:
    """Who may inject an identity on one listener."""

    def __init__(self, listener: Listener) -> None:
        self._uids = {peer.uid for peer in listener.trusted_peers if isinstance(peer, Uid)}
        networks = tuple(peer for peer in listener.trusted_peers if not isinstance(peer, Uid))
        # Knows the networks and not us: a ring would keep thousands of addresses of each config that was ever in force.
        self._trusted_ips: Memo[str, bool] = Memo(lambda ip: _within(ip, networks), 4096)

    def has(self, peer: Peer) -> bool:
        return peer.uid in self._uids if peer.uid is not None else self._trusted_ips.of(peer.ip)


def _within(ip: str, networks: Collection[Network]) -> bool:
    address = ip_address(ip)
    return any(address in network for network in networks)


class CannotOpenError(Exception):
    """What the proxy needs from the system is not to be had; the message says what and why."""


def open_listener(address: TcpAddress | UnixAddress, workers: int) -> list[socket.socket]:
    """The listening sockets of `address`, one for each worker. Raises CannotOpenError."""
    try:
        if isinstance(address, UnixAddress):
            return [_open_unix(address)] * workers
        return _open_tcp(address, workers)
    except OSError as error:
        raise CannotOpenError(f"cannot listen on {address}: {(error.strerror or str(error)).lower()}") from None


def _open_tcp(address: TcpAddress, workers: int) -> list[socket.socket]:
    # SO_REUSEPORT would let a second proxy of the same user share the port in silence: see first that it is free.
    _bind_tcp(address, share=False).close()
    sockets: list[socket.socket] = []
    try:
        for _ in range(workers):
            sock = _bind_tcp(address, share=True)
            sockets.append(sock)
            address = TcpAddress(address.host, sock.getsockname()[1])  # port 0 is chosen once, for all workers
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by accepted sockets
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_ACCEPT_SECONDS)
            sock.listen(_BACKLOG)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_tcp(address: TcpAddress, *, share: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # IPv4 peers would appear as ::ffff:a.b.c.d, and networks of trusted peers would miss them.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
    except OSError:
        sock.close()
        raise
    return sock


def _open_unix(address: UnixAddress) -> socket.socket:
    _remove_stale(address.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        mask = os.umask(0o117)  # so that nobody else can connect between bind and chmod
        try:
            sock.bind(address.path)
        finally:
            os.umask(mask)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket file of a process that is gone. Anything else there is not ours to touch."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "a file that is no socket has that path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full, so somebody has one
    raise OSError(errno.EADDRINUSE, "another process listens there")


OnConnection = Callable[[Socket, Peer], None]


class Acceptor(Watcher):
    """Accepts what comes to one listening socket, a burst in a round.

    When there is no descriptor left it neither spins nor lets the queue grow old: the spare descriptor makes room to
    accept the connection and close it, `on_shed` counts it, and if even that fails the listener pauses.
    """

    def __init__(
        self,
        sock: socket.socket,
        readiness: Readiness,
        on_connection: OnConnection,
        on_shed: Callable[[Peer], None],
    ) -> None:
        self._sock = sock
        self._readiness = readiness
        self._on_connection = on_connection
        self._on_shed = on_shed
        self._family = int(sock.family)
        self._is_unix = sock.family == socket.AF_UNIX
        self._burst = 1.0
        self._spare = _spare_descriptor()
        self._is_pausing = False

    def start(self) -> None:
        self._readiness.listen(self._sock.fileno(), self)

    def drain(self) -> None:
        """Take what waits in the queue, then stop listening."""
        if not self._is_unix:
            # Connections that the kernel holds back until their hello comes would be reset by the close.
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        while self._accept():
            pass
        self.close()

    def close(self) -> None:
        self._readiness.ignore(self._sock.fileno())
        self._sock.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def on_events(self, _fd: int, _events: int) -> None:
        """Accept until the queue is empty or the burst is used up.

        The next burst is as long as one that found the end, and a little longer than one that found enough: at a low
        rate few connections pay for a second accept(2) that says EAGAIN, at a high one none has a turn to itself.
        """
        for accepted in range(int(self._burst)):
            if not self._accept():
                self._burst = max(1.0, accepted)
                return
        self._burst = min(self._burst * _GROWTH, _MAX_BURST)

    def _accept(self) -> bool:
        """Accept one connection. False when none waits."""
        try:
            accepted = _accept(self._sock, self._family)
        except OSError as error:
            # The peer is gone already (ECONNABORTED and the network errors that accept(2) passes on): next, please.
            return self._shed() if error.errno in _NO_ROOM else True
        if accepted is None:
            return False
        sock, ip = accepted
        self._on_connection(sock, self._peer(sock, ip))
        return True

    def _peer(self, sock: Socket, ip: str) -> Peer:
        if self._is_unix:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            return Peer("", _UCRED.unpack(credentials)[1])
        return Peer(ip)

    def _shed(self) -> bool:
        """Accept and close one connection with the spare descriptor, or pause. False when none waits."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
            try:
                accepted = _accept(self._sock, self._family)
            except OSError:
                pass  # it was not for want of a descriptor of ours
            else:
                if accepted is None:
                    # accept(2) looks for a descriptor first: what it says without one is not that anybody waits.
                    self._spare = _spare_descriptor()
                    return False
                sock, ip = accepted
                self._on_shed(self._peer(sock, ip))
                sock.close()
                self._spare = _spare_descriptor()
        if self._spare is not None:
            return True
        self._pause()
        return False

    def _pause(self) -> None:
        self._readiness.ignore(self._sock.fileno())
        if not self._is_pausing:
            self._is_pausing = True
            self._readiness.clock.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._is_pausing = False
        if self._sock.fileno() >= 0:  # it was not closed meanwhile
            self._spare = _spare_descriptor()
            self.start()


def _spare_descriptor() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def address_of(sock: socket.socket) -> TcpAddress | UnixAddress:
    """Where a listening socket is bound."""
    if sock.family == socket.AF_UNIX:
        return UnixAddress(sock.getsockname())
    host, port = sock.getsockname()[:2]
    return TcpAddress(host, port)
