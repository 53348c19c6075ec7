"""The config's shape: its defaults, and the example that the docs print, read whole."""

import pickle
from dataclasses import FrozenInstanceError
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from sniproxy.config.load import load_config
from sniproxy.config.log_template import DEFAULT_TEMPLATE
from sniproxy.config.model import Config, Listener, PolicyFile, Sample
from sniproxy.config.units import TcpAddress, Uid, UnixAddress
from sniproxy.identity.spiffe import parse_principal
from tests.support.configs import config_of

DEFAULTS = {
    "listeners": (Listener(address=TcpAddress("127.0.0.1", 8443)),),
    "upstream.port": 443,
    "upstream.resolver.nameservers": (),
    "upstream.resolver.family": "both",
    "upstream.resolver.timeout": 2.0,
    "upstream.resolver.min_ttl": 1.0,
    "upstream.resolver.max_ttl": 300.0,
    "upstream.resolver.negative_ttl": 5.0,
    "upstream.resolver.stale_ttl": 0.0,
    "upstream.resolver.cache_size": 10000,
    "upstream.hosts": {},
    "upstream.allow_networks": (),
    "upstream.deny_networks": (),
    "upstream.connect_timeout": 5.0,
    "policy.files": (),
    "policy.mode": "enforce",
    "policy.rejudge": True,
    "policy.require_identity": False,
    "policy.outer_sni": "ignore",
    "policy.ech": "log",
    "policy.registry": "off",
    "policy.gateway.namespace": "istio-system",
    "policy.gateway.root_namespace": "istio-system",
    "policy.gateway.labels": {},
    "policy.gateway.trust_domain": "cluster.local",
    "policy.gateway.trust_domain_aliases": (),
    "timeouts.client_hello": 10.0,
    "timeouts.idle": 600.0,
    "timeouts.drain": 30.0,
    "limits.connections": 20000,
    "limits.undecided_per_source": 500,
    "limits.client_hello_bytes": 65536,
    "access_log.0.path": "/dev/stdout",
    "access_log.0.format": "json",
    "access_log.0.template": DEFAULT_TEMPLATE,
    "access_log.0.events": {"open", "close", "deny", "fail"},
    "access_log.0.sample.open": 1.0,
    "access_log.0.sample.close": 1.0,
    "admin.address": TcpAddress("127.0.0.1", 9402),
    "admin.metrics_address": None,
    "workers": "auto",
}

LISTENER_DEFAULTS = {
    "proxy_protocol": "off",
    "trusted_peers": (),
    "identity.tlvs.principal": 0xD0,
    "identity.tlvs.requested_server_name": 0x02,
    "identity.static": None,
}


def at(root: Any, path: str) -> object:
    """The value at a dotted path of attributes and places in lists."""
    for name in path.split("."):
        root = root[int(name)] if name.isdecimal() else getattr(root, name)
    return root


def test_the_defaults_of_a_config() -> None:
    assert {path: at(Config(), path) for path in DEFAULTS} == DEFAULTS


def test_the_defaults_of_a_listener() -> None:
    listener = Listener(address=TcpAddress("127.0.0.1", 1))
    assert {path: at(listener, path) for path in LISTENER_DEFAULTS} == LISTENER_DEFAULTS


# The example of the product's description, whole.
EXAMPLE = """\
listeners:
  - address: 127.0.0.1:8443              # or unix:/run/sniproxy/sni.sock (mode 0660)
    proxy_protocol: required             # off (default) | required. Never guessed
    trusted_peers: [127.0.0.0/8]         # networks, and uid:1337 by SO_PEERCRED on Unix sockets
    identity:
      tlvs: {principal: 0xD0, requested_server_name: 0x02}   # attribute: PROXY v2 TLV type
      static: null                       # the principal of every connection, for a local proxy
upstream:
  port: 443
  resolver: {nameservers: [8.8.8.8], family: ipv4, timeout: 2s, min_ttl: 1s, max_ttl: 5m, negative_ttl: 5s, \
stale_ttl: 0s, cache_size: 10000}
  hosts: {en.wikipedia.org: ["127.0.0.1:9443"]}
  allow_networks: []
  deny_networks: []
  connect_timeout: 5s
policy:
  files: [policy.yaml, policy.d/*.yaml, {path: google.yaml, namespace: otherns}]
  mode: enforce
  rejudge: true
  require_identity: false
  outer_sni: ignore
  ech: log
  registry: off
  gateway: {namespace: istio-system, root_namespace: istio-system, labels: {istio: egressgateway-with-sni-proxy}, \
trust_domain: cluster.local, trust_domain_aliases: []}
timeouts: {client_hello: 10s, idle: 10m, drain: 30s}
limits: {connections: 20000, undecided_per_source: 500, client_hello_bytes: 64KiB}
access_log: {path: /dev/stdout, format: json, events: [open, close, deny, fail]}
admin: {address: 127.0.0.1:9402, metrics_address: null}
workers: auto
"""

# What the example sets to something else than its default.
EXAMPLE_SETS = {
    "upstream.resolver.nameservers": (TcpAddress("8.8.8.8", 53),),
    "upstream.resolver.family": "ipv4",
    "upstream.hosts": {"en.wikipedia.org": (TcpAddress("127.0.0.1", 9443),)},
    "policy.files": (
        PolicyFile(path="policy.yaml"),
        PolicyFile(path="policy.d/*.yaml"),
        PolicyFile(path="google.yaml", namespace="otherns"),
    ),
    "policy.gateway.labels": {"istio": "egressgateway-with-sni-proxy"},
    "listeners": (
        Listener(
            address=TcpAddress("127.0.0.1", 8443),
            proxy_protocol="required",
            trusted_peers=(ip_network("127.0.0.0/8"),),
        ),
    ),
}


def test_the_example_config_says_the_defaults_and_what_it_sets(tmp_path: Path) -> None:
    (tmp_path / "policy.d").mkdir()
    for name in ("policy.yaml", "policy.d/a.yaml", "google.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "sniproxy.yaml").write_text(EXAMPLE)
    config = load_config(tmp_path / "sniproxy.yaml").config
    assert {path: at(config, path) for path in DEFAULTS} == DEFAULTS | EXAMPLE_SETS


def test_a_unix_socket_with_a_trusted_user_and_an_identity_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "sniproxy.yaml"
    path.write_text(
        "listeners:\n"
        "  - {address: unix:/run/sniproxy/sni.sock, proxy_protocol: required, trusted_peers: [uid:1337]}\n"
        "  - {address: '[::1]:8443', identity: {static: spiffe://cluster.local/ns/default/sa/sleep}}\n"
    )
    gateway, local = load_config(path).config.listeners
    assert (gateway.address, gateway.trusted_peers) == (UnixAddress("/run/sniproxy/sni.sock"), (Uid(1337),))
    assert local.identity.static == parse_principal("cluster.local/ns/default/sa/sleep")


class TestAccessLogs:
    """One mapping, or a list of them."""

    def test_one_by_itself_is_a_list_of_one(self) -> None:
        alone = config_of({"access_log": {"path": "/var/log/access.log"}})
        listed = config_of({"access_log": [{"path": "/var/log/access.log"}]})
        assert alone == listed

    def test_each_of_several_has_what_it_says(self) -> None:
        stdout, file, syslog = config_of(
            {
                "access_log": [
                    {"sample": {"open": 0.1, "close": 0}},
                    {"path": "/var/log/access.log", "format": "nginx", "template": "$status", "events": ["deny"]},
                    {"path": "syslog:/dev/log", "format": "envoy"},
                ]
            }
        ).access_log
        assert (stdout.path, stdout.format, stdout.sample) == ("/dev/stdout", "json", Sample(open=0.1, close=0.0))
        assert (file.format, file.template, set(file.events)) == ("nginx", "$status", {"deny"})
        assert (syslog.path, syslog.format) == ("syslog:/dev/log", "envoy")

    @pytest.mark.parametrize("format_", ["nginx", "envoy"])
    def test_the_formats_of_others_tell_a_connection_once_as_the_others_do(self, format_: str) -> None:
        (log,) = config_of({"access_log": {"format": format_}}).access_log
        assert log.events == {"close", "deny", "fail"}
        (log,) = config_of({"access_log": {"format": format_, "events": ["open"]}}).access_log
        assert log.events == {"open"}


def test_port_0_may_be_asked_for_often_since_it_is_another_each_time() -> None:
    config = config_of({"listeners": [{"address": "127.0.0.1:0"}] * 2})
    assert [listener.address for listener in config.listeners] == [TcpAddress("127.0.0.1", 0)] * 2


def test_the_admin_address_can_be_turned_off() -> None:
    assert config_of({"admin": {"address": None}}).admin.address is None


WHOLE = {
    "listeners": [{"address": "unix:/s", "proxy_protocol": "required", "trusted_peers": ["uid:3"]}],
    "upstream": {"hosts": {"a.org": ["127.0.0.1:1"]}, "allow_networks": ["10.0.0.0/8"]},
    "policy": {"files": ["a", {"path": "b", "namespace": "c"}], "outer_sni": {"require_match": ["*.a.org"]}},
    "access_log": [{"path": "/a", "format": "envoy"}],
    "admin": {"address": None},
}


def test_a_config_is_the_same_after_its_way_from_process_to_process() -> None:
    config = config_of(WHOLE)
    assert pickle.loads(pickle.dumps(config)) == config == config_of(WHOLE) != Config()  # noqa: S301


def test_listeners_can_be_looked_up() -> None:
    assert set(config_of(WHOLE).listeners) == set(config_of(WHOLE).listeners)


def test_values_do_not_change_once_they_are_read() -> None:
    config = Config()
    with pytest.raises(FrozenInstanceError):
        config.workers = 3  # type: ignore[misc]
