"""The admin address of a running proxy: what it answers, to whom, and what Prometheus makes of its metrics."""

import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.e2e.conftest import ALL_BUT_ENGLISH, allowing
from tests.support.clients import ask, fetch, hello_for, proxy_header, sleep_principal
from tests.support.origins import Authority
from tests.support.prometheus import needs_prometheus, running_prometheus
from tests.support.proxy import PATIENCE, ProxyProcess, running_proxy, wait_until

MONITORING = Path(__file__).parent.parent.parent / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
EN, DE = "en.wikipedia.org", "de.wikipedia.org"
US = sleep_principal("sleep-us")


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, wikipedias: dict[str, list[str]]
) -> Iterator[ProxyProcess]:
    """Two workers that have served five connections of sleep-us, refused three, and failed one."""
    config = {
        "listeners": [{"address": "127.0.0.1:0", "proxy_protocol": "required", "trusted_peers": ["127.0.0.0/8"]}],
        "upstream": {"hosts": {**wikipedias, "nobody.wikipedia.org": ["127.0.0.1:1"]}},
        "admin": {"address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0"},
        "workers": 2,
    }
    with running_proxy(tmp_path_factory.mktemp("admin"), config, ALL_BUT_ENGLISH) as proxy:
        for _ in range(5):
            fetch(proxy.address, DE, authority.client_context(), proxy_header(US))
        for _ in range(3):
            ask(proxy.address, proxy_header(US), hello_for(EN))
        ask(proxy.address, proxy_header(US), hello_for("nobody.wikipedia.org"))
        wait_until(lambda: len(latest(proxy, "opened")) == 5, "what was opened")
        wait_until(lambda: len(latest(proxy, "refused")) == 3, "what was refused")
        yield proxy


def policy_of(proxy: ProxyProcess) -> Path:
    return proxy.log_path.parent / "policy.yaml"


def answer(proxy: ProxyProcess, path: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(proxy.get(path))
    return told


def latest(proxy: ProxyProcess, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = answer(proxy, "/connections")["latest"][kind]
    return entries


def test_the_latest_refusals_name_their_rule_and_where_it_is_written(proxy: ProxyProcess) -> None:
    refused = latest(proxy, "refused")
    known = ("sni", "principal", "sourceIp", "reason", "policy", "rule", "file")
    assert [tuple(entry[key] for key in known) for entry in refused] == [
        (EN, US, "10.1.2.3", "rule", "policy.yaml", "no-english", str(policy_of(proxy)))
    ] * 3
    lines = policy_of(proxy).read_text().splitlines()
    rules = [number for number, line in enumerate(lines, 1) if line.startswith("- ")]
    assert refused[0]["line"] == rules[1]
    assert sorted((entry["time"] for entry in refused), reverse=True) == [entry["time"] for entry in refused]


def test_what_failed_says_why(proxy: ProxyProcess) -> None:
    wait_until(lambda: len(latest(proxy, "failed")) == 1, "what failed")
    (entry,) = latest(proxy, "failed")
    assert (entry["sni"], entry["reason"]) == ("nobody.wikipedia.org", "connect_refused")


def test_the_overview_has_the_most_frequent_names_and_principals(proxy: ProxyProcess) -> None:
    top = answer(proxy, "/overview")["top"]
    assert top == {
        "openedNames": [{"value": DE, "times": 5, "error": 0}],
        "openedPrincipals": [{"value": US, "times": 5, "error": 0}],
        "refusedNames": [{"value": EN, "times": 3, "error": 0}],
        "refusedPrincipals": [{"value": US, "times": 3, "error": 0}],
    }


def test_the_policy_in_force(proxy: ProxyProcess) -> None:
    told = answer(proxy, "/policy")
    assert told.pop("lastReload") > 0
    assert told == {
        "generation": 1,
        "generationOfAllWorkers": 1,
        "lastReloadSuccess": True,
        "mode": "enforce",
        "registry": "off",
        "paths": [{"path": "policy.yaml", "namespace": None}],
        "rules": 2,
        "rulesByFile": {str(policy_of(proxy)): 2},
        "warnings": 0,
    }


def test_it_explains_in_the_words_of_the_command(proxy: ProxyProcess) -> None:
    """The same JSON for the same question."""
    home = proxy.log_path.parent
    command = [sys.executable, "-m", "sniproxy", "explain", "--config", str(home / "sniproxy.yaml"), "--json"]
    for name in (EN, DE, "example.org"):
        done = subprocess.run([*command, "--sni", name, "--principal", US], capture_output=True, text=True, check=False)
        assert answer(proxy, f"/explain?sni={name}&principal={US}") == json.loads(done.stdout)


def test_the_metrics_address_serves_scrapers_and_probes_and_nothing_else(proxy: ProxyProcess) -> None:
    assert proxy.metrics(admin=1)["sniproxy_connections_opened_total"] == 5
    assert proxy.get("/healthz", 1) + proxy.get("/readyz", 1) == (
        "no worker is stuck\nevery worker accepts connections\n"
    )
    for path in ("/", "/connections", "/policy", "/config", "/overview", f"/explain?sni={EN}"):
        with pytest.raises(HTTPError, match="404"):
            proxy.get(path, 1)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing (Debian package prometheus)")
def test_promtool_finds_no_fault_with_the_metrics(proxy: ProxyProcess) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=proxy.get("/metrics"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def expressions() -> list[str]:
    """Every query of the dashboard, with its variables filled in as Grafana would."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    notes = [note["expr"] for note in DASHBOARD["annotations"]["list"]]
    variables = {"$__rate_interval": "5s", "$job": "sniproxy", "$instance": ".*"}
    return [
        reduce(lambda text, name: text.replace(name, variables[name]), variables, each) for each in (*panels, *notes)
    ]


# What has nothing to show where nothing has happened: no monitor mode, and no reload.
SILENT = ("sniproxy_connections_would_deny_total", "changes(")


@needs_prometheus
def test_every_query_of_the_dashboard_has_an_answer(proxy: ProxyProcess, tmp_path: Path) -> None:
    """By a Prometheus that scraped this proxy; it takes the alert rules, too, and none of them fires."""
    rules = MONITORING / "prometheus-rules.yaml"
    with running_prometheus(tmp_path, proxy.admin[1], rules) as prometheus:
        wait_until(lambda: bool(prometheus.query("rate(sniproxy_connections_accepted_total[5s])")), "two scrapes")
        unanswered = [
            text for text in expressions() if not prometheus.query(text) and not any(word in text for word in SILENT)
        ]
        assert unanswered == []
        (target,) = prometheus.get("/api/v1/targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        (group,) = prometheus.get("/api/v1/rules")["groups"]
        wait_until(
            lambda: all(
                rule["health"] == "ok" and rule["state"] == "inactive"
                for rule in prometheus.get("/api/v1/rules")["groups"][0]["rules"]
            ),
            "an evaluation of every rule",
        )
        assert len(group["rules"]) == 7


def test_the_terminal_shows_the_same(proxy: ProxyProcess) -> None:
    """`sniproxy top`, one look of it."""
    command = [sys.executable, "-m", "sniproxy", "top", "--once", "--admin", proxy.admin[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "opened 5 (" in done.stdout
    assert f"3 {EN}" in done.stdout
    assert f"no-english of policy.yaml {policy_of(proxy)}:" in done.stdout


def test_in_a_terminal_it_is_live_until_q(proxy: ProxyProcess) -> None:
    """And the terminal is then as it was before."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "sniproxy", "top", "--admin", proxy.admin[0]]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs)
    shown = b""
    while b"q ends" not in shown:
        shown += os.read(ours, 65536)
    os.write(ours, b"xq")
    while not shown.endswith(b"\x1b[?1049l"):
        shown += os.read(ours, 65536)
    assert process.wait(timeout=PATIENCE) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
    assert b"LATEST REFUSALS" in shown


# Processes of their own.


def test_it_can_be_a_unix_socket(tmp_path: Path) -> None:
    """For its owner and their group alone; gone with the proxy."""
    path = tmp_path / "admin.sock"
    with running_proxy(tmp_path, {"admin": {"address": f"unix:{path}"}}) as proxy:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert answer(proxy, "/config")["admin"]["address"] == f"unix:{path}"
    assert not path.exists()


def test_a_worker_that_dies_takes_no_top_name_with_it(tmp_path: Path) -> None:
    """Its successor goes on with what it had told."""
    with running_proxy(tmp_path, None, allowing(DE)) as proxy:
        ask(proxy.address, hello_for(EN))
        wait_until(lambda: bool(latest(proxy, "refused")), "the refusal")
        os.kill(proxy.children()[0], signal.SIGKILL)
        wait_until(lambda: proxy.metrics()["sniproxy_worker_restarts_total"] == 1, "a dead worker")
        ask(proxy.address, hello_for(EN))
        wait_until(
            lambda: [it["times"] for it in answer(proxy, "/overview")["top"]["refusedNames"]] == [2], "both refusals"
        )
