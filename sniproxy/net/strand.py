"""Strands: coroutines that run as far as they can at once, and again whenever what they await is done.

What a connection needs of an asyncio.Task is little: to go on when a future is done, and to be cancelled. A Task also
joins a register of all tasks, begins only at the loop's next turn, and tells its end through the loop once more. A
strand begins at once, with the hello in hand, and ends in a call.

Strands also take turns. Between two system calls a story runs a few hundred lines of Python once, and the kernel's work
in between has emptied the CPU's nearest caches of them. So a story says `await turn()` where a phase begins, and those
that got there in one round go through the phase together, all but the first with warm caches: a seventh less CPU a
short connection under load, for next to nothing when there is none.

A strand may await any asyncio future, and coroutines that do (asyncio.sleep, asyncio.shield). There is no current task
in it, so asyncio.timeout and asyncio.wait_for have no place there: deadlines are the timer wheel's.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Final, Generic, TypeVar, cast

T = TypeVar("T")

# A round costs a system call, so a story goes through all its phases in one, if nothing keeps it.
_TURNS_A_ROUND: Final = 4


class Turn:
    """What a strand awaits to have a turn; there is but one of it."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        yield


_TURN: Final = Turn()


def turn() -> Turn:
    """Let the others come this far, and go on with them."""
    return _TURN


class Pending(Generic[T]):
    """A result that one strand waits for: a future with nothing between its end and the strand's next turn.

    Only a strand can await it, and only once.
    """

    __slots__ = ("_error", "_result", "_strand", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._strand: Strand | None = None
        self._result: T | None = None
        self._error: BaseException | None = None

    def succeed(self, result: T) -> None:
        """The result, unless there is one already."""
        if not self.is_done:
            self.is_done = True
            self._result = result
            self._wake()

    def fail(self, error: BaseException) -> None:
        """The same, with an error that the one who waits gets raised."""
        if not self.is_done:
            self.is_done = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._strand is not None:
            self._strand.go_on()

    def __await__(self) -> Generator["Pending[T]", None, T]:
        if not self.is_done:
            yield self
        if self._error is not None:
            error, self._error = self._error, None  # for its traceback knows who has us
            try:
                raise error
            finally:
                del error
        result, self._result = self._result, None  # for it may know us
        return cast(T, result)

    def wakes(self, strand: "Strand") -> None:
        self._strand = strand


Awaited = asyncio.Future[object] | Pending[object] | None


# Instead of a StopIteration, which costs more than all the rest of a turn.
_OVER: Final[Pending[object]] = Pending()
_next: Final = next  # compiled, the builtin would be looked up by its name each time


class Turns:
    """The strands that wait for their turn, in a chain. Each round gives a few turns to all that wait."""

    def __init__(self, on_fault: Callable[[Exception], None]) -> None:
        self._on_fault = on_fault
        self._first: Strand | None = None
        self._last: Strand | None = None

    @property
    def are_wanted(self) -> bool:
        """Whether any strand waits for one."""
        return self._first is not None

    def add(self, strand: "Strand") -> None:
        """Let `strand` have one. It must not be waiting for one already."""
        if self._last is None:
            self._first = strand
        else:
            self._last.behind = strand
        self._last = strand

    def give(self) -> None:
        """A few turns to each that wants them. A strand that raises is at fault, and ends there."""
        for _ in range(_TURNS_A_ROUND):
            strand = self._take()
            if strand is None:
                return
            while strand is not None:
                behind = strand.behind
                strand.behind = None
                try:
                    strand.run()
                except Exception as fault:
                    self._on_fault(fault)
                strand = behind

    def _take(self) -> "Strand | None":
        """The chain of those that wait; nobody does any more."""
        first = self._first
        self._first = self._last = None
        return first


class Strand:
    """Runs `coroutine`, which must not raise; then calls `on_end`."""

    __slots__ = ("_awaited", "_is_cancelled", "_on_end", "_steps", "_turns", "behind")

    def __init__(
        self, coroutine: Coroutine[Awaited, None, None], turns: Turns, on_end: Callable[["Strand"], None]
    ) -> None:
        self._steps = coroutine.__await__()
        self._turns = turns
        self._on_end = on_end
        self._awaited: Awaited = None
        self._is_cancelled = False  # at its next await, for it was at none
        self.behind: Strand | None = None  # who has the turn after this one's

    def run(self) -> None:
        """Go on until the coroutine waits for something, or ends."""
        awaited = _next(self._steps, _OVER)
        if awaited is _OVER:
            self._on_end(self)
            return
        if awaited is None:  # a bare yield: a turn, or asyncio.sleep(0)
            self._turns.add(self)
            return
        self._awaited = awaited
        if isinstance(awaited, Pending):
            awaited.wakes(self)
        else:
            # What Future.__await__ sets before it yields itself, and asks whoever drives the coroutine to take back.
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(self._go_on)
        if self._is_cancelled:
            self._is_cancelled = False
            self.cancel()

    def cancel(self) -> None:
        """Let the future that the coroutine awaits, or the next one if it waits for a turn, raise CancelledError."""
        awaited = self._awaited
        if isinstance(awaited, Pending):
            awaited.fail(asyncio.CancelledError())
        elif awaited is not None:
            awaited.cancel()
        else:
            self._is_cancelled = True

    def go_on(self) -> None:
        """What it waited for is there: its next turn, please."""
        self._awaited = None
        self._turns.add(self)

    def _go_on(self, _done: asyncio.Future[object]) -> None:
        self._awaited = None
        self.run()
