"""Networks that break: links that delay, lose and fall silent, upstreams that are gone or reset, and DNS that fails.

The links are real ones, between network namespaces of the test's own; see tests.support.impair.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.rcode
import pytest

from tests.e2e.conftest import allowing
from tests.support.clients import ask, connected, hello_for
from tests.support.dns_server import Asked, ScriptedServer, scripted_server, unused_port
from tests.support.echoing import NAME, echo, is_served, opened, ping
from tests.support.faults import HELLO, end_of, holding, reasons, receive, to
from tests.support.impair import FAR, NEAR, Link, linked
from tests.support.origins import origin, read_exactly, read_to_end
from tests.support.proxy import PATIENCE, ProxyProcess, running_proxy, wait_until

RESET = struct.pack("ii", 1, 0)
OTHER = "other.wikipedia.org"


# ---- Links ----


@pytest.fixture
def link() -> Iterator[Link]:
    with linked(seed=20) as link:
        yield link


@contextlib.contextmanager
def across(
    link: Link,
    home: Path,
    *,
    more: dict[str, list[str]] | None = None,
    connect_timeout: str = "5s",
    **config: Any,
) -> Iterator[ProxyProcess]:
    """A proxy at the near end and an echoing origin at the far end as NAME; OTHER is at the near end. We are near."""
    with contextlib.ExitStack() as stack:
        with link.far.entered():
            far = stack.enter_context(origin(echo, FAR[0]))
        stack.enter_context(link.near.entered())
        near = stack.enter_context(origin(echo))
        hosts = {NAME: [f"{FAR[0]}:{far}"], OTHER: [f"127.0.0.1:{near}"]}
        hosts |= {name: [where.replace("PORT", str(far)) for where in places] for name, places in (more or {}).items()}
        settings = {"upstream": {"hosts": hosts, "connect_timeout": connect_timeout}, "workers": 2, **config}
        yield stack.enter_context(running_proxy(home, settings, allowing("*.wikipedia.org")))


def test_bytes_are_exact_over_links_that_delay_and_lose(link: Link, tmp_path: Path) -> None:
    """The client is as far away as the origin: every packet of either leg may be late, lost or overtaken."""
    size, count = 150_000, 8

    def talk(address: tuple[str, int], seed: int) -> bool:
        data = random.Random(seed).randbytes(size)
        with connected(address) as sock, ThreadPoolExecutor(1) as sender:
            sock.sendall(HELLO)
            assert read_exactly(sock, 5) == b"ready"
            sending = sender.submit(sock.sendall, data)
            received = receive(sock, size)
            sending.result()
            sock.shutdown(socket.SHUT_WR)
            return received == data and read_to_end(sock) == b""

    with across(link, tmp_path, listeners=[{"address": "0.0.0.0:0"}]) as proxy, holding(proxy):
        link.delay, link.jitter, link.loss = 0.005, 0.01, 0.02
        with link.far.entered(), ThreadPoolExecutor(count) as pool:
            talks = [pool.submit(talk, (NEAR, proxy.address[1]), seed) for seed in range(count)]
            assert [each.result() for each in talks] == [True] * count
        assert link.lost > 0
        link.loss = 0.0
        lines = proxy.wait_for_finals(count)
        told = {(line["reason"], line["receivedBytes"], line["sentBytes"]) for line in lines}
        assert told == {("done", len(HELLO) + size, 5 + size)}


@pytest.mark.soak
def test_megabytes_are_exact_over_a_bad_link(link: Link, tmp_path: Path) -> None:
    """A tenth of all packets is lost."""
    size = 2_000_000
    with across(link, tmp_path) as proxy, holding(proxy), opened(proxy) as sock, ThreadPoolExecutor(1) as sender:
        link.delay, link.jitter, link.loss = 0.02, 0.02, 0.1
        data = random.Random(3).randbytes(size)
        sending = sender.submit(sock.sendall, data)
        assert receive(sock, size) == data
        sending.result()
        link.loss = 0.0


def test_a_link_that_falls_silent_for_a_moment_costs_no_byte(link: Link, tmp_path: Path) -> None:
    """In mid-stream: TCP sends again what was lost, and nobody else waits for it."""
    with across(link, tmp_path) as proxy, holding(proxy), opened(proxy) as sock:
        link.is_cut = True
        sock.sendall(b"lost at first")
        wait_until(lambda: link.lost >= 2, "packets on the link")
        assert is_served(proxy, OTHER)
        link.is_cut = False
        assert read_exactly(sock, 13) == b"lost at first"


def test_an_upstream_that_falls_silent_for_good_costs_the_idle_timeout(link: Link, tmp_path: Path) -> None:
    """No end and no reset will ever come from it. Others are served, and what is not acknowledged is not kept."""
    with across(link, tmp_path, timeouts={"idle": "1s"}) as proxy, holding(proxy):
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(opened(proxy)) for _ in range(10)]
            link.is_cut = True
            for sock in socks:
                sock.sendall(b"anybody there?")
            assert is_served(proxy, OTHER)
            assert [end_of(sock) for sock in socks] == ["end"] * 10
            link.is_cut = False
        proxy.wait_for_finals(11)
        silent = [line for line in proxy.finals if line["requestedServerName"] == NAME]
        assert reasons(silent) == ["idle_timeout"] * 10
        assert {line["receivedBytes"] for line in silent} == {len(HELLO) + 14}


def test_a_lost_syn_is_sent_again(link: Link, tmp_path: Path) -> None:
    """An upstream that comes back within upstream.connect_timeout is connected to."""
    with across(link, tmp_path) as proxy, holding(proxy), connected(proxy.address) as sock:
        link.is_cut = True
        sock.sendall(HELLO)
        wait_until(lambda: link.lost > 0, "a SYN")
        link.is_cut = False
        assert read_exactly(sock, 5) == b"ready"


# Where nothing is, what is told of it, and the reason.
GONE = {
    "no-route": ("10.80.0.1:443", "network is unreachable", "connect_failed"),
    "unreachable": ("10.79.0.1:443", "no route to host", "connect_failed"),
    "prohibited": ("10.79.0.2:443", "no route to host", "connect_failed"),
    "swallowed": ("10.79.0.3:443", "gave no answer within 1s", "connect_timeout"),
    "refused": (f"{FAR[0]}:1", "connection refused", "connect_refused"),
}


def test_an_upstream_that_is_gone_is_told_by_how(link: Link, tmp_path: Path) -> None:
    """By what the network says: no route to it here, an ICMP error from a router, silence, or a refusal.

    Whoever goes elsewhere is served meanwhile.
    """
    link.far_route("unreachable", "10.79.0.1")
    link.far_route("prohibit", "10.79.0.2")
    link.far_route("blackhole", "10.79.0.3")
    more = {f"{case}.wikipedia.org": [place] for case, (place, _, _) in GONE.items()}
    # A router says no more than a few times in a row to one address that a route is bad (route/error_burst).
    count = 2
    with across(link, tmp_path, more=more, connect_timeout="1s") as proxy, holding(proxy):
        with ThreadPoolExecutor(count * len(GONE)) as pool:
            asking = [pool.submit(ask, proxy.address, hello_for(name)) for name in more for _ in range(count)]
            assert is_served(proxy, OTHER)
            assert {each.result() for each in asking} == {"internal_error"}
        proxy.wait_for_finals(count * len(GONE) + 1)
        failed = [line for line in proxy.finals if line["connectionEvent"] == "fail"]
    seen = Counter((line["requestedServerName"], line["reason"], line["responseCodeDetails"]) for line in failed)
    assert seen == {
        (f"{case}.wikipedia.org", reason, f"{case}.wikipedia.org: {place} {told}"): count
        for case, (place, told, reason) in GONE.items()
    }


def test_one_address_that_answers_is_enough(link: Link, tmp_path: Path) -> None:
    """Before it come one that swallows packets, one that a router cannot reach, and one that refuses."""
    link.far_route("blackhole", "10.79.0.1")
    link.far_route("unreachable", "10.79.0.2")
    places = ["10.79.0.1:443", "10.79.0.2:443", f"{FAR[1]}:1", f"{FAR[0]}:PORT"]
    with across(link, tmp_path, more={"many.wikipedia.org": places}) as proxy, holding(proxy):
        with ThreadPoolExecutor(8) as pool:
            serving = [pool.submit(is_served, proxy, "many.wikipedia.org") for _ in range(8)]
            assert [each.result() for each in serving] == [True] * 8
        assert {line["destinationIp"] for line in proxy.wait_for_finals(8)} == {FAR[0]}


# ---- Upstreams that reset, or end first ----


def cut(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def read_hello(sock: socket.socket) -> None:
    header = read_exactly(sock, 5)
    read_exactly(sock, int.from_bytes(header[3:5], "big"))


def cut_after_the_hello(sock: socket.socket) -> None:
    read_hello(sock)
    cut(sock)


def cut_in_the_answer(sock: socket.socket) -> None:
    read_hello(sock)
    sock.recv(1)
    sock.sendall(bytes(300_000))
    cut(sock)


def cut_in_the_request(sock: socket.socket) -> None:
    read_hello(sock)
    read_exactly(sock, 100_000)
    cut(sock)


def cut_after_the_request(sock: socket.socket) -> None:
    read_to_end(sock)
    cut(sock)


# What the origin does, what the client sends after its hello, and whether it ends then.
STAGES: dict[str, tuple[Callable[[socket.socket], None], int, bool]] = {
    "before-the-hello": (cut, 0, False),
    "after-the-hello": (cut_after_the_hello, 0, False),
    "in-the-answer": (cut_in_the_answer, 1, False),
    "in-the-request": (cut_in_the_request, 3_000_000, False),
    "after-the-request": (cut_after_the_request, 1000, True),
}


def say(address: tuple[str, int], name: str, size: int, *, ends: bool) -> str:
    """Say hello and so many bytes more; how it ends."""
    with connected(address) as sock:
        try:
            sock.sendall(hello_for(name) + bytes(size))
            if ends:
                sock.shutdown(socket.SHUT_WR)
        except (ConnectionResetError, BrokenPipeError):
            return "reset"
        return end_of(sock)


def test_a_reset_reaches_the_client_at_each_stage(tmp_path: Path) -> None:
    """Never as an orderly end, which would make a part of an answer look like all of it; and each is told once."""
    count = 10
    with contextlib.ExitStack() as stack:
        names = {f"{stage}.wikipedia.org": how for stage, how in STAGES.items()}
        hosts = {name: [f"127.0.0.1:{stack.enter_context(origin(how[0]))}"] for name, how in names.items()}
        config = {"upstream": {"hosts": hosts}, "workers": 2}
        proxy = stack.enter_context(running_proxy(tmp_path, config, allowing(*names)))
        with holding(proxy), ThreadPoolExecutor(count * len(names)) as pool:
            saying = [
                (name, pool.submit(say, proxy.address, name, size, ends=ends))
                for name, (_, size, ends) in names.items()
                for _ in range(count)
            ]
            seen = {(name, each.result()) for name, each in saying}
            lines = proxy.wait_for_finals(count * len(names))
        told = {(line["requestedServerName"], line["reason"]) for line in lines}
        assert Counter(line["requestedServerName"] for line in lines) == dict.fromkeys(names, count)
    # A reset that comes before the connection is known to stand is a failure to connect, and gets an alert.
    too_early = {("before-the-hello.wikipedia.org", "connect_failed")}
    assert told - too_early <= {(name, "upstream_reset") for name in names}
    assert seen - {("before-the-hello.wikipedia.org", "end")} <= {(name, "reset") for name in names}
    assert {name for name, _ in told} == {*names}


def test_an_upstream_that_ends_before_it_was_asked_is_no_failure(tmp_path: Path) -> None:
    """It closes its half at accept, and reads on: both halves are passed on, each to its own end."""
    heard: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        heard.append(read_to_end(sock))

    with origin(serve) as port, running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy):
        for number in range(10):
            with connected(proxy.address) as sock:
                sock.sendall(HELLO)
                assert sock.recv(1) == b""
                sock.sendall(bytes([number]))
                sock.shutdown(socket.SHUT_WR)
                wait_until(lambda number=number: len(heard) == number + 1, "the origin's end")  # type: ignore[misc]
        assert reasons(proxy.wait_for_finals(10)) == ["done"] * 10
    assert heard == [HELLO + bytes([number]) for number in range(10)]


def test_an_upstream_that_dies_and_comes_back_is_found_again(tmp_path: Path) -> None:
    """Its live connections end, new ones are refused, and once it listens again they are served."""
    port = unused_port()
    with running_proxy(tmp_path, to(port), allowing(NAME)) as proxy, holding(proxy):
        for _ in range(2):
            assert ask(proxy.address, HELLO) == "internal_error"
            with socket.create_server(("127.0.0.1", port)) as server, opened_by(server, proxy) as (client, upstream):
                cut(upstream)
                upstream.close()
                assert end_of(client) == "reset"
        assert reasons(proxy.wait_for_finals(4)) == ["connect_refused"] * 2 + ["upstream_reset"] * 2


@contextlib.contextmanager
def opened_by(server: socket.socket, proxy: ProxyProcess) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection, and its end at the origin."""
    server.settimeout(PATIENCE)
    with connected(proxy.address) as client:
        client.sendall(HELLO)
        with server.accept()[0] as upstream:
            assert read_exactly(upstream, len(HELLO)) == HELLO
            yield client, upstream


# ---- DNS ----


@dataclass
class NameServer:
    """A name server that says that every name is on loopback, in the manner that it is told to."""

    manner: str = "answers"
    pause: float = 0.3
    asked: Counter[str] = field(default_factory=Counter)
    address: str = ""

    async def script(self, asked: Asked) -> list[bytes]:
        self.asked[asked.name] += 1
        match self.manner:
            case "is silent":
                return []
            case "fails":
                return [asked.reply(rcode=dns.rcode.SERVFAIL)]
            case "is slow":
                await asyncio.sleep(self.pause)
        return [asked.reply(f"{asked.name}. 0 A 127.0.0.1")]


@pytest.fixture
def names() -> Iterator[NameServer]:
    """In a thread and an event loop of its own."""
    server = NameServer()
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        scripted: ScriptedServer
        async with scripted_server(server.script) as scripted:
            server.address = scripted.address
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(PATIENCE)
    yield server
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@contextlib.contextmanager
def resolving(names: NameServer, home: Path, **resolver: Any) -> Iterator[ProxyProcess]:
    """A proxy that resolves by `names`, where answers hold for 200 ms; OTHER needs no DNS."""
    with origin(echo) as port:
        settings = {
            "nameservers": [names.address],
            "family": "ipv4",
            "timeout": "600ms",
            "min_ttl": "200ms",
            "max_ttl": "200ms",
            **resolver,
        }
        upstream = {
            "port": port,
            "resolver": settings,
            "allow_networks": ["127.0.0.0/8"],
            "hosts": {OTHER: [f"127.0.0.1:{port}"]},
        }
        config = {"upstream": upstream, "workers": 2}
        with running_proxy(home, config, allowing("*.wikipedia.org")) as proxy:
            yield proxy


@pytest.mark.parametrize(("manner", "reason"), [("is silent", "dns_timeout"), ("fails", "dns_failed")])
def test_a_name_server_that_is_down_costs_new_names_alone(
    names: NameServer, tmp_path: Path, manner: str, reason: str
) -> None:
    """Live connections and names that need no DNS do not notice; and when it is back, the names are."""
    with resolving(names, tmp_path) as proxy, holding(proxy), opened(proxy) as live:
        names.manner = manner
        wait_until(lambda: ends_with(proxy, reason), f"a connection that ends with {reason}")
        assert ping(live) == b"ping"
        assert is_served(proxy, OTHER)
        names.manner = "answers"
        wait_until(lambda: is_served(proxy), "the name, again")
        assert ping(live) == b"ping"


def ends_with(proxy: ProxyProcess, reason: str) -> bool:
    """Whether a new connection does; a worker may still remember the name."""
    before = proxy.wait_for_finals(0)
    is_served(proxy)
    lines = proxy.wait_for_finals(len(before) + 1)[len(before) :]
    told = [line for line in lines if line["connectionEvent"] == "fail"]
    assert reasons(told) in ([], [reason])
    return bool(told)


@pytest.mark.parametrize("manner", [pytest.param("is silent", marks=pytest.mark.soak), "fails"])
def test_stale_answers_serve_while_the_name_server_is_down(names: NameServer, tmp_path: Path, manner: str) -> None:
    """With stale_ttl: nobody fails, and the metric says that answers are old."""
    with resolving(names, tmp_path, stale_ttl="1h") as proxy, holding(proxy):
        wait_until(lambda: is_served(proxy) and fresh_in_every_worker(proxy), "a fresh answer in every worker")
        names.manner = manner

        def one_more() -> bool:
            assert is_served(proxy)
            return proxy.metrics()['sniproxy_dns_cache_requests_total{result="stale"}'] > 5

        wait_until(one_more, "stale answers")
        told = {line["reason"] for line in proxy.finals}
        assert told == {"done"}


@pytest.mark.soak
def test_stale_answers_end_when_the_name_server_is_back(names: NameServer, tmp_path: Path) -> None:
    """It is asked again behind their backs, every 30 seconds (RFC 8767 section 5); and then answers are fresh."""
    with resolving(names, tmp_path, stale_ttl="1h") as proxy, holding(proxy):
        wait_until(lambda: is_served(proxy) and fresh_in_every_worker(proxy), "a fresh answer in every worker")
        names.manner = "fails"
        stale = 'sniproxy_dns_cache_requests_total{result="stale"}'
        wait_until(lambda: is_served(proxy) and proxy.metrics()[stale] > 5, "stale answers")
        names.manner = "answers"
        asked = names.asked[NAME]
        deadline = time.monotonic() + 90.0
        while names.asked[NAME] < asked + 2:
            assert is_served(proxy)
            assert time.monotonic() < deadline, "the name server is not asked again"
            time.sleep(0.1)
        assert {line["reason"] for line in proxy.finals} == {"done"}


def fresh_in_every_worker(proxy: ProxyProcess) -> bool:
    return len({line["connectionId"].rpartition("-")[0] for line in proxy.finals}) == 2


def test_a_slow_name_server_is_waited_for_and_nobody_else_waits(names: NameServer, tmp_path: Path) -> None:
    """Those who want one name wait for one question; those who want another are served before them."""
    names.manner, count = "is slow", 30
    with resolving(names, tmp_path, timeout="10s", max_ttl="1m", min_ttl="1m") as proxy, holding(proxy):
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connected(proxy.address)) for _ in range(count)]
            for sock in socks:
                sock.sendall(HELLO)
            assert is_served(proxy, OTHER)
            assert [read_exactly(sock, 5) for sock in socks] == [b"ready"] * count
        assert names.asked[NAME] <= 2  # one a worker
        assert reasons(proxy.wait_for_finals(count + 1)) == ["done"] * (count + 1)


def test_clients_that_leave_while_dns_is_slow_are_told_and_forgotten(names: NameServer, tmp_path: Path) -> None:
    """What they asked for is still learnt, for whoever asks next."""
    names.manner, names.pause = "is slow", 0.5
    with resolving(names, tmp_path, timeout="10s", max_ttl="1m", min_ttl="1m") as proxy, holding(proxy):
        for _ in range(10):
            with connected(proxy.address) as sock:
                sock.sendall(HELLO)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        proxy.wait_for_finals(10)
        assert is_served(proxy)
        assert names.asked[NAME] <= 2
