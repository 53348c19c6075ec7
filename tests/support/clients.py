"""Clients: the first bytes of a connection as Envoy or a browser would send them, and whole HTTPS requests."""

import contextlib
import socket
import ssl
from collections.abc import Iterable, Iterator

from sniproxy.wire.proxy_protocol import SocketAddress, Tlv, encode_proxy_header
from tests.wire.build import build_client_hello

TIMEOUT = 30.0
PRINCIPAL = 0xD0


def hello_for(name: str) -> bytes:
    """A ClientHello for `name`, as bytes on the wire."""
    return build_client_hello(name)


def proxy_header(
    principal: str | None = None, source: str = "10.1.2.3", port: int = 40000, extra: Iterable[Tlv] = ()
) -> bytes:
    """A PROXY v2 header with a principal in TLV 0xD0, as the gateway's Envoy writes it."""
    tlvs = [Tlv(PRINCIPAL, f"spiffe://{principal}".encode())] if principal is not None else []
    return encode_proxy_header(SocketAddress(source, port), SocketAddress("10.0.0.1", 443), [*tlvs, *extra])


def sleep_principal(workload: str) -> str:
    return f"cluster.local/ns/default/sa/{workload}"


@contextlib.contextmanager
def connected(address: tuple[str, int] | str, source: str | None = None) -> Iterator[socket.socket]:
    """A socket connected to a TCP address, from the IP `source` if that matters, or to a Unix socket's path."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT)
        sock.connect(address)
    else:
        sock = socket.create_connection(address, TIMEOUT, None if source is None else (source, 0))
    with sock:
        yield sock


def fetch(
    address: tuple[str, int] | str, name: str, trust: ssl.SSLContext, header: bytes = b"", *, read: int = 1 << 20
) -> str:
    """The body of https://`name`/ through the proxy at `address`. Raises ssl.SSLError when refused."""
    with connected(address) as sock:
        sock.sendall(header)
        with trust.wrap_socket(sock, server_hostname=name) as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while chunk := tls.recv(read):
                answer += chunk
    return answer.partition(b"\r\n\r\n")[2].decode()


def alert_of(sock: socket.socket) -> str:
    """The name of the fatal alert that the proxy sends, and that nothing but an end follows it."""
    names = {49: "access_denied", 80: "internal_error", 112: "unrecognized_name"}
    answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answer[:1] == b"\x15", answer
    assert (len(answer), answer[5]) == (7, 2), answer
    return names[answer[6]]


def ask(address: tuple[str, int] | str, *parts: bytes) -> str:
    """Send `parts` on a new connection; the alert that comes back."""
    with connected(address) as sock:
        for part in parts:
            sock.sendall(part)
        return alert_of(sock)
