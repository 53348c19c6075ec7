"""The access logs of the real proxy: several at once, renamed, full, and read slowly or by nobody."""

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import allowing
from tests.support.clients import ask, connected, hello_for
from tests.support.origins import origin, read_exactly, read_to_end
from tests.support.proxy import ProxyProcess, running_proxy, wait_until

NAME, REFUSED = "en.wikipedia.org", "de.wikipedia.org"
HELLO = hello_for(NAME)


def answer(sock: socket.socket) -> None:
    """Take the hello, and say a word."""
    read_exactly(sock, len(HELLO))
    sock.sendall(b"ready")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with origin(answer) as port:
        yield port


def config(port: int, *logs: dict[str, Any], **more: Any) -> dict[str, Any]:
    hosts = {name: [f"127.0.0.1:{port}"] for name in (NAME, REFUSED)}
    return {"upstream": {"hosts": hosts}, **({"access_log": list(logs)} if logs else {}), **more}


def serve(proxy: ProxyProcess, times: int = 1) -> None:
    """Connections that are allowed, and over."""
    for _ in range(times):
        with connected(proxy.address) as sock:
            sock.sendall(HELLO)
            assert read_to_end(sock) == b"ready"


def refuse(proxy: ProxyProcess) -> None:
    assert ask(proxy.address, hello_for(REFUSED)) == "access_denied"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def dropped(proxy: ProxyProcess) -> float:
    return proxy.metrics()["sniproxy_access_log_dropped_lines_total"]


DROPPING, WRITTEN_AGAIN = "access log lines are being dropped", "access log lines are written again"


def test_several_logs_each_tell_it_in_their_own_words(tmp_path: Path, port: int) -> None:
    """JSON with everything, nginx's line, Envoy's, and a syslog that wants refusals alone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "dev-log"))
        daemon.settimeout(20.0)
        logs = (
            {"path": str(tmp_path / "access.log")},
            {"path": str(tmp_path / "nginx.log"), "format": "nginx"},
            {"path": str(tmp_path / "envoy.log"), "format": "envoy"},
            {"path": f"syslog:{tmp_path}/dev-log", "events": ["deny"]},
        )
        with running_proxy(tmp_path, config(port, *logs), allowing(NAME)) as proxy:
            serve(proxy)
            proxy.wait_for_finals(1)
            refuse(proxy)
            proxy.wait_for_finals(2)
            told = daemon.recv(65536).decode()
    assert [line["connectionEvent"] for line in proxy.lines] == ["open", "close", "deny"]
    served, refused = lines(tmp_path / "nginx.log")
    assert re.fullmatch(
        rf"127\.0\.0\.1 \[\d\d/[A-Z][a-z]{{2}}/\d{{4}}:\d\d:\d\d:\d\d [+-]\d{{4}}\] TCP \[{re.escape(NAME)}\]"
        rf"200 5 {len(HELLO)} \d+\.\d{{3}}",
        served,
    )
    assert f"TCP [{REFUSED}]403 " in refused
    served, refused = lines(tmp_path / "envoy.log")
    assert f'"127.0.0.1:{port}" outbound|{port}||{NAME} - - 127.0.0.1 {NAME} -' in served
    assert " 0 - - rbac_access_denied_matched_policy[none] " in refused
    head, _, line = told.partition("]: ")
    assert re.match(r"<187>.* sniproxy\[\d+$", head)
    assert json.loads(line)["requestedServerName"] == REFUSED


def test_after_logrotate_every_worker_goes_on_in_the_new_file(tmp_path: Path, port: int) -> None:
    """SIGUSR1 to the proxy: what comes after is in the new file, and nothing is lost."""
    old = tmp_path / "access.log.1"
    with running_proxy(tmp_path, config(port, workers=2), allowing(NAME)) as proxy:
        serve(proxy, 20)
        proxy.wait_for_finals(20)
        proxy.log_path.rename(old)
        proxy.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: proxy.times_said("access log reopened") == 2, "two workers with the new file")
        serve(proxy, 20)
        proxy.wait_for_finals(20)
        assert len(proxy.children()) == 3
    workers = {line["connectionId"].rpartition("-")[0] for line in proxy.lines}
    assert (len(lines(old)), len(proxy.lines), len(workers)) == (40, 40, 2)


def test_a_worker_that_is_lost_is_told_in_every_log_that_tells_ends(tmp_path: Path, port: int) -> None:
    paths = {name: tmp_path / name for name in ("access.log", "nginx.log", "deny.log")}
    logs = (
        {"path": str(paths["access.log"])},
        {"path": str(paths["nginx.log"]), "format": "nginx"},
        {"path": str(paths["deny.log"]), "events": ["deny"]},
    )
    with running_proxy(tmp_path, config(port, *logs), allowing(NAME)) as proxy:
        os.kill(proxy.children()[0], signal.SIGKILL)
        wait_until(lambda: all(lines(path) for path in list(paths.values())[:2]), "two lines")
    assert [line["connectionEvent"] for line in proxy.lines] == ["worker_lost"]
    assert lines(paths["nginx.log"])[0].endswith("] worker_lost: worker 0, 0 connections")
    assert lines(paths["deny.log"]) == []


def test_a_full_disk_costs_lines_and_no_connection(tmp_path: Path, port: int) -> None:
    """They are counted, the loss is told once, and the other log has them all."""
    logs = ({"path": "/dev/full"}, {"path": str(tmp_path / "access.log")})
    with running_proxy(tmp_path, config(port, *logs), allowing(NAME)) as proxy:
        serve(proxy, 50)
        proxy.wait_for_finals(50)
        wait_until(lambda: dropped(proxy) == 100, "every line counted")
    (said,) = [line for line in proxy.said if line["event"] == DROPPING]
    assert (said["path"], said["cause"]) == ("/dev/full", "no space left on device")
    assert len(proxy.lines) == 100


def test_a_syslog_that_is_missing_may_come_later(tmp_path: Path, port: int) -> None:
    """Until then lines are lost; the operational log has the beginning and the end of it."""
    path = tmp_path / "dev-log"
    with running_proxy(tmp_path, config(port, {"path": f"syslog:{path}"}), allowing(NAME)) as proxy:
        serve(proxy, 3)
        wait_until(lambda: dropped(proxy) == 6, "every line counted")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            daemon.bind(str(path))
            daemon.settimeout(20.0)
            serve(proxy)
            told = [json.loads(daemon.recv(65536).partition(b"]: ")[2])["connectionEvent"] for _ in range(2)]
            over = proxy.wait_until_said(WRITTEN_AGAIN)
    assert told == ["open", "close"]
    assert (over["dropped"], proxy.times_said(DROPPING)) == (6, 1)


def test_a_pipe_that_nobody_reads_stops_no_connection(tmp_path: Path, port: int) -> None:
    """Lines wait up to a bound, then they are dropped and counted."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with running_proxy(tmp_path, config(port, {"path": str(path)}), allowing(NAME)) as proxy:
        while dropped(proxy) == 0:
            serve(proxy, 100)
        assert proxy.times_said(DROPPING) == 1
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        received = b""

        def read_on() -> bool:
            nonlocal received
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(reader, 1 << 20):
                    received += chunk
            return bool(proxy.times_said(WRITTEN_AGAIN))

        def one_more() -> bool:
            serve(proxy)
            return read_on()

        wait_until(one_more, "an end of the loss")
        os.close(reader)
    events = [json.loads(line)["connectionEvent"] for line in received.splitlines()]
    assert {"open", "close"} == set(events)


def test_a_sample_keeps_every_refusal(tmp_path: Path, port: int) -> None:
    log = {"path": str(tmp_path / "access.log"), "sample": {"open": 0, "close": 0}}
    with running_proxy(tmp_path, config(port, log), allowing(NAME)) as proxy:
        serve(proxy, 5)
        refuse(proxy)
        proxy.wait_for_finals(1)
    assert [line["connectionEvent"] for line in proxy.lines] == ["deny"]


def test_a_template_that_is_wrong_is_an_error_at_the_start(tmp_path: Path, port: int) -> None:
    """With its place, and the variables that there are."""
    log = {"format": "nginx", "template": "$host"}
    with pytest.raises(AssertionError, match=r"sniproxy.yaml:\d+: access_log\[0\].template: '\$host' is no variable; "):
        with running_proxy(tmp_path, config(port, log), allowing(NAME)):
            pass
