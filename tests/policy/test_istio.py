"""Istio's documents: which are read, which left alone and which refused; their namespaces, and which are in force."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.model import Gateway, Policy, PolicyFile
from sniproxy.config.yaml_source import BadInputError
from sniproxy.policy.documents import LoadedPolicy, load_policy
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Action, Ground


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a folder of its own, and its files in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*texts: str, gateway: Gateway | None = None, namespace: str | None = None) -> LoadedPolicy:
    """The files a.yaml, b.yaml ... with these texts, all given one namespace by the config."""
    files = []
    for letter, text in zip("abc", texts, strict=False):
        path = Path(f"{letter}.yaml")
        path.write_text(text)
        files.append((path, PolicyFile(path=path.name, namespace=namespace)))
    return load_policy(Policy(gateway=gateway or Gateway()), files)


def problems(*texts: str, namespace: str | None = None) -> list[str]:
    with pytest.raises(BadInputError) as caught:
        load(*texts, namespace=namespace)
    return [str(problem) for problem in caught.value.problems]


def warnings(loaded: LoadedPolicy) -> list[str]:
    return [str(warning) for warning in loaded.warnings]


def document(
    kind: str = "AuthorizationPolicy",
    version: str = "security.istio.io/v1",
    metadata: str = "{name: p}",
    spec: str = "{rules: [{}]}",
) -> str:
    """A document of five lines."""
    return f"apiVersion: {version}\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}\n---\n"


ENTRY = "{hosts: [a.org], ports: [{number: 443, name: tls}]}"

VERSIONS = {
    ("AuthorizationPolicy", "security.istio.io/v1"): "{rules: [{}]}",
    ("AuthorizationPolicy", "security.istio.io/v1beta1"): "{rules: [{}]}",
    ("ServiceEntry", "networking.istio.io/v1"): ENTRY,
    ("ServiceEntry", "networking.istio.io/v1beta1"): ENTRY,
    ("ServiceEntry", "networking.istio.io/v1alpha3"): ENTRY,
}


@pytest.mark.parametrize(("kind", "version"), VERSIONS)
def test_policies_and_service_entries_are_read_in_each_of_their_versions(kind: str, version: str) -> None:
    loaded = load(document(kind, version, spec=VERSIONS[kind, version]))
    assert [rule.action for rule in loaded.rulebook.rules] == [
        Action.ALLOW if kind == "AuthorizationPolicy" else Action.REGISTER
    ]


def test_every_rule_knows_its_policy_its_number_and_its_line() -> None:
    text = document(spec="\n  rules:\n  - {}\n  - {}") + document(metadata="{name: q}", spec="{}")
    assert [rule.ground for rule in load(text).rulebook.rules] == [
        Ground("ns[istio-system]-policy[p]", "0", "a.yaml", 6),
        Ground("ns[istio-system]-policy[p]", "1", "a.yaml", 7),
        Ground("ns[istio-system]-policy[q]", "none", "a.yaml", 12),
    ]


def test_a_list_holds_documents_as_kubectl_prints_them() -> None:
    text = """\
apiVersion: v1
kind: List
metadata: {resourceVersion: ""}
items:
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata:
    name: p
    namespace: istio-system
    creationTimestamp: null
    managedFields: [{manager: kubectl}]
    uid: 5bd4a7a6-9d23-4a59-8a06-4cbb1b6f3c7e
  spec: {rules: [{}]}
  status: {conditions: []}
- apiVersion: v1
  kind: Namespace
  metadata: {name: default}
"""
    loaded = load(text)
    assert [rule.ground.line for rule in loaded.rulebook.rules] == [13]
    assert loaded.ignored == ("1 Namespace (v1)",)


def test_what_is_in_a_list_is_refused_with_its_path() -> None:
    assert problems("apiVersion: v1\nkind: List\nitems:\n- 3\n- {apiVersion: v1}\n") == [
        "a.yaml:4: items[0] must be a document of Kubernetes, not 3",
        "a.yaml:5: items[1] lacks the key 'kind'; add it",
    ]


LEFT_ALONE = {
    "networking.istio.io/v1beta1": ("DestinationRule", "Gateway", "VirtualService", "Sidecar", "WorkloadEntry"),
    "networking.istio.io/v1alpha3": ("EnvoyFilter", "WorkloadGroup", "ProxyConfig"),
    "telemetry.istio.io/v1": ("Telemetry",),
    "extensions.istio.io/v1alpha1": ("WasmPlugin",),
    "gateway.networking.k8s.io/v1": ("HTTPRoute",),
    "networking.k8s.io/v1": ("NetworkPolicy",),
    "apps/v1": ("Deployment",),
    "v1": ("ConfigMap", "Namespace", "Service", "ServiceAccount"),
}


@pytest.mark.parametrize(("version", "kinds"), LEFT_ALONE.items())
def test_other_kinds_of_a_mesh_are_counted_and_left_alone(version: str, kinds: tuple[str, ...]) -> None:
    """Whatever is in them."""
    loaded = load(*["".join(document(kind, version, "3", "x") for kind in kinds)] * 2)
    assert (loaded.rulebook.rules, loaded.warnings) == ((), ())
    assert loaded.ignored == tuple(f"2 {kind} ({version})" for kind in sorted(kinds))


def test_many_kinds_are_counted_together() -> None:
    loaded = load("".join(document(f"Kind{number:03}", "v1") for number in range(103)))
    assert (len(loaded.ignored), loaded.ignored[0], loaded.ignored[-1]) == (101, "1 Kind000 (v1)", "3 of other kinds")


def test_what_could_be_taken_for_a_protection_is_left_alone_with_a_warning() -> None:
    loaded = load(document("PeerAuthentication") + document("RequestAuthentication"))
    assert warnings(loaded) == [
        (
            "a.yaml:2: kind PeerAuthentication decides nothing here: mTLS is for the gateway in front of sniproxy to "
            "ask for; see policy.require_identity"
        ),
        (
            "a.yaml:7: kind RequestAuthentication decides nothing here: JWTs travel inside TLS, which sniproxy does "
            "not open; enforce it where TLS ends"
        ),
    ]
    assert loaded.ignored == (
        "1 PeerAuthentication (security.istio.io/v1)",
        "1 RequestAuthentication (security.istio.io/v1)",
    )


UNKNOWN_GROUP = (
    "is of an API group that is not known here; write an AuthorizationPolicy, or keep the document in a file that "
    "policy.files does not name"
)
OBJECT_NAME = "names no object; write up to 253 lower-case letters, digits, '-' and '.'"
NAMESPACE = "is no namespace; write up to 63 lower-case letters, digits and '-': default"

WRONG = {
    "a kind with a slip in it": (
        document("AuthorisationPolicy"),
        [
            (
                "a.yaml:2: kind 'AuthorisationPolicy' is no kind of security.istio.io that is known here; "
                "did you mean 'AuthorizationPolicy'?"
            )
        ],
    ),
    "a kind that nobody knows": (
        document("Xyz", "networking.istio.io/v1"),
        [
            (
                "a.yaml:2: kind 'Xyz' is no kind of networking.istio.io that is known here; write AuthorizationPolicy, "
                "DestinationRule, EnvoyFilter, Gateway, ProxyConfig, ServiceEntry, Sidecar, VirtualService, "
                "WorkloadEntry or WorkloadGroup"
            )
        ],
    ),
    "a policy of another group": (
        document(version="networking.istio.io/v1"),
        [
            (
                "a.yaml:1: apiVersion of AuthorizationPolicy must be security.istio.io/v1 or "
                "security.istio.io/v1beta1, not 'networking.istio.io/v1'"
            )
        ],
    ),
    "a policy of a version that never was": (
        document(version="security.istio.io/v2"),
        [
            (
                "a.yaml:1: apiVersion of AuthorizationPolicy must be security.istio.io/v1 or "
                "security.istio.io/v1beta1, not 'security.istio.io/v2'"
            )
        ],
    ),
    "the policies of Mixer": (
        document("listchecker", "config.istio.io/v1alpha2"),
        [f"a.yaml:1: apiVersion 'config.istio.io/v1alpha2' {UNKNOWN_GROUP}"],
    ),
    "a group of somebody else": (
        document("Policy", "example.org/v1"),
        [f"a.yaml:1: apiVersion 'example.org/v1' {UNKNOWN_GROUP}"],
    ),
    "a version of no group but the first": (
        document("Policy", "v2"),
        [f"a.yaml:1: apiVersion 'v2' {UNKNOWN_GROUP}"],
    ),
    "annotations that are none": (
        document(metadata="{name: p, annotations: [istio.io/dry-run]}"),
        ["a.yaml:3: metadata.annotations must be a mapping of keys, not a list"],
    ),
    "no kind": ("apiVersion: v1\n", ["a.yaml:1: lacks the key 'kind'; add it"]),
    "a kind without a value": (
        "apiVersion: v1\nkind:\n",
        ["a.yaml:2: kind has no value; give it one, or drop it"],
    ),
    "a kind that is no text": ("apiVersion: v1\nkind: 3\n", ["a.yaml:2: kind must be text, not 3; put it in quotes"]),
    "no metadata": (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nspec: {}\n",
        ["a.yaml:1: lacks the key 'metadata'; add it"],
    ),
    "no name": (document(metadata="{}"), ["a.yaml:3: metadata lacks the key 'name'; add it"]),
    "names that are none": (
        document(metadata="{name: My Policy, namespace: My}"),
        [
            f"a.yaml:3: metadata.name: 'My Policy' {OBJECT_NAME}",
            f"a.yaml:3: metadata.namespace: 'My' {NAMESPACE}",
        ],
    ),
    "a name that is a number": (document(metadata="{name: 3}"), [f"a.yaml:3: metadata.name: 3 {OBJECT_NAME}"]),
    "a slip in metadata, which would enforce what was to be tried": (
        document(metadata="{name: p, annotation: {istio.io/dry-run: 'true'}}"),
        ["a.yaml:3: unknown key 'annotation' in metadata; did you mean 'annotations'?"],
    ),
    "a slip at the top": (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspecs: {}\n",
        ["a.yaml:4: unknown key 'specs'; did you mean 'spec'?"],
    ),
    "an entry without a spec": (
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: p}\n",
        ["a.yaml:1: lacks the key 'spec'; add it"],
    ),
    "two of one name": (
        document() + document(),
        ["a.yaml:8: AuthorizationPolicy istio-system/p is at a.yaml:3 too; rename one, or drop it"],
    ),
    "two of one name, in two versions": (
        document(version="security.istio.io/v1beta1") + document(metadata="{name: p, namespace: istio-system}"),
        ["a.yaml:8: AuthorizationPolicy istio-system/p is at a.yaml:3 too; rename one, or drop it"],
    ),
    "several documents": (
        document("X", "a.b/v1") + document(metadata="{}") + document(spec="{action: CUSTOM}"),
        [
            f"a.yaml:1: apiVersion 'a.b/v1' {UNKNOWN_GROUP}",
            "a.yaml:8: metadata lacks the key 'name'; add it",
            (
                "a.yaml:14: spec.action is CUSTOM, where another service decides, which is not supported; "
                "use ALLOW, DENY or AUDIT"
            ),
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_says_what_is_wrong_and_how_to_mend_it(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_two_of_one_name_in_two_files() -> None:
    assert problems(document(), document()) == [
        "b.yaml:3: AuthorizationPolicy istio-system/p is at a.yaml:3 too; rename one, or drop it"
    ]


def test_one_name_serves_in_two_namespaces_and_for_two_kinds() -> None:
    text = (
        document()
        + document(metadata="{name: p, namespace: istio-system}")
        + document("ServiceEntry", "networking.istio.io/v1", spec=ENTRY)
    )
    assert len(load(text, gateway=Gateway(namespace="other")).rulebook.rules) == 3


# Namespaces, as `kubectl -n` gives them.


def namespaces(text: str, given: str | None, gateway: Gateway | None = None) -> list[str]:
    return [rule.ground.policy for rule in load(text, gateway=gateway, namespace=given).rulebook.rules]


def test_a_document_without_a_namespace_is_in_that_of_its_file() -> None:
    assert namespaces(document(), "egress", Gateway(namespace="egress")) == ["ns[egress]-policy[p]"]


def test_or_else_in_that_of_the_gateway() -> None:
    assert namespaces(document(), None, Gateway(namespace="egress")) == ["ns[egress]-policy[p]"]


def test_a_document_that_says_its_own_may_agree_with_its_file() -> None:
    text = document(metadata="{name: p, namespace: istio-system}")
    assert namespaces(text, "istio-system") == ["ns[istio-system]-policy[p]"]


def test_but_not_disagree_as_with_kubectl() -> None:
    assert problems(document(metadata="{name: p, namespace: default}"), namespace="otherns") == [
        (
            "a.yaml:3: metadata.namespace is default, and the config gives this file the namespace otherns; "
            "change one of the two, or drop it"
        )
    ]


# Scope: which policies are in force for the gateway.

LABELS = {"istio": "egressgateway", "app": "proxy"}
SCOPE: dict[str, tuple[str, str, Gateway, bool]] = {
    "the gateway's own namespace": ("egress", "{}", Gateway(namespace="egress"), True),
    "the root namespace": ("istio-system", "{}", Gateway(namespace="egress"), True),
    "another root namespace": ("mesh", "{}", Gateway(namespace="egress", root_namespace="mesh"), True),
    "what is no longer the root namespace": (
        "istio-system",
        "{}",
        Gateway(namespace="egress", root_namespace="mesh"),
        False,
    ),
    "any other namespace": ("default", "{}", Gateway(namespace="egress"), False),
    "a selector of one of the gateway's labels": (
        "istio-system",
        "{selector: {matchLabels: {app: proxy}}}",
        Gateway(labels=LABELS),
        True,
    ),
    "a selector of all of them": (
        "istio-system",
        "{selector: {matchLabels: {app: proxy, istio: egressgateway}}}",
        Gateway(labels=LABELS),
        True,
    ),
    "a selector of one that the gateway has otherwise": (
        "istio-system",
        "{selector: {matchLabels: {app: proxy, istio: ingressgateway}}}",
        Gateway(labels=LABELS),
        False,
    ),
    "a selector of one that it has not": (
        "istio-system",
        "{selector: {matchLabels: {version: v1}}}",
        Gateway(labels=LABELS),
        False,
    ),
    "a selector of no label": ("istio-system", "{selector: {matchLabels: {}}}", Gateway(labels=LABELS), True),
    "a selector in another namespace": (
        "default",
        "{selector: {matchLabels: {app: proxy}}}",
        Gateway(labels=LABELS),
        False,
    ),
}


@pytest.mark.parametrize(("namespace", "spec", "gateway", "is_in_force"), SCOPE.values(), ids=SCOPE)
def test_a_policy_is_in_force_for_the_gateway(namespace: str, spec: str, gateway: Gateway, is_in_force: bool) -> None:
    loaded = load(document(metadata=f"{{name: p, namespace: {namespace}}}", spec=spec), gateway=gateway)
    assert bool(loaded.rulebook.rules) is is_in_force
    assert any("is not in force" in warning for warning in warnings(loaded)) is not is_in_force


def test_a_policy_that_is_not_in_force_says_why() -> None:
    text = document(metadata="{name: p, namespace: default}") + document(
        metadata="{name: q}", spec="{selector: {matchLabels: {app: x}}}"
    )
    assert warnings(load(text, gateway=Gateway(namespace="egress"))) == [
        (
            "a.yaml:1: AuthorizationPolicy default/p is not in force: it is not in egress or istio-system; "
            "move it there, or mend policy.gateway in the config"
        ),
        (
            "a.yaml:6: AuthorizationPolicy egress/q is not in force: the gateway has no label app: x; "
            "mend the selector, or policy.gateway.labels"
        ),
    ]


def test_what_is_wrong_with_a_policy_that_is_not_in_force_is_refused_all_the_same() -> None:
    """It would be in force with the next label."""
    assert len(problems(document(metadata="{name: p, namespace: default}", spec="{action: CUSTOM}"))) == 1


def test_entries_count_in_every_namespace() -> None:
    loaded = load(document("ServiceEntry", "networking.istio.io/v1", "{name: p, namespace: default}", ENTRY))
    assert [rule.ground.policy for rule in loaded.rulebook.rules] == ["ns[default]-serviceentry[p]"]


# Whatever is in a document.

WORDS = [
    *("apiVersion", "kind", "metadata", "spec", "items", "name", "namespace", "annotations", "istio.io/dry-run"),
    *("selector", "matchLabels", "action", "rules", "from", "to", "when", "source", "operation", "key", "values"),
    *("notValues", "principals", "notPrincipals", "namespaces", "serviceAccounts", "ipBlocks", "ports", "paths"),
    *("hosts", "exportTo", "number", "location", "requestPrincipals", "targetRef", "app"),
]
TEXTS = [
    *("security.istio.io/v1", "networking.istio.io/v1", "v1", "a.b/c", "AuthorizationPolicy", "ServiceEntry", "List"),
    *("DENY", "CUSTOM", "connection.sni", "source.principal", "source.ip", "destination.port", "request.headers[x]"),
    *("*", "a.org", "*.org", "443", "10.0.0.0/8", "a/b", "td/ns/a/sa/b", ".", "~", "", "true"),
]
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=30,
)
SPECS = {"AuthorizationPolicy": "security.istio.io/v1", "ServiceEntry": "networking.istio.io/v1"}


def is_read_or_refused(kind: str, metadata: object, spec: object) -> None:
    """Each problem is one line, and what is read can be compiled."""
    tree = {"apiVersion": SPECS[kind], "kind": kind, "metadata": metadata, "spec": spec}
    told: list[str] = []
    try:
        Engine.of(load(json.dumps(tree)).rulebook)  # JSON is YAML
    except BadInputError as error:
        told = [str(problem) for problem in error.problems]
    assert [problem for problem in told if len(problem.splitlines()) != 1] == []


@given(st.sampled_from(list(SPECS)), TREES, TREES)
def test_any_values_at_known_keys_are_read_or_refused(kind: str, metadata: object, spec: object) -> None:
    is_read_or_refused(kind, metadata, spec)


RULES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "from": st.lists(st.fixed_dictionaries({"source": TREES}), max_size=2),
            "to": st.lists(st.fixed_dictionaries({"operation": TREES}), max_size=2),
            "when": st.lists(
                st.fixed_dictionaries({"key": st.sampled_from(TEXTS)}, optional={"values": TREES, "notValues": TREES}),
                max_size=2,
            ),
        },
    ),
    max_size=2,
)


@given(RULES)
def test_and_so_are_those_of_rules(rules: object) -> None:
    is_read_or_refused("AuthorizationPolicy", {"name": "p"}, {"rules": rules})
