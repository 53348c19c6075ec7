"""Lints: what is right and yet doubtful about rules, as a reader of `sniproxy check` gets it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.model import Policy, PolicyFile
from sniproxy.config.yaml_source import BadInputError
from sniproxy.identity.spiffe import parse_principal
from sniproxy.names import parse_server_name
from sniproxy.policy.documents import load_policy
from sniproxy.policy.engine import Engine
from sniproxy.policy.lint import covers
from sniproxy.policy.match import holds
from sniproxy.policy.model import Attribute, Condition, Request


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a folder of its own, and its file in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lints(text: str, policy: Policy | None = None, port: int = 443) -> list[str]:
    path = Path("a.yaml")
    path.write_text(text)
    loaded = load_policy(policy or Policy(), [(path, PolicyFile(path="a.yaml"))], port=port)
    return [str(warning).removeprefix("a.yaml:") for warning in loaded.warnings]


def rules(*bodies: str) -> str:
    """Own rules a, b, c ... on the lines 2, 3, 4 ..."""
    names = "abcdefgh"
    return "rules:\n" + "".join(f"- {{name: {name}, {body}}}\n" for name, body in zip(names, bodies, strict=False))


def istio(*bodies: str, action: str = "ALLOW") -> str:
    """A policy p with these rules, on the lines 5, 6 ..."""
    return (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n"
        f"spec: {{action: {action}, rules: [\n" + "".join(f"  {{{body}}},\n" for body in bodies) + "]}\n---\n"
    )


ISTIO = "ns[istio-system]-policy[p]-rule"
OPEN = (
    "names only callers that it is not for, and so holds for one without identity; "
    "add principals: ['*'], or set policy.require_identity: true"
)
NEGATIVE = "allows everything but what it names; name what it allows"
MISSED = "and misses a caller whose identity is absent; set policy.require_identity: true"
CONTRADICTION = "never holds, for its conditions exclude each other; mend one, or drop it"
PORT = "never holds, for 443 is dialled, and that is none of its ports; mend them, or upstream.port"
USELESS = "has no effect, for"

ALLOW_SNI = "action: allow, sni: [a.org]"


LINTS: dict[str, tuple[str, list[str]]] = {
    # What fails open.
    "a DENY by namespace, where a caller may have none": (
        rules("action: deny, namespaces: [default]", "action: allow, sni: ['*']"),
        [f"2: rule 'a' denies by namespace, {MISSED}"],
    ),
    "a DENY by principal, in Istio's words": (
        "default: allow\n---\n" + istio("from: [{source: {principals: [x/ns/a/sa/b]}}]", action="DENY"),
        [f"7: {ISTIO}[0] denies by principal, {MISSED}"],
    ),
    "a DENY by namespace, with nothing else": (
        istio("when: [{key: source.namespace, values: [a]}]", action="DENY"),
        [f"5: {ISTIO}[0] denies by namespace, {MISSED}"],
    ),
    "a DENY by namespace, where no caller without identity is allowed anyway": (
        rules("action: deny, namespaces: [default]", "action: allow, principals: ['*']"),
        [],
    ),
    "a DENY by what it is not, which holds for the unknown": (rules("action: deny, not_namespaces: [default]"), []),
    "a DENY by name alone": (rules("action: deny, sni: [a.org]"), []),
    "an ALLOW of only notValues": (
        istio("when: [{key: connection.sni, notValues: [a.org]}]"),
        [f"5: {ISTIO}[0] {NEGATIVE}"],
    ),
    "our own ALLOW of only what it is not": (rules("action: allow, not_sni: [a.org]"), [f"2: rule 'a' {NEGATIVE}"]),
    "an ALLOW of values and notValues": (
        istio("when: [{key: connection.sni, values: ['*.org'], notValues: [a.org]}]"),
        [],
    ),
    "an ALLOW of everything, which says so": (rules("action: allow"), []),
    "an ALLOW that excludes callers, and so no unknown one": (
        rules("action: allow, sni: [a.org], not_namespaces: [default]"),
        [f"2: rule 'a' {OPEN}"],
    ),
    "an ALLOW of only such": (
        rules("action: allow, not_principals: [cluster.local/ns/a/sa/b]"),
        [f"2: rule 'a' {NEGATIVE}", f"2: rule 'a' {OPEN}"],
    ),
    "an ALLOW that excludes callers of those that it names": (
        rules("action: allow, namespaces: ['*'], not_namespaces: [default]"),
        [],
    ),
    "an ALLOW for the unknown alone, which says so": (
        istio("from: [{source: {notPrincipals: ['*']}}], when: [{key: connection.sni, values: [a.org]}]"),
        [],
    ),
    # What does nothing.
    "a port that is never dialled": (istio("to: [{operation: {ports: ['80']}}]"), [f"5: {ISTIO}[0] {PORT}"]),
    "the port that is dialled, excluded": (
        istio("when: [{key: destination.port, values: ['443', '80'], notValues: ['443']}]"),
        [f"5: {ISTIO}[0] {PORT}"],
    ),
    "a port that is never dialled, beside one that is": (
        istio("to: [{operation: {ports: ['80']}}, {operation: {ports: ['443']}}]"),
        [],
    ),
    "a name that is wanted and not wanted": (
        rules("action: allow, sni: [a.org], not_sni: ['*.org']"),
        [f"2: rule 'a' {CONTRADICTION}"],
    ),
    "a name that is wanted and not, among others": (
        rules("action: allow, sni: [a.org, b.com], not_sni: ['*.org']"),
        [],
    ),
    "two conditions on names that have none in common": (
        istio(
            "when: [{key: connection.sni, values: [a.org, '*.com']}, {key: connection.sni, values: [b.org, '*.net']}]"
        ),
        [f"5: {ISTIO}[0] {CONTRADICTION}"],
    ),
    "two conditions on names that have some in common": (
        istio("when: [{key: connection.sni, values: ['*.org']}, {key: connection.sni, values: ['www.*']}]"),
        [],
    ),
    "a principal of another namespace": (
        rules("action: allow, principals: [cluster.local/ns/a/sa/b], namespaces: [c]"),
        [f"2: rule 'a' {CONTRADICTION}"],
    ),
    "a principal of that namespace": (
        rules("action: allow, principals: [cluster.local/ns/a/*], namespaces: ['*']"),
        [],
    ),
    "networks apart": (
        istio("from: [{source: {ipBlocks: [10.0.0.0/8], remoteIpBlocks: [11.0.0.0/8, 'fd00::/8']}}]"),
        [f"5: {ISTIO}[0] {CONTRADICTION}"],
    ),
    "networks within each other": (
        istio("from: [{source: {ipBlocks: [10.0.0.0/8], remoteIpBlocks: [10.1.0.0/16]}}]"),
        [],
    ),
    # What another makes useless.
    "a rule twice": (
        rules(ALLOW_SNI, ALLOW_SNI),
        [f"3: rule 'b' {USELESS} rule 'a' at a.yaml:2 holds whenever it does; drop one of them"],
    ),
    "a name under an earlier wildcard": (
        rules("action: allow, sni: ['*.org']", "action: allow, sni: [a.b.org, c.org]"),
        [f"3: rule 'b' {USELESS} rule 'a' at a.yaml:2 holds whenever it does; drop one of them"],
    ),
    "a wildcard under an earlier wildcard": (
        rules("action: allow, sni: ['*.org']", "action: allow, sni: ['*.a.org']"),
        [f"3: rule 'b' {USELESS} rule 'a' at a.yaml:2 holds whenever it does; drop one of them"],
    ),
    "a wildcard after a name, which both have effect": (
        rules("action: allow, sni: [a.org]", "action: allow, sni: ['*.org']"),
        [],
    ),
    "a principal after all": (
        rules("action: allow", "action: allow, principals: [cluster.local/ns/a/sa/b]"),
        [f"3: rule 'b' {USELESS} rule 'a' at a.yaml:2 holds whenever it does; drop one of them"],
    ),
    "a principal after a folder": (
        rules("action: allow, principals: [x/ns/a/*]", "action: allow, sni: [a.org], principals: [x/ns/a/sa/b]"),
        [f"3: rule 'b' {USELESS} rule 'a' at a.yaml:2 holds whenever it does; drop one of them"],
    ),
    "a namespace after any": (
        rules("action: allow, namespaces: ['*']", "action: allow, namespaces: [a]"),
        [f"3: rule 'b' {USELESS} rule 'a' at a.yaml:2 holds whenever it does; drop one of them"],
    ),
    "another principal": (
        rules("action: allow, principals: [x/ns/a/sa/b]", "action: allow, principals: [x/ns/a/sa/c]"),
        [],
    ),
    "a rule that asks for more is wider for nobody": (
        rules("action: allow, sni: ['*.org'], namespaces: [a]", "action: allow, sni: [a.org]"),
        [],
    ),
    "a rule with an exception": (
        rules("action: allow, sni: ['*.org'], not_sni: [a.org]", "action: allow, sni: [a.org]"),
        [],
    ),
    "an exception that leaves it alone": (
        rules("action: allow, sni: ['*.org'], not_sni: [a.org]", "action: allow, sni: [b.org]"),
        [f"3: rule 'b' {USELESS} rule 'a' at a.yaml:2 holds whenever it does; drop one of them"],
    ),
    "networks": (
        rules("action: allow, source_ips: [10.0.0.0/8]", "action: allow, source_ips: [10.1.0.0/16]"),
        [f"3: rule 'b' {USELESS} rule 'a' at a.yaml:2 holds whenever it does; drop one of them"],
    ),
    "an allow rule under a deny rule": (
        rules(ALLOW_SNI, "action: deny, sni: ['*.org']"),
        [f"2: rule 'a' {USELESS} rule 'b' at a.yaml:3 denies all that it allows; drop one of them"],
    ),
    "an allow rule that a deny rule takes a part of": (
        rules("action: allow, sni: ['*.org']", "action: deny, sni: [a.org]"),
        [],
    ),
    "a rule under one that only watches": (rules("action: allow, mode: monitor", ALLOW_SNI), []),
    "a rule of Istio's under one of ours": (
        rules("action: deny, sni: ['*.org']")
        + "---\n"
        + istio("when: [{key: connection.sni, values: [a.org]}]", action="DENY"),
        [f"8: {ISTIO}[0] {USELESS} rule 'a' at a.yaml:2 holds whenever it does; drop one of them"],
    ),
    "every alternative of a rule under an earlier one": (
        istio(
            "from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}]",
            "from: [{source: {namespaces: [b]}}, {source: {namespaces: [a], ipBlocks: [10.0.0.0/8]}}]",
        ),
        [f"6: {ISTIO}[1] {USELESS} {ISTIO}[0] at a.yaml:5 holds whenever it does; drop one of them"],
    ),
    "one alternative of a rule under an earlier one": (
        istio(
            "from: [{source: {namespaces: [a]}}]",
            "from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}]",
        ),
        [],
    ),
    "lists of more than a thousand values, which are not compared": (
        rules(*[f"action: deny, sni: [{', '.join(f'{number}.org' for number in range(1001))}]"] * 2),
        [],
    ),
    "rules of audits and of verdicts, which do not meet": (
        rules("action: audit", "action: allow", "action: deny, sni: [a.org]"),
        [],
    ),
}


@pytest.mark.parametrize(("text", "expected"), LINTS.values(), ids=LINTS)
def test_lints(text: str, expected: list[str]) -> None:
    assert lints(text) == expected


def test_where_an_identity_is_required_nobody_is_unknown() -> None:
    text = rules("action: deny, namespaces: [default]", "action: allow, sni: [a.org], not_namespaces: [b]")
    assert lints(text, Policy(require_identity=True)) == []


def test_the_port_is_the_one_that_the_config_dials() -> None:
    text = istio("to: [{operation: {ports: ['8443']}}]")
    assert (lints(text, port=8443), len(lints(text))) == ([], 1)


def test_an_entry_at_another_port_registers_nothing_where_the_registry_decides() -> None:
    text = (
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\n"
        "spec: {hosts: [a.org], ports: [{number: 80, name: http}]}\n"
    )
    assert lints(text, Policy(registry="only")) == [f"1: ns[istio-system]-serviceentry[e]-rule[0] {PORT}"]
    assert lints(text) == []


def test_warnings_have_the_order_of_their_lines_and_an_end() -> None:
    text = "rules:\n" + "".join(f"- {{name: r{number}, action: allow, not_sni: [a.org]}}\n" for number in range(1200))
    told = lints(text)
    assert len(told) == 1000
    assert told[0].startswith("2: rule 'r0' ")


PATTERNS = st.sampled_from(
    ["*", "a", "b", "ab", "*a", "*b", "a*", "ab*", "*.a", "*.b.a", "b.a", "c.b.a", "b.*", "a*b", "**"]
)
NAMES = [parse_server_name(name.encode()) for name in ("a", "b", "ab", "ba", "b.a", "c.b.a", "b.c", "x.a", "abc")]


@given(PATTERNS, PATTERNS)
def test_what_covers_a_pattern_matches_all_that_it_does(wide: str, narrow: str) -> None:
    if covers(Attribute.SNI, wide, narrow):
        requests = [Request(name, parse_principal("x"), "") for name in NAMES]
        matched = [request for request in requests if holds(Condition(Attribute.SNI, (narrow,)), request)]
        assert all(holds(Condition(Attribute.SNI, (wide,)), request) for request in matched)


NAMESPACE_PATTERNS = st.text("ab*", min_size=1, max_size=4)


@given(NAMESPACE_PATTERNS, NAMESPACE_PATTERNS)
def test_and_so_it_does_with_namespaces(wide: str, narrow: str) -> None:
    if covers(Attribute.NAMESPACE, wide, narrow):
        for namespace in ("a", "b", "ab", "ba", "aab", "abab", "bb"):
            principal = parse_principal(f"x/ns/{namespace}/sa/y")
            request = Request(NAMES[0], principal, "")
            if holds(Condition(Attribute.NAMESPACE, (narrow,)), request):
                assert holds(Condition(Attribute.NAMESPACE, (wide,)), request)


SNI = st.sampled_from(["a.org", "b.org", "'*.org'", "x.a.org", "'*.a.org'", "'*'"])
SPACE = st.sampled_from(["a", "b", "'*'"])
PARTS = st.fixed_dictionaries(
    {"action": st.sampled_from(["allow", "deny"])},
    optional={
        "sni": st.lists(SNI, min_size=1, max_size=2),
        "not_sni": st.lists(SNI, min_size=1, max_size=2),
        "namespaces": st.lists(SPACE, min_size=1, max_size=2),
        "not_namespaces": st.lists(SPACE, min_size=1, max_size=2),
        "mode": st.sampled_from(["enforce", "monitor"]),
    },
)
QUERIES = [
    Request(parse_server_name(name), parse_principal(f"x/ns/{namespace}/sa/y"), "")
    for name in (b"a.org", b"b.org", b"c.org", b"x.a.org", b"y.a.org", b"com")
    for namespace in ("a", "b", "c")
]


def written(body: dict[str, object]) -> str:
    return ", ".join(f"{key}: {value}".replace('"', "") for key, value in body.items())


@given(st.lists(PARTS, min_size=1, max_size=5))
def test_a_rule_that_has_no_effect_can_be_dropped(bodies: list[dict[str, object]]) -> None:
    """All that are named at once: none of them is what another one of them is dropped for."""
    texts = [written(body) for body in bodies]
    try:
        told = lints(rules(*texts))
    except BadInputError:
        pytest.fail("these rules are right")
    useless = {int(warning.partition(":")[0]) - 2 for warning in told if USELESS in warning or CONTRADICTION in warning}
    # One allow rule stays in any case, for without one it is the default that decides.
    kept = [text for number, text in enumerate(texts) if number not in useless] + ["action: allow, sni: [never.org]"]
    verdicts = []
    for some in (texts + kept[-1:], kept):
        engine = Engine.of(load_policy(Policy(), [_file(rules(*some))]).rulebook)
        verdicts.append([type(engine.decide(query)) for query in QUERIES])
    assert verdicts[0] == verdicts[1]


def _file(text: str) -> tuple[Path, PolicyFile]:
    Path("b.yaml").write_text(text)
    return Path("b.yaml"), PolicyFile(path="b.yaml")
