"""Addresses that are no ordinary destination on the Internet, and the IPv4 addresses that hide in IPv6 ones.

The table holds IANA's IPv4 and IPv6 Special-Purpose Address Registries row by row, the multicast blocks,
the forms that RFCs have deprecated and no registry lists any more, and all of IPv6 outside of 2000::/3.
What no row covers is public. Of the rows that cover an address the most specific one names it.

`ipaddress.is_global` is not asked: its answer differs between Python versions, and it is true for
multicast, for the 6to4 relay, and for translation prefixes around private addresses.

The registries call some of these blocks globally reachable: the anycast addresses of PCP, TURN, SRP and
AMT, the AS112 sinks for stray reverse lookups, ORCHIDs and drone identifiers. They stand in the table all
the same. Each is either answered by whatever instance is nearest, often inside one's own network, or is not
routed at all, and none of them serves TLS to the name that was asked for. An operator who knows better has
`allow_networks`.

What cannot be in a table: the prefix that a network chose for its own NAT64 (RFC 6052 section 2.2) or 6rd
(RFC 5969) looks like any other global unicast. An operator who has one names it in `deny_networks`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# From the number of an IPv6 address to the IPv4 addresses in it.
Reading = Callable[[int], tuple[IPv4Address, ...]]


def _carries_nothing(_number: int) -> tuple[IPv4Address, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class SpecialPurpose:
    """A block of addresses: its name in the registry, the document that set it apart, and what it carries.

    `carried` reads the IPv4 addresses out of an address of a tunnelling or translation prefix.
    """

    network: Network
    name: str
    source: str
    carried: Reading = _carries_nothing

    def __str__(self) -> str:
        return f"{self.network} {self.name}, {self.source}"


def find_special_purpose(address: Address) -> SpecialPurpose | None:
    """The most specific row that covers `address`, or None for a public one."""
    number = int(address)
    for host_bits, blocks in _INDEX[address.version]:
        if row := blocks.get(number >> host_bits):
            return row
    return None


def carried_ipv4(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that a tunnel or a translator reads out of `address`: where packets to it may go."""
    if address.version == 4:
        return ()
    row = find_special_purpose(address)
    return (row.carried(int(address)) if row else ()) or _in_isatap(int(address))


def _ipv4_at(number: int, first_bit: int) -> IPv4Address:
    """The IPv4 address at bits `first_bit` to `first_bit + 31` of an IPv6 address, counted as the RFCs do."""
    return IPv4Address(number >> (96 - first_bit) & 0xFFFF_FFFF)


def _in_last_32_bits(number: int) -> tuple[IPv4Address, ...]:
    return (_ipv4_at(number, 96),)


def _in_6to4(number: int) -> tuple[IPv4Address, ...]:
    """RFC 3056 section 2: 2002:V4ADDR::/48."""
    return (_ipv4_at(number, 16),)


def _in_teredo(number: int) -> tuple[IPv4Address, ...]:
    """RFC 4380 section 4: the server, and the client's mapped address with every bit inverted."""
    return (_ipv4_at(number, 32), _ipv4_at(~number, 96))


def _in_local_nat64(number: int) -> tuple[IPv4Address, ...]:
    """RFC 8215 leaves the length of the prefix to the network: the two forms that are in use are both read.

    RFC 6052 section 2.2: under a /48 the address stands in bits 48 to 63 and 72 to 87, around an octet of
    zeros; under a /96 in the last 32 bits. An all-zero reading means that the other form is in use. The /56
    and /64 forms are not understood.
    """
    under_48 = IPv4Address((number >> 64 & 0xFFFF) << 16 | number >> 40 & 0xFFFF)
    under_96 = _ipv4_at(number, 96)
    return tuple(reading for reading in (under_48, under_96) if int(reading)) or (under_96,)


def _in_isatap(number: int) -> tuple[IPv4Address, ...]:
    """RFC 5214 section 6.1: under any prefix, an interface identifier of 5efe and an IPv4 address.

    The mask leaves out the universal/local and group bits, which tell a public IPv4 address from a private
    one.
    """
    return (_ipv4_at(number, 96),) if number >> 32 & 0xFCFF_FFFF == 0x0000_5EFE else ()


def _row(network: str, name: str, source: str, carried: Reading = _carries_nothing) -> SpecialPurpose:
    return SpecialPurpose(ip_network(network), name, source, carried)


# https://www.iana.org/assignments/iana-ipv4-special-registry
_IPV4_REGISTRY = (
    _row("0.0.0.0/8", "This Network", "RFC 791 section 3.2"),
    _row("0.0.0.0/32", "This Host on This Network", "RFC 1122 section 3.2.1.3"),
    _row("10.0.0.0/8", "Private-Use", "RFC 1918"),
    _row("100.64.0.0/10", "Shared Address Space", "RFC 6598"),
    _row("127.0.0.0/8", "Loopback", "RFC 1122 section 3.2.1.3"),
    _row("169.254.0.0/16", "Link Local", "RFC 3927"),
    _row("172.16.0.0/12", "Private-Use", "RFC 1918"),
    _row("192.0.0.0/24", "IETF Protocol Assignments", "RFC 6890 section 2.1"),
    _row("192.0.0.0/29", "IPv4 Service Continuity Prefix", "RFC 7335"),
    _row("192.0.0.8/32", "IPv4 Dummy Address", "RFC 7600"),
    _row("192.0.0.9/32", "Port Control Protocol Anycast", "RFC 7723"),
    _row("192.0.0.10/32", "Traversal Using Relays around NAT Anycast", "RFC 8155"),
    _row("192.0.0.170/31", "NAT64/DNS64 Discovery", "RFC 7050 section 2.2"),
    _row("192.0.2.0/24", "Documentation (TEST-NET-1)", "RFC 5737"),
    _row("192.31.196.0/24", "AS112-v4", "RFC 7535"),
    _row("192.52.193.0/24", "AMT", "RFC 7450"),
    _row("192.88.99.0/24", "Deprecated (6to4 Relay Anycast)", "RFC 7526"),
    _row("192.88.99.2/32", "6a44 Relay Anycast", "RFC 6751"),
    _row("192.168.0.0/16", "Private-Use", "RFC 1918"),
    _row("192.175.48.0/24", "Direct Delegation AS112 Service", "RFC 7534"),
    _row("198.18.0.0/15", "Benchmarking", "RFC 2544"),
    _row("198.51.100.0/24", "Documentation (TEST-NET-2)", "RFC 5737"),
    _row("203.0.113.0/24", "Documentation (TEST-NET-3)", "RFC 5737"),
    _row("240.0.0.0/4", "Reserved", "RFC 1112 section 4"),
    _row("255.255.255.255/32", "Limited Broadcast", "RFC 919 section 7"),
)

# https://www.iana.org/assignments/iana-ipv6-special-registry
_IPV6_REGISTRY = (
    _row("::1/128", "Loopback Address", "RFC 4291 section 2.5.3"),
    _row("::/128", "Unspecified Address", "RFC 4291 section 2.5.2"),
    _row("::ffff:0:0/96", "IPv4-mapped Address", "RFC 4291 section 2.5.5.2", _in_last_32_bits),
    _row("64:ff9b::/96", "IPv4-IPv6 Translation", "RFC 6052 section 2.1", _in_last_32_bits),
    _row("64:ff9b:1::/48", "Local-Use IPv4-IPv6 Translation", "RFC 8215", _in_local_nat64),
    _row("100::/64", "Discard-Only Address Block", "RFC 6666"),
    _row("100:0:0:1::/64", "Dummy IPv6 Prefix", "RFC 9780"),
    _row("2001::/23", "IETF Protocol Assignments", "RFC 2928"),
    _row("2001::/32", "Teredo", "RFC 4380", _in_teredo),
    _row("2001:1::1/128", "Port Control Protocol Anycast", "RFC 7723"),
    _row("2001:1::2/128", "Traversal Using Relays around NAT Anycast", "RFC 8155"),
    _row("2001:1::3/128", "DNS-SD Service Registration Protocol Anycast", "RFC 9665"),
    _row("2001:2::/48", "Benchmarking", "RFC 5180"),
    _row("2001:3::/32", "AMT", "RFC 7450"),
    _row("2001:4:112::/48", "AS112-v6", "RFC 7535"),
    _row("2001:10::/28", "Deprecated (ORCHID)", "RFC 4843"),
    _row("2001:20::/28", "ORCHIDv2", "RFC 7343"),
    _row("2001:30::/28", "Drone Remote ID Protocol Entity Tags", "RFC 9374"),
    _row("2001:db8::/32", "Documentation", "RFC 3849"),
    _row("2002::/16", "6to4", "RFC 3056", _in_6to4),
    _row("2620:4f:8000::/48", "Direct Delegation AS112 Service", "RFC 7534"),
    _row("3fff::/20", "Documentation", "RFC 9637"),
    _row("5f00::/16", "Segment Routing (SRv6) SIDs", "RFC 9602"),
    _row("fc00::/7", "Unique-Local", "RFC 4193"),
    _row("fe80::/10", "Link-Local Unicast", "RFC 4291 section 2.5.6"),
)

# Multicast has registries of its own. The rest once was special and is now in no registry; hosts and
# translators that still know these forms do exist.
_ELSEWHERE = (
    _row("224.0.0.0/4", "Multicast", "RFC 5771"),
    _row("ff00::/8", "Multicast", "RFC 4291 section 2.7"),
    _row("::/96", "Deprecated (IPv4-compatible Address)", "RFC 4291 section 2.5.5.1", _in_last_32_bits),
    _row("::ffff:0:0:0/96", "Deprecated (IPv4-translated Address)", "RFC 2765 section 2.1", _in_last_32_bits),
    _row("3ffe::/16", "Returned (6bone)", "RFC 3701"),
    _row("fec0::/10", "Deprecated (Site-Local Unicast)", "RFC 3879"),
)

# https://www.iana.org/assignments/ipv6-address-space: 2000::/3 is all the global unicast that IANA hands out.
# These three are the rest of IPv6, so that a block set apart tomorrow is refused today.
_UNALLOCATED = tuple(
    _row(network, "outside of Global Unicast", "RFC 4291 section 2.4") for network in ("::/3", "4000::/2", "8000::/1")
)

# Not in any registry: in Azure this public address is the hypervisor's own, which hands out a virtual
# machine's configuration and secrets.
# https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
_PLATFORMS = (_row("168.63.129.16/32", "Azure platform address", "Microsoft"),)

SPECIAL_PURPOSE = (*_IPV4_REGISTRY, *_IPV6_REGISTRY, *_ELSEWHERE, *_UNALLOCATED, *_PLATFORMS)


def _index(version: int) -> Iterator[tuple[int, dict[int, SpecialPurpose]]]:
    """For each prefix length, longest first: the number of host bits, and the rows by the bits above them."""
    rows = [row for row in SPECIAL_PURPOSE if row.network.version == version]
    for length in sorted({row.network.prefixlen for row in rows}, reverse=True):
        host_bits = rows[0].network.max_prefixlen - length
        yield (
            host_bits,
            {int(row.network.network_address) >> host_bits: row for row in rows if row.network.prefixlen == length},
        )


_INDEX = {version: tuple(_index(version)) for version in (4, 6)}
