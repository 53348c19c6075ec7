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

# How many rounds with events the patient let pass: under load there are no others.
_PATIENCE: Final = 2


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

    def succeed(self, result: T, *, is_urgent: bool = True) -> None:
        """The result, unless there is one already. It `is_urgent` if somebody waits for what the strand does then."""
        if not self.is_done:
            self.is_done = True
            self._result = result
            self._wake(is_urgent=is_urgent)

    def fail(self, error: BaseException) -> None:
        """The same, with an error that the one who waits gets raised."""
        if not self.is_done:
            self.is_done = True
            self._error = error
            self._wake(is_urgent=True)

    def _wake(self, *, is_urgent: bool) -> None:
        if self._strand is not None:
            self._strand.go_on(is_urgent=is_urgent)

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


class _Chain:
    """Strands that wait, one behind the other. None is in two chains."""

    __slots__ = ("_first", "_last")

    def __init__(self) -> None:
        self._first: Strand | None = None
        self._last: Strand | None = None

    @property
    def is_empty(self) -> bool:
        return self._first is None

    def add(self, strand: "Strand") -> None:
        if self._last is None:
            self._first = strand
        else:
            self._last.behind = strand
        self._last = strand

    def take(self) -> "Strand | None":
        """The first, with the others behind it; none of them waits any more."""
        first = self._first
        self._first = self._last = None
        return first


class Turns:
    """The strands that wait for their turn. Each round gives a few turns to all that wait.

    Where nobody waits for what a strand does next, as at the end of a connection, it has its turn in a round without an
    event, or after a few: a client that waits for its answer comes before the closing of sockets that are done with.
    """

    def __init__(self, on_fault: Callable[[Exception], None]) -> None:
        self._on_fault = on_fault
        self._urgent = _Chain()
        self._patient = _Chain()
        self._busy_rounds = 0  # since the patient had their turn

    @property
    def are_wanted(self) -> bool:
        """Whether any strand waits for one."""
        return not (self._urgent.is_empty and self._patient.is_empty)

    def add(self, strand: "Strand", *, is_urgent: bool = True) -> None:
        """Let `strand` have one. It must not be waiting for one already."""
        if is_urgent:
            self._urgent.add(strand)
        else:
            self._patient.add(strand)

    def give(self, *, is_busy: bool) -> None:
        """A few turns to each that wants them, in a round with events or without.

        A strand that raises is at fault, and ends there.
        """
        turns = 0
        while turns < _TURNS_A_ROUND and not self._urgent.is_empty:
            self._run(self._urgent.take())
            turns += 1
        self._busy_rounds += 1
        if not is_busy or self._busy_rounds > _PATIENCE:
            self._busy_rounds = 0
            self._run(self._patient.take())

    def _run(self, strand: "Strand | None") -> None:
        """A turn to `strand` and all behind it."""
        while strand is not None:
            behind = strand.behind
            strand.behind = None
            try:
                strand.run()
            except Exception as fault:
                self._on_fault(fault)
            strand = behind


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

    def go_on(self, *, is_urgent: bool) -> None:
        """What it waited for is there: its next turn, please."""
        self._awaited = None
        self._turns.add(self, is_urgent=is_urgent)

    def _go_on(self, _done: asyncio.Future[object]) -> None:
        self._awaited = None
        self.run()
