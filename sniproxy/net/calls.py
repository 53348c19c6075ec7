"""Where the sockets of connections come from, what they can do, and who waits for them.

A connection's sockets are of the kernel's own kind, `socket.SocketType`: the class `socket.socket` around it adds a
dictionary to each, and Python code to every accept, creation and close.

Where the package is compiled, `_calls.c` takes the place of all that is here, as PEP 399 has it: the same calls, for an
eighth of the instructions. Most of what Python's own take is for giving up the interpreter's lock and taking it back,
for addresses as tuples, and for arguments. Nothing but `poll` ever waits, so there is nothing to give the lock up for.
"""

import contextlib
import select
import socket
from typing import Any, Final

# Of its methods we use fileno, recv(size), recv_into(buffer), send(data, flags), shutdown, close, getsockopt and
# setsockopt, and its attribute `family`; the type in C has no others.
Socket = socket.SocketType

# Of which we use fromfd(fd), register(fd, mask), modify(fd, mask), unregister(fd), poll(timeout, most) and close.
Epoll = select.epoll

__all__ = ["Epoll", "Socket", "accept", "connect", "send_first"]

_UNIX: Final = socket.AF_UNIX
_STREAM: Final = socket.SOCK_STREAM
_NON_BLOCKING: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


def accept(listener: socket.socket, family: int) -> tuple[Socket, str] | None:
    """The next connection of a listening socket of `family`, non-blocking, and the IP address of its peer.

    None when nobody waits. On a Unix socket the address is "". Raises OSError, as accept(2) does.
    """
    accepted: tuple[int, Any]
    try:
        accepted = listener._accept()  # type: ignore[attr-defined]  # what socket.socket.accept() is made of
    except BlockingIOError:
        return None
    sock = Socket(family, _STREAM, 0, accepted[0])
    sock.setblocking(False)
    return sock, "" if family == _UNIX else accepted[1][0]


def connect(family: int, host: str, port: int) -> Socket:
    """A non-blocking socket that connects, or is connected, to the IP address `host`.

    Raises OSError for what is refused at once; everything else an event will tell.
    """
    sock = Socket(family, _NON_BLOCKING)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The hello is at hand, and acknowledges the handshake on its way: a packet less. It holds for that one
        # acknowledgement, which the kernel sends alone after 200 ms if nothing else goes out (tcp(7)).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        sock.connect((host, port))
    except BlockingIOError:
        pass
    except BaseException:  # what is no host or no port is no OSError
        sock.close()
        raise
    return sock


def send_first(sock: Socket, data: bytes | bytearray | memoryview, size: int, flags: int) -> int:
    """Send the first `size` bytes of `data`; how many of them went. Raises OSError, as send(2) does."""
    return sock.send(data if len(data) == size else memoryview(data)[:size], flags)


with contextlib.suppress(ImportError):  # where nothing is compiled
    from sniproxy.net._calls import Epoll, Socket, accept, connect, send_first
