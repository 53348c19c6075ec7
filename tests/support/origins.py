"""Origin servers on loopback: TLS ones with pages, and plain ones that do with their socket what a test says."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import trustme

NAMES = ("en.wikipedia.org", "de.wikipedia.org", "es.wikipedia.org", "fr.wikipedia.org")
TIMEOUT = 30.0


class Authority:
    """A throwaway certificate authority, and contexts for both sides of TLS."""

    def __init__(self) -> None:
        self.ca = trustme.CA()

    def server_context(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


Handler = Callable[[socket.socket], None]


@contextlib.contextmanager
def origin(handle: Handler, host: str = "127.0.0.1") -> Iterator[int]:
    """A server that hands each connection to `handle`, in a thread of its own; its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    threads: list[threading.Thread] = []
    with socket.create_server((host, 0), family=family, backlog=1024) as server:

        def serve(client: socket.socket) -> None:
            client.settimeout(TIMEOUT)
            with contextlib.suppress(OSError), client:
                handle(client)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    thread = threading.Thread(target=serve, args=(server.accept()[0],), daemon=True)
                    threads.append(thread)
                    thread.start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join(timeout=TIMEOUT)


@contextlib.contextmanager
def origin_in_hand() -> Iterator[socket.socket]:
    """A listening socket, for a test that plays the origin itself and so holds both ends: see `accept_from`."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        server.settimeout(TIMEOUT)
        yield server


def accept_from(server: socket.socket) -> socket.socket:
    """The origin's end of the next connection."""
    sock, _ = server.accept()
    sock.settimeout(TIMEOUT)
    return sock


def page_of(name: str) -> str:
    """What the TLS origin of `name` serves."""
    return f"<title>{name}</title>"


@contextlib.contextmanager
def tls_origin(authority: Authority, *names: str, host: str = "127.0.0.1") -> Iterator[int]:
    """An HTTPS server that answers every request with the page of the name that the client asked for."""
    context = authority.server_context(*names)
    asked: dict[ssl.SSLObject | ssl.SSLSocket, str] = {}

    def remember(tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
        asked[tls] = name or "nobody"

    context.sni_callback = remember

    def answer(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as tls:
            tls.recv(65536)
            body = page_of(asked.pop(tls))
            tls.sendall(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            tls.unwrap()

    with origin(answer, host) as port:
        yield port


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer if the peer ends before."""
    data = b""
    while len(data) < size and (chunk := sock.recv(size - len(data))):
        data += chunk
    return data


def read_to_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))
