"""In the pod: a real Envoy terminates the mesh's mutual TLS and tells the proxy who is calling.

The chain is that of the chart: curl, a sidecar's Envoy that wraps its TLS in mutual TLS, the egress gateway's Envoy
with the patches of the chart's EnvoyFilter, and the proxy with the config and policies of the chart's ConfigMaps.
"""

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import ask, connected, fetch, hello_for, proxy_header, sleep_principal
from tests.support.envoy import Envoy, running_envoy
from tests.support.helm import Document, Rendered, accepted, every_values_file, render_one, values_of
from tests.support.istio import TCP_PROXY, Workload, endpoints, gateway, gateway_identity, sidecar
from tests.support.origins import NAMES, Authority, origin, page_of, read_exactly
from tests.support.peers import find_program
from tests.support.pod import Pod, on_free_ports
from tests.support.proxy import ProxyProcess, running_proxy, wait_until
from tests.support.spiffe import MeshAuthority

US, CANADA = sleep_principal("sleep-us"), sleep_principal("sleep-canada")
EN, DE = "en.wikipedia.org", "de.wikipedia.org"
PROXY_CLUSTER = "outbound|8443||sni-proxy.local"
ENVOY_UID = 1337
SLOW_HELLO = hello_for("es.wikipedia.org")

SERVED = {("us", EN), ("us", "es.wikipedia.org"), ("canada", EN), ("canada", "fr.wikipedia.org")}
PAIRS = [(who, name) for who in ("us", "canada") for name in NAMES]
TABLE = {pair: "served" if pair in SERVED else "refused" for pair in PAIRS}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> MeshAuthority:
    return MeshAuthority(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def by_caller() -> Rendered:
    return accepted(every_values_file()["wikipedia-by-caller"])


@pytest.fixture(scope="module")
def ca_file(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.ca.cert_pem.write_to_path(str(path))
    return str(path)


@dataclass
class Chain:
    """Everything between an application and the sites."""

    proxy: ProxyProcess
    gateway: Envoy
    sidecar: Envoy

    def at(self, workload: str) -> tuple[str, int]:
        """Where the application of a workload is intercepted."""
        return self.sidecar.address(workload)


def sleepers(mesh: MeshAuthority, subset: str = "wikipedia") -> dict[str, Workload]:
    """sleep-us and sleep-canada, each with its certificate, going through the tunnel of `subset`."""
    return {
        "us": Workload(mesh.issue(f"spiffe://{US}"), subset),
        "canada": Workload(mesh.issue(f"spiffe://{CANADA}"), subset),
    }


@contextlib.contextmanager
def pod(
    home: Path,
    rendered: Rendered,
    mesh: MeshAuthority,
    hosts: dict[str, list[str]],
    *,
    change_envoy: Callable[[Document], None] | None = None,
    change_config: Callable[[Document], None] | None = None,
) -> Iterator[tuple[ProxyProcess, Envoy]]:
    """The two containers of the gateway's pod. Changes may spoil Envoy's configuration, or the proxy's."""
    home.mkdir(exist_ok=True)
    elsewhere = on_free_ports(home, {"upstream": {"hosts": hosts}})

    def adapt(config: Document) -> None:
        elsewhere(config)
        if change_config:
            change_config(config)

    mounted = Pod(home / "root", rendered, adapt)
    with running_proxy(home, arguments=("--config", str(mounted.config))) as proxy:
        resources = gateway(rendered, mesh.issue(gateway_identity(rendered)), proxy.address)
        if change_envoy:
            change_envoy(resources)
        with running_envoy(home / "gateway", resources) as envoy:
            yield proxy, envoy


@contextlib.contextmanager
def chain(
    home: Path, rendered: Rendered, mesh: MeshAuthority, hosts: dict[str, list[str]], workloads: dict[str, Workload]
) -> Iterator[Chain]:
    with pod(home, rendered, mesh, hosts) as (proxy, envoy), in_front_of(home, rendered, workloads, envoy) as client:
        yield Chain(proxy, envoy, client)


@contextlib.contextmanager
def in_front_of(home: Path, rendered: Rendered, workloads: dict[str, Workload], envoy: Envoy) -> Iterator[Envoy]:
    """The sidecar's Envoy in front of a gateway's."""
    resources = sidecar(rendered, workloads, the_listener(envoy))
    with running_envoy(home / "sidecar", resources) as client:
        yield client


def the_listener(envoy: Envoy) -> tuple[str, int]:
    return envoy.address("0.0.0.0_443")


def curl(address: tuple[str, int], ca_file: str, name: str) -> subprocess.CompletedProcess[str]:
    host, port = address
    through = ["--connect-to", f"::{host}:{port}", "--cacert", ca_file, "--max-time", "20"]
    command = [find_program("curl"), "--silent", "--show-error", *through, f"https://{name}/"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def verdict(result: subprocess.CompletedProcess[str], name: str) -> str:
    """What curl got: the page of the name, or the proxy's alert (exit 35), or something else."""
    if result.returncode == 0:
        assert result.stdout == page_of(name)
        return "served"
    told = "access denied" in result.stderr and result.returncode == 35
    return "refused" if told else f"failed: {result.stderr}"


def play_table(served: Chain, ca_file: str) -> dict[tuple[str, str], str]:
    """Both workloads ask for the four Wikipedias."""
    return {(who, name): verdict(curl(served.at(who), ca_file, name), name) for who, name in PAIRS}


def test_two_workloads_and_four_wikipedias_through_the_whole_chain(
    tmp_path: Path, by_caller: Rendered, mesh: MeshAuthority, wikipedias: dict[str, list[str]], ca_file: str
) -> None:
    """Each reaches its own; the log has the principal and the gateway's names; Envoy's counter is the seed's."""
    with chain(tmp_path, by_caller, mesh, wikipedias, sleepers(mesh)) as served:
        assert play_table(served, ca_file) == TABLE
        lines = served.proxy.wait_for_finals(8)
        assert served.gateway.stat(f"cluster.{PROXY_CLUSTER}.upstream_cx_total") == 8
    told = {(line["sourcePrincipal"], line["requestedServerName"]): line["decision"] for line in lines}
    assert told == {
        (sleep_principal(f"sleep-{who}"), name): "allow" if (who, name) in SERVED else "deny" for who, name in PAIRS
    }
    assert {line["source"] for line in lines} == {"istio-egressgateway-with-sni-proxy"}
    assert {line["instance"] for line in lines} == {"egress-access.logentry.istio-system"}
    assert {line["sourceIp"] for line in lines} == {"127.0.0.1"}


@pytest.mark.parametrize("connect", ["ON_DOWNSTREAM_TLS_HANDSHAKE", "ON_DOWNSTREAM_DATA"])
def test_the_identity_is_known_whenever_envoy_connects(
    tmp_path: Path,
    mesh: MeshAuthority,
    wikipedias: dict[str, list[str]],
    authority: Authority,
    connect: str,
) -> None:
    """After the handshake or with the first data, on each of many connections at once: never `-`."""
    values = values_of("wikipedia-by-caller")
    values["istio"]["connect"] = connect
    rendered = accepted(render_one(values))
    with chain(tmp_path, rendered, mesh, wikipedias, sleepers(mesh)) as served:
        trust, address = authority.client_context(), served.at("us")
        with ThreadPoolExecutor(8) as pool:
            pages = list(pool.map(lambda _: fetch(address, EN, trust), range(40)))
        principals = {line["sourcePrincipal"] for line in served.proxy.wait_for_finals(40)}
    assert (pages, principals) == ([page_of(EN)] * 40, {US})


def test_an_envoy_that_connects_at_once_has_no_identity_to_tell(
    tmp_path: Path, by_caller: Rendered, mesh: MeshAuthority, wikipedias: dict[str, list[str]]
) -> None:
    """The trap that the chart keeps clear of: it says `-`, and `-` is nobody, who matches no rule."""

    def connect_at_once(resources: Document) -> None:
        for chain_of_filters in resources["listeners"][0]["filter_chains"]:
            (tcp_proxy,) = (one for one in chain_of_filters["filters"] if one["name"] == TCP_PROXY)
            del tcp_proxy["typed_config"]["upstream_connect_mode"], tcp_proxy["typed_config"]["max_early_data_bytes"]

    with pod(tmp_path, by_caller, mesh, wikipedias, change_envoy=connect_at_once) as (proxy, envoy):
        with in_front_of(tmp_path, by_caller, sleepers(mesh), envoy) as client:
            assert ask(client.address("us"), hello_for(EN)) == "access_denied"
            line = proxy.wait_for_finals(1)[0]
    assert (line["reason"], line["sourcePrincipal"]) == ("default", "unknown")


def test_a_workload_without_a_certificate_never_gets_to_the_proxy(
    tmp_path: Path, by_caller: Rendered, mesh: MeshAuthority, wikipedias: dict[str, list[str]], ca_file: str
) -> None:
    """Nor one whose certificate is another authority's: the gateway ends the handshake."""
    other = tmp_path / "other"
    other.mkdir()
    foreign = MeshAuthority(other).issue(f"spiffe://{US}")
    strangers = {
        "nobody": Workload(mesh.nobody(), "wikipedia"),
        "foreign": Workload(replace(foreign, authority=mesh.nobody().authority), "wikipedia"),
    }
    with chain(tmp_path, by_caller, mesh, wikipedias, strangers) as served:
        got = {who: curl(served.at(who), ca_file, EN).returncode for who in strangers}
        refused = [sum(served.gateway.stats(f".ssl.fail_verify_{why}").values()) for why in ("no_cert", "error")]
        assert served.proxy.metrics()["sniproxy_connections_accepted_total"] == 0
    assert 0 not in got.values()
    assert refused == [1, 1]


def test_an_envoy_that_is_not_trusted_is_not_believed(
    tmp_path: Path, by_caller: Rendered, mesh: MeshAuthority, wikipedias: dict[str, list[str]]
) -> None:
    """Whatever its PROXY header says: it is refused, with its own address and no identity in the log."""

    def trust_others(config: Document) -> None:
        config["listeners"][0]["trusted_peers"] = ["192.0.2.0/24"]

    with pod(tmp_path, by_caller, mesh, wikipedias, change_config=trust_others) as (proxy, envoy):
        with in_front_of(tmp_path, by_caller, sleepers(mesh), envoy) as client:
            assert ask(client.address("us"), hello_for(EN)) == "access_denied"
            line = proxy.wait_for_finals(1)[0]
    assert (line["reason"], line["sourcePrincipal"]) == ("untrusted_peer", "unknown")


def test_a_certificate_with_two_names_is_nobodys(
    tmp_path: Path, by_caller: Rendered, mesh: MeshAuthority, wikipedias: dict[str, list[str]]
) -> None:
    """Envoy joins them with a comma; the proxy refuses to choose."""
    both = {"both": Workload(mesh.issue(f"spiffe://{US}", f"spiffe://{CANADA}"), "wikipedia")}
    with chain(tmp_path, by_caller, mesh, wikipedias, both) as served:
        assert ask(served.at("both"), hello_for(EN)) == "access_denied"
        line = served.proxy.wait_for_finals(1)[0]
    assert (line["reason"], line["sourcePrincipal"]) == ("bad_proxy_header", "unknown")


def test_a_workload_cannot_speak_for_another(
    tmp_path: Path, by_caller: Rendered, mesh: MeshAuthority, wikipedias: dict[str, list[str]]
) -> None:
    """A PROXY header of its own, inside the tunnel, stands where the ClientHello should, and is none."""
    with chain(tmp_path, by_caller, mesh, wikipedias, sleepers(mesh)) as served:
        assert ask(served.at("canada"), proxy_header(US), hello_for("es.wikipedia.org")) == "access_denied"
        line = served.proxy.wait_for_finals(1)[0]
    assert (line["reason"], line["sourcePrincipal"]) == ("not_tls", CANADA)


def test_the_tunnel_that_a_workload_came_through_is_told(
    tmp_path: Path, mesh: MeshAuthority, wikipedias: dict[str, list[str]], ca_file: str
) -> None:
    """An SNI that no server of the Gateway has ends there; one that is not the tunnel's ends at the proxy."""
    rendered = accepted(every_values_file()["outer-sni-placeholder"])
    credentials = mesh.issue(f"spiffe://{US}")
    workloads = {
        "honest": Workload(credentials, "wikipedia"),
        "sly": Workload(credentials, sni=EN),
        "elsewhere": Workload(credentials, sni="www.example.com"),
    }
    with chain(tmp_path, rendered, mesh, wikipedias, workloads) as served:
        got = {who: curl(served.at(who), ca_file, EN) for who in workloads}
        lines = served.proxy.wait_for_finals(2)
    assert (verdict(got["honest"], EN), verdict(got["sly"], EN)) == ("served", "refused")
    assert got["elsewhere"].returncode != 0
    assert sorted(line["reason"] for line in lines) == ["done", "sni_mismatch"]


def test_a_unix_socket_between_the_containers_trusts_envoys_user_alone(
    mesh: MeshAuthority, wikipedias: dict[str, list[str]], ca_file: str, open_home: Path
) -> None:
    """Envoy runs as 1337, as Istio's does, and is believed; another process of the pod is not."""
    if os.getuid() != 0:
        pytest.skip("only root can run Envoy as another user")
    rendered = accepted(every_values_file()["unix-socket"])
    sockets = open_home / "run"  # the emptyDir, which belongs to the fsGroup
    sockets.mkdir()
    os.chown(sockets, 0, rendered.the("Deployment")["spec"]["template"]["spec"]["securityContext"]["fsGroup"])
    sockets.chmod(0o2770)
    socket = str(sockets / "sni.sock")
    elsewhere = on_free_ports(open_home, {"upstream": {"hosts": wikipedias}})

    def adapt(config: Document) -> None:
        elsewhere(config)
        assert config["listeners"][0]["trusted_peers"] == [f"uid:{ENVOY_UID}"]
        config["listeners"][0]["address"] = f"unix:{socket}"

    mesh = MeshAuthority(open_home)
    mounted = Pod(open_home / "root", rendered, adapt)
    with running_proxy(open_home, arguments=("--config", str(mounted.config))) as proxy:
        resources = gateway(rendered, mesh.issue(gateway_identity(rendered)), socket)
        with running_envoy(open_home / "gateway", resources, user=ENVOY_UID) as envoy:
            with in_front_of(open_home, rendered, sleepers(mesh), envoy) as client:
                assert play_table(Chain(proxy, envoy, client), ca_file) == TABLE
                forged = ask(socket, proxy_header(US), hello_for(EN))
        lines = proxy.wait_for_finals(9)
    assert forged == "access_denied"
    # Two workers write, so that the order of lines is nobody's.
    told = Counter((line["reason"] == "untrusted_peer", line["sourcePrincipal"]) for line in lines)
    assert told == {(True, "unknown"): 1, (False, US): 4, (False, CANADA): 4}


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A folder that other users can look into, unlike pytest's."""
    home = Path(tempfile.mkdtemp(prefix="sniproxy-"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home)


# Draining.


def pre_stop(rendered: Rendered, envoy: Envoy) -> list[str]:
    """The command that the kubelet runs in the container before it stops it, with this Envoy's admin address."""
    command: list[str] = rendered.container()["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "python3"
    assert command[-1] == "127.0.0.1:15000"
    return [sys.executable, *command[1:-1], envoy.admin]


def stop_envoy(envoy: Envoy) -> None:
    """As Istio's agent does with EXIT_ON_ZERO_ACTIVE_CONNECTIONS: drain, and end with the last connection."""
    envoy.post("/drain_listeners?graceful")
    active = f"listener.{the_listener(envoy)[0]}_0.downstream_cx_active"
    assert active in envoy.stats(active)
    wait_until(lambda: envoy.stat(active) == 0, "no connection")
    envoy.stop()


def stop_pod(rendered: Rendered, proxy: ProxyProcess, envoy: Envoy) -> None:
    """What the kubelet does: both containers at the same time, each with its own way to end."""
    with subprocess.Popen(pre_stop(rendered, envoy)) as hook:
        stop_envoy(envoy)
        assert hook.wait(20) == 0
    proxy.terminate()
    assert proxy.wait() == 0


def test_a_rolling_restart_under_load_loses_no_connection(
    tmp_path: Path, by_caller: Rendered, mesh: MeshAuthority, authority: Authority, wikipedias: dict[str, list[str]]
) -> None:
    """New ones go to the new pod, and those of the old one finish: nothing fails, and nothing ends with `drain`."""
    go_on = threading.Event()

    def slow(sock: Any) -> None:
        assert read_exactly(sock, len(SLOW_HELLO)) == SLOW_HELLO
        sock.sendall(b"begun")
        assert go_on.wait(30)
        sock.sendall(b"done!")

    places = tmp_path / "endpoints.json"
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(origin(slow))
        hosts = {**wikipedias, "es.wikipedia.org": [f"127.0.0.1:{port}"]}
        old_proxy, old_envoy = stack.enter_context(pod(tmp_path / "old", by_caller, mesh, hosts))
        write_endpoints(places, the_listener(old_envoy))
        workloads = {"us": sleepers(mesh)["us"]}
        resources = sidecar(by_caller, workloads, str(places))
        client = stack.enter_context(running_envoy(tmp_path / "sidecar", resources))
        address, trust = client.address("us"), authority.client_context()

        long_lived = [stack.enter_context(connected(address)) for _ in range(5)]
        for sock in long_lived:
            sock.sendall(SLOW_HELLO)
            assert read_exactly(sock, 5) == b"begun"
        load = stack.enter_context(running_load(address, trust))
        new_proxy, new_envoy = stack.enter_context(pod(tmp_path / "new", by_caller, mesh, hosts))
        write_endpoints(places, the_listener(new_envoy))
        stopping = stack.enter_context(ThreadPoolExecutor(1)).submit(stop_pod, by_caller, old_proxy, old_envoy)
        wait_until(lambda: len(new_proxy.finals) > 50, "the load in the new pod")
        assert not stopping.done()  # five connections are not over
        go_on.set()
        assert [read_exactly(sock, 5) for sock in long_lived] == [b"done!"] * 5
        for sock in long_lived:
            sock.close()
        stopping.result(20)
        wait_until(lambda: len(new_proxy.finals) > 100, "the load after the old pod's end")
        load.stop()
        new_proxy.wait_until_told()
        new_proxy.wait_until_idle()
        reasons = Counter(line["reason"] for line in (*old_proxy.finals, *new_proxy.finals))
    assert load.failures == []
    assert reasons == {"done": load.served + len(long_lived)}


def test_what_does_not_end_is_ended_when_the_drain_is_over(
    tmp_path: Path, mesh: MeshAuthority, wikipedias: dict[str, list[str]]
) -> None:
    """preStop waits for Envoy no longer than it may; then the proxy drains, and the last connection ends."""
    values = values_of("wikipedia-by-caller")
    rendered = accepted(render_one({**values, "drain": {"seconds": 5}}))

    def never(sock: Any) -> None:
        read_exactly(sock, len(SLOW_HELLO))
        sock.sendall(b"begun")
        sock.recv(1)

    def soon(config: Document) -> None:
        config["timeouts"]["drain"] = "300ms"

    with origin(never) as port:
        hosts = {"es.wikipedia.org": [f"127.0.0.1:{port}"]}
        with contextlib.ExitStack() as stack:
            proxy, envoy = stack.enter_context(pod(tmp_path, rendered, mesh, hosts, change_config=soon))
            client = stack.enter_context(in_front_of(tmp_path, rendered, sleepers(mesh), envoy))
            sock = stack.enter_context(connected(client.address("us")))
            sock.sendall(SLOW_HELLO)
            assert read_exactly(sock, 5) == b"begun"
            command = pre_stop(rendered, envoy)
            assert command[-2] == "5"
            command[-2] = "0.5"
            assert subprocess.run(command, check=False, timeout=20).returncode == 0
            proxy.terminate()
            assert sock.recv(1) == b""
            assert proxy.wait() == 0
            assert [line["reason"] for line in proxy.finals] == ["drain"]


def write_endpoints(path: Path, place: tuple[str, int]) -> None:
    """Envoy watches for a file that is renamed to the path."""
    new = path.with_suffix(".new")
    resource = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        **endpoints("us", [place]),
    }
    new.write_text(json.dumps({"version_info": str(place), "resources": [resource]}))
    new.rename(path)


class Load:
    """Threads that fetch a page again and again, until they are told to stop."""

    def __init__(self, address: tuple[str, int], trust: ssl.SSLContext) -> None:
        self.served = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(address, trust)) for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def _run(self, address: tuple[str, int], trust: ssl.SSLContext) -> None:
        while not self._over.is_set():
            try:
                assert fetch(address, EN, trust) == page_of(EN)
                self.served += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
                return

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def running_load(address: tuple[str, int], trust: ssl.SSLContext) -> Iterator[Load]:
    load = Load(address, trust)
    try:
        yield load
    finally:
        load.stop()
