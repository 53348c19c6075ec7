"""An HttpServer in a thread, as the admin process has it in its main one, and ways to ask it."""

import asyncio
import contextlib
import http.client
import json
import queue
import socket
import threading
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sniproxy.observe.admin.http_server import Bounds, Handler, HttpServer
from sniproxy.observe.admin.server import SECURITY_HEADERS
from tests.support.clients import connected
from tests.support.proxy import PATIENCE, wait_until

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def told(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A server that runs, and where. `name` is a path where it is a Unix socket."""

    server: HttpServer
    loop: asyncio.AbstractEventLoop
    name: tuple[str, int] | str

    def get(self, path: str, **headers: str) -> Answer:
        """Over a connection of its own."""
        return self.ask("GET", path, headers)

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        with contextlib.closing(self.connection()) as connection:
            return asked(connection, method, path, headers)

    def connection(self) -> http.client.HTTPConnection:
        """One that goes on with the next question after each answer."""
        return http.client.HTTPConnection(*self._address, timeout=PATIENCE)

    @property
    def url(self) -> str:
        host, port = self._address
        return f"http://{host}:{port}"

    @property
    def _address(self) -> tuple[str, int]:
        assert isinstance(self.name, tuple)
        return self.name

    def said_to(self, data: bytes) -> bytes:
        """All that it says to some bytes, until it closes the connection."""
        with connected(self.name) as sock:
            sock.sendall(data)
            return until_closed(sock)

    def wait_for_connections(self, count: int) -> None:
        wait_until(lambda: self.server.connections == count, f"{count} connections")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Something in the server's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)


def asked(
    connection: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str] | None = None
) -> Answer:
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def until_closed(sock: socket.socket) -> bytes:
    """What comes until the end, which may be a reset."""
    said = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while data := sock.recv(65536):
            said += data
    return said


@contextlib.contextmanager
def serving(handler: Handler, bounds: Bounds | None = None, sock: socket.socket | None = None) -> Iterator[Served]:
    """On 127.0.0.1, or on a listening socket of the test. Stopped at the end."""
    listener = sock or socket.create_server(("127.0.0.1", 0))
    ready: queue.SimpleQueue[Served] = queue.SimpleQueue()
    is_over = asyncio.Event()

    async def live() -> None:
        server = HttpServer(handler, SECURITY_HEADERS, bounds)
        name = listener.getsockname()
        await server.start(listener)
        ready.put(Served(server, asyncio.get_running_loop(), name))
        await is_over.wait()
        await server.stop()

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    served = ready.get(timeout=PATIENCE)
    try:
        yield served
    finally:
        served.loop.call_soon_threadsafe(is_over.set)
        thread.join(PATIENCE)
        assert not thread.is_alive()
