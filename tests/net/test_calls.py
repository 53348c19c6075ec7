"""What the calls of connections do, in Python and in C: each test holds both to the same.

The C is compiled once a session, by the compiler that is here and with CFLAGS, every warning an error.
"""

import contextlib
import copy
import errno
import fcntl
import os
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.net.calls import Socket
from tests.net.loopback import (
    LOCALHOST,
    PATIENCE,
    cut,
    fill,
    no_collection,
    no_descriptor_left,
    open_descriptors,
    packets_sent,
)
from tests.support.dns_server import unused_port
from tests.support.peers import c_compiler

NET = Path(__file__).parents[2] / "sniproxy" / "net"
EXTENSION = "sniproxy.net._calls"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]

FOUR, SIX, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
TCP = socket.IPPROTO_TCP
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
ESTABLISHED = b"\x01"  # the first byte of struct tcp_info: TCP_ESTABLISHED of include/net/tcp_states.h


class Calls(Protocol):
    """The module, of either kind."""

    Socket: type[socket.SocketType]
    Epoll: type[select.epoll]

    def accept(self, listener: socket.socket, family: int, /) -> tuple[socket.SocketType, str] | None: ...

    def connect(self, family: int, host: str, port: int, /) -> socket.SocketType: ...

    def send_first(
        self, sock: socket.SocketType, data: bytes | bytearray | memoryview, size: int, flags: int, /
    ) -> int: ...


def load(loader: SourceFileLoader | ExtensionFileLoader) -> Calls:
    """A module of our own: it finds no extension to put in its place, and is not left for others to find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, EXTENSION, None)
        spec = spec_from_loader(loader.name, loader)
        assert spec is not None
        module = module_from_spec(spec)
        loader.exec_module(module)
    return cast(Calls, module)


@pytest.fixture(scope="session")
def in_python() -> Calls:
    return load(SourceFileLoader("calls_in_python", str(NET / "calls.py")))


@pytest.fixture(scope="session")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    library = tmp_path_factory.mktemp("extension") / "_calls.so"
    flags = ["-O2", "-fPIC", "-shared", *WARNINGS, *shlex.split(os.environ.get("CFLAGS", ""))]
    command = [*c_compiler(), *flags, str(NET / "_calls.c"), "-o", str(library)]
    compiling = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (0, "") == (compiling.returncode, compiling.stderr)
    return load(ExtensionFileLoader(EXTENSION, str(library)))


@pytest.fixture(scope="session", params=["Python", "C"])
def calls(request: pytest.FixtureRequest) -> Calls:
    kind: Calls = request.getfixturevalue(f"in_{request.param.lower()}")
    return kind


def test_they_are_two(in_python: Calls, in_c: Calls) -> None:
    """Of which the one in C is not what the rest of the tests imports, where nothing is compiled."""
    assert (socket.SocketType, "Socket") == (in_python.Socket, in_c.Socket.__name__)
    assert in_c is not sys.modules.get(EXTENSION)


@contextlib.contextmanager
def listening(family: int = FOUR) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        # The kernel finds a name for a Unix socket that asks for none.
        listener.bind("" if family == UNIX else (LOCALHOST[listener.family], 0))
        listener.listen()
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def client_of(listener: socket.socket, host: str = "") -> Iterator[socket.socket]:
    """Who has connected, from `host` if that is not the same to the test."""
    with socket.socket(listener.family) as client:
        client.settimeout(PATIENCE)
        if host:
            client.bind((host, 0))
        client.connect(listener.getsockname())
        yield client


def until(sock: Socket, event: int) -> None:
    poll = select.poll()
    poll.register(sock.fileno(), event)
    assert poll.poll(PATIENCE * 1000), "nothing happened"


def accepted(calls: Calls, listener: socket.socket) -> tuple[Socket, str]:
    until(listener, select.POLLIN)
    found = calls.accept(listener, listener.family)
    assert found is not None
    return found


@contextlib.contextmanager
def pair(calls: Calls, family: int = FOUR) -> Iterator[tuple[Socket, socket.socket]]:
    """Two ends of a connection: one that was accepted, and its client's."""
    with listening(family) as listener, client_of(listener) as theirs:
        ours, _ = accepted(calls, listener)
        with contextlib.closing(ours):
            yield ours, theirs


@contextlib.contextmanager
def connected(calls: Calls, family: int = FOUR) -> Iterator[tuple[Socket, socket.socket]]:
    """One that has connected, and who listens: the kernel tells him when something is sent, or after 200 ms."""
    with listening(family) as listener:
        listener.settimeout(PATIENCE)
        with contextlib.closing(calls.connect(family, *listener.getsockname()[:2])) as ours:
            until(ours, select.POLLOUT)
            yield ours, listener


def modes(sock: Socket) -> tuple[bool, bool]:
    """Whether it blocks, and whether other programs inherit it."""
    return os.get_blocking(sock.fileno()), os.get_inheritable(sock.fileno())


def pending_error(sock: Socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@contextlib.contextmanager
def fails(*errors: int) -> Iterator[None]:
    """Raises OSError with one of `errors`, any if there are none, and leaves no descriptor."""
    before = open_descriptors()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
        yield
    assert not errors or caught.value.errno in errors
    assert before == open_descriptors()


class TestAccepting:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.255.100.9", "127.10.0.99", "::1"])
    def test_a_connection_comes_with_the_address_of_its_peer(self, calls: Calls, host: str) -> None:
        with listening(SIX if ":" in host else FOUR) as listener, client_of(listener, host) as client:
            sock, ip = accepted(calls, listener)
            with contextlib.closing(sock):
                client.send(b"hello")
                until(sock, select.POLLIN)
                assert (host, b"hello") == (ip, sock.recv(100))

    @settings(max_examples=100, deadline=None)
    @given(octets=st.tuples(*[st.integers(0, 255) | st.sampled_from([0, 9, 10, 99, 100, 255])] * 3))
    def test_whatever_the_address_is(self, calls: Calls, octets: tuple[int, ...]) -> None:
        """The first and the last of the network are nobody's."""
        host = ".".join(map(str, (127, *octets)))
        if host in ("127.0.0.0", "127.255.255.255"):
            return
        with listening() as listener, client_of(listener, host) as client:
            sock, ip = accepted(calls, listener)
            cut(sock)
            assert [host] * 2 == [ip, client.getsockname()[0]]

    def test_on_a_unix_socket_there_is_no_address(self, calls: Calls) -> None:
        """Whether the peer has a name or none."""
        with listening(UNIX) as listener, client_of(listener), socket.socket(UNIX) as named:
            named.bind("")
            named.connect(listener.getsockname())
            for _ in range(2):
                sock, ip = accepted(calls, listener)
                sock.close()
                assert ip == ""

    @pytest.mark.parametrize("family", [FOUR, SIX, UNIX])
    def test_the_socket_is_of_its_listener_s_family_blocks_nobody_and_is_not_inherited(
        self, calls: Calls, family: int
    ) -> None:
        with pair(calls, family) as (ours, _):
            assert (calls.Socket, family, (False, False)) == (type(ours), ours.family, modes(ours))

    def test_nobody_waits(self, calls: Calls) -> None:
        with listening() as listener:
            assert calls.accept(listener, FOUR) is None
            with client_of(listener):
                accepted(calls, listener)[0].close()
            assert calls.accept(listener, FOUR) is None

    def test_without_a_descriptor_it_says_so_and_the_connection_stays(self, calls: Calls) -> None:
        with listening() as listener, client_of(listener):
            until(listener, select.POLLIN)
            with fails(errno.EMFILE), no_descriptor_left():
                calls.accept(listener, FOUR)
            accepted(calls, listener)[0].close()

    def test_a_listener_that_is_closed_is_an_error(self, calls: Calls) -> None:
        with listening() as listener:
            listener.close()
            with fails(errno.EBADF):
                calls.accept(listener, FOUR)

    def test_so_is_a_socket_that_does_not_listen(self, calls: Calls) -> None:
        with socket.socket() as sock, fails(errno.EINVAL):
            calls.accept(sock, FOUR)


class TestConnecting:
    @pytest.mark.parametrize("family", [FOUR, SIX])
    def test_it_connects(self, calls: Calls, family: int) -> None:
        """The socket blocks nobody, is not inherited, and sends without delay."""
        with connected(calls, family) as (ours, listener):
            assert (calls.Socket, family, (False, False)) == (type(ours), ours.family, modes(ours))
            assert (True, 0) == (bool(ours.getsockopt(TCP, socket.TCP_NODELAY)), pending_error(ours))
            ours.send(b"through")
            with listener.accept()[0] as theirs:
                theirs.settimeout(PATIENCE)
                assert theirs.recv(100) == b"through"

    def test_what_is_sent_first_acknowledges_the_handshake(self, calls: Calls) -> None:
        """Two packets went out, the SYN and the bytes, unless this machine took 200 ms from one to the other."""
        sent = 0
        for _ in range(20):
            with connected(calls) as (ours, _):
                ours.send(b"hello")
                sent = packets_sent(ours)
            if sent == 2:
                return
        pytest.fail(f"{sent} packets went out")

    @pytest.mark.parametrize("family", [FOUR, SIX])
    def test_a_refusal_is_told_by_an_event(self, calls: Calls, family: socket.AddressFamily) -> None:
        """Even from this machine, whose answer is there before the call is over."""
        with contextlib.closing(calls.connect(family, LOCALHOST[family], unused_port())) as sock:
            until(sock, select.POLLOUT)
            assert errno.ECONNREFUSED == pending_error(sock)

    def test_what_cannot_even_begin_is_an_error(self, calls: Calls) -> None:
        """A multicast address is refused by the kernel before any packet is sent."""
        with fails(errno.ENETUNREACH):
            calls.connect(FOUR, "224.0.0.1", 443)

    @pytest.mark.parametrize(
        ("family", "host"),
        [(FOUR, "no..address"), (FOUR, "::1"), (SIX, "127.0.0.1"), (SIX, "no..address"), (UNIX, "/run/socket")],
    )
    def test_what_is_no_address_of_the_family_is_an_error(self, calls: Calls, family: int, host: str) -> None:
        with fails():
            calls.connect(family, host, 443)

    def test_an_address_ends_where_its_string_does(self, calls: Calls) -> None:
        """Not at a NUL in it, as a string in C would."""
        with listening() as listener, pytest.raises((TypeError, OSError)):
            calls.connect(FOUR, "127.0.0.1\0.example", listener.getsockname()[1])

    def test_without_a_descriptor_it_says_so(self, calls: Calls) -> None:
        with fails(errno.EMFILE), no_descriptor_left():
            calls.connect(FOUR, "127.0.0.1", 443)


class TestReceiving:
    def test_what_has_come_and_then_the_end(self, calls: Calls) -> None:
        """As much as was asked for, and the rest the next time."""
        with pair(calls) as (ours, theirs):
            theirs.send(b"hello")
            theirs.shutdown(socket.SHUT_WR)
            until(ours, select.POLLRDHUP)
            assert [b"hel", b"lo", b"", b""] == [ours.recv(3), ours.recv(100), ours.recv(100), ours.recv(100)]

    def test_into_a_buffer(self, calls: Calls) -> None:
        """Its length is the most that is read; what is behind the bytes stays as it was."""
        with pair(calls) as (ours, theirs):
            theirs.send(b"hello")
            theirs.shutdown(socket.SHUT_WR)
            until(ours, select.POLLRDHUP)
            buffer = bytearray(b"....")
            assert (4, b"hell") == (ours.recv_into(buffer), bytes(buffer))
            assert (1, b"oell") == (ours.recv_into(memoryview(buffer)), bytes(buffer))
            assert (0, b"oell") == (ours.recv_into(buffer), bytes(buffer))

    def test_nothing_yet(self, calls: Calls) -> None:
        with pair(calls) as (ours, _):
            with pytest.raises(BlockingIOError):
                ours.recv(100)
            with pytest.raises(BlockingIOError):
                ours.recv_into(bytearray(100))

    @pytest.mark.parametrize("read", [lambda sock: sock.recv(1), lambda sock: sock.recv_into(bytearray(1))])
    def test_a_reset(self, calls: Calls, read: Callable[[Socket], object]) -> None:
        with pair(calls) as (ours, theirs):
            cut(theirs)
            until(ours, select.POLLHUP)
            with pytest.raises(ConnectionResetError):
                read(ours)

    @pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 1 << 20])
    def test_a_large_size_gives_what_one_read_gives(self, calls: Calls, size: int) -> None:
        """Which may be less. Nothing of what was sent is lost."""
        with pair(calls) as (ours, theirs):
            theirs.setblocking(False)
            left = fill(theirs)
            assert left > 64 * 1024
            while left:
                until(ours, select.POLLIN)
                got = len(ours.recv(size))
                assert 0 < got <= size
                left -= got

    def test_no_buffer_to_write_to_is_refused(self, calls: Calls) -> None:
        """And nothing of what has come is lost."""
        with pair(calls) as (ours, theirs):
            theirs.send(b"hello")
            until(ours, select.POLLIN)
            for buffer in (b"12345", memoryview(b"12345"), memoryview(bytearray(10))[::2], "12345", None):
                with pytest.raises((TypeError, BufferError)):
                    ours.recv_into(cast(bytearray, buffer))
            assert ours.recv(100) == b"hello"


class TestSending:
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_bytes_of_any_kind(self, calls: Calls, kind: Callable[[bytes], bytes]) -> None:
        with pair(calls) as (ours, theirs):
            assert (5, b"hello") == (ours.send(kind(b"hello")), theirs.recv(100))

    def test_the_flags_are_the_kernel_s(self, calls: Calls) -> None:
        """MSG_MORE, which we use, and one whose effect is seen: a byte that is out of band."""
        with pair(calls) as (ours, theirs):
            assert [2, 3] == [ours.send(b"he", socket.MSG_MORE), ours.send(b"llo")]
            heard = b""
            while len(heard) < 5:
                heard += theirs.recv(100)
            assert heard == b"hello"
            ours.send(b"!", socket.MSG_OOB)
            until(theirs, select.POLLPRI)
            theirs.setblocking(False)  # with a time limit, Python would wait for what is in band
            assert theirs.recv(1, socket.MSG_OOB) == b"!"

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_the_first_of_many_bytes(self, calls: Calls, kind: Callable[[bytes], bytes]) -> None:
        """What is behind them stays where it is, and their number is all of them at most."""
        with pair(calls) as (ours, theirs):
            data = kind(b"hello, world")
            assert [5, 0, 12] == [calls.send_first(ours, data, size, 0) for size in (5, 0, 12)]
            heard = b""
            while len(heard) < 17:
                heard += theirs.recv(100)
            assert heard == b"hellohello, world"
            ours.shutdown(socket.SHUT_WR)
            with pytest.raises(BrokenPipeError):
                calls.send_first(ours, data, 5, 0)

    def test_what_finds_no_room_is_sent_in_part_and_then_not_at_all(self, calls: Calls) -> None:
        data = bytes(range(256)) * (1 << 16)
        with pair(calls) as (ours, theirs):
            sent = ours.send(data)
            assert 0 < sent < len(data)
            with pytest.raises(BlockingIOError):
                while True:
                    sent += ours.send(data[sent:])
            heard = b""
            while len(heard) < sent:
                heard += theirs.recv(1 << 20)
            assert heard == data[:sent]

    @pytest.mark.parametrize("family", [FOUR, UNIX])
    def test_to_one_that_is_gone(self, calls: Calls, family: int) -> None:
        with pair(calls, family) as (ours, _):
            ours.shutdown(socket.SHUT_WR)
            with pytest.raises(BrokenPipeError):
                ours.send(b"hello")

    def test_which_is_no_signal(self, in_c: Calls) -> None:
        """In C. Python's own call is for programs that have SIGPIPE ignored, as Python has it from its start."""
        heard: list[int] = []
        before = signal.signal(signal.SIGPIPE, lambda number, _: heard.append(number))
        try:
            self.test_to_one_that_is_gone(in_c, FOUR)
            self.test_to_one_that_is_gone(in_c, UNIX)
        finally:
            signal.signal(signal.SIGPIPE, before)
        assert heard == []


class TestClosing:
    def test_shutting_down_one_way_leaves_the_other(self, calls: Calls) -> None:
        with pair(calls) as (ours, theirs):
            ours.shutdown(socket.SHUT_WR)
            assert theirs.recv(100) == b""
            theirs.send(b"hello")
            until(ours, select.POLLIN)
            assert ours.recv(100) == b"hello"

    def test_shutting_down_what_is_not_connected_is_an_error(self, calls: Calls) -> None:
        with pair(calls) as (ours, theirs):
            cut(theirs)
            until(ours, select.POLLHUP)
            with fails(errno.ENOTCONN):
                ours.shutdown(socket.SHUT_WR)

    def test_the_peer_sees_an_end_and_the_descriptor_is_gone(self, calls: Calls) -> None:
        with pair(calls) as (ours, theirs):
            before = open_descriptors()
            ours.close()
            assert (-1, before - 1) == (ours.fileno(), open_descriptors())
            assert theirs.recv(100) == b""

    def test_closing_again_touches_nobody_who_has_the_number_now(self, calls: Calls) -> None:
        with pair(calls) as (ours, _):
            number = ours.fileno()
            ours.close()
            with open(os.devnull) as other:
                assert number == other.fileno()
                ours.close()
                assert os.fstat(other.fileno())

    def test_closing_what_was_reset_is_no_error(self, calls: Calls) -> None:
        with pair(calls) as (ours, theirs):
            ours.send(b"hello")
            cut(theirs)
            until(ours, select.POLLHUP)
            ours.close()

    @pytest.mark.parametrize(
        "use",
        [
            lambda sock: sock.recv(1),
            lambda sock: sock.recv_into(bytearray(1)),
            lambda sock: sock.send(b"x"),
            lambda sock: sock.shutdown(socket.SHUT_WR),
            lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
            lambda sock: sock.getsockopt(TCP, socket.TCP_INFO, 1),
            lambda sock: sock.setsockopt(TCP, socket.TCP_NODELAY, 1),
            lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE),
        ],
        ids=["recv", "recv_into", "send", "shutdown", "int of", "bytes of", "set int", "set bytes"],
    )
    def test_what_is_closed_can_nothing(self, calls: Calls, use: Callable[[Socket], object]) -> None:
        with pair(calls) as (ours, _):
            ours.close()
            with fails(errno.EBADF):
                use(ours)


class TestOptions:
    def test_that_are_numbers(self, calls: Calls) -> None:
        with pair(calls) as (ours, _):
            before = ours.getsockopt(TCP, socket.TCP_NODELAY)
            ours.setsockopt(TCP, socket.TCP_NODELAY, True)
            after = ours.getsockopt(TCP, socket.TCP_NODELAY)
            assert (False, True) == (bool(before), bool(after))
            assert socket.SOCK_STREAM == ours.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)

    def test_that_are_structs(self, calls: Calls) -> None:
        """Linger with no time, by which the close becomes a reset."""
        with pair(calls) as (ours, theirs):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            assert RESET_ON_CLOSE == ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
            ours.close()
            with pytest.raises(ConnectionResetError):
                theirs.recv(1)

    def test_as_long_as_they_are_and_no_longer_than_asked_for(self, calls: Calls) -> None:
        with pair(calls) as (ours, _):
            assert ESTABLISHED == ours.getsockopt(TCP, socket.TCP_INFO, 1)
            assert 8 == len(ours.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 200))

    def test_of_the_user_at_the_other_end(self, calls: Calls) -> None:
        with pair(calls, UNIX) as (ours, _):
            credentials = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            assert (os.getpid(), os.getuid(), os.getgid()) == struct.unpack("iII", credentials)

    def test_that_are_none(self, calls: Calls) -> None:
        with pair(calls) as (ours, _):
            with fails(errno.ENOPROTOOPT):
                ours.getsockopt(TCP, 9999)
            with fails(errno.ENOPROTOOPT):
                ours.setsockopt(TCP, 9999, 1)
            with fails(errno.EINVAL):
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"x")
            for size in (-1, 1 << 20):
                with fails():
                    ours.getsockopt(TCP, socket.TCP_INFO, size)


@contextlib.contextmanager
def waiting(calls: Calls) -> Iterator[select.epoll]:
    """An epoll of somebody else, by a descriptor of its own."""
    with select.epoll() as original:
        with contextlib.closing(calls.Epoll.fromfd(os.dup(original.fileno()))) as epoll:
            yield epoll


class TestWaiting:
    def test_what_happens_is_told_by_descriptor_and_mask(self, calls: Calls) -> None:
        """As long as it is so, and as far as it is asked for."""
        with waiting(calls) as epoll, pair(calls, UNIX) as (ours, theirs):
            fd = ours.fileno()
            epoll.register(fd, select.EPOLLIN | select.EPOLLOUT)
            assert [(fd, select.EPOLLOUT)] == epoll.poll(0, 10)
            theirs.send(b"x")
            assert [(fd, select.EPOLLIN | select.EPOLLOUT)] == epoll.poll(0, 10)
            epoll.modify(fd, select.EPOLLIN)
            assert [[(fd, select.EPOLLIN)]] * 2 == [epoll.poll(None, 10), epoll.poll(-1, 10)]
            epoll.unregister(fd)
            assert epoll.poll(0, 10) == []

    def test_an_edge_is_told_once(self, calls: Calls) -> None:
        """EPOLLET is the highest bit of the mask."""
        with waiting(calls) as epoll, pair(calls, UNIX) as (ours, theirs):
            epoll.register(ours.fileno(), select.EPOLLIN | select.EPOLLET)
            theirs.send(b"x")
            assert [[(ours.fileno(), select.EPOLLIN)], []] == [epoll.poll(0, 10), epoll.poll(0, 10)]

    @pytest.mark.parametrize(("count", "most"), [(5, 1), (5, 2), (5, 5), (300, 1 << 20)])
    def test_no_more_at_once_than_asked_for_and_each_in_its_turn(self, calls: Calls, count: int, most: int) -> None:
        with waiting(calls) as epoll, pair(calls, UNIX) as (ours, _), contextlib.ExitStack() as stack:
            expected = set()
            for _ in range(count):
                fd = os.dup(ours.fileno())
                stack.callback(os.close, fd)
                epoll.register(fd, select.EPOLLOUT)
                expected.add((fd, select.EPOLLOUT))
            told: set[tuple[int, int]] = set()
            for _ in range(count):
                events = epoll.poll(0, most)
                assert 0 < len(events) <= most
                told.update(events)
            assert expected == told

    @pytest.mark.parametrize("seconds", [0.0001, 0.0101])
    def test_nobody_wakes_before_his_time(self, calls: Calls, seconds: float) -> None:
        with waiting(calls) as epoll:
            began = time.monotonic()
            assert epoll.poll(seconds, 10) == []
            assert time.monotonic() - began >= seconds

    def test_others_run_meanwhile(self, calls: Calls) -> None:
        """A thread answers 100 times, while we wait for it."""
        with waiting(calls) as epoll, pair(calls, UNIX) as (ours, theirs):
            epoll.register(ours.fileno(), select.EPOLLIN)

            def answer() -> None:
                while question := theirs.recv(1):
                    theirs.send(question)

            thread = threading.Thread(target=answer)
            thread.start()
            try:
                for _ in range(100):
                    ours.send(b"x")
                    assert [(ours.fileno(), select.EPOLLIN)] == epoll.poll(PATIENCE, 10)
                    ours.recv(1)
            finally:
                ours.shutdown(socket.SHUT_WR)
                thread.join(PATIENCE)

    def test_a_signal_is_heard(self, calls: Calls) -> None:
        """What its handler raises ends the wait. If it returns, there may be no events yet, or the wait goes on."""
        with waiting(calls) as epoll, pair(calls, UNIX) as (ours, theirs):
            epoll.register(ours.fileno(), select.EPOLLIN)
            with pytest.raises(ZeroDivisionError), on_alarm(lambda: 1 // 0):
                epoll.poll(PATIENCE, 10)
            with on_alarm(lambda: theirs.send(b"x")):
                events = epoll.poll(PATIENCE, 10) or epoll.poll(PATIENCE, 10)
            assert [(ours.fileno(), select.EPOLLIN)] == events

    def test_what_cannot_be_watched_is_an_error(self, calls: Calls) -> None:
        with waiting(calls) as epoll, pair(calls) as (ours, _), open(__file__) as file:
            fd = ours.fileno()
            with fails(errno.ENOENT):
                epoll.modify(fd, select.EPOLLIN)
            with fails(errno.ENOENT):
                epoll.unregister(fd)
            with fails(errno.EPERM):
                epoll.register(file.fileno(), select.EPOLLIN)
            epoll.register(fd, select.EPOLLIN)
            with fails(errno.EEXIST):
                epoll.register(fd, select.EPOLLIN)

    def test_closing_closes_its_own_descriptor_once(self, calls: Calls) -> None:
        """Not that of whoever has the number now; and what is closed can nothing."""
        with waiting(calls) as epoll:
            before = open_descriptors()
            epoll.close()
            assert before - 1 == open_descriptors()
            with open(os.devnull) as other:
                epoll.close()
                assert os.fstat(other.fileno())
            for use in (lambda: epoll.poll(0, 1), lambda: epoll.register(0, 0), lambda: epoll.unregister(0)):
                with pytest.raises((OSError, ValueError)):  # Python's says it by a ValueError
                    use()

    def test_one_that_is_dropped_is_closed(self, calls: Calls) -> None:
        with select.epoll() as original:
            before = open_descriptors()
            calls.Epoll.fromfd(os.dup(original.fileno()))
            assert before == open_descriptors()


@contextlib.contextmanager
def on_alarm(function: Callable[[], object]) -> Iterator[None]:
    """In 10 ms a signal comes, whose handler calls `function`."""
    before = signal.signal(signal.SIGALRM, lambda *_: function())
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class One:
    """What can be taken for a number, by code in Python."""

    def __index__(self) -> int:
        return 1


HUGE, HUGER = 1 << 40, 1 << 80

WRONG: dict[str, Callable[[Any, Any], object]] = {
    "accept nothing": lambda calls, _: calls.accept(),
    "accept with no family": lambda calls, _: calls.accept(socket.socket),
    "connect nothing": lambda calls, _: calls.connect(),
    "connect to no port": lambda calls, _: calls.connect(FOUR, "127.0.0.1"),
    "connect with one argument too many": lambda calls, _: calls.connect(FOUR, "127.0.0.1", 443, 0),
    "a family that is no number": lambda calls, _: calls.connect("inet", "127.0.0.1", 443),
    "a family that is too large": lambda calls, _: calls.connect(HUGE, "127.0.0.1", 443),
    "a host that is no string": lambda calls, _: calls.connect(FOUR, None, 443),
    "a host that is a number": lambda calls, _: calls.connect(FOUR, 0x7F000001, 443),
    "a port that is no number": lambda calls, _: calls.connect(FOUR, "127.0.0.1", "443"),
    "a port that is negative": lambda calls, _: calls.connect(FOUR, "127.0.0.1", -1),
    "a port that is too large": lambda calls, _: calls.connect(FOUR, "127.0.0.1", 65536),
    "a port that is much too large": lambda calls, _: calls.connect(FOUR, "127.0.0.1", HUGER),
    "fileno of something": lambda _, sock: sock.fileno(1),
    "receive how much": lambda _, sock: sock.recv(),
    "receive a string": lambda _, sock: sock.recv("1"),
    "receive a half": lambda _, sock: sock.recv(0.5),
    "receive too much": lambda _, sock: sock.recv(HUGER),
    "receive negatively too much": lambda _, sock: sock.recv(-HUGER),
    "receive by name": lambda _, sock: sock.recv(size=1),
    "receive into nothing": lambda _, sock: sock.recv_into(),
    "send nothing": lambda _, sock: sock.send(),
    "send a string": lambda _, sock: sock.send("hello"),
    "send None": lambda _, sock: sock.send(None),
    "send more than is said": lambda _, sock: sock.send(b"hello", 0, 0),
    "send the first": lambda calls, sock: calls.send_first(sock, b"hello"),
    "send the first of a string": lambda calls, sock: calls.send_first(sock, "hello", 1, 0),
    "send the first with flags that are no number": lambda calls, sock: calls.send_first(sock, b"hello", 1, "more"),
    "flags that are no number": lambda _, sock: sock.send(b"hello", "more"),
    "flags that are None": lambda _, sock: sock.send(b"hello", None),
    "flags that are too large": lambda _, sock: sock.send(b"hello", HUGE),
    "flags that are much too large": lambda _, sock: sock.send(b"hello", HUGER),
    "shut down which way": lambda _, sock: sock.shutdown(),
    "shut down by a string": lambda _, sock: sock.shutdown("WR"),
    "shut down by far": lambda _, sock: sock.shutdown(HUGE),
    "close something": lambda _, sock: sock.close(1),
    "which option": lambda _, sock: sock.getsockopt(TCP),
    "an option and three more": lambda _, sock: sock.getsockopt(TCP, 1, 1, 1),
    "an option of no number": lambda _, sock: sock.getsockopt(TCP, "nodelay"),
    "an option of a level of no number": lambda _, sock: sock.getsockopt("tcp", 1),
    "a level of no number, and code in Python": lambda _, sock: sock.getsockopt("tcp", One(), One()),
    "an option that is too large": lambda _, sock: sock.getsockopt(TCP, HUGE),
    "an option of a size of no number": lambda _, sock: sock.getsockopt(TCP, 1, "1"),
    "set an option to what": lambda _, sock: sock.setsockopt(TCP, 1),
    "set an option to a string": lambda _, sock: sock.setsockopt(TCP, 1, "1"),
    "set an option to None": lambda _, sock: sock.setsockopt(TCP, 1, None),
    "set an option to too much": lambda _, sock: sock.setsockopt(TCP, 1, HUGE),
    "set an option of no number": lambda _, sock: sock.setsockopt(TCP, "nodelay", 1),
    "set an option of no number, and code in Python": lambda _, sock: sock.setsockopt("tcp", One(), 1),
}


def test_the_first_bytes_go_by_a_socket_of_the_same_kind(in_c: Calls) -> None:
    """In C, which looks into it. And fewer than no bytes are none that could be sent."""
    with socket.socket() as other, pytest.raises(TypeError):
        in_c.send_first(other, b"hello", 5, 0)
    with pair(in_c) as (ours, _), pytest.raises(ValueError, match="fewer than no bytes"):
        in_c.send_first(ours, b"hello", -1, 0)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_told_and_changes_nothing(calls: Calls, case: str) -> None:
    """No descriptor is left, and the connection goes on."""
    with pair(calls) as (ours, theirs):
        before = open_descriptors()
        with pytest.raises((TypeError, OverflowError)):
            WRONG[case](calls, ours)
        assert before == open_descriptors()
        ours.send(b"goes on")
        assert theirs.recv(100) == b"goes on"


WRONG_WAITS: dict[str, Callable[[Any], object]] = {
    "an epoll of nothing": lambda epoll: type(epoll).fromfd(),
    "an epoll of no number": lambda epoll: type(epoll).fromfd("1"),
    "register nothing": lambda epoll: epoll.register(),
    "register no number": lambda epoll: epoll.register("1", 1),
    "register a number that is too large": lambda epoll: epoll.register(HUGE, 1),
    "register with a mask of no number": lambda epoll: epoll.register(0, "in"),
    "register with more than a mask": lambda epoll: epoll.register(0, 1, 1),
    "modify with no mask": lambda epoll: epoll.modify(0),
    "unregister nothing": lambda epoll: epoll.unregister(),
    "unregister with a mask": lambda epoll: epoll.unregister(0, 1),
    "wait for a string": lambda epoll: epoll.poll("1", 1),
    "wait for no number of events": lambda epoll: epoll.poll(0, "1"),
    "wait for too many events": lambda epoll: epoll.poll(0, HUGE),
    "wait for more than events": lambda epoll: epoll.poll(0, 1, 1),
    "close something": lambda epoll: epoll.close(1),
}


@pytest.mark.parametrize("case", WRONG_WAITS)
def test_a_wrong_argument_of_a_wait_is_told(calls: Calls, case: str) -> None:
    with waiting(calls) as epoll:
        with pytest.raises((TypeError, OverflowError)):
            WRONG_WAITS[case](epoll)
        assert epoll.poll(0, 1) == []


def test_a_negative_size_is_told(calls: Calls) -> None:
    with pair(calls) as (ours, _):
        for size in (-1, -sys.maxsize):
            with pytest.raises(ValueError, match="negative"):
                ours.recv(size)


@pytest.mark.parametrize("listener", [None, "1", 1.5, object()], ids=repr)
def test_what_is_no_listener_is_told(in_c: Calls, listener: object) -> None:
    """In C. Python's misses a method of it."""
    with pytest.raises(TypeError):
        in_c.accept(cast(socket.socket, listener), FOUR)
    with pytest.raises(TypeError):
        in_c.accept(cast(socket.socket, listener), cast(int, One()))


class TestTheTypesInC:
    def test_they_have_what_we_use_and_no_more(self, in_c: Calls) -> None:
        expected = {
            in_c.Socket: "close family fileno getsockopt recv recv_into send setsockopt shutdown",
            in_c.Epoll: "close fromfd modify poll register unregister",
        }
        for kind, names in expected.items():
            assert names.split() == [name for name in dir(kind) if not name.startswith("_")]

    def test_nobody_makes_or_copies_one(self, in_c: Calls) -> None:
        """Two of one descriptor would close each other's."""
        with pair(in_c) as (ours, _):
            for make in (
                in_c.Socket,
                in_c.Epoll,
                lambda: in_c.Socket(FOUR),
                lambda: object.__new__(in_c.Socket),
                lambda: copy.copy(ours),
                lambda: type("Derived", (in_c.Socket,), {}),
            ):
                with pytest.raises(TypeError):
                    make()

    def test_its_family_stays(self, in_c: Calls) -> None:
        with pair(in_c) as (ours, _):
            with pytest.raises(AttributeError):
                ours.family = SIX  # type: ignore[misc]
            assert FOUR == ours.family


class TestOneThatIsDropped:
    def test_it_is_closed_and_said(self, calls: Calls) -> None:
        with listening() as listener, client_of(listener) as client:
            before = open_descriptors()
            with pytest.warns(ResourceWarning, match="unclosed"):
                accepted(calls, listener)
            assert (before, b"") == (open_descriptors(), client.recv(1))

    def test_even_where_warnings_are_errors(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that nobody can catch, as there is nobody."""
        said: list[object] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda told: said.append(told.exc_type))
        with listening() as listener, client_of(listener) as client, warnings.catch_warnings():
            warnings.simplefilter("error")
            before = open_descriptors()
            accepted(calls, listener)
            assert ([ResourceWarning], before, b"") == (said, open_descriptors(), client.recv(1))

    def test_one_that_is_closed_goes_in_silence(self, calls: Calls) -> None:
        with listening() as listener, client_of(listener), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            accepted(calls, listener)[0].close()
        assert said == []

    def test_what_is_raised_meanwhile_is_not_lost(self, calls: Calls) -> None:
        """The list goes, and the socket with it, while the division is looking for who catches it."""
        with listening() as listener, client_of(listener):
            with pytest.raises(ZeroDivisionError), pytest.warns(ResourceWarning, match="unclosed"):
                print([accepted(calls, listener), 1 // 0])  # noqa: T201 - it never does

    def test_whoever_keeps_the_warning_has_a_closed_one(self, calls: Calls) -> None:
        """The warning names it, and so brings it back. When that goes, nothing is left to say."""
        with listening() as listener, client_of(listener), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            accepted(calls, listener)
            kept: Any = said.pop().source
            with fails(errno.EBADF):
                kept.recv(1)
            del kept
        assert said == []


USES: dict[str, Callable[[Socket, Any], object]] = {
    "receive into it": lambda sock, buffer: sock.recv_into(buffer),
    "receive into what cannot be written": lambda sock, buffer: sock.recv_into(bytes(buffer)),
    "send it": lambda sock, buffer: sock.send(buffer),
    "send it with flags that are none": lambda sock, buffer: sock.send(buffer, cast(int, "x")),
    "set an option to it": lambda sock, buffer: sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, buffer),
    "set an option of no number to it": lambda sock, buffer: sock.setsockopt(cast(int, "x"), 1, buffer),
    "receive as much": lambda sock, buffer: sock.recv(buffer),
}


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("use", USES)
def test_nothing_keeps_a_buffer(calls: Calls, use: str, closed: bool) -> None:
    """Nor holds it, so that it may still grow; whether the call succeeds or fails."""
    with pair(calls) as (ours, theirs):
        theirs.send(b"x" * 24)
        until(ours, select.POLLIN)
        if closed:
            ours.close()
        buffer = bytearray(8)
        before = sys.getrefcount(buffer), sys.getrefcount(ours)
        for _ in range(10):
            with contextlib.suppress(OSError, TypeError, BufferError):
                USES[use](ours, buffer)
        assert before == (sys.getrefcount(buffer), sys.getrefcount(ours))
        buffer.append(0)


def test_nothing_is_left_of_a_connection(calls: Calls) -> None:
    """No memory, of 100 lives with all that can go wrong in one."""
    with no_collection(), listening() as listener:
        for number in range(120):
            if number == 20:  # what is made once is made
                before = sys.getallocatedblocks()
            with waiting(calls) as epoll:
                live(calls, listener, epoll)
        assert abs(sys.getallocatedblocks() - before) < 50


def test_nothing_is_left_of_an_event(calls: Calls) -> None:
    """No memory; of numbers above 256, for those below are always there."""
    with no_collection(), waiting(calls) as epoll, pair(calls, UNIX) as (ours, _):
        fd = fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, 300)
        try:
            epoll.register(fd, select.EPOLLWRBAND)
            assert [(fd, select.EPOLLWRBAND)] == epoll.poll(0, 10)
            before = sys.getallocatedblocks()
            for _ in range(100):
                epoll.poll(0, 10)
            assert abs(sys.getallocatedblocks() - before) < 50
        finally:
            os.close(fd)


def live(calls: Calls, listener: socket.socket, epoll: select.epoll) -> None:
    """Connect, accept, and try everything, right and wrong, before and after the close."""
    ours = calls.connect(FOUR, *listener.getsockname())
    until(ours, select.POLLOUT)
    ours.send(b"hello")
    theirs, _ = accepted(calls, listener)
    for sock in (ours, theirs, ours, theirs):
        attempt(calls.accept, listener, FOUR)
        attempt(calls.connect, FOUR, "::1", 443)
        attempt(calls.connect, FOUR, "224.0.0.1", 443)
        attempt(sock.recv, 3)
        attempt(sock.getsockopt, TCP, socket.TCP_INFO, 1)
        attempt(sock.setsockopt, TCP, socket.TCP_NODELAY, 1)
        for use in USES.values():
            attempt(use, sock, bytearray(8))
        for misuse in WRONG.values():
            attempt(misuse, calls, sock)
        attempt(epoll.register, sock.fileno(), select.EPOLLIN)
        attempt(epoll.modify, sock.fileno(), select.EPOLLOUT)
        attempt(epoll.poll, 0, 10)
        for mistake in WRONG_WAITS.values():
            attempt(mistake, epoll)
        sock.close()


def attempt(function: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(OSError, TypeError, OverflowError, ValueError, BufferError):
        function(*arguments)
