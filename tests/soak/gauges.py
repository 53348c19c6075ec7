"""What processes have, over time: memory, descriptors and threads, in a table, and whether any of it grows."""

import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.vitals import vitals_of

# What the allocators of a busy interpreter may keep, of more than they had: arenas that are not empty, caches that have
# a bound and were not full.
SLACK_KIB = 2048

_ROWS = 12


class Reading(NamedTuple):
    """Of one process, at one time."""

    seconds: float
    pss: int  # KiB, what it shares divided among those who share it
    rss: int  # KiB
    own: int  # KiB of anonymous memory
    sockets: int
    pipes: int
    others: int  # descriptors of any other kind
    threads: int


def _kib(text: str, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)
    assert match is not None, text
    return int(match[1])


def read(pid: int, seconds: float = 0.0) -> Reading:
    """Raises OSError where the process is gone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    status = Path(f"/proc/{pid}/status").read_text()
    vitals = vitals_of([pid])
    return Reading(
        seconds,
        _kib(rollup, "Pss"),
        _kib(rollup, "Rss"),
        vitals.memory // 1024,
        vitals.sockets,
        vitals.pipes,
        vitals.others,
        _kib(status, "Threads"),
    )


class Gauges:
    """Readings of processes by name. A name stays where its process is replaced."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.readings: dict[str, list[Reading]] = {}
        self.notes: list[tuple[float, str]] = []

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def take(self, pids: Mapping[str, int], note: str = "") -> None:
        now = self.now
        for name, pid in pids.items():
            try:
                self.readings.setdefault(name, []).append(read(pid, now))
            except OSError:
                continue  # killed, and not replaced yet
        self.notes.append((now, note))

    def quarter(self, name: str, number: int, field: str) -> float:
        """The median of a quarter, 1 to 4."""
        readings = self.readings[name]
        end = readings[-1].seconds
        values: list[float] = [
            getattr(each, field) for each in readings if (number - 1) * end / 4 <= each.seconds <= number * end / 4
        ]
        return statistics.median(values)

    def growth(self, name: str, field: str) -> float:
        """How much more the median of the last quarter is than that of the second; the first is for warming up."""
        return self.quarter(name, 4, field) - self.quarter(name, 2, field)

    def table(self) -> str:
        """A dozen rows of it, and the medians that count."""
        names = list(self.readings)
        width = 8 * len(_SHOWN)
        rows = ["     s " + " ".join(f"|{name:>{width}}" for name in names)]
        rows.append("       " + " ".join("|" + "".join(f"{_SHOWN[field]:>8}" for field in _SHOWN) for _ in names))
        times = [seconds for seconds, _ in self.notes]
        for row in range(_ROWS):
            at, note = self.notes[row * (len(times) - 1) // (_ROWS - 1)]
            nearest = [min(self.readings[name], key=lambda each, at=at: abs(each.seconds - at)) for name in names]  # type: ignore[misc]
            cells = ("".join(f"{getattr(each, field):>8}" for field in _SHOWN) for each in nearest)
            rows.append(f"{at:>6.0f} " + " ".join(f"|{cell}" for cell in cells) + f" | {note}")
        for number in (2, 4):
            cells = ("".join(f"{self.quarter(name, number, field):>8.0f}" for field in _SHOWN) for name in names)
            rows.append(f"    Q{number} " + " ".join(f"|{cell}" for cell in cells) + " | medians of a quarter")
        return "\n".join(rows)


_SHOWN = {"pss": "PSS KiB", "rss": "RSS KiB", "sockets": "sockets", "pipes": "pipes", "others": "others"}
