"""Processes: workers that die, draining, limits, running out of descriptors, and counts that add up."""

import contextlib
import os
import resource
import signal
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.e2e.conftest import allowing
from tests.support.clients import ask, connected, fetch, hello_for
from tests.support.echoing import NAME, opened, ping
from tests.support.origins import Authority, page_of, read_exactly, read_to_end
from tests.support.proxy import ProxyProcess, is_ready, running_proxy, wait_until

HELLO = hello_for(NAME)


def config_for(port: int, **more: Any) -> dict[str, Any]:
    return {"upstream": {"hosts": {NAME: [f"127.0.0.1:{port}"]}}, **more}


def accepts(proxy: ProxyProcess) -> bool:
    """Whether anybody listens where the proxy did."""
    try:
        socket.create_connection(proxy.address).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_dead_worker_is_replaced_and_the_others_keep_serving(tmp_path: Path, echo_port: int) -> None:
    """kill -9 of a worker: its connections are counted as lost, the rest go on, counters never go back."""
    with running_proxy(tmp_path, config_for(echo_port, workers=2), allowing(NAME)) as proxy:
        first = proxy.children()[0]
        with contextlib.ExitStack() as stack:
            live = [stack.enter_context(opened(proxy)) for _ in range(24)]
            before = proxy.metrics()
            os.kill(first, signal.SIGKILL)
            proxy.wait_until_said("process died")
            wait_until(lambda: first not in proxy.children() and len(proxy.children()) == 3, "a new worker")
            wait_until(lambda: is_ready(proxy), "a ready proxy")
            alive = 0
            for sock in live:
                with contextlib.suppress(OSError):
                    alive += ping(sock) == b"ping"
        with opened(proxy) as sock:
            assert ping(sock) == b"ping"
        after = proxy.wait_until_idle()
        lost = [line for line in proxy.lines if line["connectionEvent"] == "worker_lost"]
    assert [line["connections"] for line in lost] == [24 - alive]
    assert after["sniproxy_connections_lost_total"] == 24 - alive
    assert before["sniproxy_connections_accepted_total"] == 24
    assert after["sniproxy_connections_accepted_total"] == 25
    assert after['sniproxy_connections_closed_total{reason="done"}'] == alive + 1
    assert (before["sniproxy_worker_restarts_total"], after["sniproxy_worker_restarts_total"]) == (0, 1)


def test_connections_spread_over_all_workers(tmp_path: Path, echo_port: int) -> None:
    """Each of two workers serves its share of 100 connections; together they count them all."""
    with running_proxy(tmp_path, config_for(echo_port, workers=2), allowing(NAME)) as proxy:
        for _ in range(100):
            with opened(proxy):
                pass
        workers = Counter(line["connectionId"].split("-")[0] for line in proxy.wait_for_finals(100))
        assert proxy.wait_until_idle()["sniproxy_connections_accepted_total"] == 100
    assert len(workers) == 2
    assert min(workers.values()) > 20


def test_sigterm_lets_live_connections_finish(tmp_path: Path, echo_port: int) -> None:
    """No new connections; a live one goes on until its own end; then the proxy ends with 0. Meanwhile it is unready."""
    with running_proxy(tmp_path, config_for(echo_port), allowing(NAME)) as proxy:
        with opened(proxy) as sock:
            proxy.terminate()
            wait_until(lambda: not accepts(proxy), "a closed listener")
            with pytest.raises(HTTPError, match="503"):
                proxy.get("/readyz")
            assert proxy.metrics()["sniproxy_connections_active"] == 1
            assert ping(sock) == b"ping"
        assert proxy.wait() == 0
        # Looking whether the listener is closed may have made connections of its own, that sent nothing.
        assert [line["reason"] for line in proxy.finals if line["requestedServerName"] == NAME] == ["done"]


def test_what_outlives_the_drain_is_closed_and_counted(tmp_path: Path, echo_port: int) -> None:
    """timeouts.drain, and the rest end with the reason drain."""
    with running_proxy(tmp_path, config_for(echo_port, timeouts={"drain": "300ms"}), allowing(NAME)) as proxy:
        with opened(proxy) as sock:
            proxy.terminate()
            assert read_to_end(sock) == b""
        assert proxy.wait() == 0
        assert [(line["connectionEvent"], line["reason"]) for line in proxy.finals] == [("close", "drain")]


def test_interrupting_from_a_terminal_drains_too(tmp_path: Path, echo_port: int) -> None:
    """^C reaches every process of the group at once; the workers leave it to the supervisor."""
    with running_proxy(tmp_path, config_for(echo_port), allowing(NAME)) as proxy:
        with opened(proxy) as sock:
            for pid in (proxy.process.pid, *proxy.children()):
                os.kill(pid, signal.SIGINT)
            proxy.wait_until_said("stopping")
            assert ping(sock) == b"ping"
        assert proxy.wait() == 0


def test_workers_do_not_outlive_their_supervisor(tmp_path: Path, echo_port: int) -> None:
    """kill -9 of the supervisor: its children see the lifeline end, drain and go."""
    with running_proxy(tmp_path, config_for(echo_port), allowing(NAME)) as proxy:
        children = proxy.children()
        proxy.process.kill()
        proxy.process.wait()
        for pid in children:
            wait_until(lambda pid=pid: not _is_alive(pid), f"the end of process {pid}")  # type: ignore[misc]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_the_connection_limit_counts_all_workers(tmp_path: Path, echo_port: int) -> None:
    """limits.connections: the next one is refused at once, and served when there is room again."""
    limits = {"connections": 5}
    with running_proxy(tmp_path, config_for(echo_port, workers=2, limits=limits), allowing(NAME)) as proxy:
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(opened(proxy))
            assert ask(proxy.address, HELLO) == "access_denied"
            assert proxy.wait_for_finals(1)[0]["reason"] == "connection_limit"
        proxy.wait_until_idle()
        with opened(proxy) as sock:
            assert ping(sock) == b"ping"


def test_one_source_cannot_hold_every_undecided_slot(tmp_path: Path, echo_port: int) -> None:
    """limits.undecided_per_source: who waits with half a hello is refused from then on, and others are not."""
    limits = {"undecided_per_source": 3}
    with running_proxy(tmp_path, config_for(echo_port, workers=2, limits=limits), allowing(NAME)) as proxy:
        with contextlib.ExitStack() as stack:
            for count in range(1, 4):
                stack.enter_context(connected(proxy.address)).sendall(HELLO[:50])
                wait_until(lambda count=count: proxy.metrics()["sniproxy_connections_active"] == count, "it waits")  # type: ignore[misc]
            assert ask(proxy.address, HELLO[:50]) == "access_denied"
            assert proxy.wait_for_finals(1)[0]["reason"] == "connection_limit"
            with opened(proxy) as sock:  # a whole hello never waits
                assert ping(sock) == b"ping"
        proxy.wait_until_idle()
        with connected(proxy.address) as sock:
            sock.sendall(HELLO[:50])
            wait_until(lambda: proxy.metrics()["sniproxy_connections_active"] == 1, "it waits")
            sock.sendall(HELLO[50:])
            assert read_exactly(sock, 5) == b"ready"


def test_out_of_descriptors_it_sheds_and_recovers(tmp_path: Path, echo_port: int) -> None:
    """EMFILE: connections are closed and counted, the process does not spin, and it serves again afterwards."""
    with running_proxy(tmp_path, config_for(echo_port), allowing(NAME)) as proxy:
        worker = proxy.children()[0]
        # The limit on connections keeps clear of this; so take the descriptors away behind its back.
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (50, 50))
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connected(proxy.address)) for _ in range(80)]
            for sock in socks:
                sock.sendall(HELLO[:50])
            wait_until(lambda: proxy.metrics()["sniproxy_connections_shed_total"] > 0, "a shed connection")
            assert proxy.wait_for_finals(1)[0]["reason"] == "connection_limit"
            # Nobody comes any more: a loop that spins would go on burning CPU.
            before = _cpu_ticks(worker)
            threading.Event().wait(0.5)
            assert _cpu_ticks(worker) - before < 25
        proxy.wait_until_idle()
        with opened(proxy) as sock:
            assert ping(sock) == b"ping"


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def test_more_connections_than_descriptors_is_said_at_the_start(tmp_path: Path, echo_port: int) -> None:
    """limits.connections is clamped to the descriptors there are, with the mend."""
    with running_proxy(tmp_path, config_for(echo_port), allowing(NAME), descriptors=1024) as proxy:
        warning = proxy.wait_until_said("limits.connections is more than there are descriptors for")
    assert (warning["configured"], warning["used"]) == (20000, (1024 - 256 - 1024 // 8) // 2)


def test_every_connection_has_one_final_line_and_one_count(
    tmp_path: Path, echo_port: int, wikipedias: dict[str, Any], authority: Authority
) -> None:
    """Served, refused, failed, reset and idle connections at once: N connections, N lines, and the same N counted."""
    hosts = {**wikipedias, NAME: [f"127.0.0.1:{echo_port}"], "dead.wikipedia.org": ["127.0.0.1:1"]}
    config = {"upstream": {"hosts": hosts}, "timeouts": {"client_hello": "300ms", "idle": "300ms"}, "workers": 2}

    def served(proxy: ProxyProcess) -> None:
        assert fetch(proxy.address, "en.wikipedia.org", authority.client_context()) == page_of("en.wikipedia.org")

    def idle(proxy: ProxyProcess) -> None:
        with opened(proxy) as sock:
            assert read_to_end(sock) == b""

    def reset(proxy: ProxyProcess) -> None:
        with opened(proxy) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def silent(proxy: ProxyProcess) -> None:
        with connected(proxy.address) as sock:
            sock.sendall(b"\x16")
            read_to_end(sock)

    kinds = {
        ("close", "done"): served,
        ("close", "idle_timeout"): idle,
        ("close", "client_reset"): reset,
        ("fail", "hello_timeout"): silent,
        ("fail", "connect_refused"): lambda proxy: ask(proxy.address, hello_for("dead.wikipedia.org")),
        ("deny", "default"): lambda proxy: ask(proxy.address, hello_for("example.org")),
        ("deny", "not_tls"): lambda proxy: ask(proxy.address, b"GET / HTTP/1.0\r\n\r\n"),
        ("deny", "sni_is_ip"): lambda proxy: ask(proxy.address, hello_for("127.0.0.1")),
    }
    each = 10
    with running_proxy(tmp_path, config, allowing("*.wikipedia.org")) as proxy:
        with ThreadPoolExecutor(16) as pool:
            for future in [pool.submit(kind, proxy) for kind in kinds.values() for _ in range(each)]:
                future.result()
        lines = proxy.wait_for_finals(each * len(kinds))
        metrics = proxy.wait_until_idle()
    assert Counter((line["connectionEvent"], line["reason"]) for line in lines) == dict.fromkeys(kinds, each)
    assert len({line["connectionId"] for line in lines}) == each * len(kinds)
    del metrics["sniproxy_connections_limit"]
    counted = {name: value for name, value in metrics.items() if value and name.startswith("sniproxy_connections")}
    assert counted == {
        "sniproxy_connections_accepted_total": each * len(kinds),
        "sniproxy_connections_opened_total": 3 * each,
        'sniproxy_connections_closed_total{reason="done"}': each,
        'sniproxy_connections_closed_total{reason="idle_timeout"}': each,
        'sniproxy_connections_closed_total{reason="client_reset"}': each,
        'sniproxy_connections_failed_total{reason="hello_timeout"}': each,
        'sniproxy_connections_failed_total{reason="connect_refused"}': each,
        'sniproxy_connections_denied_total{policy="none",reason="default",rule="none"}': each,
        'sniproxy_connections_denied_total{policy="none",reason="not_tls",rule="none"}': each,
        'sniproxy_connections_denied_total{policy="none",reason="sni_is_ip",rule="none"}': each,
    }


def test_the_admin_address_answers_and_the_metrics_address_answers_less(tmp_path: Path, echo_port: int) -> None:
    """Both have metrics, health and readiness; a scraper outside the pod reaches only the second."""
    admin = {"address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0"}
    with running_proxy(tmp_path, config_for(echo_port, admin=admin), allowing(NAME)) as proxy:
        for number in (0, 1):
            assert "sniproxy_connections_accepted_total" in proxy.get("/metrics", number)
            assert proxy.get("/healthz", number) == "no worker is stuck\n"
            assert proxy.get("/readyz", number) == "every worker accepts connections\n"


@pytest.mark.parametrize("path", ["/nowhere/access.log", "/"])
def test_an_access_log_that_cannot_be_written_is_an_error_at_the_start(
    tmp_path: Path, echo_port: int, path: str
) -> None:
    """And no worker that dies and is started again for ever."""
    with pytest.raises(AssertionError, match=f"cannot write access_log.path {path}: "):
        with running_proxy(tmp_path, config_for(echo_port, access_log={"path": path}), allowing(NAME)):
            pass


def test_an_address_in_use_is_an_error_with_its_name(tmp_path: Path, echo_port: int) -> None:
    """Nothing is started, exit code 1."""
    (tmp_path / "first").mkdir()
    with running_proxy(tmp_path / "first", config_for(echo_port), allowing(NAME)) as proxy:
        host, port = proxy.address
        with pytest.raises(AssertionError, match=f"cannot listen on {host}:{port}: address already in use"):
            with running_proxy(tmp_path, config_for(echo_port, listeners=[{"address": f"{host}:{port}"}])):
                pass
