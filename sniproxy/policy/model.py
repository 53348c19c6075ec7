"""The words of policy: a rule, a request, and the decision about it.

What is made for every connection is a tuple with names, for that is the cheapest value that cannot change. Only
`Allowed` carries a `Permit`, and only a permit can be dialled, so that a connection that no rule allowed
cannot be made by mistake.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from sniproxy.config.units import Network
from sniproxy.identity.spiffe import Identity
from sniproxy.names import ServerName
from sniproxy.outcome import Reason
from sniproxy.policy.match import IdentityPattern, NamePattern


class Action(Enum):
    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Ground:
    """What a decision rests on: a rule of a policy, and where it is written."""

    policy: str
    rule: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.policy}-rule[{self.rule}]"


# No rule spoke: the default decided, or something before the rules did.
NO_GROUND = Ground(policy="none", rule="none", file="", line=0)


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule. It holds when each condition that it has holds; an empty tuple is a condition that it lacks."""

    ground: Ground
    action: Action
    names: tuple[NamePattern, ...] = ()
    not_names: tuple[NamePattern, ...] = ()
    principals: tuple[IdentityPattern, ...] = ()
    not_principals: tuple[IdentityPattern, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    source_networks: tuple[Network, ...] = ()
    allow_networks: tuple[Network, ...] = ()


class Request(NamedTuple):
    """What one connection asks for, as far as policy sees it. `source_ip` is "" where the peer has none."""

    server_name: ServerName
    identity: Identity
    source_ip: str
    ech: bool = False


class Permit(NamedTuple):
    """Leave to connect to `server_name`. Nothing but the engine makes one."""

    server_name: ServerName
    allow_networks: tuple[Network, ...]


class Allowed(NamedTuple):
    permit: Permit
    ground: Ground


class Denied(NamedTuple):
    reason: Reason
    ground: Ground
    detail: str


Decision = Allowed | Denied
