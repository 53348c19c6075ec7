"""The fan-out: brings every process to the newest generation, and knows when all are there.

A process has one generation on its way at most, and the next is the newest there is then: whoever is slow misses some,
and never gets old ones. One that does not say in time that it has taken what it was sent is stuck, and is given up;
its successor is born with the newest.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sniproxy.reload.channel import Outbox, Parcel

# A generation is taken within milliseconds, by a process that does anything at all.
_ANSWER_SECONDS = 10.0
# A new process has to load what it is made of, on a machine that may be starting many.
_BIRTH_SECONDS = 60.0

# Whoever lets go of a large policy last gives its memory back, which takes ten milliseconds that no worker has. So
# the supervisor keeps it for longer than any connection needs to be judged, resolved and dialled.
_KEPT_SECONDS = 30.0
_MAX_KEPT = 8


@dataclass(slots=True)
class _Member:
    """A process: what is on its way to it, until when it may take, and what it has."""

    outbox: Outbox
    asked: int
    deadline: float
    taken: int = 0


class Fanout:
    """`clock` is monotonic; tests bring their own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._members: dict[str, _Member] = {}
        self._parcel: Parcel | None = None
        self._kept: list[tuple[float, Parcel]] = []  # those before, and until when

    @property
    def newest(self) -> int:
        return self._parcel.generation.number if self._parcel is not None else 0

    def descriptors(self) -> Iterator[int]:
        for member in self._members.values():
            yield member.outbox.fileno()

    def publish(self, parcel: Parcel) -> None:
        """This is the newest generation from now on, and what all are to have."""
        if self._parcel is not None:
            self._kept.append((self._clock() + _KEPT_SECONDS, self._parcel))
        self._parcel = parcel
        self._drop_old()
        for member in self._members.values():
            self._send_newest(member)

    def _drop_old(self) -> None:
        while self._kept and (len(self._kept) > _MAX_KEPT or self._clock() >= self._kept[0][0]):
            self._kept.pop(0)[1].close()

    def add(self, name: str, outbox: Outbox) -> None:
        """A process was started with the newest generation, in place of any of that name before."""
        self.remove(name)
        self._members[name] = _Member(outbox, self.newest, self._clock() + _BIRTH_SECONDS)

    def remove(self, name: str) -> None:
        """A process has died."""
        if (member := self._members.pop(name, None)) is not None:
            member.outbox.close()

    def collect(self) -> None:
        """Hear what they say."""
        self._drop_old()
        for member in self._members.values():
            for number in member.outbox.answers():
                member.taken = max(member.taken, number)
            if member.taken >= member.asked:
                member.deadline = math.inf
                self._send_newest(member)

    def _send_newest(self, member: _Member) -> None:
        if self._parcel is None or member.taken < member.asked or member.asked == self.newest:
            return
        member.asked = self.newest
        member.deadline = self._clock() + _ANSWER_SECONDS
        member.outbox.send(self._parcel)

    def is_complete(self) -> bool:
        """Whether every process has the newest generation."""
        return all(member.taken == self.newest for member in self._members.values())

    def stuck(self) -> list[str]:
        """Those that have had their time; told once."""
        now = self._clock()
        names = [name for name, member in self._members.items() if now >= member.deadline]
        for name in names:
            self._members[name].deadline = math.inf
        return names

    def seconds_left(self) -> float:
        """Until somebody may be stuck, or something is to be dropped."""
        deadlines = [member.deadline for member in self._members.values()]
        deadlines += [until for until, _ in self._kept[:1]]
        return max(0.0, min(deadlines, default=math.inf) - self._clock())

    def close(self) -> None:
        for name in list(self._members):
            self.remove(name)
        for _, parcel in self._kept:
            parcel.close()
        self._kept.clear()
        if self._parcel is not None:
            self._parcel.close()
            self._parcel = None
