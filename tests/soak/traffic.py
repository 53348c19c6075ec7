"""Clients of every kind, and what stands behind the proxy for them: origins that answer, fall silent, or break off.

Each connection comes from an address of its own in 127.0.0.0/8, which the access log repeats: so it is known of every
one of them, even of those that never say a word, whether it has its line.
"""

import asyncio
import contextlib
import random
import socket
import struct
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import dns.rcode

from sniproxy.outcome import Event, Reason
from tests.support.clients import hello_for, proxy_header, sleep_principal
from tests.support.dns_server import Asked, ScriptedServer, scripted_server

KIB, MIB = 1 << 10, 1 << 20
RESET = struct.pack("ii", 1, 0)
DOMAIN = "soak.example"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

BLOCK = random.Random(7).randbytes(MIB)


def address_of(number: int) -> str:
    """The client's own address: 127.16.0.0 and up, eight million of them."""
    return str(socket.inet_ntoa((0x7F100000 + number).to_bytes(4, "big")))


def number_of(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big") - 0x7F100000


# ---- Origins ----


async def _hello(reader: asyncio.StreamReader) -> None:
    header = await reader.readexactly(5)
    await reader.readexactly(int.from_bytes(header[3:5], "big"))


async def _page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A short answer: as many bytes as the client asks for."""
    await _hello(reader)
    size = int.from_bytes(await reader.readexactly(4), "big")
    writer.write(BLOCK[:size])
    await writer.drain()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _hello(reader)
    writer.write(b"ready")
    while data := await reader.read(64 * KIB):
        writer.write(data)
        await writer.drain()


async def _break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _hello(reader)
    writer.write(BLOCK[: random.randrange(100 * KIB)])
    reset_on_close(writer)


ORIGINS = {"page": _page, "echo": _echo, "break": _break_off}


def reset_on_close(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


@dataclass
class World:
    """All that stands behind the proxy."""

    ports: dict[str, int]
    dead_port: int
    names: ScriptedServer
    is_dns_down: bool = False

    @property
    def hosts(self) -> dict[str, list[str]]:
        """`upstream.hosts`, for what is not found by DNS."""
        names = dict.fromkeys(("short", "limited", "mutated"), self.ports["page"])
        names |= dict.fromkeys(("echo", "idle", "flip"), self.ports["echo"])
        names |= {"break": self.ports["break"], "dead": self.dead_port}
        return {f"{name}.{DOMAIN}": [f"127.0.0.1:{port}"] for name, port in names.items()}


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    running: set[asyncio.Task[None]] = set()

    def handler(
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await serve(reader, writer)
            finally:
                await close(writer)
                running.discard(task)

        return handle

    async def script(asked: Asked) -> list[bytes]:
        names.asked.clear()  # or they would be the leak
        if here.is_dns_down:
            return []
        if asked.name.startswith("nowhere."):
            return [asked.reply(rcode=dns.rcode.NXDOMAIN)]
        return [asked.reply(f"{asked.name}. 2 A 127.0.0.1")] if asked.rdtype == "A" else [asked.reply()]

    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # and never listens
        async with scripted_server(script) as names, contextlib.AsyncExitStack() as stack:
            servers = {
                name: await stack.enter_async_context(
                    await asyncio.start_server(handler(serve), "127.0.0.1", 0, backlog=1024)
                )
                for name, serve in ORIGINS.items()
            }
            ports = {name: server.sockets[0].getsockname()[1] for name, server in servers.items()}
            here = World(ports, dead.getsockname()[1], names)
            yield here
            for task in list(running):
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


# ---- Clients ----


class Mishap(NamedTuple):
    """A connection that went otherwise than its client wanted."""

    number: int
    kind: str
    error: str


@dataclass
class Traffic:
    """Every connection that was started, by number, and what became of it for its client."""

    seed: str
    doors: Sequence[tuple[str, int]]  # without a PROXY header, and with one
    manners: Mapping[str, "Kind"]
    kinds: list[str] = field(default_factory=list)
    began: "array[float]" = field(default_factory=lambda: array("d"))
    ended: "array[float]" = field(default_factory=lambda: array("d"))
    mishaps: list[Mishap] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False
    connecting: int = 0
    started: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.gate.set()

    async def run(self) -> None:
        """Let every kind of client come and go until it is over."""
        async with asyncio.TaskGroup() as tasks:
            for kind, manner in self.manners.items():
                for _ in range(manner.at_once):
                    tasks.create_task(self._come_and_go(kind, manner))

    async def flood(self, kinds: Sequence[str], at_once: int, seconds: float) -> None:
        """More clients of some kinds, without a rest, for a while: what remembers so many things has seen as many."""
        until = time.monotonic() + seconds

        async def some(kind: str) -> None:
            while time.monotonic() < until and not self.is_over:
                await self.gate.wait()
                await self._one(kind, self.manners[kind])

        async with asyncio.TaskGroup() as tasks:
            for kind in kinds:
                for _ in range(at_once):
                    tasks.create_task(some(kind))

    async def _come_and_go(self, kind: str, manner: "Kind") -> None:
        await asyncio.sleep(self.dice.uniform(0, manner.rest))
        while not self.is_over:
            await self.gate.wait()
            await self._one(kind, manner)
            await asyncio.sleep(self.dice.uniform(0, manner.rest))

    async def _one(self, kind: str, manner: "Kind") -> None:
        number = len(self.kinds)
        self.kinds.append(kind)
        self.began.append(time.monotonic())
        self.ended.append(float("inf"))
        self.connecting += 1
        try:
            reader, writer = await asyncio.open_connection(*self.doors[manner.door], local_addr=(address_of(number), 0))
        finally:
            self.connecting -= 1
        self.started += 1
        try:
            async with asyncio.timeout(60):
                await manner.live(Visit(self, number, reader, writer))
            self.served[kind] += 1
        except (OSError, EOFError, AssertionError, TimeoutError) as error:
            self.mishaps.append(Mishap(number, kind, f"{type(error).__name__} {error}"))
        finally:
            await close(writer)
            self.ended[number] = time.monotonic()


@dataclass
class Visit:
    """One connection of a client."""

    traffic: Traffic
    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def dice(self) -> random.Random:
        return self.traffic.dice

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    def hello(self, name: str) -> None:
        self.say(hello_for(f"{name}.{DOMAIN}"))

    async def hears(self, expected: bytes) -> None:
        assert await self.reader.readexactly(len(expected)) == expected, "other bytes than were sent"

    async def hears_end(self) -> None:
        assert await self.reader.read(1) == b"", "more than was sent"

    async def is_refused(self) -> None:
        """By an alert, and an end."""
        answer = await self.reader.read(64)
        assert answer[:1] == b"\x15", answer
        await self.hears_end()


async def _fetches(visit: Visit, name: str) -> None:
    size = visit.dice.randrange(50 * KIB)
    visit.hello(name)
    visit.say(size.to_bytes(4, "big"))
    await visit.hears(BLOCK[:size])
    await visit.hears_end()


async def _short(visit: Visit) -> None:
    await _fetches(visit, "short")


async def _identified(visit: Visit) -> None:
    principal = sleep_principal(f"sleep-{visit.number % 3000}")
    visit.say(proxy_header(principal, source=address_of(visit.number)))
    await _fetches(visit, "short")


async def _by_dns(visit: Visit) -> None:
    await _fetches(visit, f"n{visit.number % 40}.dns")


async def _plays_ping_pong(visit: Visit, name: str, rounds: int, pause: float) -> None:
    visit.hello(name)
    await visit.hears(b"ready")
    for count in range(rounds):
        ping = b"%06d" % count * visit.dice.randrange(1, 100)
        visit.say(ping)
        await visit.hears(ping)
        if visit.traffic.is_over:
            break
        await asyncio.sleep(pause)
    visit.writer.write_eof()
    await visit.hears_end()


async def _long(visit: Visit) -> None:
    await _plays_ping_pong(visit, "echo", visit.dice.randrange(5, 50), 0.4)


async def _flip(visit: Visit) -> None:
    """Allowed by one of the policies that take turns, and refused by the other."""
    visit.hello("flip")
    answer = await visit.reader.read(5)
    if answer[:1] == b"\x15" or not answer:
        return
    with contextlib.suppress(OSError, EOFError):  # how a connection ends that is allowed no more
        for _ in range(visit.dice.randrange(5, 50)):
            visit.say(b"ping")
            await visit.hears(b"ping")
            if visit.traffic.is_over:
                return
            await asyncio.sleep(0.4)


async def _stream(visit: Visit) -> None:
    """Megabytes both ways at once."""
    visit.hello("echo")
    await visit.hears(b"ready")
    blocks = visit.dice.randrange(1, 6)

    async def send() -> None:
        for _ in range(blocks):
            visit.say(BLOCK)
            await visit.writer.drain()
        visit.writer.write_eof()

    sending = asyncio.ensure_future(send())
    try:
        for _ in range(blocks):
            await visit.hears(BLOCK)
        await visit.hears_end()
        await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _idle(visit: Visit) -> None:
    visit.hello("idle")
    await visit.hears(b"ready")
    await visit.hears_end()


async def _refused(visit: Visit) -> None:
    visit.say(hello_for(f"n{visit.number}.elsewhere.example"))
    await visit.is_refused()


async def _forbidden(visit: Visit) -> None:
    visit.hello("forbidden")
    await visit.is_refused()


async def _limited(visit: Visit) -> None:
    """More than its rule allows a second: served or refused."""
    visit.hello("limited")
    visit.say((100).to_bytes(4, "big"))
    assert len(await visit.reader.read(200)) in (7, 100)


async def _dead(visit: Visit) -> None:
    visit.hello("dead")
    await visit.is_refused()


async def _nowhere(visit: Visit) -> None:
    visit.hello("nowhere.dns")
    await visit.is_refused()


async def _broken_answer(visit: Visit) -> None:
    visit.hello("break")
    try:
        while await visit.reader.read(MIB):
            pass
    except ConnectionResetError:
        return
    raise AssertionError("an end instead of a reset")


async def _breaks_off(visit: Visit) -> None:
    visit.hello("echo")
    await visit.hears(b"ready")
    visit.say(BLOCK[: visit.dice.randrange(200 * KIB)])
    reset_on_close(visit.writer)


async def _hostile(visit: Visit) -> None:  # noqa: C901 - a list of ways to be a nuisance
    """Bytes that are no hello, or not yet, or not one that can be used; what comes back is of no interest."""
    dice = visit.dice
    hello = hello_for(f"mutated.{DOMAIN}")
    with contextlib.suppress(OSError):
        match dice.randrange(9):
            case 0:
                visit.say(b"GET / HTTP/1.1\r\n\r\n")
            case 1:
                visit.say(dice.randbytes(dice.randrange(1, 2000)))
            case 2:
                at = dice.randrange(5, len(hello))
                visit.say(hello[:at] + dice.randbytes(3) + hello[at + 3 :])
                visit.writer.write_eof()
            case 3:
                visit.say(hello[: dice.randrange(len(hello))])  # and waits
            case 4:
                for at in range(0, len(hello) - 20, 7):
                    visit.say(hello[at : at + 7])
                    await asyncio.sleep(0.01)
                visit.writer.write_eof()
            case 5:
                visit.say(hello_for("127.0.0.1"))
            case 6:
                visit.say(b"\x16\x03\x01\x40\x00\x01\x00\xff\xff" + bytes(70_000))
            case 7:
                visit.say(hello[:40])
                reset_on_close(visit.writer)
                return
            case _:
                return  # not a word
        while await visit.reader.read(64 * KIB):
            pass


async def _forged(visit: Visit) -> None:
    """No PROXY header where one is required, or half of one, or one that is wrong."""
    header = proxy_header(sleep_principal("sleep"))
    at = visit.dice.randrange(1, len(header))
    with contextlib.suppress(OSError):
        visit.say(visit.dice.choice([hello_for(f"short.{DOMAIN}"), header[:at], b"\0" + header]))
        visit.writer.write_eof()
        while await visit.reader.read(64 * KIB):
            pass


class Kind(NamedTuple):
    """A kind of client: how it lives, how many of it there are at once and how long they rest, and its reasons."""

    live: Callable[[Visit], Awaitable[None]]
    at_once: int
    rest: float  # seconds, at most
    reasons: frozenset[Reason]
    door: int = 0


def _kind(live: Callable[[Visit], Awaitable[None]], at_once: int, rest: float, *reasons: Reason, door: int = 0) -> Kind:
    return Kind(live, at_once, rest, frozenset(reasons), door)


NO_DNS = (Reason.DNS_TIMEOUT, Reason.DNS_FAILED)
ANYTHING = tuple(reason for reason in Reason if reason.event is not Event.CLOSE and reason is not Reason.INTERNAL)

KINDS = {
    "short": _kind(_short, 8, 0.2, Reason.DONE),
    "identified": _kind(_identified, 4, 0.2, Reason.DONE, door=1),
    "by DNS": _kind(_by_dns, 4, 0.2, Reason.DONE, *NO_DNS),
    "long": _kind(_long, 30, 1.0, Reason.DONE),
    "flip": _kind(_flip, 6, 1.0, Reason.DONE, Reason.DEFAULT, Reason.POLICY_CHANGED, Reason.CLIENT_RESET),
    "stream": _kind(_stream, 3, 2.0, Reason.DONE),
    "idle": _kind(_idle, 20, 0.5, Reason.IDLE_TIMEOUT),
    "refused": _kind(_refused, 3, 0.2, Reason.DEFAULT),
    "forbidden": _kind(_forbidden, 1, 0.2, Reason.RULE),
    "limited": _kind(_limited, 2, 0.2, Reason.DONE, Reason.RATE_LIMITED),
    "dead": _kind(_dead, 1, 0.3, Reason.CONNECT_REFUSED),
    "nowhere": _kind(_nowhere, 1, 0.3, Reason.DNS_NXDOMAIN, *NO_DNS),
    "broken answer": _kind(_broken_answer, 2, 0.3, Reason.UPSTREAM_RESET),
    "breaks off": _kind(_breaks_off, 2, 0.3, Reason.CLIENT_RESET),
    "hostile": _kind(_hostile, 10, 0.2, Reason.DONE, Reason.CLIENT_RESET, *ANYTHING),
    "forged": _kind(_forged, 2, 0.3, *ANYTHING, door=1),
}
