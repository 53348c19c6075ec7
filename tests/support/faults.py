"""What tests of faults share: connections on which bytes flow, and what must hold whatever breaks."""

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.clients import hello_for
from tests.support.echoing import NAME, opened
from tests.support.proxy import PATIENCE, Line, ProxyProcess, wait_until

HELLO = hello_for(NAME)


def to(port: int, **more: Any) -> dict[str, Any]:
    """A config with two workers whose NAME is on this port of loopback."""
    return {"upstream": {"hosts": {NAME: [f"127.0.0.1:{port}"]}}, "workers": 2, **more}


def end_of(sock: socket.socket) -> str:
    """How a connection ends on which nothing is said any more: by an `end` or a `reset`."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return "reset"
    return "end"


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def sockets_of(pid: int) -> int:
    """How many sockets a process has."""
    count = 0
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("socket:")
    return count


def reasons(lines: Sequence[Line]) -> list[str]:
    return sorted(line["reason"] for line in lines)


class _Counters:
    """Looks at the counters again and again; `fell` is what went back."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self._proxy = proxy
        self._highest: dict[str, float] = {}
        self.fell: list[str] = []

    def look(self) -> None:
        for name, value in self._proxy.metrics().items():
            if name.partition("{")[0].endswith(("_total", "_count", "_sum", "_bucket")):
                before = self._highest.get(name, 0.0)
                self._highest[name] = max(before, value)
                if value < before:
                    self.fell.append(f"{name}: {before} to {value}")

    def look_on(self, stop: threading.Event) -> None:
        while not stop.wait(0.05):
            with contextlib.suppress(OSError):  # the admin process may be what breaks
                self.look()


@contextlib.contextmanager
def holding(proxy: ProxyProcess, *, tells_all: bool = True) -> Iterator[None]:
    """Whatever happens inside, and once every connection is over:

    No counter ever goes back; processes that were there before have as many sockets as before; each connection has
    one final line or was lost with its worker, unless the access log is what breaks (`tells_all`).
    """
    sockets = {pid: sockets_of(pid) for pid in proxy.children()}
    counters, stop = _Counters(proxy), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(counters.look_on, stop)
        try:
            yield
        finally:
            stop.set()
            looking.result()
    metrics = proxy.wait_until_idle()
    counters.look()
    assert counters.fell == []
    for pid, before in sockets.items():
        if is_alive(pid):
            wait_until(lambda pid=pid, before=before: sockets_of(pid) <= before, "sockets given back")  # type: ignore[misc]
    accepted, lost = (metrics[f"sniproxy_connections_{what}_total"] for what in ("accepted", "lost"))
    if tells_all:
        wait_until(lambda: len(proxy.finals) >= accepted - lost, "a final line of each connection")
        ids = [line["connectionId"] for line in proxy.finals]
        assert (len(ids), len(set(ids))) == (accepted - lost, accepted - lost)


@contextlib.contextmanager
def flowing(proxy: ProxyProcess, count: int, seed: int = 7) -> Iterator[list[int]]:
    """Connections on which random bytes go there and back, each checked. At the end, how many bytes each has moved."""
    stop, moved = threading.Event(), [0] * count
    ready = threading.Barrier(count + 1)

    def flow(number: int) -> None:
        dice = random.Random(seed + number)
        with opened(proxy) as sock:
            ready.wait(PATIENCE)
            while not stop.is_set() or not moved[number]:
                data = dice.randbytes(dice.randint(1, 30_000))
                sock.sendall(data)
                assert receive(sock, len(data)) == data
                moved[number] += len(data)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""

    with ThreadPoolExecutor(count) as pool:
        flows = [pool.submit(flow, number) for number in range(count)]
        try:
            ready.wait(PATIENCE)
            yield moved
        finally:
            stop.set()
            for each in flows:
                each.result()


def receive(sock: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer if the peer ends before."""
    data = bytearray()
    while len(data) < size and (chunk := sock.recv(size - len(data))):
        data += chunk
    return bytes(data)
