"""The exposition: one set of numbers, in the format that the scraper asks for."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text

from sniproxy.observe.admin.exposition import Exposition
from sniproxy.observe.metrics import Meter, new_scoreboard
from sniproxy.outcome import Reason


def exposition() -> Exposition:
    board = new_scoreboard(1)
    meter = Meter(board.workers[0])
    meter.accepted()
    meter.hello_seconds.observe(0.002)
    meter.ended(Reason.RULE, "p.yaml", 'say "no"')
    meter.settle()
    return Exposition(board)


def test_without_a_wish_it_is_prometheus_own_format() -> None:
    body, content_type = exposition().answer("")
    families = {family.name for family in prometheus_text(body.decode())}
    assert content_type.startswith("text/plain; version=")
    assert {"sniproxy_connections_accepted", "sniproxy_client_hello_seconds", "sniproxy_build_info"} <= families


def test_open_metrics_for_who_asks_for_it() -> None:
    """As Prometheus does, which would take both."""
    body, content_type = exposition().answer(
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.4,*/*;q=0.1"
    )
    families = {family.name: family for family in open_metrics(body.decode())}  # type: ignore[no-untyped-call]
    assert content_type.startswith("application/openmetrics-text")
    assert families["sniproxy_build"].type == "info"
    (refused,) = families["sniproxy_connections_denied"].samples[-1:]
    assert (refused.labels["rule"], refused.value) == ('say "no"', 1.0)
