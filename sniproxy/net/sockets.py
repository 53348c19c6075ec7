"""The ways to close the socket of a connection."""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios

from sniproxy.net.calls import Socket
from sniproxy.net.readiness import Readiness

# A refused client has this long to hang up, and may send this much meanwhile, before it is cut off.
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 64 * 1024

# How long a reset waits for bytes that the peer has not acknowledged yet.
_FLUSH_SECONDS = 2.0
_FLUSH_STEP = 0.05

# The first byte of struct tcp_info, tcpi_state: TCP_CLOSE of include/net/tcp_states.h.
_TCP_CLOSE = b"\x07"

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


async def hang_up(sock: Socket, farewell: bytes, readiness: Readiness) -> None:
    """Send `farewell` and an end, then wait for the peer's.

    Closing a socket with unread bytes makes the kernel send a reset, which can overtake the farewell (RFC 1122
    section 4.2.2.13; RFC 9112 section 9.6 tells the same of HTTP). So what still comes is read and dropped, within
    bounds of time and size. The socket is left for the caller to close.
    """
    deadline = readiness.timers.after(_LINGER_SECONDS)
    left = _LINGER_BYTES
    try:
        sock.send(farewell)
        sock.shutdown(socket.SHUT_WR)
        while left > 0:
            data = _read_now(sock, left)
            if data is None:
                await readiness.edge(sock.fileno(), deadline)
            elif data:
                left -= len(data)
            else:
                return
    except (OSError, TimeoutError):
        return  # it has hung up, or has had its time


def _read_now(sock: Socket, size: int) -> bytes | None:
    """What there is to read: bytes, b"" for the end, or None for nothing yet."""
    try:
        return sock.recv(size)
    except BlockingIOError:
        return None


def cut_off(sock: Socket, farewell: bytes) -> None:
    """Send `farewell` and be done: what a client gets while there is no room to wait for it."""
    # Read what came, so that closing does not turn into a reset that overtakes the farewell.
    with contextlib.suppress(OSError):
        sock.recv(_LINGER_BYTES)
    with contextlib.suppress(OSError):
        sock.send(farewell)


async def reset(sock: Socket) -> None:
    """Make the next close send a reset instead of an end, once the peer has all that we sent.

    The relay passes a reset on as a reset, for a peer must not take a broken stream for a finished one. But a reset
    drops what is still in flight; if the peer does not take it in time, the close stays an ordinary one.
    """
    for _ in range(int(_FLUSH_SECONDS / _FLUSH_STEP)):
        try:
            if unsent(sock) == 0 or _is_gone(sock):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                return
        except OSError:
            return
        await asyncio.sleep(_FLUSH_STEP)


def _is_gone(sock: Socket) -> bool:
    """Whether the peer has reset the connection: what is unsent then stays so, and the kernel goes on counting it."""
    if sock.family == socket.AF_UNIX:
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _TCP_CLOSE


def unsent(sock: Socket) -> int:
    """Bytes in the send queue that the peer has not acknowledged (SIOCOUTQ, tcp(7)); 0 on a Unix socket's end."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    return int.from_bytes(answer, "little")
