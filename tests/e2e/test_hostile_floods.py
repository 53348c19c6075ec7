"""Floods, and peers that do not read: what is much has a bound, what is full sheds, and what is over is given back.

As in test_hostile_clients.py, `besieged` looks at the log, the counts, the vital signs and the service to others. The
floods that `make test` has room for are small; `make soak` has larger ones.
"""

import contextlib
import json
import select
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.test_bytes import receive_stream, send_stream
from tests.support.clients import alert_of, connected, hello_for, proxy_header
from tests.support.dns_server import dnsmasq
from tests.support.origins import accept_from, read_exactly
from tests.support.proxy import ProxyProcess, wait_until
from tests.support.siege import (
    BYSTANDER_IP,
    DOMAIN,
    HEADER,
    HELLO,
    MIB,
    POOLED_PIPES,
    SLACK,
    Site,
    crowd,
    site,
)
from tests.support.vitals import share_of_cpu

BATCH = 200  # clients at once
SPARE = 8  # sockets that are closed, but not yet


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Nothing times out while a test lasts."""
    with site(tmp_path_factory.mktemp("floods"), timeouts={"client_hello": "1m", "idle": "5m"}) as its:
        yield its


def batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(names), BATCH):
        yield names[at : at + BATCH]


@contextlib.contextmanager
def saying(address: tuple[str, int], names: Sequence[str]) -> Iterator[list[socket.socket]]:
    """A client for each of these names."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(address)) for _ in names]
        for sock, name in zip(socks, names, strict=True):
            sock.sendall(hello_for(name))
        yield socks


def refused(its: Site, names: Sequence[str]) -> None:
    """Ask for each of these names, and be told no."""
    for batch in batches(names):
        with saying(its.plain, batch) as socks:
            assert {alert_of(sock) for sock in socks} == {"access_denied"}


def served(its: Site, names: Sequence[str]) -> None:
    """Reach the origin by each of these names, and leave."""
    for batch in batches(names):
        with saying(its.plain, batch) as socks, contextlib.ExitStack() as stack:
            far = [stack.enter_context(accept_from(its.origin)) for _ in batch]
            for sock in socks:
                sock.close()
            for sock in far:
                while sock.recv(4096):
                    pass


class TestPeersThatDoNotRead:
    """Back-pressure: the other side has to wait, and what waits is in the kernel's buffers and not in ours."""

    SIZE = 64 * MIB

    @pytest.mark.parametrize("who", ["client", "origin"])
    def test_the_other_side_waits_and_no_byte_is_lost(self, patient: Site, who: str) -> None:
        """64 MiB are pushed at who does not read, and all arrive when it reads after all."""
        # A worker's first stream brings the program that moves it into memory, and is not to be counted.
        with patient.opened(24) as (clients, origins), ThreadPoolExecutor(1) as pool:
            for near, far in zip(clients, origins, strict=True):
                sending = pool.submit(send_stream, far, 1, MIB)
                assert receive_stream(near, MIB) == sending.result()
        with patient.under_siege(done=1) as siege, patient.opened(1) as ((near,), (far,)):
            reader, writer = (near, far) if who == "client" else (far, near)
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(send_stream, writer, 1, self.SIZE)
                wait_until(lambda: not select.select([], [writer], [], 0.3)[1], "a writer that cannot go on")
                siege.has_kept_within(MIB)
                siege.serves_others(8 * MIB)
                assert not sending.done()
                assert receive_stream(reader, self.SIZE) == sending.result()

    def test_more_of_them_than_there_are_pipes(self, tmp_path: Path) -> None:
        """They hold every pipe there is; who comes then is served by copies. What is stuck in pipes goes with them."""
        crowd_size = POOLED_PIPES * 9 // 8
        with site(tmp_path, workers=1) as its, its.under_siege(client_reset=crowd_size) as siege:
            with its.opened(crowd_size, its.on_unix_socket) as (clients, origins):  # its buffers are soon full
                for far in origins:
                    far.setblocking(False)
                    assert far.send(bytes(MIB)) > MIB / 4
                every_one = siege.before.pipes + 2 * POOLED_PIPES
                wait_until(lambda: siege.vitals().pipes == every_one, "every pipe in use")
                siege.serves_others(8 * MIB)
                for near in clients:
                    near.close()
                siege.active(0)
            assert siege.vitals().pipes < every_one / 2


def flood_of_connects(its: Site, count: int) -> None:
    """Come and go, as fast as that goes."""
    for _ in range(count):
        socket.create_connection(its.plain).close()


def series(proxy: ProxyProcess) -> set[str]:
    return set(proxy.metrics())


def looks_bounded(proxy: ProxyProcess, before: set[str]) -> None:
    """What was asked for is no label, and the page has the most frequent alone."""
    assert series(proxy) == before
    overview = proxy.get("/overview")
    assert len(overview) < 64 * 1024
    assert max(map(len, json.loads(overview)["top"].values())) <= 15


class TestFloods:
    def test_of_connects(self, patient: Site) -> None:
        """Who comes and says nothing and goes has a line each, too."""
        with patient.under_siege(client_closed=3000) as siege:
            flood_of_connects(patient, 1500)
            siege.serves_others()
            flood_of_connects(patient, 1500)

    def test_of_refused_names(self, patient: Site) -> None:
        """Each another one: none becomes a label, none is asked of DNS, and the page keeps the most frequent alone."""
        refused(patient, ["example.com"])
        patient.proxy.wait_until_told()
        before = series(patient.proxy)
        with patient.under_siege(default=4000) as siege:
            for part in ("a", "b"):
                refused(patient, [f"{part}{number}.example.com" for number in range(2000)])
                siege.serves_others()
            looks_bounded(patient.proxy, before)
        patient.name_server.setblocking(False)
        with pytest.raises(BlockingIOError):
            patient.name_server.recv(512)

    def test_of_random_subdomains(self, tmp_path: Path) -> None:
        """Under a wildcard that is allowed each costs a lookup, and the cache keeps the last few."""
        names = [f"{number}.{DOMAIN}" for number in range(600)]
        with dnsmasq(f"address=/{DOMAIN}/127.0.0.1") as name_server:
            resolver = {"nameservers": [name_server], "cache_size": 100}
            with site(tmp_path, resolver, workers=1) as its:
                served(its, [f"first{number}.{DOMAIN}" for number in range(BATCH)])  # as many lookups at once as ever
                before = series(its.proxy)
                with its.under_siege(done=len(names) + 3) as siege:
                    served(its, names)
                    siege.serves_others()
                    looks_bounded(its.proxy, before)
                    assert looked_up(its, names[-1]) == {"hit": 1, "miss": 0}
                    assert looked_up(its, names[-100]) == {"hit": 1, "miss": 0}
                    assert looked_up(its, names[0]) == {"hit": 0, "miss": 1}


def looked_up(its: Site, name: str) -> dict[str, float]:
    """What asking for a name adds to the counts of the cache."""

    def counts() -> dict[str, float]:
        metrics = its.proxy.metrics()
        return {
            result: metrics[f'sniproxy_dns_cache_requests_total{{result="{result}"}}'] for result in ("hit", "miss")
        }

    before = counts()
    served(its, [name])
    return {result: count - before[result] for result, count in counts().items()}


class TestLimits:
    def test_one_source_takes_no_more_than_its_undecided_slots(self, tmp_path: Path) -> None:
        """And another source, of the same gateway too, still has its own when it is slow."""
        with site(tmp_path, limits={"undecided_per_source": 10}) as its:
            for header, of_another in ((b"", b""), (HEADER, proxy_header(source=BYSTANDER_IP))):
                half_a_hello, address = header + HELLO[:50], its.listener(header)
                with its.under_siege(connection_limit=20, client_closed=10) as siege:
                    with crowd(address, half_a_hello, 10):
                        siege.active(10)
                        with crowd(address, half_a_hello, 20) as more:
                            assert {alert_of(sock) for sock in more} == {"access_denied"}
                        siege.active(10)
                        siege.serves_others(header=of_another, half=partial(siege.active, 11))

    def test_the_connection_limit(self, tmp_path: Path) -> None:
        """Who is in stays in and is served, who comes is sent away at once, and nothing spins."""
        with site(tmp_path, limits={"connections": 30}) as its:
            with its.under_siege(done=30, connection_limit=300), its.opened(30) as (clients, origins):
                for _ in range(3):
                    with crowd(its.plain, HELLO, 100) as more:
                        assert {alert_of(sock) for sock in more} == {"access_denied"}
                for near, far in zip(clients, origins, strict=True):
                    near.sendall(b"ping")
                    assert read_exactly(far, 4) == b"ping"
                wait_until(lambda: share_of_cpu(its.proxy.children(), 0.3) < 0.5, "workers that rest")

    def test_slow_dns_takes_no_descriptor_of_others(self, tmp_path: Path) -> None:
        """Names that nobody answers for, of two families and at twelve servers: each would take 48 sockets. Others are
        served until the last of them has timed out, and nobody is shed."""
        few, waiting = 512, 90
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(12)]
            for sock in silent:
                sock.bind(("127.0.0.1", 0))
            servers = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in silent]
            resolver = {"nameservers": servers, "family": "both", "timeout": "2s"}
            its = stack.enter_context(site(tmp_path, resolver, few, workers=1))
            # So many lookups at once leave some free memory behind, which the next ones use.
            with its.under_siege(slack=2 * SLACK, dns_timeout=waiting) as siege:
                with saying(its.plain, [f"{number}.{DOMAIN}" for number in range(waiting)]):
                    siege.active(waiting)
                    while its.proxy.metrics()["sniproxy_connections_active"]:
                        siege.serves_others()
                        assert siege.vitals().sockets - siege.before.sockets <= waiting + few // 8 + SPARE
                assert its.proxy.metrics()["sniproxy_connections_shed_total"] == 0


@pytest.mark.soak
class TestLargeFloods:
    """What a small flood fills, a large one does not fill more."""

    def test_of_connects(self, patient: Site) -> None:
        with patient.under_siege(client_closed=20_000):
            flood_of_connects(patient, 20_000)

    def test_of_refused_names(self, patient: Site) -> None:
        """The caches of names and decisions are full after the first part."""
        refused(patient, [f"first{number}.example.com" for number in range(20_000)])
        with patient.under_siege(slack=MIB, default=60_000):
            refused(patient, [f"then{number}.example.com" for number in range(60_000)])

    def test_of_random_subdomains(self, tmp_path: Path) -> None:
        """As is the cache of answers."""
        with dnsmasq(f"address=/{DOMAIN}/127.0.0.1") as name_server:
            with site(tmp_path, {"nameservers": [name_server], "cache_size": 1000}) as its:
                served(its, [f"first{number}.{DOMAIN}" for number in range(10_000)])
                with its.under_siege(done=20_000):
                    served(its, [f"then{number}.{DOMAIN}" for number in range(20_000)])
