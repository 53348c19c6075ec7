"""Bytes through the real proxy: exact both ways at once, with half-closes, slow readers and resets in the mix."""

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import allowing
from tests.support.clients import connected, hello_for
from tests.support.origins import origin, read_exactly, read_to_end
from tests.support.proxy import ProxyProcess, running_proxy

NAME = "bytes.wikipedia.org"
HELLO = hello_for(NAME)
RESET = struct.pack("ii", 1, 0)
NO_TLS = 0x80  # what comes behind the hello, from here on, begins no record of TLS

GIB = 1 << 30
STREAMS = 20
CHUNK = 256 * 1024
BLOCK = os.urandom(4 * 1024 * 1024)


def stream_of(seed: int, size: int) -> Iterator[memoryview]:
    """`size` bytes that no other seed gives: a window that slides over one random block."""
    block, offset = memoryview(BLOCK), seed * 4099
    while size > 0:
        offset = (offset + 65_537) % (len(block) - CHUNK)
        chunk = block[offset : offset + min(CHUNK, size)]
        yield chunk
        size -= len(chunk)


def send_stream(sock: socket.socket, seed: int, size: int) -> str:
    """Send a stream; the SHA-256 of it."""
    digest = hashlib.sha256()
    for chunk in stream_of(seed, size):
        digest.update(chunk)
        sock.sendall(chunk)
    return digest.hexdigest()


def receive_stream(sock: socket.socket, size: int, pause: float = 0.0) -> str:
    """Receive `size` bytes, resting after each read if the reader is a slow one; the SHA-256 of them."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    while size > 0:
        count = sock.recv_into(buffer, min(size, len(buffer)))
        assert count, f"ended {size} bytes early"
        digest.update(buffer[:count])
        size -= count
        time.sleep(pause)
    return digest.hexdigest()


def both_ways(
    sock: socket.socket, seeds: tuple[int, int], size: int, *, half_close: bool, pause: float
) -> tuple[str, str]:
    """Send one stream while receiving the other; the digests of what was sent and of what was received."""
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send_stream, sock, seeds[0], size)
        received = receive_stream(sock, size, pause)
        sent = sending.result()
    if half_close:
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    return sent, received


def test_a_gibibyte_each_way_at_once_over_20_connections(tmp_path: Path) -> None:
    """SHA-256 is the same at both ends of every stream; resets beside them disturb nothing."""
    size = GIB // STREAMS
    at_origin: dict[int, tuple[str, str]] = {}

    def serve(sock: socket.socket) -> None:
        assert read_exactly(sock, len(HELLO)) == HELLO
        number = sock.recv(1)[0] - NO_TLS
        if number >= STREAMS:  # one of those that the client resets
            with contextlib.suppress(OSError):
                read_to_end(sock)
            return
        slow = 0.0005 if number % 5 == 1 else 0.0
        at_origin[number] = both_ways(sock, (100 + number, number), size, half_close=number % 2 == 0, pause=slow)

    def stream(address: tuple[str, int], number: int) -> tuple[str, str]:
        with connected(address) as sock:
            sock.sendall(HELLO + bytes([NO_TLS + number]))
            slow = 0.0005 if number % 5 == 0 else 0.0
            return both_ways(sock, (number, 100 + number), size, half_close=number % 2 == 0, pause=slow)

    def break_off(address: tuple[str, int], number: int) -> None:
        with connected(address) as sock:
            sock.sendall(HELLO + bytes([NO_TLS + number]) + BLOCK[: 1 << 20])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with origin(serve) as port:
        config = {"upstream": {"hosts": {NAME: [f"127.0.0.1:{port}"]}}}
        with running_proxy(tmp_path, config, allowing(NAME)) as proxy, ThreadPoolExecutor(STREAMS + 2) as pool:
            streams = {number: pool.submit(stream, proxy.address, number) for number in range(STREAMS)}
            resets = [pool.submit(break_off, proxy.address, STREAMS + number) for number in range(10)]
            at_client = {number: future.result() for number, future in streams.items()}
            for future in resets:
                future.result()
            lines = proxy.wait_for_finals(STREAMS + 10)
    assert at_client == {number: (received, sent) for number, (sent, received) in at_origin.items()}
    assert len(at_client) == STREAMS
    reasons = [line["reason"] for line in lines]
    assert (reasons.count("done"), reasons.count("client_reset")) == (STREAMS, 10)
    relayed = [(line["receivedBytes"], line["sentBytes"]) for line in lines if line["reason"] == "done"]
    assert relayed == [(len(HELLO) + 1 + size, size)] * STREAMS


@contextlib.contextmanager
def proxy_to(tmp_path: Path, port: int, **timeouts: str) -> Iterator[ProxyProcess]:
    config = {"upstream": {"hosts": {NAME: [f"127.0.0.1:{port}"]}}, "timeouts": timeouts}
    with running_proxy(tmp_path, config, allowing(NAME)) as proxy:
        yield proxy


def test_a_clients_half_close_reaches_the_origin_which_goes_on(tmp_path: Path) -> None:
    """The origin sees the end of the request, and answers after it."""

    def serve(sock: socket.socket) -> None:
        request = read_to_end(sock)
        sock.sendall(b"you sent %d bytes" % len(request))

    with origin(serve) as port, proxy_to(tmp_path, port) as proxy, connected(proxy.address) as sock:
        sock.sendall(HELLO + b"and more")
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b"you sent %d bytes" % (len(HELLO) + 8)


def test_an_origins_half_close_reaches_the_client_which_goes_on(tmp_path: Path) -> None:
    """The client sees the end of the answer, and what it sends after that arrives."""
    arrived = threading.Event()

    def serve(sock: socket.socket) -> None:
        read_exactly(sock, len(HELLO))
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b"thank you"
        arrived.set()

    with origin(serve) as port, proxy_to(tmp_path, port) as proxy, connected(proxy.address) as sock:
        sock.sendall(HELLO)
        assert sock.recv(1) == b""
        sock.sendall(b"thank you")
        sock.shutdown(socket.SHUT_WR)
        assert arrived.wait(20)


def test_a_reset_of_the_origin_is_a_reset_for_the_client(tmp_path: Path) -> None:
    """After what the origin had sent before; a broken answer must not look like a whole one."""

    def serve(sock: socket.socket) -> None:
        read_exactly(sock, len(HELLO) + 2)
        sock.sendall(b"half an ans")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with origin(serve) as port, proxy_to(tmp_path, port) as proxy, connected(proxy.address) as sock:
        sock.sendall(HELLO + b"go")
        received = b""
        with pytest.raises(ConnectionResetError):
            while chunk := sock.recv(100):
                received += chunk
        assert received in (b"", b"half an ans")  # a reset may overtake what its sender sent before
        assert proxy.wait_for_finals(1)[0]["reason"] == "upstream_reset"


def test_a_reset_of_the_client_is_a_reset_for_the_origin(tmp_path: Path) -> None:
    """And no end: the origin must not take half a request for a whole one."""
    seen: list[str] = []

    def serve(sock: socket.socket) -> None:
        read_exactly(sock, len(HELLO))
        sock.sendall(b"go on")
        try:
            read_to_end(sock)
            seen.append("end")
        except ConnectionResetError:
            seen.append("reset")

    with origin(serve) as port, proxy_to(tmp_path, port) as proxy:
        with connected(proxy.address) as sock:
            sock.sendall(HELLO)
            assert read_exactly(sock, 5) == b"go on"
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        assert proxy.wait_for_finals(1)[0]["reason"] == "client_reset"
    assert seen == ["reset"]


def test_a_connection_that_is_idle_ends(tmp_path: Path) -> None:
    """timeouts.idle counts from the last byte either way."""

    def serve(sock: socket.socket) -> None:
        read_exactly(sock, len(HELLO))
        sock.sendall(b"hello")
        read_to_end(sock)

    with origin(serve) as port, proxy_to(tmp_path, port, idle="500ms") as proxy, connected(proxy.address) as sock:
        sock.sendall(HELLO)
        assert read_to_end(sock) == b"hello"
        assert proxy.wait_for_finals(1)[0]["reason"] == "idle_timeout"
