"""Connections on which bytes flow: an origin that echoes, and clients that talk to it through the proxy."""

import contextlib
import socket
from collections.abc import Iterator

from tests.support.clients import connected, hello_for
from tests.support.origins import read_exactly
from tests.support.proxy import ProxyProcess

NAME = "live.wikipedia.org"


def echo(sock: socket.socket) -> None:
    """A handler that answers the hello, of one record, with `ready`, and then every byte with itself."""
    header = read_exactly(sock, 5)
    read_exactly(sock, int.from_bytes(header[3:5], "big"))
    sock.sendall(b"ready")
    while data := sock.recv(65536):
        sock.sendall(data)


@contextlib.contextmanager
def opened(proxy: ProxyProcess, name: str = NAME) -> Iterator[socket.socket]:
    """A connection that the origin has answered."""
    with connected(proxy.address) as sock:
        sock.sendall(hello_for(name))
        assert read_exactly(sock, 5) == b"ready"
        yield sock


def ping(sock: socket.socket) -> bytes:
    sock.sendall(b"ping")
    return read_exactly(sock, 4)


def is_served(proxy: ProxyProcess, name: str = NAME) -> bool:
    """Whether a new connection is."""
    with connected(proxy.address) as sock:
        sock.sendall(hello_for(name))
        return read_exactly(sock, 5) == b"ready"
