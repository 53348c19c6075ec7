"""The words of policy: a rule, a request, and the decision about it. Both formats, ours and Istio's, become these.

A rule is a list of clauses, of which one must hold; a clause is a list of conditions, all of which must; a condition
asks whether one attribute of the request is among its values and not among its `not_values`. All of it is plain data,
so that it can be written down in a few bytes and compared. `match` says what the values mean.

Only `Allowed` carries a `Permit`, and only a permit can be dialled, so that a connection that no rule allowed cannot be
made by mistake.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, NamedTuple

from sniproxy.config.units import Network
from sniproxy.identity.spiffe import Identity
from sniproxy.names import ServerName
from sniproxy.outcome import Reason


class Action(Enum):
    ALLOW = "allow"
    DENY = "deny"
    AUDIT = "audit"  # noted in the log, and no more
    REGISTER = "register"  # a host of a ServiceEntry, and who may see it: for `registry: only`


class Attribute(StrEnum):
    """What a condition looks at, by the keys of Istio's conditions."""

    SNI = "connection.sni"
    PRINCIPAL = "source.principal"
    NAMESPACE = "source.namespace"
    SOURCE_IP = "source.ip"
    PORT = "destination.port"


class Condition(NamedTuple):
    """Holds when one of `values` matches the attribute (or there are none) and none of `not_values` does.

    Values are canonical texts: patterns of names, principals and namespaces; networks as "10.0.0.0/8"; ports as "443".
    """

    attribute: Attribute
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


Clause = tuple[Condition, ...]


class Per(StrEnum):
    """Whether all callers of a rule share its limits, or each principal has its own."""

    RULE = "rule"
    PRINCIPAL = "principal"


class RuleLimits(NamedTuple):
    """How much of what a rule allows is allowed at once. 0 is no limit."""

    connections: int = 0
    rate: float = 0.0  # new connections a second
    burst: int = 0  # what may come at once; with a rate it is 1 at least
    per: Per = Per.RULE


class Ground(NamedTuple):
    """What a decision rests on: a rule of a policy, and where it is written."""

    policy: str
    rule: str
    file: str
    line: int

    def __str__(self) -> str:
        """As Istio's phrases have it: ns[istio-system]-policy[NAME]-rule[0]."""
        return f"{self.policy}-rule[{self.rule}]"


# No rule spoke: the default decided, or something before the rules did.
NO_GROUND: Final = Ground(policy="none", rule="none", file="", line=0)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. It holds when one of its clauses does: () never, ((),) always.

    A rule that never holds still counts: an allow rule, whatever it asks for, refuses the rest (Istio's `spec: {}`).
    """

    ground: Ground
    action: Action
    clauses: tuple[Clause, ...]
    is_monitored: bool = False  # judged and logged, and never decides
    allow_networks: tuple[Network, ...] = ()
    limits: RuleLimits | None = None


class EchPolicy(Enum):
    ALLOW = "allow"
    LOG = "log"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class OuterSni:
    """What the SNI of the tunnel must be. With neither, anything."""

    must_equal: bool = False  # the name in the ClientHello
    patterns: tuple[str, ...] = ()  # one of these


@dataclass(frozen=True, slots=True)
class Rulebook:
    """Everything that decides: the rules, ours before Istio's, and what holds where they are silent."""

    rules: tuple[Rule, ...] = ()
    default: Action = Action.DENY
    monitor: bool = False  # policy.mode: nothing is refused by policy, only logged
    require_identity: bool = False
    ech: EchPolicy = EchPolicy.LOG
    outer_sni: OuterSni = OuterSni()
    registry_only: bool = False


class Request(NamedTuple):
    """What one connection asks for, as far as policy sees it.

    `source_ip` is "" where the peer has none; `outer_name` is the SNI of the tunnel that it came through, as it was
    sent, and "" where none was; `port` is the one that we would dial.
    """

    server_name: ServerName
    identity: Identity
    source_ip: str
    ech: bool = False
    outer_name: str = ""
    port: int = 443


class Permit(NamedTuple):
    """Leave to connect to `server_name`. Nothing but the engine makes one."""

    server_name: ServerName
    allow_networks: tuple[Network, ...]


class DryRun(NamedTuple):
    """What would have been decided with everything enforced that is in monitor mode: the opposite of what was."""

    would_deny: bool
    reason: Reason | None  # of the refusal, if it would be one; None if not
    ground: Ground


class Allowed(NamedTuple):
    permit: Permit
    ground: Ground
    limits: RuleLimits | None = None
    dry_run: DryRun | None = None  # None: no different
    audit: Ground | None = None  # the first audit rule that holds


class Denied(NamedTuple):
    reason: Reason
    ground: Ground
    detail: str
    dry_run: DryRun | None = None
    audit: Ground | None = None


Decision = Allowed | Denied
