"""From samples to a table and a JSON file.

How the figures are made:

value    the median over the rounds, with the least and the greatest beside it
ratio    the proxy's value in a round divided by nginx's value in the same round; then the median over the
         rounds. Rounds alternate (nginx, HAProxy, Envoy, sniproxy, nginx, ...), so that what slows a machine
         down for a minute slows both sides of a ratio.
target   judged by the median; where the rounds do not agree with it, it says how many do
noisy    nginx's own values of a metric spread by more than 15 % of their median (greatest less least):
         the row is marked, because nginx did the same work each time. A metric of sniproxy alone is judged by its
         own spread. Where more than a quarter of the rows are marked, the run says that it is too noisy to quote

Whatever else was wrong in a round (connections that failed, a load generator that was slower than the proxy, a
process that used the proxy's core) is listed under the table, and the rows of that workload are marked.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.proxies import BASELINE, RECIPES
from bench.sample import Metric, Sample, Target
from bench.stage import Problem
from bench.workloads import WORKLOADS

NOISE_LIMIT = 0.15
NOISY_ROWS = 0.25
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
        """One value a round; None where a round has none."""
        return [sample.values.get(metric.key) if sample else None for sample in self.rounds(workload, peer)]

    @property
    def metrics(self) -> list[tuple[str, Metric]]:
        """Every metric of the run, with its workload."""
        return [(workload, metric) for workload in self.workloads for metric in WORKLOADS[workload].metrics]


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


def ratios(values: Sequence[float | None], baseline: Sequence[float | None]) -> list[float]:
    """value / baseline of each round that has both."""
    pairs = zip(values, baseline, strict=False)
    return [value / base for value, base in pairs if value is not None and base]


def ratio(values: Sequence[float | None], baseline: Sequence[float | None]) -> float | None:
    """The median of these; None where there is none."""
    found = ratios(values, baseline)
    return statistics.median(found) if found else None


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
    """What to say of a metric that did not hold still where the same work was done each time."""
    found = summaries(results, workload, metric)
    judge = SUBJECT if WORKLOADS[workload].ours else BASELINE
    if judge not in found or found[judge].spread <= NOISE_LIMIT:
        return None
    spread = found[judge].spread
    return f"{metric.title}: noisy: {RECIPES[judge].title}'s own values spread by {spread:.0%} of their median"


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


def is_marked(results: Results, workload: str, metric: Metric) -> bool:
    """Whether a row is to be read with care."""
    return bool(noise(results, workload, metric) or disturbances(results, workload))


def warnings(results: Results) -> list[str]:
    """Everything that is wrong with a run, the worst first."""
    found = []
    for workload in results.workloads:
        found += disturbances(results, workload)
        found += filter(None, (noise(results, workload, metric) for metric in WORKLOADS[workload].metrics))
    rows = [row for row in results.metrics if _is_shown(results, *row)]
    marked = sum(is_marked(results, workload, metric) for workload, metric in rows)
    if marked > NOISY_ROWS * len(rows):
        found.insert(0, f"this run is too noisy to quote: {marked} of {len(rows)} rows are marked")
    return found


def table(results: Results) -> str:
    """The report as a Markdown table that is aligned, so that it reads as well in a terminal."""
    header = ["", *(RECIPES[peer].title for peer in results.peers), "target"]
    rows = [(workload, metric) for workload, metric in results.metrics if _is_shown(results, workload, metric)]
    text = markdown([header, *(_row(results, workload, metric) for workload, metric in rows)])
    found = warnings(results)
    return "\n".join((text, "", f"{MARK} Read with care:", "", *(f"- {each}" for each in found))) if found else text


def _is_shown(results: Results, workload: str, metric: Metric) -> bool:
    """A row that nobody has a value for is shown only where something was to be reached."""
    return bool(metric.targets or summaries(results, workload, metric))


def _row(results: Results, workload: str, metric: Metric) -> list[str]:
    found = summaries(results, workload, metric)
    mark = f" {MARK}" if is_marked(results, workload, metric) else ""
    judged = "; ".join(str(verdict(results, workload, metric, target)) for target in metric.targets)
    return [f"{metric.title} ({metric.unit}){mark}", *(cell(found.get(peer)) for peer in results.peers), judged]


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


@dataclass(frozen=True)
class Verdict:
    """What sniproxy must reach, and what it did reach: in each round, and on the median."""

    target: Target
    unit: str
    rounds: tuple[float, ...]

    @property
    def reached(self) -> float | None:
        return statistics.median(self.rounds) if self.rounds else None

    @property
    def is_met(self) -> bool | None:
        """None where nothing was measured."""
        return self.reached <= self.target.limit if self.reached is not None else None

    def __str__(self) -> str:
        of = f"x {RECIPES[self.target.of].title}" if self.target.of else self.unit
        wanted = f"<= {self.target.limit:g} {of}"
        if self.is_met is None:
            return f"{wanted}: not measured"
        agree = sum((each <= self.target.limit) is self.is_met for each in self.rounds)
        dissent = "" if agree == len(self.rounds) else f" ({agree} of {len(self.rounds)} rounds)"
        return f"{wanted}: {'met' if self.is_met else 'missed'}{dissent}"


def verdict(results: Results, workload: str, metric: Metric, target: Target) -> Verdict:
    values = results.values(workload, SUBJECT, metric)
    if target.of is None:
        return Verdict(target, metric.unit, tuple(value for value in values if value is not None))
    return Verdict(target, metric.unit, tuple(ratios(values, results.values(workload, target.of, metric))))


def verdicts(results: Results) -> list[tuple[Metric, Verdict]]:
    return [
        (metric, verdict(results, workload, metric, target))
        for workload, metric in results.metrics
        for target in metric.targets
    ]


def tally(results: Results) -> str:
    """How many of the targets were reached."""
    found = [each.is_met for _, each in verdicts(results)]
    counts = {"met": found.count(True), "missed": found.count(False), "not measured": found.count(None)}
    return "Targets: " + ", ".join(
        f"{count} {word}" for word, count in counts.items() if count or word != "not measured"
    )


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
        "warnings": warnings(results),
        "marked": [metric.key for workload, metric in results.metrics if is_marked(results, workload, metric)],
        "targets": [
            {"metric": metric.key, **dataclasses.asdict(each.target), "reached": each.reached, "met": each.is_met}
            for metric, each in verdicts(results)
        ],
        "summary": {
            metric.key: {
                peer: {"median": s.median, "min": s.least, "max": s.greatest, "ratio": s.ratio}
                for peer, s in summaries(results, workload, metric).items()
            }
            for workload, metric in results.metrics
        },
        "samples": {
            workload: {
                peer: [sample and dataclasses.asdict(sample) for sample in samples] for peer, samples in peers.items()
            }
            for workload, peers in results.samples.items()
        },
    }
