"""What a rulebook decides, the slow way: every rule is asked, in the words of the product's description and of Istio's.

Nothing here knows `match`, `compiled` or `engine`; the property tests hold those against it. Patterns are regular
expressions, and a decision is a tuple of what matters in it. With it come rulebooks and requests of few words, so that
they meet often.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import strategies as st

from sniproxy.identity.spiffe import UNKNOWN, parse_principal
from sniproxy.names import InvalidNameError, parse_server_name
from sniproxy.policy.model import (
    NO_GROUND,
    Action,
    Allowed,
    Attribute,
    Clause,
    Condition,
    Decision,
    EchPolicy,
    Ground,
    OuterSni,
    Request,
    Rule,
    Rulebook,
    RuleLimits,
)

# The evaluator.


def is_matched(attribute: Attribute, value: str, request: Request) -> bool:
    principal = "" if request.identity is UNKNOWN else str(request.identity)
    match attribute:
        case Attribute.SNI:
            return is_string_matched(value, request.server_name)
        case Attribute.PRINCIPAL:
            return is_string_matched(value, principal)
        case Attribute.NAMESPACE:  # any trust domain, and * any run of characters
            pattern = ".*".join(map(re.escape, value.split("*")))
            return re.fullmatch(rf".*/ns/{pattern}/.*", principal) is not None
        case Attribute.SOURCE_IP:
            return bool(request.source_ip) and ip_address(request.source_ip) in ip_network(value)
        case Attribute.PORT:
            return request.port == int(value)


def is_string_matched(value: str, text: str) -> bool:
    """Exact, `abc*` prefix, `*abc` suffix, `*` present and not empty. A star elsewhere is literal."""
    if value == "*":
        pattern = ".+"
    elif value[0] == "*":
        pattern = ".*" + re.escape(value[1:])
    elif value[-1] == "*":
        pattern = re.escape(value[:-1]) + ".*"
    else:
        pattern = re.escape(value)
    return re.fullmatch(pattern, text) is not None


def does_hold(rule: Rule, request: Request) -> bool:
    """Values of a list OR; `values` and `not_values` of one key AND, the latter as NOT(any); keys AND; clauses OR."""
    return any(all(does_condition_hold(condition, request) for condition in clause) for clause in rule.clauses)


def does_condition_hold(condition: Condition, request: Request) -> bool:
    attribute, values, not_values = condition
    is_asked_for = not values or any(is_matched(attribute, value, request) for value in values)
    return is_asked_for and not any(is_matched(attribute, value, request) for value in not_values)


Answer = tuple[str, Ground]  # the word of the reason of a refusal, or "allow"


def verdict(book: Rulebook, request: Request) -> Answer:  # noqa: PLR0911 - one return for each step
    """What the rules that are in force decide."""
    if book.require_identity and request.identity is UNKNOWN:
        return "identity_required", NO_GROUND
    if book.ech is EchPolicy.DENY and request.ech:
        return "ech", NO_GROUND
    if not is_outer_right(book.outer_sni, request):
        return "sni_mismatch", NO_GROUND
    rules = [rule for rule in book.rules if not rule.is_monitored]
    holding = [rule for rule in rules if does_hold(rule, request)]
    if book.registry_only and not any(rule.action is Action.REGISTER for rule in holding):
        return "registry", NO_GROUND
    for action, word in ((Action.DENY, "rule"), (Action.ALLOW, "allow")):
        for rule in holding:
            if rule.action is action:
                return word, rule.ground
    if book.default is Action.ALLOW and not any(rule.action is Action.ALLOW for rule in rules):
        return "allow", NO_GROUND
    return "default", NO_GROUND


def is_outer_right(wanted: OuterSni, request: Request) -> bool:
    if not wanted.must_equal and not wanted.patterns:
        return True
    try:
        outer = parse_server_name(request.outer_name.encode())
    except InvalidNameError:
        return False
    is_equal = not wanted.must_equal or outer == request.server_name
    return is_equal and (not wanted.patterns or any(is_string_matched(it, outer) for it in wanted.patterns))


def decided(book: Rulebook, request: Request) -> dict[str, Any]:
    """The whole decision: what `told` tells of the engine's."""
    enforced = replace(book, rules=tuple(replace(rule, is_monitored=False) for rule in book.rules))
    now, then = verdict(book, request), verdict(enforced, request)
    audits = [rule.ground for rule in book.rules if rule.action is Action.AUDIT and does_hold(rule, request)]
    if book.monitor and now[0] != "allow":
        now = "allow", NO_GROUND
    rule = next((rule for rule in book.rules if rule.ground == now[1] and now[0] == "allow"), None)
    return {
        "answer": now,
        "dry run": then if (then[0] == "allow") != (now[0] == "allow") else None,
        "audit": audits[0] if audits else None,
        "limits": rule.limits if rule else None,
        "allow_networks": rule.allow_networks if rule else (),
    }


def told(decision: Decision) -> dict[str, Any]:
    """A decision of the engine, in the words of `decided`."""
    imagined = decision.dry_run
    answer = ("allow" if isinstance(decision, Allowed) else decision.reason.word, decision.ground)
    then = (imagined.reason.word if imagined.reason else "allow", imagined.ground) if imagined else None
    assert imagined is None or imagined.would_deny is (imagined.reason is not None)
    return {
        "answer": answer,
        "dry run": then,
        "audit": decision.audit,
        "limits": decision.limits if isinstance(decision, Allowed) else None,
        "allow_networks": decision.permit.allow_networks if isinstance(decision, Allowed) else (),
    }


# Rulebooks and requests.

LABELS = st.sampled_from(["a", "b", "ab", "ns"])
HOSTS = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
STARRED = st.sampled_from(["*", "*b", "a*", "a.*", "*a*", "a*b", "**", "*ns", "*.*", "ab*"])
NAMES = st.one_of(HOSTS, HOSTS.map("*.{}".format), STARRED)

WORKLOADS = st.builds("td/ns/{}/sa/{}".format, LABELS, LABELS)
CALLERS = st.one_of(
    WORKLOADS, st.sampled_from(["td", "td/a", "td/a/b", "td/ns/a", "td/ns/a/ns/b/sa/a", "td/ns/ns/ns/a", "ns/a/b"])
)
PRINCIPALS = st.one_of(
    CALLERS,
    CALLERS.map("{}/*".format),
    LABELS.map("*/sa/{}".format),
    st.sampled_from(["*", "td/ns/a*", "*b", "*/ns/a/*", "t*", "td/ns/*/sa/a"]),
)
NAMESPACES = st.one_of(LABELS, st.sampled_from(["*", "a*", "*b", "a*b", "*a*", "a/sa", "*/a"]))
NETWORKS = st.sampled_from(
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.1/32", "0.0.0.0/0", "::/0", "fd00::/8"]
)
PORTS = st.sampled_from(["443", "8443", "80"])
VALUES = {
    Attribute.SNI: NAMES,
    Attribute.PRINCIPAL: PRINCIPALS,
    Attribute.NAMESPACE: NAMESPACES,
    Attribute.SOURCE_IP: NETWORKS,
    Attribute.PORT: PORTS,
}


def some(of: st.SearchStrategy[str], least: int) -> st.SearchStrategy[tuple[str, ...]]:
    """Mostly a few; now and then so many that the index keeps them apart."""
    return st.one_of(st.lists(of, min_size=least, max_size=2), st.lists(of, min_size=least, max_size=12)).map(tuple)


def condition(attribute: Attribute) -> st.SearchStrategy[Condition]:
    of = VALUES[attribute]
    return st.builds(Condition, st.just(attribute), some(of, 1), st.just(())) | st.builds(
        Condition, st.just(attribute), some(of, 0), some(of, 0)
    )


CONDITIONS = st.sampled_from(Attribute).flatmap(condition)
CLAUSES: st.SearchStrategy[Clause] = st.lists(CONDITIONS, max_size=3).map(tuple)
ACTIONS = st.sampled_from([Action.ALLOW, Action.ALLOW, Action.DENY, Action.AUDIT, Action.REGISTER])


@st.composite
def rulebooks(draw: st.DrawFn, max_rules: int = 20) -> Rulebook:
    return Rulebook(
        numbered(draw(st.lists(RULES, max_size=max_rules))),
        default=draw(st.sampled_from([Action.DENY, Action.ALLOW])),
        monitor=draw(RARELY),
        require_identity=draw(RARELY),
        ech=draw(st.sampled_from(EchPolicy)),
        outer_sni=draw(OUTER_SNIS),
        registry_only=draw(RARELY),
    )


def numbered(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same rules, each with its own ground."""
    return tuple(replace(rule, ground=Ground("p", f"r{number}", "p.yaml", number)) for number, rule in enumerate(rules))


RARELY = st.sampled_from([False, False, False, True])
RULES = st.builds(
    Rule,
    ground=st.just(NO_GROUND),
    action=ACTIONS,
    clauses=st.lists(CLAUSES, max_size=2).map(tuple) | st.tuples(CLAUSES),
    is_monitored=RARELY,
    allow_networks=st.sampled_from([(), (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))]),
    limits=st.none() | st.builds(RuleLimits, st.integers(1, 9), st.sampled_from([0.0, 2.5]), st.integers(0, 3)),
)
OUTER_SNIS = st.one_of(
    st.just(OuterSni()),
    st.just(OuterSni()),
    st.just(OuterSni(must_equal=True)),
    st.builds(OuterSni, st.booleans(), st.lists(HOSTS | HOSTS.map("*.{}".format), min_size=1, max_size=2).map(tuple)),
)
REQUESTS = st.builds(
    Request,
    HOSTS.map(lambda host: parse_server_name(host.encode())),
    st.one_of(CALLERS.map(parse_principal), st.just(UNKNOWN)),
    st.sampled_from(["10.1.2.3", "10.9.9.9", "192.0.2.1", "fd00::1", "2001:db8::1", ""]),
    st.booleans(),
    st.one_of(HOSTS, HOSTS.map("{}.".format), HOSTS.map(str.upper), st.sampled_from(["", "-", "10.0.0.1", "ä"])),
    st.sampled_from([443, 8443]),
)
