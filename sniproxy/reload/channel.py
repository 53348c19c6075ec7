"""The channel by which a process gets each new generation, and says that it has it.

A Unix socket of packets: a packet is a generation's number, and with it come two descriptors, the compiled policy and
a file of memory with the rest, pickled. The answer is the number. Neither end ever waits.
"""

import asyncio
import contextlib
import os
import pickle
import socket
from collections.abc import Callable

from sniproxy.reload.generation import Generation

_NUMBER_SIZE = 8
_DESCRIPTORS = 2


class Parcel:
    """A generation, ready to be sent. It has its descriptors until it is closed."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._settings = os.memfd_create("sniproxy-settings", os.MFD_CLOEXEC)
        with open(os.dup(self._settings), "wb") as file:
            pickle.dump((generation.config, generation.connection_limit), file)

    @property
    def descriptors(self) -> list[int]:
        return [self.generation.policy, self._settings]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def new_channel() -> tuple["Outbox", "Inbox"]:
    """The two ends: the supervisor's, and its child's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    return Outbox(ours), Inbox(theirs)


class Outbox:
    """The supervisor's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, parcel: Parcel) -> None:
        """Send a generation. One that has died meanwhile will not get it; its successor is born with it."""
        number = parcel.generation.number.to_bytes(_NUMBER_SIZE, "little")
        with contextlib.suppress(OSError):
            socket.send_fds(self._sock, [number], parcel.descriptors)

    def answers(self) -> list[int]:
        """The numbers of the generations that it has taken since we asked."""
        numbers = []
        with contextlib.suppress(OSError):
            while answer := self._sock.recv(_NUMBER_SIZE):
                numbers.append(int.from_bytes(answer, "little"))
        return numbers

    def close(self) -> None:
        self._sock.close()


class Inbox:
    """The end of a worker, or of the admin process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> Generation | None:
        """The next generation, whose policy's descriptor is now ours; None when there is none yet.

        Raises EOFError when the supervisor has closed its end.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, _NUMBER_SIZE, _DESCRIPTORS)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # it has closed without having read all that we said
            data = b""
        if not data:
            raise EOFError
        if len(descriptors) < _DESCRIPTORS:  # recvmsg(2) drops those that a process has no room for
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        policy, settings = descriptors
        try:
            # Not read(2): all that receive it share one position in the file.
            pickled = os.pread(settings, os.fstat(settings).st_size, 0)
        finally:
            os.close(settings)
        config, connection_limit = pickle.loads(pickled)  # noqa: S301 - our own process wrote it
        return Generation(int.from_bytes(data, "little"), config, connection_limit, policy)

    def watch(self, loop: asyncio.AbstractEventLoop, take: Callable[[Generation], None]) -> None:
        """Let `take` have each generation as it comes, until the supervisor closes its end."""
        loop.add_reader(self._sock, self._pass_on, loop, take)

    def _pass_on(self, loop: asyncio.AbstractEventLoop, take: Callable[[Generation], None]) -> None:
        try:
            generation = self.receive()
        except EOFError:
            loop.remove_reader(self._sock)
            return
        if generation is not None:
            take(generation)

    def confirm(self, number: int) -> None:
        """Say that generation `number` is in force here."""
        with contextlib.suppress(OSError):  # the supervisor is gone, or has given us up
            self._sock.send(number.to_bytes(_NUMBER_SIZE, "little"))

    def close(self) -> None:
        self._sock.close()
