"""AuthorizationPolicy: each point of Istio's semantics, in English and decided; and what is refused, with its mend."""

from pathlib import Path
from typing import NamedTuple

import pytest

from sniproxy.config.model import Gateway, Policy, PolicyFile
from sniproxy.config.yaml_source import BadInputError
from sniproxy.identity.spiffe import UNKNOWN, parse_principal
from sniproxy.names import parse_server_name
from sniproxy.policy import authorization_policy
from sniproxy.policy.documents import LoadedPolicy, load_policy
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Allowed, Denied, Request


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a folder of its own, and its file in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, gateway: Gateway | None = None) -> LoadedPolicy:
    path = Path("a.yaml")
    path.write_text(text)
    return load_policy(Policy(gateway=gateway or Gateway()), [(path, PolicyFile(path="a.yaml"))])


def policy(spec: str, *, name: str = "p", namespace: str = "istio-system", annotations: str = "{}") -> str:
    """A document, on lines 1 to 4 and from line 5 its spec."""
    return (
        "apiVersion: security.istio.io/v1\n"
        "kind: AuthorizationPolicy\n"
        f"metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}\n"
        f"spec:\n{spec}\n---\n"
    )


def allow(*rules: str, **metadata: str) -> str:
    return policy("  rules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules), **metadata)


def deny(*rules: str, **metadata: str) -> str:
    return policy("  action: DENY\n  rules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules), **metadata)


def source(*fields: str) -> str:
    """`from` with these sources."""
    return f"from: [{', '.join(f'{{source: {{{field}}}}}' for field in fields)}]"


def sni(values: str) -> str:
    return f"when: [{{key: connection.sni, values: [{values}]}}]"


def request(query: str) -> Request:
    """What a line says: "default/sleep a.org 10.0.0.1:80" is a caller, a name, an address and a port.

    A caller is an account of a namespace, a whole principal, or nobody.
    """
    caller, name, *rest = query.split()
    if caller.count("/") == 1:
        caller = "cluster.local/ns/{}/sa/{}".format(*caller.split("/"))
    source_ip, _, port = rest[0].partition(":") if rest else ("", "", "")
    identity = UNKNOWN if caller == "nobody" else parse_principal(caller)
    return Request(parse_server_name(name.encode()), identity, source_ip, port=int(port or 443))


class Case(NamedTuple):
    documents: str
    allowed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    gateway: Gateway | None = None


def judge(case: Case) -> dict[str, str]:
    engine = Engine.of(load(case.documents, case.gateway).rulebook)
    queries = (*case.allowed, *case.refused)
    return {query: "allow" if isinstance(engine.decide(request(query)), Allowed) else "deny" for query in queries}


OTHERWISE_ALLOW = "default: allow\n---\n"
GOOGLE = "when: [{key: connection.sni, values: [developers.google.com]}]"
ALLOW_NOTHING = policy("  {}", name="allow-nothing")

COMBINATION = {
    "a DENY that matches denies, whatever an ALLOW says": Case(
        allow("", name="all") + deny(sni("a.org"), name="a"),
        allowed=("nobody b.org",),
        refused=("nobody a.org",),
    ),
    "with no ALLOW policy at all, and the default of Istio, what no DENY matches is allowed": Case(
        OTHERWISE_ALLOW + deny(sni("a.org")),
        allowed=("nobody b.org",),
        refused=("nobody a.org",),
    ),
    "with no ALLOW policy at all, and our own default, it is not": Case(
        deny(sni("a.org")), refused=("nobody a.org", "nobody b.org")
    ),
    "an ALLOW that matches allows, and with one in force the rest is refused, whatever the default": Case(
        OTHERWISE_ALLOW + allow(sni("a.org")),
        allowed=("nobody a.org",),
        refused=("nobody b.org",),
    ),
    "AUDIT changes no verdict": Case(
        OTHERWISE_ALLOW + policy("  action: AUDIT\n  rules: [{}]"), allowed=("nobody a.org", "default/sleep b.org")
    ),
    "policies of one action are alternatives": Case(
        allow(sni("a.org"), name="a") + allow(sni("b.org"), name="b"),
        allowed=("nobody a.org", "nobody b.org"),
        refused=("nobody c.org",),
    ),
    "rules are alternatives": Case(
        allow(sni("a.org"), sni("b.org")),
        allowed=("nobody a.org", "nobody b.org"),
        refused=("nobody c.org",),
    ),
    "entries of `from` are alternatives": Case(
        allow(source("namespaces: [default]", "namespaces: [other]")),
        allowed=("default/sleep a.org", "other/sleep a.org"),
        refused=("third/sleep a.org", "nobody a.org"),
    ),
    "entries of `to` are alternatives": Case(
        allow("to: [{operation: {ports: ['80']}}, {operation: {ports: ['443']}}]"),
        allowed=("nobody a.org 10.0.0.1:80", "nobody a.org 10.0.0.1:443"),
        refused=("nobody a.org 10.0.0.1:81",),
    ),
    "conditions of `when` must all hold": Case(
        allow("when: [{key: connection.sni, values: ['*.org']}, {key: source.namespace, values: [default]}]"),
        allowed=("default/sleep a.org",),
        refused=("default/sleep a.com", "other/sleep a.org"),
    ),
    "fields of a source must all match": Case(
        allow(source("namespaces: [default], ipBlocks: [10.0.0.0/8]")),
        allowed=("default/sleep a.org 10.0.0.1",),
        refused=("default/sleep a.org 11.0.0.1", "other/sleep a.org 10.0.0.1"),
    ),
    "`from`, `to` and `when` must all hold": Case(
        allow(f"{source('namespaces: [default]')}, to: [{{operation: {{ports: ['443']}}}}], {sni('a.org')}"),
        allowed=("default/sleep a.org",),
        refused=("other/sleep a.org", "default/sleep b.org", "default/sleep a.org 10.0.0.1:80"),
    ),
    "values of a list are alternatives": Case(
        allow(sni("a.org, b.org")),
        allowed=("nobody a.org", "nobody b.org"),
        refused=("nobody c.org",),
    ),
    "of `values` and `notValues`, one of the former must match and none of the latter": Case(
        allow("when: [{key: connection.sni, values: ['*.org'], notValues: [a.org, b.org]}]"),
        allowed=("nobody c.org",),
        refused=("nobody a.org", "nobody b.org", "nobody c.com"),
    ),
    "`notValues` alone match everything else": Case(
        allow("when: [{key: connection.sni, notValues: [a.org]}]"),
        allowed=("nobody b.org",),
        refused=("nobody a.org",),
    ),
    "what is in a source and its opposite must both hold": Case(
        allow(source("namespaces: ['*'], notNamespaces: [other], principals: ['*'], notPrincipals: ['*/sa/root']")),
        allowed=("default/sleep a.org",),
        refused=("other/sleep a.org", "default/root a.org", "nobody a.org"),
    ),
}

EMPTIES = {
    "`spec: {}` is an ALLOW that never matches and counts, so that everything is refused": Case(
        OTHERWISE_ALLOW + ALLOW_NOTHING, refused=("nobody a.org", "default/sleep a.org")
    ),
    "so is no spec at all": Case(
        "default: allow\n---\n"
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: allow-nothing}\n",
        refused=("nobody a.org",),
    ),
    "so is an ALLOW with nothing but its action": Case(
        OTHERWISE_ALLOW + policy("  action: ALLOW"), refused=("nobody a.org",)
    ),
    "`rules: [{}]` matches everything": Case(allow(""), allowed=("nobody a.org", "default/sleep b.org")),
    "and so it does in a DENY": Case(OTHERWISE_ALLOW + deny(""), refused=("nobody a.org", "default/sleep b.org")),
    "an AUDIT without rules audits nothing, and refuses nothing": Case(
        OTHERWISE_ALLOW + policy("  action: AUDIT"), allowed=("nobody a.org",)
    ),
    "allow-nothing beside an ALLOW that matches lets it through": Case(
        ALLOW_NOTHING + allow(f"{source('namespaces: [default]')}, {GOOGLE}", name="allow-google"),
        allowed=("default/sleep developers.google.com",),
        refused=("other/sleep developers.google.com", "default/sleep developer.yahoo.com"),
    ),
    "a list in a source that is empty asks for nothing": Case(
        allow(source("principals: [], namespaces: [default]")),
        allowed=("default/sleep a.org",),
        refused=("other/sleep a.org",),
    ),
    "an empty `when` asks for nothing": Case(allow("when: []"), allowed=("nobody a.org",)),
}

HTTP_ONLY = {
    "an ALLOW rule with a field of HTTP is dropped, and the others are not": Case(
        allow("to: [{operation: {paths: [/a]}}]", sni("a.org")),
        allowed=("nobody a.org",),
        refused=("nobody b.org",),
    ),
    "it is dropped whole, for one such entry of `to` among others": Case(
        allow("to: [{operation: {ports: ['443']}}, {operation: {methods: [GET]}}]"), refused=("nobody a.org",)
    ),
    "an ALLOW policy whose rules were all dropped refuses everything": Case(
        OTHERWISE_ALLOW + allow("to: [{operation: {hosts: ['*']}}]"), refused=("nobody a.org",)
    ),
    "in a DENY rule the field is ignored, which widens it": Case(
        OTHERWISE_ALLOW + deny(f"to: [{{operation: {{notPaths: [/a]}}}}], {sni('a.org')}"),
        allowed=("nobody b.org",),
        refused=("nobody a.org",),
    ),
    "and what stands beside it still counts": Case(
        OTHERWISE_ALLOW + deny("to: [{operation: {ports: ['80'], notHosts: [x], notMethods: [GET]}}]"),
        allowed=("nobody a.org",),
        refused=("nobody a.org 10.0.0.1:80",),
    ),
}

STRINGS = {
    "a name without a star is that name": Case(
        allow(sni("a.org")), allowed=("nobody a.org",), refused=("nobody b.a.org", "nobody a.org.uk")
    ),
    "a star at the end is a prefix": Case(
        allow(sni("'www.*'")), allowed=("nobody www.a.org", "nobody www.com"), refused=("nobody a.www.org",)
    ),
    "a star at the start is a suffix": Case(
        allow(sni("'*.x.com'")),
        allowed=("nobody a.x.com", "nobody a.b.x.com"),
        refused=("nobody x.com", "nobody evilx.com"),
    ),
    "without a dot behind the star, any name that ends so": Case(
        allow(sni("'*x.com'")),
        allowed=("nobody x.com", "nobody evilx.com", "nobody a.x.com"),
        refused=("nobody x.com.org",),
    ),
    "a star alone is any name": Case(allow(sni("'*'")), allowed=("nobody a.org", "default/sleep b.com")),
    "a star elsewhere is no pattern": Case(allow(sni("'a*b.org', '*a*'")), refused=("nobody aab.org", "nobody a.org")),
    "capitals of a policy do not count, where Istio's DENY would open": Case(
        OTHERWISE_ALLOW + deny(sni("EN.Wikipedia.org, '*.Example.ORG'")),
        allowed=("nobody de.wikipedia.org",),
        refused=("nobody en.wikipedia.org", "nobody a.example.org"),
    ),
    "capitals of a received name do not count": Case(allow(sni("a.org")), allowed=("nobody A.ORG",)),
    "one trailing dot does not count, in a policy or a name": Case(
        allow(sni("a.org., '*.b.org.'")), allowed=("nobody a.org", "nobody a.org.", "nobody x.b.org")
    ),
    "a star and a dot do not become a star": Case(allow(sni("'*.', '.'")), refused=("nobody a.org",)),
    "principals keep their case": Case(
        allow(source("principals: [cluster.local/ns/default/sa/Sleep]")),
        allowed=("default/Sleep a.org",),
        refused=("default/sleep a.org",),
    ),
    "principals have the same patterns": Case(
        allow(source("principals: ['cluster.local/ns/default/*', '*/sa/root']")),
        allowed=("default/sleep a.org", "other/root a.org", "td/ns/x/sa/root a.org"),
        refused=("other/sleep a.org", "td/ns/default/sa/sleep a.org", "nobody a.org"),
    ),
}

TD1 = Gateway(trust_domain="td1", trust_domain_aliases=("td2", "old-td"))

PRINCIPALS = {
    "with spiffe:// they never match, as in Istio": Case(
        OTHERWISE_ALLOW + deny(source("principals: ['spiffe://cluster.local/ns/default/sa/sleep']")),
        allowed=("default/sleep a.org",),
    ),
    "the mesh's own domain stands for its aliases too": Case(
        allow(source("principals: [td1/ns/default/sa/sleep]")),
        allowed=(
            "td1/ns/default/sa/sleep a.org",
            "td2/ns/default/sa/sleep a.org",
            "old-td/ns/default/sa/sleep a.org",
        ),
        refused=("td3/ns/default/sa/sleep a.org", "td1/ns/default/sa/other a.org"),
        gateway=TD1,
    ),
    "so does an alias": Case(
        allow(source("principals: [td2/ns/default/sa/sleep]")),
        allowed=("td1/ns/default/sa/sleep a.org", "old-td/ns/default/sa/sleep a.org"),
        gateway=TD1,
    ),
    "cluster.local stands for the mesh's own domain, whatever that is called": Case(
        allow(source("principals: [cluster.local/ns/default/sa/sleep]")),
        allowed=("td1/ns/default/sa/sleep a.org", "td2/ns/default/sa/sleep a.org"),
        refused=("cluster.local/ns/default/sa/sleep a.org",),
        gateway=TD1,
    ),
    "a peer in cluster.local matches where that is an alias": Case(
        allow(source("principals: [td1/ns/default/sa/sleep]")),
        allowed=("cluster.local/ns/default/sa/sleep a.org",),
        gateway=Gateway(trust_domain="td1", trust_domain_aliases=("cluster.local",)),
    ),
    "another domain stands for itself": Case(
        allow(source("principals: [td9/ns/default/sa/sleep]")),
        allowed=("td9/ns/default/sa/sleep a.org",),
        refused=("td1/ns/default/sa/sleep a.org",),
        gateway=TD1,
    ),
    "the domain is looked at only in a text of five parts": Case(
        allow(source("principals: ['td1/ns/default/*']")),
        allowed=("td1/ns/default/sa/sleep a.org",),
        refused=("td2/ns/default/sa/sleep a.org",),
        gateway=TD1,
    ),
    "a star for a service account makes five": Case(
        allow(source("principals: ['td1/ns/default/sa/*']")),
        allowed=("td1/ns/default/sa/sleep a.org", "td2/ns/default/sa/sleep a.org"),
        refused=("td2/ns/other/sa/sleep a.org",),
        gateway=TD1,
    ),
    "a star for the domain is any domain": Case(
        allow(source("principals: ['*/ns/default/sa/sleep']")),
        allowed=("td1/ns/default/sa/sleep a.org", "td9/ns/default/sa/sleep a.org"),
        gateway=TD1,
    ),
    "a star in front of part of a domain stays, and the other domains are added": Case(
        allow(source("principals: ['*-td/ns/default/sa/sleep']")),
        allowed=(
            "old-td/ns/default/sa/sleep a.org",
            "new-td/ns/default/sa/sleep a.org",
            "td1/ns/default/sa/sleep a.org",
        ),
        refused=("td9/ns/default/sa/sleep a.org",),
        gateway=TD1,
    ),
    "a star behind part of a domain names it": Case(
        allow(source("principals: ['old*/ns/default/sa/sleep']")),
        allowed=("old-td/ns/default/sa/sleep a.org", "td1/ns/default/sa/sleep a.org"),
        refused=("older/ns/default/sa/sleep a.org",),
        gateway=TD1,
    ),
    "aliases count in notPrincipals": Case(
        allow(source("notPrincipals: [td1/ns/default/sa/sleep]")),
        allowed=("td1/ns/default/sa/other a.org", "td9/ns/default/sa/sleep a.org"),
        refused=("td1/ns/default/sa/sleep a.org", "td2/ns/default/sa/sleep a.org"),
        gateway=TD1,
    ),
    "and in conditions": Case(
        allow("when: [{key: source.principal, values: [cluster.local/ns/default/sa/sleep]}]"),
        allowed=("td2/ns/default/sa/sleep a.org",),
        gateway=TD1,
    ),
    "notPrincipals match a peer without identity": Case(
        allow(source("notPrincipals: [cluster.local/ns/default/sa/sleep]")),
        allowed=("nobody a.org", "other/sleep a.org"),
        refused=("default/sleep a.org",),
    ),
    "not '*' matches those alone": Case(
        allow(source("notPrincipals: ['*']")), allowed=("nobody a.org",), refused=("default/sleep a.org",)
    ),
    "no identity matches no principal": Case(allow(source("principals: ['*']")), refused=("nobody a.org",)),
}

NAMESPACES = {
    "a namespace is one of any trust domain": Case(
        allow(source("namespaces: [default]")),
        allowed=("default/sleep a.org", "td9/ns/default/sa/sleep a.org"),
        refused=("other/sleep a.org", "default2/sleep a.org", "td9/default a.org"),
    ),
    "a star is any run of characters, wherever it stands": Case(
        allow(source("namespaces: ['prod-*-eu', 'x*']")),
        allowed=("prod-a-eu/sleep a.org", "x/sleep a.org", "xy/sleep a.org"),
        refused=("prod-eu/sleep a.org", "ax/sleep a.org"),
    ),
    "a star alone is any namespace, but not none": Case(
        allow(source("namespaces: ['*']")),
        allowed=("default/sleep a.org",),
        refused=("nobody a.org", "td9/a/workload a.org"),
    ),
    "no identity matches every notNamespaces": Case(
        allow(source("notNamespaces: [default, '*']")), allowed=("nobody a.org",), refused=("default/sleep a.org",)
    ),
    "a DENY by namespace misses who has no identity": Case(
        OTHERWISE_ALLOW + deny(source("namespaces: [default]")),
        allowed=("nobody a.org",),
        refused=("default/sleep a.org",),
    ),
    "conditions ask the same": Case(
        allow("when: [{key: source.namespace, values: ['*'], notValues: [other]}]"),
        allowed=("default/sleep a.org",),
        refused=("other/sleep a.org", "nobody a.org"),
    ),
}

SERVICE_ACCOUNTS = {
    "one alone is of the policy's own namespace": Case(
        allow(source("serviceAccounts: [sleep]")),
        allowed=("istio-system/sleep a.org", "td9/ns/istio-system/sa/sleep a.org"),
        refused=("default/sleep a.org", "istio-system/sleeper a.org", "nobody a.org"),
    ),
    "one with a namespace is of that": Case(
        allow(source("serviceAccounts: [default/sleep, other/sleep]")),
        allowed=("default/sleep a.org", "other/sleep a.org"),
        refused=("istio-system/sleep a.org", "default/other a.org"),
    ),
    "notServiceAccounts match all others, and those without identity": Case(
        allow(source("notServiceAccounts: [default/sleep]")),
        allowed=("default/other a.org", "nobody a.org"),
        refused=("default/sleep a.org",),
    ),
    "conditions ask the same": Case(
        allow("when: [{key: source.serviceAccount, values: [default/sleep]}]"),
        allowed=("default/sleep a.org",),
        refused=("default/other a.org",),
    ),
}

ADDRESSES_AND_PORTS = {
    "ipBlocks are networks or addresses": Case(
        allow(source("ipBlocks: [10.0.0.0/8, 192.0.2.1, 'fd00::/8']")),
        allowed=("nobody a.org 10.1.2.3", "nobody a.org 192.0.2.1"),
        refused=("nobody a.org 192.0.2.2", "nobody a.org"),
    ),
    "a network may be written with host bits, as Istio takes it": Case(
        allow(source("ipBlocks: [10.1.2.3/8]")), allowed=("nobody a.org 10.9.9.9",)
    ),
    "notIpBlocks match all others": Case(
        allow(source("notIpBlocks: [10.0.0.0/8]")),
        allowed=("nobody a.org 11.0.0.1",),
        refused=("nobody a.org 10.0.0.1",),
    ),
    "remoteIpBlocks mean the same address, and both must match": Case(
        allow(source("remoteIpBlocks: [10.0.0.0/8], ipBlocks: [10.1.0.0/16], notRemoteIpBlocks: [10.1.1.1]")),
        allowed=("nobody a.org 10.1.0.1",),
        refused=("nobody a.org 10.2.0.1", "nobody a.org 10.1.1.1"),
    ),
    "so do the conditions source.ip and remote.ip": Case(
        allow(
            "when: [{key: source.ip, values: [10.0.0.0/8]}, {key: remote.ip, notValues: [10.1.0.0/16]}]",
        ),
        allowed=("nobody a.org 10.2.0.1",),
        refused=("nobody a.org 10.1.0.1", "nobody a.org 11.0.0.1"),
    ),
    "ports are the one that is dialled": Case(
        allow("to: [{operation: {ports: ['443', '8443'], notPorts: ['8443']}}]"),
        allowed=("nobody a.org 10.0.0.1:443",),
        refused=("nobody a.org 10.0.0.1:8443", "nobody a.org 10.0.0.1:80"),
    ),
    "so is destination.port": Case(
        allow("when: [{key: destination.port, values: ['0443']}]"),
        allowed=("nobody a.org 10.0.0.1:443",),
        refused=("nobody a.org 10.0.0.1:80",),
    ),
}

DRY = "{istio.io/dry-run: 'true'}"

DRY_RUNS = {
    "a DENY in dry-run denies nothing": Case(
        OTHERWISE_ALLOW + deny(sni("a.org"), annotations=DRY), allowed=("nobody a.org", "nobody b.org")
    ),
    "an ALLOW in dry-run allows nothing": Case(allow(sni("a.org"), annotations=DRY), refused=("nobody a.org",)),
    "and does not refuse the rest": Case(
        OTHERWISE_ALLOW + allow(sni("a.org"), annotations=DRY), allowed=("nobody a.org", "nobody b.org")
    ),
    "allow-nothing in dry-run refuses nothing": Case(
        OTHERWISE_ALLOW + policy("  {}", annotations=DRY), allowed=("nobody a.org",)
    ),
    "'false' is no dry-run": Case(
        OTHERWISE_ALLOW + deny(sni("a.org"), annotations="{istio.io/dry-run: 'false'}"), refused=("nobody a.org",)
    ),
    "a value that does not parse leaves the policy enforced": Case(
        OTHERWISE_ALLOW + deny(sni("a.org"), annotations="{istio.io/dry-run: 'yes'}"), refused=("nobody a.org",)
    ),
}

TABLES = {
    **COMBINATION,
    **EMPTIES,
    **HTTP_ONLY,
    **STRINGS,
    **PRINCIPALS,
    **{f"namespaces: {point}": case for point, case in NAMESPACES.items()},
    **{f"service accounts: {point}": case for point, case in SERVICE_ACCOUNTS.items()},
    **ADDRESSES_AND_PORTS,
    **DRY_RUNS,
}


@pytest.mark.parametrize("case", TABLES.values(), ids=TABLES)
def test_decides_as_istio_does(case: Case) -> None:
    assert judge(case) == dict.fromkeys(case.allowed, "allow") | dict.fromkeys(case.refused, "deny")


PARSE_BOOL = {
    **dict.fromkeys(["1", "t", "T", "TRUE", "true", "True"], True),
    **dict.fromkeys(["0", "f", "F", "FALSE", "false", "False", "yes", "on", "tRUE", " true"], False),
}


@pytest.mark.parametrize(("text", "is_dry_run"), PARSE_BOOL.items())
def test_dry_run_is_read_as_by_go(text: str, is_dry_run: bool) -> None:
    (rule,) = load(deny("", annotations=f"{{istio.io/dry-run: '{text}'}}")).rulebook.rules
    assert rule.is_monitored is is_dry_run


def test_a_refusal_carries_the_phrase_of_istio() -> None:
    book = load(deny(sni("x.org"), sni("a.org"), name="no-a")).rulebook
    decision = Engine.of(book).decide(request("nobody a.org"))
    assert isinstance(decision, Denied)
    assert decision.detail == "rbac_access_denied_matched_policy[ns[istio-system]-policy[no-a]-rule[1]]"
    assert (decision.ground.policy, decision.ground.rule) == ("ns[istio-system]-policy[no-a]", "1")
    assert (decision.ground.file, decision.ground.line) == ("a.yaml", 8)


def test_where_no_allow_matched_the_phrase_has_none() -> None:
    decision = Engine.of(load(ALLOW_NOTHING).rulebook).decide(request("nobody a.org"))
    assert isinstance(decision, Denied)
    assert decision.detail == "rbac_access_denied_matched_policy[none]"


def test_an_audit_rule_is_named_beside_the_verdict() -> None:
    book = load("default: allow\n---\n" + policy(f"  action: AUDIT\n  rules:\n  - {{{sni('a.org')}}}")).rulebook
    engine = Engine.of(book)
    audited, other = engine.decide(request("nobody a.org")), engine.decide(request("nobody b.org"))
    assert (str(audited.audit), other.audit) == ("ns[istio-system]-policy[p]-rule[0]", None)


def problems(text: str) -> list[str]:
    with pytest.raises(BadInputError) as caught:
        load(text)
    return [str(problem).removeprefix("a.yaml:") for problem in caught.value.problems]


INSIDE_TLS = "which travel inside TLS and are not seen here; drop it, or enforce it where TLS ends"
TARGET = "which is not supported; use selector.matchLabels"
RULE = "spec.rules[0]"

# What is wrong with a spec, whose first line is the fifth.
WRONG: dict[str, tuple[str, list[str]]] = {
    "an action that asks somebody else": (
        "  action: CUSTOM\n  provider: {name: x}\n  rules: [{}]",
        [
            "5: spec.action is CUSTOM, where another service decides, which is not supported; use ALLOW, DENY or AUDIT",
            "6: spec.provider is for action CUSTOM, which is not supported; drop it",
        ],
    ),
    "another action": (
        "  action: deny\n  rules: [{}]",
        ["5: spec.action must be ALLOW, DENY or AUDIT, not 'deny'"],
    ),
    "a policy for a resource": (
        "  targetRef: {kind: Gateway}\n  targetRefs: []",
        [
            f"5: spec.targetRef attaches the policy to another resource, {TARGET}",
            f"6: spec.targetRefs attaches the policy to other resources, {TARGET}",
        ],
    ),
    "an unknown field": (
        "  rule: [{}]",
        ["5: unknown key 'rule' in spec; did you mean 'rules'?"],
    ),
    "unknown fields, far inside": (
        (
            "  rules:\n  - from:\n    - source:\n        namespace: [a]\n    when:\n"
            "    - {key: connection.sni, value: [a.org]}"
        ),
        [
            f"7: {RULE}.from[0].source asks for nothing; fill it, or drop its entry",
            f"8: unknown key 'namespace' in {RULE}.from[0].source; did you mean 'namespaces'?",
            f"10: unknown key 'value' in {RULE}.when[0]; did you mean 'values'?",
            f"10: {RULE}.when[0] asks for nothing; add values or notValues",
        ],
    ),
    "a DENY without rules": (
        "  action: DENY",
        [
            (
                "4: spec has action DENY and no rules, and so denies nothing; "
                "add rules: [{}] for all connections, or drop the policy"
            )
        ],
    ),
    "no rules in a list": ("  rules: []", ["5: spec.rules is empty; fill it, or drop it"]),
    "no value": ("  rules:", ["5: spec.rules has no value; give it one, or drop it"]),
    "a rule without a value": (
        "  rules:\n  -",
        ["6: spec.rules[0] has no value; give it one, or drop it"],
    ),
    "rules that are none": (
        "  rules: [all, [a]]",
        [
            "5: spec.rules[0] must be a mapping of keys, not 'all'",
            "5: spec.rules[1] must be a mapping of keys, not a list",
        ],
    ),
    "empty `from` and `to`": (
        "  rules:\n  - from: []\n    to: []",
        [f"6: {RULE}.from is empty; fill it, or drop it", f"7: {RULE}.to is empty; fill it, or drop it"],
    ),
    "an empty source and an empty operation": (
        "  rules:\n  - from:\n    - source: {}\n    to:\n    - operation: {ports: []}",
        [
            f"7: {RULE}.from[0].source asks for nothing; fill it, or drop its entry",
            f"9: {RULE}.to[0].operation asks for nothing; fill it, or drop its entry",
        ],
    ),
    "entries without a source and an operation": (
        "  rules:\n  - from:\n    - {}\n    to:\n    - ports: ['443']",
        [
            f"7: {RULE}.from[0] lacks the key 'source'; add it",
            f"9: unknown key 'ports' in {RULE}.to[0]; the keys here are operation",
            f"9: {RULE}.to[0] lacks the key 'operation'; add it",
        ],
    ),
    "empty texts": (
        (
            "  rules:\n  - from:\n    - source: {principals: ['']}\n    when:\n"
            "    - {key: connection.sni, values: [a, '']}"
        ),
        [
            f"7: {RULE}.from[0].source.principals[0]: empty text; write a value, or drop it",
            f"9: {RULE}.when[0].values[1]: empty text; write a value, or drop it",
        ],
    ),
    "values that are no text": (
        "  rules:\n  - from:\n    - source: {namespaces: [1, true]}\n    to:\n    - operation: {ports: [443]}",
        [
            f"7: {RULE}.from[0].source.namespaces[0]: 1 is not text; put it in quotes",
            f"7: {RULE}.from[0].source.namespaces[1]: true is not text; put it in quotes",
            f"9: {RULE}.to[0].operation.ports[0]: 443 is not text; put it in quotes",
        ],
    ),
    "a text for a list": (
        "  rules:\n  - from:\n    - source: {namespaces: default}",
        [f"7: {RULE}.from[0].source.namespaces must be a list, not 'default'; write ['default']"],
    ),
    "ports that are none": (
        "  rules:\n  - to:\n    - operation: {ports: ['https', '65536', '-1']}",
        [
            f"7: {RULE}.to[0].operation.ports[0]: 'https' is no port; write a number up to 65535, in quotes",
            f"7: {RULE}.to[0].operation.ports[1]: '65536' is no port; write a number up to 65535, in quotes",
            f"7: {RULE}.to[0].operation.ports[2]: '-1' is no port; write a number up to 65535, in quotes",
        ],
    ),
    "networks that are none": (
        (
            "  rules:\n  - from:\n    - source:\n"
            "        ipBlocks: [1.0.0.0/33, 1.0.0.0/255.0.0.0]\n        notIpBlocks: [host]"
        ),
        [
            (
                f"8: {RULE}.from[0].source.ipBlocks[0]: '1.0.0.0/33' is no network; "
                "write it as 10.0.0.0/8, fd00::/8 or 192.0.2.1"
            ),
            (
                f"8: {RULE}.from[0].source.ipBlocks[1]: '1.0.0.0/255.0.0.0' is no network; "
                "write it as 10.0.0.0/8, fd00::/8 or 192.0.2.1"
            ),
            (
                f"9: {RULE}.from[0].source.notIpBlocks[0]: 'host' is no network; "
                "write it as 10.0.0.0/8, fd00::/8 or 192.0.2.1"
            ),
        ],
    ),
    "service accounts that are none": (
        "  rules:\n  - from:\n    - source: {serviceAccounts: ['a/b/c', '*', '/a']}",
        [
            f"7: {RULE}.from[0].source.serviceAccounts[{number}]: {text} is no service account; "
            "write sleep or default/sleep, without a star"
            for number, text in enumerate(["'a/b/c'", "'*'", "'/a'"])
        ],
    ),
    "more service accounts than Istio takes": (
        f"  rules:\n  - from:\n    - source: {{serviceAccounts: [{', '.join(['a'] * 17)}]}}",
        [f"7: {RULE}.from[0].source.serviceAccounts has 17 entries, and Istio takes at most 16; split it"],
    ),
    "service accounts beside principals or namespaces": (
        "  rules:\n  - from:\n    - source: {notServiceAccounts: [a], namespaces: [b]}",
        [
            f"7: {RULE}.from[0].source.notServiceAccounts cannot stand beside namespaces; give it an entry of its own",
        ],
    ),
    "JWTs": (
        "  rules:\n  - from:\n    - source:\n        requestPrincipals: ['*']\n        notRequestPrincipals: [a]",
        [
            f"8: {RULE}.from[0].source.requestPrincipals is about JWTs, {INSIDE_TLS}",
            f"9: {RULE}.from[0].source.notRequestPrincipals is about JWTs, {INSIDE_TLS}",
        ],
    ),
    "conditions that cannot be asked here": (
        (
            "  rules:\n  - when:\n"
            "    - {key: 'request.auth.claims[iss]', values: [a]}\n"
            "    - {key: 'request.headers[x]', values: [a]}\n"
            "    - {key: destination.ip, values: [10.0.0.1]}\n"
            "    - {key: 'experimental.envoy.filters.a.b[c]', values: [a]}"
        ),
        [
            f"7: {RULE}.when[0].key is 'request.auth.claims[iss]', which is about HTTP requests, {INSIDE_TLS}",
            f"8: {RULE}.when[1].key is 'request.headers[x]', which is about HTTP requests, {INSIDE_TLS}",
            (
                f"9: {RULE}.when[2].key is 'destination.ip', which is not known before the name is resolved; "
                "use connection.sni, or allow_networks"
            ),
            (
                f"10: {RULE}.when[3].key is 'experimental.envoy.filters.a.b[c]', which asks filters of Envoy, and "
                "there are none here; drop it"
            ),
        ],
    ),
    "conditions that nobody knows": (
        (
            "  rules:\n  - when:\n    - {key: conection.sni, values: [a]}\n"
            "    - {key: z, values: [a]}\n    - {values: [a]}"
        ),
        [
            (
                f"7: {RULE}.when[0].key is 'conection.sni', which is no condition of Istio's; "
                "did you mean 'connection.sni'?"
            ),
            (
                f"8: {RULE}.when[1].key is 'z', which is no condition of Istio's; write connection.sni, "
                "destination.port, remote.ip, source.ip, source.namespace, source.principal or source.serviceAccount"
            ),
            f"9: {RULE}.when[2] lacks the key 'key'; add it",
        ],
    ),
    "a condition that asks for nothing": (
        "  rules:\n  - when:\n    - {key: connection.sni}\n    - {key: connection.sni, values: [], notValues: []}",
        [
            f"7: {RULE}.when[0] asks for nothing; add values or notValues",
            f"8: {RULE}.when[1] asks for nothing; add values or notValues",
        ],
    ),
    "a selector with stars, or without text": (
        "  selector:\n    matchLabels:\n      app: 'a*'\n      version: 1\n  rules: [{}]",
        [
            "7: spec.selector.matchLabels.app has a star, and a selector takes none; write the label as it is",
            "8: spec.selector.matchLabels.version must be text, not 1; put it in quotes",
        ],
    ),
    "a selector that selects by expressions": (
        "  selector: {matchExpressions: []}\n  rules: [{}]",
        ["5: unknown key 'matchExpressions' in spec.selector; the keys here are matchLabels"],
    ),
    "no spec in its place": ("  - rules", ["4: spec must be a mapping of keys, not a list"]),
}


@pytest.mark.parametrize(("spec", "expected"), WRONG.values(), ids=WRONG)
def test_refuses_what_admission_refuses_and_what_tls_hides(spec: str, expected: list[str]) -> None:
    assert problems(policy(spec)) == expected


def test_the_problems_of_all_policies_come_at_once() -> None:
    text = policy("  action: CUSTOM", name="a") + policy("  action: DENY", name="b") + policy("  rules: []", name="c")
    assert [problem.partition(":")[0] for problem in problems(text)] == ["5", "10", "17"]


def test_a_spec_without_a_value_is_a_slip_and_no_allow_nothing() -> None:
    text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n"
    assert problems(text) == ["4: spec has no value; give it one, or drop it"]


def test_an_annotation_is_text() -> None:
    """As Kubernetes has it: a bare true is none."""
    assert problems(deny("", annotations="{istio.io/dry-run: true}")) == [
        "3: metadata.annotations['istio.io/dry-run'] must be text, not true; put it in quotes"
    ]


def test_a_rule_does_not_multiply_without_end() -> None:
    sources, operations = [
        "[" + ", ".join(f"{{{entry}}}" for number in range(101)) + "]"
        for entry in ("source: {namespaces: [a]}", "operation: {ports: ['1']}")
    ]
    assert problems(allow(f"from: {sources}, to: {operations}")) == [
        (
            "6: spec.rules[0] stands for 10,201 combinations of its from and to entries, and at most 10,000 are read; "
            "split it"
        )
    ]
    assert authorization_policy.MAX_CLAUSES == 10_000


def doubts(text: str, gateway: Gateway | None = None) -> list[str]:
    """The warnings, but for those that lints give to all rules."""
    told = [str(problem).removeprefix("a.yaml:") for problem in load(text, gateway).warnings]
    return [warning for warning in told if "spec" in warning or "metadata" in warning]


HTTP = "for it is about HTTP, which stays encrypted here; drop it, and name hosts by connection.sni"
DOUBTFUL = {
    "a rule that is dropped for HTTP": (
        allow("to: [{operation: {paths: [/a]}}]"),
        [
            (
                "6: spec.rules[0] allows nothing, for spec.rules[0].to[0].operation.paths is about HTTP, which stays "
                "encrypted here; drop it, and name hosts by connection.sni"
            )
        ],
    ),
    "fields that are ignored for HTTP": (
        deny("to: [{operation: {ports: ['443'], hosts: [a], notMethods: [GET]}}]"),
        [
            f"7: spec.rules[0].to[0].operation.hosts is ignored, {HTTP}",
            f"7: spec.rules[0].to[0].operation.notMethods is ignored, {HTTP}",
        ],
    ),
    "capitals in a name": (
        deny(sni("EN.wikipedia.org")),
        [
            (
                "7: spec.rules[0].when[0].values[0] is 'EN.wikipedia.org': Istio would never match it for its "
                "capitals, and here they do not count; write en.wikipedia.org"
            )
        ],
    ),
    "a bare star": (
        allow(sni("a.org, '*x.com'")),
        [
            (
                "6: spec.rules[0].when[0].values[1] is '*x.com', which evilx.com matches too; "
                "write *.x.com, and x.com beside it"
            )
        ],
    ),
    "a star in the middle": (
        deny(sni("'a.*.org'")),
        [
            (
                "7: spec.rules[0].when[0].values[0] never matches: a star is a pattern at one end only, and not in "
                "'a.*.org'; write *.wikipedia.org"
            )
        ],
    ),
    "names that no connection has": (
        deny(sni("'https://a.org', 8.8.8.8, '*.'")),
        [
            (
                f"7: spec.rules[0].when[0].values[{number}] never matches: {text} is no server name; "
                "write it as en.wikipedia.org or *.wikipedia.org"
            )
            for number, text in enumerate(["'https://a.org'", "'8.8.8.8'", "'*.'"])
        ],
    ),
    "the scheme of a principal": (
        deny(source("principals: ['spiffe://cluster.local/ns/default/sa/sleep']")),
        [
            (
                "7: spec.rules[0].from[0].source.principals[0] never matches: Istio compares principals without their "
                "scheme; write 'cluster.local/ns/default/sa/sleep'"
            )
        ],
    ),
    "principals that no caller has": (
        deny(source("principals: ['*/ns/*/sa/x', 'a b']")),
        [
            (
                "7: spec.rules[0].from[0].source.principals[0] never matches: a star is a pattern at one end only, and "
                "not in '*/ns/*/sa/x'; write cluster.local/ns/default/*"
            ),
            (
                "7: spec.rules[0].from[0].source.principals[1] never matches: 'a b' is no principal; "
                "write it as cluster.local/ns/default/sa/sleep"
            ),
        ],
    ),
    "a namespace that is none": (
        deny(source("namespaces: [Default, 'prod-*']")),
        [
            (
                "7: spec.rules[0].from[0].source.namespaces[0] never matches: 'Default' is no namespace; "
                "write up to 63 lower-case letters, digits and '-': default"
            )
        ],
    ),
    "a dry-run that Istio cannot read": (
        deny("", annotations="{istio.io/dry-run: 'yes'}"),
        [
            (
                "3: metadata.annotations['istio.io/dry-run'] is 'yes', which is no boolean, so that the policy is "
                "enforced; write 'true'"
            )
        ],
    ),
    "an AUDIT without rules": (
        policy("  action: AUDIT"),
        [
            (
                "4: spec has action AUDIT and no rules, and so audits nothing; "
                "add rules: [{}] for all connections, or drop the policy"
            )
        ],
    ),
    "a selector of nothing": (
        policy("  selector: {}\n  rules: [{}]"),
        ["5: spec.selector selects every workload, for it names no label; name one, or drop the selector"],
    ),
    "lists that ask for nothing": (
        allow(source("principals: [], namespaces: [default]") + ", when: []"),
        [
            "6: spec.rules[0].from[0].source.principals is empty and asks for nothing; fill it, or drop it",
            "6: spec.rules[0].when is empty and asks for nothing; fill it, or drop it",
        ],
    ),
    "nothing": (allow(sni("a.org, '*.b.org', 'www.*', '*-x.org', '*'")), []),
}


@pytest.mark.parametrize(("text", "expected"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_warns_of(text: str, expected: list[str]) -> None:
    assert doubts(text) == expected


def test_a_policy_that_is_not_in_force_is_not_doubted() -> None:
    """It decides nothing, and that is what its warning says."""
    (warning,) = load(deny(sni("EN.wikipedia.org"), namespace="elsewhere")).warnings
    assert "is not in force" in warning.message
