"""Istio's documents, as `kubectl get -o yaml` gives them: which of them decide here, and in which namespace.

AuthorizationPolicy and ServiceEntry are read. The kinds that configure other parts of a mesh or of a cluster are
counted and left alone, since operators keep them in one folder. Anything else is refused: a kind with a slip in its
name must not be a policy that silently is none.

Namespaces are given as `kubectl -n` gives them, and which policies are in force is what Istio says of a workload with
the gateway's namespace and labels (pilot/pkg/model/authorization.go in github.com/istio/istio).
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sniproxy.config.fields import Notes, Value, listed, nearest
from sniproxy.config.model import Gateway
from sniproxy.config.units import parse_namespace, show
from sniproxy.policy.authorization_policy import AuthorizationPolicy, TrustDomains
from sniproxy.policy.model import Action, Ground, Rule
from sniproxy.policy.service_entry import registration

_VERSIONS = {
    "AuthorizationPolicy": ("security.istio.io/v1", "security.istio.io/v1beta1"),
    "ServiceEntry": ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"),
}

# Kinds that decide nothing here. One of these groups that is not listed is a slip, or newer than this list.
_IGNORED: dict[str, tuple[str, ...]] = {
    "networking.istio.io": (
        "DestinationRule",
        "EnvoyFilter",
        "Gateway",
        "ProxyConfig",
        "Sidecar",
        "VirtualService",
        "WorkloadEntry",
        "WorkloadGroup",
    ),
    "security.istio.io": ("PeerAuthentication", "RequestAuthentication"),
    "telemetry.istio.io": ("Telemetry",),
    "extensions.istio.io": ("TrafficExtension", "WasmPlugin"),
    "install.istio.io": ("IstioOperator",),
}
# Those of them that an operator could take for a protection.
_UNHEEDED = {
    "PeerAuthentication": "mTLS is for the gateway in front of sniproxy to ask for; see policy.require_identity",
    "RequestAuthentication": "JWTs travel inside TLS, which sniproxy does not open; enforce it where TLS ends",
}
# More kinds than that are counted together.
_MAX_IGNORED = 100

# Groups of Kubernetes itself, beside the first, which has no name, and those under k8s.io.
_KUBERNETES = ("apps", "autoscaling", "batch", "extensions", "policy")


class IstioDocuments:
    """Reads documents one by one, and gives each of their rules to `keep`, with whether it is in force."""

    def __init__(self, gateway: Gateway, notes: Notes, keep: Callable[[Rule, bool], None]) -> None:
        self._keep = keep
        self._gateway = gateway
        self._notes = notes
        self._domains = TrustDomains(gateway.trust_domain, gateway.trust_domain_aliases)
        self._places: dict[tuple[str, str, str], str] = {}
        self._ignored: Counter[str] = Counter()

    def ignored(self) -> tuple[str, ...]:
        """What was there and decides nothing, counted: "2 VirtualService (networking.istio.io/v1)"."""
        return tuple(f"{count} {kind}" for kind, count in sorted(self._ignored.items()))

    def add(self, document: Value, namespace: str | None) -> None:
        """Read one document. `namespace` is what `kubectl -n` would have given it."""
        if not isinstance(document.node.value, dict):
            document.refuse(f"must be a document of Kubernetes, not {show(document.node.value)}")
            return
        head = document.keys(("apiVersion", "kind"), required=("apiVersion", "kind"), others=True)
        if len(head) < 2:
            return
        version, kind = head["apiVersion"], head["kind"]
        if not version.text() or not kind.text():
            return
        if (version.node.value, kind.node.value) == ("v1", "List"):
            self._add_list(document, namespace)
        elif kind.node.value in _VERSIONS:
            self._add_istio(document, version, kind.text(), namespace)
        else:
            self._ignore(version, kind)

    def _add_list(self, document: Value, namespace: str | None) -> None:
        """What `kubectl get` prints for several objects."""
        fields = document.keys(("apiVersion", "kind", "metadata", "items"), required=("items",))
        for item in fields["items"].items() if "items" in fields else ():
            self.add(item, namespace)

    def _ignore(self, version: Value, kind: Value) -> None:
        group = version.text().rpartition("/")[0]
        known = _IGNORED.get(group)
        is_kubernetes = version.text() == "v1" or group in _KUBERNETES or group.endswith(".k8s.io")
        if known is None and not is_kubernetes:
            mend = "write an AuthorizationPolicy, or keep the document in a file that policy.files does not name"
            version.refuse(f"{show(version.text())} is of an API group that is not known here; {mend}")
        elif known is not None and kind.text() not in known:
            mend = nearest(kind.text(), [*_VERSIONS, *known])
            kind.refuse(f"{show(kind.text())} is no kind of {group} that is known here; {mend}")
        else:
            if kind.text() in _UNHEEDED:
                kind.warn(f"{kind.text()} decides nothing here: {_UNHEEDED[kind.text()]}")
            name = f"{kind.text()} ({version.text()})"
            self._ignored[name if name in self._ignored or len(self._ignored) < _MAX_IGNORED else "of other kinds"] += 1

    def _add_istio(self, document: Value, version: Value, kind: str, namespace: str | None) -> None:
        if version.node.value not in _VERSIONS[kind]:
            version.refuse(f"of {kind} must be {listed(_VERSIONS[kind])}, not {show(version.node.value)}")
            return
        fields = document.keys(("apiVersion", "kind", "metadata", "spec", "status"), required=("metadata",))
        if "metadata" not in fields:
            return
        metadata = _metadata(fields["metadata"], namespace, self._gateway.namespace)
        self._claim(kind, metadata)
        if kind == "AuthorizationPolicy":
            self._add_policy(document, metadata)
        else:
            self._add_entry(document, fields.get("spec"), metadata)

    def _claim(self, kind: str, metadata: "_Metadata") -> None:
        """Two documents of one name are two versions of one object, and a cluster would keep the last."""
        place = metadata.value
        here = f"{place.file}:{place.line}"
        first = self._places.setdefault((kind, metadata.namespace, metadata.name), here)
        if first is not here and metadata.name:
            name = f"{kind} {metadata.namespace}/{metadata.name}"
            self._notes.problem(place.file, place.line, f"{name} is at {first} too; rename one, or drop it")

    def _add_policy(self, document: Value, metadata: "_Metadata") -> None:
        policy = AuthorizationPolicy(document, metadata.name, metadata.namespace, metadata.annotations, self._domains)
        outside = self._why_not_in_force(metadata, policy.selected)
        for rule in policy.rules():
            self._keep(rule, not outside)
        if outside:
            name = f"{metadata.namespace}/{metadata.name}"
            document.warn(f"AuthorizationPolicy {name} is not in force: {outside}")
            return
        for value, sentence in policy.doubts:
            value.warn(sentence)

    def _why_not_in_force(self, metadata: "_Metadata", selected: dict[str, str]) -> str:
        """Policies hold for the workloads of their own namespace, and those of the root namespace for all."""
        own, root = self._gateway.namespace, self._gateway.root_namespace
        if metadata.namespace not in (own, root):
            here = own if own == root else f"{own} or {root}"
            return f"it is not in {here}; move it there, or mend policy.gateway in the config"
        for key, value in selected.items():
            if self._gateway.labels.get(key) != value:
                return f"the gateway has no label {key}: {value}; mend the selector, or policy.gateway.labels"
        return ""

    def _add_entry(self, document: Value, spec: Value | None, metadata: "_Metadata") -> None:
        ground = Ground(f"ns[{metadata.namespace}]-serviceentry[{metadata.name}]", "0", document.file, document.line)
        if spec is not None:
            self._keep(Rule(ground, Action.REGISTER, registration(spec, metadata.namespace)), True)
        elif document.node.child("spec") is None:
            document.refuse("lacks the key 'spec'; add it")


# What every object has (ObjectMeta of k8s.io/apimachinery). Most of it is written by the cluster.
_OBJECT_META = (
    "name",
    "namespace",
    "annotations",
    "labels",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)


@dataclass(frozen=True, slots=True)
class _Metadata:
    """What an object is called, and where it belongs."""

    value: Value
    name: str
    namespace: str
    annotations: dict[str, Value]


def _metadata(value: Value, given: str | None, default: str) -> _Metadata:
    """`given` is the namespace that the config gives the file, `default` the gateway's."""
    fields = value.keys(_OBJECT_META, required=("name",), nullable=_OBJECT_META[2:])
    name = fields["name"].parsed(_object_name) if "name" in fields else None
    namespace = fields["namespace"].parsed(parse_namespace) if "namespace" in fields else None
    if namespace and given and namespace != given:
        mend = "change one of the two, or drop it"
        fields["namespace"].refuse(f"is {namespace}, and the config gives this file the namespace {given}; {mend}")
    annotations = fields["annotations"].texts() if "annotations" in fields else {}
    return _Metadata(value, name or "", namespace or given or default, annotations)


def _object_name(value: object) -> str:
    if not isinstance(value, str) or not _OBJECT_NAME.fullmatch(value):
        raise ValueError(f"{show(value)} names no object; write up to 253 lower-case letters, digits, '-' and '.'")
    return value


# RFC 1123, as Kubernetes has it for most names.
_OBJECT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
