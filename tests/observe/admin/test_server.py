"""The admin address: what a scraper and a probe get, and who gets nothing."""

import os
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from importlib.metadata import version

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from sniproxy.observe.admin.answers import stuck_workers
from sniproxy.observe.admin.history import History
from sniproxy.observe.admin.in_force import InForce
from sniproxy.observe.admin.server import new_app, new_metrics_app
from sniproxy.observe.metrics import CATALOGUE, HEARTBEAT, INTERNAL, Meter, new_scoreboard, slot_of
from sniproxy.observe.scoreboard import Scoreboard
from sniproxy.outcome import Reason
from sniproxy.reload.channel import new_channel
from tests.reload.readings import generation

Client = TestClient[web.Request, web.Application]
WORKERS = 2
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
async def client(board: Scoreboard) -> AsyncIterator[Client]:
    outbox, inbox = new_channel()
    in_force = InForce(generation(), inbox)
    async with TestClient(TestServer(new_app(board, in_force, History(board)))) as client:
        yield client
    os.close(in_force.generation.policy)
    outbox.close()
    inbox.close()


async def scrape(client: Client) -> str:
    async with client.get("/metrics") as response:
        assert response.status == HTTPStatus.OK
        return await response.text()


async def series(client: Client) -> dict[str, float]:
    """Every series, by its name with its labels."""
    told = {}
    for family in text_string_to_metric_families(await scrape(client)):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            told[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return told


async def status(client: Client, path: str, host: str | None = None) -> tuple[int, str]:
    async with client.get(path, headers={"Host": host} if host is not None else None) as response:
        return response.status, await response.text()


async def test_counters_are_the_sums_over_all_workers(client: Client, meters: list[Meter]) -> None:
    for meter in meters:
        meter.accepted()
        meter.accepted()
        meter.accepted()
        meter.opened()
        meter.received(100.0)
        meter.dns_cache_hit(1.0)
        meter.ended(Reason.DONE, "policy.yaml", "us")
        meter.ended(Reason.RULE, "policy.yaml", "no-english")
    meters[0].ended(Reason.DNS_NXDOMAIN, "none", "none")
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
    told = await series(client)
    assert {name: told.get(name) for name in expected} == expected


async def test_buckets_of_a_histogram_count_everything_up_to_their_bound(client: Client, meters: list[Meter]) -> None:
    meters[0].hello_seconds.observe(0.0004)
    meters[1].hello_seconds.observe(0.002)
    meters[1].hello_seconds.observe(99.0)
    told = await series(client)
    name = "sniproxy_client_hello_seconds"
    bounds = ("0.0005", "0.001", "0.0025", "10.0", "+Inf")
    assert [told[f"{name}_bucket{{le={bound}}}"] for bound in bounds] == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert told[f"{name}_count"] == 3.0
    assert told[f"{name}_sum"] == pytest.approx(99.0024)


async def test_every_family_of_the_catalogue_has_its_help_and_no_internal_one_is_shown(
    client: Client, meters: list[Meter]
) -> None:
    families = {family.name: family.documentation for family in text_string_to_metric_families(await scrape(client))}
    assert families.items() >= {metric.name: metric.help for metric in CATALOGUE if metric not in INTERNAL}.items()
    assert families.keys().isdisjoint(metric.name for metric in INTERNAL)


async def test_labels_with_quotes_and_backslashes_are_read_back_as_they_were(
    client: Client, meters: list[Meter]
) -> None:
    meters[0].ended(Reason.RULE, 'a"b\\c.yaml', "früh")
    told = await series(client)
    assert told['sniproxy_connections_denied_total{policy=a"b\\c.yaml,reason=rule,rule=früh}'] == 1.0


async def test_what_a_client_asks_for_never_grows_the_exposition(client: Client, meters: list[Meter]) -> None:
    """A label takes what we and the operator chose: a thousand connections to a thousand names are one more series."""
    before = len((await scrape(client)).splitlines())
    for reason in (Reason.DEFAULT, Reason.DONE, Reason.DNS_NXDOMAIN):
        for _ in range(1000):
            meters[0].accepted()
            meters[0].ended(reason, "none", "none")
    after = len((await scrape(client)).splitlines())
    assert after - before == 1


async def test_a_worker_that_dies_takes_no_count_with_it(
    client: Client, board: Scoreboard, meters: list[Meter]
) -> None:
    meters[0].accepted()
    Meter(board.workers[0]).accepted()
    assert (await series(client))["sniproxy_connections_accepted_total"] == 2.0


async def test_health_and_readiness_of_workers_that_live_and_serve(client: Client, meters: list[Meter]) -> None:
    assert [await status(client, path) for path in ("/healthz", "/readyz")] == [
        (HTTPStatus.OK, "no worker is stuck\n"),
        (HTTPStatus.OK, "every worker accepts connections\n"),
    ]


async def test_a_worker_that_drains_is_healthy_and_not_ready(client: Client, meters: list[Meter]) -> None:
    meters[1].serving(yes=False)
    assert [await status(client, path) for path in ("/healthz", "/readyz")] == [
        (HTTPStatus.OK, "no worker is stuck\n"),
        (HTTPStatus.SERVICE_UNAVAILABLE, "workers that accept no connections: [1]\n"),
    ]


async def test_workers_that_have_not_begun_are_healthy_and_not_ready(client: Client) -> None:
    assert [await status(client, path) for path in ("/healthz", "/readyz")] == [
        (HTTPStatus.OK, "no worker is stuck\n"),
        (HTTPStatus.SERVICE_UNAVAILABLE, "workers that accept no connections: [0, 1]\n"),
    ]


async def test_a_worker_whose_heart_stopped_is_stuck(
    client: Client, board: Scoreboard, meters: list[Meter], monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize(("host", "expected"), HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/", "/config"])
async def test_only_addresses_and_localhost_are_answered(
    path: str, host: str, expected: HTTPStatus, client: Client, meters: list[Meter]
) -> None:
    """A web page that rebinds its own name to 127.0.0.1 learns nothing."""
    code, text = await status(client, path, host)
    assert code == expected
    assert (text == "the Host header must be an IP address or localhost\n") is (code != HTTPStatus.OK)


@pytest.mark.parametrize("path", ["/", *SCRAPED, *ASKED])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_can_be_changed(method: str, path: str, client: Client) -> None:
    async with client.request(method, path) as response:
        assert response.status in (HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_FOUND)


@pytest.mark.parametrize("path", ASKED)
async def test_answers_are_json_that_nobody_keeps_or_frames(path: str, client: Client, meters: list[Meter]) -> None:
    async with client.get(path) as response:
        assert isinstance(await response.json(), dict)
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize("path", ["/", *ASKED])
async def test_scrapers_get_what_they_need_and_no_more(path: str, board: Scoreboard, meters: list[Meter]) -> None:
    async with TestClient(TestServer(new_metrics_app(board))) as scraper:
        assert [(await status(scraper, each))[0] for each in SCRAPED] == [HTTPStatus.OK] * 3
        assert (await status(scraper, path))[0] == HTTPStatus.NOT_FOUND


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
async def test_a_wrong_question_is_told_what_is_wrong(query: str, expected: str, client: Client) -> None:
    async with client.get(f"/explain{query}") as response:
        assert response.status == HTTPStatus.BAD_REQUEST
        assert expected in (await response.json())["error"]


async def test_who_asks_before_there_is_anything_is_answered_too(client: Client) -> None:
    """No worker has begun."""
    async with client.get("/overview") as response:
        told = await response.json()
    assert (response.status, told["counts"]["connections_active"], told["latest"]["refused"]) == (HTTPStatus.OK, 0, [])
