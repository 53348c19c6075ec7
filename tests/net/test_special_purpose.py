"""The table of special-purpose blocks, and the IPv4 addresses that IPv6 ones carry."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.net.special_purpose import (
    SPECIAL_PURPOSE,
    Address,
    SpecialPurpose,
    carried_ipv4,
    find_special_purpose,
)

GLOBAL_UNICAST = IPv6Network("2000::/3")


def near_blocks() -> Iterator[Address]:
    """The first and the last address of every block, and the ones just outside."""
    for row in SPECIAL_PURPOSE:
        first, last = int(row.network[0]), int(row.network[-1])
        kind = type(row.network[0])
        for number in (first - 1, first, last, last + 1):
            if 0 <= number < 1 << row.network.max_prefixlen:
                yield kind(number)


addresses = st.one_of(
    st.sampled_from(list(near_blocks())),
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.ip_addresses(network=GLOBAL_UNICAST),
)


@pytest.mark.parametrize("row", SPECIAL_PURPOSE, ids=str)
def test_a_block_is_found_by_its_edges(row: SpecialPurpose) -> None:
    """At either edge of a block the table names it, or a more specific block within it."""
    for address in (row.network[0], row.network[-1]):
        found = find_special_purpose(address)
        assert found is not None
        assert ip_network(found.network).subnet_of(row.network)  # type: ignore[arg-type]  # same family


def test_no_block_is_listed_twice() -> None:
    networks = [row.network for row in SPECIAL_PURPOSE]
    assert sorted(set(networks), key=str) == sorted(networks, key=str)


@given(addresses)
def test_the_most_specific_block_names_an_address(address: Address) -> None:
    """The index finds what reading the whole table would find."""
    covering = [row for row in SPECIAL_PURPOSE if address in row.network]
    expected = max(covering, key=lambda row: row.network.prefixlen, default=None)
    assert expected == find_special_purpose(address)


@given(addresses)
def test_nothing_that_python_calls_private_is_public(address: Address) -> None:
    """Stricter than `ipaddress`, whichever version it is."""
    if address.is_private or not address.is_global:
        assert find_special_purpose(address) is not None


@given(st.ip_addresses(v=6).filter(lambda address: address not in GLOBAL_UNICAST))
def test_ipv6_outside_of_global_unicast_is_never_public(address: IPv6Address) -> None:
    assert find_special_purpose(address) is not None


# The reason is here because Python's own idea of "global" is another one, in one version or in all.
NAMED = {
    "an address of a private network": ("10.1.2.3", "10.0.0.0/8 Private-Use, RFC 1918"),
    "the last address of a private network": ("172.31.255.255", "172.16.0.0/12 Private-Use, RFC 1918"),
    "the metadata service of most clouds": ("169.254.169.254", "169.254.0.0/16 Link Local, RFC 3927"),
    "the metadata service of Azure": ("168.63.129.16", "168.63.129.16/32 Azure platform address, Microsoft"),
    "a cluster behind carrier-grade NAT": ("100.64.0.1", "100.64.0.0/10 Shared Address Space, RFC 6598"),
    "the more specific of two blocks": (
        "192.0.0.10",
        "192.0.0.10/32 Traversal Using Relays around NAT Anycast, RFC 8155",
    ),
    "the 6to4 relay": ("192.88.99.1", "192.88.99.0/24 Deprecated (6to4 Relay Anycast), RFC 7526"),
    "IPv4 multicast": ("224.0.0.251", "224.0.0.0/4 Multicast, RFC 5771"),
    "what Istio gives to a ServiceEntry": ("240.240.0.1", "240.0.0.0/4 Reserved, RFC 1112 section 4"),
    "broadcast": ("255.255.255.255", "255.255.255.255/32 Limited Broadcast, RFC 919 section 7"),
    "IPv6 multicast": ("ff02::1", "ff00::/8 Multicast, RFC 4291 section 2.7"),
    "site-local": ("fec0::1", "fec0::/10 Deprecated (Site-Local Unicast), RFC 3879"),
    "the newer documentation block": ("3fff::1", "3fff::/20 Documentation, RFC 9637"),
    "a segment of SRv6": ("5f00::1", "5f00::/16 Segment Routing (SRv6) SIDs, RFC 9602"),
    "a block that is not handed out": ("4000::1", "4000::/2 outside of Global Unicast, RFC 4291 section 2.4"),
    "an anycast service that the registry calls reachable": (
        "2001:1::1",
        "2001:1::1/128 Port Control Protocol Anycast, RFC 7723",
    ),
    "an identifier that is routed nowhere": ("2001:20::1", "2001:20::/28 ORCHIDv2, RFC 7343"),
    "the metadata service of AWS by IPv6": ("fd00:ec2::254", "fc00::/7 Unique-Local, RFC 4193"),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_special_address_is_named_by_its_block(case: str) -> None:
    address, expected = NAMED[case]
    assert expected == str(find_special_purpose(ip_address(address)))


PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.88.98.255",
    "192.88.100.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2001:200::",
    "2001:4860:4860::8888",
    "2606:4700::1111",
    "2003::",
    "2a00::1",
    "3ffd:ffff::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_rest_is_public(address: str) -> None:
    assert find_special_purpose(ip_address(address)) is None


CARRIED = {
    "an IPv4 address carries none": ("8.8.8.8", []),
    "a native IPv6 address carries none": ("2001:4860:4860::8888", []),
    "loopback and unspecified are no IPv4-compatible addresses": ("::1", []),
    "IPv4-mapped": ("::ffff:10.0.0.1", ["10.0.0.1"]),
    "IPv4-compatible": ("::10.0.0.1", ["10.0.0.1"]),
    "IPv4-translated (SIIT)": ("::ffff:0:10.0.0.1", ["10.0.0.1"]),
    "NAT64, well-known prefix": ("64:ff9b::10.0.0.1", ["10.0.0.1"]),
    "NAT64, a local /48": ("64:ff9b:1:a01:2:300::", ["10.1.2.3"]),
    "NAT64, a local /96": ("64:ff9b:1::10.1.2.3", ["10.1.2.3"]),
    "NAT64, a local prefix that can be read both ways": (
        "64:ff9b:1:a01:2:300:808:808",
        ["10.1.2.3", "8.8.8.8"],
    ),
    "NAT64, a local prefix and nothing": ("64:ff9b:1::", ["0.0.0.0"]),
    "6to4": ("2002:a00:1::1", ["10.0.0.1"]),
    "Teredo: the server, and the client by inverted bits": (
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        ["65.54.227.120", "192.0.2.45"],
    ),
    "ISATAP with a private address": ("2a00:1450::5efe:10.0.0.1", ["10.0.0.1"]),
    "ISATAP with a public address": ("2a00:1450::200:5efe:8.8.8.8", ["8.8.8.8"]),
}


@pytest.mark.parametrize("case", CARRIED)
def test_carried_ipv4_addresses(case: str) -> None:
    address, expected = CARRIED[case]
    assert [IPv4Address(text) for text in expected] == list(carried_ipv4(ip_address(address)))
