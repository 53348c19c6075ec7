"""HTTP/1.1 on a real socket: what is understood, what is refused, and that nobody can take more than the bounds."""

import asyncio
import contextlib
import json
import select
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from sniproxy.observe.admin.http_server import Bounds, Request, Response, routed
from sniproxy.observe.admin.server import SECURITY_HEADERS
from tests.observe.admin.serving import Served, asked, serving, until_closed
from tests.support.clients import connected, hello_for
from tests.support.proxy import PATIENCE, wait_until

HOST = b"Host: 127.0.0.1\r\n"
HELLO = b"GET /hello HTTP/1.1\r\n" + HOST + b"\r\n"
LAST = b"GET /hello HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
LONG = 50_000_000  # more than sockets hold
FEW = 60_000  # less than a transport keeps unless it is told otherwise
SHORT = Bounds(body=1000, idle_seconds=0.2, request_seconds=0.2, send_seconds=0.2, linger_seconds=0.2)


class Gate:
    """Where a handler stays until it may go on."""

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self.inside = 0

    async def pass_through(self) -> None:
        self.inside += 1
        while not self._is_open.is_set():
            await asyncio.sleep(0.001)

    def open(self) -> None:
        self._is_open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


async def hello(_request: Request) -> Response:
    return Response(b"hello\n")


async def echo(request: Request) -> Response:
    """What was understood."""
    told = {"method": request.method, "host": request.host, "path": request.path, "query": request.query}
    return Response(json.dumps({**told, "fold": request.header("x-fold")}).encode(), content_type="application/json")


async def own_headers(_request: Request) -> Response:
    return Response(b"", headers={"Cache-Control": "max-age=1", "X-Own": "yes"})


async def broken(_request: Request) -> Response:
    raise ZeroDivisionError("of a handler")


async def long(_request: Request) -> Response:
    return Response(bytes(LONG))


async def few(_request: Request) -> Response:
    return Response(bytes(FEW))


ROUTES = {"/": echo, "/hello": hello, "/echo": echo, "/own": own_headers, "/broken": broken, "/long": long, "/few": few}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(routed(ROUTES)) as served:
        yield served


def statuses(said: bytes) -> list[int]:
    """Of the answers in what was said."""
    return [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]]


def body(said: bytes) -> bytes:
    """Of the last answer."""
    return said.rpartition(b"\r\n\r\n")[2]


def hears(sock: socket.socket, milliseconds: int) -> bool:
    """Whether anything comes in so much time, or the end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(milliseconds))


# What is answered.


def test_a_get_is_answered_with_what_every_answer_has(served: Served) -> None:
    answer = served.get("/hello")
    assert (answer.status, answer.text) == (HTTPStatus.OK, "hello\n")
    assert answer.headers.items() >= {name.lower(): value for name, value in SECURITY_HEADERS.items()}.items()
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["date"].endswith(" GMT")


def test_an_answers_own_headers_go_before_those_of_all(served: Served) -> None:
    answer = served.get("/own")
    assert (answer.headers["cache-control"], answer.headers["x-own"]) == ("max-age=1", "yes")


@pytest.mark.parametrize("path", ["/hello", "/nowhere", "/broken"])
def test_head_has_the_headers_of_get_and_no_body(path: str, served: Served) -> None:
    full, head = served.get(path), served.ask("HEAD", path)
    assert (head.status, head.body) == (full.status, b"")
    assert {**head.headers, "date": ""} == {**full.headers, "date": ""}
    assert int(head.headers["content-length"]) == len(full.body)


def test_a_path_that_is_none_is_not_found_whatever_the_method(served: Served) -> None:
    assert {served.ask(method, "/nowhere").status for method in ("GET", "POST")} == {HTTPStatus.NOT_FOUND}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_told_which_there_are(method: str, served: Served) -> None:
    answer = served.ask(method, "/hello")
    assert (answer.status, answer.headers["allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET, HEAD")


def test_a_handler_that_raises_is_an_answer_and_one_line_in_the_log(served: Served) -> None:
    with capture_logs() as said, contextlib.closing(served.connection()) as connection:
        answers = [asked(connection, "GET", path) for path in ("/broken", "/hello")]
    assert [answer.status for answer in answers] == [HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.OK]
    assert b"of a handler" not in answers[0].body
    assert [(line["event"], line["path"]) for line in said] == [("cannot answer", "/broken")]


# How it may be asked.

UNDERSTOOD = {
    "the path": (b"GET /echo HTTP/1.1", b"", {"path": "/echo", "query": []}),
    "a query": (
        b"GET /echo?a=1&b=&c&a=x+y%26 HTTP/1.1",
        b"",
        {"query": [["a", "1"], ["b", ""], ["c", ""], ["a", "x y&"]]},
    ),
    "a query in UTF-8": (b"GET /echo?a=%C3%BC HTTP/1.1", b"", {"query": [["a", "ü"]]}),
    "a path with escapes": (b"GET /%65cho HTTP/1.1", b"", {"path": "/echo"}),
    "the absolute form, whose host goes before the header": (
        b"GET http://[::1]:9402/echo?a=1 HTTP/1.1",
        b"",
        {"host": "[::1]:9402", "path": "/echo", "query": [["a", "1"]]},
    ),
    "the absolute form without a path": (b"GET HTTP://localhost?a=1 HTTP/1.1", b"", {"path": "/", "host": "localhost"}),
    "lines that end with LF": (b"GET /echo HTTP/1.1", b"X-Fold: a\n", {"fold": "a"}),
    "a header on two lines": (b"GET /echo HTTP/1.1", b"X-Fold: a\r\n  b\r\n", {"fold": "a b"}),
    "a header twice": (b"GET /echo HTTP/1.1", b"X-Fold: a\r\nx-fold: b\r\n", {"fold": "a, b"}),
    "a header that is not ASCII": (b"GET /echo HTTP/1.1", b"X-Fold: \xfc\r\n", {"fold": "ü"}),
    "a body, which is dropped": (b"GET /echo HTTP/1.1", b"Content-Length: 3\r\n\r\nabc", {"path": "/echo"}),
    "a body in chunks": (
        b"GET /echo HTTP/1.1",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        {"path": "/echo"},
    ),
}


@pytest.mark.parametrize(("line", "rest", "expected"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_what_is_understood(line: bytes, rest: bytes, expected: dict[str, object], served: Served) -> None:
    """Each with another request behind it, which is answered, too: what was read is all of the first and no more."""
    end = b"" if b"\r\n\r\n" in rest else b"\r\n"
    said = served.said_to(line + b"\r\n" + HOST + rest + end + LAST)
    first, _, last = said.partition(b"HTTP/1.1 200 OK\r\n")[2].partition(b"HTTP/1.1 200 OK\r\n")
    told = json.loads(body(first))
    assert {key: told[key] for key in expected} == expected
    assert body(last) == b"hello\n"


def test_a_request_may_come_in_any_two_pieces_and_byte_by_byte(served: Served) -> None:
    for cut in range(1, len(LAST)):
        with connected(served.name) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(LAST[:cut])
            sock.sendall(LAST[cut:])
            assert body(until_closed(sock)) == b"hello\n"
    with connected(served.name) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in LAST:
            sock.sendall(bytes([byte]))
        assert body(until_closed(sock)) == b"hello\n"


def test_one_connection_takes_many_requests_one_after_another(served: Served) -> None:
    with contextlib.closing(served.connection()) as connection:
        answers = [asked(connection, method, path) for path in ("/hello", "/nowhere") for method in ("GET", "HEAD")]
        assert [answer.status for answer in answers] == [200, 200, 404, 404]
        assert not any("connection" in answer.headers for answer in answers)


def test_requests_that_come_at_once_are_answered_in_their_order(served: Served) -> None:
    said = served.said_to(HELLO + b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n" + HELLO * 50 + LAST)
    assert statuses(said) == [200, 404, *[200] * 51]


def test_who_wants_the_connection_closed_has_it_closed(served: Served) -> None:
    """As a kubelet does."""
    answer = served.ask("GET", "/hello", {"Connection": "close"})
    assert (answer.text, answer.headers["connection"]) == ("hello\n", "close")
    assert statuses(served.said_to(LAST + HELLO)) == [200]


def test_http_1_0_needs_no_host_and_has_one_answer(served: Served) -> None:
    said = served.said_to(b"GET /hello HTTP/1.0\r\n\r\n")
    assert (statuses(said), body(said)) == ([200], b"hello\n")
    assert b"\r\nConnection: close\r\n" in said


def test_who_has_said_all_may_close_its_half(served: Served) -> None:
    with connected(served.name) as sock:
        sock.sendall(HELLO * 2)
        sock.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(sock)) == [200, 200]


def test_who_waits_to_be_told_to_send_its_body_gets_its_answer_at_once(served: Served) -> None:
    head = b"POST /hello HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n"
    assert statuses(served.said_to(head)) == [405]


def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with serving(routed(ROUTES), sock=listener) as served:
            assert body(served.said_to(LAST)) == b"hello\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing (Debian package curl)")
def test_curl_is_answered_twice_on_one_connection(served: Served) -> None:
    url = f"{served.url}/hello"
    command = ["curl", "-sS", "--max-time", str(PATIENCE), "-w", "%{num_connects}\n", url, url]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "hello\n1\nhello\n0\n"


# What is refused.

BODY = b"x" * 100_000
REFUSED = {
    "bytes that are no text": (b"\x00\x01\x02\x03", 400),
    "a ClientHello": (hello_for("a.org"), 400),
    "an SSH client": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    "a PROXY header": (b"\r\n\r\n\x00\r\nQUIT\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\nHost: a\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /hello\r\n\r\n", 400),
    "no Host": (b"GET /hello HTTP/1.1\r\n\r\n", 400),
    "two of it": (b"GET /hello HTTP/1.1\r\n" + HOST * 2 + b"\r\n", 400),
    "a space before the colon": (b"GET /hello HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n", 400),
    "a header with a NUL": (b"GET /hello HTTP/1.1\r\n" + HOST + b"A: \x00\r\n\r\n", 400),
    "a target with a space": (b"GET /hel lo HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a target that is not ASCII": (b"GET /\xfc HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "half an escape": (b"GET /hello?a=%4 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "an escape that is none": (b"GET /%zz HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "escapes in the query that are not UTF-8": (b"GET /hello?a=%ff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "escapes in the path that are not UTF-8": (b"GET /%ff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "that, without a body in the answer": (b"HEAD /%ff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "two lengths": (b"GET /hello HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a length that is none": (b"GET /hello HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
    "a length, and chunks": (
        b"GET /hello HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "an encoding that is unknown": (b"GET /hello HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "chunks that are none": (b"GET /hello HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a line that never ends": (b"GET /" + b"a" * 40_000, 431),
    "a header that never ends": (b"GET /hello HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 40_000, 431),
    "headers that never end": (b"GET /hello HTTP/1.1\r\n" + HOST + b"A: a\r\n" * 10_000, 431),
    "a long body": (b"POST /hello HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n" + BODY, 413),
    "a long body in chunks": (
        b"POST /hello HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n186a0\r\n" + BODY,
        413,
    ),
    "long trailers": (
        b"POST /hello HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: a\r\n" * 10_000,
        431,
    ),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_told_so_and_closed(data: bytes, status: int, served: Served) -> None:
    """With the headers that every answer has, and without anything being logged; whatever comes behind is not read."""
    with capture_logs() as said:
        answer = served.said_to(data + (b"" if status == 431 else HELLO))
    assert statuses(answer) == [status]
    assert b"\r\nConnection: close\r\n" in answer
    assert b"\r\nX-Content-Type-Options: nosniff\r\n" in answer
    assert bool(body(answer)) is not data.startswith(b"HEAD")
    assert said == []


def test_a_refusal_after_a_head_has_its_body(served: Served) -> None:
    said = served.said_to(b"HEAD /hello HTTP/1.1\r\n" + HOST + b"\r\n" + b"\x00")
    assert statuses(said) == [200, 400]
    assert body(said) == b"illegal request line\n"


WORDS = st.sampled_from(
    [
        *(
            b"GET ",
            b"HEAD ",
            b"/hello",
            b"/broken?",
            b" HTTP/1.1\r\n",
            b" HTTP/1.0\r\n",
            b"%",
            b"%41",
            b"\r\n",
            b"\n",
            b": ",
        ),
        *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"5\r\n", b"0\r\n", b"Expect: 100-continue\r\n"),
        *(HOST, HELLO),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS | st.binary(max_size=8), max_size=12))
@example([b"CONNECT a:1 HTTP/1.1\r\n", HOST, b"\r\n", HELLO])
@example([b"GET /hello HTTP/1.1\r\n", HOST, b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", HELLO])
def test_whatever_is_sent_is_answered_in_http_or_not_at_all(served: Served, words: list[bytes]) -> None:
    """And the only thing that goes wrong inside is the handler that does."""
    with capture_logs() as said, connected(served.name) as sock:
        sock.sendall(b"".join(words))
        sock.shutdown(socket.SHUT_WR)
        answer = until_closed(sock)
    assert answer[:9] in (b"", b"HTTP/1.1 ")
    assert {line["path"] for line in said} <= {"/broken"}
    assert statuses(answer).count(500) == len(said)


# How much anybody can take.


def test_who_does_not_end_its_request_is_told_so_and_closed() -> None:
    with serving(routed(ROUTES), SHORT) as served:
        for begun in (HELLO[:-1], b"G", HELLO + b"G", b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nabc"):
            assert statuses(served.said_to(begun))[-1] == 408


def test_drops_do_not_keep_a_request_alive() -> None:
    """A byte now and then buys no time: the bound is on the whole."""
    with serving(routed(ROUTES), SHORT) as served, connected(served.name) as sock:
        sock.sendall(b"GET /hello HTTP/1.1\r\nA: ")
        while not hears(sock, 10):
            sock.sendall(b"a")
        assert statuses(until_closed(sock)) == [408]


@pytest.mark.parametrize("before", [b"", HELLO], ids=["nothing ever", "nothing more"])
def test_who_asks_nothing_is_closed_without_a_word(before: bytes) -> None:
    with serving(routed(ROUTES), SHORT) as served:
        assert statuses(served.said_to(before)) == [200] * bool(before)


def test_who_does_not_read_its_answer_loses_it() -> None:
    with serving(routed(ROUTES), SHORT) as served, connected(served.name) as sock:
        sock.sendall(b"GET /long HTTP/1.1\r\n" + HOST + b"\r\n")
        served.wait_for_connections(1)
        served.wait_for_connections(0)
        assert len(until_closed(sock)) < LONG


def test_who_does_not_read_a_short_answer_loses_it_as_well() -> None:
    """What is left of it when the kernel takes no more is not kept for later."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.settimeout(PATIENCE)
        with serving(routed(ROUTES), SHORT, listener) as served:
            sock.connect(served.name)
            sock.sendall(b"GET /few HTTP/1.1\r\n" + HOST + b"\r\n")
            served.wait_for_connections(1)
            served.wait_for_connections(0)
            assert len(until_closed(sock)) < FEW


def test_who_never_closes_is_closed_after_its_last_answer() -> None:
    with serving(routed(ROUTES), SHORT) as served, connected(served.name) as sock:
        sock.sendall(LAST)
        assert statuses(until_closed(sock)) == [200]
        served.wait_for_connections(0)


def test_who_reads_slowly_gets_all_of_a_long_answer(served: Served) -> None:
    assert len(served.get("/long").body) == LONG


def test_who_goes_away_leaves_nothing_behind(gate: Gate) -> None:
    async def slow(request: Request) -> Response:
        await gate.pass_through()
        return await long(request)

    with serving(routed({"/slow": slow})) as served, capture_logs() as said:
        with connected(served.name) as sock:
            sock.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
            wait_until(lambda: gate.inside == 1, "a request that is being answered")
        gate.open()
        served.wait_for_connections(0)
    assert said == []


def test_who_has_kept_us_waiting_longest_makes_room_for_the_next() -> None:
    with serving(routed(ROUTES), Bounds(connections=3)) as served, contextlib.ExitStack() as stack:
        silent, half, asks = (stack.enter_context(connected(served.name)) for _ in range(3))
        half.sendall(HELLO[:10])
        served.wait_for_connections(3)
        asks.sendall(HELLO)
        assert statuses(asks.recv(65536)) == [200]
        for leaves in (silent, half):
            asked(stack.enter_context(contextlib.closing(served.connection())), "GET", "/hello")
            assert until_closed(leaves) == b""
        asks.sendall(LAST)
        assert statuses(until_closed(asks)) == [200]


def test_who_has_come_and_gone_takes_nobodys_place() -> None:
    with serving(routed(ROUTES), Bounds(connections=3)) as served, connected(served.name) as sock:
        for _ in range(10):
            assert served.get("/hello").status == HTTPStatus.OK
            served.wait_for_connections(1)
        sock.sendall(LAST)
        assert statuses(until_closed(sock)) == [200]


def test_who_does_not_read_makes_room_too() -> None:
    with serving(routed(ROUTES), Bounds(connections=1)) as served, connected(served.name) as sock:
        sock.sendall(b"GET /long HTTP/1.1\r\n" + HOST + b"\r\n")
        sock.recv(1)
        assert served.get("/hello").status == HTTPStatus.OK
        assert len(until_closed(sock)) < LONG


def test_who_sends_many_requests_at_once_does_not_have_all_answers_before_others() -> None:
    both = asyncio.Barrier(2)
    order = []

    async def begin(_request: Request) -> Response:
        await both.wait()
        return Response(b"")

    async def count(request: Request) -> Response:
        order.append(request.query[0][0])
        return Response(b"")

    def requests(who: bytes) -> bytes:
        rest = b" HTTP/1.1\r\n" + HOST + b"\r\n"
        return b"GET /begin" + rest + (b"GET /count?" + who + b"=" + rest) * 50

    with serving(routed({"/begin": begin, "/count": count})) as served:
        with connected(served.name) as one, connected(served.name) as other:
            for sock, who in ((one, b"one"), (other, b"other")):
                sock.sendall(requests(who))
                sock.shutdown(socket.SHUT_WR)
            assert [statuses(until_closed(sock)) for sock in (one, other)] == [[200] * 51] * 2
    assert set(order[:50]) == {"one", "other"}


def test_where_all_are_being_answered_the_next_is_told_to_come_again(gate: Gate) -> None:
    async def slow(_request: Request) -> Response:
        await gate.pass_through()
        return Response(b"at last\n")

    with serving(routed({"/slow": slow}), Bounds(connections=2)) as served, contextlib.ExitStack() as stack:
        answered = [stack.enter_context(connected(served.name)) for _ in range(2)]
        for sock in answered:
            sock.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        wait_until(lambda: gate.inside == 2, "two requests that are being answered")
        with connected(served.name) as sock:
            assert statuses(until_closed(sock)) == [503]
        gate.open()
        assert [body(until_closed(sock)) for sock in answered] == [b"at last\n"] * 2


def test_a_crowd_that_never_ends_its_requests_keeps_nobody_out() -> None:
    """Nor does it grow beyond the bound, whoever comes."""
    bounds = Bounds(connections=50)
    with serving(routed(ROUTES), bounds) as served, contextlib.ExitStack() as stack:
        for _ in range(20):
            for _ in range(50):
                stack.enter_context(connected(served.name)).sendall(b"GET /hello HTTP/1.1\r\nA: " + b"a" * 1000)
            assert served.get("/hello").status == HTTPStatus.OK
            wait_until(lambda: served.server.connections <= bounds.connections, "no more connections than the bound")


# The end.


def test_stopping_closes_who_asks_nothing_and_answers_who_has_asked(gate: Gate) -> None:
    async def slow(_request: Request) -> Response:
        await gate.pass_through()
        return Response(b"at last\n")

    with (
        serving(routed({"/slow": slow}), Bounds(stop_seconds=2 * PATIENCE, linger_seconds=2 * PATIENCE)) as served,
        contextlib.ExitStack() as stack,
    ):
        idle, begun, asks = (stack.enter_context(connected(served.name)) for _ in range(3))
        begun.sendall(HELLO[:10])
        asks.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        wait_until(lambda: gate.inside == 1 and served.server.connections == 3, "three connections")
        stopping = asyncio.run_coroutine_threadsafe(served.server.stop(), served.loop)
        assert [until_closed(idle), until_closed(begun)] == [b"", b""]
        with pytest.raises(ConnectionRefusedError), connected(served.name):
            pass
        gate.open()
        said = until_closed(asks)
        assert (statuses(said), body(said)) == ([200], b"at last\n")
        assert b"\r\nConnection: close\r\n" in said
        stopping.result(PATIENCE)


def test_stopping_waits_no_longer_than_its_bound(gate: Gate) -> None:
    async def slow(_request: Request) -> Response:
        await gate.pass_through()
        return Response(b"never\n")

    with serving(routed({"/slow": slow}), Bounds(stop_seconds=0.05)) as served, connected(served.name) as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        wait_until(lambda: gate.inside == 1, "a request that is being answered")
        served.run(served.server.stop())
        assert until_closed(sock) == b""
