"""Where connections go: names by a real DNS server, addresses by the guard, and what happens when nothing answers."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import allowing
from tests.support.clients import ask, fetch, hello_for
from tests.support.dns_server import dnsmasq, unused_port
from tests.support.origins import Authority, page_of, tls_origin
from tests.support.proxy import running_proxy

EN = "en.wikipedia.org"


def resolving(nameserver: str, port: int, **upstream: Any) -> dict[str, Any]:
    """A config whose names resolve by this server, and whose connections go to this port."""
    resolver = {"nameservers": [nameserver], "timeout": "500ms"}
    return {"upstream": {"port": port, "resolver": resolver, **upstream}}


def test_a_name_is_resolved_dialled_and_served(tmp_path: Path, authority: Authority) -> None:
    """By dnsmasq, on the configured port, with the guard opened for loopback; the answer is then remembered."""
    with tls_origin(authority, EN) as port, dnsmasq(f"host-record={EN},127.0.0.1") as server:
        config = resolving(server, port, allow_networks=["127.0.0.0/8"])
        with running_proxy(tmp_path, config, allowing("*.wikipedia.org")) as proxy:
            pages = [fetch(proxy.address, EN, authority.client_context()) for _ in range(3)]
            metrics = proxy.wait_until_idle()
    assert pages == [page_of(EN)] * 3
    looked_for = {
        result: metrics[f'sniproxy_dns_cache_requests_total{{result="{result}"}}'] for result in ("hit", "miss")
    }
    assert looked_for == {"hit": 2.0, "miss": 1.0}


def test_a_name_that_points_inside_is_refused(tmp_path: Path) -> None:
    """The destination guard: loopback, private and metadata addresses are no destinations, whatever DNS says."""
    records = {"lo": "127.0.0.1", "private": "10.1.2.3", "metadata": "169.254.169.254", "mapped": "::ffff:10.1.2.3"}
    names = [f"{name}.wikipedia.org" for name in records]
    hosts = [f"host-record={name}.wikipedia.org,{address}" for name, address in records.items()]
    with (
        dnsmasq(*hosts) as server,
        running_proxy(tmp_path, resolving(server, 443), allowing("*.wikipedia.org")) as proxy,
    ):
        alerts = {ask(proxy.address, hello_for(name)) for name in names}
        lines = {line["requestedServerName"]: line for line in proxy.wait_for_finals(len(names))}
    assert alerts == {"access_denied"}
    assert {name: lines[name]["reason"] for name in names} == dict.fromkeys(names, "destination_forbidden")
    assert "169.254.169.254 is in 169.254.0.0/16" in lines["metadata.wikipedia.org"]["responseCodeDetails"]


def test_a_rule_may_have_its_own_exception(tmp_path: Path, authority: Authority) -> None:
    """allow_networks of the rule that allows opens the guard for its names, and for no other."""
    rules = [
        {"name": "inside", "action": "allow", "sni": [EN], "allow_networks": ["127.0.0.0/8"]},
        {"name": "outside", "action": "allow", "sni": ["*.wikipedia.org"]},
    ]
    with tls_origin(authority, EN) as port, dnsmasq("address=/wikipedia.org/127.0.0.1") as server:
        with running_proxy(tmp_path, resolving(server, port), {"rules": rules}) as proxy:
            assert fetch(proxy.address, EN, authority.client_context()) == page_of(EN)
            assert ask(proxy.address, hello_for("de.wikipedia.org")) == "access_denied"
            reasons = {line["requestedServerName"]: line["reason"] for line in proxy.wait_for_finals(2)}
    assert reasons == {EN: "done", "de.wikipedia.org": "destination_forbidden"}


def test_denied_networks_win_over_allowed_ones(tmp_path: Path) -> None:
    """upstream.deny_networks beats upstream.allow_networks."""
    with dnsmasq(f"host-record={EN},127.0.0.1") as server:
        config = resolving(server, 443, allow_networks=["127.0.0.0/8"], deny_networks=["127.0.0.0/24"])
        with running_proxy(tmp_path, config, allowing(EN)) as proxy:
            assert ask(proxy.address, hello_for(EN)) == "access_denied"
            assert "deny_networks" in proxy.wait_for_finals(1)[0]["responseCodeDetails"]


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0", "[::]"])
def test_the_proxy_never_dials_itself(tmp_path: Path, listen: str) -> None:
    """Static hosts are exempt from the guard, and not from the check for our own listeners and admin address."""
    port, admin = unused_port(), unused_port()
    inside = "[::1]" if listen == "[::]" else "127.0.0.1"
    hosts = {"self.wikipedia.org": [f"{inside}:{port}"], "admin.wikipedia.org": [f"127.0.0.1:{admin}"]}
    config = {
        "listeners": [{"address": f"{listen}:{port}"}],
        "admin": {"address": f"127.0.0.1:{admin}"},
        "upstream": {"hosts": hosts},
    }
    with running_proxy(tmp_path, config, allowing("*.wikipedia.org")) as proxy:
        target = (inside.strip("[]"), port)
        assert [ask(target, hello_for(name)) for name in hosts] == ["access_denied"] * 2
        lines = proxy.wait_for_finals(2)
    assert [line["reason"] for line in lines] == ["destination_forbidden"] * 2


FAILURES = {
    "a name that does not exist": ("none.wikipedia.org", "dns_nxdomain", "unrecognized_name"),
    "a port that nobody listens on": (EN, "connect_refused", "internal_error"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_names_its_source(tmp_path: Path, what: str) -> None:
    """A fail line, level warning, with what was tried; and an alert that fits."""
    name, reason, alert = FAILURES[what]
    with dnsmasq(f"host-record={EN},127.0.0.1", "local=/wikipedia.org/") as server:
        config = resolving(server, unused_port(), allow_networks=["127.0.0.0/8"])
        with running_proxy(tmp_path, config, allowing("*.wikipedia.org")) as proxy:
            assert ask(proxy.address, hello_for(name)) == alert
            line = proxy.wait_for_finals(1)[0]
    assert (line["connectionEvent"], line["level"], line["reason"]) == ("fail", "warning", reason)
    assert name in line["responseCodeDetails"]


def test_a_dead_dns_server_costs_its_timeout_and_says_so(tmp_path: Path) -> None:
    """Nothing answers on the name server's port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        with running_proxy(tmp_path, resolving(server, 443), allowing(EN)) as proxy:
            assert ask(proxy.address, hello_for(EN)) == "internal_error"
            assert proxy.wait_for_finals(1)[0]["reason"] == "dns_timeout"


def test_a_refused_name_is_never_asked_for(tmp_path: Path) -> None:
    """Decide before resolving: a refusal sends no query."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        with running_proxy(tmp_path, resolving(server, 443), allowing("example.org")) as proxy:
            assert ask(proxy.address, hello_for(EN)) == "access_denied"
        with pytest.raises(BlockingIOError):
            silent.recv(512)


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port whose queue is full, so that the kernel answers no SYN: connecting hangs."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address[1]


def test_an_upstream_that_does_not_answer_times_out(tmp_path: Path) -> None:
    """upstream.connect_timeout, and the address that it was spent on."""
    with black_hole() as port:
        config = {"upstream": {"hosts": {EN: [f"127.0.0.1:{port}"]}, "connect_timeout": "500ms"}}
        with running_proxy(tmp_path, config, allowing(EN)) as proxy:
            assert ask(proxy.address, hello_for(EN)) == "internal_error"
            line = proxy.wait_for_finals(1)[0]
    assert line["reason"] == "connect_timeout"
    assert line["responseCodeDetails"] == f"{EN}: 127.0.0.1:{port} gave no answer within 0.5s"


def test_the_next_address_is_tried_while_one_hangs_or_refuses(tmp_path: Path, authority: Authority) -> None:
    """Happy eyeballs: a refusing and a silent address, of both families, in front of one that serves."""
    with tls_origin(authority, EN) as good, black_hole() as silent:
        hosts = {EN: [f"[::1]:{unused_port()}", f"127.0.0.1:{silent}", f"127.0.0.1:{good}"]}
        with running_proxy(tmp_path, {"upstream": {"hosts": hosts}}, allowing(EN)) as proxy:
            assert fetch(proxy.address, EN, authority.client_context()) == page_of(EN)
            assert proxy.wait_for_finals(1)[0]["destinationPort"] == good
