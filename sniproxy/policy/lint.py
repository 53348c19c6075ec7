"""What is right and yet doubtful about rules: those that leave a door open, and those that do nothing.

The lints look at the rulebook, so that rules of both formats get the same ones; what only the written document shows
(capitals, schemes, HTTP-only fields) is told where that is read. A warning is no proof that something is wrong, and
their absence none that all is right: comparisons that would take long with the worst of policies are left out.

Whether one rule shadows another is asked of few candidates, however many rules there are. Rules stand in an index under
a value of SNI and one of identity, and a rule looks for a wider one under every value that covers its own first ones.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice, product
from typing import NamedTuple

from sniproxy.config.yaml_source import Problem
from sniproxy.policy.model import Action, Attribute, Clause, Condition, Rule, Rulebook

_IDENTITY = (Attribute.PRINCIPAL, Attribute.NAMESPACE)
_STAR = "*"

# Rules with more clauses, and clauses with more conditions, are not looked into.
_MANY = 64
# How many clauses stand at one place of the index, and how many one is compared with.
_MAX_CANDIDATES = 16
# Rules with more values than that are not compared with others.
_MAX_ENTRIES = 1000


@dataclass(slots=True)
class _Effort:
    """How many values may still be compared. Policies as people write them need a few for each rule."""

    left: int = 5_000_000

    def allows(self, comparisons: int) -> bool:
        self.left -= comparisons
        return self.left >= 0


def lint(rulebook: Rulebook, port: int) -> Iterator[Problem]:
    """Warnings about the rules of a rulebook, where `port` is the one that is dialled."""
    effort = _Effort()
    deciding = [rule for rule in rulebook.rules if rule.action is not Action.REGISTER]
    may_be_unknown = not rulebook.require_identity and _admits_unknown(deciding)
    alive = []
    for rule in deciding:
        fault = _never_holds(rule, port, effort)
        if fault:
            yield _problem(rule, fault)
            continue
        alive.append(rule)
        if rule.action is Action.DENY and may_be_unknown:
            yield from _deny_that_misses_unknown(rule)
        elif rule.action is Action.ALLOW:
            yield from _allow_that_is_open(rule, rulebook.require_identity)
    yield from _shadowed(alive, port)
    if rulebook.registry_only:
        entries = [rule for rule in rulebook.rules if rule.action is Action.REGISTER]
        yield from (_problem(rule, fault) for rule in entries if (fault := _never_holds(rule, port, effort)))


def _problem(rule: Rule, sentence: str) -> Problem:
    return Problem(rule.ground.file, rule.ground.line, f"{_name(rule)} {sentence}")


def _name(rule: Rule) -> str:
    """As its readers know it: our rules have names, and Istio's the numbers of its phrase."""
    return str(rule.ground) if rule.ground.policy.startswith("ns[") else f"rule '{rule.ground.rule}'"


def _conditions(rule: Rule) -> Iterator[Condition]:
    return (condition for clause in rule.clauses for condition in clause)


# Identity that may be absent.


def _admits_unknown(rules: Iterable[Rule]) -> bool:
    """Whether a caller without identity could be let through: where every allow rule asks for one, none is."""
    allows = [rule for rule in rules if rule.action is Action.ALLOW and not rule.is_monitored]
    return not allows or any(not _asks_for_identity(clause) for rule in allows for clause in rule.clauses)


def _asks_for_identity(clause: Clause) -> bool:
    return any(condition.attribute in _IDENTITY and condition.values for condition in clause)


def _deny_that_misses_unknown(rule: Rule) -> Iterator[Problem]:
    for condition in _conditions(rule):
        if condition.attribute in _IDENTITY and condition.values:
            what = condition.attribute.removeprefix("source.")
            mend = "set policy.require_identity: true"
            yield _problem(rule, f"denies by {what}, and misses a caller whose identity is absent; {mend}")
            return


def _allow_that_is_open(rule: Rule, require_identity: bool) -> Iterator[Problem]:
    if any(clause and not any(condition.values for condition in clause) for clause in rule.clauses):
        yield _problem(rule, "allows everything but what it names; name what it allows")
    if not require_identity and any(_is_open_to_unknown(clause) for clause in rule.clauses):
        mend = "add principals: ['*'], or set policy.require_identity: true"
        yield _problem(rule, f"names only callers that it is not for, and so holds for one without identity; {mend}")


def _is_open_to_unknown(clause: Clause) -> bool:
    """Whether it speaks of identity in the negative alone. Not '*' is said by those who mean the unknown."""
    excluded = [condition for condition in clause if condition.attribute in _IDENTITY and condition.not_values]
    is_meant = any(_STAR in condition.not_values for condition in excluded)
    return bool(excluded) and not is_meant and not _asks_for_identity(clause)


# Rules that never hold.


def _never_holds(rule: Rule, port: int, effort: _Effort) -> str:
    """Why no request can satisfy any clause, or "" where one might."""
    if not 0 < len(rule.clauses) <= _MANY:
        return ""
    at_port = [clause for clause in rule.clauses if _is_to(clause, port)]
    if not all(_is_contradiction(clause, effort) for clause in at_port):
        return ""
    if at_port:
        return "never holds, for its conditions exclude each other; mend one, or drop it"
    return f"never holds, for {port} is dialled, and that is none of its ports; mend them, or upstream.port"


def _is_to(clause: Clause, port: int) -> bool:
    """Whether all conditions about ports hold for the one that is dialled."""
    value = str(port)
    return all(
        (not condition.values or value in condition.values) and value not in condition.not_values
        for condition in clause
        if condition.attribute is Attribute.PORT
    )


def _is_contradiction(clause: Clause, effort: _Effort) -> bool:
    """Whether no request satisfies all of these conditions."""
    if len(clause) > _MANY or (len(clause) < 2 and not any(condition.not_values for condition in clause)):
        return False
    return any(_is_excluded(one, other, effort) for one in clause for other in clause) or any(
        _exclude_each_other(one, other, effort) for one, other in combinations(clause, 2)
    )


def _is_excluded(one: Condition, other: Condition, effort: _Effort) -> bool:
    """Whether everything that one condition wants, the other does not."""
    if one.attribute is not other.attribute or not one.values or not other.not_values:
        return False
    if not effort.allows(len(one.values) * len(other.not_values)):
        return False
    return all(any(covers(one.attribute, wide, value) for wide in other.not_values) for value in one.values)


def _exclude_each_other(one: Condition, other: Condition, effort: _Effort) -> bool:
    """Whether nothing is among the values of both."""
    if not one.values or not other.values or not effort.allows(len(one.values) * len(other.values)):
        return False
    if one.attribute is other.attribute:
        return all(_are_disjoint(one.attribute, left, right) for left, right in product(one.values, other.values))
    if {one.attribute, other.attribute} == set(_IDENTITY):
        principals, namespaces = (one, other) if one.attribute is Attribute.PRINCIPAL else (other, one)
        return not any(
            _is_pattern(Attribute.PRINCIPAL, principal) or _fits(f"*/ns/{namespace}/*", principal)
            for principal, namespace in product(principals.values, namespaces.values)
        )
    return False


# What values mean to each other.


def covers(attribute: Attribute, wide: str, narrow: str) -> bool:
    """Whether `wide` matches all that `narrow` does. It may say no where it is hard to tell."""
    if wide == narrow:
        return True
    match attribute:
        case Attribute.SNI | Attribute.PRINCIPAL:
            return _string_covers(wide, narrow)
        case Attribute.NAMESPACE:
            return wide == _STAR or (_STAR in wide and _STAR not in narrow and _fits(wide, narrow))
        case Attribute.SOURCE_IP:
            return _network_covers(wide, narrow)
        case Attribute.PORT:
            return False


def _string_covers(wide: str, narrow: str) -> bool:
    if wide == _STAR:
        return True
    if narrow == _STAR:
        return False
    if wide.startswith(_STAR):
        return narrow.endswith(wide[1:]) and (narrow.startswith(_STAR) or not narrow.endswith(_STAR))
    return wide.endswith(_STAR) and not narrow.startswith(_STAR) and narrow.startswith(wide[:-1])


def _fits(pattern: str, text: str) -> bool:
    """Whether a text without stars is what the pattern says, where each star is any run of characters."""
    first, *rest = pattern.split(_STAR)
    if not text.startswith(first) or not text.endswith(rest[-1]) or len(text) < len(first) + len(rest[-1]):
        return False
    at, end = len(first), len(text) - len(rest[-1])
    for part in rest[:-1]:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _network_covers(wide: str, narrow: str) -> bool:
    one, other = _network(wide), _network(narrow)
    if isinstance(one, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and other.subnet_of(one)
    return isinstance(other, ipaddress.IPv6Network) and other.subnet_of(one)


_network = lru_cache(maxsize=4096)(ipaddress.ip_network)


def _are_disjoint(attribute: Attribute, one: str, other: str) -> bool:
    """Whether nothing matches both. It may say no where it is hard to tell."""
    if covers(attribute, one, other) or covers(attribute, other, one):
        return False
    if attribute in (Attribute.SOURCE_IP, Attribute.PORT):
        return True  # networks lie within each other or apart
    if not (_is_pattern(attribute, one) and _is_pattern(attribute, other)):
        return True
    # Two suffixes, or two prefixes, of which none covers the other; of one of each nobody knows.
    return attribute is not Attribute.NAMESPACE and one.startswith(_STAR) == other.startswith(_STAR)


def _is_pattern(attribute: Attribute, text: str) -> bool:
    return text.startswith(_STAR) or text.endswith(_STAR) or (attribute is Attribute.NAMESPACE and _STAR in text)


# Rules that another makes useless.


class _Wide(NamedTuple):
    """A condition that others may follow from, with its values where they are quickly found."""

    attribute: Attribute
    values: frozenset[str]
    patterns: tuple[str, ...]  # those of the values that match more than themselves
    not_values: tuple[str, ...]

    def covers(self, value: str) -> bool:
        return value in self.values or any(covers(self.attribute, pattern, value) for pattern in self.patterns)


def _wide(condition: Condition) -> _Wide:
    attribute, values, not_values = condition
    patterns = [value for value in values if _is_pattern(attribute, value) or attribute is Attribute.SOURCE_IP]
    return _Wide(attribute, frozenset(values), tuple(patterns), not_values)


class _Candidate(NamedTuple):
    """A rule that may shadow others, and one of its clauses."""

    rule: Rule
    wide: tuple[_Wide, ...]
    all_wide: tuple[tuple[_Wide, ...], ...]


class _Index:
    """Clauses of rules, by a value of SNI and there by one of identity; "" is any."""

    def __init__(self) -> None:
        self._table: dict[str, dict[str, list[_Candidate]]] = {}

    def add(self, rule: Rule, clauses: tuple[Clause, ...]) -> None:
        all_wide = tuple([tuple(map(_wide, clause)) for clause in clauses])
        for clause, wide in zip(clauses, all_wide, strict=True):
            candidate = _Candidate(rule, wide, all_wide)
            principals = _indexed(clause, Attribute.PRINCIPAL)
            identities = principals or [f"@{value}" for value in _indexed(clause, Attribute.NAMESPACE)] or [""]
            for name in _indexed(clause, Attribute.SNI) or [""]:
                by_identity = self._table.setdefault(name, {})
                for identity in identities:
                    found = by_identity.setdefault(identity, [])
                    if len(found) < _MAX_CANDIDATES:
                        found.append(candidate)

    def candidates(self, clause: Clause) -> Iterator[_Candidate]:
        """Clauses that may cover this one."""
        tables = [table for name in _wider_names(clause) if (table := self._table.get(name)) is not None]
        if tables:
            identities = _wider_identities(clause)
            found = (candidate for table in tables for identity in identities for candidate in table.get(identity, ()))
            yield from islice(found, _MAX_CANDIDATES)


def _shadowed(rules: Iterable[Rule], port: int) -> Iterator[Problem]:
    """Rules that an enforced one makes useless: an earlier of the same action, or a deny over an allow."""
    effort = _Effort()
    indexes = {action: _Index() for action in Action}
    allows = []
    for rule in rules:
        clauses = _comparable(rule, port)
        if not clauses:
            continue
        by = _shadow(clauses, indexes[rule.action], effort)
        if by is not None:
            yield _problem(rule, f"has no effect, for {_place(by)} holds whenever it does; drop one of them")
        elif rule.action is Action.ALLOW:
            allows.append((rule, clauses))
        if not rule.is_monitored:
            indexes[rule.action].add(rule, clauses)
    for rule, clauses in allows:
        by = _shadow(clauses, indexes[Action.DENY], effort)
        if by is not None:
            yield _problem(rule, f"has no effect, for {_place(by)} denies all that it allows; drop one of them")


def _place(rule: Rule) -> str:
    return f"{_name(rule)} at {rule.ground.file}:{rule.ground.line}"


def _comparable(rule: Rule, port: int) -> tuple[Clause, ...]:
    """The clauses without what always holds and without those that never do; () for a rule that is too large."""
    if len(rule.clauses) > _MANY:
        return ()
    clauses = [tuple(filter(_may_fail, clause)) for clause in rule.clauses if _is_to(clause, port)]
    entries = sum([len(condition.values) + len(condition.not_values) for clause in clauses for condition in clause])
    return tuple(clauses) if entries <= _MAX_ENTRIES else ()


def _may_fail(condition: Condition) -> bool:
    """A port that is right is right always, and a connection without a name is refused before any rule."""
    is_any_name = condition.attribute is Attribute.SNI and _STAR in condition.values and not condition.not_values
    return not is_any_name and condition.attribute is not Attribute.PORT


def _shadow(clauses: tuple[Clause, ...], index: _Index, effort: _Effort) -> Rule | None:
    """The rule that holds whenever one of these clauses does, if the index finds one."""
    first, *others = clauses
    size = 1 + sum([len(condition.values) for clause in clauses for condition in clause])
    for rule, wide, all_wide in index.candidates(first):
        if not effort.allows(size):
            return None
        if _clause_follows(wide, first) and all(
            any(_clause_follows(wide, other) for wide in all_wide) for other in others
        ):
            return rule
    return None


def _clause_follows(wide: tuple[_Wide, ...], clause: Clause) -> bool:
    """Whether every request that satisfies the clause satisfies `wide`."""
    return all(_condition_follows(condition, clause) for condition in wide)


def _condition_follows(wide: _Wide, clause: Clause) -> bool:
    same = [condition for condition in clause if condition.attribute is wide.attribute]
    is_wanted = not wide.values or any(
        condition.values and all(wide.covers(value) for value in condition.values) for condition in same
    )
    return is_wanted and all(_is_unwanted(wide.attribute, value, same) for value in wide.not_values)


def _is_unwanted(attribute: Attribute, unwanted: str, conditions: list[Condition]) -> bool:
    """Whether no request that satisfies these has an attribute that matches `unwanted`."""
    return any(
        any(covers(attribute, wide, unwanted) for wide in condition.not_values)
        or (bool(condition.values) and all(_are_disjoint(attribute, unwanted, value) for value in condition.values))
        for condition in conditions
    )


def _indexed(clause: Clause, attribute: Attribute) -> list[str]:
    """The values of the first condition, or [] where one is a pattern that `_wider_names` would not think of."""
    values = next(
        (condition.values for condition in clause if condition.attribute is attribute and condition.values), ()
    )
    return [] if any(map(_is_odd, values)) else list(values)


def _is_odd(value: str) -> bool:
    return (value.startswith(_STAR) and value[1:2] not in ("", ".")) or (
        value.endswith(_STAR) and value[-2:-1] not in ("", "/")
    )


def _first(clause: Clause, attribute: Attribute) -> str:
    """A value that the attribute may have, or "" where the clause does not ask."""
    for condition in clause:
        if condition.attribute is attribute and condition.values:
            return condition.values[0]
    return ""


def _wider_names(clause: Clause) -> list[str]:
    """The patterns that cover its first name, as far as they end at a dot; and none at all."""
    name = _first(clause, Attribute.SNI)
    if not name:
        return [""]
    labels = name.split(".")
    return list(dict.fromkeys([name, *(f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels))), _STAR, ""]))


def _wider_identities(clause: Clause) -> list[str]:
    """The same of its first principal and namespace, which stands behind an @."""
    principal, namespace = _first(clause, Attribute.PRINCIPAL), _first(clause, Attribute.NAMESPACE)
    found = [principal, f"@{namespace}", "@*"] if namespace else [principal]
    if principal:
        parts = principal.split("/")
        found += [f"{'/'.join(parts[:at])}/*" for at in range(len(parts) - 1, 0, -1)]
        found.append(_STAR)
    return list(dict.fromkeys([*found, ""]))
