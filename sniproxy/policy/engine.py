"""The engine: rules compiled into an index, so that a decision looks up a few keys and scans no rules.

The index finds candidates by name and identity; `holds` then checks each candidate whole. What the index misses
can therefore only be a rule that does not hold, and `holds` alone says what a rule means.
"""

import ipaddress
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from sniproxy.identity.spiffe import Principal
from sniproxy.outcome import Reason
from sniproxy.policy.match import (
    ANYONE,
    STAR,
    Key,
    identity_keys,
    name_keys,
    namespace_key,
    namespace_matches,
)
from sniproxy.policy.model import NO_GROUND, Action, Allowed, Decision, Denied, Permit, Request, Rule


class EchPolicy(Enum):
    ALLOW = "allow"
    LOG = "log"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Rulebook:
    """Everything that decides: the rules in the order they were written, and what holds where they are silent."""

    rules: tuple[Rule, ...] = ()
    default: Action = Action.DENY
    require_identity: bool = False
    ech: EchPolicy = EchPolicy.LOG


class Engine:
    """A compiled rulebook. Immutable: a new policy is a new engine."""

    def __init__(self, rulebook: Rulebook) -> None:
        self.rulebook = rulebook
        self._deny = _Index(rule for rule in rulebook.rules if rule.action is Action.DENY)
        self._allow = _Index(rule for rule in rulebook.rules if rule.action is Action.ALLOW)

    def decide(self, request: Request) -> Decision:
        """The decision about one connection.

        1. No identity, where one is required, denies.
        2. An encrypted ClientHello, where those are refused, denies: the name that we see is not the real one.
        3. The first deny rule that holds denies.
        4. The first allow rule that holds allows.
        5. With any allow rule in force, the rest is refused.
        6. With none, the default decides.
        """
        book = self.rulebook
        if book.require_identity and not isinstance(request.identity, Principal):
            return Denied(
                Reason.IDENTITY_REQUIRED, NO_GROUND, "policy.require_identity is on and the caller is unknown"
            )
        if request.ech and book.ech is EchPolicy.DENY:
            return Denied(
                Reason.ECH,
                NO_GROUND,
                "policy.ech is deny and the hello has the ECH extension",
            )
        rule = self._deny.first(request)
        if rule is not None:
            return Denied(Reason.RULE, rule.ground, f"rbac_access_denied_matched_policy[{rule.ground}]")
        rule = self._allow.first(request)
        if rule is not None:
            return Allowed(Permit(request.server_name, rule.allow_networks), rule.ground)
        if self._allow or book.default is Action.DENY:
            return Denied(Reason.DEFAULT, NO_GROUND, "rbac_access_denied_matched_policy[none]")
        return Allowed(Permit(request.server_name, ()), NO_GROUND)


class _Index:
    """Rules of one action by name key, then by identity key; each list in the order of the rulebook."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        table: defaultdict[Key, defaultdict[Key, list[tuple[int, Rule]]]] = defaultdict(lambda: defaultdict(list))
        for entry in enumerate(rules):
            for name_key in _rule_name_keys(entry[1]):
                for identity_key in _rule_identity_keys(entry[1]):
                    table[name_key][identity_key].append(entry)
        self._table = {key: dict(inner) for key, inner in table.items()}

    def __bool__(self) -> bool:
        return bool(self._table)

    def first(self, request: Request) -> Rule | None:
        """The first rule, in the order of the rulebook, that holds for `request`."""
        best: Rule | None = None
        best_number = -1
        table = self._table
        who = identity_keys(request.identity)
        for name_key in name_keys(request.server_name):
            by_identity = table.get(name_key)
            if by_identity is None:
                continue
            for identity_key in who:
                for number, rule in by_identity.get(identity_key, ()):
                    if best is not None and number >= best_number:
                        break
                    if holds(rule, request):
                        best, best_number = rule, number
                        break
        return best


def _rule_name_keys(rule: Rule) -> set[Key]:
    return {pattern.key for pattern in rule.names} or {STAR}


def _rule_identity_keys(rule: Rule) -> set[Key]:
    """Principals are more particular than namespaces: a rule with both is found by them, and `holds` checks both."""
    if rule.principals:
        return {pattern.key for pattern in rule.principals}
    return {namespace_key(namespace) for namespace in rule.namespaces} or {ANYONE}


def holds(rule: Rule, request: Request) -> bool:
    """A rule holds when each condition it has does; a list matches when one of its entries does."""
    name, identity = request.server_name, request.identity
    return (
        (not rule.names or any(pattern.matches(name) for pattern in rule.names))
        and not any(pattern.matches(name) for pattern in rule.not_names)
        and (not rule.principals or any(pattern.matches(identity) for pattern in rule.principals))
        and not any(pattern.matches(identity) for pattern in rule.not_principals)
        and (not rule.namespaces or any(namespace_matches(pattern, identity) for pattern in rule.namespaces))
        and not any(namespace_matches(pattern, identity) for pattern in rule.not_namespaces)
        and (not rule.source_networks or _within(request.source_ip, rule))
    )


def _within(source_ip: str, rule: Rule) -> bool:
    if not source_ip:
        return False
    address = ipaddress.ip_address(source_ip)
    return any(address in network for network in rule.source_networks)
