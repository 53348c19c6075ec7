"""The chart: real Helm lints and renders it, and what comes out is what Kubernetes and Istio take."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from sniproxy.config.model import Config
from sniproxy.config.section import Section
from sniproxy.config.units import parse_duration
from tests.support.helm import (
    CHART,
    GATEWAY,
    ROOT,
    VALUES,
    Document,
    Order,
    Rendered,
    accepted,
    every_values_file,
    render,
    render_one,
    values_of,
)

FILES = sorted(path.stem for path in VALUES.glob("*.yaml"))
ISTIO_FILES = [name for name in FILES if not name.startswith("plain")]
KUBERNETES = ("1.27", "1.32", "1.37")
ISTIO_TYPES = {
    path.stem: json.loads(path.read_text()) for path in Path(__file__).parent.joinpath("istio").glob("[A-Z]*.json")
}

# What other operators bring is beyond both.
OTHERS = {"PodMonitor", "PrometheusRule"}

# supervisor.py gives workers this long after their drain.
GRACE_OF_THE_SUPERVISOR = 5


def is_istios(document: Document) -> bool:
    return "istio.io/" in document["apiVersion"]


@pytest.mark.parametrize("name", FILES)
def test_helm_has_nothing_to_say_against_it(name: str) -> None:
    """Lint, strictly, and render."""
    rendered = every_values_file()[name]
    assert (rendered.refusal, rendered.findings) == ("", ())
    assert rendered.documents


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", FILES)
def test_kubernetes_takes_every_object(name: str, version: str) -> None:
    """Its published schemas, and no field that they do not have."""
    for document in every_values_file()[name].documents:
        if not is_istios(document) and document["kind"] not in OTHERS:
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", ISTIO_FILES)
def test_istio_takes_every_object(name: str) -> None:
    """Its published schemas, and no field that they do not have."""
    istios = [document for document in every_values_file()[name].documents if is_istios(document)]
    assert {document["kind"] for document in istios} >= {"ServiceEntry", "DestinationRule", "EnvoyFilter"}
    for document in istios:
        jsonschema.validate(document["spec"], ISTIO_TYPES[document["kind"]])


@pytest.mark.parametrize("name", FILES)
def test_objects_have_names_of_their_own_in_the_release_s_namespace(name: str) -> None:
    documents = every_values_file()[name].documents
    names = [(document["apiVersion"], document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    assert {document["metadata"]["namespace"] for document in documents} == {"istio-system"}


NAMES: dict[str, tuple[Document, str, str]] = {
    "the release is named sniproxy": ({}, "sniproxy", "sniproxy"),
    "its name is another": ({}, "egress", "egress-sniproxy"),
    "its name has sniproxy in it": ({}, "my-sniproxy", "my-sniproxy"),
    "the full name is given": ({"fullnameOverride": GATEWAY}, "sniproxy", GATEWAY),
    "the full name is given, and is sniproxy": ({"fullnameOverride": "sniproxy"}, "sniproxy", "sniproxy"),
    "the chart's name is given": ({"nameOverride": "door"}, "sniproxy", "sniproxy-door"),
}


@pytest.mark.parametrize("case", NAMES)
def test_every_object_is_named_after_the_release(case: str) -> None:
    """The Service and the Deployment have the full name, and all else begins with it; `app` is it as well."""
    values, release, expected = NAMES[case]
    rendered = accepted(render_one({**values_of("wikipedia-open"), "fullnameOverride": "", **values}, name=release))
    assert rendered.the("Service")["metadata"]["name"] == rendered.the("Deployment")["metadata"]["name"] == expected
    assert all(document["metadata"]["name"].startswith(expected) for document in rendered.documents)
    labels = rendered.the("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert (labels["app"], labels["istio"]) == (expected, expected.removeprefix("istio-"))


def selectors(rendered: Rendered) -> Iterator[dict[str, str]]:
    """Everything that goes by the labels of the pods."""
    yield rendered.the("Service")["spec"]["selector"]
    yield rendered.the("Deployment")["spec"]["selector"]["matchLabels"]
    yield rendered.the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    yield rendered.the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    for spread in rendered.the("Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        yield spread["labelSelector"]["matchLabels"]
    for gateway in rendered.every("Gateway"):
        yield gateway["spec"]["selector"]
    for envoy_filter in rendered.every("EnvoyFilter"):
        yield envoy_filter["spec"]["workloadSelector"]["labels"]
    for monitor in rendered.every("PodMonitor"):
        yield monitor["spec"]["selector"]["matchLabels"]


@pytest.mark.parametrize("name", FILES)
def test_every_selector_finds_the_pods(name: str) -> None:
    rendered = every_values_file()[name]
    labels = rendered.the("Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in selectors(rendered):
        assert selector
        assert selector.items() <= labels.items()


@pytest.mark.parametrize("name", FILES)
def test_the_pod_keeps_the_restricted_security_standard(name: str) -> None:
    """Kubernetes, Pod Security Standards, "Restricted": as far as pods like this one can offend it."""
    pod = every_values_file()[name].the("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {one["name"] for one in pod["securityContext"].get("sysctls", ())} <= {"net.ipv4.ip_unprivileged_port_start"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "configMap", "emptyDir"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["privileged"]) == (False, False)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["readOnlyRootFilesystem"] is True
        assert not any("hostPort" in port for port in container["ports"])
        assert container["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize("name", FILES)
def test_probes_and_scrapes_go_where_the_proxy_answers(name: str) -> None:
    """On metrics_address, outside of loopback; the admin page stays inside."""
    rendered = every_values_file()[name]
    container = rendered.container()
    (port,) = (one["containerPort"] for one in container["ports"] if one["name"] == "metrics")
    admin = config_of(rendered)["admin"]
    assert admin == {"address": "127.0.0.1:9402", "metrics_address": f"0.0.0.0:{port}"}
    probes = {kind: container[kind]["httpGet"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/healthz",
    }
    assert {probe["port"] for probe in probes.values()} == {"metrics"}


@pytest.mark.parametrize("name", FILES)
def test_kubernetes_waits_for_the_whole_drain(name: str) -> None:
    """preStop, the proxy's own drain, and what its supervisor adds, all within the pod's grace period."""
    rendered = every_values_file()[name]
    command = rendered.container()["lifecycle"]["preStop"]["exec"]["command"]
    before = float(command[3])
    drain = parse_duration(config_of(rendered)["timeouts"]["drain"])
    pod = rendered.the("Deployment")["spec"]["template"]["spec"]
    assert before + drain + GRACE_OF_THE_SUPERVISOR < pod["terminationGracePeriodSeconds"]
    if not name.startswith("plain"):
        annotations = rendered.the("Deployment")["spec"]["template"]["metadata"]["annotations"]
        envoys = yaml.safe_load(annotations["proxy.istio.io/config"])
        assert parse_duration(envoys["drainDuration"]) == before
        assert envoys["proxyMetadata"]["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"] == "true"


def test_the_gateway_is_the_one_of_the_seed() -> None:
    """Two containers, one of them Istio's own; 1 to 5 pods at 80 % CPU; ports, account and Service as there."""
    rendered = every_values_file()["wikipedia-open"]
    deployment, service = rendered.the("Deployment"), rendered.the("Service")
    assert deployment["metadata"]["name"] == service["metadata"]["name"] == GATEWAY
    pod = deployment["spec"]["template"]
    assert [one["name"] for one in pod["spec"]["containers"]] == ["istio-proxy", "sni-proxy"]
    assert rendered.container("istio-proxy")["image"] == "auto"
    assert pod["metadata"]["annotations"]["inject.istio.io/templates"] == "gateway"
    assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "true"
    assert pod["metadata"]["labels"]["istio"] == "egressgateway-with-sni-proxy"
    scaling = rendered.the("HorizontalPodAutoscaler")["spec"]
    assert (scaling["minReplicas"], scaling["maxReplicas"]) == (1, 5)
    assert scaling["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 80}
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [(443, 443)]
    assert "replicas" not in deployment["spec"]  # they are the autoscaler's


def test_the_istio_objects_are_those_of_the_seed() -> None:
    """sni-proxy.local at 127.0.0.1:8443 without TLS; mutual TLS at the gateway; the placeholder; both routes."""
    rendered = every_values_file()["wikipedia-open"]
    assert rendered.the("ServiceEntry", f"{GATEWAY}-sni-proxy")["spec"] == {
        "hosts": ["sni-proxy.local"],
        "exportTo": ["."],
        "location": "MESH_EXTERNAL",
        "ports": [{"number": 8443, "name": "tcp", "protocol": "TCP"}],
        "resolution": "STATIC",
        "endpoints": [{"address": "127.0.0.1"}],
    }
    rules = {one["spec"]["host"]: one["spec"] for one in rendered.every("DestinationRule")}
    assert rules["sni-proxy.local"]["trafficPolicy"] == {"tls": {"mode": "DISABLE"}}
    (subset,) = rules[f"{GATEWAY}.istio-system.svc.cluster.local"]["subsets"]
    (setting,) = subset["trafficPolicy"]["portLevelSettings"]
    assert setting["tls"] == {"mode": "ISTIO_MUTUAL", "sni": "placeholder.wikipedia.org"}
    (server,) = rendered.the("Gateway")["spec"]["servers"]
    assert (server["hosts"], server["tls"]) == (["*.wikipedia.org"], {"mode": "ISTIO_MUTUAL"})
    route = rendered.the("VirtualService")["spec"]
    assert route["tls"][0]["match"] == [{"gateways": ["mesh"], "port": 443, "sniHosts": ["*.wikipedia.org"]}]
    assert route["tls"][0]["route"][0]["destination"] == {
        "host": f"{GATEWAY}.istio-system.svc.cluster.local",
        "subset": "wikipedia",
        "port": {"number": 443},
    }
    assert route["tcp"][0]["route"][0]["destination"] == {"host": "sni-proxy.local", "port": {"number": 8443}}


def test_envoy_and_the_proxy_speak_of_the_same_tlvs() -> None:
    """Types that are chosen in one place reach the EnvoyFilter twice, and the config."""
    values = {**values_of("wikipedia-open"), "listener": {"tlvs": {"principal": 0xE0, "requestedServerName": 0xE1}}}
    rendered = accepted(render_one(values))
    filter_patch, cluster_patch = (
        one["patch"]["value"] for one in rendered.the("EnvoyFilter")["spec"]["configPatches"]
    )
    told = {
        one["format_string"]["text_format_source"]["inline_string"]: one["type"]
        for one in filter_patch["typed_config"]["proxy_protocol_tlvs"]
    }
    assert told == {"%DOWNSTREAM_PEER_URI_SAN%": 0xE0, "%REQUESTED_SERVER_NAME%": 0xE1}
    passed = cluster_patch["transport_socket"]["typed_config"]["config"]["pass_through_tlvs"]
    assert passed == {"match_type": "INCLUDE", "tlv_type": [0xE0, 0xE1]}
    (listener,) = config_of(rendered)["listeners"]
    assert listener["identity"]["tlvs"] == {"principal": 0xE0, "requested_server_name": 0xE1}


def test_a_role_is_there_only_where_a_secret_is_to_be_read() -> None:
    """credentialName: istiod asks whether the gateway's account may read Secrets."""
    values = values_of("wikipedia-open")
    assert accepted(render_one(values)).every("Role") == []
    values["istio"]["gateway"] = {"tls": {"mode": "MUTUAL", "credentialName": "egress-certs"}}
    rendered = accepted(render_one(values))
    assert rendered.the("Role")["rules"][0]["resources"] == ["secrets"]
    (subject,) = rendered.the("RoleBinding")["subjects"]
    assert subject["name"] == rendered.the("Deployment")["spec"]["template"]["spec"]["serviceAccountName"]


def test_the_network_policy_knows_no_way_into_the_cluster() -> None:
    """DNS, istiod, and public addresses at the upstream's port; what the config allows beside them, and no more."""
    upstream = {"port": 8443, "allow_networks": ["10.20.0.0/16"]}
    rendered = accepted(render_one({"config": {"upstream": upstream}}))
    egress = rendered.the("NetworkPolicy")["spec"]["egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in egress] == [[53, 53], [15012], [8443]]
    public, public6, exception = (one["ipBlock"] for one in egress[2]["to"])
    assert {"10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= {*public["except"]}
    assert (public6["cidr"], exception) == ("2000::/3", {"cidr": "10.20.0.0/16"})


def test_monitoring_is_there_when_it_is_asked_for() -> None:
    """What to scrape, when to wake somebody, what to look at: the repository's own files, whole."""
    rendered, without = every_values_file()["monitoring"], every_values_file()["plain"]
    assert {"PodMonitor", "PrometheusRule"} & {document["kind"] for document in without.documents} == set()
    rules = yaml.safe_load((ROOT / "monitoring" / "prometheus-rules.yaml").read_text())
    assert rendered.the("PrometheusRule")["spec"] == rules
    dashboard = rendered.the("ConfigMap", "sniproxy-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    expected = json.loads((ROOT / "monitoring" / "grafana-dashboard.json").read_text())
    assert json.loads(dashboard["data"]["sniproxy.json"]) == expected


def test_the_notes_say_what_to_try() -> None:
    """The commands of the seed, with this release's names."""
    notes = every_values_file()["wikipedia-open"].notes
    for said in (GATEWAY, "2/2", "sni-proxy.local.upstream_cx_total", "-c sni-proxy", "sniproxy explain"):
        assert said in notes
    assert "EVERYTHING IS REFUSED" in render_one({}).notes


# What rolls the pods.

ROLLS: dict[str, tuple[Document, bool]] = {
    "a changed policy": ({"policies": {"policy.yaml": "default: allow\n"}}, False),
    "another policy file": ({"policies": {"more.yaml": "default: deny\n"}}, False),
    "another resolver": ({"config": {"upstream": {"resolver": {"nameservers": ["9.9.9.9"]}}}}, False),
    "a stricter mode": ({"config": {"policy": {"require_identity": True}}}, False),
    "more workers": ({"config": {"workers": 4}}, True),
    "another port": ({"listener": {"port": 8444}}, True),
    "another port for metrics": ({"metrics": {"port": 9500}}, True),
}


@pytest.mark.parametrize("change", ROLLS)
def test_only_what_needs_a_restart_rolls_the_pods(change: str) -> None:
    """The rest reaches them where they run: the Deployment stays as it was, to the letter."""
    more, rolls = ROLLS[change]
    base = {"policies": {"policy.yaml": "rules: []\n"}}
    before, after = (accepted(one).the("Deployment") for one in render([Order(base), Order({**base, **more})]))
    assert (before != after) == rolls
    checksums = [one["spec"]["template"]["metadata"]["annotations"]["checksum/restart"] for one in (before, after)]
    assert (checksums[0] != checksums[1]) == rolls


# What the schema refuses.

REFUSED: dict[str, Document] = {
    "a mode that is none": {"mode": "sidecar"},
    "a key that is misspelt": {"replicas": 3},
    "a key of the config that is misspelt": {"config": {"upstream": {"resolver": {"nameserver": ["8.8.8.8"]}}}},
    "a listener in the config, where the chart has its own": {"config": {"listeners": []}},
    "policy files in the config, where the chart has its own": {"config": {"policy": {"files": ["x.yaml"]}}},
    "a drain of its own beside Envoy's": {"config": {"timeouts": {"drain": "5s"}}},
    "a duration without its unit": {"config": {"timeouts": {"idle": "600"}}},
    "a port that is none": {"listener": {"port": 70000}},
    "a privileged port for a proxy without privileges": {"listener": {"port": 443}},
    "Envoy and the proxy on one port": {"istio": {"gateway": {"port": 8443}}},
    "a gateway that asks for no certificate": {"istio": {"gateway": {"tls": {"mode": "SIMPLE"}}}},
    "MUTUAL without certificates": {"istio": {"gateway": {"tls": {"mode": "MUTUAL"}}}},
    "a connection before it is known who calls": {"istio": {"connect": "IMMEDIATE"}},
    "a lone star for a host": {"istio": {"egress": [{"name": "all", "hosts": ["*"]}]}},
    "a pattern that Istio does not have": {"istio": {"egress": [{"name": "en", "hosts": ["en.*.org"]}]}},
    "egress without hosts": {"istio": {"egress": [{"name": "none", "hosts": []}]}},
    "a policy file that no glob finds": {"policies": {"policy.yml": "rules: []"}},
    "an empty policy file": {"policies": {"policy.yaml": ""}},
    "trusted peers where nobody is believed": {"mode": "plain", "listener": {"trustedPeers": ["10.0.0.0/8"]}},
    "a PROXY header that nobody may send": {"mode": "plain", "listener": {"proxyProtocol": "required"}},
    "a static principal where Envoy says who calls": {"listener": {"staticPrincipal": "cluster.local/ns/a/sa/b"}},
    "a Unix socket with nobody to share it": {"mode": "plain", "listener": {"unixSocket": True}},
    "egress through a gateway that is not there": {
        "mode": "plain",
        "istio": {"egress": [{"name": "wikipedia", "hosts": ["*.wikipedia.org"]}]},
    },
    "a TLV type that means something else": {"listener": {"tlvs": {"principal": 0x20}}},
    "a digest that is none": {"image": {"digest": "sha256:1234"}},
}


def test_values_that_are_wrong_are_refused() -> None:
    """Each of them, and not with an answer that the API server gives later."""
    answers = render([Order(values) for values in REFUSED.values()])
    assert [case for case, answer in zip(REFUSED, answers, strict=True) if not answer.refusal] == []


ACCEPTED: dict[str, Document] = {
    "off without quotes, which YAML reads as false": {
        "mode": "plain",
        "listener": {"proxyProtocol": False},
        "config": {"policy": {"registry": False}},
    },
    "large numbers": {"config": {"limits": {"connections": 10_000_000}}},
    "policies as YAML instead of text": {"policies": {"policy.yaml": {"default": "deny", "rules": []}}},
    "no autoscaling": {"autoscaling": {"enabled": False}, "replicaCount": 3},
    "an image by its digest": {"image": {"repository": "example.org/sniproxy", "digest": f"sha256:{'0' * 64}"}},
    "a chart within another": {"global": {"anything": True}},
}


def test_values_that_are_right_are_taken() -> None:
    answers = render([Order(values) for values in ACCEPTED.values()])
    assert {case: answer.refusal for case, answer in zip(ACCEPTED, answers, strict=True) if answer.refusal} == {}
    large, text = (config_of(answers[number]) for number in (1, 2))
    assert large["limits"]["connections"] == 10_000_000
    assert text["policy"]["files"] == ["/etc/sniproxy/policies/own/*.yaml"]
    assert answers[3].the("Deployment")["spec"]["replicas"] == 3
    assert answers[4].container()["image"] == f"example.org/sniproxy@sha256:{'0' * 64}"


# Keys of sniproxy.yaml whose inside the schema leaves to `sniproxy check`, and those that the chart sets itself.
OPEN = {"access_log"}
CHARTS_OWN = {"listeners", "admin", "policy.files", "policy.gateway", "timeouts.drain"}


def keys_of(section: type[Section], path: str = "") -> Iterator[str]:
    """The keys of the config's model, nested ones with dots."""
    for field in fields(section):
        name, kind = field.name, field.type
        if f"{path}{name}" in CHARTS_OWN:
            continue
        if isinstance(kind, type) and issubclass(kind, Section) and f"{path}{name}" not in OPEN:
            yield from keys_of(kind, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def schema_keys(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, inner in schema["properties"].items():
        if "properties" in inner:
            yield from schema_keys(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_the_schema_knows_every_key_of_the_config() -> None:
    """A key that is new in the config's model is missing in helm/sniproxy/values.schema.json until it is added."""
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]
    assert set(schema_keys(schema)) == set(keys_of(Config))


def config_of(rendered: Rendered) -> Document:
    """sniproxy.yaml, as the pod gets it."""
    (text,) = (one["data"]["sniproxy.yaml"] for one in rendered.every("ConfigMap") if "sniproxy.yaml" in one["data"])
    config: Document = yaml.safe_load(text)
    return config
