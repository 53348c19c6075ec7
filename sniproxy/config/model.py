"""The config's shape, with its defaults and units: frozen values that the whole program reads.

Times are seconds, sizes bytes. Each field says what it may be and how it is read, beside its default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_args

from sniproxy.config.fields import Value, dotted
from sniproxy.config.log_template import DEFAULT_TEMPLATE, check_template
from sniproxy.config.section import Section, choice, each, parsed, read_by, setting, text, whole
from sniproxy.config.units import (
    Address,
    Network,
    TcpAddress,
    Uid,
    UnixAddress,
    parse_address,
    parse_duration,
    parse_endpoint,
    parse_label,
    parse_name,
    parse_name_pattern,
    parse_nameserver,
    parse_namespace,
    parse_network,
    parse_positive_duration,
    parse_size,
    parse_tcp_address,
    parse_trusted_peer,
    show,
)
from sniproxy.identity.spiffe import SCHEME, InvalidSpiffeIdError, Principal, parse_principal
from sniproxy.names import ServerName


def parse_principal_name(value: object) -> Principal:
    """A principal, with or without its scheme. Raises ValueError, with the mend."""
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is no principal; write it as cluster.local/ns/default/sa/sleep")
    try:
        return parse_principal(value)
    except InvalidSpiffeIdError as error:
        raise ValueError(f"{error}; write it as cluster.local/ns/default/sa/sleep") from None


# PP2_TYPE_CRC32C, NOOP and SSL (proxy-protocol.txt, section 2.2).
_TLVS_OF_THE_PROTOCOL = frozenset({0x03, 0x04, 0x20})


@dataclass(frozen=True, slots=True)
class TlvTypes(Section):
    """Which PROXY v2 TLV carries which attribute. 0xD0 is what Istio's ztunnel uses for the SPIFFE ID."""

    principal: int = setting(0xD0, whole(0, 255))
    requested_server_name: int = setting(0x02, whole(0, 255))  # PP2_TYPE_AUTHORITY

    def checked(self, value: Value) -> Self:
        if self.principal == self.requested_server_name:
            value.wrong(f"both attributes have the type {self.principal:#04x}; give each its own")
        for name, kind in (("principal", self.principal), ("requested_server_name", self.requested_server_name)):
            if kind in _TLVS_OF_THE_PROTOCOL:
                value.wrong(f"{name}: 0x{kind:02x} means something else in the PROXY protocol; 0xE0 to 0xEF are free")
        return self


@dataclass(frozen=True, slots=True)
class IdentitySource(Section):
    tlvs: TlvTypes = setting(TlvTypes(), TlvTypes.read)
    static: Principal | None = setting(None, parsed(parse_principal_name), nullable=True)


ProxyProtocol = Literal["off", "required"]


@dataclass(frozen=True, slots=True)
class Listener(Section):
    address: Address = field(metadata=read_by(parsed(parse_address)))
    proxy_protocol: ProxyProtocol = setting("off", choice(ProxyProtocol))
    trusted_peers: tuple[Network | Uid, ...] = setting((), each(parse_trusted_peer))
    identity: IdentitySource = setting(IdentitySource(), IdentitySource.read)

    def checked(self, value: Value) -> Self:
        """Who is trusted can send a header, and can be seen on this socket."""
        on_unix = isinstance(self.address, UnixAddress)
        example = "uid:1337" if on_unix else "127.0.0.0/8"
        if self.proxy_protocol == "off":
            if self.trusted_peers:
                message = "nobody is trusted while proxy_protocol is off; set proxy_protocol: required"
                value.towards("trusted_peers").wrong(message)
            return self
        if not self.trusted_peers:
            message = f"required, but nobody may send the header; add trusted_peers: [{example}]"
            value.towards("proxy_protocol").wrong(message)
        for number, peer in enumerate(self.trusted_peers):
            if isinstance(peer, Uid) != on_unix:
                here, seen = ("a Unix socket", "uids") if on_unix else ("a TCP address", "networks")
                message = f"{peer} cannot be seen on {here}, where peers are known by their {seen}; write {example}"
                value.towards("trusted_peers", number).wrong(message)
        return self


Family = Literal["ipv4", "ipv6", "both"]


@dataclass(frozen=True, slots=True)
class ResolverConfig(Section):
    # Without any, those of the system are asked, from /etc/resolv.conf.
    nameservers: tuple[TcpAddress, ...] = setting((), each(parse_nameserver))
    family: Family = setting("both", choice(Family))
    timeout: float = setting(2.0, parsed(parse_positive_duration))
    min_ttl: float = setting(1.0, parsed(parse_duration))
    max_ttl: float = setting(300.0, parsed(parse_duration))
    negative_ttl: float = setting(5.0, parsed(parse_duration))
    stale_ttl: float = setting(0.0, parsed(parse_duration))
    cache_size: int = setting(10_000, whole(1, 1_000_000))

    def checked(self, value: Value) -> Self:
        if self.min_ttl > self.max_ttl:
            at = value.at("min_ttl") or value.towards("max_ttl")
            at.wrong(f"min_ttl is {self.min_ttl:g}s and max_ttl {self.max_ttl:g}s; lower min_ttl, or raise max_ttl")
        return self


Hosts = Mapping[ServerName, tuple[TcpAddress, ...]]


def _hosts(value: Value) -> Hosts:
    hosts: dict[ServerName, tuple[TcpAddress, ...]] = {}
    spelled: dict[ServerName, str] = {}
    for written, addresses in value.pairs().items():
        found = addresses.each(parse_endpoint)
        try:
            name = parse_name(written)
        except ValueError as error:
            addresses.wrong(error)
            continue
        if name in hosts:  # YAML sees two spellings of one name as two keys
            addresses.wrong(f"is the same name as {show(spelled[name])}; keep one")
        else:
            hosts[name], spelled[name] = found, written
    return hosts


@dataclass(frozen=True, slots=True)
class Upstream(Section):
    port: int = setting(443, whole(1, 65535))
    resolver: ResolverConfig = setting(ResolverConfig(), ResolverConfig.read)
    hosts: Hosts = field(default_factory=dict, metadata=read_by(_hosts))
    allow_networks: tuple[Network, ...] = setting((), each(parse_network))
    deny_networks: tuple[Network, ...] = setting((), each(parse_network))
    connect_timeout: float = setting(5.0, parsed(parse_positive_duration))


@dataclass(frozen=True, slots=True)
class PolicyFile(Section):
    """A file or a glob of policies, and the namespace that `kubectl -n` would have given its documents."""

    path: str = field(metadata=read_by(Value.text))
    namespace: str | None = setting(None, parsed(parse_namespace), nullable=True)


def _policy_files(value: Value) -> tuple[PolicyFile, ...]:
    return value.every(_policy_file, may_be_empty=True)


def _policy_file(value: Value) -> PolicyFile | None:
    """A path by itself is a file without a namespace."""
    match value.node.value:
        case str():
            return PolicyFile(value.text())
        case dict():
            return PolicyFile.read(value)
        case other:
            mend = "write its path, or {path: google.yaml, namespace: otherns}"
            value.wrong(f"{show(other)} names no file; {mend}")
            return None


def _trust_domain(value: object) -> str:
    try:
        if isinstance(value, str) and not parse_principal(value).path and not value.startswith(SCHEME):
            return value
    except InvalidSpiffeIdError:
        pass
    mend = "write lower-case letters, digits, '.', '-' and '_': cluster.local"
    raise ValueError(f"{show(value)} is no trust domain; {mend}")


def _labels(value: Value) -> dict[str, str]:
    return {key: label.parsed(parse_label) or "" for key, label in value.texts().items()}


@dataclass(frozen=True, slots=True)
class Gateway(Section):
    """The workload that this proxy is part of: what Istio's selectors and the log's `source` fields name."""

    namespace: str = setting("istio-system", parsed(parse_namespace))
    root_namespace: str = setting("istio-system", parsed(parse_namespace))
    labels: Mapping[str, str] = field(default_factory=dict, metadata=read_by(_labels))
    trust_domain: str = setting("cluster.local", parsed(_trust_domain))
    trust_domain_aliases: tuple[str, ...] = setting((), each(_trust_domain))


def _name_pattern(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is not text; put it in quotes")
    return parse_name_pattern(value)


def _name_patterns(value: Value) -> tuple[str, ...]:
    return value.each(_name_pattern)


@dataclass(frozen=True, slots=True)
class RequireMatch(Section):
    """The names that the tunnel's SNI may be."""

    require_match: tuple[str, ...] = field(metadata=read_by(_name_patterns))


def _outer_sni(value: Value) -> Literal["ignore", "require_equal"] | RequireMatch | None:
    match value.node.value:
        case "ignore":
            return "ignore"
        case "require_equal":
            return "require_equal"
        case dict():
            return RequireMatch.read(value)
        case other:
            mend = "write ignore, require_equal or {require_match: ['*.example.org']}"
            value.wrong(f"{show(other)} is no check; {mend}")
            return None


Mode = Literal["enforce", "monitor"]
Ech = Literal["allow", "log", "deny"]
Registry = Literal["off", "only"]


@dataclass(frozen=True, slots=True)
class Policy(Section):
    files: tuple[PolicyFile, ...] = setting((), _policy_files)
    mode: Mode = setting("enforce", choice(Mode))
    rejudge: bool = setting(True, Value.flag)
    require_identity: bool = setting(False, Value.flag)
    outer_sni: Literal["ignore", "require_equal"] | RequireMatch = setting("ignore", _outer_sni)
    ech: Ech = setting("log", choice(Ech))
    registry: Registry = setting("off", choice(Registry))
    gateway: Gateway = setting(Gateway(), Gateway.read)


@dataclass(frozen=True, slots=True)
class Timeouts(Section):
    client_hello: float = setting(10.0, parsed(parse_positive_duration))
    idle: float = setting(600.0, parsed(parse_positive_duration))
    drain: float = setting(30.0, parsed(parse_duration))


def _hello_size(value: Value) -> int | None:
    size = value.parsed(parse_size)
    return None if size is None else value.within(size, 512, 1 << 20)


@dataclass(frozen=True, slots=True)
class Limits(Section):
    connections: int = setting(20_000, whole(1, 10_000_000))
    undecided_per_source: int = setting(500, whole(1, 10_000_000))
    client_hello_bytes: int = setting(64 * 1024, _hello_size)


SYSLOG = "syslog:"


def _log_path(path: str) -> str:
    if path.startswith(SYSLOG):
        try:
            parse_address(f"unix:{path.removeprefix(SYSLOG)}")
        except ValueError:
            mend = "write the absolute path of a socket, of 107 bytes at most: syslog:/dev/log"
            raise ValueError(f"{show(path)} names no syslog; {mend}") from None
        return path
    if not path.startswith("/"):
        raise ValueError(f"{path!r} depends on where the proxy is started; write it from the root: /var/log/{path}")
    return path


def _share(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise ValueError(f"{show(value)} is no share; write a number from 0 to 1: 0.1 logs every tenth")


@dataclass(frozen=True, slots=True)
class Sample(Section):
    """The share of the lines that an access log keeps of what went well. What did not is always kept."""

    open: float = setting(1.0, parsed(_share))
    close: float = setting(1.0, parsed(_share))


LogFormat = Literal["json", "nginx", "envoy"]
LogEvent = Literal["open", "close", "deny", "fail"]
_EVENTS: frozenset[LogEvent] = frozenset(get_args(LogEvent))


def _events(value: Value) -> frozenset[LogEvent]:
    return frozenset(value.every(choice(LogEvent), may_be_empty=True))


@dataclass(frozen=True, slots=True)
class AccessLog(Section):
    """One place where connections are told: a file, a descriptor that was inherited, or a syslog."""

    path: str = setting("/dev/stdout", text(_log_path))
    format: LogFormat = setting("json", choice(LogFormat))
    template: str = setting(DEFAULT_TEMPLATE, text(check_template))
    events: frozenset[LogEvent] = setting(_EVENTS, _events)
    sample: Sample = setting(Sample(), Sample.read)

    def checked(self, value: Value) -> Self:
        """nginx and Envoy tell a connection once, at its end, and so do their formats, if nothing else is asked for."""
        template = value.at("template")
        if template is not None and self.format != "nginx":
            template.wrong(f"format {self.format} has none; write format: nginx, or drop the template")
        if self.format != "json" and value.at("events") is None:
            return replace(self, events=self.events - {"open"})
        return self


def _access_logs(value: Value) -> tuple[AccessLog, ...] | None:
    """A list of them, or one by itself."""
    match value.node.value:
        case list():
            return value.every(AccessLog.read)
        case dict():
            log = AccessLog.read(value)
            return None if log is None else (log,)
        case other:
            mend = "write {path: /var/log/access.log}, or a list of such"
            value.wrong(f"{show(other)} is no access log; {mend}")
            return None


@dataclass(frozen=True, slots=True)
class Admin(Section):
    """Where to look: `address` for people on this machine, `metrics_address` for scrapers and probes from elsewhere."""

    address: Address | None = setting(parse_address("127.0.0.1:9402"), parsed(parse_address), nullable=True)
    metrics_address: TcpAddress | None = setting(None, parsed(parse_tcp_address), nullable=True)


def _listeners(value: Value) -> tuple[Listener, ...]:
    return value.every(Listener.read)


def _workers(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256:
        return value
    raise ValueError(f"{show(value)} is no number of workers; write auto, or a number from 1 to 256")


@dataclass(frozen=True, slots=True)
class Config(Section):
    """The whole config."""

    listeners: tuple[Listener, ...] = setting((Listener(parse_address("127.0.0.1:8443")),), _listeners)
    upstream: Upstream = setting(Upstream(), Upstream.read)
    policy: Policy = setting(Policy(), Policy.read)
    timeouts: Timeouts = setting(Timeouts(), Timeouts.read)
    limits: Limits = setting(Limits(), Limits.read)
    access_log: tuple[AccessLog, ...] = setting((AccessLog(),), _access_logs)
    admin: Admin = setting(Admin(), Admin.read)
    workers: int | Literal["auto"] = setting("auto", parsed(_workers))

    def checked(self, value: Value) -> Self:
        self._check_that_the_outer_sni_can_arrive(value)
        self._check_that_logs_differ(value)
        self._check_that_addresses_differ(value)
        return self

    def _check_that_the_outer_sni_can_arrive(self, value: Value) -> None:
        """The SNI of the tunnel comes in a TLV, and so nothing can come to a listener without a PROXY header."""
        without = [number for number, one in enumerate(self.listeners) if one.proxy_protocol == "off"]
        if self.policy.outer_sni != "ignore" and without:
            where = f"listeners[{without[0]}] has no PROXY header to carry the outer SNI"
            mend = "set proxy_protocol: required there, or outer_sni: ignore"
            value.towards("policy", "outer_sni").wrong(f"{where}; {mend}")

    def _check_that_logs_differ(self, value: Value) -> None:
        """A place is opened once, and has one format."""
        seen: dict[str, int] = {}
        for number, log in enumerate(self.access_log):
            first = seen.setdefault(log.path, number)
            if first != number:
                message = f"{log.path} is access_log[{first}].path too; give each its own"
                value.towards("access_log", number, "path").wrong(message)

    def _check_that_addresses_differ(self, value: Value) -> None:
        """One socket cannot serve two purposes. Port 0 is a new one each time."""
        places: list[tuple[tuple[str | int, ...], Address | None]] = [
            (("admin", "address"), self.admin.address),
            (("admin", "metrics_address"), self.admin.metrics_address),
            *((("listeners", number, "address"), one.address) for number, one in enumerate(self.listeners)),
        ]
        # Defaults first: the fault is with what is written.
        places.sort(key=lambda place: value.towards(*place[0]).path == place[0])
        seen: dict[Address, str] = {}
        for path, address in places:
            if address is None or (isinstance(address, TcpAddress) and address.port == 0):
                continue
            first = seen.setdefault(address, dotted(path))
            if first != dotted(path):
                value.towards(*path).wrong(f"{address} is {first} too; give each its own")
