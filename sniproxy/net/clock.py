"""What tells the time, and calls back: the rounds of a worker, or an asyncio event loop."""

import math
from collections.abc import Callable
from typing import Final, Protocol

# Seconds between two beats.
BEAT: Final = 0.025


class Clock(Protocol):
    """Times are of the monotonic clock, in seconds."""

    def time(self) -> float:
        """Now."""

    def call_soon(self, call: Callable[[], object], /) -> object:
        """Call once, after what has happened by now."""

    def call_at(self, when: float, call: Callable[[], object], /) -> object:
        """Call once, at `when` or soon after."""

    def call_later(self, seconds: float, call: Callable[[], object], /) -> object:
        """Call once, so much later."""


def call_on_beat(clock: Clock, call: Callable[[], object]) -> None:
    """Call once, at the next beat.

    Beats are the same for all that can wait a little, so that a process which does little wakes up once for all of it.
    """
    clock.call_at((math.floor(clock.time() / BEAT) + 1) * BEAT, call)
