"""The index over the clauses of all rules: a tree in which a request finds the few that can hold.

A node is a leaf, a few clauses that are tried one after the other, or a split: it has an attribute, a node under each
key that clauses have for it (`match` says what keys are), and a rest, with the clauses that have none. A clause is
under every key of its values, and there no longer asks for them. So whoever goes down under each of his own keys, and
the rests, meets every clause that can hold for him, and few others.

Which attribute splits is chosen anew at each node: the one that leaves the fewest clauses to whoever has most of them.
Rules that differ only in their callers' networks are split by those, and a rule that is alone under its name by none.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sniproxy.policy.match import Key, key_of
from sniproxy.policy.model import Action, Attribute, Clause, Condition, Rule, Rulebook

# What a rule does when it holds: its action, and whether it is only monitored. Plain numbers, for every decision counts
# by them, and members of an enum take three times as long.
ALLOW, DENY, AUDIT, REGISTER, MONITORED_ALLOW, MONITORED_DENY, MONITORED_REGISTER = range(7)
KINDS = 7

_KINDS = {
    (Action.ALLOW, False): ALLOW,
    (Action.DENY, False): DENY,
    (Action.AUDIT, False): AUDIT,
    (Action.AUDIT, True): AUDIT,  # it decides nothing either way
    (Action.REGISTER, False): REGISTER,
    (Action.ALLOW, True): MONITORED_ALLOW,
    (Action.DENY, True): MONITORED_DENY,
    (Action.REGISTER, True): MONITORED_REGISTER,
}

# Trying this many clauses costs about as much as a look-up.
FEW = 4


def kind_of(rule: Rule) -> int:
    return _KINDS[rule.action, rule.is_monitored]


class Entry(NamedTuple):
    """A clause: which rule it is of, and what of it is still to be asked."""

    number: int
    kind: int
    rule: Rule
    conditions: Clause


Leaf = tuple[Entry, ...]  # in the order of the rules; never empty


class Split(NamedTuple):
    attribute: Attribute
    children: dict[Key, "Leaf | Split"]  # several keys can lead to one node
    rest: "Leaf | Split | None"


Node = Leaf | Split


def build_index(rulebook: Rulebook) -> Node | None:
    """The index of everything that can hold; None if nothing can."""
    entries = tuple(_entries(rulebook))
    return _Builder(entries).node(entries, tuple(Attribute)) if entries else None


def _entries(rulebook: Rulebook) -> Iterator[Entry]:
    for number, rule in enumerate(rulebook.rules):
        if rule.action is Action.REGISTER and not rulebook.registry_only:
            continue
        kind = kind_of(rule)
        for clause in rule.clauses:
            conditions = _simplified(clause)
            if conditions is not None:
                yield Entry(number, kind, rule, conditions)


def _simplified(clause: Clause) -> Clause | None:
    """The clause without what always holds, or None where it never does."""
    conditions = []
    for attribute, values, not_values in clause:
        asked = _patterns(values)
        if values and not asked:
            return None
        if attribute is Attribute.SNI and asked == ("*",):
            asked = ()  # a name is never empty
        refused = _patterns(not_values)
        if asked or refused:
            conditions.append(Condition(attribute, asked, refused))
    return tuple(dict.fromkeys(conditions))


def _patterns(values: tuple[str, ...]) -> tuple[str, ...]:
    """The same without what matches nothing, or nothing that others do not."""
    if len(values) == 1 and values[0]:
        return values
    return ("*",) if "*" in values else tuple(dict.fromkeys(value for value in values if value))


class _Builder:
    def __init__(self, entries: Leaf) -> None:
        # A clause of many names and many callers must not become all pairs of them. What is not split for want of
        # budget is tried one by one, which is slow, and right.
        self._budget = 10_000 + 4 * sum(len(it.values) for entry in entries for it in entry.conditions)

    def node(self, entries: Leaf, attributes: Sequence[Attribute]) -> Node:
        """A split by one of these attributes, or a leaf."""
        entries = _without_shadowed(entries)
        if len(entries) > FEW:
            grouped = _best_grouping(entries, attributes)
            if grouped is not None and grouped.copies <= self._budget:
                self._budget -= grouped.copies
                return self._split(grouped, [it for it in attributes if it is not grouped.attribute])
        return entries

    def _split(self, grouped: "_Grouping", others: Sequence[Attribute]) -> Split:
        nodes: dict[tuple[int, ...], Node] = {}
        children: dict[Key, Node] = {}
        last: Leaf = ()
        for key, entries in grouped.by_key.items():
            if len(entries) == 1:
                # Most are such, and a rule's keys come one after the other: no need to remember all.
                last = last if entries[0] in last else tuple(entries)
                children[key] = last
                continue
            same = tuple(map(id, entries))
            if same not in nodes:
                nodes[same] = self.node(tuple(entries), others)
            children[key] = nodes[same]
        rest = self.node(tuple(grouped.rest), others) if grouped.rest else None
        return Split(grouped.attribute, children, rest)


def _without_shadowed(entries: Leaf) -> Leaf:
    """Without those behind an entry of their kind that holds whenever they do, as far as that is plain to see."""
    if len(entries) == 1:
        return entries
    seen: set[tuple[int, Clause]] = set()
    kept = []
    for entry in entries:
        if (entry.kind, entry.conditions) not in seen and (entry.kind, ()) not in seen:
            seen.add((entry.kind, entry.conditions))
            kept.append(entry)
    return tuple(kept)


class _Grouping:
    """Entries by the keys that they have for one attribute, and the rest."""

    def __init__(self, entries: Leaf, attribute: Attribute) -> None:
        self.attribute = attribute
        self.by_key: defaultdict[Key, list[Entry]] = defaultdict(list)
        self.rest: list[Entry] = []
        self.copies = 0
        for entry in entries:
            keys, conditions = _settled(entry.conditions, attribute)
            if not keys:
                self.rest.append(entry)
                continue
            child = Entry(entry.number, entry.kind, entry.rule, conditions)
            for key in keys:
                self.by_key[key].append(child)
            self.copies += len(keys)
        # How many a request can have to go on with: those under one key, and the rest.
        self.worst = len(self.rest) + max(map(len, self.by_key.values()), default=0)


def _best_grouping(entries: Leaf, attributes: Sequence[Attribute]) -> _Grouping | None:
    """The one that leaves the fewest entries, if any leaves fewer than there are; the first that leaves few will do."""
    best = None
    for attribute in attributes:
        grouped = _Grouping(entries, attribute)
        if grouped.worst < (best.worst if best else len(entries)):
            best = grouped
        if grouped.worst <= FEW:
            break
    return best


def _settled(conditions: Clause, attribute: Attribute) -> tuple[list[Key], Clause]:
    """The keys of the first condition on the attribute whose values all have one, and what is asked under them."""
    for number, condition in enumerate(conditions):
        if condition.attribute is attribute and condition.values:
            keys = [key for value in condition.values if (key := key_of(attribute, value))]
            if len(keys) == len(condition.values):
                left = (condition._replace(values=()),) if condition.not_values else ()
                return keys, conditions[:number] + left + conditions[number + 1 :]
    return [], conditions
