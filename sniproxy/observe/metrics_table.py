"""docs/metrics.md, made from the catalogue: `python -m sniproxy.observe.metrics_table > docs/metrics.md`."""

import sys
from collections.abc import Iterator

from sniproxy.observe.metrics import CATALOGUE, DENIED_LABELS, INTERNAL, LABELLED, Kind, Metric

_HEAD = """\
# Metrics

`http://ADMIN-ADDRESS/metrics` has them in Prometheus's text format, or as OpenMetrics for a scraper that asks for it.
`admin.metrics_address` has the same for scrapers from elsewhere, who may call it by any name: of a Service, or a host.
They are for all workers together, as of the moment that they were asked for, and counters never go back while the proxy
runs, whichever worker dies. A label takes only words of the program or names that a policy has, never what a client
sent: the number of series has a bound that nobody but the operator can move. More policies and rules than 511 a worker
are counted together, as `other`.

This file is made by `python -m sniproxy.observe.metrics_table`. [monitoring/](../monitoring) has a Grafana dashboard
and alert rules over these metrics.

| metric | type | labels | what it counts |
|---|---|---|---|
"""


def document() -> str:
    """All of docs/metrics.md."""
    return _HEAD + "".join(f"{row}\n" for row in _rows())


def _rows() -> Iterator[str]:
    for metric in CATALOGUE:
        if metric not in INTERNAL:
            yield _row(metric, f"`{metric.label}`: {_listed(metric.values)}" if metric.label else "")
    for metric in LABELLED:
        yield _row(metric, ", ".join(f"`{label}`" for label in DENIED_LABELS))
    yield "| `sniproxy_build_info` | info | `version` | What is running. |"


def _row(metric: Metric, labels: str) -> str:
    name = f"{metric.name}_total" if metric.kind is Kind.COUNTER else metric.name
    return f"| `{name}` | {metric.kind.value} | {labels} | {metric.help} |"


def _listed(values: tuple[str, ...]) -> str:
    return " ".join(f"`{value}`" for value in values)


if __name__ == "__main__":
    sys.stdout.write(document())
