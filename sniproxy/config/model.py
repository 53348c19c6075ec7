"""The config's shape, with its defaults and units: frozen values that the whole program reads.

Times are seconds, sizes bytes. What a value may be is said here; where a wrong one stands is `load`'s business.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Strict,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sniproxy.config.log_template import DEFAULT_TEMPLATE, check_template
from sniproxy.config.units import (
    Address,
    AdminAddress,
    AnyNetwork,
    Duration,
    EndpointAddress,
    HostName,
    ListenAddress,
    Nameserver,
    Namespace,
    PositiveDuration,
    Size,
    TcpAddress,
    TrustedPeer,
    Uid,
    UnixAddress,
    parse_address,
    parse_label,
    parse_name_pattern,
    show,
)
from sniproxy.identity.spiffe import SCHEME, InvalidSpiffeIdError, Principal, parse_principal


def _off(value: object) -> object:
    """`off`, also where YAML 1.1 tooling (Helm, kubectl) has turned it into false."""
    return "off" if value is False else value


def parse_principal_name(value: object) -> Principal:
    """A principal, with or without its scheme. Raises ValueError, with the mend."""
    if isinstance(value, Principal):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is no principal; write it as cluster.local/ns/default/sa/sleep")
    try:
        return parse_principal(value)
    except InvalidSpiffeIdError as error:
        raise ValueError(f"{error}; write it as cluster.local/ns/default/sa/sleep") from None


def _wrong_at(at: tuple[str | int, ...], message: str) -> PydanticCustomError:
    """A problem that only the whole mapping can see, at the path in it where the mend belongs."""
    return PydanticCustomError("value_error", "{error}", {"error": message, "at": at})


Off = BeforeValidator(_off)
PrincipalName = Annotated[Principal, PlainValidator(parse_principal_name)]
Whole = Annotated[int, Strict()]  # neither true nor "443" nor 4.0
TlvType = Annotated[Whole, Field(ge=0, le=255)]


class Section(BaseModel):
    """A mapping of the config: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


# PP2_TYPE_CRC32C, NOOP and SSL (proxy-protocol.txt, section 2.2).
_TLVS_OF_THE_PROTOCOL = frozenset({0x03, 0x04, 0x20})


class TlvTypes(Section):
    """Which PROXY v2 TLV carries which attribute. 0xD0 is what Istio's ztunnel uses for the SPIFFE ID."""

    principal: TlvType = 0xD0
    requested_server_name: TlvType = 0x02  # PP2_TYPE_AUTHORITY

    @model_validator(mode="after")
    def _types_differ(self) -> Self:
        if self.principal == self.requested_server_name:
            raise ValueError(f"both attributes have the type {self.principal:#04x}; give each its own")
        return self

    @model_validator(mode="after")
    def _types_are_free(self) -> Self:
        for name, kind in (("principal", self.principal), ("requested_server_name", self.requested_server_name)):
            if kind in _TLVS_OF_THE_PROTOCOL:
                raise ValueError(
                    f"{name}: 0x{kind:02x} means something else in the PROXY protocol; 0xE0 to 0xEF are free"
                )
        return self


class IdentitySource(Section):
    tlvs: TlvTypes = TlvTypes()
    static: PrincipalName | None = None


class Listener(Section):
    address: ListenAddress
    proxy_protocol: Annotated[Literal["off", "required"], Off] = "off"
    trusted_peers: tuple[TrustedPeer, ...] = ()
    identity: IdentitySource = IdentitySource()

    @model_validator(mode="after")
    def _trust_fits(self) -> Self:
        if self.proxy_protocol == "off":
            if self.trusted_peers:
                raise _wrong_at(
                    ("trusted_peers",), "nobody is trusted while proxy_protocol is off; set proxy_protocol: required"
                )
            return self
        on_unix = isinstance(self.address, UnixAddress)
        example = "uid:1337" if on_unix else "127.0.0.0/8"
        if not self.trusted_peers:
            raise _wrong_at(
                ("proxy_protocol",), f"required, but nobody may send the header; add trusted_peers: [{example}]"
            )
        for number, peer in enumerate(self.trusted_peers):
            if isinstance(peer, Uid) != on_unix:
                here, seen = ("a Unix socket", "uids") if on_unix else ("a TCP address", "networks")
                message = f"{peer} cannot be seen on {here}, where peers are known by their {seen}; write {example}"
                raise _wrong_at(("trusted_peers", number), message)
        return self


class ResolverConfig(Section):
    nameservers: tuple[Nameserver, ...] = ()  # none: the system's, from /etc/resolv.conf
    family: Literal["ipv4", "ipv6", "both"] = "both"
    timeout: PositiveDuration = 2.0
    min_ttl: Duration = 1.0
    max_ttl: Duration = 300.0
    negative_ttl: Duration = 5.0
    stale_ttl: Duration = 0.0
    cache_size: Annotated[Whole, Field(ge=1, le=1_000_000)] = 10_000

    @model_validator(mode="after")
    def _clamps_fit(self) -> Self:
        if self.min_ttl > self.max_ttl:
            at = "min_ttl" if "min_ttl" in self.model_fields_set else "max_ttl"
            message = f"min_ttl is {self.min_ttl:g}s and max_ttl {self.max_ttl:g}s; lower min_ttl, or raise max_ttl"
            raise _wrong_at((at,), message)
        return self


class Upstream(Section):
    port: Annotated[Whole, Field(ge=1, le=65535)] = 443
    resolver: ResolverConfig = ResolverConfig()
    hosts: dict[HostName, Annotated[tuple[EndpointAddress, ...], Field(min_length=1)]] = {}
    allow_networks: tuple[AnyNetwork, ...] = ()
    deny_networks: tuple[AnyNetwork, ...] = ()
    connect_timeout: PositiveDuration = 5.0

    @field_validator("hosts", mode="before")
    @classmethod
    def _names_differ(cls, hosts: object) -> object:
        """YAML sees two spellings of one name as two keys."""
        seen: dict[str, str] = {}
        for written in hosts if isinstance(hosts, dict) else ():
            name = str(written).lower().removesuffix(".")
            if name in seen:
                raise _wrong_at((written,), f"is the same name as {show(seen[name])}; keep one")
            seen[name] = written
        return hosts


class PolicyFile(Section):
    """A file or a glob of policies, and the namespace that `kubectl -n` would have given its documents."""

    path: Annotated[str, Field(min_length=1)]
    namespace: Namespace | None = None


def _trust_domain(value: object) -> str:
    try:
        if isinstance(value, str) and not parse_principal(value).path and not value.startswith(SCHEME):
            return value
    except InvalidSpiffeIdError:
        pass
    mend = "write lower-case letters, digits, '.', '-' and '_': cluster.local"
    raise ValueError(f"{show(value)} is no trust domain; {mend}")


TrustDomain = Annotated[str, PlainValidator(_trust_domain)]


class Gateway(Section):
    """The workload that this proxy is part of: what Istio's selectors and the log's `source` fields name."""

    namespace: Namespace = "istio-system"
    root_namespace: Namespace = "istio-system"
    labels: dict[str, Annotated[str, AfterValidator(parse_label)]] = {}
    trust_domain: TrustDomain = "cluster.local"
    trust_domain_aliases: tuple[TrustDomain, ...] = ()


def _policy_file(value: object) -> object:
    if not isinstance(value, (str, dict, PolicyFile)):
        raise ValueError(f"{show(value)} names no file; write its path, or {{path: google.yaml, namespace: otherns}}")
    return {"path": value} if isinstance(value, str) else value


def _name_pattern(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is not text; put it in quotes")
    return parse_name_pattern(value)


class RequireMatch(Section):
    """The names that the tunnel's SNI may be."""

    require_match: Annotated[tuple[Annotated[str, PlainValidator(_name_pattern)], ...], Field(min_length=1)]


def _outer_sni(value: object) -> object:
    if isinstance(value, dict | RequireMatch) or value in ("ignore", "require_equal"):
        return value
    raise ValueError(f"{show(value)} is no check; write ignore, require_equal or {{require_match: ['*.example.org']}}")


class Policy(Section):
    files: tuple[Annotated[PolicyFile, BeforeValidator(_policy_file)], ...] = ()
    mode: Literal["enforce", "monitor"] = "enforce"
    rejudge: bool = True
    require_identity: bool = False
    outer_sni: Annotated[
        Annotated[Literal["ignore", "require_equal"], Tag("word")] | Annotated[RequireMatch, Tag("patterns")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "patterns"),
        BeforeValidator(_outer_sni),
    ] = "ignore"
    ech: Literal["allow", "log", "deny"] = "log"
    registry: Annotated[Literal["off", "only"], Off] = "off"
    gateway: Gateway = Gateway()


class Timeouts(Section):
    client_hello: PositiveDuration = 10.0
    idle: PositiveDuration = 600.0
    drain: Duration = 30.0


class Limits(Section):
    connections: Annotated[Whole, Field(ge=1, le=10_000_000)] = 20_000
    undecided_per_source: Annotated[Whole, Field(ge=1, le=10_000_000)] = 500
    client_hello_bytes: Annotated[Size, Field(ge=512, le=1 << 20)] = 64 * 1024


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


Share = Annotated[float, PlainValidator(_share)]


class Sample(Section):
    """The share of the lines that an access log keeps of what went well. What did not is always kept."""

    open: Share = 1.0
    close: Share = 1.0


LogEvent = Literal["open", "close", "deny", "fail"]
_EVENTS: frozenset[LogEvent] = frozenset(("open", "close", "deny", "fail"))


class AccessLog(Section):
    """One place where connections are told: a file, a descriptor that was inherited, or a syslog."""

    path: Annotated[str, Field(min_length=1), AfterValidator(_log_path)] = "/dev/stdout"
    format: Literal["json", "nginx", "envoy"] = "json"
    template: Annotated[str, AfterValidator(check_template)] = DEFAULT_TEMPLATE
    events: frozenset[LogEvent] = _EVENTS
    sample: Sample = Sample()

    @model_validator(mode="before")
    @classmethod
    def _one_line_a_connection(cls, value: object) -> object:
        """nginx and Envoy tell a connection once, at its end, and so do their formats, if nothing else is asked for."""
        if isinstance(value, dict) and value.get("format") in ("nginx", "envoy") and "events" not in value:
            return {**value, "events": sorted(_EVENTS - {"open"})}
        return value

    @model_validator(mode="after")
    def _template_is_used(self) -> Self:
        if "template" in self.model_fields_set and self.format != "nginx":
            raise _wrong_at(("template",), f"format {self.format} has none; write format: nginx, or drop the template")
        return self


def _access_logs(value: object) -> object:
    """A list of them, or one by itself."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, dict | AccessLog):
        return (value,)
    raise ValueError(f"{show(value)} is no access log; write {{path: /var/log/access.log}}, or a list of such")


class Admin(Section):
    """Where to look: `address` for people on this machine, `metrics_address` for scrapers and probes from elsewhere."""

    address: ListenAddress | None = TcpAddress("127.0.0.1", 9402)
    metrics_address: AdminAddress | None = None


def _workers(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256):
        return value
    raise ValueError(f"{show(value)} is no number of workers; write auto, or a number from 1 to 256")


class Config(Section):
    """The whole config. `base` is the folder that relative paths start from."""

    listeners: Annotated[tuple[Listener, ...], Field(min_length=1)] = (Listener(address=TcpAddress("127.0.0.1", 8443)),)
    upstream: Upstream = Upstream()
    policy: Policy = Policy()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    access_log: Annotated[tuple[AccessLog, ...], Field(min_length=1), BeforeValidator(_access_logs)] = (AccessLog(),)
    admin: Admin = Admin()
    workers: Annotated[int | Literal["auto"], PlainValidator(_workers)] = "auto"

    @model_validator(mode="after")
    def _outer_sni_can_arrive(self) -> Self:
        """The SNI of the tunnel comes in a TLV, and so nothing can come to a listener without a PROXY header."""
        if self.policy.outer_sni != "ignore":
            for number, listener in enumerate(self.listeners):
                if listener.proxy_protocol == "off":
                    where = f"listeners[{number}] has no PROXY header to carry the outer SNI"
                    raise _wrong_at(
                        ("policy", "outer_sni"), f"{where}; set proxy_protocol: required there, or outer_sni: ignore"
                    )
        return self

    @model_validator(mode="after")
    def _logs_differ(self) -> Self:
        """A place is opened once, and has one format."""
        seen: dict[str, int] = {}
        for number, log in enumerate(self.access_log):
            if log.path in seen:
                message = f"{log.path} is access_log[{seen[log.path]}].path too; give each its own"
                raise _wrong_at(("access_log", number, "path"), message)
            seen[log.path] = number
        return self

    @model_validator(mode="after")
    def _addresses_differ(self) -> Self:
        """One socket cannot serve two purposes. Port 0 is a new one each time."""
        places: list[tuple[tuple[str | int, ...], Address | None]] = [
            (("admin", "address"), self.admin.address),
            (("admin", "metrics_address"), self.admin.metrics_address),
            *((("listeners", number, "address"), listener.address) for number, listener in enumerate(self.listeners)),
        ]
        seen: dict[Address, str] = {}
        for at, address in places:
            if address is None or (isinstance(address, TcpAddress) and address.port == 0):
                continue
            where = f"listeners[{at[1]}].address" if at[0] == "listeners" else ".".join(map(str, at))
            if address in seen:
                raise _wrong_at(at, f"{address} is {seen[address]} too; give each its own")
            seen[address] = where
        return self
