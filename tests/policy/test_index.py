"""The tree in which a request finds the clauses that can hold.

That it finds all of them is shown by the decisions (`test_engine`, `test_compiled`); here is what it looks like.
"""

import pytest

from sniproxy.policy.index import FEW, Entry, Node, Split, build_index
from sniproxy.policy.match import Key, key_of
from sniproxy.policy.model import Action, Attribute, Clause, Condition, Ground, Rule, Rulebook

SNI, PRINCIPAL, NAMESPACE, SOURCE = Attribute.SNI, Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.SOURCE_IP


def rule(number: int, *clauses: Clause, action: Action = Action.ALLOW, is_monitored: bool = False) -> Rule:
    return Rule(Ground("p", str(number), "p.yaml", number), action, clauses, is_monitored)


def book(*clauses: Clause, action: Action = Action.ALLOW, registry_only: bool = False) -> Rulebook:
    """A rule for each clause."""
    rules = tuple(rule(number, clause, action=action) for number, clause in enumerate(clauses))
    return Rulebook(rules, registry_only=registry_only)


def numbers(node: Node | None) -> list[int]:
    """Which rules a leaf has."""
    assert isinstance(node, tuple)
    assert not isinstance(node, Split)
    return [it.number for it in node if isinstance(it, Entry)]


def split(node: Node | None) -> Split:
    assert isinstance(node, Split)
    return node


def entry(node: Node | None) -> Entry:
    """The only one of a leaf."""
    assert isinstance(node, tuple)
    assert len(node) == 1
    assert isinstance(node[0], Entry)
    return node[0]


def key(attribute: Attribute, value: str) -> Key:
    found = key_of(attribute, value)
    assert found is not None
    return found


def names(*values: str) -> Condition:
    return Condition(SNI, values)


def callers(*values: str) -> Condition:
    return Condition(PRINCIPAL, values)


def test_a_few_clauses_are_not_split() -> None:
    assert numbers(build_index(book(*((names(f"h{n}.org"),) for n in range(FEW))))) == list(range(FEW))


def test_many_are_split_by_what_tells_them_apart() -> None:
    """Each is under the keys of its values, and does not ask for them there."""
    many = split(build_index(book(*((names(f"h{n}.org", f"*.h{n}.org"),) for n in range(10)))))
    assert (many.attribute, len(many.children), many.rest) == (SNI, 20, None)
    for value in ("h7.org", "*.h7.org"):
        below = entry(many.children[key(SNI, value)])
        assert (below.number, below.conditions) == (7, ())


def test_the_attribute_that_leaves_the_fewest_splits_first() -> None:
    """All have one name, and each its own caller: the name alone would tell nothing."""
    many = split(build_index(book(*((names("a.org"), callers(f"td/{n}")) for n in range(10)))))
    assert (many.attribute, len(many.children)) == (PRINCIPAL, 10)


def test_a_split_that_leaves_many_is_split_again() -> None:
    clauses = [(names(f"h{n % 10}.org"), callers(f"td/{n // 10}")) for n in range(100)]
    many = split(build_index(book(*clauses)))
    below = split(many.children[key(many.attribute, "h3.org")])
    assert (many.attribute, below.attribute) == (SNI, PRINCIPAL)
    assert numbers(below.children[key(PRINCIPAL, "td/7")]) == [73]


def test_what_has_no_key_is_the_rest() -> None:
    """A clause that asks nothing of the attribute, or for a star, or for what can only be tried."""
    starred = ((Condition(NAMESPACE, ("prod-*",)),), (Condition(NAMESPACE, ("a", "*")),))
    many = split(build_index(book(*((Condition(NAMESPACE, (f"ns{n}",)),) for n in range(10)), *starred, (names("a"),))))
    assert (many.attribute, numbers(many.rest)) == (NAMESPACE, [10, 11, 12])


def test_what_must_not_match_is_asked_below_the_split() -> None:
    many = split(build_index(book(*((Condition(SNI, (f"*.h{n}.org",), ("a.h3.org",)),) for n in range(10)))))
    assert entry(many.children[key(SNI, "*.h3.org")]).conditions == (Condition(SNI, (), ("a.h3.org",)),)


def test_a_clause_that_asks_twice_is_split_by_one_and_asked_the_other() -> None:
    many = split(build_index(book(*((names(f"h{n}.org"), names("*.org")) for n in range(10)))))
    assert entry(many.children[key(SNI, "h3.org")]).conditions == (names("*.org"),)


def test_keys_of_the_same_clauses_lead_to_the_same_node() -> None:
    """Two hundred rules for the same names do not stand below each of them anew."""
    everywhere = [f"h{n}.org" for n in range(50)]
    clauses = [(names(*everywhere), callers(f"td/{n}")) for n in range(20)]
    index = split(build_index(book(*clauses, *((names(f"x{n}.org"),) for n in range(2000)))))
    below = {id(index.children[key(SNI, name)]) for name in everywhere}
    assert (index.attribute, len(below)) == (SNI, 1)


def test_many_names_and_many_callers_do_not_become_all_pairs() -> None:
    """What the budget does not allow is tried one by one."""
    clauses = [
        (names(*(f"h{n + shift}.org" for n in range(100))), callers(*(f"td/{n + shift}" for n in range(100))))
        for shift in range(100)
    ]
    assert copies(build_index(book(*clauses))) < 10 * 200 * 100


def copies(node: Node | None) -> int:
    if node is None:
        return 0
    if isinstance(node, Split):
        return sum(map(copies, node.children.values())) + copies(node.rest)
    return len(node)


NEVER: dict[str, tuple[Rule, ...]] = {
    "nothing at all": (),
    "a rule without clauses": (rule(0),),
    "one that asks for an empty text": (rule(0, (Condition(SNI, ("",)),)),),
    "a host of the registry, which decides nothing": (rule(0, (names("a.org"),), action=Action.REGISTER),),
}


@pytest.mark.parametrize("rules", NEVER.values(), ids=NEVER)
def test_what_can_never_hold_is_not_in_it(rules: tuple[Rule, ...]) -> None:
    assert build_index(Rulebook(rules)) is None


def test_hosts_of_the_registry_are_in_it_where_it_decides() -> None:
    assert numbers(build_index(book((names("a.org"),), action=Action.REGISTER, registry_only=True))) == [0]


SHADOWED: dict[str, tuple[tuple[Rule, ...], list[int]]] = {
    "behind one that always holds": ((rule(0, ()), rule(1, (names("a"),))), [0]),
    "behind the same": ((rule(0, (names("a"),)), rule(1, (names("a"),))), [0]),
    "behind one that asks for every name": ((rule(0, (names("b", "*"),)), rule(1, (names("a"),))), [0]),
    "but not before it": ((rule(0, (names("a"),)), rule(1, ())), [0, 1]),
    "nor behind one that does something else": ((rule(0, ()), rule(1, (names("a"),), action=Action.DENY)), [0, 1]),
    "nor behind one that is only monitored": ((rule(0, (), is_monitored=True), rule(1, (names("a"),))), [0, 1]),
    "nor behind one that asks for a caller that is known": ((rule(0, (callers("*"),)), rule(1, ())), [0, 1]),
}


@pytest.mark.parametrize(("rules", "kept"), SHADOWED.values(), ids=SHADOWED)
def test_a_clause_is_left_out(rules: tuple[Rule, ...], kept: list[int]) -> None:
    """One that can add nothing."""
    assert numbers(build_index(Rulebook(rules))) == kept
