"""Intake, on real sockets: the first bytes in every piece that TCP may cut them into, the slots, and the time."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

from sniproxy.config.model import Listener
from sniproxy.config.units import TcpAddress, parse_trusted_peer
from sniproxy.identity.evidence import TlvTypes
from sniproxy.identity.spiffe import UNKNOWN, Identity, parse_principal
from sniproxy.intake import Caller, Door, HeaderMode, Intake
from sniproxy.net.listener import Peer, Trust
from sniproxy.net.readiness import Readiness
from sniproxy.net.timers import TICK
from sniproxy.observe.scoreboard import UndecidedCounts
from sniproxy.outcome import ConnectionEndedError, Reason
from sniproxy.wire.client_hello import ClientHello
from sniproxy.wire.need_more import NEED_MORE
from sniproxy.wire.proxy_protocol import NOT_SENT, SocketAddress, Tlv, encode_proxy_header
from tests.net.clock import HandClock
from tests.net.loopback import InStrand, Pair, cut, result_of, tcp_pair, turns, unix_pair, watching
from tests.support.clients import hello_for, proxy_header, sleep_principal
from tests.wire.build import as_records, build_client_hello, hello_message

NAME = "en.wikipedia.org"
HELLO = hello_for(NAME)
SLEEP = sleep_principal("sleep-us")
HEADER = proxy_header(SLEEP)  # of a client at 10.1.2.3

GATEWAY = Peer("192.0.2.7")
LIMIT = 64 * 1024
SECONDS = 10.0


class Slots(UndecidedCounts):
    """Undecided slots that can be looked at."""

    def __init__(self, limit: int = 1000) -> None:
        self.held: Counter[str] = Counter()
        self.entered: list[str] = []
        self.limit = limit

    def enter(self, source: str) -> bool:
        if self.held[source] >= self.limit:
            return False
        self.held[source] += 1
        self.entered.append(source)
        return True

    def leave(self, source: str) -> None:
        self.held[source] -= 1
        assert self.held[source] >= 0


def door(header: HeaderMode = HeaderMode.NONE, static: Identity = UNKNOWN) -> Door:
    trusted = (parse_trusted_peer("192.0.2.0/24"),)
    listener = Listener(address=TcpAddress("127.0.0.1", 0), proxy_protocol="required", trusted_peers=trusted)
    return Door(header, Trust(listener), TlvTypes(), static)


PLAIN = door()
BEHIND_ENVOY = door(HeaderMode.REQUIRED)


@dataclass
class Desk:
    """One intake, and the far end of its socket."""

    intake: Intake
    client: socket.socket
    near: socket.socket
    slots: Slots
    readiness: Readiness
    clock: HandClock

    def taking(self, door: Door, limit: int = LIMIT) -> InStrand[tuple[Caller, ClientHello]]:
        """The whole intake of one connection, as its story asks for it."""

        async def take() -> tuple[Caller, ClientHello]:
            try:
                self.intake.begin()
                return await self.caller(door), await self.client_hello(limit)
            finally:
                self.intake.release()

        return InStrand(take())

    async def caller(self, door: Door) -> Caller:
        while (caller := self.intake.caller(door)) is NEED_MORE:
            await self.intake.more()
        return caller

    async def client_hello(self, limit: int) -> ClientHello:
        while (hello := self.intake.client_hello(limit)) is NEED_MORE:
            await self.intake.more()
        return hello

    async def failure(self, door: Door, *parts: bytes, limit: int = LIMIT) -> ConnectionEndedError:
        """How an intake ends that gets `parts`, one after the other, and then an end."""
        taking = self.taking(door, limit)
        for part in parts:
            await turns(5)
            with contextlib.suppress(OSError):
                self.client.sendall(part)
        await turns(5)
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionEndedError) as caught:
            await result_of(taking)
        assert +self.slots.held == Counter()
        return caught.value


@contextlib.contextmanager
def desk_on(
    pair: AbstractContextManager[Pair], watched: tuple[Readiness, HandClock], peer: Peer = GATEWAY, limit: int = 1000
) -> Iterator[Desk]:
    readiness, clock = watched
    with pair as (near, client):
        slots = Slots(limit)
        yield Desk(Intake(near, peer, readiness, slots, SECONDS), client, near, slots, readiness, clock)
        readiness.forget(near.fileno())


@pytest.fixture
async def watched() -> AsyncIterator[tuple[Readiness, HandClock]]:
    """At its end no timer may be armed."""
    with watching() as both:
        yield both


@pytest.fixture
async def desk(watched: tuple[Readiness, HandClock]) -> AsyncIterator[Desk]:
    with desk_on(tcp_pair(), watched) as its:
        yield its


Watched = tuple[Readiness, HandClock]

# How the bytes come: what is sent before anybody looks, and what after that, each piece by itself.
Pieces = Callable[[bytes], Sequence[bytes]]
WHOLE: Pieces = lambda data: [data]  # noqa: E731 - one of a table
BYTE_BY_BYTE: Pieces = lambda data: [data[at : at + 1] for at in range(len(data))]  # noqa: E731

DOORS = {"with a PROXY header": (BEHIND_ENVOY, HEADER), "without": (PLAIN, b"")}


@pytest.mark.parametrize("which", DOORS)
class TestEverySplit:
    """The bytes, cut in two at each place; cut into single bytes; and all at once. It makes no difference."""

    async def take(self, watched: Watched, which: str, first: bytes, rest: Sequence[bytes], pair: Pair) -> None:
        the_door, header = DOORS[which]
        with desk_on(contextlib.nullcontext(pair), watched) as desk:
            desk.client.sendall(first)
            taking = desk.taking(the_door)
            for piece in rest:
                await turns(3)
                desk.client.sendall(piece)
            caller, hello = await result_of(taking)
            identity = parse_principal(SLEEP) if header else UNKNOWN
            assert caller == Caller(identity, "10.1.2.3" if header else GATEWAY.ip, NOT_SENT)
            assert hello.server_name() == NAME
            assert (HELLO, len(HELLO)) == (desk.intake.replay, desk.intake.received)
            assert +desk.slots.held == Counter()

    @pytest.mark.parametrize("kind", [tcp_pair, unix_pair])
    async def test_in_two(self, watched: Watched, which: str, kind: Callable[[], AbstractContextManager[Pair]]) -> None:
        data = DOORS[which][1] + HELLO
        for at in range(len(data) + 1):
            with kind() as pair:
                await self.take(watched, which, data[:at], [data[at:]] if data[at:] else [], pair)

    async def test_in_single_bytes(self, watched: Watched, which: str) -> None:
        data = DOORS[which][1] + HELLO
        with tcp_pair() as pair:
            await self.take(watched, which, b"", BYTE_BY_BYTE(data), pair)

    async def test_in_tls_records_of_one_byte(self, watched: Watched, which: str) -> None:
        """RFC 8446 section 5.1 allows it. What is replayed is what came."""
        the_door, header = DOORS[which]
        hello = as_records(hello_message([(0, bytes.fromhex("0007000004612e6363"))]), fragment_size=1)
        with desk_on(tcp_pair(), watched) as desk:
            taking = desk.taking(the_door)
            for piece in (header, hello[:7], hello[7:]):
                await turns(3)
                desk.client.sendall(piece)
            _, heard = await result_of(taking)
            assert (heard.server_name(), desk.intake.replay) == ("a.cc", hello)


@pytest.mark.parametrize("which", DOORS)
async def test_what_comes_behind_the_hello_is_kept(desk: Desk, which: str) -> None:
    """Early data, or what an impatient client sends on: every byte behind the header is replayed."""
    the_door, header = DOORS[which]
    desk.client.sendall(header + HELLO + b"early data")
    await result_of(desk.taking(the_door))
    assert desk.intake.replay == HELLO + b"early data"
    assert desk.intake.received == len(HELLO) + 10


async def test_a_large_hello_takes_several_reads(desk: Desk) -> None:
    """40 KB, in records of 16 KB."""
    hello = build_client_hello(NAME, extra=[(0xABCD, bytes(40_000))])
    taking = desk.taking(PLAIN)
    for at in range(0, len(hello), 7000):
        await turns(3)
        desk.client.sendall(hello[at : at + 7000])
    _, heard = await result_of(taking)
    assert (heard.server_name(), desk.intake.replay == hello) == (NAME, True)


class TestWhoIsCalling:
    async def test_without_a_header_it_is_whom_the_listener_stands_for(self, desk: Desk) -> None:
        """And the source is the peer; no byte is read for it."""
        sleep = parse_principal(SLEEP)
        assert Caller(sleep, GATEWAY.ip, NOT_SENT) == await desk.caller(door(static=sleep))

    async def test_a_header_of_a_stranger_is_not_even_read(self, watched: Watched) -> None:
        with desk_on(tcp_pair(), watched, Peer("198.51.100.9")) as desk:
            desk.client.sendall(HEADER + HELLO)
            ended = await desk.failure(BEHIND_ENVOY)
            assert (Reason.UNTRUSTED_PEER, "198.51.100.9 is not among the listener's trusted_peers") == (
                ended.reason,
                ended.detail,
            )

    async def test_a_header_without_addresses_leaves_the_peers(self, desk: Desk) -> None:
        """A health check of the gateway's own."""
        desk.client.sendall(b"PROXY UNKNOWN\r\n" + HELLO)
        caller, _ = await result_of(desk.taking(BEHIND_ENVOY))
        assert Caller(UNKNOWN, GATEWAY.ip, NOT_SENT) == caller

    async def test_a_mapped_address_is_the_ipv4_address_that_rules_name(self, desk: Desk) -> None:
        source, destination = SocketAddress("::ffff:10.1.2.3", 1), SocketAddress("::ffff:10.0.0.1", 443)
        desk.client.sendall(encode_proxy_header(source, destination, []) + HELLO)
        caller, _ = await result_of(desk.taking(BEHIND_ENVOY))
        assert caller.source_ip == "10.1.2.3"

    async def test_the_outer_name_is_passed_on(self, desk: Desk) -> None:
        desk.client.sendall(proxy_header(extra=[Tlv(0x02, b"outer.test")]) + HELLO)
        caller, _ = await result_of(desk.taking(BEHIND_ENVOY))
        assert caller.outer_name == b"outer.test"


# What comes, in pieces, and then an end; and the reason. All through a door that asks for a header.
WRONG_HEADERS: dict[str, tuple[Sequence[bytes], Reason, str]] = {
    "nothing": ([], Reason.CLIENT_CLOSED, "the client closed before its PROXY header"),
    "half a header": ([HEADER[:20]], Reason.CLIENT_CLOSED, "the client closed after 20 bytes of the PROXY header"),
    "half a header in pieces": (
        BYTE_BY_BYTE(HEADER[:20]),
        Reason.CLIENT_CLOSED,
        "the client closed after 20 bytes of the PROXY header",
    ),
    "no header": ([HELLO], Reason.BAD_PROXY_HEADER, ""),
    "a header without end": ([HEADER[:14] + b"\xff\xff" + bytes(20_000)], Reason.BAD_PROXY_HEADER, ""),
    "two identities": (
        [proxy_header(SLEEP, extra=[Tlv(0xD0, b"spiffe://other")])],
        Reason.BAD_PROXY_HEADER,
        "the PROXY header has more than one TLV of type 0xd0",
    ),
    "a header and nothing": ([HEADER], Reason.CLIENT_CLOSED, "the client closed without sending a byte"),
    "a header and half a hello": (
        [HEADER, HELLO[:20]],
        Reason.CLIENT_CLOSED,
        "the client closed after 20 bytes of its ClientHello",
    ),
}


@pytest.mark.parametrize("case", WRONG_HEADERS)
async def test_what_is_wrong_with_a_header(desk: Desk, case: str) -> None:
    parts, reason, detail = WRONG_HEADERS[case]
    ended = await desk.failure(BEHIND_ENVOY, *parts)
    assert (reason, detail or ended.detail) == (ended.reason, ended.detail)


WRONG_HELLOS: dict[str, tuple[Sequence[bytes], Reason]] = {
    "nothing": ([], Reason.CLIENT_CLOSED),
    "half a hello": ([HELLO[:100]], Reason.CLIENT_CLOSED),
    "plain HTTP": ([b"GET / HTTP/1.1\r\n\r\n"], Reason.NOT_TLS),
    "a header that nobody asked for": ([HEADER, HELLO], Reason.NOT_TLS),
    "a hello that is larger than it may be": ([build_client_hello(NAME, padding=5000)], Reason.HELLO_TOO_LARGE),
    "one that grows beyond": (
        BYTE_BY_BYTE(build_client_hello(NAME, padding=5000, fragment_size=100)[:5000]),
        Reason.HELLO_TOO_LARGE,
    ),
    "two names": (
        [as_records(hello_message([(0, bytes.fromhex("0007000004612e6363"))] * 2))],
        Reason.MALFORMED_HELLO,
    ),
}


@pytest.mark.parametrize("case", WRONG_HELLOS)
async def test_what_is_wrong_with_a_hello(desk: Desk, case: str) -> None:
    """At a door without a header, where a hello may have 4096 bytes."""
    parts, reason = WRONG_HELLOS[case]
    ended = await desk.failure(PLAIN, *parts, limit=4096)
    assert (reason, bool(ended.detail)) == (ended.reason, True)


@pytest.mark.parametrize("which", DOORS)
@pytest.mark.parametrize("said", [0, 1, 30, 120])
async def test_a_reset_is_a_client_that_has_gone(watched: Watched, which: str, said: int) -> None:
    """Before the first byte, in the header, or in the hello; while we wait, or before we looked."""
    the_door, header = DOORS[which]
    for is_early in (True, False):
        with desk_on(tcp_pair(), watched) as desk:
            desk.client.sendall((header + HELLO)[:said])
            taking = None if is_early else desk.taking(the_door)
            await turns(5)
            cut(desk.client)
            with pytest.raises(ConnectionEndedError) as caught:
                await result_of(taking or desk.taking(the_door))
            expected = (Reason.CLIENT_CLOSED, "the client reset the connection: Connection reset by peer")
            assert expected == (caught.value.reason, caught.value.detail)
            assert +desk.slots.held == Counter()


class TestSlots:
    """Who waits to be judged takes one of the slots of its source."""

    async def test_who_need_not_wait_takes_none(self, desk: Desk) -> None:
        desk.client.sendall(HEADER + HELLO)
        await result_of(desk.taking(BEHIND_ENVOY))
        assert desk.slots.entered == []

    async def test_who_waits_takes_one_until_it_is_judged(self, desk: Desk) -> None:
        """One, however many pieces the hello comes in. It is held beyond the hello, until the story gives it back."""
        caller = await desk.caller(PLAIN)
        assert caller.source_ip == GATEWAY.ip
        taking = InStrand(desk.client_hello(LIMIT))
        for piece in (HELLO[:50], HELLO[50:100], HELLO[100:]):
            await turns()
            assert desk.slots.held == Counter({GATEWAY.ip: 1})
            desk.client.sendall(piece)
        await result_of(taking)
        assert desk.slots.held == Counter({GATEWAY.ip: 1})
        desk.intake.release()
        desk.intake.release()
        assert +desk.slots.held == Counter()

    async def test_it_is_the_gateways_until_the_header_names_the_client(self, desk: Desk) -> None:
        """Then it is the client's: a gateway of thousands of clients must not stop at the limit of one."""
        taking = desk.taking(BEHIND_ENVOY)
        await turns()
        assert +desk.slots.held == Counter({GATEWAY.ip: 1})
        desk.client.sendall(HEADER)
        await turns()
        assert +desk.slots.held == Counter({"10.1.2.3": 1})
        desk.client.sendall(HELLO)
        await result_of(taking)
        assert [GATEWAY.ip, "10.1.2.3"] == desk.slots.entered

    async def test_on_a_unix_socket_it_is_the_users(self, watched: Watched) -> None:
        with desk_on(unix_pair(), watched, Peer("", 1337)) as desk:
            taking = desk.taking(PLAIN)
            await turns()
            assert +desk.slots.held == Counter({"uid:1337": 1})
            desk.client.sendall(HELLO)
            await result_of(taking)

    async def test_without_one_there_is_no_waiting(self, watched: Watched) -> None:
        """The limit is for those who wait: a whole hello comes through."""
        with desk_on(tcp_pair(), watched, limit=0) as desk:
            desk.client.sendall(HELLO)
            await result_of(desk.taking(PLAIN))
        with desk_on(tcp_pair(), watched, limit=0) as desk:
            desk.client.sendall(HELLO[:50])
            ended = await desk.failure(PLAIN)
            detail = f"{GATEWAY.ip} has limits.undecided_per_source connections that wait to be judged"
            assert (Reason.CONNECTION_LIMIT, detail) == (ended.reason, ended.detail)

    async def test_a_cancelled_intake_gives_it_back(self, desk: Desk) -> None:
        """Wherever it waits, and leaves no timer: the fixture looks."""
        for sent in (b"", HEADER[:10], HEADER, HEADER + HELLO[:30]):
            with desk_on(tcp_pair(), (desk.readiness, desk.clock)) as its:
                its.client.sendall(sent)
                taking = its.taking(BEHIND_ENVOY)
                await turns()
                assert its.slots.held.total() == 1
                taking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await result_of(taking)
                assert its.slots.held.total() == 0


class TestTime:
    async def timed_out(self, desk: Desk, taking: InStrand[tuple[Caller, ClientHello]]) -> None:
        with pytest.raises(ConnectionEndedError) as caught:
            await result_of(taking)
        expected = (Reason.HELLO_TIMEOUT, "no complete ClientHello within 10s")
        assert expected == (caught.value.reason, caught.value.detail)
        assert +desk.slots.held == Counter()

    @pytest.mark.parametrize("which", DOORS)
    async def test_silence_is_a_timeout(self, desk: Desk, which: str) -> None:
        taking = desk.taking(DOORS[which][0])
        await turns()
        desk.clock.advance(9.8)
        await turns()
        assert not taking.done()
        desk.clock.advance(0.2 + TICK)
        await self.timed_out(desk, taking)

    async def test_a_byte_now_and_then_gains_no_time(self, desk: Desk) -> None:
        """Slow loris: the time counts from the first wait, not from the last byte."""
        taking = desk.taking(PLAIN)
        for at in range(10):
            await turns()
            desk.client.sendall(HELLO[at : at + 1])
            desk.clock.advance(0.99)
        await turns()
        assert not taking.done()
        desk.clock.advance(0.1 + TICK)
        await self.timed_out(desk, taking)

    async def test_a_header_buys_its_sender_no_more_time(self, desk: Desk) -> None:
        """The time of the hello is that of header and hello together."""
        taking = desk.taking(BEHIND_ENVOY)
        await turns()
        desk.clock.advance(9.0)
        desk.client.sendall(HEADER)
        desk.client.sendall(HELLO[:10])
        await turns()
        assert not taking.done()
        desk.clock.advance(1.0 + TICK)
        await self.timed_out(desk, taking)
