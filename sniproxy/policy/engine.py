"""The engine: rules compiled into an index, so that a decision looks up a few keys and scans no rules.

Every rule stands in the index under the keys of its name patterns, and there under those of its identity patterns
(`match` has the keys). A name and an identity are looked up under each of their own keys, most particular first, and
whatever is found there matches both; what else a rule asks for is a short list of conditions, empty for most.
"""

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from sniproxy.config.units import Network
from sniproxy.identity.spiffe import Identity, Principal
from sniproxy.names import ServerName
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

Condition = Callable[[Request], bool]


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
        self._asks_for_source = any(rule.source_networks for rule in rulebook.rules)
        self._remembered = lru_cache(maxsize=4096)(self._decide)

    def decide(self, request: Request) -> Decision:
        """The decision about one connection; the same request gets the same one, and is remembered for a while."""
        name, identity, source_ip, ech = request
        return self._remembered(name, identity, source_ip if self._asks_for_source else "", ech)

    def _decide(self, name: ServerName, identity: Identity, source_ip: str, ech: bool) -> Decision:
        """The decision, from the rules.

        1. No identity, where one is required, denies.
        2. An encrypted ClientHello, where those are refused, denies: the name that we see is not the real one.
        3. The first deny rule that holds denies.
        4. The first allow rule that holds allows.
        5. With any allow rule in force, the rest is refused.
        6. With none, the default decides.
        """
        book, request = self.rulebook, Request(name, identity, source_ip, ech)
        if book.require_identity and not isinstance(request.identity, Principal):
            return _refusal(Reason.IDENTITY_REQUIRED, "policy.require_identity is on and the caller is unknown")
        if request.ech and book.ech is EchPolicy.DENY:
            return _refusal(Reason.ECH, "policy.ech is deny and the hello has the ECH extension")
        rule = self._deny.first(request)
        if rule is not None:
            return Denied(Reason.RULE, rule.ground, f"rbac_access_denied_matched_policy[{rule.ground}]")
        rule = self._allow.first(request)
        if rule is not None:
            return Allowed(Permit(request.server_name, rule.allow_networks), rule.ground)
        if self._allow or book.default is Action.DENY:
            return _refusal(Reason.DEFAULT, "rbac_access_denied_matched_policy[none]")
        return Allowed(Permit(request.server_name, ()), NO_GROUND)


def _refusal(reason: Reason, detail: str) -> Denied:
    return Denied(reason, NO_GROUND, detail)


class _Entry(NamedTuple):
    """A rule in the index: its place in the order of the rulebook, and what it asks beyond the keys."""

    number: int
    rule: Rule
    conditions: tuple[Condition, ...]


class _Index:
    """Rules of one action by name key, then by identity key; each list in the order of the rulebook."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        table: defaultdict[Key, defaultdict[Key, list[_Entry]]] = defaultdict(lambda: defaultdict(list))
        for number, rule in enumerate(rules):
            entry = _Entry(number, rule, tuple(_conditions(rule)))
            for name_key in _name_keys_of(rule):
                for identity_key in _identity_keys_of(rule):
                    table[name_key][identity_key].append(entry)
        self._table = {key: dict(inner) for key, inner in table.items()}

    def __bool__(self) -> bool:
        return bool(self._table)

    def first(self, request: Request) -> Rule | None:
        """The first rule, in the order of the rulebook, that holds for `request`."""
        best: _Entry | None = None
        identities = identity_keys(request.identity)
        for name_key in name_keys(request.server_name):
            by_identity = self._table.get(name_key)
            if by_identity is None:
                continue
            for identity_key in identities:
                for entry in by_identity.get(identity_key, ()):
                    if best is not None and entry.number >= best.number:
                        break
                    if not entry.conditions or all(condition(request) for condition in entry.conditions):
                        best = entry
                        break
        return best.rule if best is not None else None


def _name_keys_of(rule: Rule) -> set[Key]:
    return {pattern.key for pattern in rule.names} or {STAR}


def _identity_keys_of(rule: Rule) -> set[Key]:
    """Principals are more particular than namespaces: a rule that has both is found by its principals."""
    if rule.principals:
        return {pattern.key for pattern in rule.principals}
    return {namespace_key(namespace) for namespace in rule.namespaces} or {ANYONE}


def _conditions(rule: Rule) -> Iterator[Condition]:
    """What must hold for a rule beside the keys that it was found under; most rules ask for nothing more."""
    if rule.not_names:
        yield lambda request: not any(pattern.matches(request.server_name) for pattern in rule.not_names)
    if rule.not_principals:
        yield lambda request: not any(pattern.matches(request.identity) for pattern in rule.not_principals)
    if rule.principals and rule.namespaces:
        yield lambda request: any(namespace_matches(pattern, request.identity) for pattern in rule.namespaces)
    if rule.not_namespaces:
        yield lambda request: not any(namespace_matches(pattern, request.identity) for pattern in rule.not_namespaces)
    if rule.source_networks:
        yield lambda request: _is_within(request.source_ip, rule.source_networks)


def _is_within(source_ip: str, networks: tuple[Network, ...]) -> bool:
    if not source_ip:
        return False
    address = ipaddress.ip_address(source_ip)
    return any(address in network for network in networks)
