"""From a config file to values: the defaults, and every problem with its line and its mend.

The messages stand here in full, because they are what a user gets who has made the mistake.
"""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.load import LoadedConfig, load_config, read_config
from sniproxy.config.log_template import VARIABLES
from sniproxy.config.model import Config, PolicyFile, RequireMatch
from sniproxy.config.section import Section
from sniproxy.config.yaml_source import BadInputError, parse_documents

CONFIG = Path("sniproxy.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a folder of its own, and its files in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str | bytes) -> LoadedConfig:
    CONFIG.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(CONFIG)


def problems(text: str | bytes) -> list[str]:
    """What is wrong with `text`, without the file's name in front."""
    with pytest.raises(BadInputError) as caught:
        load(text)
    return [str(problem).removeprefix("sniproxy.yaml:") for problem in caught.value.problems]


KEYS = "the keys here are listeners, upstream, policy, timeouts, limits, access_log, admin, workers"
ADDRESS = 'is no address; write an IP address and a port: 127.0.0.1:8443 or "[::1]:8443"'
OUTER_SNI = "is no check; write ignore, require_equal or {require_match: ['*.example.org']}"
TRUST_DOMAIN = "is no trust domain; write lower-case letters, digits, '.', '-' and '_': cluster.local"
PROXIED = "{address: '127.0.0.1:1', proxy_protocol: required, trusted_peers: [127.0.0.0/8]}"
VARIABLES_KNOWN = "the known ones are " + " ".join(f"${name}" for name in VARIABLES)
SYSLOG_MEND = "write the absolute path of a socket, of 107 bytes at most: syslog:/dev/log"
DURATION = "is no duration; write a number with its unit: 250ms, 10s, 5m or 1h"

WRONG = {
    # Shapes.
    "a list for a config": ("- a\n", ["1: must hold keys with values, like `key: value`, not a list"]),
    "a word for a config": ("hello\n", ["1: must hold keys with values, like `key: value`, not 'hello'"]),
    "two documents": ("workers: 1\n---\nworkers: 2\n", ["3: begins a second document; a config is one"]),
    "an unknown key that is like another": ("upstreem: {}\n", ["1: unknown key 'upstreem'; did you mean 'upstream'?"]),
    "an unknown key that is like no other": ("zzz: 1\n", [f"1: unknown key 'zzz'; {KEYS}"]),
    "an unknown key that is a number": ("1: x\n", [f"1: unknown key '1'; {KEYS}"]),
    "an unknown key of two lines": ('"a\\nb": 1\n', [f"1: unknown key 'a\\nb'; {KEYS}"]),
    "an unknown key far inside": (
        "upstream:\n  resolver:\n    nameserver: [8.8.8.8]\n",
        ["3: unknown key 'nameserver' in upstream.resolver; did you mean 'nameservers'?"],
    ),
    "an unknown key in an item of a list": (
        "listeners:\n  - address: 127.0.0.1:1\n    trusted: [10.0.0.0/8]\n",
        ["3: unknown key 'trusted' in listeners[0]; did you mean 'trusted_peers'?"],
    ),
    "an unknown key of a policy file": (
        "policy:\n  files: [{path: a, namspace: b}]\n",
        ["2: unknown key 'namspace' in policy.files[0]; did you mean 'namespace'?"],
    ),
    "a merge key, which YAML 1.2 has no more": (
        "upstream: {<<: {port: 1}}\n",
        [
            (
                "1: unknown key '<<' in upstream; the keys here are port, resolver, hosts, allow_networks, "
                "deny_networks, connect_timeout"
            )
        ],
    ),
    "a key that is missing": (
        "listeners:\n  - proxy_protocol: off\n",
        ["2: listeners[0] lacks the key 'address'; add it"],
    ),
    "sections without anything in them": (
        "upstream:\nlisteners:\n",
        ["1: upstream has no value; give it one, or drop it", "2: listeners has no value; give it one, or drop it"],
    ),
    "a mapping for a list": (
        "listeners:\n  address: 127.0.0.1:8443\n",
        ["1: listeners must be a list, not a mapping"],
    ),
    "a list for a mapping": (
        "upstream:\n  resolver: []\n",
        ["2: upstream.resolver must be a mapping of keys, not a list"],
    ),
    "a value for a mapping": ("admin: off\n", ["1: admin must be a mapping of keys, not 'off'"]),
    "a value for a list": (
        "upstream: {resolver: {nameservers: 8.8.8.8}}\n",
        ["1: upstream.resolver.nameservers must be a list, not '8.8.8.8'; write ['8.8.8.8']"],
    ),
    "an empty text for a list": ("listeners: ''\n", ["1: listeners must be a list, not ''; write ['']"]),
    "an empty list": ("listeners: []\n", ["1: listeners is empty; fill it, or drop it"]),
    "an item of the wrong kind": (
        "listeners: [127.0.0.1:8443]\n",
        ["1: listeners[0] must be a mapping of keys, not '127.0.0.1:8443'"],
    ),
    # Simple values.
    "a word for a number": ("upstream: {port: https}\n", ["1: upstream.port must be a whole number, not 'https'"]),
    "a number in quotes": (
        "upstream: {port: '443'}\n",
        ["1: upstream.port must be a whole number, not '443'; take the quotes off"],
    ),
    "a fraction for a number": ("upstream: {port: 4.5}\n", ["1: upstream.port must be a whole number, not 4.5"]),
    "true for a number": ("upstream: {port: true}\n", ["1: upstream.port must be a whole number, not true"]),
    "a number that is too large": ("upstream: {port: 65536}\n", ["1: upstream.port must be at most 65535, not 65536"]),
    "a number that is too small": ("upstream: {port: 0}\n", ["1: upstream.port must be at least 1, not 0"]),
    "a word for a boolean": ("policy: {rejudge: maybe}\n", ["1: policy.rejudge must be true or false, not 'maybe'"]),
    "a number for text": (
        "access_log: {path: 3}\n",
        ["1: access_log.path must be text, not 3; put it in quotes"],
    ),
    "no text at all": ("access_log: {path: ''}\n", ["1: access_log.path is empty; fill it, or drop it"]),
    "a label that is no text": (
        "policy: {gateway: {labels: {a: true}}}\n",
        ["1: policy.gateway.labels.a must be text, not true; put it in quotes"],
    ),
    "a label that is too long": (
        f"policy: {{gateway: {{labels: {{app: {'x' * 64}}}}}}}\n",
        [
            (
                f"1: policy.gateway.labels.app: '{'x' * 60}'... is no label's value; "
                "write up to 63 letters, digits, '-', '_' and '.'"
            )
        ],
    ),
    "a word that is no choice": (
        "upstream: {resolver: {family: ipv5}}\n",
        ["1: upstream.resolver.family must be ipv4, ipv6 or both, not 'ipv5'"],
    ),
    "off where it is no choice": ("policy: {ech: off}\n", ["1: policy.ech must be allow, log or deny, not 'off'"]),
    "an event that is none": (
        "access_log: {events: [open, closed]}\n",
        ["1: access_log.events[1] must be open, close, deny or fail, not 'closed'"],
    ),
    "no number of workers": (
        "workers: 0\n",
        ["1: workers: 0 is no number of workers; write auto, or a number from 1 to 256"],
    ),
    # Values with units.
    "durations": (
        "timeouts:\n  client_hello: 10\n  idle: 0s\n  drain: 9000h\n",
        [
            f"2: timeouts.client_hello: 10 {DURATION}",
            "3: timeouts.idle: '0s' is no time at all; write a longer one",
            "4: timeouts.drain: '9000h' is longer than a year; write at most 8784h",
        ],
    ),
    "sizes": (
        "limits:\n  client_hello_bytes: 64KB\n",
        [
            "2: limits.client_hello_bytes: '64KB' is no size; write a number of bytes, or one with KiB or MiB: 64KiB",
        ],
    ),
    "a size out of bounds": (
        "limits: {client_hello_bytes: 2MiB}\n",
        ["1: limits.client_hello_bytes must be at most 1048576, not '2MiB'"],
    ),
    "addresses": (
        "listeners:\n  - address: localhost:8443\n  - address: 127.0.0.1\n  - address: 8443\n",
        [
            f"2: listeners[0].address: 'localhost:8443' {ADDRESS}",
            f"3: listeners[1].address: '127.0.0.1' {ADDRESS}",
            f"4: listeners[2].address: 8443 {ADDRESS}",
        ],
    ),
    "networks": (
        "upstream:\n  allow_networks:\n    - 10.0.0.1/8\n    - nonsense\n",
        [
            "3: upstream.allow_networks[0]: '10.0.0.1/8' has bits set behind its prefix; write 10.0.0.0/8",
            "4: upstream.allow_networks[1]: 'nonsense' is no network; write it as 10.0.0.0/8 or fd00::/8",
        ],
    ),
    "nameservers": (
        "upstream: {resolver: {nameservers: [dns.google]}}\n",
        [
            (
                "1: upstream.resolver.nameservers[0]: 'dns.google' is no nameserver; "
                "write its IP address, with a port if it is not 53: 8.8.8.8 or 8.8.8.8:5353"
            )
        ],
    ),
    "a least time above the most": (
        "upstream:\n  resolver:\n    min_ttl: 10m\n",
        [
            "3: upstream.resolver.min_ttl: min_ttl is 600s and max_ttl 300s; lower min_ttl, or raise max_ttl",
        ],
    ),
    "a namespace": (
        "policy: {gateway: {namespace: Istio System}}\n",
        [
            (
                "1: policy.gateway.namespace: 'Istio System' is no namespace; "
                "write up to 63 lower-case letters, digits and '-': default"
            )
        ],
    ),
    "a principal": (
        "listeners:\n  - address: 127.0.0.1:1\n    identity:\n      static: sleep us\n",
        [
            (
                "4: listeners[0].identity.static: 'sleep us' is not a SPIFFE ID: a trust domain has lower-case "
                "letters, digits, '.', '-' and '_'; write it as cluster.local/ns/default/sa/sleep"
            )
        ],
    ),
    "a principal that is a number": (
        "listeners:\n  - address: 127.0.0.1:1\n    identity: {static: 3}\n",
        ["3: listeners[0].identity.static: 3 is no principal; write it as cluster.local/ns/default/sa/sleep"],
    ),
    # Static hosts.
    "names of hosts": (
        "upstream:\n  hosts:\n    '*.x.org': ['127.0.0.1:1']\n    127.0.0.1: ['127.0.0.1:1']\n",
        [
            "3: upstream.hosts['*.x.org']: '*.x.org' is not a DNS host name; write it as en.wikipedia.org",
            (
                "4: upstream.hosts['127.0.0.1']: '127.0.0.1' is an IP address, and a server name is a DNS host name "
                "(RFC 6066 section 3); write it as en.wikipedia.org"
            ),
        ],
    ),
    "addresses of hosts": (
        "upstream:\n  hosts:\n    a: []\n    b: 127.0.0.1:1\n    c: [localhost:1]\n    d:\n    e: ['127.0.0.1:0']\n",
        [
            "3: upstream.hosts.a is empty; fill it, or drop it",
            "4: upstream.hosts.b must be a list, not '127.0.0.1:1'; write ['127.0.0.1:1']",
            f"5: upstream.hosts.c[0]: 'localhost:1' {ADDRESS}",
            "6: upstream.hosts.d has no value; give it one, or drop it",
            "7: upstream.hosts.e[0]: '127.0.0.1:0' has the port 0, where nothing can listen; write the real one",
        ],
    ),
    "a name and an address of one host": (
        "upstream:\n  hosts:\n    '*.x': [localhost:1]\n",
        [
            f"3: upstream.hosts['*.x'][0]: 'localhost:1' {ADDRESS}",
            "3: upstream.hosts['*.x']: '*.x' is not a DNS host name; write it as en.wikipedia.org",
        ],
    ),
    "a host in two spellings": (
        "upstream:\n  hosts:\n    a.org: ['127.0.0.1:1']\n    A.org.: ['127.0.0.1:2']\n",
        ["4: upstream.hosts['A.org.']: is the same name as 'a.org'; keep one"],
    ),
    # Trust.
    "a header that nobody may send": (
        "listeners:\n  - address: 127.0.0.1:1\n    proxy_protocol: required\n",
        ["3: listeners[0].proxy_protocol: required, but nobody may send the header; add trusted_peers: [127.0.0.0/8]"],
    ),
    "a header that nobody may send, on a Unix socket": (
        "listeners:\n  - address: unix:/s\n    proxy_protocol: required\n    trusted_peers: []\n",
        ["3: listeners[0].proxy_protocol: required, but nobody may send the header; add trusted_peers: [uid:1337]"],
    ),
    "trust without a header": (
        "listeners:\n  - address: 127.0.0.1:1\n    trusted_peers: [10.0.0.0/8]\n",
        ["3: listeners[0].trusted_peers: nobody is trusted while proxy_protocol is off; set proxy_protocol: required"],
    ),
    "a user on a TCP address": (
        "listeners:\n  - {address: '127.0.0.1:1', proxy_protocol: required, trusted_peers: [uid:3]}\n",
        [
            (
                "2: listeners[0].trusted_peers[0]: uid:3 cannot be seen on a TCP address, where peers are known by "
                "their networks; write 127.0.0.0/8"
            )
        ],
    ),
    "a network on a Unix socket": (
        "listeners:\n  - {address: unix:/s, proxy_protocol: required, trusted_peers: [uid:3, 10.0.0.0/8]}\n",
        [
            (
                "2: listeners[0].trusted_peers[1]: 10.0.0.0/8 cannot be seen on a Unix socket, where peers are known "
                "by their uids; write uid:1337"
            )
        ],
    ),
    "each peer that cannot be seen": (
        (
            "listeners:\n  - address: 127.0.0.1:1\n    proxy_protocol: required\n    trusted_peers:\n"
            "      - uid:3\n      - 10.0.0.0/8\n      - uid:4\n"
        ),
        [
            (
                f"{line}: listeners[0].trusted_peers[{number}]: uid:{uid} cannot be seen on a TCP address, where peers "
                "are known by their networks; write 127.0.0.0/8"
            )
            for line, number, uid in ((5, 0, 3), (7, 2, 4))
        ],
    ),
    "a user by name": (
        "listeners:\n  - {address: unix:/s, proxy_protocol: required, trusted_peers: [uid:root]}\n",
        ["2: listeners[0].trusted_peers[0]: 'uid:root' names no user; write the user's number: uid:1337"],
    ),
    "a PROXY protocol that would be guessed": (
        "listeners:\n  - {address: '127.0.0.1:1', proxy_protocol: auto}\n",
        ["2: listeners[0].proxy_protocol must be off or required, not 'auto'"],
    ),
    "on, which says too little": (
        "listeners:\n  - {address: '127.0.0.1:1', proxy_protocol: on}\n",
        ["2: listeners[0].proxy_protocol must be off or required, not 'on'"],
    ),
    "TLV types": (
        "listeners:\n  - address: 127.0.0.1:1\n    identity:\n      tlvs: {principal: 256}\n",
        ["4: listeners[0].identity.tlvs.principal must be at most 255, not 256"],
    ),
    "one TLV type for two attributes": (
        "listeners:\n  - address: 127.0.0.1:1\n    identity:\n      tlvs: {principal: 2}\n",
        ["4: listeners[0].identity.tlvs: both attributes have the type 0x02; give each its own"],
    ),
    "TLV types that the protocol has taken": (
        (
            "listeners:\n  - address: 127.0.0.1:1\n    identity:\n"
            "      tlvs: {principal: 3, requested_server_name: 0x20}\n"
        ),
        [
            (
                f"4: listeners[0].identity.tlvs: {name}: {kind} means something else in the PROXY protocol; "
                "0xE0 to 0xEF are free"
            )
            for name, kind in (("principal", "0x03"), ("requested_server_name", "0x20"))
        ],
    ),
    # Addresses that meet.
    "two listeners on one address": (
        "listeners:\n  - address: 127.0.0.1:1\n  - address: 127.0.0.1:1\n",
        ["3: listeners[1].address: 127.0.0.1:1 is listeners[0].address too; give each its own"],
    ),
    "the admin on the default address of the listener": (
        "workers: 1\nadmin: {address: '127.0.0.1:8443'}\n",
        ["2: admin.address: 127.0.0.1:8443 is listeners[0].address too; give each its own"],
    ),
    "two listeners on one socket file": (
        "listeners:\n  - address: unix:/s\n  - address: unix:/s\n",
        ["3: listeners[1].address: unix:/s is listeners[0].address too; give each its own"],
    ),
    "a listener on the default address of the admin": (
        "listeners:\n  - address: 127.0.0.1:9402\n",
        ["2: listeners[0].address: 127.0.0.1:9402 is admin.address too; give each its own"],
    ),
    "one address for the admin and the metrics": (
        "admin:\n  address: 127.0.0.1:1\n  metrics_address: 127.0.0.1:1\n",
        ["3: admin.metrics_address: 127.0.0.1:1 is admin.address too; give each its own"],
    ),
    # Policy files.
    "policy files that are not there": (
        "policy:\n  files:\n    - nope.yaml\n    - policy.d/*.yaml\n    - {path: google.yaml, namespace: otherns}\n",
        [
            "3: policy file nope.yaml does not exist; create it, or drop the entry",
            "4: no policy file matches policy.d/*.yaml; create one, or drop the entry",
            "5: policy file google.yaml does not exist; create it, or drop the entry",
        ],
    ),
    "a folder for a policy file": ("policy: {files: [.]}\n", ["1: policy file . is a folder; write *.yaml"]),
    "what names no policy file": (
        "policy:\n  files:\n    - {}\n    - ''\n    - 3\n    -\n",
        [
            "3: policy.files[0] lacks the key 'path'; add it",
            "4: policy.files[1] is empty; fill it, or drop it",
            "5: policy.files[2]: 3 names no file; write its path, or {path: google.yaml, namespace: otherns}",
            "6: policy.files[3] has no value; give it one, or drop it",
        ],
    ),
    "a policy file that is named twice": (
        "policy:\n  files:\n    - sniproxy.yaml\n    - '*.yaml'\n",
        ["4: policy file sniproxy.yaml is named here again, first on line 3; keep one"],
    ),
    # What decides beside the rules.
    "modes that are none": (
        "policy:\n  mode: off\n  ech: no\n  registry: on\n",
        [
            "2: policy.mode must be enforce or monitor, not 'off'",
            "3: policy.ech must be allow, log or deny, not 'no'",
            "4: policy.registry must be off or only, not 'on'",
        ],
    ),
    "a check of the outer SNI that is none": (
        "policy: {outer_sni: require_same}\n",
        [f"1: policy.outer_sni: 'require_same' {OUTER_SNI}"],
    ),
    "a list of names alone, for the outer SNI": (
        "policy: {outer_sni: [a.org]}\n",
        [f"1: policy.outer_sni: a list {OUTER_SNI}"],
    ),
    "patterns of the outer SNI": (
        "policy:\n  outer_sni:\n    require_match:\n      - '*x.org'\n      - 3\n      - a..b\n",
        [
            (
                "4: policy.outer_sni.require_match[0]: '*x.org' is no pattern; a star stands alone, or first with a "
                "dot behind it: *.wikipedia.org"
            ),
            "5: policy.outer_sni.require_match[1]: 3 is not text; put it in quotes",
            (
                "6: policy.outer_sni.require_match[2]: 'a..b' is not a DNS host name; write en.wikipedia.org, "
                "*.wikipedia.org or *"
            ),
        ],
    ),
    "patterns of the outer SNI under another key": (
        "policy: {outer_sni: {require_matches: [a.org]}}\n",
        [
            "1: unknown key 'require_matches' in policy.outer_sni; did you mean 'require_match'?",
            "1: policy.outer_sni lacks the key 'require_match'; add it",
        ],
    ),
    "no patterns of the outer SNI": (
        "policy: {outer_sni: {require_match: []}}\n",
        ["1: policy.outer_sni.require_match is empty; fill it, or drop it"],
    ),
    "a check of the outer SNI, which no PROXY header carries": (
        f"listeners:\n  - {PROXIED}\n  - address: 127.0.0.1:2\npolicy:\n  outer_sni: require_equal\n",
        [
            (
                "5: policy.outer_sni: listeners[1] has no PROXY header to carry the outer SNI; set proxy_protocol: "
                "required there, or outer_sni: ignore"
            )
        ],
    ),
    "trust domains": (
        (
            "policy:\n  gateway:\n    trust_domain: Cluster.Local\n"
            "    trust_domain_aliases: [td1, 'spiffe://td2', td3/x, 4]\n"
        ),
        [
            f"3: policy.gateway.trust_domain: 'Cluster.Local' {TRUST_DOMAIN}",
            f"4: policy.gateway.trust_domain_aliases[1]: 'spiffe://td2' {TRUST_DOMAIN}",
            f"4: policy.gateway.trust_domain_aliases[2]: 'td3/x' {TRUST_DOMAIN}",
            f"4: policy.gateway.trust_domain_aliases[3]: 4 {TRUST_DOMAIN}",
        ],
    ),
    # What this version does not know yet.
    "later formats": (
        "access_log: {format: common}\n",
        ["1: access_log.format must be json, nginx or envoy, not 'common'"],
    ),
    # Access logs.
    "a variable that no template has": (
        "access_log:\n  format: nginx\n  template: '$statu $x'\n",
        [f"3: access_log.template: '$statu' is no variable; did you mean $status? {VARIABLES_KNOWN}"],
    ),
    "a template for a format that has none": (
        "access_log:\n  template: $status\n",
        ["2: access_log.template: format json has none; write format: nginx, or drop the template"],
    ),
    "shares that are none": (
        "access_log:\n  - sample:\n      open: 1.5\n      close: yes\n      deny: 0.5\n",
        [
            "3: access_log[0].sample.open: 1.5 is no share; write a number from 0 to 1: 0.1 logs every tenth",
            "4: access_log[0].sample.close: 'yes' is no share; write a number from 0 to 1: 0.1 logs every tenth",
            "5: unknown key 'deny' in access_log[0].sample; the keys here are open, close",
        ],
    ),
    "one place twice": (
        "access_log:\n  - {path: /var/log/a}\n  - {path: /var/log/b}\n  - {path: /var/log/a}\n",
        ["4: access_log[2].path: /var/log/a is access_log[0].path too; give each its own"],
    ),
    "one place twice, by default": (
        "access_log:\n  - format: json\n  - format: nginx\n",
        ["3: access_log[1]: /dev/stdout is access_log[0].path too; give each its own"],
    ),
    "a template that is empty": (
        "access_log: {format: nginx, template: ''}\n",
        ["1: access_log.template is empty; fill it, or drop it"],
    ),
    "a template that is no text": (
        "access_log: {format: nginx, template: 3}\n",
        ["1: access_log.template must be text, not 3; put it in quotes"],
    ),
    "a syslog without a socket": (
        "access_log: {path: 'syslog:dev/log'}\n",
        [
            f"1: access_log.path: 'syslog:dev/log' names no syslog; {SYSLOG_MEND}",
        ],
    ),
    "no access log at all": ("access_log: []\n", ["1: access_log is empty; fill it, or drop it"]),
    "a path where an access log belongs": (
        "access_log: /dev/stdout\n",
        ["1: access_log: '/dev/stdout' is no access log; write {path: /var/log/access.log}, or a list of such"],
    ),
    # All at once.
    "what does not fit together, in each of the ways": (
        (
            "policy: {outer_sni: require_equal}\naccess_log: [{path: /a}, {path: /a}]\n"
            "listeners:\n  - address: unix:/s\n  - address: unix:/s\n"
        ),
        [
            (
                "1: policy.outer_sni: listeners[0] has no PROXY header to carry the outer SNI; set proxy_protocol: "
                "required there, or outer_sni: ignore"
            ),
            "2: access_log[1].path: /a is access_log[0].path too; give each its own",
            "5: listeners[1].address: unix:/s is listeners[0].address too; give each its own",
        ],
    ),
    "several problems, in the order of their lines": (
        "workers: 0\nupstream: {port: x}\ntimeouts: {idle: 3}\nadmin: {adress: 1}\n",
        [
            "1: workers: 0 is no number of workers; write auto, or a number from 1 to 256",
            "2: upstream.port must be a whole number, not 'x'",
            f"3: timeouts.idle: 3 {DURATION}",
            "4: unknown key 'adress' in admin; did you mean 'address'?",
        ],
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG)
def test_says_what_is_wrong_and_how_to_mend_it(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_a_config_that_is_not_there() -> None:
    with pytest.raises(BadInputError) as caught:
        load_config(Path("nope.yaml"))
    assert str(caught.value) == "nope.yaml:1: cannot be read: no such file or directory"


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n", "---\n"])
def test_an_empty_config_is_the_built_in_one(text: str) -> None:
    assert load(text).config == load_config(None).config == Config()


OFF = ("off", "'off'", "false")


@pytest.mark.parametrize("off", OFF)
def test_off_works_with_and_without_quotes_and_as_the_false_of_yaml_1_1(off: str) -> None:
    text = f"listeners:\n  - {{address: '127.0.0.1:1', proxy_protocol: {off}}}\npolicy: {{registry: {off}}}\n"
    config = load(text).config
    assert (config.listeners[0].proxy_protocol, config.policy.registry) == ("off", "off")


OUTER_SNI_CHECKS = {
    "ignore": "ignore",
    "require_equal": "require_equal",
    "{require_match: [OUTER.example.org., '*.example.com']}": RequireMatch(
        require_match=("outer.example.org", "*.example.com")
    ),
}


@pytest.mark.parametrize(("text", "check"), OUTER_SNI_CHECKS.items())
def test_the_outer_sni_is_checked_where_every_listener_can_be_told_it(text: str, check: object) -> None:
    config = load(f"listeners:\n  - {PROXIED}\npolicy: {{outer_sni: {text}}}\n").config
    assert config.policy.outer_sni == check


BOOLEANS = {
    **dict.fromkeys(("yes", "on", "true", "ON", "y", "'true'", "1"), True),
    **dict.fromkeys(("no", "off", "false", "No", "N", "'false'", "0"), False),
}


@pytest.mark.parametrize(("word", "value"), BOOLEANS.items())
def test_a_boolean_takes_the_words_of_yaml_1_1(word: str, value: bool) -> None:
    assert load(f"policy: {{require_identity: {word}}}\n").config.policy.require_identity is value


def test_policy_files_are_found_beside_the_config_in_the_order_of_its_entries(folder: Path) -> None:
    """Globs give sorted files; what the kubelet keeps in `..data` is not found twice."""
    deep = folder / "etc"
    for name in ("etc/policy.d/..data_1/a.yaml", "etc/policy.d/b.yaml", "etc/policy.d/c.txt", "etc/z.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (deep / "policy.d" / "..data").symlink_to("..data_1")
    (deep / "policy.d" / "a.yaml").symlink_to("..data/a.yaml")
    (deep / "policy.d" / "folder.yaml").mkdir()
    config = deep / "sniproxy.yaml"
    config.write_text("policy:\n  files: [z.yaml, {path: policy.d/*.yaml, namespace: otherns}]\n")
    other = PolicyFile(path="policy.d/*.yaml", namespace="otherns")
    assert load_config(config).policy_files == (
        (deep / "z.yaml", PolicyFile(path="z.yaml")),
        (deep / "policy.d/a.yaml", other),
        (deep / "policy.d/b.yaml", other),
    )


def test_a_file_may_be_named_for_several_namespaces(folder: Path) -> None:
    """As `kubectl apply -n` may be given one file for each of them."""
    (folder / "google.yaml").touch()
    config = folder / "sniproxy.yaml"
    entries = [PolicyFile(path="google.yaml", namespace=namespace) for namespace in ("default", "otherns")]
    config.write_text(
        "policy:\n  files:\n"
        "    - {path: google.yaml, namespace: default}\n    - {path: google.yaml, namespace: otherns}\n"
    )
    assert load_config(config).policy_files == tuple((folder / "google.yaml", entry) for entry in entries)


def check(text: str) -> list[str]:
    """The problems of a config that is in no file."""
    try:
        for node in parse_documents(text.encode(), "f"):
            read_config(node, "f")
    except BadInputError as error:
        return [str(problem) for problem in error.problems]
    return []


def _names(section: object = Config) -> Iterator[str]:
    for each in fields(section) if isinstance(section, type) and issubclass(section, Section) else ():
        yield each.name
        yield from _names(each.type)


SOME = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        ["off", "127.0.0.1:1", "unix:/s", "uid:3", "10.0.0.0/8", "8.8.8.8", "5s", "64KiB", "required", ""]
    )
    | st.text(st.characters(codec="ascii", exclude_characters="\x7f", min_codepoint=32), max_size=5)
)
WORDS = sorted({*_names(), "address", "trusted_peers", "proxy_protocol", "path", "tlvs", "static", "a.org", "<<"})
TREES = st.recursive(
    SOME,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([each.name for each in fields(Config)]), TREES, max_size=4))
def test_any_values_at_known_keys_are_read_or_refused(config: dict[str, object]) -> None:
    """Each problem is one line in our own words, none of them a library's."""
    told = check(json.dumps(config))  # JSON is YAML
    assert [line for line in told if "Input should" in line or "valid" in line or len(line.splitlines()) != 1] == []
