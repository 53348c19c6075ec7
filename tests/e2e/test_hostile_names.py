"""Names whose owner means harm, against the whole proxy: what DNS says opens no way inside, and wears nobody out.

All of it happens in a network namespace, where public addresses can be this machine's own. So the guard is as it is
shipped, an address outside is really dialled, and the ones inside that must not be are really there.
"""

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import dns.rcode
import pytest

from sniproxy.net.resolver import RESOLUTION_DELAY
from tests.e2e.conftest import allowing
from tests.support.clients import alert_of, ask, connected, hello_for
from tests.support.dns_server import (
    Asked,
    Script,
    ScriptedServer,
    always,
    by_family,
    by_name,
    by_tcp,
    dnsmasq,
    in_turn,
    refusing,
    scripted_server_in_thread,
    silence,
    unused_port,
)
from tests.support.hostile_replies import MALFORMED, chain, mutated, rich_reply
from tests.support.netns import namespace
from tests.support.origins import read_exactly, read_to_end
from tests.support.proxy import Line, ProxyProcess, running_proxy, wait_until
from tests.support.special_addresses import SPECIAL_ADDRESSES

OUTSIDE, OUTSIDE_IPV6 = "93.184.216.34", "2606:4700::1111"
INSIDE = ("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254")
MANY = IPv4Address("8.0.0.0")  # the first of thousands that all are here
PATIENCE = 20.0
WORD = b"outside"
MISSES = 'sniproxy_dns_cache_requests_total{result="miss"}'


@pytest.fixture(scope="module", autouse=True)
def _in_a_network_of_our_own() -> Iterator[None]:
    with namespace() as network:
        for address in (OUTSIDE, OUTSIDE_IPV6, *INSIDE):
            if not ip_address(address).is_loopback:
                network.ip("address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        network.ip("route", "add", "local", f"{MANY}/16", "dev", "lo")
        with network.entered():
            yield


@contextlib.contextmanager
def listening(*hosts: str) -> Iterator[tuple[int, dict[str, socket.socket]]]:
    """A port, and on it a listening socket for each of `hosts`; connections wait in its queue."""
    with contextlib.ExitStack() as stack:
        port, sockets = 0, {}
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sockets[host] = stack.enter_context(socket.create_server((host, port), family=family))
            sockets[host].settimeout(PATIENCE)
            port = sockets[host].getsockname()[1]
        yield port, sockets


def assert_untouched(servers: Sequence[socket.socket]) -> None:
    """Nobody has connected."""
    for server in servers:
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def assert_served(proxy: ProxyProcess, name: str, server: socket.socket) -> None:
    """A connection for `name` reaches `server`, hello and all, and comes back."""
    hello = hello_for(name)
    with connected(proxy.address) as client:
        client.sendall(hello)
        upstream, _ = server.accept()
        with upstream:
            upstream.settimeout(PATIENCE)
            assert read_exactly(upstream, len(hello)) == hello
            upstream.sendall(WORD)
        assert read_to_end(client) == WORD


def asking(server: str, **upstream: Any) -> dict[str, Any]:
    """A config that asks this name server; a lookup may take long, and no answer is kept."""
    resolver = {"nameservers": [server], "timeout": "60s", "min_ttl": "0s", **upstream.pop("resolver", {})}
    return {"upstream": {"resolver": resolver, **upstream}}


def line_of(proxy: ProxyProcess, name: str) -> Line:
    return next(line for line in proxy.finals if line["requestedServerName"] == name)


def addresses(*texts: str) -> Script:
    """Those of `texts` that are of the family that is asked for, good for no time."""

    async def script(asked: Asked) -> list[bytes]:
        version = 6 if asked.rdtype == "AAAA" else 4
        fitting = [text for text in texts if ip_address(text).version == version]
        return [asked.reply(*(f"{asked.name}. 0 {asked.rdtype} {text}" for text in fitting))]

    return script


def named(names: Sequence[str]) -> dict[str, str]:
    """A host name for each of `names`, which are no host names."""
    return {name: f"n{number}.test" for number, name in enumerate(names)}


@dataclass
class Zoo:
    """A proxy that asks a name server which does as each name asks for."""

    proxy: ProxyProcess
    server: ScriptedServer
    names: dict[str, str]

    def alert(self, what: str) -> str:
        return ask(self.proxy.address, hello_for(self.names[what]))

    def lines(self, whats: Iterable[str]) -> dict[str, Line]:
        self.proxy.wait_until_told()
        by_name = {line["requestedServerName"]: line for line in self.proxy.finals}
        return {what: by_name[self.names[what]] for what in whats}


def smuggling(asked: Asked) -> bytes:
    """No answer, and an address in the additional section."""
    return asked.reply(additional=[f"{asked.name}. 60 A {OUTSIDE}"])


def led_to(target: str, address: str = "") -> Script:
    """An alias to `target`, and its address if there is one."""

    async def script(asked: Asked) -> list[bytes]:
        end = [f"{target}. 60 A {address}"] if address and asked.rdtype == "A" else []
        return [asked.reply(f"{asked.name}. 60 CNAME {target}.", *end)]

    return script


def circling(asked: Asked) -> bytes:
    return asked.reply(f"{asked.name}. 60 CNAME circle.test.", f"circle.test. 60 CNAME {asked.name}.")


def leading_on(asked: Asked) -> bytes:
    return asked.reply(*chain(asked.name, 400, OUTSIDE))


# What DNS does, the reason that the log gives, and the alert that the client gets.
MISCHIEF: dict[str, tuple[Script, str, str]] = {
    "denies": (refusing(dns.rcode.NXDOMAIN), "dns_nxdomain", "unrecognized_name"),
    "has no addresses": (refusing(dns.rcode.NOERROR), "dns_nxdomain", "unrecognized_name"),
    "fails": (refusing(dns.rcode.SERVFAIL), "dns_failed", "internal_error"),
    "refuses": (refusing(dns.rcode.REFUSED), "dns_failed", "internal_error"),
    "goes round in circles": (always(circling), "dns_failed", "internal_error"),
    "leads on and on": (by_tcp(always(leading_on)), "dns_failed", "internal_error"),
    "leads into the cluster": (
        led_to("kubernetes.default.svc.cluster.local", "10.96.0.1"),
        "destination_forbidden",
        "access_denied",
    ),
    "leads into the cluster, and leaves the address to us": (
        led_to("kubernetes.default.svc.cluster.local"),
        "dns_nxdomain",
        "unrecognized_name",
    ),
    "leads to the metadata": (
        led_to("metadata.google.internal", "169.254.169.254"),
        "destination_forbidden",
        "access_denied",
    ),
    "smuggles": (always(smuggling), "dns_nxdomain", "unrecognized_name"),
    "stammers": (by_tcp(always(MALFORMED["an address of three bytes"])), "dns_failed", "internal_error"),
    "has thousands of forbidden addresses": (
        by_tcp(addresses(*(str(IPv4Address("10.0.0.0") + number) for number in range(2000)))),
        "destination_forbidden",
        "access_denied",
    ),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, _in_a_network_of_our_own: None) -> Iterator[Zoo]:
    dice = random.Random(20)

    async def noise(asked: Asked) -> list[bytes]:
        return [mutated(rich_reply(asked), dice), asked.reply(rcode=dns.rcode.SERVFAIL)]

    names = named([*SPECIAL_ADDRESSES, *MISCHIEF])
    scripts = {names[what]: addresses(address) for what, address in SPECIAL_ADDRESSES.items()}
    scripts |= {names[what]: script for what, (script, _, _) in MISCHIEF.items()}
    with (
        scripted_server_in_thread(by_name(scripts, noise)) as server,
        running_proxy(
            tmp_path_factory.mktemp("zoo"),
            asking(server.address),
            allowing("*.test"),
        ) as proxy,
    ):
        yield Zoo(proxy, server, names)


def test_no_special_address_is_dialled_whatever_name_has_it(zoo: Zoo) -> None:
    """Each of them by the only address of a name; the log says which address it was."""
    alerts = {what: zoo.alert(what) for what in SPECIAL_ADDRESSES}
    lines = zoo.lines(SPECIAL_ADDRESSES)
    assert alerts == dict.fromkeys(SPECIAL_ADDRESSES, "access_denied")
    assert {what: line["reason"] for what, line in lines.items()} == dict.fromkeys(lines, "destination_forbidden")
    named = {what: line["responseCodeDetails"].split()[0] for what, line in lines.items()}
    assert named == {what: str(ip_address(address)) for what, address in SPECIAL_ADDRESSES.items()}


@pytest.mark.parametrize("what", MISCHIEF)
def test_mischief_has_a_reason_and_an_alert(zoo: Zoo, what: str) -> None:
    _, reason, alert = MISCHIEF[what]
    assert (zoo.alert(what), zoo.lines([what])[what]["reason"]) == (alert, reason)


def test_only_names_of_clients_are_asked_for(zoo: Zoo) -> None:
    """Wherever an alias leads: no reply makes the proxy look up a name of the cluster."""
    aliases = [what for what in MISCHIEF if what.startswith(("leads", "goes"))]
    before = len(zoo.server.asked)
    for what in aliases:
        zoo.alert(what)
    assert {asked.name for asked in zoo.server.asked[before:]} <= {zoo.names[what] for what in aliases}


def test_noise_from_a_name_server_costs_its_own_connection_and_no_more(zoo: Zoo) -> None:
    """Seeded mutations of a reply: each connection ends in a way that is documented, and never in `internal`."""
    names = [f"noise{number}.test" for number in range(80)]
    for name in names:
        ask(zoo.proxy.address, hello_for(name))
    zoo.proxy.wait_until_told()
    reasons = {line["reason"] for line in zoo.proxy.finals if line["requestedServerName"] in names}
    assert reasons <= {"dns_failed", "dns_nxdomain", "destination_forbidden", "connect_refused", "connect_failed"}
    assert "dns_failed" in reasons


def test_of_a_mixed_answer_only_what_is_outside_is_dialled(tmp_path: Path) -> None:
    """The forbidden addresses come first, somebody listens there, and they are not tried."""
    inside = {version: [host for host in INSIDE if ip_address(host).version == version] for version in (4, 6)}
    scripts = {
        "four.test": addresses(*inside[4], OUTSIDE),
        "six.test": addresses(*inside[6], "::ffff:10.0.0.1", f"::ffff:{OUTSIDE}", "64:ff9b::10.0.0.1", OUTSIDE_IPV6),
    }
    with (
        listening(*INSIDE, OUTSIDE, OUTSIDE_IPV6) as (port, servers),
        scripted_server_in_thread(by_name(scripts, silence)) as server,
        running_proxy(tmp_path, asking(server.address, port=port), allowing("*.test")) as proxy,
    ):
        assert_served(proxy, "four.test", servers[OUTSIDE])
        assert_served(proxy, "six.test", servers[OUTSIDE_IPV6])
        proxy.wait_until_told()
        lines = [line_of(proxy, name) for name in scripts]
        assert [line["destinationIp"] for line in lines] == [OUTSIDE, OUTSIDE_IPV6]
        assert_untouched([servers[host] for host in (*INSIDE, OUTSIDE)])
    details = [line["responseCodeDetails"] for line in lines]
    assert details[0] == (
        "not dialled: 127.0.0.1 is in 127.0.0.0/8 Loopback, RFC 1122 section 3.2.1.3; "
        "10.0.0.1 is in 10.0.0.0/8 Private-Use, RFC 1918; 169.254.169.254 is in 169.254.0.0/16 Link Local, RFC 3927"
    )
    assert details[1].startswith("not dialled: ::1 is in ::1/128")
    assert details[1].endswith("; and 2 more")


def test_the_late_family_serves_where_the_first_is_forbidden(tmp_path: Path) -> None:
    """The server that answers for IPv4 is slow; all that came before are addresses inside."""

    async def slow(asked: Asked) -> list[bytes]:
        await asyncio.sleep(6 * RESOLUTION_DELAY)
        return await addresses(OUTSIDE)(asked)

    with (
        listening("::1", OUTSIDE) as (port, servers),
        scripted_server_in_thread(by_family(ipv4=slow, ipv6=addresses("::1"))) as server,
        running_proxy(tmp_path, asking(server.address, port=port), allowing("*.test")) as proxy,
    ):
        assert_served(proxy, "late.test", servers[OUTSIDE])
        assert_untouched([servers["::1"]])


def test_a_name_that_is_rebound_reaches_only_what_was_vetted(tmp_path: Path) -> None:
    """Outside for one question, inside for the next. One question is asked for each connection, so what is judged is
    what is dialled; and the connection that was open before goes on."""
    name, rounds = "rebound.test", 6
    hello = hello_for(name)
    script = in_turn(*[addresses(OUTSIDE), addresses("169.254.169.254")] * rounds)
    with (
        listening(OUTSIDE, "169.254.169.254") as (port, servers),
        scripted_server_in_thread(script) as server,
        running_proxy(
            tmp_path, asking(server.address, port=port, resolver={"family": "ipv4"}), allowing("*.test")
        ) as proxy,
        connected(proxy.address) as early,
    ):
        early.sendall(hello)
        upstream, _ = servers[OUTSIDE].accept()
        with upstream:
            assert read_exactly(upstream, len(hello)) == hello
            assert ask(proxy.address, hello_for(name)) == "access_denied"
            for _ in range(rounds - 1):
                assert_served(proxy, name, servers[OUTSIDE])
                assert ask(proxy.address, hello_for(name)) == "access_denied"
            upstream.sendall(WORD)
        assert read_to_end(early) == WORD
        early.close()
        proxy.wait_until_told()
        assert_untouched([servers["169.254.169.254"]])
        assert len(server.asked) == 2 * rounds
    assert {line["reason"] for line in proxy.finals} == {"done", "destination_forbidden"}


def test_a_short_life_cannot_rebind_within_min_ttl(tmp_path: Path) -> None:
    """TTL 0 is held for min_ttl: the second answer is not even asked for."""
    script = in_turn(addresses(OUTSIDE), addresses("10.0.0.1"))
    with (
        listening(OUTSIDE, "10.0.0.1") as (port, servers),
        scripted_server_in_thread(script) as server,
        running_proxy(
            tmp_path,
            asking(server.address, port=port, resolver={"family": "ipv4", "min_ttl": "5m"}),
            allowing("*.test"),
        ) as proxy,
    ):
        for _ in range(3):
            assert_served(proxy, "held.test", servers[OUTSIDE])
        assert len(server.asked) == 1
        assert_untouched([servers["10.0.0.1"]])


def test_aliases_of_a_real_server_lead_nowhere_inside(tmp_path: Path) -> None:
    """dnsmasq, with names outside that are aliases of names inside, and one that is an alias of a name outside."""
    records = [
        "host-record=kubernetes.default.svc.cluster.local,10.0.0.1",
        "host-record=metadata.google.internal,169.254.169.254,fd00:ec2::254",
        "host-record=cdn.example,10.0.0.1",
        f"host-record=cdn.example,{OUTSIDE}",
        "cname=api.test,kubernetes.default.svc.cluster.local",
        "cname=www.test,a.test",
        "cname=a.test,b.test",
        "cname=b.test,metadata.google.internal",
        "cname=good.test,cdn.example",
    ]
    with (
        listening(*INSIDE, OUTSIDE) as (port, servers),
        dnsmasq(*records) as server,
        running_proxy(tmp_path, asking(server, port=port), allowing("*.test")) as proxy,
    ):
        assert [ask(proxy.address, hello_for(name)) for name in ("api.test", "www.test")] == ["access_denied"] * 2
        assert_served(proxy, "good.test", servers[OUTSIDE])
        proxy.wait_until_told()
        reasons = [line_of(proxy, name)["reason"] for name in ("api.test", "www.test", "good.test")]
        assert reasons == ["destination_forbidden", "destination_forbidden", "done"]
        assert_untouched([servers[host] for host in INSIDE])


# Addresses for names whose connections go to the port of a wildcard listener; and, for each other place where the
# proxy listens, hosts that reach it there.
OWN_BY_DNS = (
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", OUTSIDE, "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:10.0.0.1",
    "::", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::1", "::127.0.0.1", "::ffff:0:10.0.0.1", str(MANY),
)  # fmt: skip
OWN_BY_CONFIG = {
    "loopback": ("127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "[::ffff:0.0.0.0]", "[::]"),
    "loopback by IPv6": ("[::1]", "[::]", "0.0.0.0"),
    "wildcard by IPv6": ("[::1]", "127.0.0.1", "127.9.9.9", "10.0.0.1", f"[{OUTSIDE_IPV6}]", "[fd00:ec2::254]"),
    "admin": ("127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]"),
    "metrics": ("127.0.0.1", "127.9.9.9", "10.0.0.1", OUTSIDE, "[::ffff:10.0.0.1]", "0.0.0.0"),
}


def test_the_proxy_is_no_destination_by_any_address_and_exception(tmp_path: Path) -> None:
    """Every network is allowed, and static hosts need no leave: listeners and admin addresses are not dialled."""
    ports = dict(zip(("wildcard", *OWN_BY_CONFIG), distinct_ports(1 + len(OWN_BY_CONFIG)), strict=True))
    by_dns = named(OWN_BY_DNS)
    hosts = {
        f"{number}.{what.lower().replace(' ', '-')}.static.test": [f"{host}:{ports[what]}"]
        for what, spellings in OWN_BY_CONFIG.items()
        for number, host in enumerate(spellings)
    }
    scripts = {by_dns[address]: addresses(address) for address in OWN_BY_DNS}
    with scripted_server_in_thread(by_name(scripts, silence)) as server:
        config = {
            "listeners": [
                {"address": f"0.0.0.0:{ports['wildcard']}"},
                {"address": f"127.0.0.1:{ports['loopback']}"},
                {"address": f"[::1]:{ports['loopback by IPv6']}"},
                {"address": f"[::]:{ports['wildcard by IPv6']}"},
            ],
            "admin": {"address": f"127.0.0.1:{ports['admin']}", "metrics_address": f"0.0.0.0:{ports['metrics']}"},
            **asking(server.address, port=ports["wildcard"], allow_networks=["0.0.0.0/0", "::/0"], hosts=hosts),
        }
        with running_proxy(tmp_path, config, allowing("*.test")) as proxy:
            listener = ("127.0.0.1", ports["wildcard"])
            names = [*by_dns.values(), *hosts]
            alerts = {name: ask(listener, hello_for(name)) for name in names}
            accepted = proxy.wait_until_idle()["sniproxy_connections_accepted_total"]
            lines = {line["requestedServerName"]: line for line in proxy.wait_for_finals(len(names))}
    assert alerts == dict.fromkeys(names, "access_denied")
    assert accepted == len(names)  # so none has come back to us
    assert [name for name in names if "is a listener of this proxy" not in lines[name]["responseCodeDetails"]] == []


def distinct_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(unused_port())
    return list(ports)


def test_of_thousands_of_addresses_sixteen_are_dialled(tmp_path: Path) -> None:
    """All of them are outside and refuse, but for one, which serves if it is among the first sixteen."""
    alive = MANY + 5000
    others = [str(MANY + number) for number in range(1, 3000)]
    scripts = {
        "sixteenth.test": by_tcp(addresses(*others[:15], str(alive), *others[15:])),
        "seventeenth.test": by_tcp(addresses(*others[:16], str(alive), *others[16:])),
    }
    with (
        listening(str(alive)) as (port, servers),
        scripted_server_in_thread(by_name(scripts, silence)) as server,
        running_proxy(tmp_path, asking(server.address, port=port), allowing("*.test")) as proxy,
    ):
        assert_served(proxy, "sixteenth.test", servers[str(alive)])
        assert ask(proxy.address, hello_for("seventeenth.test")) == "internal_error"
        proxy.wait_until_told()
        assert line_of(proxy, "seventeenth.test")["reason"] == "connect_refused"
        assert_untouched([servers[str(alive)]])


def test_broken_name_servers_are_passed_and_a_stale_answer_outlives_them_all(tmp_path: Path) -> None:
    """One that is not there, one that refuses, and one that answers until it talks nonsense; stale_ttl then holds."""
    name = "stale.test"
    with (
        listening(OUTSIDE) as (port, servers),
        scripted_server_in_thread(refusing(dns.rcode.REFUSED)) as refuser,
        scripted_server_in_thread(addresses(OUTSIDE)) as server,
    ):
        nameservers = [f"127.0.0.1:{unused_port()}", refuser.address, server.address]
        config = asking("", port=port, resolver={"nameservers": nameservers, "family": "ipv4", "stale_ttl": "1h"})
        with running_proxy(tmp_path, config, allowing("*.test")) as proxy:
            assert_served(proxy, name, servers[OUTSIDE])
            server.script = by_tcp(always(MALFORMED["data beyond the end"]))
            assert_served(proxy, name, servers[OUTSIDE])
            assert ask(proxy.address, hello_for("unknown.test")) == "internal_error"
            stale = proxy.wait_until_idle()['sniproxy_dns_cache_requests_total{result="stale"}']
            details = proxy.wait_for_finals(3)
    assert stale == 1
    (failed,) = [line for line in details if line["reason"] == "dns_failed"]
    assert [address in failed["responseCodeDetails"] for address in nameservers] == [True] * 3


def test_many_clients_of_a_slow_name_cost_one_question(tmp_path: Path) -> None:
    """However many wait for it; the answer is for all of them."""
    clients, release = 100, threading.Event()

    async def slow(asked: Asked) -> list[bytes]:
        await asyncio.to_thread(release.wait, PATIENCE)
        return await addresses("10.0.0.1")(asked)

    with (
        scripted_server_in_thread(slow) as server,
        running_proxy(tmp_path, asking(server.address, resolver={"family": "ipv4"}), allowing("*.test")) as proxy,
        contextlib.ExitStack() as stack,
    ):
        waiting = [stack.enter_context(connected(proxy.address)) for _ in range(clients)]
        for client in waiting:
            client.sendall(hello_for("slow.test"))
        wait_until(lambda: proxy.metrics()[MISSES] == clients, "clients that wait for an answer")
        release.set()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(alert_of, waiting)) == {"access_denied"}
        assert len(proxy.wait_for_finals(clients)) == clients
        assert server.questions() == [("A", "udp")]
