"""A strand: one coroutine that runs as far as it can at once, and again whenever what it awaits is done.

What a connection needs of an asyncio.Task is little: to go on when a future is done, and to be cancelled. A Task also
joins a register of all tasks, begins only at the loop's next turn, and tells its end through the loop once more, which
together cost a tenth of a short connection. A strand begins at once, with the hello in hand, and ends in a call.

It may await any asyncio future, and coroutines that do (asyncio.sleep, asyncio.shield). There is no current task in it,
so asyncio.timeout and asyncio.wait_for have no place there: deadlines are the timer wheel's.
"""

import asyncio
from collections.abc import Callable, Coroutine


class Strand:
    """Runs `coroutine`, which must not raise; then calls `on_end`."""

    __slots__ = ("_awaited", "_coroutine", "_on_end")

    def __init__(
        self, coroutine: Coroutine["asyncio.Future[object] | None", None, None], on_end: Callable[["Strand"], None]
    ) -> None:
        self._coroutine = coroutine
        self._on_end = on_end
        self._awaited: asyncio.Future[object] | None = None

    def run(self) -> None:
        """Go on until the coroutine awaits a future that is not done, or ends."""
        try:
            awaited = self._coroutine.send(None)
        except StopIteration:
            self._on_end(self)
            return
        if awaited is None:  # a bare yield, as in asyncio.sleep(0): let the others have their turn
            asyncio.get_running_loop().call_soon(self.run)
            return
        # What Future.__await__ sets before it yields itself, and asks whoever drives the coroutine to take back.
        awaited._asyncio_future_blocking = False
        self._awaited = awaited
        awaited.add_done_callback(self._go_on)

    def cancel(self) -> None:
        """Let the await that the coroutine is at raise CancelledError."""
        if self._awaited is not None:
            self._awaited.cancel()

    def _go_on(self, _done: "asyncio.Future[object]") -> None:
        self._awaited = None
        self.run()
