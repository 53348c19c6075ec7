"""ServiceEntry: which hosts are registered, at which ports and for whom; and what is refused, with its mend."""

from pathlib import Path

import pytest

from sniproxy.config.model import Policy, PolicyFile
from sniproxy.config.yaml_source import BadInputError
from sniproxy.identity.spiffe import UNKNOWN, parse_principal
from sniproxy.names import parse_server_name
from sniproxy.outcome import Reason
from sniproxy.policy.documents import LoadedPolicy, load_policy
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Allowed, Denied, Request


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a folder of its own, and its file in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*specs: str, namespace: str = "default") -> LoadedPolicy:
    """Entries of a namespace, each of seven lines with its spec on the fifth, where all else is allowed."""
    path = Path("a.yaml")
    path.write_text(
        "default: allow\n"
        + "".join(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n"
            f"metadata: {{name: entry-{number}, namespace: {namespace}}}\nspec:\n{spec}\n"
            for number, spec in enumerate(specs)
        )
    )
    return load_policy(Policy(registry="only"), [(path, PolicyFile(path="a.yaml"))])


PORTS = "ports: [{number: 443, name: tls, protocol: TLS}]"


def is_seen(caller: str, name: str, port: int, *specs: str) -> bool:
    """Whether a caller, who is the namespace of one or nobody, may reach a name at a port."""
    identity = UNKNOWN if caller == "nobody" else parse_principal(f"cluster.local/ns/{caller}/sa/sleep")
    request = Request(parse_server_name(name.encode()), identity, "", port=port)
    return isinstance(Engine.of(load(*specs).rulebook).decide(request), Allowed)


# What a caller reaches with one entry, of the namespace default.
TABLE: dict[str, tuple[str, list[str], list[str]]] = {
    "a host that an entry has, and no other": (
        f"  hosts: [a.org, B.org.]\n  {PORTS}",
        ["default a.org", "default b.org"],
        ["default c.org", "default x.a.org"],
    ),
    "a wildcard: names at any depth, and not itself": (
        f"  hosts: ['*.a.org']\n  {PORTS}",
        ["default x.a.org", "default x.y.a.org"],
        ["default a.org"],
    ),
    "at its ports": (
        "  hosts: [a.org]\n  ports: [{number: 80, name: http}, {number: 443, name: tls}]",
        ["default a.org 443", "default a.org 80"],
        ["default a.org 8443"],
    ),
    "without exportTo, for all": (f"  hosts: [a.org]\n  {PORTS}", ["default a.org", "other a.org", "nobody a.org"], []),
    "exported to '*', for all": (
        f"  hosts: [a.org]\n  exportTo: ['*']\n  {PORTS}",
        ["default a.org", "other a.org", "nobody a.org"],
        [],
    ),
    "exported to an empty list, for all, as Istio has it": (
        f"  hosts: [a.org]\n  exportTo: []\n  {PORTS}",
        ["other a.org"],
        [],
    ),
    "exported to '.', for its own namespace": (
        f"  hosts: [a.org]\n  exportTo: ['.']\n  {PORTS}",
        ["default a.org"],
        ["other a.org", "nobody a.org"],
    ),
    "exported to a list, for those alone": (
        f"  hosts: [a.org]\n  exportTo: [other, third]\n  {PORTS}",
        ["other a.org", "third a.org"],
        ["default a.org", "nobody a.org"],
    ),
    "exported to a list with its own": (
        f"  hosts: [a.org]\n  exportTo: [other, '.']\n  {PORTS}",
        ["other a.org", "default a.org"],
        ["third a.org"],
    ),
    "exported to '~', for none": (f"  hosts: [a.org]\n  exportTo: ['~']\n  {PORTS}", [], ["default a.org"]),
    "without ports, nothing": ("  hosts: [a.org]", [], ["default a.org"]),
    "what else an entry has is not judged": (
        (
            f"  hosts: [a.org]\n  {PORTS}\n  addresses: [10.0.0.0/8]\n  location: MESH_INTERNAL\n  resolution: STATIC\n"
            "  endpoints: [{address: 10.1.1.1}]\n  workloadSelector: {labels: {a: b}}\n  subjectAltNames: [x]"
        ),
        ["default a.org"],
        [],
    ),
}


@pytest.mark.parametrize(("spec", "seen", "unseen"), TABLE.values(), ids=TABLE)
def test_registers(spec: str, seen: list[str], unseen: list[str]) -> None:
    answers = {}
    for query in (*seen, *unseen):
        caller, name, *port = query.split()
        answers[query] = is_seen(caller, name, int(port[0]) if port else 443, spec)
    assert answers == dict.fromkeys(seen, True) | dict.fromkeys(unseen, False)


def test_a_host_that_no_entry_has_is_refused_by_the_registry() -> None:
    engine = Engine.of(load(f"  hosts: [a.org]\n  {PORTS}").rulebook)
    decision = engine.decide(Request(parse_server_name(b"b.org"), UNKNOWN, ""))
    assert isinstance(decision, Denied)
    assert decision.reason is Reason.REGISTRY


def test_entries_are_alternatives() -> None:
    specs = (f"  hosts: [a.org]\n  exportTo: [x]\n  {PORTS}", f"  hosts: [a.org]\n  exportTo: [y]\n  {PORTS}")
    assert [is_seen(caller, "a.org", 443, *specs) for caller in ("x", "y", "z")] == [True, True, False]


def problems(spec: str) -> list[str]:
    with pytest.raises(BadInputError) as caught:
        load(spec)
    return [str(problem).removeprefix("a.yaml:") for problem in caught.value.problems]


NAME = "write en.wikipedia.org, *.wikipedia.org or *"

# What is wrong with a spec, whose first line is the seventh.
WRONG = {
    "no hosts": (f"  {PORTS}", ["6: spec lacks the key 'hosts'; add it"]),
    "an empty list of them": (f"  hosts: []\n  {PORTS}", ["7: spec.hosts is empty; fill it, or drop it"]),
    "hosts that are none": (
        f"  hosts: ['*', '*x.org', 'a b', 8.8.8.8, 3]\n  {PORTS}",
        [
            "7: spec.hosts[0]: '*' would register every host; write en.wikipedia.org or *.wikipedia.org",
            (
                "7: spec.hosts[1]: '*x.org' is no pattern; a star stands alone, or first with a dot behind it: "
                "*.wikipedia.org"
            ),
            f"7: spec.hosts[2]: 'a b' is not a DNS host name; {NAME}",
            (
                "7: spec.hosts[3]: '8.8.8.8' is an IP address, and a server name is a DNS host name "
                f"(RFC 6066 section 3); {NAME}"
            ),
            "7: spec.hosts[4]: 3 is not text; put it in quotes",
        ],
    ),
    "ports that are none": (
        (
            "  hosts: [a.org]\n  ports:\n"
            "  - {number: '443', name: a}\n  - {number: 0, name: b}\n  - {name: c}\n  - {number: 1}"
        ),
        [
            "9: spec.ports[0].number must be a whole number, not '443'; take the quotes off",
            "10: spec.ports[1].number must be at least 1, not 0",
            "11: spec.ports[2] lacks the key 'number'; add it",
            "12: spec.ports[3] lacks the key 'name'; add it",
        ],
    ),
    "a port twice": (
        "  hosts: [a.org]\n  ports: [{number: 443, name: a}, {number: 443, name: b}]",
        ["8: spec.ports[1] has the number 443 of spec.ports[0]; drop one"],
    ),
    "words that are none": (
        f"  hosts: [a.org]\n  {PORTS}\n  location: OUTSIDE\n  resolution: DOH",
        [
            "9: spec.location must be MESH_EXTERNAL or MESH_INTERNAL, not 'OUTSIDE'",
            "10: spec.resolution must be NONE, STATIC, DNS, DNS_ROUND_ROBIN or DYNAMIC_DNS, not 'DOH'",
        ],
    ),
    "namespaces that are none": (
        f"  hosts: [a.org]\n  {PORTS}\n  exportTo: ['team-*', 3]",
        [
            "9: spec.exportTo[0]: 'team-*' is no namespace; write its name, '.', '*' or '~'",
            "9: spec.exportTo[1]: 3 is no namespace; write its name, '.', '*' or '~'",
        ],
    ),
    "a namespace twice": (
        f"  hosts: [a.org]\n  {PORTS}\n  exportTo: ['.', default]",
        ["9: spec.exportTo names 'default' twice; drop one"],
    ),
    "all, and some": (
        f"  hosts: [a.org]\n  {PORTS}\n  exportTo: ['*', other]",
        ["9: spec.exportTo has '*', which is all namespaces, beside others; keep one or the other"],
    ),
    "none, and some": (
        f"  hosts: [a.org]\n  {PORTS}\n  exportTo: [other, '~']",
        ["9: spec.exportTo has '~', which is none, beside others; keep one or the other"],
    ),
    "an unknown field": (
        f"  hosts: [a.org]\n  {PORTS}\n  export_to: ['.']",
        ["9: unknown key 'export_to' in spec; did you mean 'exportTo'?"],
    ),
    "no spec in its place": ("  - a", ["6: spec must be a mapping of keys, not a list"]),
}


@pytest.mark.parametrize(("spec", "expected"), WRONG.values(), ids=WRONG)
def test_says_what_is_wrong_and_how_to_mend_it(spec: str, expected: list[str]) -> None:
    assert problems(spec) == expected


DOUBTFUL = {
    "no ports": ("  hosts: [a.org]", "spec has no ports, and so registers nothing; add ports"),
    "an empty exportTo": (
        f"  hosts: [a.org]\n  {PORTS}\n  exportTo: []",
        "spec.exportTo is empty, which exports to all namespaces; write ['*'], or drop it",
    ),
}


@pytest.mark.parametrize(("spec", "expected"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_warns_of(spec: str, expected: str) -> None:
    assert [warning.message for warning in load(spec).warnings] == [expected]
