"""How the counts came to be what they are: a sample every few seconds of the last minutes, for the page's chart."""

import asyncio
import time
from collections import deque

from sniproxy.observe.metrics import ACTIVE, DENIED, FAILED, OPENED, labelled_totals, slot_of
from sniproxy.observe.scoreboard import Scoreboard

SECONDS = 2
_SAMPLES = 300  # ten minutes

Sample = tuple[float, float, float, float, float]


class History:
    """Samples of (Unix time, active, opened, refused, failed), where all but the second only grow."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self.samples: deque[Sample] = deque(maxlen=_SAMPLES)

    def take(self) -> None:
        """One more sample."""
        board = self._board
        failed = slot_of(FAILED)
        self.samples.append(
            (
                round(time.time(), 1),
                board.total(slot_of(ACTIVE)),
                board.total(slot_of(OPENED)),
                sum(count for _, count in labelled_totals(board, DENIED)),
                sum(board.total(slot) for slot in range(failed, failed + FAILED.slots)),
            )
        )

    async def keep(self) -> None:
        """Take samples for ever."""
        while True:
            self.take()
            await asyncio.sleep(SECONDS)
