"""The answers in JSON. What they say of a running proxy is shown in tests/e2e/test_admin.py."""

import ipaddress
from dataclasses import fields

import orjson

from sniproxy.config.model import Admin, Config, Listener, Upstream
from sniproxy.config.units import TcpAddress, UnixAddress
from sniproxy.identity.spiffe import parse_principal
from sniproxy.names import ServerName
from sniproxy.observe.admin.answers import connections, plain
from sniproxy.observe.metrics import Meter, new_scoreboard


def test_the_connections_of_each_worker() -> None:
    board = new_scoreboard(2)
    for number, row in enumerate(board.workers):
        meter = Meter(row)
        meter.in_force(4)
        meter.serving(yes=number == 0)
        for _ in range(number + 1):
            meter.accepted()
        meter.settle()
    assert connections(board) == {
        "active": 3,
        "workers": [
            {"worker": 0, "active": 1, "generation": 4, "serving": True, "stuck": False},
            {"worker": 1, "active": 2, "generation": 4, "serving": False, "stuck": False},
        ],
        "latest": {"opened": [], "refused": [], "failed": []},
    }


def test_the_config_is_told_under_its_own_keys_and_in_its_own_words() -> None:
    told = plain(
        Config(
            listeners=(Listener(address=UnixAddress("/run/sni.sock")),),
            upstream=Upstream(
                hosts={ServerName("a.org"): (TcpAddress("127.0.0.1", 9443),)},
                allow_networks=(ipaddress.ip_network("10.0.0.0/8"),),
            ),
            admin=Admin(address=None),
        )
    )
    assert isinstance(told, dict)
    assert told.keys() == {each.name for each in fields(Config)}
    assert told["listeners"][0]["address"] == "unix:/run/sni.sock"
    assert told["upstream"]["hosts"] == {"a.org": ["127.0.0.1:9443"]}
    assert told["upstream"]["allow_networks"] == ["10.0.0.0/8"]
    assert told["upstream"]["connect_timeout"] == 5.0
    assert told["admin"] == {"address": None, "metrics_address": None}
    assert orjson.loads(orjson.dumps(told)) == told


def test_a_principal_is_told_as_policies_write_it() -> None:
    assert plain(parse_principal("spiffe://cluster.local/ns/a/sa/b")) == "cluster.local/ns/a/sa/b"
