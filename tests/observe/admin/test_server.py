"""The admin address: what a scraper and a probe get, and who gets nothing."""

import contextlib
import os
import time
from collections.abc import Iterator
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sniproxy.observe.admin.answers import stuck_workers
from sniproxy.observe.admin.history import History
from sniproxy.observe.admin.http_server import Bounds
from sniproxy.observe.admin.in_force import BusyError, InForce
from sniproxy.observe.admin.server import new_app, new_metrics_app
from sniproxy.observe.metrics import CATALOGUE, HEARTBEAT, INTERNAL, Meter, new_scoreboard, slot_of
from sniproxy.observe.scoreboard import Scoreboard
from sniproxy.outcome import Reason
from sniproxy.reload.channel import new_channel
from tests.observe.admin.serving import Served, serving
from tests.reload.readings import generation
from tests.support.clients import connected
from tests.support.proxy import host_and_port, running_proxy, wait_until
from tests.support.vitals import vitals_of

WORKERS = 2
CROWD = 2000
MIB = 1 << 20
SCRAPED = ["/metrics", "/healthz", "/readyz"]
ASKED = ["/connections", "/policy", "/config", "/overview", "/explain?sni=a.org"]


@pytest.fixture
def board() -> Scoreboard:
    return new_scoreboard(WORKERS)


@pytest.fixture
def meters(board: Scoreboard) -> list[Meter]:
    """The meters of the workers, which all live and serve."""
    meters = [Meter(row) for row in board.workers]
    for meter in meters:
        meter.beat()
        meter.serving(yes=True)
    return meters


@pytest.fixture
def client(board: Scoreboard) -> Iterator[Served]:
    outbox, inbox = new_channel()
    in_force = InForce(generation(), inbox)
    with serving(new_app(board, in_force, History(board))) as served:
        yield served
    os.close(in_force.generation.policy)
    outbox.close()
    inbox.close()


def scrape(client: Served) -> str:
    answer = client.get("/metrics")
    assert answer.status == HTTPStatus.OK
    return answer.text


def series(client: Served) -> dict[str, float]:
    """Every series, by its name with its labels."""
    told = {}
    for family in text_string_to_metric_families(scrape(client)):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            told[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return told


def status(client: Served, path: str, host: str | None = None) -> tuple[int, str]:
    answer = client.ask("GET", path, {"Host": host} if host is not None else None)
    return answer.status, answer.text


def test_counters_are_the_sums_over_all_workers(client: Served, meters: list[Meter]) -> None:
    for meter in meters:
        meter.accepted()
        meter.accepted()
        meter.accepted()
        meter.opened()
        meter.received.add(100.0)
        meter.dns_cache_hit(1.0)
        meter.ended(Reason.DONE, "policy.yaml", "us")
        meter.ended(Reason.RULE, "policy.yaml", "no-english")
    meters[0].ended(Reason.DNS_NXDOMAIN, "none", "none")
    for meter in meters:
        meter.settle()
    expected = {
        "sniproxy_connections_accepted_total": 6.0,
        "sniproxy_connections_opened_total": 2.0,
        "sniproxy_connections_active": 1.0,
        "sniproxy_connections_closed_total{reason=done}": 2.0,
        "sniproxy_connections_closed_total{reason=drain}": 0.0,
        "sniproxy_connections_failed_total{reason=dns_nxdomain}": 1.0,
        "sniproxy_connections_denied_total{policy=policy.yaml,reason=rule,rule=no-english}": 2.0,
        "sniproxy_bytes_total{direction=received}": 200.0,
        "sniproxy_bytes_total{direction=sent}": 0.0,
        "sniproxy_dns_cache_requests_total{result=hit}": 2.0,
        f"sniproxy_build_info{{version={version('sniproxy')}}}": 1.0,
    }
    told = series(client)
    assert {name: told.get(name) for name in expected} == expected


def test_buckets_of_a_histogram_count_everything_up_to_their_bound(client: Served, meters: list[Meter]) -> None:
    meters[0].hello_seconds.observe(0.0004)
    meters[1].hello_seconds.observe(0.002)
    meters[1].hello_seconds.observe(99.0)
    for meter in meters:
        meter.settle()
    told = series(client)
    name = "sniproxy_client_hello_seconds"
    bounds = ("0.0005", "0.001", "0.0025", "10.0", "+Inf")
    assert [told[f"{name}_bucket{{le={bound}}}"] for bound in bounds] == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert told[f"{name}_count"] == 3.0
    assert told[f"{name}_sum"] == pytest.approx(99.0024)


def test_every_family_of_the_catalogue_has_its_help_and_no_internal_one_is_shown(
    client: Served, meters: list[Meter]
) -> None:
    families = {family.name: family.documentation for family in text_string_to_metric_families(scrape(client))}
    assert families.items() >= {metric.name: metric.help for metric in CATALOGUE if metric not in INTERNAL}.items()
    assert families.keys().isdisjoint(metric.name for metric in INTERNAL)


def test_labels_with_quotes_and_backslashes_are_read_back_as_they_were(client: Served, meters: list[Meter]) -> None:
    meters[0].ended(Reason.RULE, 'a"b\\c.yaml', "früh")
    told = series(client)
    assert told['sniproxy_connections_denied_total{policy=a"b\\c.yaml,reason=rule,rule=früh}'] == 1.0


def test_what_a_client_asks_for_never_grows_the_exposition(client: Served, meters: list[Meter]) -> None:
    """A label takes what we and the operator chose: a thousand connections to a thousand names are one more series."""
    before = len((scrape(client)).splitlines())
    for reason in (Reason.DEFAULT, Reason.DONE, Reason.DNS_NXDOMAIN):
        for _ in range(1000):
            meters[0].accepted()
            meters[0].ended(reason, "none", "none")
    after = len((scrape(client)).splitlines())
    assert after - before == 1


def test_a_worker_that_dies_takes_no_count_with_it(client: Served, board: Scoreboard) -> None:
    for _ in range(2):
        meter = Meter(board.workers[0])
        meter.accepted()
        meter.settle()
    assert (series(client))["sniproxy_connections_accepted_total"] == 2.0


def test_health_and_readiness_of_workers_that_live_and_serve(client: Served, meters: list[Meter]) -> None:
    assert [status(client, path) for path in ("/healthz", "/readyz")] == [
        (HTTPStatus.OK, "no worker is stuck\n"),
        (HTTPStatus.OK, "every worker accepts connections\n"),
    ]


def test_a_worker_that_drains_is_healthy_and_not_ready(client: Served, meters: list[Meter]) -> None:
    meters[1].serving(yes=False)
    assert [status(client, path) for path in ("/healthz", "/readyz")] == [
        (HTTPStatus.OK, "no worker is stuck\n"),
        (HTTPStatus.SERVICE_UNAVAILABLE, "workers that accept no connections: [1]\n"),
    ]


def test_workers_that_have_not_begun_are_healthy_and_not_ready(client: Served) -> None:
    assert [status(client, path) for path in ("/healthz", "/readyz")] == [
        (HTTPStatus.OK, "no worker is stuck\n"),
        (HTTPStatus.SERVICE_UNAVAILABLE, "workers that accept no connections: [0, 1]\n"),
    ]


def test_a_worker_whose_heart_stopped_is_stuck(
    client: Served, board: Scoreboard, meters: list[Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = board.workers[1].slots[slot_of(HEARTBEAT)]
    board.workers[0].slots[slot_of(HEARTBEAT)] = last + 9.0
    told = []
    for later in (9.0, 11.0):
        with monkeypatch.context() as patched:
            patched.setattr(time, "monotonic", lambda later=later: last + later)
            told.append(stuck_workers(board))
    assert told == [[], [1]]


HOSTS = {
    "a name of this machine": ("localhost", HTTPStatus.OK),
    "with a port": ("localhost:9402", HTTPStatus.OK),
    "in capitals": ("LOCALHOST:9402", HTTPStatus.OK),
    "an address": ("127.0.0.1", HTTPStatus.OK),
    "an address with a port": ("127.0.0.1:9402", HTTPStatus.OK),
    "a pod's address": ("10.1.2.3:9402", HTTPStatus.OK),
    "an IPv6 address": ("[::1]", HTTPStatus.OK),
    "an IPv6 address with a port": ("[::1]:9402", HTTPStatus.OK),
    "a name of somebody else": ("evil.example", HTTPStatus.MISDIRECTED_REQUEST),
    "with the port": ("evil.example:9402", HTTPStatus.MISDIRECTED_REQUEST),
    "that begins like ours": ("localhost.evil.example", HTTPStatus.MISDIRECTED_REQUEST),
    "that begins like an address": ("127.0.0.1.evil.example", HTTPStatus.MISDIRECTED_REQUEST),
    "an address in a short spelling": ("127.1", HTTPStatus.MISDIRECTED_REQUEST),
    "nothing": ("", HTTPStatus.MISDIRECTED_REQUEST),
}


def test_neither_is_a_name_in_the_target_nor_a_client_that_names_no_host(client: Served) -> None:
    """The target goes before the header, and HTTP/1.0 may have none."""
    heads = (
        b"GET http://evil.example/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n",
    )
    assert [client.said_to(head).partition(b"\r\n")[0] for head in heads] == [b"HTTP/1.1 421 Misdirected Request"] * 2


@pytest.mark.parametrize(("host", "expected"), HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/", "/config"])
def test_only_addresses_and_localhost_are_answered(
    path: str, host: str, expected: HTTPStatus, client: Served, meters: list[Meter]
) -> None:
    """A web page that rebinds its own name to 127.0.0.1 learns nothing."""
    code, text = status(client, path, host)
    assert code == expected
    assert (text == "the Host header must be an IP address or localhost\n") is (code != HTTPStatus.OK)


@pytest.mark.parametrize("path", ["/", *SCRAPED, *ASKED])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(method: str, path: str, client: Served) -> None:
    answer = client.ask(method, path)
    assert (answer.status, answer.headers["allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", *SCRAPED, *ASKED, "/nowhere"])
def test_nobody_may_keep_frame_or_sniff_what_is_answered(path: str, client: Served, meters: list[Meter]) -> None:
    headers = client.get(path).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("path", ASKED)
def test_answers_are_json(path: str, client: Served, meters: list[Meter]) -> None:
    answer = client.get(path)
    assert isinstance(answer.told, dict)
    assert answer.headers["content-type"] == "application/json"


def test_the_page_is_html_with_a_policy_of_its_own(client: Served) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'sha256-" in answer.headers["content-security-policy"]
    assert answer.text.startswith("<!doctype html>")


def test_a_scraper_gets_the_format_that_it_asks_for(client: Served) -> None:
    asked = {
        "": "text/plain; version=",
        "text/plain": "text/plain; version=",
        "application/openmetrics-text;version=1.0.0,text/plain;q=0.5": "application/openmetrics-text; version=1.0.0",
    }
    for accept, expected in asked.items():
        assert client.get("/metrics", Accept=accept).headers["content-type"].startswith(expected)


@pytest.mark.parametrize("path", ["/", *ASKED])
def test_scrapers_get_what_they_need_and_no_more(path: str, board: Scoreboard, meters: list[Meter]) -> None:
    with serving(new_metrics_app(board)) as scraper:
        assert [status(scraper, each)[0] for each in SCRAPED] == [HTTPStatus.OK] * 3
        assert status(scraper, path)[0] == HTTPStatus.NOT_FOUND


@pytest.mark.parametrize("path", SCRAPED)
def test_scrapers_come_by_any_name(path: str, board: Scoreboard, meters: list[Meter]) -> None:
    """That of a Service, a container or a host: what they get tells nothing of what clients asked for."""
    with serving(new_metrics_app(board)) as scraper:
        for host in ("sniproxy.istio-system.svc:9403", "localhost", "10.1.2.3:9403"):
            assert status(scraper, path, host)[0] == HTTPStatus.OK


WRONG_QUESTIONS = {
    "nothing": ("", "sni is missing; write /explain?sni=en.wikipedia.org"),
    "an empty name": ("?sni=", "sni is missing; write /explain?sni=en.wikipedia.org"),
    "an address": ("?sni=127.1", "'127.1' is an IP address, and a server name is a DNS host name"),
    "no principal": ("?sni=a.org&principal=sp%20ace", "write it as cluster.local/ns/default/sa/sleep"),
    "no address": ("?sni=a.org&source_ip=x", "'x' is no IP address; write it as 10.1.2.3, in quotes"),
    "a key twice": ("?sni=a.org&sni=b.org", "sni is given twice; give it once"),
    "a key that is unknown": ("?sni=a.org&user=x", "'user' is unknown; the keys are"),
    "neither true nor false": ("?sni=a.org&ech=1", "ech must be true or false"),
}


@pytest.mark.parametrize(("query", "expected"), WRONG_QUESTIONS.values(), ids=WRONG_QUESTIONS)
def test_a_wrong_question_is_told_what_is_wrong(query: str, expected: str, client: Served) -> None:
    answer = client.get(f"/explain{query}")
    assert answer.status == HTTPStatus.BAD_REQUEST
    assert expected in answer.told["error"]


def test_a_question_is_asked_with_escapes_as_a_browser_writes_them(client: Served) -> None:
    answer = client.get(
        "/explain?sni=%61.org&principal=cluster.local%2Fns%2Fdefault%2Fsa%2Fsleep&ech=true&outer_sni=b.org"
    )
    assert answer.status == HTTPStatus.OK


def test_where_too_many_ask_the_next_is_told_to_ask_again(client: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def be_busy(*_: object) -> dict[str, object]:
        raise BusyError

    monkeypatch.setattr(InForce, "explain", be_busy)
    answer = client.get("/explain?sni=a.org")
    assert (answer.status, answer.told) == (
        HTTPStatus.SERVICE_UNAVAILABLE,
        {"error": "too many ask at once; ask again"},
    )


def test_who_asks_before_there_is_anything_is_answered_too(client: Served) -> None:
    """No worker has begun."""
    answer = client.get("/overview")
    told = answer.told
    assert (answer.status, told["counts"]["connections_active"], told["latest"]["refused"]) == (HTTPStatus.OK, 0, [])


@pytest.mark.e2e
def test_thousands_of_hostile_connections_cost_little_and_stop_no_scrape(tmp_path: Path) -> None:
    """Each sends as much of a head as it may, and never its end. What they cost does not grow with their number."""
    head = b"GET /metrics HTTP/1.1\r\nA: " + b"a" * 16_000
    config = {"admin": {"address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0"}}
    with running_proxy(tmp_path, config) as proxy, contextlib.ExitStack() as stack:
        admin = proxy.children()[-1:]
        before = vitals_of(admin)
        for number in range(CROWD):
            sock = stack.enter_context(connected(host_and_port(proxy.admin[1])))
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                sock.sendall(head)
            if number % 100 == 0:
                assert proxy.get("/readyz", 1) == "every worker accepts connections\n"
        most = before.sockets + Bounds().connections
        wait_until(lambda: vitals_of(admin).sockets <= most, "no more connections than the bound")
        assert vitals_of(admin).memory - before.memory < 16 * MIB
        assert proxy.get("/overview")
