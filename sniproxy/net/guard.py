"""The destination guard: which of the addresses that a name resolved to may be dialled.

Whoever may name a host may also own its DNS, and can point it at 127.0.0.1, at a cloud's metadata service,
or at anything else that only this proxy can reach. So after resolution every address is judged by itself,
and what is dialled is the very `Endpoint` that came out of here, never the name again.

The guard knows addresses only: it resolves nothing and connects nowhere. It never changes: a new config is
a new `Guard`, and what it has remembered goes with the old one.

Two questions are kept apart. `judge` asks what an address is, and exceptions can change its answer. `vet`
also asks whether an endpoint is one of the proxy's own listeners, which no exception changes: a proxy that
dials itself forwards one connection until its descriptors are gone.
"""

import errno
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Final, NamedTuple

from sniproxy.memo import Memo
from sniproxy.net.special_purpose import Address, Network, carried_ipv4, find_special_purpose

# Of one answer. Enough for the largest real ones, and few enough that no name can keep a dialler busy.
MAX_ENDPOINTS = 16

# Vetted answers that are remembered; an entry costs about one kilobyte.
_MEMORY = 2048

_MAPPED_PREFIX = IPv6Network("::ffff:0:0/96")


class Endpoint(NamedTuple):
    """Where to connect: an address in its canonical spelling, a port, and the socket's family."""

    host: str
    port: int
    family: socket.AddressFamily


@dataclass(frozen=True, slots=True)
class Allowed:
    """This address may be dialled, by this spelling; `reason` says what lets it pass."""

    host: str
    family: socket.AddressFamily
    reason: str


@dataclass(frozen=True, slots=True)
class Forbidden:
    """This address may not be dialled; `reason` is a sentence for the log."""

    reason: str


Verdict = Allowed | Forbidden


@dataclass(frozen=True, slots=True)
class Vetted:
    """What is left of an answer, in its order, and why the rest is gone."""

    endpoints: tuple[Endpoint, ...]
    refusals: tuple[str, ...]


_Answer = tuple[tuple[str, ...], int, tuple[Network, ...]]  # addresses, the port, and what a rule allows besides


class Guard:
    """Judges addresses by IANA's registries, the operator's networks and the proxy's own listeners.

    `is_local` tells whether an address is one of this host's; tests bring their own.
    """

    def __init__(
        self,
        allow_networks: Iterable[Network] = (),
        deny_networks: Iterable[Network] = (),
        own_listeners: Collection[Endpoint] = (),
        is_local: Callable[[Address], bool] | None = None,
    ) -> None:
        judge = _Judge(tuple(allow_networks), tuple(map(_plain, deny_networks)))
        self._judge = judge
        # Names resolve to the same few answers again and again; a lookup here costs a tenth of the judgement.
        # Our own listeners are left out of what is remembered: which addresses are local can change.
        self._screened: Memo[_Answer, Vetted] = Memo(lambda answer: judge.screen(*answer), _MEMORY)
        self._own = _OwnListeners(own_listeners, is_local or is_local_address)

    def judge(self, address: str, extra_allow: tuple[Network, ...] = ()) -> Verdict:
        """Whether `address` may be dialled.

        1. An address in a network of `deny_networks` is forbidden, whatever allows it.
        2. One in a network of `allow_networks`, or of the rule's own `extra_allow`, is allowed.
        3. One that is set apart for a special purpose is forbidden.
        4. Any other is public, and allowed.

        An IPv4 address inside an IPv6 one is judged by the same steps, and both must pass: an exception for
        a tunnelling prefix lifts the prefix, not what is reached through it. What is no address, or is tied
        to an interface (`fe80::1%eth0`), is forbidden before all that.
        """
        return self._judge.verdict(address, extra_allow)

    def vet(self, addresses: Sequence[str], port: int, extra_allow: tuple[Network, ...] = ()) -> Vetted:
        """The endpoints to dial on `port`: what `judge` allows of `addresses`, without our own listeners.

        The first MAX_ENDPOINTS of them, in their order. No endpoint means `destination_forbidden`, unless
        there was no address.
        """
        return self._own.drop_from(self._screened.of((tuple(addresses), port, extra_allow)))

    def vet_static(self, endpoints: Iterable[tuple[str, int]]) -> Vetted:
        """The same for answers from the config, which no network forbids: only our own listeners are dropped.

        Raises ValueError for a host that is no IP address.
        """
        return self._own.drop_from(Vetted(tuple(map(_endpoints.of, endpoints))[:MAX_ENDPOINTS], ()))


@dataclass(frozen=True, slots=True)
class _Judge:
    """The four steps. Apart from `Guard`, so that what remembers and what is remembered form no cycle."""

    allow: tuple[Network, ...]
    deny: tuple[Network, ...]

    def screen(self, addresses: tuple[str, ...], port: int, extra_allow: tuple[Network, ...]) -> Vetted:
        verdicts = [self.verdict(address, extra_allow) for address in addresses]
        allowed = (verdict for verdict in verdicts if isinstance(verdict, Allowed))
        return Vetted(
            tuple(Endpoint(one.host, port, one.family) for one in islice(allowed, MAX_ENDPOINTS)),
            tuple(verdict.reason for verdict in verdicts if isinstance(verdict, Forbidden)),
        )

    def verdict(self, text: str, extra_allow: tuple[Network, ...]) -> Verdict:
        try:
            address = ip_address(text)
        except ValueError:
            return Forbidden(f"{text!r} is not an IP address")
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return Forbidden(f"{text} is tied to an interface of this host, RFC 4007")
        allow = (*self.allow, *extra_allow)
        outer = self._step_by_step(address, allow)
        if isinstance(outer, Forbidden):
            return outer
        for carried in carried_ipv4(address):
            inner = self._step_by_step(carried, allow)
            if isinstance(inner, Forbidden):
                return Forbidden(f"{address} leads to IPv4, where {inner.reason}")
        return outer

    def _step_by_step(self, address: Address, allow: tuple[Network, ...]) -> Verdict:
        if network := _network_of(address, self.deny):  # 1
            return Forbidden(f"{address} is in {network} of deny_networks")
        if network := _network_of(address, allow):  # 2
            return _allowed(address, f"{address} is in {network} of allow_networks")
        if row := find_special_purpose(address):  # 3
            return Forbidden(f"{address} is in {row}")
        return _allowed(address, f"{address} is public")  # 4


def _network_of(address: Address, networks: tuple[Network, ...]) -> Network | None:
    return next((network for network in networks if address in network), None)


def _plain(network: Network) -> Network:
    """A network of IPv4-mapped addresses as the IPv4 network that it spells.

    But not ::ffff:0:0/96 itself: that forbids the spelling, where 0.0.0.0/0 would forbid all of IPv4.
    """
    if isinstance(network, IPv4Network) or network.prefixlen <= 96 or not network.subnet_of(_MAPPED_PREFIX):
        return network
    return ip_network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))


def _unmapped(address: Address) -> Address:
    """An IPv4-mapped address is an IPv4 address to the kernel, and so it is to us."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _allowed(address: Address, reason: str) -> Allowed:
    plain = _unmapped(address)
    return Allowed(str(plain), _family(plain), reason)


def _endpoint(address: tuple[str, int]) -> Endpoint:
    plain = _unmapped(ip_address(address[0]))
    return Endpoint(str(plain), address[1], _family(plain))


_endpoints: Final = Memo(_endpoint, _MEMORY)


class _OwnListeners:
    """The endpoints where connections come back to this proxy.

    The port is compared first: it costs nothing and settles nearly every case. Nothing is remembered about
    which addresses are local, because interfaces come and go.
    """

    def __init__(self, listeners: Iterable[Endpoint], is_local: Callable[[Address], bool]) -> None:
        self._by_port: dict[int, set[Address]] = {}
        for listener in listeners:
            self._by_port.setdefault(listener.port, set()).add(_unmapped(ip_address(listener.host)))
        self._is_local = is_local

    def drop_from(self, vetted: Vetted) -> Vetted:
        if not any(endpoint.port in self._by_port for endpoint in vetted.endpoints):
            return vetted
        own = [endpoint for endpoint in vetted.endpoints if self._has(endpoint)]
        return Vetted(
            tuple(endpoint for endpoint in vetted.endpoints if endpoint not in own),
            (*vetted.refusals, *(f"{host} port {port} is a listener of this proxy" for host, port, _ in own)),
        )

    def _has(self, endpoint: Endpoint) -> bool:
        listening = self._by_port.get(endpoint.port)
        if not listening:
            return False
        address = ip_address(endpoint.host)
        return any(self._reaches(one, listening) for one in (address, *carried_ipv4(address)))

    def _reaches(self, address: Address, listening: set[Address]) -> bool:
        # Connecting to 0.0.0.0 or :: reaches the loopback of this host (Linux, BSD); RFC 1122 section 3.2.1.3
        # forbids it as a destination anyhow.
        if address in listening or address.is_unspecified:
            return True
        return any(host.is_unspecified for host in listening) and self._is_local(address)


def is_local_address(address: Address) -> bool:
    """Whether `address` is one of this host's own: only such an address can be bound.

    A UDP socket, because binding one opens no port to connections. When binding fails for another reason than
    that the address is elsewhere (no descriptors left, say), the answer is yes: it decides what is refused.
    """
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True
