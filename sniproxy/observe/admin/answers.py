"""What the admin address answers in JSON: connections, policy, config, and the overview that the page shows."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from sniproxy.config.section import Section
from sniproxy.observe.admin.history import SECONDS, History
from sniproxy.observe.admin.in_force import InForce
from sniproxy.observe.metrics import (
    ACTIVE,
    DENIED,
    GENERATION,
    HEARTBEAT,
    SERVING,
    Kind,
    labelled_totals,
    read_samples,
    slot_of,
)
from sniproxy.observe.recent import Remembered
from sniproxy.observe.scoreboard import Scoreboard
from sniproxy.outcome import Event

Json = dict[str, Any]

_TOP = 15
_LATEST = 20
_REFUSING_RULES = 20

# A worker says that it lives once a second. One that has been silent this long is stuck.
_STUCK_SECONDS = 10.0


def stuck_workers(board: Scoreboard) -> list[int]:
    now, slot = time.monotonic(), slot_of(HEARTBEAT)
    return [n for n, row in enumerate(board.workers) if row.slots[slot] and now - row.slots[slot] > _STUCK_SECONDS]


def idle_workers(board: Scoreboard) -> list[int]:
    """Those that accept nothing."""
    slot = slot_of(SERVING)
    return [n for n, row in enumerate(board.workers) if not row.slots[slot]]


def connections(board: Scoreboard) -> Json:
    """What is live, by worker, and what was opened, refused or failed last."""
    remembered = Remembered(board.workers)
    return {
        "active": _number(board.total(slot_of(ACTIVE))),
        "workers": _workers(board),
        "latest": {_PAST[event]: remembered.latest(event) for event in _PAST},
    }


_PAST = {Event.OPEN: "opened", Event.DENY: "refused", Event.FAIL: "failed"}


def _workers(board: Scoreboard) -> list[Json]:
    stuck = stuck_workers(board)
    return [
        {
            "worker": number,
            "active": _number(row.slots[slot_of(ACTIVE)]),
            "generation": _number(row.slots[slot_of(GENERATION)]),
            "serving": bool(row.slots[slot_of(SERVING)]),
            "stuck": number in stuck,
        }
        for number, row in enumerate(board.workers)
    ]


async def policy(board: Scoreboard, in_force: InForce) -> Json:
    """What decides: the generation, its files, and how many rules of each."""
    counts = _counts(board)
    generation = in_force.generation
    settings = generation.config.policy
    return {
        "generation": generation.number,
        "generationOfAllWorkers": counts["config_generation"],
        "lastReloadSuccess": bool(counts["config_last_reload_success"]),
        "lastReload": counts["config_last_reload_timestamp_seconds"],
        "mode": settings.mode,
        "registry": settings.registry,
        "paths": [plain(file) for file in settings.files],
        "rules": counts["policy_rules"],
        "rulesByFile": await in_force.rules_by_file(),
        "warnings": counts["policy_warnings"],
    }


def plain(value: object) -> object:
    """A part of the config in JSON's types, under the config's own keys; times in seconds, sizes in bytes."""
    match value:
        case Section():
            return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
        case frozenset():
            return sorted(map(str, value))
        case tuple() | list():
            return [plain(each) for each in value]
        case None | bool() | int() | float():
            return value
        case _:
            return str(value)


def overview(board: Scoreboard, in_force: InForce, history: History) -> Json:
    """All that the page shows, at once."""
    remembered = Remembered(board.workers)
    counts = _counts(board)
    denied = labelled_totals(board, DENIED)
    generation = in_force.generation
    return {
        "version": version("sniproxy"),
        "time": time.time(),
        "mode": generation.config.policy.mode,
        "generation": generation.number,
        "counts": {**counts, "connections_denied": _number(sum((count for _, count in denied), 0.0))},
        "workers": _workers(board),
        "history": {"seconds": SECONDS, "samples": list(history.samples)},
        "top": {name: [counted._asdict() for counted in top] for name, top in remembered.top(_TOP).items()},
        "latest": {_PAST[event]: remembered.latest(event, _LATEST) for event in _PAST},
        "refusedBy": _refusals(denied),
    }


def _refusals(denied: Iterable[tuple[tuple[str, ...], float]]) -> list[Json]:
    """The rules that refuse most."""
    largest = sorted((item for item in denied if item[1]), key=lambda item: (-item[1], item[0]))
    return [
        {"policy": policy, "rule": rule, "reason": reason, "count": _number(count)}
        for (policy, rule, reason), count in largest[:_REFUSING_RULES]
    ]


def _counts(board: Scoreboard) -> dict[str, Any]:
    """Every series of the catalogue, by its name without `sniproxy_`; those with a label are mappings of its values."""
    counts: dict[str, Any] = {}
    for sample in read_samples(board):
        name = sample.metric.name.removeprefix("sniproxy_")
        if sample.metric.kind is Kind.HISTOGRAM:
            counts[name] = {"count": _number(sum(sample.bucket_counts, 0.0)), "sum": sample.total}
        elif sample.metric.label:
            counts[name] = {labels[0]: _number(count) for labels, count in sample.series}
        else:
            counts[name] = _number(sample.series[0][1])
    return counts


def _number(value: float) -> float:
    """A slot's float as JSON writes a count: 3, not 3.0."""
    return int(value) if value.is_integer() else value
