"""The destination guard: which addresses may be dialled, and why not."""

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.net.guard import (
    MAX_ENDPOINTS,
    Allowed,
    Endpoint,
    Forbidden,
    Guard,
    Verdict,
    Vetted,
    is_local_address,
)
from sniproxy.net.special_purpose import Address, Network, carried_ipv4, find_special_purpose
from tests.support.special_addresses import SPECIAL_ADDRESSES, SPECIAL_IPV4


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


def v4(host: str, port: int = 443) -> Endpoint:
    return Endpoint(host, port, socket.AF_INET)


def v6(host: str, port: int = 443) -> Endpoint:
    return Endpoint(host, port, socket.AF_INET6)


@dataclass(frozen=True)
class Case:
    """An address, the reason in its verdict, the operator's networks, and the exceptions of the rule."""

    address: str
    reason: str
    allow: str = ""
    deny: str = ""
    rule: str = ""

    def verdict(self) -> Verdict:
        guard = Guard(networks(*self.allow.split()), networks(*self.deny.split()))
        return guard.judge(self.address, networks(*self.rule.split()))


ALLOWED = {
    "a public address": Case("8.8.8.8", "8.8.8.8 is public"),
    "an address that allow_networks has": Case(
        "10.1.2.3", "10.1.2.3 is in 10.0.0.0/8 of allow_networks", allow="10.0.0.0/8"
    ),
    "an address that the rule allows": Case(
        "10.1.2.3", "10.1.2.3 is in 10.1.0.0/16 of allow_networks", rule="10.1.0.0/16"
    ),
    "a tunnel that is allowed, around a public address": Case(
        "2002:808:808::1", "2002:808:808::1 is in 2002::/16 of allow_networks", allow="2002::/16"
    ),
    "a tunnel and the private address in it, both allowed": Case(
        "64:ff9b::a00:1",
        "64:ff9b::a00:1 is in 64:ff9b::/96 of allow_networks",
        allow="64:ff9b::/96 10.0.0.0/8",
    ),
    "a native address beside a network that is denied": Case("8.8.8.8", "8.8.8.8 is public", deny="8.8.4.0/24"),
    "IPv4 when the spelling of mapped addresses is denied": Case("8.8.8.8", "8.8.8.8 is public", deny="::ffff:0:0/96"),
}

FORBIDDEN = {
    "a private address": Case("10.1.2.3", "10.1.2.3 is in 10.0.0.0/8 Private-Use, RFC 1918"),
    "loopback": Case("::1", "::1 is in ::1/128 Loopback Address, RFC 4291 section 2.5.3"),
    "a public address that deny_networks has": Case(
        "8.8.8.8", "8.8.8.8 is in 8.8.8.0/24 of deny_networks", deny="8.8.8.0/24"
    ),
    "an address that is allowed and denied": Case(
        "8.8.8.8", "8.8.8.8 is in 8.8.8.0/24 of deny_networks", allow="8.0.0.0/8", deny="8.8.8.0/24"
    ),
    "an address that the rule allows and the operator denies": Case(
        "10.1.2.3", "10.1.2.3 is in 10.0.0.0/8 of deny_networks", deny="10.0.0.0/8", rule="10.1.2.3/32"
    ),
    "an address beside an exception": Case(
        "10.2.0.1", "10.2.0.1 is in 10.0.0.0/8 Private-Use, RFC 1918", allow="10.1.0.0/16"
    ),
    "a tunnel, even around a public address": Case("2002:808:808::1", "2002:808:808::1 is in 2002::/16 6to4, RFC 3056"),
    "an allowed tunnel around a private address": Case(
        "2002:a00:1::1",
        "2002:a00:1::1 leads to IPv4, where 10.0.0.1 is in 10.0.0.0/8 Private-Use, RFC 1918",
        allow="2002::/16",
    ),
    "an allowed tunnel around a denied address": Case(
        "64:ff9b::808:808",
        "64:ff9b::808:808 leads to IPv4, where 8.8.8.8 is in 8.8.8.8/32 of deny_networks",
        allow="::/0 0.0.0.0/0",
        deny="8.8.8.8/32",
    ),
    "a tunnel, when only the address in it is allowed": Case(
        "64:ff9b::a00:1",
        "64:ff9b::a00:1 is in 64:ff9b::/96 IPv4-IPv6 Translation, RFC 6052 section 2.1",
        allow="10.0.0.0/8",
    ),
    "a denied network that is spelled as IPv4-mapped": Case(
        "8.8.8.8", "8.8.8.8 is in 8.8.8.0/24 of deny_networks", deny="::ffff:8.8.8.0/120"
    ),
    "a private address behind ISATAP, under a public prefix": Case(
        "2a00::5efe:a00:1",
        "2a00::5efe:a00:1 leads to IPv4, where 10.0.0.1 is in 10.0.0.0/8 Private-Use, RFC 1918",
    ),
    "an address with a scope": Case(
        "fe80::1%eth0", "fe80::1%eth0 is tied to an interface of this host, RFC 4007", allow="fe80::/10"
    ),
    "a short spelling that resolvers take": Case("127.1", "'127.1' is not an IP address"),
    "a host name": Case("localhost", "'localhost' is not an IP address"),
}


@pytest.mark.parametrize("case", ALLOWED.values(), ids=ALLOWED)
def test_allows(case: Case) -> None:
    verdict = case.verdict()
    assert isinstance(verdict, Allowed)
    assert (case.address, case.reason) == (verdict.host, verdict.reason)


@pytest.mark.parametrize("case", FORBIDDEN.values(), ids=FORBIDDEN)
def test_forbids(case: Case) -> None:
    assert Forbidden(case.reason) == case.verdict()


@pytest.mark.parametrize("what", SPECIAL_ADDRESSES)
def test_no_special_address_is_a_destination(what: str) -> None:
    """By the list of the registries that the tests have of their own."""
    assert isinstance(Guard().judge(SPECIAL_ADDRESSES[what]), Forbidden)


@pytest.mark.parametrize("what", SPECIAL_IPV4)
def test_no_tunnel_that_is_allowed_leads_to_one(what: str) -> None:
    """An operator with NAT64 or 6to4 lifts its prefix, and opens nothing behind it."""
    number = int(IPv4Address(SPECIAL_IPV4[what]))
    guard = Guard(networks("64:ff9b::/96", "2002::/16", "::ffff:0:0/96"))
    spelled = (0x64FF9B << 96 | number, 0x2002 << 112 | number << 80, 0xFFFF << 32 | number)
    assert not [one for one in map(IPv6Address, spelled) if isinstance(guard.judge(str(one)), Allowed)]


def test_an_ipv4_mapped_address_is_forbidden_in_every_spelling() -> None:
    """The address is private and its spelling a way around IPv4 rules."""
    for spelling in ("::ffff:10.0.0.1", "::ffff:a00:1", "0:0:0:0:0:FFFF:0A00:0001"):
        assert isinstance(Guard().judge(spelling), Forbidden)
        assert isinstance(Guard(networks("10.0.0.0/8")).judge(spelling), Forbidden)


def test_an_ipv4_mapped_address_that_is_allowed_is_dialled_by_ipv4() -> None:
    """So that what was judged, logged and connected to has one spelling."""
    vetted = Guard(networks("::ffff:0:0/96")).vet(["::ffff:8.8.8.8"], 443)
    assert (v4("8.8.8.8"),) == vetted.endpoints


class TestVet:
    """`vet` turns an answer into endpoints."""

    def test_of_a_mixed_answer_the_forbidden_addresses_are_dropped(self) -> None:
        vetted = Guard().vet(["10.0.0.1", "8.8.8.8", "::1", "2001:4860:4860::8888"], 443)
        assert (v4("8.8.8.8"), v6("2001:4860:4860::8888")) == vetted.endpoints
        refusals = (
            "10.0.0.1 is in 10.0.0.0/8 Private-Use, RFC 1918",
            "::1 is in ::1/128 Loopback Address, RFC 4291 section 2.5.3",
        )
        assert refusals == vetted.refusals

    def test_of_a_forbidden_answer_every_reason_is_told(self) -> None:
        reasons = (
            "10.0.0.1 is in 10.0.0.0/8 Private-Use, RFC 1918",
            "127.0.0.1 is in 127.0.0.0/8 Loopback, RFC 1122 section 3.2.1.3",
        )
        assert Vetted((), reasons) == Guard().vet(["10.0.0.1", "127.0.0.1"], 443)

    def test_no_addresses_are_no_endpoints(self) -> None:
        assert Vetted((), ()) == Guard().vet([], 443)

    def test_sixteen_are_kept_in_their_order(self) -> None:
        """The limit counts what is left, so forbidden addresses cannot use it up."""
        public = [f"8.8.8.{number}" for number in range(40, 0, -1)]
        vetted = Guard().vet(["10.0.0.1"] * 20 + public, 443)
        assert tuple(v4(host) for host in public[:MAX_ENDPOINTS]) == vetted.endpoints

    def test_an_address_is_spelled_canonically(self) -> None:
        assert (v6("2001:4860::1"),) == Guard().vet(["2001:4860:0:0::0001"], 443).endpoints

    def test_what_one_rule_allows_another_does_not(self) -> None:
        """Verdicts are remembered together with the exceptions that they were made under."""
        guard = Guard()
        extra = networks("10.0.0.0/8")
        outcomes = [guard.vet(["10.0.0.1"], 443, allow).endpoints for allow in (extra, (), extra)]
        assert [(v4("10.0.0.1"),), (), (v4("10.0.0.1"),)] == outcomes

    def test_static_hosts_are_exempt_from_the_networks(self) -> None:
        guard = Guard(deny_networks=networks("127.0.0.0/8"))
        assert Vetted((v4("127.0.0.1", 9443), v6("::1", 9443)), ()) == guard.vet_static(
            [("127.0.0.1", 9443), ("::1", 9443)]
        )


def on_this_host(address: Address) -> bool:
    return address in {
        ip_address("127.0.0.1"),
        ip_address("::1"),
        ip_address("192.168.0.7"),
        ip_address("8.8.8.8"),
    }


# The listener, the destination, and whether it is the proxy itself.
OWN = {
    "the very endpoint": ("127.0.0.1", 8443, "127.0.0.1", 8443, True),
    "another port": ("127.0.0.1", 8443, "127.0.0.1", 8444, False),
    "another address of this host": ("127.0.0.1", 8443, "192.168.0.7", 8443, False),
    "the same, spelled as IPv4-mapped": ("127.0.0.1", 8443, "::ffff:127.0.0.1", 8443, True),
    "a listener that is spelled as IPv4-mapped": ("::ffff:127.0.0.1", 8443, "127.0.0.1", 8443, True),
    "the same by way of 6to4": ("192.168.0.7", 8443, "2002:c0a8:7::1", 8443, True),
    "the same by way of SIIT": ("192.168.0.7", 8443, "::ffff:0:192.168.0.7", 8443, True),
    "the same, IPv4-compatible": ("192.168.0.7", 8443, "::192.168.0.7", 8443, True),
    "the same by way of a local NAT64": ("192.168.0.7", 8443, "64:ff9b:1:c0a8:0:700::", 8443, True),
    "the same by way of ISATAP": ("192.168.0.7", 8443, "2a00::5efe:192.168.0.7", 8443, True),
    "the same by way of Teredo": ("192.168.0.7", 8443, "2001:0:808:808::3f57:fff8", 8443, True),
    "0.0.0.0, spelled as IPv4-mapped": ("127.0.0.1", 8443, "::ffff:0.0.0.0", 8443, True),
    "a wildcard listener, by IPv4-mapped loopback": ("0.0.0.0", 443, "::ffff:127.0.0.1", 443, True),
    "a wildcard listener, by NAT64 of an interface": ("0.0.0.0", 443, "64:ff9b::192.168.0.7", 443, True),
    "a wildcard listener, by ::": ("0.0.0.0", 443, "::", 443, True),
    "the same by way of NAT64": ("192.168.0.7", 8443, "64:ff9b::192.168.0.7", 8443, True),
    "0.0.0.0, which connects to loopback": ("127.0.0.1", 8443, "0.0.0.0", 8443, True),
    ":: likewise": ("::1", 8443, "::", 8443, True),
    "a wildcard listener, by loopback": ("0.0.0.0", 443, "127.0.0.1", 443, True),
    "a wildcard listener, by an interface": ("0.0.0.0", 443, "192.168.0.7", 443, True),
    "a wildcard listener, by a public address of this host": ("0.0.0.0", 443, "8.8.8.8", 443, True),
    "an IPv6 wildcard, which takes IPv4 too": ("::", 443, "192.168.0.7", 443, True),
    "a wildcard listener, and another host": ("0.0.0.0", 443, "1.1.1.1", 443, False),
    "a wildcard listener, and another port": ("0.0.0.0", 8443, "127.0.0.1", 443, False),
}  # fmt: skip

EVERYTHING = networks("0.0.0.0/0", "::/0")


@pytest.mark.parametrize("case", OWN)
def test_the_proxy_is_never_its_own_destination(case: str) -> None:
    """No exception and no static host opens a loop."""
    own_host, own_port, host, port, is_own = OWN[case]
    guard = Guard(EVERYTHING, (), [v4(own_host, own_port)], on_this_host)
    for vetted in (guard.vet([host], port, EVERYTHING), guard.vet_static([(host, port)])):
        assert is_own == (not vetted.endpoints)
        assert is_own == any("is a listener of this proxy" in reason for reason in vetted.refusals)


def test_beside_the_own_listener_the_rest_of_the_answer_is_left() -> None:
    guard = Guard(own_listeners=[v4("8.8.8.8", 443)])
    assert Vetted((v4("1.1.1.1"),), ("8.8.8.8 port 443 is a listener of this proxy",)) == guard.vet(
        ["8.8.8.8", "1.1.1.1"], 443
    )


def test_an_address_that_moves_to_this_host_is_noticed() -> None:
    """Which addresses are local is asked each time: interfaces come and go."""
    local: set[Address] = set()
    guard = Guard((), (), [v4("0.0.0.0", 443)], local.__contains__)
    before = guard.vet(["8.8.8.8"], 443).endpoints
    local.add(ip_address("8.8.8.8"))
    assert ((v4("8.8.8.8"),), ()) == (before, guard.vet(["8.8.8.8"], 443).endpoints)


def test_whether_an_address_is_local_is_asked_only_when_the_port_is_ours() -> None:
    def must_not_be_asked(address: Address) -> bool:
        raise AssertionError(f"{address} was looked for")

    guard = Guard((), (), [v4("0.0.0.0", 8443)], must_not_be_asked)
    assert (v4("8.8.8.8"),) == guard.vet(["8.8.8.8"], 443).endpoints


@pytest.mark.parametrize(("address", "expected"), [("127.0.0.1", True), ("127.9.9.9", True), ("192.0.2.1", False)])
def test_a_local_address_is_one_that_can_be_bound(address: str, *, expected: bool) -> None:
    """192.0.2.1 is for documentation and on no host."""
    assert expected == is_local_address(ip_address(address))


_LAST_32_BITS = (
    "::",
    "::ffff:0:0",
    "::ffff:0:0:0",
    "64:ff9b::",
    "64:ff9b:1::",
    "2a00::5efe:0:0",
    "2a00::200:5efe:0:0",
)


def embeddings(inner: IPv4Address) -> list[IPv6Address]:
    """Every way that we know to spell `inner` as an IPv6 address."""
    number = int(inner)
    low = map(IPv6Address, _LAST_32_BITS)
    return [
        *(IPv6Address(int(prefix) | number) for prefix in low),
        IPv6Address(int(IPv6Address("64:ff9b:1::")) | number >> 16 << 64 | (number & 0xFFFF) << 40),
        IPv6Address(int(IPv6Address("2002::")) | number << 80),
        IPv6Address(int(IPv6Address("2001::")) | number << 64 | 0xF7F7_F7F7),
        IPv6Address(int(IPv6Address("2001:0:808:808::")) | number ^ 0xFFFF_FFFF),
    ]


# 0.0.0.0 and 0.0.0.1 spell :: and ::1 as IPv4-compatible addresses, which are the others' own.
private_ipv4 = st.one_of(
    st.ip_addresses(network="10.0.0.0/8"),
    st.ip_addresses(network="127.0.0.0/8"),
    st.ip_addresses(network="169.254.0.0/16"),
    st.ip_addresses(network="100.64.0.0/10"),
    st.ip_addresses(v=4).filter(lambda address: int(address) > 1 and find_special_purpose(address) is not None),
)


@given(private_ipv4)
def test_no_spelling_of_a_private_address_passes(inner: IPv4Address) -> None:
    assert not [one for one in embeddings(inner) if isinstance(Guard().judge(str(one)), Allowed)]


@given(private_ipv4)
def test_an_exception_for_all_of_ipv6_opens_no_way_to_private_ipv4(inner: IPv4Address) -> None:
    """It lifts the tunnels, and what is reached through them is judged by itself."""
    guard = Guard(networks("::/0"))
    assert not [one for one in embeddings(inner) if isinstance(guard.judge(str(one)), Allowed)]


any_address = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6), st.ip_addresses(network="2000::/3"))


@given(any_address, st.integers(0, 128))
def test_no_exception_beats_a_denied_network(address: Address, length: int) -> None:
    length = min(length, address.max_prefixlen)
    denied: Network = (IPv4Network if address.version == 4 else IPv6Network)((int(address), length), strict=False)
    guard = Guard(EVERYTHING, [denied])
    spellings = [
        address,
        *(embeddings(address) if isinstance(address, IPv4Address) and int(address) > 1 else []),
    ]
    assert not [one for one in spellings if isinstance(guard.judge(str(one), EVERYTHING), Allowed)]


@given(any_address)
def test_what_python_does_not_call_global_never_passes(address: Address) -> None:
    if not address.is_global or address.is_private or address.is_multicast:
        assert isinstance(Guard().judge(str(address)), Forbidden)


@given(any_address)
def test_an_exception_lifts_exactly_what_is_in_it(address: Address) -> None:
    """An address outside of every exception gets the verdict that it gets without them."""
    exceptions = networks("10.0.0.0/8", "fc00::/7")
    parts = (address, *carried_ipv4(address))
    if not any(part in network for part in parts for network in exceptions):
        assert Guard().judge(str(address)) == Guard(exceptions).judge(str(address))
        assert Guard().judge(str(address)) == Guard().judge(str(address), exceptions)
