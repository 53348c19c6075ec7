"""HTTP/1.1 for an address that only tells: h11 parses and frames, asyncio's streams carry.

`Conversation` is one connection in terms of requests and responses, and `HttpServer` tells its life: read a request,
have it answered, and again, for as long as both sides want. All that others can make us hold has a bound (`Bounds`):
the head of a request, its body, which is dropped, the time that either may take, the time that an answer may wait to be
taken, and the number of connections. One more than these and the connection that has kept us waiting longest makes
room, so that a crowd that asks nothing, or reads nothing, keeps no scraper out.

It knows nothing of what is asked. A handler that raises is answered for with 500, and the server goes on.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

import h11
import structlog

_log = structlog.get_logger()

_CHUNK = 4096  # read at once; a stream keeps twice as much before it lets the kernel keep the rest

# RFC 9112 section 3.2.2: a server must understand this form, and its authority goes before the Host header.
_ABSOLUTE_FORM = re.compile(r"http://([^/?#]*)(.*)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one server puts up with. Sizes in bytes."""

    connections: int = 256
    head: int = 16 * 1024  # a browser on localhost sends the cookies of everything that ever ran there
    body: int = 64 * 1024
    idle_seconds: float = 75.0  # until a request begins: a scraper that comes once a minute keeps its connection
    request_seconds: float = 10.0  # from then until it is complete
    send_seconds: float = 10.0
    linger_seconds: float = 2.0
    stop_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. Path and query are decoded; names of headers are in lower case."""

    method: str
    host: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str:
        """The values of a header as one list; "" where there is none."""
        return ", ".join(value for key, value in self.headers if key == name)


@dataclass(frozen=True, slots=True)
class Response:
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]


class _Refused(Exception):  # noqa: N818 - an answer
    """A request that gets no other answer than this one, which is the connection's last."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.response = Response(f"{why}\n".encode(), status)


def routed(routes: Mapping[str, Handler]) -> Handler:
    """Answers GET and HEAD of these paths."""

    async def answer(request: Request) -> Response:
        handler = routes.get(request.path)
        if handler is None:
            return Response(b"there is nothing at this path\n", HTTPStatus.NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            allowed = {"Allow": "GET, HEAD"}
            return Response(b"this can only be read\n", HTTPStatus.METHOD_NOT_ALLOWED, headers=allowed)
        return await handler(request)

    return answer


class HttpServer:
    """Has `answer` answer on the sockets that it is given. Every response has `headers`, but where it has its own."""

    def __init__(self, answer: Handler, headers: Mapping[str, str], bounds: Bounds | None = None) -> None:
        self._answer = answer
        self._headers = headers
        self._bounds = bounds or Bounds()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        # Those that wait for their client, longest first, and those that wait for us.
        self._waiting: dict[Conversation, None] = {}
        self._answering: set[Conversation] = set()
        self._is_stopping = False

    async def start(self, sock: socket.socket) -> None:
        """Serve on a listening socket, of any family."""
        self._servers.append(await asyncio.start_server(self._accept, sock=sock, limit=_CHUNK))

    async def stop(self) -> None:
        """Accept nothing more, and give what is asked already a short while to be answered."""
        self._is_stopping = True
        for server in self._servers:
            server.close()
        for idle in [each for each in self._waiting if not each.is_sending]:
            idle.abort()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._bounds.stop_seconds)
            for task in late:
                task.cancel()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._live(Conversation(reader, writer, self._headers, self._bounds)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, conversation: "Conversation") -> None:
        """The life of a connection."""
        try:
            if self._has_room():
                await self._converse(conversation)
            else:
                await conversation.send(Response(b"too many ask at once\n", HTTPStatus.SERVICE_UNAVAILABLE), last=True)
        except OSError:  # the client is gone, or takes nothing
            conversation.abort()
        finally:
            self._waiting.pop(conversation, None)
            self._answering.discard(conversation)
            conversation.close()

    def _has_room(self) -> bool:
        """Whether one more may come, for which the one that waits longest may have to go."""
        if len(self._waiting) + len(self._answering) >= self._bounds.connections:
            if not self._waiting:
                return False
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.abort()
        return True

    async def _converse(self, conversation: "Conversation") -> None:
        goes_on = True
        while goes_on:
            self._waiting[conversation] = None
            try:
                request = await conversation.next_request()
            except _Refused as refused:
                await conversation.send(refused.response, last=True)
                break
            if request is None:
                return
            self._waiting.pop(conversation, None)
            self._answering.add(conversation)
            response = await self._answer_of(request)
            self._answering.discard(conversation)
            self._waiting[conversation] = None
            goes_on = await conversation.send(response, last=self._is_stopping)
            await asyncio.sleep(0)  # or whoever sends many requests at once would have all their answers before others
        if not self._is_stopping:
            await conversation.linger()

    async def _answer_of(self, request: Request) -> Response:
        try:
            return await self._answer(request)
        except Exception:
            _log.exception("cannot answer", path=request.path)
            return Response(b"this went wrong inside; the log has why\n", HTTPStatus.INTERNAL_SERVER_ERROR)


class Conversation:
    """One connection, as requests and responses in turn."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: Mapping[str, str], bounds: Bounds
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._headers = headers
        self._bounds = bounds
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=bounds.head)
        self._has_body = True  # the answer to HEAD has none
        # An answer is sent when the kernel has all of it, not when little enough of it is left with us.
        writer.transport.set_write_buffer_limits(high=0)

    @property
    def is_sending(self) -> bool:
        return self._writer.transport.get_write_buffer_size() > 0

    async def next_request(self) -> Request | None:
        """The next one, its body dropped; None where no more comes. Raises _Refused or OSError."""
        self._has_body = True
        if not self._http.trailing_data[0]:
            try:
                async with asyncio.timeout(self._bounds.idle_seconds):
                    await self._receive()
            except TimeoutError:
                return None
        try:
            async with asyncio.timeout(self._bounds.request_seconds):
                return await self._read_request()
        except TimeoutError:
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT, "the request takes too long") from None
        except h11.RemoteProtocolError as error:
            raise _Refused(HTTPStatus(error.error_status_hint), str(error)) from None

    async def _read_request(self) -> Request | None:
        head = await self._next_event()
        if not isinstance(head, h11.Request):
            return None
        self._has_body = head.method != b"HEAD"
        request = _request_of(head)
        size = 0
        # Who waits to be told to go on with a body is told what it would have been told after it.
        while not self._http.they_are_waiting_for_100_continue:
            event = await self._next_event()
            if isinstance(event, h11.EndOfMessage):
                break
            size += len(event.data) if isinstance(event, h11.Data) else 0
            if size > self._bounds.body:
                raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large; none is wanted")
        return request

    async def _next_event(self) -> h11.Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        assert isinstance(event, h11.Event)  # noqa: S101 - a request that is being read is not paused
        return event

    async def _receive(self) -> None:
        self._http.receive_data(await self._reader.read(_CHUNK))

    async def send(self, response: Response, *, last: bool = False) -> bool:
        """Whether another request may follow. Raises OSError."""
        is_last = last or self._http.their_state is not h11.DONE
        headers = {
            **self._headers,
            "Date": formatdate(usegmt=True),
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            **({"Connection": "close"} if is_last else {}),
            **response.headers,
        }
        status = response.status
        head = h11.Response(status_code=status, headers=list(headers.items()), reason=status.phrase)
        said = self._http.send(head)
        if self._has_body:
            said += self._http.send(h11.Data(data=response.body))
        self._writer.write(said + self._http.send(h11.EndOfMessage()))
        async with asyncio.timeout(self._bounds.send_seconds):
            await self._writer.drain()
        if not is_last:
            self._http.start_next_cycle()
        return not is_last

    async def linger(self) -> None:
        """Let our last word be read: to close with bytes unread would be a reset, which takes it away.

        RFC 9112 section 9.6.
        """
        if not self._writer.transport.is_closing():
            self._writer.write_eof()
        try:
            async with asyncio.timeout(self._bounds.linger_seconds):
                while await self._reader.read(_CHUNK):
                    pass
        except TimeoutError:
            pass

    def abort(self) -> None:
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


def _request_of(head: h11.Request) -> Request:
    """Raises _Refused."""
    if not head.http_version.startswith(b"1."):
        raise _Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this is HTTP/1.1")
    headers = tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers)
    names = [name for name, _ in headers]
    # RFC 9112 section 6.3: whoever sends both may be up to something.
    if "transfer-encoding" in names and "content-length" in names:
        raise _Refused(HTTPStatus.BAD_REQUEST, "Transfer-Encoding and Content-Length exclude each other")
    host = dict(headers).get("host", "")
    target = head.target.decode()
    if absolute := _ABSOLUTE_FORM.fullmatch(target):
        host, target = absolute[1], absolute[2]
    path, _, query = target.partition("?")
    if _BAD_ESCAPE.search(target):
        raise _Refused(HTTPStatus.BAD_REQUEST, "a % in the target is not followed by two hexadecimal digits")
    try:
        pairs = tuple(parse_qsl(query, keep_blank_values=True, errors="strict"))
        return Request(head.method.decode(), host, unquote(path, errors="strict") or "/", pairs, headers)
    except UnicodeDecodeError:
        raise _Refused(HTTPStatus.BAD_REQUEST, "the target is not UTF-8") from None
