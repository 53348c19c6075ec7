"""Random lives of a relayed connection, and what each end of one must have seen.

A schedule says what both ends do: write so much, rest, half-close, reset, leave, and how they read. `play` lets one
end do its part over a real socket, and gives an account of it. `assert_lawful` is the model: it knows the two accounts
and what the relay said about the connection, and nothing of how a relay works.
"""

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from sniproxy.net.sockets import unsent
from sniproxy.outcome import Reason
from tests.net.loopback import cut, read_some

KIB, MIB = 1 << 10, 1 << 20

# What both ends say is a window of this, each its own: bytes that are lost, doubled or swapped do not go unseen. None
# of them is a type of TLS record (20 to 27), so that behind a hello they are not taken for more of the handshake.
NOISE = memoryview(random.Random(1).randbytes(16 * MIB).translate(bytes([*range(20), *range(8), *range(28, 256)])))
LONGEST = 4 * MIB
_WINDOW = 5 * MIB

Rest = Callable[[int], Awaitable[object]]


class Say(NamedTuple):
    """Write so many bytes, however long that takes."""

    size: int


class Pause(NamedTuple):
    """Write nothing for so many units of rest."""

    units: int


class Last(Enum):
    """What an end does with its socket. Behind a half-close there may be a reset, and behind the others nothing."""

    HALF_CLOSE = "half-close"
    RESET = "reset"  # close(2) with SO_LINGER 0: all that is under way is dropped
    LEAVE = "leave"  # close(2) without having heard the end


class UntilHeard(NamedTuple):
    """Write nothing until the other end is over, as a server that wants the whole request first."""


Step = Say | Pause | Last | UntilHeard


class Gulp(NamedTuple):
    """Read nothing for so many units of rest, then at most so many bytes."""

    units: int
    size: int


class Part(NamedTuple):
    """What one end does: its writing step by step, and its reading over and over."""

    steps: tuple[Step, ...]
    gulps: tuple[Gulp, ...]


class Schedule(NamedTuple):
    client: Part
    origin: Part


def some_size(dice: random.Random, limit: int) -> int:
    """From one byte to the limit, each order of magnitude as likely as the others."""
    return int(2 ** dice.uniform(0, limit.bit_length() - 1))


def some_schedule(dice: random.Random, *, limit: int = LONGEST, breaks: bool) -> Schedule:
    """A schedule whose ends write about `limit` bytes at most. With `breaks` at least one of them breaks off."""
    ends = [Last.HALF_CLOSE, Last.HALF_CLOSE]
    if breaks:
        ends = dice.choice(
            [
                [Last.RESET, Last.HALF_CLOSE],
                [Last.HALF_CLOSE, Last.RESET],
                [Last.LEAVE, Last.HALF_CLOSE],
                [Last.HALF_CLOSE, Last.LEAVE],
                [Last.RESET, Last.RESET],
            ]
        )
    waits = dice.choice([0, 1, None, None])  # one of them at most, or both would wait for ever
    parts = [_some_part(dice, limit, end, waits=waits == number) for number, end in enumerate(ends)]
    return Schedule(*parts)


def _some_part(dice: random.Random, limit: int, end: Last, *, waits: bool) -> Part:
    steps: list[Step] = [UntilHeard()] if waits else []
    left = limit
    for _ in range(dice.choice([0, 1, 1, 2, 3, 6])):
        if dice.random() < 0.4:
            steps.append(Pause(some_size(dice, 64)))
        size = some_size(dice, left)
        left -= size
        steps.append(Say(size))
        if left < 1:
            break
    if dice.random() < 0.3:
        steps.append(Pause(some_size(dice, 64)))
    if end is not Last.HALF_CLOSE and dice.random() < 0.3:
        steps += [Last.HALF_CLOSE, Pause(some_size(dice, 64))]
    steps.append(end)
    return Part(tuple(steps), tuple(_some_gulps(dice, limit)))


def _some_gulps(dice: random.Random, limit: int) -> Iterator[Gulp]:
    """How an end reads. One that takes bytes singly would never be done with a mebibyte, so that comes to an end."""
    if dice.random() < 0.3:
        yield Gulp(some_size(dice, 256), some_size(dice, limit))  # deaf at first
    for _ in range(dice.randrange(4)):
        yield Gulp(0, some_size(dice, 100))
    for _ in range(dice.randrange(4)):
        yield Gulp(dice.choice([0, some_size(dice, 32)]), some_size(dice, limit))
    yield Gulp(0, MIB)


@dataclass
class Account:
    """What one end did and saw."""

    part: Part
    script: memoryview  # what it may say
    expected: memoryview  # what it may hear
    said: int = 0
    heard: int = 0
    is_exact: bool = True  # whatever it heard was said, in this order
    has_ended: bool = False
    departure: Last | None = None
    arrived: int = 0  # of what it had said when it departed, so much was acknowledged by the other kernel
    heard_end: bool = False
    met_reset: bool = False
    at: Step | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)  # it has heard all there is to hear

    def take(self, chunk: bytes) -> None:
        if chunk != self.expected[self.heard : self.heard + len(chunk)]:
            self.is_exact = False
        self.heard += len(chunk)

    @property
    def is_whole(self) -> bool:
        """Whether it told its peer that it has said everything."""
        return self.has_ended or self.departure is Last.LEAVE

    def __str__(self) -> str:
        saw = "an end" if self.heard_end else "a reset" if self.met_reset else "no end"
        return f"said {self.said}, heard {self.heard} and {saw}; at {self.at} of {self.part}"


def _sum_of(part: Part) -> int:
    return sum(step.size for step in part.steps if isinstance(step, Say))


def new_accounts(schedule: Schedule, head: bytes = b"", number: int = 0) -> tuple[Account, Account]:
    """Both accounts before anything has happened. What the client says begins with `head`."""
    first, second = number * 4099 % MIB, 8 * MIB + number * 65537 % MIB
    client, origin = NOISE[first : first + _WINDOW], NOISE[second : second + _WINDOW]
    if head:
        client = memoryview(head + bytes(client[: _sum_of(schedule.client)]))
    return Account(schedule.client, client, origin), Account(schedule.origin, origin, client)


async def play(sock: socket.socket, account: Account, rest: Rest) -> None:
    """Let one end do its part, to the end of it. Closes the socket, which must not block."""
    listening = asyncio.ensure_future(_listen(sock, account, rest))
    try:
        for step in account.part.steps:
            account.at = step
            match step:
                case Say(size):
                    await _say(sock, account, size)
                case Pause(units):
                    await rest(units)
                case UntilHeard():
                    await account.over.wait()
                case Last.HALF_CLOSE:
                    _half_close(sock, account)
                case _:
                    await _cancelled(listening)
                    _depart(sock, account, step)
            if account.met_reset:
                break
        if account.departure is None:
            await listening
    finally:
        await _cancelled(listening)
        account.over.set()
        sock.close()


async def _listen(sock: socket.socket, account: Account, rest: Rest) -> None:
    gulps = itertools.chain(account.part.gulps, itertools.repeat(Gulp(0, MIB)))
    for gulp in gulps:
        if gulp.units:
            await rest(gulp.units)
        try:
            while (chunk := read_some(sock, gulp.size)) is None:
                await _ready(sock, to_write=False)
        except ConnectionResetError:
            account.met_reset = True
            break
        if not chunk:
            # A reset that a write has met already is told to nobody else: what a read finds then is an end.
            account.heard_end = not account.met_reset
            break
        account.take(chunk)
    account.over.set()


async def _say(sock: socket.socket, account: Account, size: int) -> None:
    end = min(account.said + size, len(account.script))
    while account.said < end:
        try:
            account.said += sock.send(account.script[account.said : end])
        except BlockingIOError:
            await _ready(sock, to_write=True)
        except (ConnectionResetError, BrokenPipeError):
            account.met_reset = True
            return


def _half_close(sock: socket.socket, account: Account) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
        account.has_ended = True
    except OSError:  # ENOTCONN: the reset was here first
        account.met_reset = True


def _depart(sock: socket.socket, account: Account, how: Last) -> None:
    if how is Last.LEAVE and account.heard_end:
        account.has_ended = True  # nobody will miss it: this is how most connections end
    else:
        account.departure = how
        account.arrived = account.said - unsent(sock)
    if how is Last.RESET:
        cut(sock)
    else:
        sock.close()


async def _ready(sock: socket.socket, *, to_write: bool) -> None:
    """Until the socket has something to read, or has room."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()
    add, remove = (loop.add_writer, loop.remove_writer) if to_write else (loop.add_reader, loop.remove_reader)

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    add(fd, wake)
    try:
        await future
    finally:
        remove(fd)


async def _cancelled(task: "asyncio.Future[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def assert_lawful(client: Account, origin: Account, reason: Reason, received: int, sent: int) -> None:
    """What both ends saw, and what was said about it, is what must come of what both ends did.

    `received` are the bytes that came from the client, and `sent` those that went to it.
    """
    for one, other in ((client, origin), (origin, client)):
        assert one.is_exact, "bytes were lost, doubled or swapped"
        assert one.heard <= other.said, "more bytes than there were"
        if one.heard_end:
            assert other.is_whole, "an end that nobody made"
            assert one.heard == other.said, "an end before the last byte"
    assert origin.heard <= received <= client.said, "bytes from the client"
    assert client.heard <= sent <= origin.said, "bytes to the client"
    departures = {Reason.CLIENT_RESET: client.departure, Reason.UPSTREAM_RESET: origin.departure}
    if not any(departures.values()):
        assert reason is Reason.DONE
        assert (client.heard_end, origin.heard_end) == (True, True), "an end that was not passed on"
        assert (received, sent) == (client.said, origin.said)
        return
    if reason is Reason.DONE:
        # Both directions were over before the one who broke off was missed.
        assert (client.is_whole, origin.is_whole) == (True, True), "done, and nobody had ended"
        assert (received, sent) == (client.said, origin.said), "done, and bytes are missing"
    else:
        assert departures[reason] is not None, "a reset by who did not break off"
    for survivor, gone in ((client, origin), (origin, client)):
        if survivor.departure is None:
            assert survivor.heard_end or survivor.met_reset, "a survivor that nobody told"
            assert survivor.heard >= gone.arrived, "bytes that had arrived before the reset"
    if reason is Reason.CLIENT_RESET and origin.departure is None:
        assert origin.heard == received, "bytes that were taken and not delivered"
    if reason is Reason.UPSTREAM_RESET and client.departure is None:
        assert client.heard == sent, "bytes that were moved and not delivered"
