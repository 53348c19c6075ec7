"""The metrics as Prometheus reads them: in its own text format, or as OpenMetrics for a scraper that asks for it."""

from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.registry import Collector

from sniproxy.observe.metrics import DENIED_LABELS, LABELLED, Kind, Sample, labelled_totals, read_samples
from sniproxy.observe.scoreboard import Scoreboard


class Exposition:
    """The metrics of one scoreboard."""

    def __init__(self, board: Scoreboard) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_ScoreboardCollector(board))

    def answer(self, accept: str) -> tuple[bytes, str]:
        """The metrics, and their content type, as an Accept header asks for them."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _ScoreboardCollector(Collector):
    """Presents the sums over all workers to prometheus_client."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board

    def collect(self) -> Iterator[MetricFamily]:
        for sample in read_samples(self._board):
            yield _family(sample)
        for metric in LABELLED:
            family = CounterMetricFamily(metric.name, metric.help, labels=DENIED_LABELS)
            for labels, count in labelled_totals(self._board, metric):
                family.add_metric(labels, count)
            yield family
        yield InfoMetricFamily("sniproxy_build", "What is running.", {"version": version("sniproxy")})


def _family(sample: Sample) -> MetricFamily:
    metric = sample.metric
    labels = [metric.label] if metric.label else []
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help)
        histogram.add_metric([], _cumulative(sample), sample.total)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind is Kind.COUNTER:
        family = CounterMetricFamily(metric.name, metric.help, labels=labels)
    else:
        family = GaugeMetricFamily(metric.name, metric.help, labels=labels)
    for values, count in sample.series:
        family.add_metric(values, count)
    return family


def _cumulative(sample: Sample) -> list[tuple[str, float]]:
    """Prometheus's buckets count everything up to their bound."""
    bounds = [*map(str, sample.metric.buckets), "+Inf"]
    running, buckets = 0.0, []
    for bound, count in zip(bounds, sample.bucket_counts, strict=True):
        running += count
        buckets.append((bound, running))
    return buckets
