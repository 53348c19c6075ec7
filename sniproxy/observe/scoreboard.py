"""The scoreboard: numbers that workers write and the admin process reads, in memory that all of them share.

Each worker has a row of slots that it alone writes, so that counting takes no lock; whoever reads adds the rows up.
The memory is the supervisor's, so that a worker which dies takes no count with it but those of the round in which it
died, and its successor goes on where it ended: counters never go back.

Slots are 8-byte floats: exact for whole numbers up to 2**53, and written at once on the machines that run this.
"""

import mmap
from collections.abc import Iterator, Sequence

from sniproxy.observe.bulletin import SIZE as BULLETIN_SIZE

_FLOAT = 8
_LABEL_ROW = 512  # bytes for the text of one set of label values, its length in front
_LABEL_ROWS = 512
_TABLE = _LABEL_ROWS * (_FLOAT + _LABEL_ROW)
_SEPARATOR = "\x1f"  # ASCII's unit separator; no label value has a control character
_UNDECIDED_SLOTS = 1 << 14
_UNDECIDED = _UNDECIDED_SLOTS * 4

Labels = tuple[str, ...]


class LabelledCounts:
    """Counts by label values that are only known as they come, in a table that cannot grow.

    The table is a worker's own. Once it is full, the rest is counted under `other`, its last resort.
    """

    def __init__(self, memory: memoryview, counts: "memoryview[float]", width: int) -> None:
        self._memory = memory
        self._counts = counts
        self._other: Labels = ("other",) * width
        # The row of each set of labels; a worker that takes over a row finds its predecessor's here.
        self._rows = {labels: row for row, (labels, _) in enumerate(read_labelled(memory, counts))}
        if not self._rows:
            self._add_row(self._other)

    def add(self, labels: Labels) -> None:
        row = self._rows.get(labels)
        if row is None:
            row = self._add_row(labels) if len(self._rows) < _LABEL_ROWS else 0
        self._counts[row] += 1.0

    def _add_row(self, labels: Labels) -> int:
        text = _SEPARATOR.join(labels).encode()
        if len(text) > _LABEL_ROW - 2:
            return 0
        row = len(self._rows)
        start = row * _LABEL_ROW
        self._memory[start + 2 : start + 2 + len(text)] = text
        # The length comes last: a reader takes a row that has one as whole.
        self._memory[start : start + 2] = len(text).to_bytes(2, "little")
        self._rows[labels] = row
        return row


def read_labelled(memory: memoryview, counts: "memoryview[float]") -> Iterator[tuple[Labels, float]]:
    """The rows of a table that are in use. For whoever reads: it writes nothing."""
    for row in range(_LABEL_ROWS):
        start = row * _LABEL_ROW
        size = int.from_bytes(memory[start : start + 2], "little")
        if size == 0:
            return
        text = bytes(memory[start + 2 : start + 2 + size]).decode()
        yield tuple(text.split(_SEPARATOR)), counts[row]


class Row:
    """What one worker writes: slots, tables of labelled counts, undecided counts, and a bulletin."""

    def __init__(self, memory: memoryview, slots: int, label_widths: Sequence[int]) -> None:
        end = slots * _FLOAT
        self.slots = memory[:end].cast("d")
        self._tables = []
        for width in label_widths:
            counts = memory[end : end + _LABEL_ROWS * _FLOAT].cast("d")
            labels = memory[end + _LABEL_ROWS * _FLOAT : end + _TABLE]
            self._tables.append((labels, counts, width))
            end += _TABLE
        self.undecided = memory[end : end + _UNDECIDED].cast("I")
        self.bulletin = memory[end + _UNDECIDED :]

    def labelled(self, table: int) -> LabelledCounts:
        """A table of the worker's own, to count in."""
        return LabelledCounts(*self._tables[table])

    def labelled_counts(self, table: int) -> Iterator[tuple[Labels, float]]:
        labels, counts, _ = self._tables[table]
        return read_labelled(labels, counts)


class Scoreboard:
    """The rows of `workers` workers and of their supervisor, of `slots` numbers each. Made before the first fork."""

    def __init__(self, workers: int, slots: int, label_widths: Sequence[int]) -> None:
        size = slots * _FLOAT + len(label_widths) * _TABLE + _UNDECIDED + BULLETIN_SIZE
        memory = memoryview(mmap.mmap(-1, size * (workers + 1)))
        rows = [Row(memory[size * n : size * (n + 1)], slots, label_widths) for n in range(workers + 1)]
        self.workers = rows[:-1]
        self.supervisor = rows[-1]

    def total(self, slot: int) -> float:
        return sum(row.slots[slot] for row in (*self.workers, self.supervisor))

    def labelled_totals(self, table: int) -> dict[Labels, float]:
        totals: dict[Labels, float] = {}
        for row in self.workers:
            for labels, count in row.labelled_counts(table):
                totals[labels] = totals.get(labels, 0.0) + count
        return totals


class UndecidedCounts:
    """How many connections of each source wait to be judged, in all workers together.

    Sources share a fixed number of counters by their hash, so the table cannot grow; two sources that fall together
    can only make the limit come early. The hash is Python's, keyed anew in each run and inherited by workers, so that
    nobody can aim at another's counter. `limit` may change at any time.
    """

    def __init__(self, rows: Sequence[Row], own: Row, limit: int = 0) -> None:
        self._columns = [row.undecided for row in rows]
        self._own = own.undecided
        self.limit = limit

    def enter(self, source: str) -> bool:
        """Count one more of `source`; False, and nothing counted, at the limit."""
        slot = hash(source) % _UNDECIDED_SLOTS
        if sum(column[slot] for column in self._columns) >= self.limit:
            return False
        self._own[slot] += 1
        return True

    def leave(self, source: str) -> None:
        self._own[hash(source) % _UNDECIDED_SLOTS] -= 1

    @staticmethod
    def clear(row: Row) -> None:
        """Forget what a dead worker held."""
        for slot, count in enumerate(row.undecided):
            if count:
                row.undecided[slot] = 0
