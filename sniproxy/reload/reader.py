"""The reader: a short-lived process that reads the files, so that those who serve never wait for it.

It writes the compiled policy into a file of memory that it was given, and the rest of the reading into a pipe. Its
memory, hundreds of megabytes for the largest policies, goes with it. It is nice, and collects no garbage.
"""

import contextlib
import gc
import os
import pickle
import signal
from collections.abc import Callable

from sniproxy.processes import cause_of, fork
from sniproxy.reload.generation import Reading, Source, Unreadable, new_policy_file, read, write_policy

# As nice as can be: at 10 the p99 of short connections on the same core was four times as high while 100,000 rules were
# read, at 19 it is 0.9 to 1.2 times. On a core that is never idle a reading gets a seventieth of it.
_NICENESS = 19

_CHUNK = 1 << 20


class ReaderFailedError(Exception):
    """The reader ended without a word; the message says how."""


class Reader:
    """A reader under way. `fileno()` is readable when `is_over()` should be asked again."""

    def __init__(self, source: Source, release: Callable[[], None] = lambda: None) -> None:
        """Begin to read. `release` lets go, in the new process, of what is only its parent's. Raises OSError."""
        self._policy = new_policy_file()
        self._pipe, writer = os.pipe()
        os.set_blocking(self._pipe, False)
        self._said = bytearray()

        def work() -> None:
            release()
            _work(source, writer, self._policy)

        try:
            self._pid = fork(work)
        except OSError:
            self.let_go()
            raise
        finally:
            os.close(writer)

    def fileno(self) -> int:
        return self._pipe

    def is_over(self) -> bool:
        """Whether all has been said. Takes what has been said so far, so that the reader can go on."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._pipe, _CHUNK):
                self._said += chunk
            return True
        return False

    def outcome(self) -> tuple[Reading | Unreadable, int]:
        """What it read, and the descriptor of the compiled policy, which is the caller's. Once it is over.

        Raises ReaderFailedError.
        """
        os.close(self._pipe)
        _, status = os.waitpid(self._pid, 0)
        if status != 0:
            os.close(self._policy)
            raise ReaderFailedError(f"the process that reads the files died ({cause_of(status)})")
        outcome: Reading | Unreadable = pickle.loads(self._said)  # noqa: S301 - our own process wrote it
        return outcome, self._policy

    def abandon(self) -> None:
        """End it, whatever it was about to say."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self.let_go()

    def let_go(self) -> None:
        """Close the descriptors."""
        os.close(self._pipe)
        os.close(self._policy)


def _work(source: Source, writer: int, policy: int) -> None:
    os.nice(_NICENESS)
    gc.disable()
    outcome, compiled = read(source)
    write_policy(policy, compiled)
    with open(writer, "wb") as file:
        pickle.dump(outcome, file)
