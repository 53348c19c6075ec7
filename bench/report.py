"""From samples to a table and a JSON file.

How the figures are made:

value    the median over the rounds, with the least and the greatest beside it
ratio    the proxy's value in a round divided by nginx's value in the same round; then the median over the
         rounds. Rounds alternate (nginx, HAProxy, Envoy, sniproxy, nginx, ...), so that what slows a machine
         down for a minute slows both sides of a ratio.
noisy    nginx's own values of a metric spread by more than 15 % of their median (greatest less least):
         the row is marked, because nginx did the same work each time

Whatever else was wrong in a round (connections that failed, a load generator that was slower than the proxy, a
process that used the proxy's core) is listed under the table, and the rows of that workload are marked.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.proxies import BASELINE, RECIPES
from bench.stage import Problem
from bench.workloads import WORKLOADS, Metric, Sample

NOISE_LIMIT = 0.15
SUBJECT = "sniproxy"
MARK = "(!)"


@dataclass
class Results:
    """Every sample of a run: by workload, by peer, in the order of the rounds (None: that round failed)."""

    peers: tuple[str, ...]
    workloads: tuple[str, ...]
    samples: dict[str, dict[str, list[Sample | None]]] = field(default_factory=dict)

    def add(self, workload: str, peer: str, sample: Sample | None) -> None:
        self.samples.setdefault(workload, {}).setdefault(peer, []).append(sample)

    def rounds(self, workload: str, peer: str) -> list[Sample | None]:
        return self.samples.get(workload, {}).get(peer, [])

    def values(self, workload: str, peer: str, metric: Metric) -> list[float | None]:
        """One value a round."""
        return [sample.values[metric.key] if sample else None for sample in self.rounds(workload, peer)]


@dataclass(frozen=True)
class Summary:
    """One metric of one peer over all rounds."""

    median: float
    least: float
    greatest: float
    ratio: float | None

    @property
    def spread(self) -> float:
        return (self.greatest - self.least) / self.median if self.median else 0.0


def ratio(values: Sequence[float | None], baseline: Sequence[float | None]) -> float | None:
    """The median over the rounds of value / baseline; None where no round has both."""
    pairs = zip(values, baseline, strict=False)
    ratios = [value / base for value, base in pairs if value is not None and base]
    return statistics.median(ratios) if ratios else None


def summarise(values: Sequence[float | None], baseline: Sequence[float | None]) -> Summary | None:
    """None where no round has a value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Summary(statistics.median(known), min(known), max(known), ratio(values, baseline))


def summaries(results: Results, workload: str, metric: Metric) -> dict[str, Summary]:
    baseline = results.values(workload, BASELINE, metric)
    found = {peer: summarise(results.values(workload, peer, metric), baseline) for peer in results.peers}
    return {peer: summary for peer, summary in found.items() if summary is not None}


def noise(results: Results, workload: str, metric: Metric) -> str | None:
    """What to say of a metric whose baseline did not hold still."""
    nginx = summaries(results, workload, metric).get(BASELINE)
    if nginx is None or nginx.spread <= NOISE_LIMIT:
        return None
    return f"{metric.title}: noisy: {BASELINE}'s own values spread by {nginx.spread:.0%} of their median"


def disturbances(results: Results, workload: str) -> list[str]:
    """What was wrong in the rounds of a workload: each kind once a peer, with the rounds that it was seen in."""
    return [
        f"{workload}: {RECIPES[peer].title}: {kind} ({'; '.join(details)})"
        for peer in results.peers
        for kind, details in _by_kind(results.rounds(workload, peer)).items()
    ]


def _by_kind(samples: Iterable[Sample | None]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, sample in enumerate(samples, start=1):
        for problem in sample.problems if sample else [Problem("failed", "see above")]:
            found.setdefault(problem.kind, []).append(f"round {number}: {problem.detail}")
    return found


def table(results: Results) -> str:
    """The report as a Markdown table that is aligned, so that it reads as well in a terminal."""
    header = ["", *(RECIPES[peer].title for peer in results.peers), "target"]
    rows, notes = [], []
    for workload in results.workloads:
        disturbed = disturbances(results, workload)
        notes += disturbed
        for metric in WORKLOADS[workload].metrics:
            noisy = noise(results, workload, metric)
            notes += [noisy] if noisy else []
            rows.append(_row(results, workload, metric, marked=bool(disturbed or noisy)))
    text = markdown([header, *rows])
    return "\n".join((text, "", f"{MARK} Read with care:", *(f"- {note}" for note in notes))) if notes else text


def _row(results: Results, workload: str, metric: Metric, *, marked: bool) -> list[str]:
    found = summaries(results, workload, metric)
    title = f"{metric.title} ({metric.unit})" + (f" {MARK}" if marked else "")
    return [title, *(cell(found.get(peer)) for peer in results.peers), verdict(metric, found.get(SUBJECT))]


def cell(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    figures = f"{number(summary.median)} ({number(summary.least)}-{number(summary.greatest)})"
    return figures if summary.ratio is None else f"{figures} **{summary.ratio:.2f}**"


def number(value: float) -> str:
    """Three digits that matter."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def verdict(metric: Metric, subject: Summary | None) -> str:
    """What sniproxy must reach, and whether it did."""
    limit = metric.target if metric.target is not None else metric.target_value
    if limit is None:
        return ""
    unit = "" if metric.target is not None else f" {metric.unit}"
    wanted = f"<= {limit:g}{unit}"
    reached = None
    if subject is not None:
        reached = subject.ratio if metric.target is not None else subject.median
    if reached is None:
        return wanted
    return f"{wanted}: {'met' if reached <= limit else 'missed'}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def as_json(results: Results, about: dict[str, Any]) -> dict[str, Any]:
    """Everything: about the run, the summary that the table shows, and every sample with its raw figures."""
    return {
        "about": about,
        "summary": {
            metric.key: {
                peer: {"median": s.median, "min": s.least, "max": s.greatest, "ratio": s.ratio}
                for peer, s in summaries(results, workload, metric).items()
            }
            for workload in results.workloads
            for metric in WORKLOADS[workload].metrics
        },
        "samples": {
            workload: {
                peer: [sample and dataclasses.asdict(sample) for sample in samples] for peer, samples in peers.items()
            }
            for workload, peers in results.samples.items()
        },
    }
