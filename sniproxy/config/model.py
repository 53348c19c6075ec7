"""The config's shape, with its defaults and units: frozen values that the whole program reads.

Times are seconds, sizes bytes. What a value may be is said here; where a wrong one stands is `load`'s business.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    field_validator,
    model_validator,
)

from sniproxy.config.units import (
    AnyNetwork,
    Duration,
    EndpointAddress,
    HostName,
    ListenAddress,
    Nameserver,
    PositiveDuration,
    Size,
    TcpAddress,
    TrustedPeer,
    Uid,
    UnixAddress,
)
from sniproxy.identity.spiffe import InvalidSpiffeIdError, Principal, parse_principal
from sniproxy.names import ServerName


def _off(value: object) -> object:
    """`off`, also where YAML 1.1 tooling (Helm, kubectl) has turned it into false."""
    return "off" if value is False else value


def _principal(value: object) -> Principal:
    if isinstance(value, Principal):
        return value
    try:
        return parse_principal(value if isinstance(value, str) else str(value))
    except InvalidSpiffeIdError as error:
        raise ValueError(f"{error}; write it as cluster.local/ns/default/sa/sleep") from None


Off = BeforeValidator(_off)
PrincipalName = Annotated[Principal, PlainValidator(_principal)]
TlvType = Annotated[int, Field(ge=0, le=255)]


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
    def _types_are_free(self) -> Self:
        if self.principal == self.requested_server_name:
            raise ValueError("principal and requested_server_name are the same TLV; give each its own")
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
                raise ValueError("trusted_peers has no meaning with proxy_protocol off; set proxy_protocol: required")
            return self
        on_unix = isinstance(self.address, UnixAddress)
        example = "uid:1337" if on_unix else "127.0.0.0/8"
        if not self.trusted_peers:
            raise ValueError(f"proxy_protocol required trusts nobody; add trusted_peers: [{example}]")
        for peer in self.trusted_peers:
            if isinstance(peer, Uid) != on_unix:
                where = "a Unix socket" if on_unix else "a TCP address"
                raise ValueError(f"trusted peer {peer} cannot be seen on {where}; write one like {example}")
        return self


class ResolverConfig(Section):
    nameservers: tuple[Nameserver, ...] = ()  # none: the system's, from /etc/resolv.conf
    family: Literal["ipv4", "ipv6", "both"] = "both"
    timeout: PositiveDuration = 2.0
    min_ttl: Duration = 1.0
    max_ttl: Duration = 300.0
    negative_ttl: Duration = 5.0
    stale_ttl: Duration = 0.0
    cache_size: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000

    @model_validator(mode="after")
    def _clamps_fit(self) -> Self:
        if self.min_ttl > self.max_ttl:
            raise ValueError("min_ttl is longer than max_ttl; swap them")
        return self


class Upstream(Section):
    port: Annotated[int, Field(ge=1, le=65535)] = 443
    resolver: ResolverConfig = ResolverConfig()
    hosts: dict[HostName, tuple[EndpointAddress, ...]] = {}
    allow_networks: tuple[AnyNetwork, ...] = ()
    deny_networks: tuple[AnyNetwork, ...] = ()
    connect_timeout: PositiveDuration = 5.0

    @field_validator("hosts")
    @classmethod
    def _hosts_have_addresses(
        cls, hosts: dict[ServerName, tuple[TcpAddress, ...]]
    ) -> dict[ServerName, tuple[TcpAddress, ...]]:
        for name, addresses in hosts.items():
            if not addresses:
                raise ValueError(f'{name} has no address; give it one, like ["127.0.0.1:9443"]')
        return hosts


class PolicyFile(Section):
    """A file or a glob of policies, and the namespace that `kubectl -n` would have given its documents."""

    path: Annotated[str, Field(min_length=1)]
    namespace: str | None = None


class Gateway(Section):
    """The workload that this proxy is part of: what Istio's selectors and the log's `source` fields name."""

    namespace: str = "istio-system"
    root_namespace: str = "istio-system"
    labels: dict[str, str] = {}
    trust_domain: str = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()


def _policy_file(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class Policy(Section):
    files: tuple[Annotated[PolicyFile, BeforeValidator(_policy_file)], ...] = ()
    mode: Literal["enforce"] = "enforce"
    rejudge: bool = True
    require_identity: bool = False
    outer_sni: Literal["ignore"] = "ignore"
    ech: Literal["allow", "log", "deny"] = "log"
    registry: Annotated[Literal["off"], Off] = "off"
    gateway: Gateway = Gateway()


class Timeouts(Section):
    client_hello: PositiveDuration = 10.0
    idle: PositiveDuration = 600.0
    drain: Duration = 30.0


class Limits(Section):
    connections: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    undecided_per_source: Annotated[int, Field(ge=1)] = 500
    client_hello_bytes: Annotated[Size, Field(ge=512, le=1 << 20)] = 64 * 1024


class AccessLog(Section):
    path: str = "/dev/stdout"
    format: Literal["json"] = "json"
    events: frozenset[Literal["open", "close", "deny", "fail"]] = frozenset(("open", "close", "deny", "fail"))


class Admin(Section):
    address: EndpointAddress | None = TcpAddress("127.0.0.1", 9402)
    metrics_address: EndpointAddress | None = None


def _workers(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256):
        return value
    raise ValueError(f"{value!r} is no number of workers; write auto, or a number from 1 to 256")


class Config(Section):
    """The whole config. `base` is the folder that relative paths start from."""

    listeners: Annotated[tuple[Listener, ...], Field(min_length=1)] = (Listener(address=TcpAddress("127.0.0.1", 8443)),)
    upstream: Upstream = Upstream()
    policy: Policy = Policy()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    access_log: AccessLog = AccessLog()
    admin: Admin = Admin()
    workers: Annotated[int | Literal["auto"], PlainValidator(_workers)] = "auto"

    @model_validator(mode="after")
    def _addresses_differ(self) -> Self:
        addresses = [listener.address for listener in self.listeners]
        addresses += [address for address in (self.admin.address, self.admin.metrics_address) if address is not None]
        seen = set()
        for address in addresses:
            if address in seen and getattr(address, "port", None) != 0:
                raise ValueError(f"{address} is listened on twice; give each its own")
            seen.add(address)
        return self


def resolve_path(base: Path, path: str) -> Path:
    """`path` as the config's author meant it: relative to the folder of the config file."""
    return base / path
