"""The relay, between real sockets: byte-exact whatever the order of events, and nothing held while nothing flows.

A test sits at both far ends, as the client and as the origin, and moves the clock by hand.
"""

import asyncio
import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.names import ServerName
from sniproxy.net.pipes import Pipe, PipePool
from sniproxy.net.readiness import READABLE, Readiness
from sniproxy.net.relay import Relay, Tally
from sniproxy.net.rounds import Watcher
from sniproxy.net.sockets import unsent
from sniproxy.net.strand import Strand
from sniproxy.net.timers import TICK
from sniproxy.outcome import Reason
from sniproxy.wire.hello_retry import RETRY, HelloWatch
from tests.net.clock import HandClock
from tests.net.loopback import (
    PATIENCE,
    Hears,
    InStrand,
    Pair,
    cut,
    fill,
    open_descriptors,
    read_exactly,
    read_some,
    read_to_end,
    result_of,
    tcp_pair,
    turns,
    unix_pair,
    unread,
    until,
    watching,
)
from tests.wire.build import build_client_hello

KIB, MIB = 1 << 10, 1 << 20
COPIED_AT_ONCE = 64 * KIB
NOISE = random.Random(1).randbytes(4 * MIB)

MakePair = Callable[[], AbstractContextManager[Pair]]


class LentPipes(PipePool):
    """A pool that knows what it has lent, and what did not come back empty."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.lent: set[Pipe] = set()
        self.leases = 0
        self.discarded = 0

    def lease(self) -> Pipe | None:
        pipe = super().lease()
        if pipe is not None:
            self.lent.add(pipe)
            self.leases += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        self.lent.remove(pipe)
        super().give_back(pipe)

    def discard(self, pipe: Pipe) -> None:
        # The pool discards what is free when it closes; that was lent to nobody.
        self.discarded += pipe in self.lent
        self.lent.discard(pipe)
        super().discard(pipe)


class Count(Tally):
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: float) -> None:
        self.total += int(amount)


@dataclass
class Stage:
    """A relay that runs, its two sockets, and the far ends of both."""

    client: socket.socket
    origin: socket.socket
    downstream: socket.socket
    upstream: socket.socket
    relay: Relay
    running: "asyncio.Future[Reason]"
    pipes: LentPipes
    clock: HandClock
    readiness: Readiness
    counted_received: Count
    counted_sent: Count

    @property
    def held(self) -> int:
        """Bytes of the request that were taken from the client and not yet given to the origin."""
        return self.relay.received - self.counted_received.total

    def close_when_over(self) -> None:
        """What the story of the connection does when its relay has ended."""
        if self.running.done():
            for sock in (self.downstream, self.upstream):
                self.readiness.forget(sock.fileno())
                sock.close()

    async def ends(self) -> Reason:
        return await result_of(self.running)

    def totals(self) -> tuple[int, int]:
        """Bytes each way, which the counters must have been told of, too."""
        assert (self.relay.received, self.relay.sent) == (self.counted_received.total, self.counted_sent.total)
        return self.relay.received, self.relay.sent


@contextlib.asynccontextmanager
async def relaying(
    watched: tuple[Readiness, HandClock],
    *,
    downstream: AbstractContextManager[Pair] | None = None,
    upstream: AbstractContextManager[Pair] | None = None,
    pipes: int = 2,
    head: bytes = b"",
    idle: float = 600.0,
    before: Callable[[Pair, Pair], object] = lambda _down, _up: None,
    known: bool = False,
    watch: HelloWatch | None = None,
) -> AsyncIterator[Stage]:
    """A relay on the stage. `before` happens before it runs; `known` sockets were watched by others until then."""
    readiness, clock = watched
    with downstream or tcp_pair() as down, upstream or tcp_pair() as up:
        heard: list[int] = [0]

        def hear(events: int) -> None:
            heard[0] |= events

        if known:
            readiness.watch(down[0].fileno(), Hears(lambda _events: None))
            readiness.watch(up[0].fileno(), Hears(hear))
        before(down, up)
        if known:
            await turns()
        pool = LentPipes(pipes)
        received, sent = Count(), Count()
        relay = Relay(down[0], up[0], readiness, pool, idle, received, sent)
        running = InStrand(run(relay, head, heard[0], watch))
        await asyncio.sleep(0)
        try:
            yield Stage(down[1], up[1], down[0], up[0], relay, running, pool, clock, readiness, received, sent)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            for sock in (down[0], up[0]):
                readiness.forget(sock.fileno())
            assert pool.lent == set()
            pool.close()


@pytest.fixture
async def watched() -> AsyncIterator[tuple[Readiness, HandClock]]:
    with watching() as both:
        yield both


Watched = tuple[Readiness, HandClock]


async def run(relay: Relay, head: bytes, heard: int, watch: HelloWatch | None = None) -> Reason:
    """As the story of a connection runs a relay."""
    try:
        return await relay.start(head, heard, watch)
    finally:
        relay.close()


# ---- Random interleavings ----


@dataclass
class Speaker:
    """One far end: what it will say, what it has heard, and how far it is."""

    sock: socket.socket
    script: bytes
    said: int = 0
    heard: bytearray = field(default_factory=bytearray)
    has_ended: bool = False
    has_heard_end: bool = False

    def write(self, size: int) -> None:
        if self.said < len(self.script):
            with contextlib.suppress(BlockingIOError):
                self.said += self.sock.send(memoryview(self.script)[self.said : self.said + size])

    def read(self, size: int) -> None:
        if not self.has_heard_end:
            chunk = read_some(self.sock, size)
            self.heard += chunk or b""
            self.has_heard_end = chunk == b""

    def read_all(self) -> None:
        """Everything that has come."""
        before = -1
        while len(self.heard) > before:
            before = len(self.heard)
            self.read(MIB)

    def end(self) -> None:
        if self.said == len(self.script) and not self.has_ended:
            self.has_ended = True
            self.sock.shutdown(socket.SHUT_WR)

    @property
    def is_done(self) -> bool:
        return self.has_ended and self.has_heard_end


def size_of_turn(dice: random.Random) -> int:
    """From one byte to a mebibyte, each order of magnitude as likely as the others."""
    return int(2 ** dice.uniform(0, 20))


def some_bytes(dice: random.Random, limit: int) -> bytes:
    size = dice.choice([0, 1, size_of_turn(dice), size_of_turn(dice), limit])
    start = dice.randrange(len(NOISE) - limit)
    return NOISE[start : start + min(size, limit)]


async def act(dice: random.Random, speakers: Sequence[Speaker], over: Callable[[], bool], what: str) -> None:
    """Let both speak, listen, rest and end in an order that the dice give, until it is over.

    Each story has its own temper: who talks, who listens, and how often the loop turns in between.
    """
    tempers = [[2 ** dice.uniform(-4, 2) for _ in range(3)] for _ in speakers]
    actions = [action for speaker in speakers for action in (speaker.write, speaker.read, speaker.end)]
    weights = [weight for temper in tempers for weight in temper]
    rest = 2 ** dice.uniform(-4, 2)

    def one_turn() -> bool:
        for _ in range(20):
            if dice.random() < rest / (rest + sum(weights)):
                break
            (action,) = dice.choices(actions, weights)
            if action in (speakers[0].end, speakers[-1].end):
                action()
            else:
                cast(Callable[[int], None], action)(size_of_turn(dice))
        return over()

    await until(one_turn, what)


def both_done(stage: Stage, client: Speaker, origin: Speaker) -> Callable[[], bool]:
    def look() -> bool:
        stage.close_when_over()
        return client.is_done and origin.is_done

    return look


TINY = 4 * KIB
LIMITS = {"TCP": 3 * MIB, "tiny TCP": 60 * KIB, "Unix": 3 * MIB, "tiny Unix": 200 * KIB}
PAIRS: dict[str, MakePair] = {
    "TCP": tcp_pair,
    "tiny TCP": lambda: tcp_pair(TINY),
    "Unix": unix_pair,
    "tiny Unix": lambda: unix_pair(TINY),
}


@pytest.mark.parametrize("pipes", [0, 2], ids=["copied", "spliced"])
@pytest.mark.parametrize("kind", PAIRS)
async def test_every_interleaving_is_byte_exact(watched: Watched, kind: str, pipes: int) -> None:
    """Both ends write, read, rest and end in a random order, through small buffers or large ones.

    What one said is what the other heard, both ends are passed on, and the totals are right.
    """
    for seed in range(60):
        dice = random.Random(f"{kind} {pipes} {seed}")
        request, response = some_bytes(dice, LIMITS[kind]), some_bytes(dice, LIMITS[kind])
        cut_at = dice.choice([0, min(len(request), 2000)])
        async with relaying(
            watched,
            downstream=PAIRS[kind](),
            upstream=PAIRS[dice.choice([kind, "TCP"])](),
            pipes=pipes,
            head=request[:cut_at],
            known=dice.random() < 0.5,
        ) as stage:
            client = Speaker(stage.client, request, said=cut_at)
            origin = Speaker(stage.origin, response)
            what = f"the end of {kind} {pipes} {seed}"
            await act(dice, [client, origin], both_done(stage, client, origin), what)
            assert await stage.ends() is Reason.DONE, what
            assert (origin.heard == request, client.heard == response) == (True, True), what
            assert (len(request), len(response)) == stage.totals(), what


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["TCP", "tiny Unix"]), st.sampled_from([0, 1]))
async def test_any_interleaving_is_byte_exact(dice: random.Random, kind: str, pipes: int) -> None:
    """The same, with dice that hypothesis loads against us."""
    with watching() as watched:
        request, response = some_bytes(dice, 64 * KIB), some_bytes(dice, 64 * KIB)
        async with relaying(watched, downstream=PAIRS[kind](), upstream=PAIRS[kind](), pipes=pipes) as stage:
            client, origin = Speaker(stage.client, request), Speaker(stage.origin, response)
            for speaker in (client, origin):
                speaker.write(size_of_turn(dice))
            await turns(dice.randrange(5))
            fair = random.Random(0)
            await act(fair, [client, origin], both_done(stage, client, origin), "the end")
            assert await stage.ends() is Reason.DONE
            assert (bytes(origin.heard), bytes(client.heard)) == (request, response)


@pytest.mark.parametrize("pipes", [0, 2], ids=["copied", "spliced"])
@pytest.mark.parametrize("breaker", ["client", "origin"])
@pytest.mark.parametrize("kind", ["TCP", "tiny TCP"])
async def test_a_reset_at_any_moment_is_named_and_nothing_hangs(
    watched: Watched, kind: str, breaker: str, pipes: int
) -> None:
    """One side resets at a random moment. The relay ends and names it; the other side has a prefix of what was said,
    all of what the relay says it has moved.
    """
    reasons = {"client": Reason.CLIENT_RESET, "origin": Reason.UPSTREAM_RESET}
    for seed in range(25):
        dice = random.Random(f"{kind} {breaker} {pipes} {seed}")
        async with relaying(watched, downstream=PAIRS[kind](), upstream=PAIRS[kind](), pipes=pipes) as stage:
            what = f"the reset of {kind} {breaker} {pipes} {seed}"
            client = Speaker(stage.client, some_bytes(dice, LIMITS[kind]))
            origin = Speaker(stage.origin, some_bytes(dice, LIMITS[kind]))
            broken, left = (client, origin) if breaker == "client" else (origin, client)
            moment = dice.randrange(60)

            def is_time() -> bool:
                nonlocal moment
                moment -= 1
                return moment < 0 or client.is_done or origin.is_done  # noqa: B023 - called at once

            await act(dice, [client, origin], is_time, what)
            if stage.running.done():
                continue
            both_had_ended = client.has_ended and origin.has_ended  # then all of it may have been in order
            cut(broken.sock)
            near = stage.upstream if left is origin else stage.downstream

            def rest() -> bool:
                left.read(MIB)  # noqa: B023 - called at once
                return stage.running.done() and (left.has_heard_end or unsent(near) == 0)  # noqa: B023 - called at once

            await until(rest, what)
            left.read_all()
            expected = {reasons[breaker], Reason.DONE} if both_had_ended else {reasons[breaker]}
            assert await stage.ends() in expected, what
            assert broken.script.startswith(bytes(left.heard)), what
            moved = (stage.counted_received if left is origin else stage.counted_sent).total
            assert moved == len(left.heard), what


# ---- Resets ----


class TestResets:
    @pytest.mark.parametrize("pipes", [0, 2])
    @pytest.mark.parametrize("size", [1, 1000, COPIED_AT_ONCE, 300 * KIB])
    async def test_what_had_arrived_before_it_is_delivered(self, watched: Watched, size: int, pipes: int) -> None:
        """Although the relay could not move it then, for the client was not reading."""
        answer = NOISE[:size]
        async with relaying(watched, downstream=tcp_pair(TINY), upstream=tcp_pair(2 * MIB), pipes=pipes) as stage:
            sent = 0
            while sent < size:
                sent += stage.origin.send(answer[sent:])
                await turns(1)
            cut(stage.origin)
            assert answer == await read_exactly(stage.client, size)
            assert await stage.ends() is Reason.UPSTREAM_RESET

    @pytest.mark.parametrize("pipes", [0, 2])
    async def test_a_request_that_nobody_takes_does_not_hide_the_answer(self, watched: Watched, pipes: int) -> None:
        """The origin answers and resets, without having read what the client sends on."""
        async with relaying(watched, upstream=tcp_pair(TINY), pipes=pipes) as stage:
            fill(stage.client)
            await turns()
            stage.origin.send(b"413 too large")
            await until(lambda: unread(stage.upstream) > 0 or stage.relay.sent > 0, "the answer")
            cut(stage.origin)
            assert await read_exactly(stage.client, 13) == b"413 too large"
            assert await stage.ends() is Reason.UPSTREAM_RESET

    @pytest.mark.parametrize("breaker", ["client", "origin"])
    async def test_a_reset_after_an_end_is_a_reset(self, watched: Watched, breaker: str) -> None:
        """One direction has ended in order, and the other is broken off: noticed at once, and not when somebody
        speaks, which may be never.
        """
        async with relaying(watched) as stage:
            broken, other = (stage.client, stage.origin) if breaker == "client" else (stage.origin, stage.client)
            broken.shutdown(socket.SHUT_WR)
            assert await read_to_end(other) == b""
            cut(broken)
            expected = Reason.CLIENT_RESET if breaker == "client" else Reason.UPSTREAM_RESET
            assert await stage.ends() is expected

    async def test_a_client_that_leaves_during_the_answer_has_reset(self, watched: Watched) -> None:
        """It closed without reading to the end, which its kernel tells by a reset."""
        async with relaying(watched) as stage:
            stage.client.send(b"GET /")
            assert await read_exactly(stage.origin, 5) == b"GET /"
            stage.client.close()
            with contextlib.suppress(OSError):
                while not stage.running.done():
                    fill(stage.origin)
                    await asyncio.sleep(0)
            assert await stage.ends() is Reason.CLIENT_RESET


# ---- Ends ----


def segments_received(sock: socket.socket) -> int:
    """tcpi_segs_in of struct tcp_info, linux/tcp.h."""
    (count,) = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 140)
    return int(count)


class TestEnds:
    @pytest.mark.parametrize("kind", PAIRS)
    async def test_the_end_of_one_direction_leaves_the_other_open(self, watched: Watched, kind: str) -> None:
        """First the client's, then the origin's; and in the other order."""
        for first in ("client", "origin"):
            async with relaying(watched, downstream=PAIRS[kind]()) as stage:
                one, other = (stage.client, stage.origin) if first == "client" else (stage.origin, stage.client)
                one.send(b"the last word")
                one.shutdown(socket.SHUT_WR)
                assert await read_to_end(other) == b"the last word"
                await transfer(other, one, NOISE[: 50 * KIB])
                assert not stage.running.done()
                other.shutdown(socket.SHUT_WR)
                assert await stage.ends() is Reason.DONE

    async def test_the_last_bytes_and_the_end_go_in_one_packet(self, watched: Watched) -> None:
        """A short answer and its end are there together: one packet, instead of two that each wake somebody up."""
        async with relaying(watched) as stage:
            await turns()
            before = segments_received(stage.client)
            stage.origin.send(b"the answer")
            stage.origin.shutdown(socket.SHUT_WR)
            assert await read_to_end(stage.client) == b"the answer"
            assert segments_received(stage.client) - before == 1

    @pytest.mark.parametrize("cut_at", [0, 5, 11])
    async def test_bytes_behind_an_urgent_mark_come_before_the_end(self, watched: Watched, cut_at: int) -> None:
        """A read stops short at the mark, and shows no end. The marked byte itself is out of band (RFC 6093)."""
        for side in ("client", "origin"):
            async with relaying(watched) as stage:
                one, other = (stage.client, stage.origin) if side == "client" else (stage.origin, stage.client)
                one.send(b"hello world"[:cut_at])
                one.send(b"!", socket.MSG_OOB)
                one.send(b"hello world"[cut_at:])
                one.shutdown(socket.SHUT_WR)
                assert await read_to_end(other) == b"hello world"

    async def test_both_may_end_at_once_and_without_a_byte(self, watched: Watched) -> None:
        async with relaying(watched) as stage:
            stage.client.close()
            stage.origin.close()
            assert (Reason.DONE, (0, 0)) == (await stage.ends(), stage.totals())

    @pytest.mark.parametrize("last", ["client", "origin"])
    @pytest.mark.parametrize("is_reset", [False, True], ids=["an end", "a reset"])
    async def test_a_client_that_waits_for_it_has_it_at_once(
        self, watched: Watched, last: str, is_reset: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What ends on the origin's side is told the client by a close, and that is urgent; the other way it is not."""
        told, go_on = list[bool](), Strand.go_on

        def note(strand: Strand, *, is_urgent: bool) -> None:
            told.append(is_urgent)
            go_on(strand, is_urgent=is_urgent)

        monkeypatch.setattr(Strand, "go_on", note)
        async with relaying(watched) as stage:
            first, then = (stage.origin, stage.client) if last == "client" else (stage.client, stage.origin)
            if is_reset:
                cut(then)
            else:
                first.shutdown(socket.SHUT_WR)
                await read_to_end(then)
                then.shutdown(socket.SHUT_WR)
            await stage.ends()
        assert told == [last == "origin"]

    async def test_an_end_waits_for_the_bytes_before_it(self, watched: Watched) -> None:
        """The client has ended long since; the origin reads only then, and after the last byte sees the end."""
        async with relaying(watched, downstream=tcp_pair(MIB), upstream=tcp_pair(TINY)) as stage:
            client = Speaker(stage.client, NOISE[: 300 * KIB])

            def said() -> bool:
                client.write(MIB)
                client.end()
                return client.has_ended

            await until(said, "the last word")
            await turns(50)
            assert stage.held > 0
            assert NOISE[: 300 * KIB] == await read_to_end(stage.origin)


# ---- The beginning ----


@pytest.mark.parametrize("known", [False, True], ids=["never watched", "watched before"])
class TestBeginning:
    """What happened before the relay ran. Its sockets may have been watched by others, whom the edges went to."""

    async def test_the_head_comes_first(self, watched: Watched, known: bool) -> None:
        def before(down: Pair, _up: Pair) -> None:
            down[1].send(b" and more")

        async with relaying(watched, head=b"hello", before=before, known=known) as stage:
            assert await read_exactly(stage.origin, 14) == b"hello and more"
            assert (14, 0) == stage.totals()

    async def test_a_client_that_has_ended_already_is_heard(self, watched: Watched, known: bool) -> None:
        def before(down: Pair, _up: Pair) -> None:
            down[1].shutdown(socket.SHUT_WR)

        async with relaying(watched, head=b"hello", before=before, known=known) as stage:
            assert await read_to_end(stage.origin) == b"hello"

    async def test_a_client_that_is_gone_already_is_noticed(self, watched: Watched, known: bool) -> None:
        def before(down: Pair, _up: Pair) -> None:
            cut(down[1])

        async with relaying(watched, head=b"hello", before=before, known=known) as stage:
            assert await stage.ends() is Reason.CLIENT_RESET

    async def test_an_origin_that_speaks_first_is_heard(self, watched: Watched, known: bool) -> None:
        def before(_down: Pair, up: Pair) -> None:
            up[1].send(b"220 ready")

        async with relaying(watched, before=before, known=known) as stage:
            assert await read_exactly(stage.client, 9) == b"220 ready"

    async def test_an_origin_that_speaks_and_ends_first_is_heard(self, watched: Watched, known: bool) -> None:
        def before(_down: Pair, up: Pair) -> None:
            up[1].send(b"220 ready")
            up[1].shutdown(socket.SHUT_WR)

        async with relaying(watched, before=before, known=known) as stage:
            assert await read_to_end(stage.client) == b"220 ready"

    async def test_an_origin_that_is_gone_already_is_noticed(self, watched: Watched, known: bool) -> None:
        def before(_down: Pair, up: Pair) -> None:
            cut(up[1])

        async with relaying(watched, head=b"hello", before=before, known=known) as stage:
            assert await stage.ends() is Reason.UPSTREAM_RESET

    @pytest.mark.parametrize("kind", ["tiny TCP", "tiny Unix"])
    async def test_a_head_that_the_origin_does_not_take_at_once(self, watched: Watched, known: bool, kind: str) -> None:
        """It is larger than the send buffer. What the client sends behind it, then and later, follows it; and what the
        origin says meanwhile is heard.
        """
        head = NOISE[: 400 * KIB]
        async with relaying(watched, upstream=PAIRS[kind](), head=head, known=known) as stage:
            assert stage.held > 0
            stage.client.send(b"behind it")
            stage.origin.send(b"meanwhile")
            assert await read_exactly(stage.client, 9) == b"meanwhile"
            assert head + b"behind it" == await read_exactly(stage.origin, len(head) + 9)
            stage.client.send(b"and later")
            assert await read_exactly(stage.origin, 9) == b"and later"
            stage.client.shutdown(socket.SHUT_WR)
            assert await read_to_end(stage.origin) == b""


# ---- Back-pressure ----


class TestBackPressure:
    @pytest.mark.parametrize("pipes", [0, 2], ids=["copied", "spliced"])
    async def test_a_reader_that_does_not_read_stops_the_writer(self, watched: Watched, pipes: int) -> None:
        """The relay holds one buffer, or one pipe, and reads no more until that is gone. Then it goes on."""
        async with relaying(watched, upstream=tcp_pair(16 * KIB), pipes=pipes) as stage:
            said = bytearray()
            quiet = 0
            while quiet < 50:
                with contextlib.suppress(BlockingIOError):
                    start = len(said) % (len(NOISE) - MIB)
                    said += NOISE[start : start + stage.client.send(NOISE[start : start + MIB])]
                    quiet = 0
                quiet += 1
                await asyncio.sleep(0)
                assert stage.held <= (MIB if pipes else COPIED_AT_ONCE)
            assert 0 < stage.held
            assert stage.relay.received < len(said)
            heard = await read_exactly(stage.origin, len(said))
            assert heard == said
            assert (0, set()) == (stage.held, stage.pipes.lent)

    async def test_it_stops_one_direction_only(self, watched: Watched) -> None:
        async with relaying(watched, upstream=tcp_pair(16 * KIB)) as stage:
            for _ in range(50):
                fill(stage.client)
                await asyncio.sleep(0)
            for number in range(20):
                stage.origin.send(b"%03d" % number)
                assert await read_exactly(stage.client, 3) == b"%03d" % number

    @pytest.mark.parametrize("pipes", [0, 2])
    async def test_an_idle_connection_holds_nothing(self, watched: Watched, pipes: int) -> None:
        """After megabytes both ways: no pipe, no byte, and no descriptor but its two sockets'."""
        async with relaying(watched, pipes=pipes) as stage:
            for one, other in ((stage.client, stage.origin), (stage.origin, stage.client)) * 2:
                await transfer(one, other, NOISE[: 2 * MIB])
            assert (set(), (4 * MIB, 4 * MIB)) == (stage.pipes.lent, stage.totals())
            assert (stage.pipes.leases > 0, stage.pipes.discarded) == (pipes > 0, 0)


async def transfer(one: socket.socket, other: socket.socket, data: bytes) -> None:
    """Say `data` at one end while the other listens."""
    speaker, listener = Speaker(one, data), Speaker(other, b"")

    def heard() -> bool:
        speaker.write(MIB)
        listener.read(MIB)
        return len(listener.heard) == len(data)

    await until(heard, f"{len(data)} bytes")
    assert bytes(listener.heard) == data


async def test_more_flows_than_pipes_flow_all_the_same(watched: Watched) -> None:
    """One pipe for two directions of a connection: whoever has none copies."""
    async with relaying(watched, pipes=1) as stage:
        client, origin = Speaker(stage.client, NOISE), Speaker(stage.origin, NOISE[::-1])

        def moved() -> bool:
            for speaker in (client, origin):
                speaker.write(MIB)
                speaker.read(MIB)
            return len(client.heard) == len(origin.heard) == len(NOISE)

        await until(moved, "four mebibytes each way")
        assert (client.heard == NOISE[::-1], origin.heard == NOISE) == (True, True)


# ---- Fairness ----


class EndlessSocket:
    """A source that always has more, and a sink that always takes it."""

    def __init__(self) -> None:
        self.reads = 0

    def fileno(self) -> int:
        return id(self)

    def recv_into(self, buffer: bytearray) -> int:
        self.reads += 1
        return len(buffer)

    def send(self, data: bytes, _flags: int = 0) -> int:
        return len(data)


class Turns:
    """A clock, a readiness and its timers that do nothing by themselves; `waiting` is what is to run next."""

    def __init__(self) -> None:
        self.clock = self.timers = self
        self.next_tick = 0
        self.waiting: list[Callable[[], object]] = []
        self.watchers: dict[int, Watcher] = {}

    def call_soon(self, call: Callable[[], object]) -> None:
        self.waiting.append(call)

    def watch(self, fd: int, watcher: Watcher) -> bool:
        self.watchers[fd] = watcher
        return True

    def arm(self, _timer: object, _seconds: float) -> None: ...

    def disarm(self, _timer: object) -> None: ...

    def turn(self) -> None:
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()


def relay_of(downstream: object, upstream: object, its: Turns) -> Relay:
    """A relay between sockets that are none."""
    down, up = cast(socket.socket, downstream), cast(socket.socket, upstream)
    return Relay(down, up, cast(Readiness, its), PipePool(0), 600.0, Count(), Count())


class TestFairness:
    async def test_a_flow_without_end_has_one_turn_at_a_time(self) -> None:
        """However often it is told that there is more: a turn moves no more than its budget."""
        its, downstream, upstream = Turns(), EndlessSocket(), EndlessSocket()
        running = InStrand(run(relay_of(downstream, upstream, its), b"", 0))
        await turns()
        per_turn = []
        for _ in range(10):
            before = downstream.reads
            its.watchers[downstream.fileno()].on_events(downstream.fileno(), READABLE)
            its.turn()
            per_turn.append(downstream.reads - before)
        assert len(its.waiting) <= 1
        assert max(per_turn[1:]) <= per_turn[0]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    @pytest.mark.parametrize("pipes", [0, 2])
    async def test_a_stream_without_end_starves_nobody(self, watched: Watched, pipes: int) -> None:
        """Beside it, another connection plays ping-pong."""
        async with relaying(watched, pipes=pipes) as stream, relaying(watched, pipes=pipes) as other:
            with streaming(stream.client, stream.origin):
                await until(lambda: stream.relay.received > 4 * MIB, "a stream")
                for number in range(200):
                    other.client.send(b"ping%03d" % number)
                    assert await read_exactly(other.origin, 7) == b"ping%03d" % number
                    other.origin.send(b"pong%03d" % number)
                    assert await read_exactly(other.client, 7) == b"pong%03d" % number
                seen = stream.relay.received
                await until(lambda: stream.relay.received > seen, "more of the stream")


@contextlib.contextmanager
def streaming(source: socket.socket, sink: socket.socket) -> Iterator[None]:
    """Threads that write to one socket and read from the other, as fast as they can, until the context is left."""
    stopped = threading.Event()

    def write() -> None:
        with contextlib.suppress(OSError):
            while not stopped.is_set():
                source.send(NOISE[:MIB])

    def read() -> None:
        with contextlib.suppress(OSError):
            while not stopped.is_set() and sink.recv(MIB):
                pass

    source.settimeout(PATIENCE)
    sink.settimeout(PATIENCE)
    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


# ---- Time, and cancellation ----


class TestIdling:
    async def test_a_connection_without_bytes_ends(self, watched: Watched) -> None:
        """After `idle`, counted from the last byte either way."""
        async with relaying(watched, idle=5.0) as stage:
            for one, other in ((stage.client, stage.origin), (stage.origin, stage.client)) * 2:
                stage.clock.advance(4.0)
                await turns()
                assert not stage.running.done()
                one.send(b"x")
                assert await read_exactly(other, 1) == b"x"
            stage.clock.advance(4.9)
            await turns()
            assert not stage.running.done()
            stage.clock.advance(0.1 + 2 * TICK)
            assert await stage.ends() is Reason.IDLE_TIMEOUT

    async def test_a_reader_that_stopped_is_idle(self, watched: Watched) -> None:
        """Bytes wait for it, and none has moved for so long."""
        async with relaying(watched, idle=5.0, upstream=tcp_pair(TINY)) as stage:
            for _ in range(50):
                fill(stage.client)
                await asyncio.sleep(0)
            assert stage.held > 0
            stage.clock.advance(5.0 + 2 * TICK)
            assert await stage.ends() is Reason.IDLE_TIMEOUT

    async def test_a_half_closed_connection_ends_too(self, watched: Watched) -> None:
        async with relaying(watched, idle=5.0) as stage:
            stage.client.shutdown(socket.SHUT_WR)
            assert await read_to_end(stage.origin) == b""
            stage.clock.advance(5.0 + 2 * TICK)
            assert await stage.ends() is Reason.IDLE_TIMEOUT


class TestStopping:
    @pytest.mark.parametrize("pipes", [0, 2])
    async def test_it_ends_at_once_whatever_is_under_way(self, watched: Watched, pipes: int) -> None:
        """For the reason given; what waited for a reader is dropped, and its pipe with it."""
        async with relaying(watched, pipes=pipes, upstream=tcp_pair(TINY)) as stage:
            for _ in range(50):
                fill(stage.client)
                await asyncio.sleep(0)
            assert stage.held > 0
            stage.relay.stop(Reason.POLICY_CHANGED)
            assert await stage.ends() is Reason.POLICY_CHANGED

    async def test_who_has_ended_stays_as_he_ended(self, watched: Watched) -> None:
        async with relaying(watched) as stage:
            stage.relay.stop(Reason.POLICY_CHANGED)
            stage.relay.stop(Reason.DRAIN)
            cut(stage.client)
            assert await stage.ends() is Reason.POLICY_CHANGED
            stage.relay.stop(Reason.DRAIN)


class TestCancellation:
    @pytest.mark.parametrize("pipes", [0, 2])
    async def test_nothing_of_it_is_left(self, watched: Watched, pipes: int) -> None:
        """Cancelled while bytes are in a pipe: that pipe is closed, and none is missing from the pool afterwards.

        The fixture looks for timers, and `relaying` for pipes that are still lent.
        """
        before = open_descriptors()
        async with relaying(watched, pipes=pipes, upstream=tcp_pair(256 * KIB)) as stage:
            await transfer(stage.client, stage.origin, NOISE[:MIB])
            for _ in range(50):
                fill(stage.client)
                await asyncio.sleep(0)
            assert (len(stage.pipes.lent), stage.held > 0) == (min(pipes, 1), True)
            stage.running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await result_of(stage.running)
            assert (set(), min(pipes, 1)) == (stage.pipes.lent, stage.pipes.discarded)
            leased = [stage.pipes.lease() for _ in range(pipes + 1)]
            assert [pipe is not None for pipe in leased] == [True] * pipes + [False]
            for pipe in leased:
                if pipe is not None:
                    with pytest.raises(BlockingIOError):
                        os.read(pipe.reader, 1)
                    stage.pipes.give_back(pipe)
            # Events of its sockets find nobody.
            fill(stage.origin)
            cut(stage.client)
            await turns()
        assert before == open_descriptors()

    async def test_in_any_turn(self, watched: Watched) -> None:
        """Of a connection in full flow."""
        for after in range(12):
            async with relaying(watched) as stage:
                for _ in range(after):
                    fill(stage.client)
                    fill(stage.origin)
                    stage.client.recv(MIB) if unread(stage.client) else None
                    stage.origin.recv(MIB) if unread(stage.origin) else None
                    await asyncio.sleep(0)
                stage.running.cancel()
                await asyncio.gather(stage.running, return_exceptions=True)
                await turns()
                assert stage.pipes.lent == set()


# ---- Hellos behind the first ----


NAME = ServerName("one.example.org")
HELLO, ANOTHER = build_client_hello(NAME), build_client_hello("two.example.org")
RETRY_REQUEST = bytes.fromhex("16 0303 0058 02 000054 0303") + RETRY + bytes(50)
CHOICE = RETRY_REQUEST.replace(RETRY, bytes(range(32)))
CHANGE_CIPHER_SPEC = bytes.fromhex("140303000101")
EARLY_DATA = (b"\x17\x03\x03\x40\x00" + NOISE[: 16 * KIB]) * 60
NO_TLS = b"\x00\x00"


def watch() -> HelloWatch:
    return HelloWatch(NAME, 64 * KIB)


class TestHellosBehindTheFirst:
    @pytest.mark.parametrize("kind", ["TCP", "tiny TCP", "tiny Unix"])
    async def test_every_interleaving_is_byte_exact(self, watched: Watched, kind: str) -> None:
        """With early data, a second hello for the same name, and whatever else; see the tests without a watch."""
        for seed in range(20):
            dice = random.Random(f"{kind} {seed}")
            second = CHANGE_CIPHER_SPEC + EARLY_DATA[: 60 * KIB // (16 * KIB + 5) * (16 * KIB + 5)] + HELLO
            request = HELLO + second + NO_TLS + some_bytes(dice, LIMITS[kind])
            response = RETRY_REQUEST + CHANGE_CIPHER_SPEC + CHOICE + some_bytes(dice, LIMITS[kind])
            cut_at = dice.choice([len(HELLO), len(HELLO) + 3, len(HELLO + second) - 9])
            async with relaying(
                watched, downstream=PAIRS[kind](), upstream=PAIRS[kind](), head=request[:cut_at], watch=watch()
            ) as stage:
                client, origin = Speaker(stage.client, request, said=cut_at), Speaker(stage.origin, response)
                await act(dice, [client, origin], both_done(stage, client, origin), f"the end of {kind} {seed}")
                assert await stage.ends() is Reason.DONE
                assert (origin.heard == request, client.heard == response) == (True, True)
                assert (len(request), len(response)) == stage.totals()

    @pytest.mark.parametrize("answer", [b"", RETRY_REQUEST], ids=["not asked", "asked"])
    async def test_another_name_ends_the_connection_and_does_not_arrive(self, watched: Watched, answer: bytes) -> None:
        async with relaying(watched, head=HELLO, watch=watch()) as stage:
            stage.origin.send(answer)
            assert await read_exactly(stage.client, len(answer)) == answer
            stage.client.send(CHANGE_CIPHER_SPEC)
            assert await read_exactly(stage.origin, len(HELLO) + 6) == HELLO + CHANGE_CIPHER_SPEC
            stage.client.send(ANOTHER)
            assert await stage.ends() is Reason.SNI_CHANGED
            assert unread(stage.origin) == 0
            assert (len(HELLO + CHANGE_CIPHER_SPEC + ANOTHER), len(answer)) == (stage.relay.received, stage.relay.sent)
            assert "two.example.org" in stage.relay.detail

    async def test_another_name_with_the_first_hello_ends_it_before_a_byte_has_gone(self, watched: Watched) -> None:
        async with relaying(watched, head=HELLO + ANOTHER, watch=watch()) as stage:
            assert await stage.ends() is Reason.SNI_CHANGED
            assert (0, len(HELLO + ANOTHER)) == (stage.counted_received.total, stage.relay.received)
            assert unread(stage.origin) == 0

    async def test_another_name_is_met_behind_bytes_that_wait(self, watched: Watched) -> None:
        """The origin does not read, so that it is met when it does, and in the turn that it does."""
        async with relaying(watched, upstream=tcp_pair(TINY), head=HELLO, watch=watch()) as stage:
            client = Speaker(stage.client, EARLY_DATA + ANOTHER)
            client.write(MIB)
            await until(lambda: stage.held > 0, "back-pressure")
            arrived = bytearray()

            def over() -> bool:
                client.write(MIB)
                arrived.extend(read_some(stage.origin) or b"")
                return stage.running.done()

            await until(over, "the end")
            assert await stage.ends() is Reason.SNI_CHANGED
            arrived += read_some(stage.origin) or b""
            assert (HELLO + EARLY_DATA).startswith(bytes(arrived))

    async def test_nothing_is_spliced_until_the_server_has_chosen(self, watched: Watched) -> None:
        """And then as ever."""
        async with relaying(watched, head=HELLO, watch=watch()) as stage:
            assert await read_exactly(stage.origin, len(HELLO)) == HELLO
            await transfer(stage.client, stage.origin, EARLY_DATA)
            assert stage.pipes.leases == 0
            await transfer(stage.origin, stage.client, CHOICE)
            await transfer(stage.client, stage.origin, ANOTHER + NOISE)
            assert stage.pipes.leases > 0

    async def test_a_hello_that_ends_in_the_middle_is_dropped_and_the_end_is_passed_on(self, watched: Watched) -> None:
        async with relaying(watched, head=HELLO, watch=watch()) as stage:
            stage.client.send(HELLO[:-1])
            stage.client.shutdown(socket.SHUT_WR)
            assert await read_to_end(stage.origin) == HELLO
            await transfer(stage.origin, stage.client, RETRY_REQUEST + NOISE)
            stage.origin.shutdown(socket.SHUT_WR)
            assert await stage.ends() is Reason.DONE
            assert stage.relay.received == 2 * len(HELLO) - 1

    @pytest.mark.parametrize("breaker", ["client", "origin"])
    async def test_a_reset_while_a_hello_is_held_is_a_reset(self, watched: Watched, breaker: str) -> None:
        async with relaying(watched, head=HELLO, watch=watch()) as stage:
            stage.client.send(HELLO[:-1])
            await until(lambda: stage.held == len(HELLO) - 1, "a hello that is held")
            assert await read_exactly(stage.origin, len(HELLO)) == HELLO
            cut(stage.client if breaker == "client" else stage.origin)
            expected = Reason.CLIENT_RESET if breaker == "client" else Reason.UPSTREAM_RESET
            assert await stage.ends() is expected
            if breaker == "client":
                assert unread(stage.origin) == 0

    async def test_the_idle_time_bounds_how_long_one_is_held(self, watched: Watched) -> None:
        async with relaying(watched, head=HELLO, idle=5.0, watch=watch()) as stage:
            stage.client.send(HELLO[:-1])
            await until(lambda: stage.held == len(HELLO) - 1, "a hello that is held")
            stage.clock.advance(5.0 + 2 * TICK)
            assert await stage.ends() is Reason.IDLE_TIMEOUT

    async def test_a_server_that_chooses_costs_no_read_and_no_send_more(self) -> None:
        """The same calls of the sockets with a watch and without one, and the watch is let go."""
        calls = []
        for watching_it in (None, watch()):
            its = Turns()
            told: list[str] = []
            downstream, upstream = ScriptedSocket("down", told), ScriptedSocket("up", told)
            running = InStrand(run(relay_of(downstream, upstream, its), HELLO, 0, watching_it))
            for sock, data in (
                (upstream, CHOICE),
                (downstream, ANOTHER),
                (upstream, NOISE[: 64 * KIB]),
                (downstream, ANOTHER),
            ):
                sock.chunks.append(data)
                its.watchers[sock.fileno()].on_events(sock.fileno(), READABLE)
                its.turn()
            calls.append(told)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert calls[0] == calls[1]
        assert [f"up sends {len(HELLO)}", "up reads", f"down sends {len(CHOICE)}"] == calls[0][:3]


class ScriptedSocket:
    """A source that has what a test says, and a sink that takes everything; it writes down what is asked of it."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told
        self.chunks: list[bytes] = []

    def fileno(self) -> int:
        return id(self)

    def recv_into(self, buffer: bytearray) -> int:
        self.told.append(f"{self.name} reads")
        if not self.chunks:
            raise BlockingIOError
        chunk = self.chunks.pop(0)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def send(self, data: bytes, _flags: int = 0) -> int:
        self.told.append(f"{self.name} sends {len(data)}")
        return len(data)
