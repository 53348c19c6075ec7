"""Why a request is decided as it is, and what was near to deciding otherwise."""

import json
from dataclasses import dataclass, replace
from ipaddress import ip_network

import pytest
from hypothesis import given, settings

from sniproxy.identity.spiffe import UNKNOWN, parse_principal
from sniproxy.names import parse_server_name
from sniproxy.policy.engine import Engine
from sniproxy.policy.explain import MAX_NEAR_MISSES, NearMiss, explain
from sniproxy.policy.model import (
    Action,
    Attribute,
    Clause,
    Condition,
    Denied,
    Ground,
    OuterSni,
    Request,
    Rule,
    Rulebook,
)
from tests.policy import plain

US = "cluster.local/ns/default/sa/sleep-us"
CANADA = "cluster.local/ns/default/sa/sleep-canada"


def ask(name: str = "en.wikipedia.org", who: str = US, ip: str = "10.1.2.3") -> Request:
    return Request(parse_server_name(name.encode()), parse_principal(who) if who else UNKNOWN, ip)


def rule(name: str, *clauses: Clause, action: Action = Action.ALLOW, is_monitored: bool = False) -> Rule:
    return Rule(Ground("policy.yaml", name, "/etc/policy.yaml", 2), action, clauses, is_monitored)


def sni(*values: str, leaves_out: tuple[str, ...] = ()) -> Condition:
    return Condition(Attribute.SNI, values, leaves_out)


def principals(*values: str, leaves_out: tuple[str, ...] = ()) -> Condition:
    return Condition(Attribute.PRINCIPAL, values, leaves_out)


def namespaces(*values: str) -> Condition:
    return Condition(Attribute.NAMESPACE, values)


def namespaces_but(*values: str) -> Condition:
    return Condition(Attribute.NAMESPACE, (), values)


SEED_1 = Rulebook(
    (
        rule("us", (principals(US), sni("en.wikipedia.org", "es.wikipedia.org"))),
        rule("canada", (principals(CANADA), sni("en.wikipedia.org", "fr.wikipedia.org"))),
    )
)


def near(book: Rulebook, request: Request) -> dict[str, list[str]]:
    """The rules that came near, with what each lacked."""
    return {miss.ground.rule: list(miss.lacked) for miss in explain(Engine.of(book), request).near_misses}


# What is a near miss.


@dataclass(frozen=True)
class Case:
    book: Rulebook
    request: Request
    near: list[str]


DENY_EN = rule("deny-en", (sni("en.wikipedia.org"), principals(CANADA)), action=Action.DENY)
ENTRY = rule("entry", (sni("en.wikipedia.org"), namespaces("otherns")), action=Action.REGISTER)
ALL = rule("all", ())

CASES = {
    "of a refusal by default: allow rules, and first the one that has the name": Case(
        SEED_1, ask("fr.wikipedia.org"), ["canada", "us"]
    ),
    "one that has nothing in common with the request is none": Case(SEED_1, ask("de.wikipedia.org"), ["us"]),
    "to dial the same port is nothing": Case(
        Rulebook((rule("x", (sni("x.org"), principals(CANADA), Condition(Attribute.PORT, ("443",)))),)), ask(), []
    ),
    "nor is to be none of those it leaves out": Case(
        Rulebook((rule("x", (sni("x.org"), principals(CANADA), namespaces_but("otherns"))),)), ask(), []
    ),
    "unless it asks for one thing only": Case(Rulebook((rule("x", (sni("x.org"),)),)), ask("de.wikipedia.org"), ["x"]),
    "one that never holds is none": Case(Rulebook((rule("nothing"),)), ask(), []),
    "of leave: deny rules": Case(Rulebook((ALL, DENY_EN, rule("x", (sni("x.org"),)))), ask(), ["deny-en"]),
    "of leave by default, too": Case(Rulebook((DENY_EN,), default=Action.ALLOW), ask(), ["deny-en"]),
    "of a refusal by a rule: none, for no allow rule would help": Case(
        Rulebook((rule("deny", (), action=Action.DENY), *SEED_1.rules)), ask(), []
    ),
    "of a refusal by the registry: the hosts that others may see": Case(
        Rulebook((ALL, ENTRY), registry_only=True), ask(), ["entry"]
    ),
    "of a refusal before the rules: none": Case(
        Rulebook(SEED_1.rules, require_identity=True), ask("fr.wikipedia.org", ""), []
    ),
    "or for the tunnel's name": Case(
        Rulebook(SEED_1.rules, outer_sni=OuterSni(must_equal=True)), ask("fr.wikipedia.org"), []
    ),
    "those that lack least come first, whatever their order": Case(
        Rulebook(
            (
                rule("two", (sni("x.org"), principals(CANADA), namespaces("default"))),
                rule("one", (sni("en.wikipedia.org"), principals(CANADA))),
            )
        ),
        ask(),
        ["one", "two"],
    ),
    "of those that lack as much, the one that had more": Case(
        Rulebook(
            (
                rule("had-one", (sni("en.wikipedia.org"), principals(CANADA))),
                rule("had-two", (sni("en.wikipedia.org"), principals(CANADA), namespaces("default"))),
            )
        ),
        ask(),
        ["had-two", "had-one"],
    ),
    "a rule of several clauses is as near as the nearest of them": Case(
        Rulebook((rule("r", (sni("x.org"), principals(CANADA)), (sni("x.org"), principals(US))),)), ask(), ["r"]
    ),
    "in monitor mode, those of what would be decided": Case(
        Rulebook(SEED_1.rules, monitor=True), ask("fr.wikipedia.org"), ["canada", "us"]
    ),
    "rules that decide nothing are none": Case(
        Rulebook((rule("audit", (sni("x.org"),), action=Action.AUDIT),)), ask(), []
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_near_misses_are(case: Case) -> None:
    assert list(near(case.book, case.request)) == case.near


def test_there_are_ten_at_most() -> None:
    book = Rulebook(tuple(rule(f"r{number}", (sni(f"h{number}.org"),)) for number in range(1_000)))
    assert list(near(book, ask())) == [f"r{number}" for number in range(MAX_NEAR_MISSES)]


@settings(max_examples=150, deadline=None)
@given(plain.rulebooks(), plain.REQUESTS)
def test_a_near_miss_does_not_hold(book: Rulebook, request_: Request) -> None:
    """Or it is monitored; and the decision is the engine's."""
    engine = Engine.of(book)
    explanation = explain(engine, request_)
    assert explanation.decision == engine.decide(request_)
    by_ground = {it.ground: it for it in book.rules}
    missed = [by_ground[miss.ground] for miss in explanation.near_misses]
    assert [it for it in missed if plain.does_hold(it, request_) and not it.is_monitored] == []
    assert [miss for miss in explanation.near_misses if not miss.lacked] == []


# What it lacked.

LACKED: dict[str, tuple[Clause, Request, list[str]]] = {
    "a name": (
        (sni("a.org"),),
        ask(),
        ["connection.sni is en.wikipedia.org, and the rule asks for a.org"],
    ),
    "one of two names": (
        (sni("a.org", "*.b.org"),),
        ask(),
        ["connection.sni is en.wikipedia.org, and the rule asks for a.org or *.b.org"],
    ),
    "one of three": (
        (sni("a.org", "b.org", "c.org"),),
        ask(),
        ["connection.sni is en.wikipedia.org, and the rule asks for a.org, b.org or c.org"],
    ),
    "one of many": (
        (sni(*(f"h{number}.org" for number in range(100))),),
        ask(),
        ["connection.sni is en.wikipedia.org, and the rule asks for h0.org, h1.org, h2.org or 97 more"],
    ),
    "a name that it leaves out": (
        (sni("*.wikipedia.org", leaves_out=("en.*", "x.org")), principals(US)),
        ask(),
        ["connection.sni is en.wikipedia.org, and the rule leaves out en.* or x.org"],
    ),
    "both sides of one condition": (
        (sni("a.org", leaves_out=("*",)), principals(US)),
        ask(),
        [
            "connection.sni is en.wikipedia.org, and the rule asks for a.org",
            "connection.sni is en.wikipedia.org, and the rule leaves out *",
        ],
    ),
    "a caller": (
        (sni("en.wikipedia.org"), principals(CANADA)),
        ask(),
        [f"source.principal is {US}, and the rule asks for {CANADA}"],
    ),
    "any caller": (
        (principals("*"), sni("en.wikipedia.org")),
        ask(who=""),
        ["source.principal is unknown, and the rule asks for *"],
    ),
    "a namespace": (
        (namespaces("otherns", "prod-*"), sni("en.wikipedia.org")),
        ask(),
        ["source.namespace is default, and the rule asks for otherns or prod-*"],
    ),
    "a namespace, by one who has several": (
        (namespaces("c"), sni("en.wikipedia.org")),
        ask(who="td/ns/a/ns/b/sa/x"),
        ["source.namespace is a and b, and the rule asks for c"],
    ),
    "a namespace, by one who has none": (
        (namespaces("*"), sni("en.wikipedia.org")),
        ask(who="example.org/host/web-1"),
        ["source.namespace is unknown, and the rule asks for *"],
    ),
    "a network": (
        (Condition(Attribute.SOURCE_IP, ("192.0.2.0/24",)),),
        ask(),
        ["source.ip is 10.1.2.3, and the rule asks for 192.0.2.0/24"],
    ),
    "an address": (
        (Condition(Attribute.SOURCE_IP, ("192.0.2.0/24",)),),
        ask(ip=""),
        ["source.ip is unknown, and the rule asks for 192.0.2.0/24"],
    ),
    "a port": (
        (Condition(Attribute.PORT, ("8443",)),),
        ask(),
        ["destination.port is 443, and the rule asks for 8443"],
    ),
    "what a line cannot show": (
        (sni("a\n\x1b[31m*"),),
        ask(),
        [r"connection.sni is en.wikipedia.org, and the rule asks for a\n\x1b[31m*"],
    ),
    "what a line should not hold": (
        (sni("x" * 500),),
        ask(),
        [f"connection.sni is en.wikipedia.org, and the rule asks for {'x' * 120}..."],
    ),
}


@pytest.mark.parametrize(("clause", "request_", "sentences"), LACKED.values(), ids=LACKED)
def test_it_lacked(clause: Clause, request_: Request, sentences: list[str]) -> None:
    """In a short sentence each: what the request has, and what the rule wants."""
    assert near(Rulebook((rule("r", clause),)), request_) == {"r": sentences}


def test_a_monitored_rule_lacks_that_it_is_enforced() -> None:
    """Even if all else holds."""
    watched = rule("watched", (sni("en.wikipedia.org"),), is_monitored=True)
    far = rule("far", (sni("x.org"), principals(US)), is_monitored=True)
    assert near(Rulebook((far, watched)), ask()) == {
        "watched": ["the rule is in monitor mode, and is not enforced"],
        "far": [
            "the rule is in monitor mode, and is not enforced",
            "connection.sni is en.wikipedia.org, and the rule asks for x.org",
        ],
    }


# How it is told.


def test_json_for_a_refusal() -> None:
    explanation = explain(Engine.of(SEED_1), ask("fr.wikipedia.org"))
    assert json.loads(json.dumps(explanation.as_json())) == {
        "verdict": "deny",
        "reason": "default",
        "policy": "none",
        "rule": "none",
        "file": "",
        "line": 0,
        "dryRun": None,
        "nearMisses": [
            {
                "policy": "policy.yaml",
                "rule": "canada",
                "file": "/etc/policy.yaml",
                "line": 2,
                "lacked": [f"source.principal is {US}, and the rule asks for {CANADA}"],
            },
            {
                "policy": "policy.yaml",
                "rule": "us",
                "file": "/etc/policy.yaml",
                "line": 2,
                "lacked": [
                    "connection.sni is fr.wikipedia.org, and the rule asks for en.wikipedia.org or es.wikipedia.org"
                ],
            },
        ],
    }


def test_json_for_leave_that_would_be_refused() -> None:
    watched = rule("watched", (), action=Action.DENY, is_monitored=True)
    fields = explain(Engine.of(Rulebook((ALL, watched))), ask()).as_json()
    assert (fields["verdict"], fields["reason"], fields["rule"]) == ("allow", None, "all")
    assert fields["dryRun"] == {
        "verdict": "deny",
        "reason": "rule",
        "policy": "policy.yaml",
        "rule": "watched",
        "file": "/etc/policy.yaml",
        "line": 2,
    }


def test_json_for_a_refusal_that_would_be_leave() -> None:
    watched = rule("watched", (), is_monitored=True)
    fields = explain(Engine.of(Rulebook((watched,))), ask()).as_json()
    dry_run = fields["dryRun"]
    assert isinstance(dry_run, dict)
    assert (fields["verdict"], dry_run["verdict"], dry_run["reason"], dry_run["rule"]) == (
        "deny",
        "allow",
        None,
        "watched",
    )


def test_text_for_a_refusal() -> None:
    assert explain(Engine.of(SEED_1), ask("fr.wikipedia.org")).as_text().splitlines() == [
        "deny (default): rbac_access_denied_matched_policy[none]",
        "  by no rule",
        "near misses:",
        "  rule canada of policy.yaml (/etc/policy.yaml:2)",
        f"    source.principal is {US}, and the rule asks for {CANADA}",
        "  rule us of policy.yaml (/etc/policy.yaml:2)",
        "    connection.sni is fr.wikipedia.org, and the rule asks for en.wikipedia.org or es.wikipedia.org",
    ]


def test_text_for_leave_with_all_there_is_to_say() -> None:
    watched = rule("watched", (), action=Action.DENY, is_monitored=True)
    noted = rule("noted", (), action=Action.AUDIT)
    assert explain(Engine.of(Rulebook((ALL, watched, noted))), ask()).as_text().splitlines() == [
        "allow",
        "  by rule all of policy.yaml (/etc/policy.yaml:2)",
        "  with everything enforced: deny (rule), by rule watched of policy.yaml (/etc/policy.yaml:2)",
        "  noted by rule noted of policy.yaml (/etc/policy.yaml:2)",
        "near misses:",
        "  rule watched of policy.yaml (/etc/policy.yaml:2)",
        "    the rule is in monitor mode, and is not enforced",
    ]


def test_an_explanation_without_near_misses_is_the_decision() -> None:
    opened = replace(ALL, allow_networks=(ip_network("10.0.0.0/8"),))
    explanation = explain(Engine.of(Rulebook((opened,))), ask())
    assert (explanation.as_text(), explanation.near_misses) == (
        "allow\n  by rule all of policy.yaml (/etc/policy.yaml:2)",
        (),
    )


def test_the_verdict_is_the_decision_s() -> None:
    for book in (Rulebook(), Rulebook((ALL,))):
        explanation = explain(Engine.of(book), ask())
        assert (explanation.verdict == "deny") is isinstance(explanation.decision, Denied)


def test_near_misses_are_values() -> None:
    assert explain(Engine.of(SEED_1), ask("de.wikipedia.org")).near_misses == (
        NearMiss(
            SEED_1.rules[0].ground,
            ("connection.sni is de.wikipedia.org, and the rule asks for en.wikipedia.org or es.wikipedia.org",),
        ),
    )
