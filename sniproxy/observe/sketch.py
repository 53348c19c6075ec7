"""The most frequent of many values, in a table that cannot grow, whoever chooses the values.

The sketch of Misra and Gries (Finding repeated elements, 1982), taken in batches: values wait until a batch is full,
and then are counted and added to the table, of which only the largest stay. What is dropped is subtracted from
all that stay (Agarwal et al., Mergeable Summaries, 2012), so that a count is too small by `error` at most, and `error`
is at most the total divided by the size of the table. To add a value costs a place in a list; the rest is once a batch.
"""

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Final, NamedTuple

KEPT = 64
_BATCH: Final = 512


class Counted(NamedTuple):
    """A value that came `times` times at least, and `times + error` times at most."""

    value: str
    times: int
    error: int


class Sketch:
    """Counts values by their text."""

    def __init__(self) -> None:
        self._pending: list[Hashable] = []
        self._counts: dict[str, int] = {}
        self._error = 0

    def add(self, value: Hashable) -> None:
        self._pending.append(value)
        if len(self._pending) >= _BATCH:
            self.merge({}, 0)

    def merge(self, counts: Mapping[str, int], error: int) -> None:
        """Add what another one has counted."""
        sums = self._counts
        for source in (Counter(self._pending), counts):
            for value, count in source.items():
                text = str(value)
                sums[text] = sums.get(text, 0) + count
        self._pending.clear()
        self._error += error
        if len(sums) > KEPT:
            dropped = heapq.nlargest(KEPT + 1, sums.values())[-1]
            self._error += dropped
            self._counts = {value: count - dropped for value, count in sums.items() if count > dropped}

    def top(self, most: int = KEPT) -> list[Counted]:
        """The most frequent, first; of equals, the first in the alphabet."""
        self.merge({}, 0)
        largest = heapq.nsmallest(most, self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [Counted(value, count, self._error) for value, count in largest]


def merged(tops: Iterable[Iterable[Counted]], most: int) -> list[Counted]:
    """The most frequent in several sketches together."""
    whole = Sketch()
    for top in map(list, tops):
        whole.merge({value: times for value, times, _ in top}, max((error for *_, error in top), default=0))
    return whole.top(most)
