"""The policies under config/scenarios give the answers that their tables promise: asked of `explain`, and of the proxy.

The tables hold every query of Istio's two documents about egress policies, with the documented answer, and the
policy and rule that it rests on.
"""

import contextlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from sniproxy.cli import run_command
from sniproxy.wire.proxy_protocol import Tlv
from tests.support.clients import fetch, proxy_header
from tests.support.origins import Authority, page_of, tls_origin
from tests.support.proxy import Line, ProxyProcess, running_proxy

FOLDER = Path(__file__).parents[2] / "config" / "scenarios"
SCENARIOS = sorted(path.parent.name for path in FOLDER.glob("*/queries.yaml"))

AUTHORITY_TLV = 0x02

EN, FR, DE, ES = (f"{language}.wikipedia.org" for language in ("en", "fr", "de", "es"))
SLEEP, OTHER_SLEEP = "cluster.local/ns/default/sa/sleep", "cluster.local/ns/otherns/sa/sleep"
US, CANADA = "cluster.local/ns/default/sa/sleep-us", "cluster.local/ns/default/sa/sleep-canada"
UNKNOWN = "unknown"

# Who is served, and would not be with everything enforced; by caller and name, with the rule that would refuse.
WOULD_REFUSE: dict[str, dict[tuple[str, str], str]] = {
    "monitor-everything": dict.fromkeys(
        [(US, DE), (US, FR), (CANADA, DE), (CANADA, ES), (UNKNOWN, EN), (SLEEP, "www.example.com")], "none"
    ),
    "monitor-new-rules": {
        (SLEEP, EN): "policy.yaml-rule[no-english]",
        (OTHER_SLEEP, FR): "ns[istio-system]-policy[no-french-for-otherns]-rule[0]",
    },
}


@dataclass(frozen=True)
class Query:
    """A row of a table."""

    sni: str
    expect: str
    principal: str | None = None
    source_ip: str = "10.1.2.3"
    outer_sni: str | None = None
    rule: str | None = None
    reason: str | None = None

    @property
    def who(self) -> tuple[str, str]:
        """Caller and name, as tables of this file name them."""
        return self.principal or UNKNOWN, self.sni

    @property
    def header(self) -> bytes:
        """What the gateway's Envoy would say of the caller."""
        outer = [Tlv(AUTHORITY_TLV, self.outer_sni.encode())] if self.outer_sni else []
        return proxy_header(self.principal, self.source_ip, extra=outer)


def queries_of(scenario: str) -> list[Query]:
    return [Query(**row) for row in yaml.safe_load((FOLDER / scenario / "queries.yaml").read_text())]


@pytest.fixture(scope="module")
def everything(authority: Authority) -> Iterator[dict[str, list[str]]]:
    """`upstream.hosts` for every name that any table asks for: one origin has them all."""
    names = sorted({query.sni.lower().rstrip(".") for scenario in SCENARIOS for query in queries_of(scenario)})
    with tls_origin(authority, *names) as port:
        yield {name: [f"127.0.0.1:{port}"] for name in names}


@contextlib.contextmanager
def proxy_of(scenario: str, home: Path, hosts: dict[str, list[str]]) -> Iterator[ProxyProcess]:
    """The real proxy with a scenario's files, but for where it listens and where the names are."""
    copytree(FOLDER / scenario, home, dirs_exist_ok=True)
    config: dict[str, Any] = yaml.safe_load((home / "sniproxy.yaml").read_text())
    config["upstream"] = {**config.get("upstream", {}), "hosts": hosts}
    for listener in config["listeners"]:
        listener["address"] = "127.0.0.1:0"
    with running_proxy(home, config) as proxy:
        yield proxy


def answer(proxy: ProxyProcess, trust: ssl.SSLContext, query: Query) -> str:
    """What a TLS client gets: allow for the page of the name, deny for the alert access_denied."""
    try:
        assert fetch(proxy.address, query.sni, trust, query.header) == page_of(query.sni)
    except ssl.SSLError as error:
        return "deny" if error.reason == "TLSV1_ALERT_ACCESS_DENIED" else f"failed: {error.reason}"
    return "allow"


def play(proxy: ProxyProcess, trust: ssl.SSLContext, scenario: str) -> list[tuple[Query, str, Line]]:
    """Ask the queries of a scenario one after the other: what each client got, and what the log says of it."""
    queries = queries_of(scenario)
    got = [(answer(proxy, trust, query), proxy.wait_for_finals(number)[-1]) for number, query in enumerate(queries, 1)]
    return [(query, verdict, line) for query, (verdict, line) in zip(queries, got, strict=True)]


def test_the_index_names_every_folder_and_no_other() -> None:
    index = (FOLDER / "README.md").read_text()
    assert {part.split(")")[0] for part in index.split("](")[1:]} == set(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_check_finds_nothing_wrong(scenario: str) -> None:
    assert run_command(["check", "--config", str(FOLDER / scenario / "sniproxy.yaml")]) == 0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_explain_gives_every_answer_of_the_table(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, table = (str(FOLDER / scenario / name) for name in ("sniproxy.yaml", "queries.yaml"))
    assert run_command(["explain", "--config", config, "--file", table]) == 0, capsys.readouterr()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_real_connections_get_every_answer_of_the_table(
    tmp_path: Path, authority: Authority, everything: dict[str, list[str]], scenario: str
) -> None:
    """The client is served or refused, and the log says which, why, by which rule, and in Istio's own words."""
    with proxy_of(scenario, tmp_path, everything) as proxy:
        played = play(proxy, authority.client_context(), scenario)
    for query, verdict, line in played:
        ground = f"{line['policy']}-rule[{line['rule']}]"
        level = "error" if query.expect == "deny" or line.get("wouldDeny") else "info"
        told = (verdict, line["decision"], line["sourcePrincipal"], line["level"])
        assert told == (query.expect, query.expect, query.who[0], level), (query, line)
        assert query.rule in (None, line["rule"], ground), (query, line)
        assert query.reason in (None, line["reason"]), (query, line)
        if line["reason"] in ("rule", "default"):
            matched = ground if line["reason"] == "rule" else "none"
            assert line["responseCodeDetails"] == f"rbac_access_denied_matched_policy[{matched}]", (query, line)


def test_every_refusal_by_istio_names_its_policy_in_the_table() -> None:
    """So the test above compares Istio's phrases with what is written down, and not with themselves."""
    unnamed = [
        (scenario, query.who)
        for scenario in SCENARIOS
        if list((FOLDER / scenario).glob("authz-*"))
        for query in queries_of(scenario)
        if query.expect == "deny" and not query.rule and query.reason not in ("default", "registry")
    ]
    assert unnamed == []


@pytest.mark.parametrize("scenario", WOULD_REFUSE)
def test_explain_tells_what_would_be_refused(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each query of the table, with the rule that would refuse it, where one would."""
    config, table = (str(FOLDER / scenario / name) for name in ("sniproxy.yaml", "queries.yaml"))
    assert run_command(["explain", "--json", "--config", config, "--file", table]) == 0
    answers = json.loads(capsys.readouterr().out)
    told = {(one["principal"], one["sni"]): one["dryRun"] for one in answers if one["dryRun"]}
    assert {dry_run["verdict"] for dry_run in told.values()} == {"deny"}
    assert {who: ground_of(dry_run["policy"], dry_run["rule"]) for who, dry_run in told.items()} == WOULD_REFUSE[
        scenario
    ]


@pytest.mark.parametrize("scenario", WOULD_REFUSE)
def test_a_monitored_refusal_is_served_and_logged_as_one(
    tmp_path: Path, authority: Authority, everything: dict[str, list[str]], scenario: str
) -> None:
    """wouldDeny is true in the lines of those that would be refused, and of no other."""
    with proxy_of(scenario, tmp_path, everything) as proxy:
        played = play(proxy, authority.client_context(), scenario)
    assert {query.who for query, _, line in played if line.get("wouldDeny")} == set(WOULD_REFUSE[scenario])


def ground_of(policy: str, rule: str) -> str:
    """A rule as Istio's phrases name it."""
    return "none" if policy == "none" else f"{policy}-rule[{rule}]"
