"""What the tests take Istio to make of the chart's objects is what Istio makes of them.

istio/istiod-1.31.json is what istiod itself sent, asked through pilot's own test server (pilot/test/xds in Istio's
sources) with the objects of two values files, the Service, and a pod behind it: the gateway's listener, the proxy's
cluster and endpoints as the EnvoyFilter has left them, and the cluster by which a sidecar reaches the gateway.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.helm import Document, accepted, every_values_file
from tests.support.istio import Credentials, apply_filter, gateway, gateway_identity, merged, tunnel_sni

SENT: dict[str, Document] = json.loads(Path(__file__).with_name("istio").joinpath("istiod-1.31.json").read_text())
NOBODY = Credentials(Path("root-cert.pem"))


def names_and_values(chain: Document) -> dict[str, Any]:
    """The filters of a chain by their names, but for Istio's own telemetry, which is no part of Envoy."""
    return {one["name"]: one["typed_config"] for one in chain["filters"] if not one["name"].startswith("istio.")}


@pytest.mark.parametrize("name", SENT)
def test_the_gateways_listener_is_the_one_that_istiod_sends(name: str) -> None:
    """Hosts, filters and demands of each chain, with the patches of the EnvoyFilter in their place."""
    (ours,) = gateway(accepted(every_values_file()[name]), NOBODY)["listeners"]
    theirs = SENT[name]["listener"]
    assert ours["name"] == theirs["name"]
    assert [one["name"] for one in ours["listener_filters"]] == [one["name"] for one in theirs["listener_filters"]]
    for mine, its in zip(ours["filter_chains"], theirs["filter_chains"], strict=True):
        assert mine["filter_chain_match"] == its["filter_chain_match"]
        assert names_and_values(mine) == names_and_values(its)
        demands = [one["transport_socket"]["typed_config"]["require_client_certificate"] for one in (mine, its)]
        assert demands == [True, True]


@pytest.mark.parametrize("name", SENT)
def test_the_proxys_cluster_is_the_one_that_istiod_sends(name: str) -> None:
    """Its name, its endpoint, and the PROXY header around the bare socket."""
    (ours,) = gateway(accepted(every_values_file()[name]), NOBODY)["clusters"]
    theirs = SENT[name]["cluster"]
    assert (ours["name"], ours["transport_socket"]) == (theirs["name"], theirs["transport_socket"])
    (mine,), (its,) = (one["endpoints"] for one in (ours["load_assignment"], SENT[name]["endpoints"]))
    assert [one["endpoint"] for one in mine["lb_endpoints"]] == [one["endpoint"] for one in its["lb_endpoints"]]


@pytest.mark.parametrize("name", SENT)
def test_a_sidecars_tunnel_is_the_one_that_istiod_sends(name: str) -> None:
    """The placeholder for its SNI, and the gateway's identity asked for."""
    rendered = accepted(every_values_file()[name])
    tunnel = SENT[name]["tunnel"]["transport_socket"]["typed_config"]
    assert tunnel["sni"] == tunnel_sni(rendered, "wikipedia")
    context = tunnel["common_tls_context"]["combined_validation_context"]["default_validation_context"]
    assert context["match_subject_alt_names"] == [{"exact": gateway_identity(rendered)}]


def test_a_filter_that_matches_nothing_is_an_error() -> None:
    """Or the chart could lose the identity with every test content."""
    envoy_filter = every_values_file()["wikipedia-open"].the("EnvoyFilter")
    with pytest.raises(AssertionError, match="matches nothing"):
        apply_filter(envoy_filter, [], [])


def test_messages_merge_as_protobuf_does() -> None:
    """Single fields are replaced, messages merged, lists appended to."""
    base = {"kept": 1, "replaced": 1, "inner": {"kept": 1}, "list": [1]}
    patch = {"replaced": 2, "inner": {"new": 2}, "list": [2]}
    assert merged(base, patch) == {"kept": 1, "replaced": 2, "inner": {"kept": 1, "new": 2}, "list": [1, 2]}
