"""The decision: deny over allow over default, and what it says of its reasons.

The tables ask whole rulebooks, in YAML as users write them. The property at the end holds the index against an
evaluator that scans every rule and was written from the product's description alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.config.model import Policy
from sniproxy.identity.spiffe import UNKNOWN, Identity, Principal, parse_principal
from sniproxy.names import ServerName, parse_server_name
from sniproxy.outcome import Reason
from sniproxy.policy.documents import load_rulebook
from sniproxy.policy.engine import EchPolicy, Engine, Rulebook
from sniproxy.policy.match import NamePattern, parse_identity_pattern, parse_name_pattern
from sniproxy.policy.model import NO_GROUND, Action, Allowed, Decision, Denied, Ground, Permit, Request, Rule

US = "cluster.local/ns/default/sa/sleep-us"
CANADA = "cluster.local/ns/default/sa/sleep-canada"
OTHER = "cluster.local/ns/otherns/sa/sleep"
HOST = "example.org/host/web-1"  # a principal of no namespace


def ask(name: str = "en.wikipedia.org", who: str = US, ip: str = "10.1.2.3", *, ech: bool = False) -> Request:
    """A connection to `name`; `who` is "" for an unknown caller."""
    return Request(parse_server_name(name.encode()), parse_principal(who) if who else UNKNOWN, ip, ech)


def book(text: str, folder: Path, policy: Policy | None = None) -> Rulebook:
    path = folder / "policy.yaml"
    path.write_text(text)
    return load_rulebook(policy or Policy(), [path])


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
    assert told(Engine(book(case.policy, tmp_path)).decide(case.request)) == case.answer


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
    judge = Engine(book(SEED_1, tmp_path))
    languages = ("en", "de", "es", "fr")
    allowed = {it for it in languages if isinstance(judge.decide(ask(f"{it}.wikipedia.org", who)), Allowed)}
    assert allowed == reaches


# Before the rules.

ALLOW_ALL = Rule(Ground("p.yaml", "all", "p.yaml", 2), Action.ALLOW)
DENY_ALL = Rule(Ground("p.yaml", "none", "p.yaml", 3), Action.DENY)


@pytest.mark.parametrize(
    ("who", "answer"), [("", "deny by identity_required"), (US, "allow by all"), (HOST, "allow by all")]
)
def test_where_an_identity_is_required_an_unknown_caller_is_refused(who: str, answer: str) -> None:
    judge = Engine(Rulebook((ALLOW_ALL,), require_identity=True))
    assert told(judge.decide(ask(who=who))) == answer


ECH = {
    "the hello has ECH, and it is denied": (EchPolicy.DENY, True, "deny by ech"),
    "the hello has none": (EchPolicy.DENY, False, "allow by all"),
    "the hello has ECH, and it is logged": (EchPolicy.LOG, True, "allow by all"),
    "the hello has ECH, and it is allowed": (EchPolicy.ALLOW, True, "allow by all"),
}


@pytest.mark.parametrize(("policy", "ech", "answer"), ECH.values(), ids=ECH)
def test_an_encrypted_hello_is_refused_where_the_policy_says_so(policy: EchPolicy, ech: bool, answer: str) -> None:
    assert told(Engine(Rulebook((ALLOW_ALL,), ech=policy)).decide(ask(ech=ech))) == answer


def test_what_is_refused_before_the_rules_names_no_rule() -> None:
    """Identity comes first, then ECH, then the rules; each says what in the config refused."""
    judge = Engine(Rulebook((DENY_ALL,), require_identity=True, ech=EchPolicy.DENY))
    assert [judge.decide(ask(who=who, ech=ech)) for who, ech in (("", True), (US, True), (US, False))] == [
        Denied(Reason.IDENTITY_REQUIRED, NO_GROUND, "policy.require_identity is on and the caller is unknown"),
        Denied(Reason.ECH, NO_GROUND, "policy.ech is deny and the hello has the ECH extension"),
        Denied(Reason.RULE, DENY_ALL.ground, "rbac_access_denied_matched_policy[p.yaml-rule[none]]"),
    ]


# What a decision carries.


def test_a_refusal_by_a_rule_carries_the_rule_and_where_it_stands(tmp_path: Path) -> None:
    judge = Engine(book(f"# ours\nrules:\n  - {NO_ENGLISH}\n", tmp_path))
    assert judge.decide(ask()) == Denied(
        Reason.RULE,
        Ground("policy.yaml", "no-english", str(tmp_path / "policy.yaml"), 3),
        "rbac_access_denied_matched_policy[policy.yaml-rule[no-english]]",
    )


def test_a_refusal_by_the_default_says_that_no_rule_matched() -> None:
    assert Engine(Rulebook()).decide(ask()) == Denied(
        Reason.DEFAULT, NO_GROUND, "rbac_access_denied_matched_policy[none]"
    )


def test_leave_by_a_rule_carries_the_networks_of_that_rule(tmp_path: Path) -> None:
    """A permit is for one name, and opens only what the rule behind it opens."""
    text = (
        "rules:\n"
        "  - {name: inside, action: allow, sni: [in.example.org], allow_networks: [10.0.0.0/8]}\n"
        "  - {name: outside, action: allow, sni: ['*.example.org'], allow_networks: [192.168.0.0/16]}\n"
    )
    judge = Engine(book(text, tmp_path))
    file = str(tmp_path / "policy.yaml")
    assert [judge.decide(ask(name)) for name in ("in.example.org", "www.example.org")] == [
        Allowed(
            Permit(parse_server_name(b"in.example.org"), (ip_network("10.0.0.0/8"),)),
            Ground("policy.yaml", "inside", file, 2),
        ),
        Allowed(
            Permit(parse_server_name(b"www.example.org"), (ip_network("192.168.0.0/16"),)),
            Ground("policy.yaml", "outside", file, 3),
        ),
    ]


def test_leave_by_the_default_opens_no_networks() -> None:
    assert Engine(Rulebook(default=Action.ALLOW)).decide(ask()) == Allowed(
        Permit(parse_server_name(b"en.wikipedia.org"), ()), NO_GROUND
    )


# The index.

Written = dict[str, list[str]]


def plainly_holds(rule: Written, request: Request) -> bool:
    """A rule holds when each key it has matches; a list matches when one of its entries does."""
    keys = {
        "sni": [name_matches(text, str(request.server_name)) for text in rule.get("sni", [])],
        "principals": [principal_matches(text, request.identity) for text in rule.get("principals", [])],
        "namespaces": [in_namespace(text, request.identity) for text in rule.get("namespaces", [])],
        "source_ips": [
            request.source_ip != "" and ip_address(request.source_ip) in ip_network(text)
            for text in rule.get("source_ips", [])
        ],
    }
    negations = {
        "not_sni": [name_matches(text, str(request.server_name)) for text in rule.get("not_sni", [])],
        "not_principals": [principal_matches(text, request.identity) for text in rule.get("not_principals", [])],
        "not_namespaces": [in_namespace(text, request.identity) for text in rule.get("not_namespaces", [])],
    }
    return all(any(entries) for key, entries in keys.items() if key in rule) and not any(map(any, negations.values()))


def name_matches(text: str, name: str) -> bool:
    labels, wanted = name.split("."), text.split(".")
    if text == "*":
        return True
    if wanted[0] == "*":
        return len(labels) >= len(wanted) and labels[-len(wanted) + 1 :] == wanted[1:]
    return labels == wanted


def principal_matches(text: str, identity: Identity) -> bool:
    if not isinstance(identity, Principal):
        return False
    parts, wanted = str(identity).split("/"), text.split("/")
    if wanted[-1] == "*":
        return len(parts) >= len(wanted) and parts[: len(wanted) - 1] == wanted[:-1]
    return parts == wanted


def in_namespace(text: str, identity: Identity) -> bool:
    match str(identity).split("/"):
        case [_, "ns", namespace, "sa", _]:
            return text in ("*", namespace)
        case _:
            return False


def plainly_decided(
    rules: Sequence[tuple[Literal["allow", "deny"], Written]], default: Action, request: Request
) -> str:
    """Any deny that holds wins, then any allow; with any allow rule the rest is refused; with none, the default."""
    for wanted in ("deny", "allow"):
        for number, (action, rule) in enumerate(rules):
            if action == wanted and plainly_holds(rule, request):
                return f"{action} by r{number}"
    if default is Action.DENY or any(action == "allow" for action, _ in rules):
        return "deny by default"
    return "allow by none"


def compiled(rules: Sequence[tuple[Literal["allow", "deny"], Written]], default: Action) -> Engine:
    def rule(number: int, action: str, keys: Written) -> Rule:
        return Rule(
            Ground("p", f"r{number}", "p.yaml", number),
            Action(action),
            names=tuple(map(parse_name_pattern, keys.get("sni", ()))),
            not_names=tuple(map(parse_name_pattern, keys.get("not_sni", ()))),
            principals=tuple(map(parse_identity_pattern, keys.get("principals", ()))),
            not_principals=tuple(map(parse_identity_pattern, keys.get("not_principals", ()))),
            namespaces=tuple(keys.get("namespaces", ())),
            not_namespaces=tuple(keys.get("not_namespaces", ())),
            source_networks=tuple(map(ip_network, keys.get("source_ips", ()))),
        )

    return Engine(Rulebook(tuple(rule(number, *written) for number, written in enumerate(rules)), default))


# Few words, so that rules and requests meet often.
LABEL = st.sampled_from(["a", "b", "ab"])
HOSTS = st.lists(LABEL, min_size=1, max_size=3).map(".".join)
NAMES = st.one_of(HOSTS, HOSTS.map(lambda host: f"*.{host}"), st.just("*"))
WORKLOADS = st.builds("td/ns/{}/sa/{}".format, LABEL, LABEL)
CALLERS = st.one_of(WORKLOADS, st.sampled_from(["td", "td/a", "td/a/b", "td/ns/a/sa/a/b"]))
PRINCIPALS = st.one_of(CALLERS, CALLERS.map(lambda path: f"{path}/*"), st.sampled_from(["td/ns/a/*", "*"]))
NAMESPACES = st.one_of(LABEL, st.just("*"))
NETWORKS = st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32", "::/0", "0.0.0.0/0"])


def some(of: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(of, min_size=1, max_size=3)


CONDITIONS = {
    "sni": some(NAMES),
    "not_sni": some(NAMES),
    "principals": some(PRINCIPALS),
    "not_principals": some(PRINCIPALS),
    "namespaces": some(NAMESPACES),
    "not_namespaces": some(NAMESPACES),
    "source_ips": some(NETWORKS),
}
RULES: st.SearchStrategy[Written] = st.sets(st.sampled_from(sorted(CONDITIONS)), max_size=3).flatmap(
    lambda keys: st.fixed_dictionaries({key: CONDITIONS[key] for key in keys})
)
ACTIONS: st.SearchStrategy[Literal["allow", "deny"]] = st.sampled_from(["allow", "deny"])
REQUESTS = st.builds(
    ask, HOSTS, st.one_of(CALLERS, st.just("")), st.sampled_from(["10.1.2.3", "10.9.9.9", "192.0.2.1", "fd00::1", ""])
)


@settings(max_examples=400)
@given(st.lists(st.tuples(ACTIONS, RULES), max_size=8), st.sampled_from(Action), REQUESTS)
def test_the_index_decides_as_a_scan_of_all_rules_does(
    rules: list[tuple[Literal["allow", "deny"], Written]], default: Action, request: Request
) -> None:
    assert told(compiled(rules, default).decide(request)) == plainly_decided(rules, default, request)


@given(RULES, REQUESTS)
def test_a_rule_that_went_through_a_file_holds_for_the_same_requests(
    tmp_path_factory: pytest.TempPathFactory, rule: Written, request: Request
) -> None:
    text = yaml.safe_dump({"default": "allow", "rules": [{"name": "r", "action": "deny", **rule}]})
    judge = Engine(book(text, tmp_path_factory.getbasetemp()))
    assert isinstance(judge.decide(request), Denied) is plainly_holds(rule, request)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[NamePattern]:
    """Which patterns were asked whether they match. The rules below have one each that none may be decided without."""
    asked: list[NamePattern] = []
    matches = NamePattern.matches

    def counted(pattern: NamePattern, name: ServerName) -> bool:
        asked.append(pattern)
        return matches(pattern, name)

    monkeypatch.setattr(NamePattern, "matches", counted)
    return asked


NOT = {"not_sni": ["not.example.net"]}

MANY: dict[str, tuple[Callable[[int], Written], Request]] = {
    "of other names": (lambda n: {"sni": [f"host-{n}.org"]}, ask("host-500.org", "td/ns/a/sa/a")),
    "of other suffixes": (lambda n: {"sni": [f"*.zone-{n}.org"]}, ask("a.zone-500.org", "td/ns/a/sa/a")),
    "of other principals": (lambda n: {"principals": [f"td/ns/a/sa/w-{n}"]}, ask(who="td/ns/a/sa/w-500")),
    "of other folders": (lambda n: {"principals": [f"td/ns/ns-{n}/*"]}, ask(who="td/ns/ns-500/sa/a")),
    "of other namespaces": (lambda n: {"namespaces": [f"ns-{n}"]}, ask(who="td/ns/ns-500/sa/a")),
    "of other principals, to the same name": (
        lambda n: {"sni": ["host.org"], "principals": [f"td/ns/a/sa/w-{n}"]},
        ask("host.org", "td/ns/a/sa/w-500"),
    ),
    "of other names, for the same principal": (
        lambda n: {"sni": [f"host-{n}.org"], "principals": ["td/ns/a/sa/a"]},
        ask("host-500.org", "td/ns/a/sa/a"),
    ),
}


@pytest.mark.parametrize(("keys", "request_"), MANY.values(), ids=MANY)
def test_among_a_thousand_rules_those(
    keys: Callable[[int], Written], request_: Request, looked_at: list[NamePattern]
) -> None:
    """are not looked at: only the rule that can hold is."""
    judge = compiled([("deny" if n % 2 else "allow", keys(n) | NOT) for n in range(1000)], Action.DENY)
    assert told(judge.decide(request_)) == "allow by r500"
    assert len(looked_at) <= 4


def test_of_a_thousand_rules_that_all_hold_the_first_is_enough(looked_at: list[NamePattern]) -> None:
    judge = compiled([("allow", {"sni": ["*"]} | NOT)] * 1000, Action.DENY)
    assert told(judge.decide(ask())) == "allow by r0"
    assert len(looked_at) <= 4
