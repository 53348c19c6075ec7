"""`python -m bench.plots [RESULTS.json]`: draw a run, for people who would rather look than read.

It draws into bench/plots/, from the newest committed results if none are named:

ratios.png   of every metric that nginx has too, each peer's ratio to it, with the least and the greatest of the rounds
crowd.png    what a connection costs when there are 10 to 8,000 at a time
latency.png  quantiles of a short connection at a fixed rate

What a figure shows is decided here without drawing; matplotlib (the extra `bench`) is only imported to draw it.
"""

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.guard import committed_files
from bench.proxies import BASELINE, RECIPES
from bench.report import MARK, ratios
from bench.sample import FULL
from bench.stage import HERE
from bench.workloads import WORKLOADS

FOLDER = HERE / "plots"
_SIZE = (9.0, 5.0)  # inches
_ROW = 0.55  # of a metric in ratios.png
_DPI = 110
_COLOURS = {"nginx": "#7f7f7f", "haproxy": "#1f77b4", "envoy": "#9467bd", "sniproxy": "#2ca02c"}
_QUANTILES = {"latency_p50": "p50", "latency_p99": "p99", "latency_p999": "p99.9"}

Document = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A median with the least and the greatest of its rounds."""

    value: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Point":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Figure:
    """Points of each peer, one for each label; None where a peer has none."""

    title: str
    unit: str
    labels: tuple[str, ...]
    series: dict[str, tuple[Point | None, ...]]


def values(document: Document, workload: str, peer: str, key: str) -> list[float | None]:
    """One value a round, as far as there are any."""
    samples = document["samples"].get(workload, {}).get(peer, [])
    return [sample["values"].get(key) if sample else None for sample in samples]


def ratio_figure(document: Document) -> Figure:
    """Ratios round by round, of the metrics that nginx has a value of, each with the mark that the table gives it.

    What is a ratio by itself already is left out.
    """
    peers = [peer for peer in document["about"]["versions"] if peer != BASELINE]
    labels: list[str] = []
    series: dict[str, list[Point | None]] = {peer: [] for peer in peers}
    for workload in document["samples"]:
        for metric in WORKLOADS[workload].metrics:
            base = values(document, workload, BASELINE, metric.key)
            found = {peer: ratios(values(document, workload, peer, metric.key), base) for peer in peers}
            if metric.unit == "x" or not any(found.values()):
                continue
            marked = metric.key in document.get("marked", ())
            labels.append(f"{metric.title} {MARK}" if marked else metric.title)
            for peer in peers:
                series[peer].append(Point.of(found[peer]) if found[peer] else None)
    fixed = {peer: tuple(points) for peer, points in series.items()}
    return Figure("Cost as a ratio to nginx (less is better)", "times nginx", tuple(labels), fixed)


def crowd_figure(document: Document) -> Figure:
    keys = {f"crowd_{level}": f"{level:,}" for level in FULL.levels}
    return _absolute(document, "crowd", keys, "CPU of a connection, by how many there are at a time", "us")


def latency_figure(document: Document) -> Figure:
    rate = document["about"]["scale"]["rate"]
    title = f"A short connection at {rate:,} a second (median of the rounds)"
    return _absolute(document, "latency", _QUANTILES, title, "us")


def _absolute(document: Document, workload: str, keys: dict[str, str], title: str, unit: str) -> Figure:
    series = {}
    for peer in document["about"]["versions"]:
        known = [[v for v in values(document, workload, peer, key) if v is not None] for key in keys]
        if any(known):
            series[peer] = tuple(Point.of(each) if each else None for each in known)
    return Figure(title, unit, tuple(keys.values()), series)


# ---------------------------------------------------------------- drawing


def draw(document: Document, folder: Path) -> list[Path]:
    """Returns the files that it wrote: those of which the run has the figures."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    drawn = []
    for name, figure, kind in (
        ("ratios", ratio_figure(document), _draw_ratios),
        ("crowd", crowd_figure(document), _draw_lines),
        ("latency", latency_figure(document), _draw_lines),
    ):
        if not figure.labels or not figure.series:
            continue
        canvas = kind(pyplot, figure)
        path = folder / f"{name}.png"
        canvas.savefig(path, dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
        pyplot.close(canvas)
        drawn.append(path)
    return drawn


def _draw_ratios(pyplot: Any, figure: Figure) -> Any:
    canvas, axes = pyplot.subplots(figsize=(_SIZE[0], 1.5 + _ROW * len(figure.labels)))
    height = 0.8 / len(figure.series)
    for number, (peer, points) in enumerate(figure.series.items()):
        rows = [(row + number * height, point) for row, point in enumerate(points) if point is not None]
        axes.barh(
            [row for row, _ in rows],
            [point.value - 1 for _, point in rows],
            left=1,
            height=height,
            color=_COLOURS.get(peer),
            label=RECIPES[peer].title,
            xerr=_errors([point for _, point in rows]),
            ecolor="#444444",
        )
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(figure.labels))], figure.labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return _finished(canvas, axes, figure, axes.set_xlabel)


def _draw_lines(pyplot: Any, figure: Figure) -> Any:
    canvas, axes = pyplot.subplots(figsize=_SIZE)
    for peer, points in figure.series.items():
        at = [(x, point) for x, point in enumerate(points) if point is not None]
        axes.errorbar(
            [x for x, _ in at],
            [point.value for _, point in at],
            yerr=_errors([point for _, point in at]),
            color=_COLOURS.get(peer),
            label=RECIPES[peer].title,
            marker="o",
            capsize=3,
        )
    axes.set_xticks(range(len(figure.labels)), figure.labels)
    axes.set_ylim(bottom=0)
    return _finished(canvas, axes, figure, axes.set_ylabel)


def _errors(points: Sequence[Point]) -> list[list[float]]:
    return [[point.value - point.least for point in points], [point.greatest - point.value for point in points]]


def _finished(canvas: Any, axes: Any, figure: Figure, name_axis: Any) -> Any:
    axes.set_title(figure.title)
    name_axis(figure.unit)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    return canvas


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="?", help="default: the newest committed ones")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the figures go, default bench/plots")
    arguments = parser.parse_args()
    path = arguments.results or next(reversed(committed_files()), None)
    if path is None:
        print("bench: no results are committed; name a file", file=sys.stderr)
        return 1
    arguments.folder.mkdir(parents=True, exist_ok=True)
    try:
        drawn = draw(json.loads(path.read_text()), arguments.folder)
    except ModuleNotFoundError as error:
        print(f"bench: {error.name} is not installed: `make bench-plots` installs it", file=sys.stderr)
        return 1
    print("\n".join(map(str, drawn)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
