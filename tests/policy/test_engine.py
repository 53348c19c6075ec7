"""The decision: deny over allow over default, and what it says of its reasons.

The tables ask whole policies, in YAML as users write them. The property holds the engine against an evaluator that asks
every rule in turn, and was written from the descriptions alone (`plain`). That no rule is asked in vain is counted by
what is read of the compiled rules.
"""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sniproxy.config.model import Policy, PolicyFile
from sniproxy.identity.spiffe import UNKNOWN, parse_principal
from sniproxy.names import parse_server_name
from sniproxy.outcome import Reason
from sniproxy.policy import compiled
from sniproxy.policy.documents import load_policy
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import (
    NO_GROUND,
    Action,
    Allowed,
    Attribute,
    Condition,
    Decision,
    Denied,
    DryRun,
    EchPolicy,
    Ground,
    OuterSni,
    Permit,
    Request,
    Rule,
    Rulebook,
    RuleLimits,
)
from tests.policy import plain

US = "cluster.local/ns/default/sa/sleep-us"
CANADA = "cluster.local/ns/default/sa/sleep-canada"
OTHER = "cluster.local/ns/otherns/sa/sleep"
HOST = "example.org/host/web-1"  # a principal of no namespace


def ask(name: str = "en.wikipedia.org", who: str = US, ip: str = "10.1.2.3", **more: object) -> Request:
    """A connection to `name`; `who` is "" for an unknown caller."""
    request = Request(parse_server_name(name.encode()), parse_principal(who) if who else UNKNOWN, ip)
    return request._replace(**more)  # type: ignore[arg-type]


def engine(text: str, folder: Path) -> Engine:
    """Of one policy file."""
    path = folder / "policy.yaml"
    path.write_text(text)
    return Engine.of(load_policy(Policy(), [(path, PolicyFile(path=str(path)))]).rulebook)


def told(decision: Decision) -> str:
    """`allow` or `deny`, with the rule behind it, or with the reason where there is none."""
    if isinstance(decision, Allowed):
        return f"allow by {decision.ground.rule}"
    return f"deny by {decision.ground.rule if decision.reason is Reason.RULE else decision.reason.word}"


@dataclass(frozen=True)
class Case:
    policy: str
    request: Request
    answer: str


def one(condition: str, action: str = "allow") -> str:
    """A rule r with one condition."""
    return f"rules: [{{name: r, action: {action}, {condition}}}]"


EVERYONE = "{name: all, action: allow}"
NO_ENGLISH = "{name: no-english, action: deny, sni: [en.wikipedia.org]}"
WIKIPEDIA = "{name: wikipedia, action: allow, sni: ['*.wikipedia.org']}"

REFUSED = "deny by default"
HELD = "allow by r"

CASES = {
    # Precedence.
    "no rule at all refuses": Case("rules: []", ask(), REFUSED),
    "no rule at all, and the default is allow": Case("default: allow", ask(), "allow by none"),
    "an allow rule that holds allows": Case(f"rules: [{WIKIPEDIA}]", ask(), "allow by wikipedia"),
    "an allow rule refuses what it does not hold for": Case(f"rules: [{WIKIPEDIA}]", ask("x.org"), REFUSED),
    "even though the default is allow": Case(f"default: allow\nrules: [{WIKIPEDIA}]", ask("x.org"), REFUSED),
    "a deny rule that holds denies": Case(f"rules: [{NO_ENGLISH}]", ask(), "deny by no-english"),
    "a deny rule wins over an allow rule before it": Case(
        f"rules: [{EVERYONE}, {NO_ENGLISH}]", ask(), "deny by no-english"
    ),
    "a deny rule wins over an allow rule behind it": Case(
        f"rules: [{NO_ENGLISH}, {EVERYONE}]", ask(), "deny by no-english"
    ),
    "a deny rule wins over a default of allow": Case(
        f"default: allow\nrules: [{NO_ENGLISH}]", ask(), "deny by no-english"
    ),
    "a deny rule that does not hold leaves the rest to the allow rules": Case(
        f"rules: [{NO_ENGLISH}, {WIKIPEDIA}]", ask("de.wikipedia.org"), "allow by wikipedia"
    ),
    "deny rules alone leave the rest to the default": Case(f"rules: [{NO_ENGLISH}]", ask("x.org"), REFUSED),
    "and a default of allow lets it pass": Case(
        f"default: allow\nrules: [{NO_ENGLISH}]", ask("x.org"), "allow by none"
    ),
    "of two allow rules that hold the first is the ground": Case(
        f"rules: [{EVERYONE}, {WIKIPEDIA}]", ask(), "allow by all"
    ),
    "also where the second names the host": Case(f"rules: [{WIKIPEDIA}, {EVERYONE}]", ask(), "allow by wikipedia"),
    "of two deny rules that hold the first is the ground": Case(
        f"rules: [{{name: nobody, action: deny}}, {NO_ENGLISH}]", ask(), "deny by nobody"
    ),
    "a rule without conditions holds for an unknown caller too": Case(
        f"rules: [{EVERYONE}]", ask(who=""), "allow by all"
    ),
    # sni, not_sni
    "a name is among those of the rule": Case(one("sni: [a.org, en.wikipedia.org]"), ask(), HELD),
    "a name is not among those of the rule": Case(one("sni: [a.org, b.org]"), ask(), REFUSED),
    "a name is written in another case, with a dot": Case(one("sni: [EN.Wikipedia.org.]"), ask(), HELD),
    "a name is asked for in another case, with a dot": Case(
        one("sni: [en.wikipedia.org]"), ask("EN.WIKIPEDIA.ORG."), HELD
    ),
    "a suffix has names at any depth": Case(one("sni: ['*.org']"), ask("a.b.c.org"), HELD),
    "a suffix has not itself": Case(one("sni: ['*.wikipedia.org']"), ask("wikipedia.org"), REFUSED),
    "a star is every name": Case(one("sni: ['*']"), ask(), HELD),
    "not_sni takes a name out": Case(one("sni: ['*.wikipedia.org'], not_sni: [en.wikipedia.org]"), ask(), REFUSED),
    "not_sni leaves the others": Case(
        one("sni: ['*.wikipedia.org'], not_sni: [en.wikipedia.org]"), ask("de.wikipedia.org"), HELD
    ),
    "not_sni takes out if one of its patterns matches": Case(
        one("not_sni: [a.org, '*.wikipedia.org']"), ask(), REFUSED
    ),
    "not_sni alone holds for the rest": Case(one("not_sni: [a.org]"), ask(), HELD),
    # principals, not_principals
    "a principal is among those of the rule": Case(one(f"principals: [{CANADA}, {US}]"), ask(), HELD),
    "a principal is not among those of the rule": Case(one(f"principals: [{CANADA}]"), ask(), REFUSED),
    "a principal is in a folder of the rule": Case(one("principals: [cluster.local/ns/default/*]"), ask(), HELD),
    "an unknown caller is no principal": Case(one(f"principals: [{US}]"), ask(who=""), REFUSED),
    "an unknown caller is not even a star": Case(one("principals: ['*']"), ask(who=""), REFUSED),
    "a star is every caller that is known": Case(one("principals: ['*']"), ask(who=HOST), HELD),
    "not_principals takes a caller out": Case(one(f"not_principals: [{US}]"), ask(), REFUSED),
    "not_principals leaves the others": Case(one(f"not_principals: [{US}]"), ask(who=CANADA), HELD),
    "not_principals does not take an unknown caller out": Case(one("not_principals: ['*']"), ask(who=""), HELD),
    # namespaces, not_namespaces
    "a namespace is among those of the rule": Case(one("namespaces: [otherns, default]"), ask(), HELD),
    "a namespace is not among those of the rule": Case(one("namespaces: [otherns]"), ask(), REFUSED),
    "an unknown caller is in no namespace": Case(one("namespaces: ['*']"), ask(who=""), REFUSED),
    "nor in one that is called unknown": Case(one("namespaces: [unknown]"), ask(who=""), REFUSED),
    "a principal without a namespace is in none": Case(one("namespaces: ['*']"), ask(who=HOST), REFUSED),
    "a star is every namespace": Case(one("namespaces: ['*']"), ask(), HELD),
    "not_namespaces takes a namespace out": Case(one("not_namespaces: [default]"), ask(), REFUSED),
    "not_namespaces leaves the others": Case(one("not_namespaces: [default]"), ask(who=OTHER), HELD),
    "not_namespaces does not take an unknown caller out": Case(one("not_namespaces: ['*']"), ask(who=""), HELD),
    # source_ips
    "an address is in a network of the rule": Case(one("source_ips: [192.0.2.1, 10.0.0.0/8]"), ask(), HELD),
    "an address is in no network of the rule": Case(one("source_ips: [10.2.0.0/16]"), ask(), REFUSED),
    "an address of the other family is in none": Case(one("source_ips: ['::/0']"), ask(), REFUSED),
    "an IPv6 address is in a network": Case(one("source_ips: ['fd00::/8']"), ask(ip="fd00::1"), HELD),
    "no address is in no network": Case(one("source_ips: [0.0.0.0/0, '::/0']"), ask(ip=""), REFUSED),
    # Conditions together.
    "every condition must hold: all do": Case(
        one(f"sni: [en.wikipedia.org], principals: [{US}], namespaces: [default], source_ips: [10.0.0.0/8]"),
        ask(),
        HELD,
    ),
    "every condition must hold: the name does not": Case(one(f"sni: [a.org], principals: [{US}]"), ask(), REFUSED),
    "every condition must hold: the caller does not": Case(
        one(f"sni: [en.wikipedia.org], principals: [{CANADA}]"), ask(), REFUSED
    ),
    "every condition must hold: the namespace does not": Case(
        one(f"principals: [{US}], namespaces: [otherns]"), ask(), REFUSED
    ),
    "every condition must hold: the address does not": Case(
        one("sni: [en.wikipedia.org], source_ips: [192.0.2.0/24]"), ask(), REFUSED
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_decides(case: Case, tmp_path: Path) -> None:
    assert told(engine(case.policy, tmp_path).decide(case.request)) == case.answer


SEED_1 = """\
rules:
  - {name: us, action: allow, principals: [cluster.local/ns/default/sa/sleep-us], \
sni: [en.wikipedia.org, es.wikipedia.org]}
  - {name: canada, action: allow, principals: [cluster.local/ns/default/sa/sleep-canada], \
sni: [en.wikipedia.org, fr.wikipedia.org]}
"""


@pytest.mark.parametrize(("who", "reaches"), [(US, {"en", "es"}), (CANADA, {"en", "fr"}), (OTHER, set()), ("", set())])
def test_who_may_reach_which_wikipedia(who: str, reaches: set[str], tmp_path: Path) -> None:
    """Two workloads: sleep-us reads English and Spanish, sleep-canada English and French."""
    judge = engine(SEED_1, tmp_path)
    languages = ("en", "de", "es", "fr")
    allowed = {it for it in languages if isinstance(judge.decide(ask(f"{it}.wikipedia.org", who)), Allowed)}
    assert allowed == reaches


# Before the rules.


def rule(name: str, action: Action = Action.ALLOW, *conditions: Condition, **more: object) -> Rule:
    """A rule of one clause; with no conditions it holds always."""
    return replace(Rule(Ground("p.yaml", name, "p.yaml", 2), action, (conditions,)), **more)  # type: ignore[arg-type]


ALLOW_ALL = rule("all")
DENY_ALL = rule("none", Action.DENY)


@pytest.mark.parametrize(
    ("who", "answer"), [("", "deny by identity_required"), (US, "allow by all"), (HOST, "allow by all")]
)
def test_where_an_identity_is_required_an_unknown_caller_is_refused(who: str, answer: str) -> None:
    judge = Engine.of(Rulebook((ALLOW_ALL,), require_identity=True))
    assert told(judge.decide(ask(who=who))) == answer


ECH = {
    "the hello has ECH, and it is denied": (EchPolicy.DENY, True, "deny by ech"),
    "the hello has none": (EchPolicy.DENY, False, "allow by all"),
    "the hello has ECH, and it is logged": (EchPolicy.LOG, True, "allow by all"),
    "the hello has ECH, and it is allowed": (EchPolicy.ALLOW, True, "allow by all"),
}


@pytest.mark.parametrize(("policy", "ech", "answer"), ECH.values(), ids=ECH)
def test_an_encrypted_hello_is_refused_where_the_policy_says_so(policy: EchPolicy, ech: bool, answer: str) -> None:
    assert told(Engine.of(Rulebook((ALLOW_ALL,), ech=policy)).decide(ask(ech=ech))) == answer


EQUAL = OuterSni(must_equal=True)
MATCH = OuterSni(patterns=("outer.example.org", "*.tunnel.org"))
RIGHT, WRONG = "allow by all", "deny by sni_mismatch"
TUNNELS = {
    "where it does not matter, anything goes": (OuterSni(), "x.org", RIGHT),
    "even nothing": (OuterSni(), "", RIGHT),
    "it must be the name in the hello: it is": (EQUAL, "en.wikipedia.org", RIGHT),
    "in another case, with a dot at the end": (EQUAL, "EN.Wikipedia.ORG.", RIGHT),
    "it is another": (EQUAL, "de.wikipedia.org", WRONG),
    "there is none": (EQUAL, "", WRONG),
    "it is no name": (EQUAL, "10.0.0.1", WRONG),
    "it is no text that a name could be": (EQUAL, "\udcff", WRONG),
    "it must match: it is one of the names": (MATCH, "outer.example.org", RIGHT),
    "in another case": (MATCH, "OUTER.example.org", RIGHT),
    "it is under one": (MATCH, "a.tunnel.org.", RIGHT),
    "it is none of them": (MATCH, "en.wikipedia.org", WRONG),
    "there is none, and one must match": (MATCH, "", WRONG),
    "even where all match": (OuterSni(patterns=("*",)), "", WRONG),
    "it must do both: it does one": (OuterSni(must_equal=True, patterns=("*.org",)), "de.wikipedia.org", WRONG),
    "it does the other": (OuterSni(must_equal=True, patterns=("*.com",)), "en.wikipedia.org", WRONG),
    "it does both": (OuterSni(must_equal=True, patterns=("*.org",)), "en.wikipedia.org", RIGHT),
}


@pytest.mark.parametrize(("wanted", "outer", "answer"), TUNNELS.values(), ids=TUNNELS)
def test_the_name_that_the_tunnel_was_for(wanted: OuterSni, outer: str, answer: str) -> None:
    assert told(Engine.of(Rulebook((ALLOW_ALL,), outer_sni=wanted)).decide(ask(outer_name=outer))) == answer


SENTENCES = {
    "another name": (EQUAL, "X.org", "require_equal and the tunnel is for x.org"),
    "none of the names": (MATCH, "x.org", "require_match and the tunnel is for x.org, which is not among its patterns"),
    "nothing": (EQUAL, "", "require_equal and the tunnel has no SNI"),
    "no name": (MATCH, "a\n b", "require_match and the tunnel has 'a\\n b' for its SNI, which is no host name"),
    "too much": (
        EQUAL,
        "x" * 60_000,
        f"require_equal and the tunnel has '{'x' * 60}'... for its SNI, which is no host name",
    ),
}


@pytest.mark.parametrize(("wanted", "outer", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_a_mismatch_tells_both_names(wanted: OuterSni, outer: str, sentence: str) -> None:
    """In one line, however long and strange the outer one is."""
    assert Engine.of(Rulebook((ALLOW_ALL,), outer_sni=wanted)).decide(ask(outer_name=outer)) == Denied(
        Reason.SNI_MISMATCH, NO_GROUND, f"policy.outer_sni is {sentence}; the hello asks for en.wikipedia.org"
    )


def registered(*conditions: Condition) -> Rule:
    return rule("entry", Action.REGISTER, *conditions)


EN = Condition(Attribute.SNI, ("en.wikipedia.org",))
OTHERS = Condition(Attribute.NAMESPACE, ("otherns",))
REGISTRIES = {
    "a host that nobody registered is refused": ((), "deny by registry"),
    "a host that is registered is for the rules to decide": ((registered(EN),), "allow by all"),
    "one that is registered for others is not registered": ((registered(EN, OTHERS),), "deny by registry"),
    "nor is one that is registered at another port": (
        (registered(EN, Condition(Attribute.PORT, ("8443",))),),
        "deny by registry",
    ),
    "to be registered allows nothing where a rule denies": ((registered(EN), DENY_ALL), "deny by none"),
}


@pytest.mark.parametrize(("rules", "answer"), REGISTRIES.values(), ids=REGISTRIES)
def test_where_the_registry_decides_who_may_be_asked_for(rules: tuple[Rule, ...], answer: str) -> None:
    assert told(Engine.of(Rulebook((ALLOW_ALL, *rules), registry_only=True)).decide(ask())) == answer


def test_where_it_does_not_entries_of_the_registry_decide_nothing() -> None:
    """They neither let through nor count as allow rules."""
    for default in (Action.ALLOW, Action.DENY):
        judge = Engine.of(Rulebook((registered(), registered(EN, OTHERS)), default=default))
        assert told(judge.decide(ask())) == ("allow by none" if default is Action.ALLOW else "deny by default")


def test_what_is_refused_before_the_rules_names_no_rule() -> None:
    """Identity comes first, then ECH, the tunnel, the registry, and the rules; each says what in the config refused."""
    registry = registered(Condition(Attribute.SNI, ("de.wikipedia.org",)))
    judge = Engine.of(
        Rulebook(
            (DENY_ALL, registry),
            require_identity=True,
            ech=EchPolicy.DENY,
            outer_sni=EQUAL,
            registry_only=True,
        )
    )
    requests = [
        ask(who="", ech=True),
        ask(ech=True),
        ask(),
        ask(outer_name="en.wikipedia.org"),
        ask("de.wikipedia.org", outer_name="de.wikipedia.org"),
    ]
    assert [judge.decide(request) for request in requests] == [
        Denied(Reason.IDENTITY_REQUIRED, NO_GROUND, "policy.require_identity is on and the caller is unknown"),
        Denied(Reason.ECH, NO_GROUND, "policy.ech is deny and the hello has the ECH extension"),
        Denied(
            Reason.SNI_MISMATCH,
            NO_GROUND,
            "policy.outer_sni is require_equal and the tunnel has no SNI; the hello asks for en.wikipedia.org",
        ),
        Denied(
            Reason.REGISTRY,
            NO_GROUND,
            "policy.registry is only and no ServiceEntry that the caller may see has en.wikipedia.org",
        ),
        Denied(Reason.RULE, DENY_ALL.ground, "rbac_access_denied_matched_policy[p.yaml-rule[none]]"),
    ]


# Monitored rules, and monitor mode.

MONITORED_DENY = rule("watch-deny", Action.DENY, is_monitored=True)
MONITORED_ALLOW = rule("watch-allow", is_monitored=True)
ALLOW_X = rule("x", Action.ALLOW, Condition(Attribute.SNI, ("x.org",)))


def would_deny(ground: Ground, reason: Reason = Reason.RULE) -> DryRun:
    return DryRun(would_deny=True, reason=reason, ground=ground)


WOULD_ALLOW = DryRun(would_deny=False, reason=None, ground=MONITORED_ALLOW.ground)

MONITORED: dict[str, tuple[Rulebook, str, DryRun | None]] = {
    "a monitored deny rule denies nothing": (
        Rulebook((MONITORED_DENY, ALLOW_ALL)),
        "allow by all",
        would_deny(MONITORED_DENY.ground),
    ),
    "nor adds to a refusal": (Rulebook((MONITORED_DENY,)), "deny by default", None),
    "a monitored allow rule allows nothing": (
        Rulebook((MONITORED_ALLOW, ALLOW_X)),
        "deny by default",
        WOULD_ALLOW,
    ),
    "nor adds to what is allowed": (Rulebook((MONITORED_ALLOW, ALLOW_ALL)), "allow by all", None),
    "nor would it help against a deny rule": (Rulebook((MONITORED_ALLOW, DENY_ALL)), "deny by none", None),
    "nor against a monitored one": (Rulebook((MONITORED_ALLOW, MONITORED_DENY, ALLOW_X)), "deny by default", None),
    "it does not refuse the rest": (
        Rulebook((replace(ALLOW_X, is_monitored=True),), default=Action.ALLOW),
        "allow by none",
        would_deny(NO_GROUND, Reason.DEFAULT),
    ),
    "one that never holds would refuse everything": (
        Rulebook((replace(MONITORED_ALLOW, clauses=()),), default=Action.ALLOW),
        "allow by none",
        would_deny(NO_GROUND, Reason.DEFAULT),
    ),
    "of two the first is the ground, monitored or not": (
        Rulebook((MONITORED_DENY, rule("second", Action.DENY, is_monitored=True), ALLOW_ALL)),
        "allow by all",
        would_deny(MONITORED_DENY.ground),
    ),
    "in monitor mode a deny rule denies nothing": (
        Rulebook((DENY_ALL,), monitor=True),
        "allow by none",
        would_deny(DENY_ALL.ground),
    ),
    "nor does the default": (Rulebook(monitor=True), "allow by none", would_deny(NO_GROUND, Reason.DEFAULT)),
    "what is allowed is allowed as it always is": (Rulebook((ALLOW_ALL,), monitor=True), "allow by all", None),
    "and what the monitored rules would allow is no different": (
        Rulebook((MONITORED_ALLOW, ALLOW_X), monitor=True),
        "allow by none",
        None,
    ),
    "the registry refuses nothing in monitor mode": (
        Rulebook((ALLOW_ALL,), monitor=True, registry_only=True),
        "allow by none",
        would_deny(NO_GROUND, Reason.REGISTRY),
    ),
    "nor does the tunnel's name": (
        Rulebook((ALLOW_ALL,), monitor=True, outer_sni=EQUAL),
        "allow by none",
        would_deny(NO_GROUND, Reason.SNI_MISMATCH),
    ),
}


@pytest.mark.parametrize(("book", "answer", "dry_run"), MONITORED.values(), ids=MONITORED)
def test_what_is_only_monitored(book: Rulebook, answer: str, dry_run: DryRun | None) -> None:
    decision = Engine.of(book).decide(ask())
    assert (told(decision), decision.dry_run) == (answer, dry_run)


def test_what_monitor_mode_lets_through_opens_no_networks() -> None:
    """The guard stands: only an allow rule that holds opens a network."""
    opened = rule("x", Action.ALLOW, Condition(Attribute.SNI, ("x.org",)), allow_networks=(ip_network("10.0.0.0/8"),))
    decision = Engine.of(Rulebook((opened,), monitor=True)).decide(ask())
    assert decision == Allowed(
        Permit(parse_server_name(b"en.wikipedia.org"), ()), NO_GROUND, None, would_deny(NO_GROUND, Reason.DEFAULT)
    )


# Audit.

AUDITS = {
    "a refusal": (Rulebook((DENY_ALL, rule("first", Action.AUDIT), rule("second", Action.AUDIT))), "deny by none"),
    "leave": (Rulebook((ALLOW_ALL, rule("first", Action.AUDIT))), "allow by all"),
    "what is refused before the rules": (
        Rulebook((rule("first", Action.AUDIT),), require_identity=True),
        "deny by identity_required",
    ),
    "a default": (Rulebook((rule("first", Action.AUDIT),), default=Action.ALLOW), "allow by none"),
    "even where it is monitored": (
        Rulebook((rule("first", Action.AUDIT, is_monitored=True),), default=Action.ALLOW),
        "allow by none",
    ),
}


@pytest.mark.parametrize(("book", "answer"), AUDITS.values(), ids=AUDITS)
def test_the_first_audit_rule_that_holds_is_noted_and_decides_nothing(book: Rulebook, answer: str) -> None:
    decision = Engine.of(book).decide(ask(who="" if book.require_identity else US))
    assert (told(decision), decision.audit) == (answer, rule("first").ground)


def test_an_audit_rule_that_does_not_hold_is_not_noted() -> None:
    judge = Engine.of(Rulebook((rule("r", Action.AUDIT, Condition(Attribute.SNI, ("x.org",))), ALLOW_ALL)))
    assert judge.decide(ask()).audit is None


# What a decision carries.


def test_a_refusal_by_a_rule_carries_the_rule_and_where_it_stands(tmp_path: Path) -> None:
    judge = engine(f"# ours\nrules:\n  - {NO_ENGLISH}\n", tmp_path)
    assert judge.decide(ask()) == Denied(
        Reason.RULE,
        Ground("policy.yaml", "no-english", str(tmp_path / "policy.yaml"), 3),
        "rbac_access_denied_matched_policy[policy.yaml-rule[no-english]]",
    )


def test_a_refusal_by_a_policy_of_istio_has_istio_s_phrase() -> None:
    ground = Ground("ns[istio-system]-policy[no-english]", "0", "istio.yaml", 7)
    decision = Engine.of(Rulebook((Rule(ground, Action.DENY, ((),)),))).decide(ask())
    phrase = "rbac_access_denied_matched_policy[ns[istio-system]-policy[no-english]-rule[0]]"
    assert decision == Denied(Reason.RULE, ground, phrase)


def test_a_refusal_by_the_default_says_that_no_rule_matched() -> None:
    assert Engine.of(Rulebook()).decide(ask()) == Denied(
        Reason.DEFAULT, NO_GROUND, "rbac_access_denied_matched_policy[none]"
    )


def test_leave_by_a_rule_carries_the_networks_and_the_limits_of_that_rule() -> None:
    """A permit is for one name, and opens only what the rule behind it opens."""
    inside = rule(
        "inside",
        Action.ALLOW,
        Condition(Attribute.SNI, ("in.example.org",)),
        allow_networks=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
        limits=RuleLimits(100, 2.5, 20),
    )
    outside = rule("outside", Action.ALLOW, Condition(Attribute.SNI, ("*.example.org",)))
    judge = Engine.of(Rulebook((inside, outside)))
    assert [judge.decide(ask(name)) for name in ("in.example.org", "www.example.org")] == [
        Allowed(
            Permit(parse_server_name(b"in.example.org"), (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
            inside.ground,
            RuleLimits(100, 2.5, 20),
        ),
        Allowed(Permit(parse_server_name(b"www.example.org"), ()), outside.ground),
    ]


def test_leave_by_the_default_opens_no_networks() -> None:
    assert Engine.of(Rulebook(default=Action.ALLOW)).decide(ask()) == Allowed(
        Permit(parse_server_name(b"en.wikipedia.org"), ()), NO_GROUND
    )


def test_the_rules_can_be_read_back() -> None:
    """As they were, in their order, and beside them what holds for all."""
    book = Rulebook((ALLOW_ALL, MONITORED_DENY, registered(EN, OTHERS)), Action.ALLOW, outer_sni=MATCH)
    judge = Engine.of(book)
    assert (tuple(judge.rules()), judge.rule_count) == (book.rules, 3)
    assert judge.settings == replace(book, rules=())


# Against the evaluator.


@settings(max_examples=200, deadline=None)
@given(plain.rulebooks(), st.lists(plain.REQUESTS, min_size=1, max_size=5))
@example(Rulebook(), [ask()])
def test_the_engine_decides_as_an_evaluator_that_asks_every_rule(book: Rulebook, requests: list[Request]) -> None:
    judge = Engine.of(book)
    assert [plain.told(judge.decide(request)) for request in requests] == [
        plain.decided(book, request) for request in requests
    ]


# What is remembered.


def test_a_decision_is_remembered_for_what_rules_ask_for() -> None:
    """Callers that differ in nothing that a rule asks for share one decision, the very object."""
    judge = Engine.of(Rulebook((ALLOW_ALL,)))
    first = judge.decide(ask(ip="10.0.0.1", port=443, outer_name="a.org"))
    assert judge.decide(ask(ip="10.0.0.2", port=8443, outer_name="b.org", ech=True)) is first


REMEMBERED: dict[str, tuple[Rulebook, Request, Request]] = {
    "the name": (Rulebook((rule("r", Action.ALLOW, EN),)), ask(), ask("x.org")),
    "the caller": (Rulebook((rule("r", Action.ALLOW, OTHERS),)), ask(who=OTHER), ask()),
    "no caller": (Rulebook((ALLOW_ALL,), require_identity=True), ask(), ask(who="")),
    "the source": (
        Rulebook((rule("r", Action.ALLOW, Condition(Attribute.SOURCE_IP, ("10.0.0.0/8",))),)),
        ask(),
        ask(ip="192.0.2.1"),
    ),
    "the port": (
        Rulebook((rule("r", Action.ALLOW, Condition(Attribute.PORT, ("443",))),)),
        ask(),
        ask(port=8443),
    ),
    "the tunnel": (Rulebook((ALLOW_ALL,), outer_sni=EQUAL), ask(outer_name="en.wikipedia.org"), ask()),
    "ECH": (Rulebook((ALLOW_ALL,), ech=EchPolicy.DENY), ask(), ask(ech=True)),
}


@pytest.mark.parametrize(("book", "allowed", "denied"), REMEMBERED.values(), ids=REMEMBERED)
def test_and_not_mistaken_for_another_that_differs_in(book: Rulebook, allowed: Request, denied: Request) -> None:
    judge = Engine.of(book)
    kinds = [type(judge.decide(request)) for request in (allowed, denied, allowed, denied)]
    assert kinds == [Allowed, Denied, Allowed, Denied]


def test_what_is_remembered_of_clients_has_a_bound() -> None:
    """A client chooses the name of its tunnel: 60,000 bytes a connection do not stay."""
    judge = Engine.of(Rulebook((ALLOW_ALL,), outer_sni=EQUAL))
    tracemalloc.start()
    for number in range(2_000):
        judge.decide(ask(outer_name=f"{number}" * 10_000))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 8_000_000


# No rule is asked in vain.


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The records that were read of compiled rules: one for each node, and so for each clause that was tried."""
    records: list[object] = []
    loads = compiled._loads

    def counted(data: memoryview) -> object:
        records.append(loads(data))
        return records[-1]

    monkeypatch.setattr(compiled, "_loads", counted)
    return records


def sni(*values: str) -> Condition:
    return Condition(Attribute.SNI, values)


def principals(*values: str) -> Condition:
    return Condition(Attribute.PRINCIPAL, values)


def namespaces(*values: str) -> Condition:
    return Condition(Attribute.NAMESPACE, values)


def sources(*values: str) -> Condition:
    return Condition(Attribute.SOURCE_IP, values)


WORKLOAD = "td/ns/a/sa/a"
Conditions = Callable[[int], tuple[Condition, ...]]

MANY: dict[str, tuple[Conditions, Request]] = {
    "of other names": (lambda n: (sni(f"host-{n}.org"),), ask("host-500.org")),
    "of other suffixes": (lambda n: (sni(f"*.zone-{n}.org"),), ask("a.zone-500.org")),
    "of other suffixes at many depths": (
        lambda n: (sni(f"*.{'a.' * (n % 7)}zone-{n}.org"),),
        ask(f"b.{'a.' * 3}zone-500.org"),
    ),
    "of other odd suffixes": (lambda n: (sni(f"*evil-{n}.org"),), ask("devil-500.org")),
    "of other prefixes": (lambda n: (sni(f"host-{n}-*"),), ask("host-500-a.org")),
    "of other principals": (lambda n: (principals(f"td/ns/a/sa/w-{n}"),), ask(who="td/ns/a/sa/w-500")),
    "of other folders": (lambda n: (principals(f"td/ns/ns-{n}/*"),), ask(who="td/ns/ns-500/sa/a")),
    "of other accounts in any namespace": (lambda n: (principals(f"*/sa/w-{n}"),), ask(who="td/ns/a/sa/w-500")),
    "of other namespaces": (lambda n: (namespaces(f"ns-{n}"),), ask(who="td/ns/ns-500/sa/a")),
    "of other networks": (lambda n: (sources(f"10.{n >> 8}.{n & 255}.0/24"),), ask(ip="10.1.244.7")),
    "of other networks of IPv6": (lambda n: (sources(f"fd00:{n:x}::/32"),), ask(ip="fd00:1f4::1")),
    "of other ports": (lambda n: (Condition(Attribute.PORT, (str(n),)),), ask(port=500)),
    "of other principals, to the same name": (
        lambda n: (sni("host.org"), principals(f"td/ns/a/sa/w-{n}")),
        ask("host.org", "td/ns/a/sa/w-500"),
    ),
    "of other networks, for the same caller and name": (
        lambda n: (sni("host.org"), principals(WORKLOAD), sources(f"10.{n >> 8}.{n & 255}.0/24")),
        ask("host.org", WORKLOAD, "10.1.244.7"),
    ),
    "of other names, for the same principal": (
        lambda n: (sni(f"host-{n}.org"), principals(WORKLOAD)),
        ask("host-500.org", WORKLOAD),
    ),
    "of names and principals in all pairs": (
        lambda n: (sni(f"host-{n % 32}.org"), principals(f"td/ns/a/sa/w-{n // 32}")),
        ask("host-20.org", "td/ns/a/sa/w-15"),
    ),
    "half by their names and half by their principals": (
        lambda n: (sni(f"host-{n}.org"),) if n % 4 else (principals(f"td/ns/a/sa/w-{n}"),),
        ask("other.org", "td/ns/a/sa/w-500"),
    ),
    "in namespaces with a star, of other names": (
        lambda n: (namespaces("prod-*"), sni(f"host-{n}.org")),
        ask("host-500.org", "td/ns/prod-eu/sa/a"),
    ),
}


@pytest.mark.parametrize(("conditions", "request_"), MANY.values(), ids=MANY)
def test_among_a_thousand_rules_those(conditions: Conditions, request_: Request, read: list[object]) -> None:
    """are not looked at: only what leads to the rule that can hold is."""
    rules = tuple(rule(f"r{n}", Action.DENY if n % 2 else Action.ALLOW, *conditions(n)) for n in range(1000))
    judge = Engine.of(Rulebook(rules))
    read.clear()
    assert told(judge.decide(request_)) == "allow by r500"
    assert len(read) <= 3


def test_of_a_thousand_rules_that_all_hold_the_first_is_enough(read: list[object]) -> None:
    judge = Engine.of(Rulebook(tuple(rule(f"r{n}") for n in range(1000))))
    read.clear()
    assert told(judge.decide(ask())) == "allow by r0"
    assert len(read) <= 1


def test_of_a_thousand_values_only_one_is_looked_at(read: list[object]) -> None:
    """A condition that is not what the index is split by still looks its values up."""
    callers = principals(*(f"td/ns/a/sa/w-{n}" for n in range(1000)))
    left_out = Condition(Attribute.SNI, (), tuple(f"*.zone-{n}.org" for n in range(1000)))
    judge = Engine.of(Rulebook((rule("r", Action.ALLOW, callers, left_out),)))
    read.clear()
    answers = [
        told(judge.decide(ask(name, who)))
        for name, who in (
            ("a.org", "td/ns/a/sa/w-500"),
            ("a.zone-500.org", "td/ns/a/sa/w-500"),
            ("a.org", "td/ns/a/sa/x"),
        )
    ]
    assert answers == ["allow by r", "deny by default", "deny by default"]
    assert len(read) <= 4
