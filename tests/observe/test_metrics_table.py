"""docs/metrics.md says what there is."""

from pathlib import Path

from sniproxy.observe.metrics import CATALOGUE, INTERNAL
from sniproxy.observe.metrics_table import document

DOCS = Path(__file__).parent.parent.parent / "docs" / "metrics.md"


def test_the_document_is_what_the_catalogue_says() -> None:
    """If not: python -m sniproxy.observe.metrics_table > docs/metrics.md"""
    assert DOCS.read_text() == document()


def test_every_metric_has_a_row_and_no_internal_one_does() -> None:
    rows = [line for line in document().splitlines() if line.startswith("| `sniproxy_")]
    named = {row.split("`")[1].removesuffix("_total") for row in rows}
    others = {"sniproxy_connections_denied", "sniproxy_connections_would_deny", "sniproxy_build_info"}
    assert named == {metric.name for metric in CATALOGUE if metric not in INTERNAL} | others
