"""Whether sniproxy has become dearer: the ratios to nginx of this run against those that are committed.

The committed ratio of a metric is that of the newest file in bench/results/ which git knows and which has it; git
ignores that folder, and a run that is to be kept is added with `git add --force`. A ratio that has grown by more than
15 % fails the guard. Where the row is marked (report.py) the machine may be what has grown: such a ratio is not judged,
and the guard does not pass either.
"""

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bench.proxies import REPOSITORY
from bench.report import SUBJECT, Results, is_marked, summaries
from bench.stage import HERE

GROWTH = 0.15
ROUNDS = 3
RESULTS = HERE / "results"


class Outcome(Enum):
    HELD = "held"
    GROWN = "grown"
    UNSURE = "cannot be judged: the row is marked"
    NEW = "nothing committed to compare with"


@dataclass(frozen=True)
class Judgement:
    """One metric's ratio to nginx, then and now."""

    title: str
    committed: float | None
    now: float
    outcome: Outcome

    def __str__(self) -> str:
        before = "-" if self.committed is None else f"{self.committed:.2f}"
        return f"{self.title:<48} {before:>6} -> {self.now:<6.2f} {self.outcome.value}"


def committed_ratios() -> dict[str, float]:
    return newest_ratios(json.loads(path.read_text()) for path in committed_files())


def committed_files() -> list[Path]:
    """The oldest first: their names are times. Without git, whatever is there."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--", str(RESULTS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    known = {REPOSITORY / name for name in done.stdout.split("\0") if name} if done.returncode == 0 else None
    return sorted(path for path in RESULTS.glob("*.json") if known is None or path in known)


def newest_ratios(documents: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Of each metric, from the last document that has one."""
    found: dict[str, float] = {}
    for document in documents:
        for key, peers in document["summary"].items():
            ratio = peers.get(SUBJECT, {}).get("ratio")
            if ratio is not None:
                found[key] = ratio
    return found


def judge(results: Results, committed: Mapping[str, float]) -> list[Judgement]:
    """Of every metric that nginx has too, but for those that are ratios by themselves."""
    judgements = []
    for workload, metric in results.metrics:
        subject = summaries(results, workload, metric).get(SUBJECT)
        if metric.unit == "x" or subject is None or subject.ratio is None:
            continue
        before = committed.get(metric.key)
        if before is None:
            outcome = Outcome.NEW
        elif subject.ratio <= before * (1 + GROWTH):
            outcome = Outcome.HELD
        else:
            outcome = Outcome.UNSURE if is_marked(results, workload, metric) else Outcome.GROWN
        judgements.append(Judgement(metric.title, before, subject.ratio, outcome))
    return judgements


def exit_status(judgements: Iterable[Judgement]) -> int:
    """0: all held; 1: something has grown; 3: something may have."""
    outcomes = {judgement.outcome for judgement in judgements}
    if Outcome.GROWN in outcomes:
        return 1
    return 3 if Outcome.UNSURE in outcomes else 0
