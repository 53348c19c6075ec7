"""What Istio makes of the chart's objects, as Envoy's configuration: the egress gateway, and a sidecar in front of it.

Written after what istiod 1.31 sends for these objects: names, filter chains, and the patches of an EnvoyFilter, which
are applied here as they are there. Certificates come from files in place of SDS. It knows what the chart uses and no
more: a patch that matches nothing, or an operation that it does not know, is an error, so that the chart cannot change
unseen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.helm import Document, Rendered

TYPES = "type.googleapis.com/envoy.extensions"
TLS_INSPECTOR = "envoy.filters.listener.tls_inspector"
TCP_PROXY = "envoy.filters.network.tcp_proxy"


@dataclass(frozen=True)
class Credentials:
    """PEM files. Without a certificate of its own, one side of the TLS connection stays unknown."""

    authority: Path
    certificate: Path | None = None
    key: Path | None = None

    @property
    def common(self) -> Document:
        context: Document = {"validation_context": {"trusted_ca": {"filename": str(self.authority)}}}
        if self.certificate and self.key:
            certificate, key = {"filename": str(self.certificate)}, {"filename": str(self.key)}
            context["tls_certificates"] = [{"certificate_chain": certificate, "private_key": key}]
        return context


def gateway(rendered: Rendered, credentials: Credentials, proxy: str | tuple[str, int] | None = None) -> Document:
    """The static resources of the gateway's Envoy: its listener, and the cluster of the proxy.

    `proxy` is where that really listens, in place of where the ServiceEntry says.
    """
    listener = _gateway_listener(rendered, credentials)
    cluster = _proxy_cluster(rendered, proxy)
    apply_filter(rendered.the("EnvoyFilter"), [listener], [cluster])
    listener["address"] = _address(("127.0.0.1", 0))  # after the patches, which go by the port
    return {"listeners": [listener], "clusters": [cluster]}


def _gateway_listener(rendered: Rendered, credentials: Credentials) -> Document:
    """A listener a port, and in it a filter chain for each server of the Gateway."""
    found = rendered.the("Gateway")
    (port,) = {server["port"]["number"] for server in found["spec"]["servers"]}
    (target,) = (one["targetPort"] for one in rendered.the("Service")["spec"]["ports"] if one["port"] == port)
    return {
        "name": f"0.0.0.0_{target}",
        "address": _address(("0.0.0.0", target)),
        "listener_filters": [_typed(TLS_INSPECTOR, "filters.listener.tls_inspector.v3.TlsInspector")],
        "filter_chains": [_gateway_chain(rendered, server, credentials) for server in found["spec"]["servers"]],
    }


def _gateway_chain(rendered: Rendered, server: Document, credentials: Credentials) -> Document:
    assert server["tls"]["mode"] in ("ISTIO_MUTUAL", "MUTUAL")
    cluster = _routed_cluster(rendered, server)
    downstream = {"common_tls_context": credentials.common, "require_client_certificate": True}
    return {
        "filter_chain_match": {"server_names": server["hosts"]},
        "filters": [_tcp_proxy(cluster)],
        "transport_socket": _typed(
            "envoy.transport_sockets.tls", "transport_sockets.tls.v3.DownstreamTlsContext", downstream
        ),
    }


def _routed_cluster(rendered: Rendered, server: Document) -> str:
    """Where the VirtualService of these hosts sends what arrives at the gateway."""
    name = rendered.the("Gateway")["metadata"]["name"]
    (service,) = (one for one in rendered.every("VirtualService") if one["spec"]["hosts"] == server["hosts"])
    assert name in service["spec"]["gateways"]
    (route,) = service["spec"]["tcp"]
    assert route["match"] == [{"gateways": [name], "port": server["port"]["number"]}]
    return _cluster_name(route["route"][0]["destination"])


def _proxy_cluster(rendered: Rendered, proxy: str | tuple[str, int] | None) -> Document:
    """The cluster of the ServiceEntry for the proxy, without TLS, as its DestinationRule says."""
    (entry,) = (one["spec"] for one in rendered.every("ServiceEntry") if one["spec"]["resolution"] == "STATIC")
    (host,), (port,), (endpoint,) = entry["hosts"], entry["ports"], entry["endpoints"]
    (rule,) = (one["spec"] for one in rendered.every("DestinationRule") if one["spec"]["host"] == host)
    assert rule["trafficPolicy"]["tls"] == {"mode": "DISABLE"}
    place = proxy or endpoint["address"].removeprefix("unix://")
    if isinstance(place, str) and not place.startswith("/"):
        place = (place, port["number"])
    return _cluster(f"outbound|{port['number']}||{host}", place)


def sidecar(rendered: Rendered, workloads: Mapping[str, "Workload"], gateway_at: str | tuple[str, int]) -> Document:
    """The static resources of an Envoy that is the sidecar of several workloads: for each a listener of its name.

    `gateway_at` is the gateway's address, or a file of endpoints (EDS) that names it and may change.
    """
    listeners, clusters = [], []
    for name, workload in workloads.items():
        listeners.append(
            {
                "name": name,
                "address": _address(("127.0.0.1", 0)),
                "filter_chains": [{"filters": [_tcp_proxy(name)]}],
            }
        )
        cluster = _cluster(name, gateway_at)
        cluster["transport_socket"] = _tunnel_socket(rendered, workload)
        clusters.append(cluster)
    return {"listeners": listeners, "clusters": clusters}


@dataclass(frozen=True)
class Workload:
    """A client of the mesh: what it shows to the gateway, and which subset, or else which SNI, its tunnel is for."""

    credentials: Credentials
    subset: str = ""
    sni: str = ""


def tunnel_sni(rendered: Rendered, subset: str) -> str:
    """The SNI that the DestinationRule of the gateway gives the tunnels of a subset."""
    service = rendered.the("Service")["metadata"]
    host = f"{service['name']}.{service['namespace']}.svc.cluster.local"
    (rule,) = (one["spec"] for one in rendered.every("DestinationRule") if one["spec"]["host"] == host)
    (found,) = (one for one in rule["subsets"] if one["name"] == subset)
    (setting,) = found["trafficPolicy"]["portLevelSettings"]
    assert setting["tls"]["mode"] == "ISTIO_MUTUAL"
    sni: str = setting["tls"]["sni"]
    return sni


def gateway_identity(rendered: Rendered) -> str:
    """The SPIFFE ID of the gateway, which the sidecars ask of it."""
    pod = rendered.the("Deployment")
    account = pod["spec"]["template"]["spec"]["serviceAccountName"]
    return f"spiffe://cluster.local/ns/{pod['metadata']['namespace']}/sa/{account}"


def _tunnel_socket(rendered: Rendered, workload: Workload) -> Document:
    context = workload.credentials.common
    matcher = {"san_type": "URI", "matcher": {"exact": gateway_identity(rendered)}}
    context["validation_context"]["match_typed_subject_alt_names"] = [matcher]
    upstream = {"common_tls_context": context, "sni": workload.sni or tunnel_sni(rendered, workload.subset)}
    return _typed("envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", upstream)


def endpoints(name: str, places: Iterable[str | tuple[str, int]]) -> Document:
    """The endpoints of a cluster, as xDS has them."""
    hosts = [{"endpoint": {"address": _address(place)}} for place in places]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}


# EnvoyFilter.


def apply_filter(envoy_filter: Document, listeners: list[Document], clusters: list[Document]) -> None:
    """Apply the patches in place. Each has to match something."""
    for patch in envoy_filter["spec"]["configPatches"]:
        assert patch["match"]["context"] == "GATEWAY"
        assert patch["patch"]["operation"] == "MERGE"
        value = patch["patch"]["value"]
        if patch["applyTo"] == "NETWORK_FILTER":
            matched = _matching_filters(patch["match"]["listener"], listeners)
        else:
            assert patch["applyTo"] == "CLUSTER"
            matched = _matching_clusters(patch["match"]["cluster"], clusters)
        assert matched, f"matches nothing: {patch['match']}"
        for one in matched:
            one.update(merged(one, value))


def _matching_filters(match: Document, listeners: list[Document]) -> list[Document]:
    wanted = match["filterChain"]["filter"]["name"]
    return [
        one
        for listener in listeners
        if listener["address"]["socket_address"]["port_value"] == match["portNumber"]
        for chain in listener["filter_chains"]
        for one in chain["filters"]
        if one["name"] == wanted
    ]


def _matching_clusters(match: Document, clusters: list[Document]) -> list[Document]:
    tail = f"|{match['service']}"
    head = f"outbound|{match['portNumber']}|"
    return [one for one in clusters if one["name"].startswith(head) and one["name"].endswith(tail)]


def merged(base: Any, patch: Any) -> Any:
    """As protobuf merges messages: fields of `patch` win, and lists are appended to."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {**base, **{key: merged(base[key], value) if key in base else value for key, value in patch.items()}}
    if isinstance(base, list) and isinstance(patch, list):
        return [*base, *patch]
    return patch


# Envoy's own shapes.


def _cluster_name(destination: Document) -> str:
    return f"outbound|{destination['port']['number']}|{destination.get('subset', '')}|{destination['host']}"


def _cluster(name: str, place: str | tuple[str, int]) -> Document:
    """At an address, at the path of a Unix socket, or at what a file of endpoints says."""
    cluster: Document = {"name": name, "connect_timeout": "10s"}
    if isinstance(place, str) and place.endswith(".json"):
        source = {"path_config_source": {"path": place}, "resource_api_version": "V3"}
        return {**cluster, "type": "EDS", "eds_cluster_config": {"eds_config": source}}
    return {**cluster, "type": "STATIC", "load_assignment": endpoints(name, [place])}


def _address(place: str | tuple[str, int]) -> Document:
    if isinstance(place, str):
        return {"pipe": {"path": place}}
    return {"socket_address": {"address": place[0], "port_value": place[1]}}


def _tcp_proxy(cluster: str) -> Document:
    return _typed(TCP_PROXY, "filters.network.tcp_proxy.v3.TcpProxy", {"stat_prefix": cluster, "cluster": cluster})


def _typed(name: str, kind: str, value: Mapping[str, Any] | None = None) -> Document:
    return {"name": name, "typed_config": {"@type": f"{TYPES}.{kind}", **(value or {})}}
