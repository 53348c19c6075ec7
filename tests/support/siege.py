"""Attacks on the real proxy, and what they must leave as it was: its log, its counts, its vital signs, its service.

A `Site` is the proxy with all that is around it, both ends of every connection in the test's hand. `besieged` looks
at it before and after an attack.
"""

import contextlib
import os
import re
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.net.loopback import black_hole, fill
from tests.support.clients import TIMEOUT, connected, hello_for, proxy_header
from tests.support.origins import accept_from, origin_in_hand, read_exactly, read_to_end
from tests.support.proxy import ProxyProcess, host_and_port, running_proxy, wait_until
from tests.support.vitals import Vitals, forget_peak, peak_memory, vitals_of

MIB = 1 << 20

# What a busy interpreter may keep of what it has used: free lists, arenas that are not empty, caches that have a bound.
SLACK = 4 * MIB

# Pipes for splice are kept for the next that needs one: so many in all workers together, with two ends each.
POOLED_PIPES = 96

# Attackers come from 127.0.0.1, by themselves or as the PROXY header says, and who has nothing to do with it from here.
BYSTANDER_IP = "127.0.0.2"

# What the policy of a site allows is below this. The first has the test for an origin, the second nobody.
DOMAIN = "example.org"
NAME, HOLE, OTHER = f"target.{DOMAIN}", f"hole.{DOMAIN}", f"bystander.{DOMAIN}"
HELLO = hello_for(NAME)
CROWD = 20
HEADER = proxy_header("cluster.local/ns/default/sa/sleep-us", source="127.0.0.1")

_REASON = re.compile(r'sniproxy_connections_(?:denied|failed|closed)_total\{.*\breason="(\w+)"')

Step = Callable[[], None]
Sockets = list[socket.socket]


@dataclass
class Bystander:
    """A client of an origin of its own, whose name the proxy allows. It is served, or the test fails."""

    name: str
    origin: socket.socket

    def is_served(self, address: tuple[str, int], size: int = 1, header: bytes = b"", half: Step | None = None) -> None:
        """A whole connection, with `size` bytes of an answer. `half` is called when half of the hello is sent."""
        hello, answer = hello_for(self.name), os.urandom(size)
        with connected(address, source=BYSTANDER_IP) as near:
            near.sendall(header + hello[:50])
            if half is not None:
                half()
            near.sendall(hello[50:])
            with accept_from(self.origin) as far, ThreadPoolExecutor(1) as pool:
                assert read_exactly(far, len(hello)) == hello
                sending = pool.submit(_send_all_of_it, far, answer)
                assert read_to_end(near) == answer
                sending.result()


def _send_all_of_it(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


@dataclass
class Siege:
    """An attack under way."""

    proxy: ProxyProcess
    bystander: Bystander
    workers: list[int]
    before: Vitals
    peak_before: int
    served: int = 0  # bystanders

    def vitals(self) -> Vitals:
        return vitals_of(self.workers)

    def serves_others(self, size: int = 1, header: bytes = b"", half: Step | None = None) -> None:
        address = host_and_port(self.proxy.addresses[bool(header)])
        self.bystander.is_served(address, size, header, half)
        self.served += 1

    def active(self, count: int) -> None:
        """Wait until so many connections are under way."""
        wait_until(lambda: self.proxy.metrics()["sniproxy_connections_active"] == count, f"{count} active connections")

    def has_kept_within(self, more_memory: int = SLACK) -> None:
        """At no time so far has the proxy had more memory than before, but for so much."""
        grown = peak_memory(self.workers) - self.peak_before
        assert grown <= more_memory, f"{grown / MIB:.1f} MiB more at most"

    def damage(self, slack: int) -> list[str]:
        """What is not as it was before."""
        before, now = self.before, self.vitals()
        bounds = {
            "sockets": (now.sockets, before.sockets),
            "pipes": (now.pipes, before.pipes + 2 * POOLED_PIPES),
            "other descriptors": (now.others, before.others),
            "bytes": (now.memory, before.memory + slack),
        }
        return [f"{is_now} {what}, not {at_most}" for what, (is_now, at_most) in bounds.items() if is_now > at_most]


@contextlib.contextmanager
def besieged(proxy: ProxyProcess, bystander: Bystander, slack: int = SLACK, **expected: int) -> Iterator[Siege]:
    """An attack, which has to end with so many connections of each reason.

    Fails unless afterwards, with one more bystander served:

    - each connection has exactly one final line, and the metrics count the same by reason;
    - the workers are the same, with the descriptors they had before, where pipes may wait in the pool;
    - neither now nor at any time meanwhile they had more memory than before and `slack`.
    """
    told, counted = proxy.wait_until_told(), _counts(proxy.wait_until_idle())
    *workers, admin = proxy.children()
    forget_peak(workers)
    siege = Siege(proxy, bystander, workers, vitals_of(workers), peak_memory(workers))
    yield siege
    # What waits in the queue of the listener is not counted yet: wait for all that has to come.
    wait_until(lambda: len(proxy.finals) - told >= sum(expected.values()) + siege.served, "a line of each attacker")
    proxy.wait_until_idle()
    siege.serves_others()
    proxy.wait_until_idle()
    proxy.wait_until_told()
    lines = proxy.finals[told:]
    others = [line["reason"] for line in lines if line["sourceIp"] == BYSTANDER_IP]
    assert others == ["done"] * siege.served
    reasons = Counter(line["reason"] for line in lines)
    assert reasons - Counter(others) == Counter(expected), reasons
    assert len({line["connectionId"] for line in lines}) == len(lines)
    assert _counts(proxy.metrics()) - counted == reasons
    assert proxy.children() == [*workers, admin]
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not siege.damage(slack), "vital signs as before")
    damage = siege.damage(slack)
    assert not damage, damage
    siege.has_kept_within(slack)


def _counts(metrics: dict[str, float]) -> Counter[str]:
    """Connections that are over, by reason."""
    counts: Counter[str] = Counter()
    for name, value in metrics.items():
        if match := _REASON.match(name):
            counts[match[1]] += int(value)
    return counts


class Site(NamedTuple):
    """A proxy with its three listeners, the origin and the name server behind it, and a bystander."""

    proxy: ProxyProcess
    plain: tuple[str, int]
    behind_envoy: tuple[str, int]  # where a PROXY header is required
    on_unix_socket: str
    origin: socket.socket
    name_server: socket.socket
    bystander: Bystander

    def under_siege(self, slack: int = SLACK, **expected: int) -> contextlib.AbstractContextManager[Siege]:
        return besieged(self.proxy, self.bystander, slack, **expected)

    def listener(self, first_bytes: bytes) -> tuple[str, int]:
        """The one where a client belongs that begins with these."""
        return self.behind_envoy if first_bytes and first_bytes[:12] == HEADER[:12] else self.plain

    @contextlib.contextmanager
    def opened(self, count: int = CROWD, address: tuple[str, int] | str = "") -> Iterator[tuple[Sockets, Sockets]]:
        """Both ends of connections through the proxy: the clients', and the origin's of each, behind the hello."""
        with contextlib.ExitStack() as stack:
            near, far = [], []
            for _ in range(count):
                near.append(stack.enter_context(connected(address or self.plain)))
                near[-1].sendall(HELLO)
                far.append(stack.enter_context(accept_from(self.origin)))
                assert read_exactly(far[-1], len(HELLO)) == HELLO
            yield near, far


@contextlib.contextmanager
def site(
    home: Path, resolver: Mapping[str, Any] | None = None, descriptors: int | None = None, **config: Any
) -> Iterator[Site]:
    """A site in `home`, with `resolver` and `config` over the defaults. `descriptors` is the limit on open files."""
    with contextlib.ExitStack() as stack:
        origin, others = stack.enter_context(origin_in_hand()), stack.enter_context(origin_in_hand())
        name_server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        name_server.bind(("127.0.0.1", 0))
        name_server.settimeout(TIMEOUT)
        hosts = {
            NAME: [_address(origin)],
            OTHER: [_address(others)],
            HOLE: [f"127.0.0.1:{stack.enter_context(black_hole())}"],
        }
        upstream = {
            "port": origin.getsockname()[1],
            "hosts": hosts,
            "resolver": {"nameservers": [_address(name_server)], "family": "ipv4", **(resolver or {})},
            "allow_networks": ["127.0.0.0/8"],
        }
        settings = {
            "listeners": [
                {"address": "127.0.0.1:0"},
                {"address": "127.0.0.1:0", "proxy_protocol": "required", "trusted_peers": ["127.0.0.0/8"]},
                {"address": f"unix:{home / 'sni.sock'}"},
            ],
            "workers": 2,
            **config,
            "upstream": {**upstream, **config.get("upstream", {})},
        }
        policy = {"rules": [{"name": "some", "action": "allow", "sni": [f"*.{DOMAIN}"]}]}
        # Which counter a source falls on is chance elsewhere, and here always the same.
        environment = {"PYTHONHASHSEED": "1"}
        proxy = stack.enter_context(
            running_proxy(home, settings, policy, environment=environment, descriptors=descriptors)
        )
        plain, behind_envoy = map(host_and_port, proxy.addresses[:2])
        bystander = Bystander(OTHER, others)
        bystander.is_served(plain)  # so that what is made only once is there
        yield Site(proxy, plain, behind_envoy, str(home / "sni.sock"), origin, name_server, bystander)


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()
    return f"{host}:{port}"


@contextlib.contextmanager
def crowd(address: tuple[str, int], first_bytes: bytes = b"", size: int = CROWD) -> Iterator[Sockets]:
    """So many clients, each of which has sent these bytes."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connected(address)) for _ in range(size)]
        for sock in socks:
            sock.sendall(first_bytes)
        yield socks


def jam(senders: Sockets) -> None:
    """Send until nothing goes any more: all that lies between the ends, in the proxy too, is full.

    Nobody tells when that is; a third of a second without progress stands for it.
    """
    poller = select.poll()
    for sock in senders:
        sock.setblocking(False)
        poller.register(sock, select.POLLOUT)
    by_number = {sock.fileno(): sock for sock in senders}
    while writable := poller.poll(300):
        for number, _ in writable:
            fill(by_number[number])
    for sock in senders:
        sock.settimeout(TIMEOUT)
