"""The story of a connection: every way in which it can end, and what is left of it wherever it is cancelled.

The sockets are real, and so are the rules, the guard and the metrics; the resolver does what a test says, the log is
a list, and the clock is moved by hand.
"""

import asyncio
import contextlib
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import NamedTuple, cast

import pytest

from sniproxy.config.model import Config, Limits, Listener, Policy, Upstream
from sniproxy.config.units import TcpAddress, parse_trusted_peer
from sniproxy.connection import Proxy, Snapshot
from sniproxy.identity.evidence import TlvTypes
from sniproxy.identity.spiffe import UNKNOWN, parse_principal
from sniproxy.intake import Door, HeaderMode
from sniproxy.ledger import Ledger
from sniproxy.limits import LimitTable
from sniproxy.live import LiveConnections
from sniproxy.names import ServerName
from sniproxy.net.dns_cache import Answer, FailureKind
from sniproxy.net.guard import Guard
from sniproxy.net.listener import Peer, Trust
from sniproxy.net.pipes import PipePool
from sniproxy.net.resolver import ResolutionError, Resolver
from sniproxy.net.timers import TICK
from sniproxy.observe.access_log import AccessLog
from sniproxy.observe.metrics import ACCEPTED, ACTIVE, BYTES, OPENED, Meter, new_scoreboard, slot_of
from sniproxy.observe.recent import Recent
from sniproxy.observe.scoreboard import Scoreboard, UndecidedCounts
from sniproxy.outcome import Event, Reason
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import NO_GROUND, Action, Attribute, Condition, Ground, Rule, Rulebook, RuleLimits
from sniproxy.record import Record
from sniproxy.wire.alert import Alert
from tests.net.clock import HandClock
from tests.net.loopback import (
    InStrand,
    black_hole,
    cut,
    fill,
    open_descriptors,
    read_exactly,
    read_to_end,
    result_of,
    tcp_pair,
    turns,
    until,
    watching,
)
from tests.support.clients import hello_for, proxy_header, sleep_principal
from tests.support.dns_server import unused_port
from tests.wire.build import ENCRYPTED_CLIENT_HELLO, build_client_hello

GOOD = "en.wikipedia.org"
SLEEP = sleep_principal("sleep-us")
HELLO = hello_for(GOOD)
CLIENT = Peer("192.0.2.7")
STRANGER = Peer("198.51.100.9")

ALLOWING = Ground("wikipedia", "some", "policy.yaml", 3)
DENYING = Ground("wikipedia", "none", "policy.yaml", 7)


def rule(ground: Ground, action: Action, name: str) -> Rule:
    return Rule(ground, action, ((Condition(Attribute.SNI, (name,)),),))


ALLOW = rule(ALLOWING, Action.ALLOW, "*.wikipedia.org")
RULES = (ALLOW, rule(DENYING, Action.DENY, "denied.wikipedia.org"))


def door(header: HeaderMode) -> Door:
    trusted = (parse_trusted_peer("192.0.2.0/24"),)
    listener = Listener(address=TcpAddress("127.0.0.1", 0), proxy_protocol="required", trusted_peers=trusted)
    return Door(header, Trust(listener), TlvTypes(), UNKNOWN)


PLAIN, BEHIND_ENVOY = door(HeaderMode.NONE), door(HeaderMode.REQUIRED)


class Line(NamedTuple):
    """What was logged, when it was."""

    event: Event
    reason: Reason
    record: Record


class Lines(list[Line]):
    """An access log that keeps its lines."""

    def write(self, record: Record, event: Event, _now: float) -> None:
        self.append(Line(event, record.reason, record))

    @property
    def finals(self) -> list[Line]:
        return [line for line in self if line.event is not Event.OPEN]


Lookup = Callable[[], Awaitable[Answer]]


@dataclass
class Names:
    """A resolver that does for each name what a test says; every other name has the origin's address."""

    lookups: dict[str, Lookup] = field(default_factory=dict)
    known: dict[str, Answer] = field(default_factory=dict)
    whole: dict[str, Answer] = field(default_factory=dict)  # where a family comes late
    asked: list[str] = field(default_factory=list)

    def cached(self, name: ServerName) -> Answer | None:
        return self.known.get(name)

    async def resolve(self, name: ServerName) -> Answer:
        self.asked.append(name)
        lookup = self.lookups.get(name)
        return Answer(("127.0.0.1",), 60.0) if lookup is None else await lookup()

    async def complete(self, name: ServerName, answer: Answer) -> Answer:
        return self.whole.get(name, answer)


@dataclass
class Story:
    """One connection: the client's socket, the proxy's, and the task that tells it."""

    client: socket.socket
    downstream: socket.socket
    telling: "asyncio.Future[None]"

    async def end(self) -> None:
        await result_of(self.telling)


@dataclass
class World:
    """A proxy, and all that it has to do with."""

    config: Config
    proxy: Proxy
    clock: HandClock
    board: Scoreboard
    lines: Lines
    names: Names
    origin: socket.socket

    @contextlib.contextmanager
    def story(
        self, *said: bytes, door: Door = PLAIN, peer: Peer = CLIENT, has_room: bool = True, buffers: int = 0
    ) -> Iterator[Story]:
        """A client that connects and says something."""
        with tcp_pair(buffers) as (downstream, client):
            for part in said:
                client.sendall(part)
            telling = InStrand(self.proxy.serve(downstream, peer, door, has_room=has_room))
            yield Story(client, downstream, telling)

    async def accept(self) -> socket.socket:
        """The upstream end of the next connection that is dialled."""
        accepted: list[socket.socket] = []

        def look() -> bool:
            with contextlib.suppress(BlockingIOError):
                accepted.append(self.origin.accept()[0])
            return bool(accepted)

        await until(look, "a connection to the origin")
        accepted[0].setblocking(False)
        return accepted[0]

    def count(self, slot: int) -> int:
        self.proxy.ledger.meter.settle()
        return int(self.board.total(slot))

    def assert_over(self, story: Story, reason: Reason, lines: int = 1) -> Record:
        """The story has ended, as it should, and has left nothing behind. Its record."""
        assert (story.telling.done(), story.telling.exception()) == (True, None)
        assert [line.reason for line in self.lines.finals][-1] is reason
        final = self.lines.finals[-1]
        assert (lines, reason.event) == (len(self.lines.finals), final.event)
        assert story.downstream.fileno() == -1
        assert (lines, 0) == (self.count(slot_of(ACCEPTED)), self.count(slot_of(ACTIVE)))
        assert sum(self.board.workers[0].undecided) == 0
        return final.record


@contextlib.contextmanager
def world(limit: int = 100) -> Iterator[World]:
    """At its end no timer may be armed, and no descriptor be open that was not before."""
    before = open_descriptors()
    with watching() as (readiness, clock), socket.create_server(("127.0.0.1", 0)) as origin, black_hole() as silent:
        origin.setblocking(False)
        config = Config(
            upstream=Upstream(
                port=origin.getsockname()[1],
                hosts={
                    ServerName("silent.wikipedia.org"): (TcpAddress("127.0.0.1", silent),),
                    ServerName("refusing.wikipedia.org"): (TcpAddress("127.0.0.1", unused_port()),),
                    ServerName("unreachable.wikipedia.org"): (TcpAddress("224.0.0.1", 443),),
                },
            ),
            limits=Limits(client_hello_bytes=4096),
        )
        snapshot = Snapshot(config, Engine.of(Rulebook(RULES)), Guard(allow_networks=[ip_network("127.0.0.0/8")]))
        board = new_scoreboard(1)
        row = board.workers[0]
        lines, names, pipes, table = Lines(), Names(), PipePool(2), LimitTable(1)
        proxy = Proxy(
            snapshot,
            cast(Resolver, names),
            readiness,
            pipes,
            Ledger(cast(AccessLog, lines), Meter(row), Recent(row)),
            UndecidedCounts(board.workers, row, limit),
            table.limiter(0),
            LiveConnections(asyncio.get_running_loop()),
        )
        yield World(config, proxy, clock, board, lines, names, origin)
        pipes.close()
        table.close()
    assert before == open_descriptors()


@pytest.fixture
async def its() -> AsyncIterator[World]:
    with world() as one:
        yield one


# ---- Served ----


async def test_a_connection_is_served_and_recorded(its: World) -> None:
    """Who, what, whether, where, and how much: an open line when it stands, a close line at its end."""
    hello = hello_for(GOOD)
    with its.story(proxy_header(SLEEP), hello, b"and more", door=BEHIND_ENVOY) as story:
        with await its.accept() as upstream:
            assert await read_exactly(upstream, len(hello) + 8) == hello + b"and more"
            assert [Event.OPEN] == [line.event for line in its.lines]
            upstream.send(b"the answer")
            assert await read_exactly(story.client, 10) == b"the answer"
            story.client.shutdown(socket.SHUT_WR)
            assert await read_to_end(upstream) == b""
        assert await read_to_end(story.client) == b""
        await story.end()
        record = its.assert_over(story, Reason.DONE)
    assert {
        "identity": parse_principal(SLEEP),
        "source_ip": "10.1.2.3",
        "server_name": GOOD,
        "tls_version": "TLSv1.3",
        "alpn": ("h2", "http/1.1"),
        "ech": False,
        "allowed": True,
        "ground": ALLOWING,
        "dry_run": None,
        "audit": None,
        "destination_ip": "127.0.0.1",
        "destination_port": its.origin.getsockname()[1],
        "head_size": len(hello) + 8,
        "note": "",
        "received": len(hello) + 8,
        "sent": 10,
        "detail": "",
    } == {
        name: getattr(record, name) for name in Record.__slots__ if name not in ("number", "began", "opened", "reason")
    }
    assert record.opened >= record.began
    counted = [its.count(slot_of(BYTES, "received")), its.count(slot_of(BYTES, "sent")), its.count(slot_of(OPENED))]
    assert counted == [len(hello) + 8, 10, 1]


async def test_a_name_that_is_remembered_is_not_asked_for(its: World) -> None:
    its.names.known[GOOD] = Answer(("127.0.0.1",), 60.0)
    with its.story(HELLO) as story:
        with await its.accept():
            story.client.close()
        await story.end()
    assert its.names.asked == []


async def test_a_reset_of_the_client_reaches_the_origin_as_one(its: World) -> None:
    """Half a request must not look like a whole one."""
    with its.story(HELLO) as story, await its.accept() as upstream:
        await read_exactly(upstream, len(HELLO))
        cut(story.client)
        with pytest.raises(ConnectionResetError):
            await read_to_end(upstream)
        await story.end()
        its.assert_over(story, Reason.CLIENT_RESET)


async def test_a_reset_of_the_origin_reaches_the_client_as_one(its: World) -> None:
    """After what the origin had said before."""
    with its.story(HELLO) as story:
        upstream = await its.accept()
        upstream.send(b"half an ans")
        assert await read_exactly(story.client, 11) == b"half an ans"
        cut(upstream)
        with pytest.raises(ConnectionResetError):
            await read_to_end(story.client)
        await story.end()
        assert its.assert_over(story, Reason.UPSTREAM_RESET).sent == 11


async def test_a_connection_that_is_idle_ends(its: World) -> None:
    with its.story(HELLO) as story, await its.accept() as upstream:
        await read_exactly(upstream, len(HELLO))
        its.clock.advance(600 + 2 * TICK)
        assert (b"", b"") == (await read_to_end(upstream), await read_to_end(story.client))
        await story.end()
        its.assert_over(story, Reason.IDLE_TIMEOUT)


async def test_a_hello_that_may_hide_its_name_is_served_and_noted(its: World) -> None:
    """policy.ech is log, as it is unless the config says otherwise."""
    with its.story(build_client_hello(GOOD, extra=[(ENCRYPTED_CLIENT_HELLO, b"\0" * 20)])) as story:
        with await its.accept():
            pass
        story.client.close()
        await story.end()
    record = its.lines.finals[0].record
    assert (True, "the hello offers ECH: the real name may be another") == (record.ech, record.detail)


# ---- Judged again ----


def changed(its: World, *rules: Rule, rejudge: bool = True, networks: str = "127.0.0.0/8") -> Snapshot:
    """A snapshot with other rules, and other exceptions for the destination guard."""
    config = replace(its.config, policy=Policy(rejudge=rejudge))
    return Snapshot(config, Engine.of(Rulebook(rules)), Guard(allow_networks=[ip_network(networks)]))


REFUSING = rule(DENYING, Action.DENY, GOOD)
REFUSAL = "rbac_access_denied_matched_policy[wikipedia-rule[none]]"


async def test_a_rule_lets_in_as_many_as_it_may_and_each_gives_its_place_back(its: World) -> None:
    """However the connection ends. Who is over the limit is refused, and no DNS is asked."""
    its.proxy.adopt(changed(its, replace(ALLOW, limits=RuleLimits(connections=1))))
    with its.story(HELLO) as first:
        upstream = await its.accept()
        asked = len(its.names.asked)
        with its.story(HELLO) as second:
            assert await read_to_end(second.client) == Alert.ACCESS_DENIED.record
            second.client.close()
            await second.end()
            _, reason, record = its.lines[-1]
            assert (Reason.RATE_LIMITED, ALLOWING, False) == (reason, record.ground, record.allowed)
            assert ALLOWING.rule in record.detail
            assert asked == len(its.names.asked)
        cut(first.client)
        await first.end()
        upstream.close()
    with its.story(HELLO) as third:
        with await its.accept():
            third.client.close()
        await third.end()
    assert its.lines[-1].record.allowed


async def test_a_live_connection_that_the_new_policy_refuses_is_closed(its: World) -> None:
    """Without an alert, which the client's TLS could not read any more; the line says why."""
    with its.story(HELLO) as story, await its.accept() as upstream:
        await read_exactly(upstream, len(HELLO))
        its.proxy.adopt(changed(its, REFUSING, ALLOW))
        assert (b"", b"") == (await read_to_end(upstream), await read_to_end(story.client))
        await story.end()
        record = its.assert_over(story, Reason.POLICY_CHANGED)
    assert (REFUSAL, True, ALLOWING) == (record.detail, record.allowed, record.ground)
    assert len(its.proxy.live) == 0


@pytest.mark.parametrize("waits", [True, False], ids=["in its own time", "at once"])
async def test_who_names_another_server_behind_the_first_hello_is_cut_off(its: World, *, waits: bool) -> None:
    """Also one that the policy would allow: the address is that of the first name. The line names both."""
    another = hello_for("de.wikipedia.org")
    with its.story(HELLO, *([] if waits else [another])) as story, await its.accept() as upstream:
        if waits:
            assert await read_exactly(upstream, len(HELLO)) == HELLO
            story.client.send(another)
        assert (b"", b"") == (await read_to_end(upstream), await read_to_end(story.client))
        await story.end()
        record = its.assert_over(story, Reason.SNI_CHANGED)
    assert record.detail == "a ClientHello behind the first names 'de.wikipedia.org', and the first 'en.wikipedia.org'"
    assert (len(HELLO + another), GOOD, ALLOWING) == (record.received, record.server_name, record.ground)


STAYS = {
    "the new policy allows it, too": lambda its: changed(its, ALLOW),
    "another rule allows it now": lambda its: changed(its, rule(DENYING, Action.ALLOW, "*")),
    "policy.rejudge is off": lambda its: changed(its, REFUSING, rejudge=False),
}


@pytest.mark.parametrize("case", STAYS)
async def test_a_live_connection_stays_where(its: World, case: str) -> None:
    """To the byte: what was on its way arrives, and the rest after it."""
    with its.story(HELLO) as story, await its.accept() as upstream:
        await read_exactly(upstream, len(HELLO))
        story.client.send(b"before ")
        its.proxy.adopt(STAYS[case](its))
        await turns()
        story.client.send(b"and after")
        assert await read_exactly(upstream, 16) == b"before and after"
        upstream.close()
        story.client.close()
        await story.end()
        assert its.assert_over(story, Reason.DONE).received == len(HELLO) + 16


async def test_a_destination_that_is_forbidden_now_is_closed(its: World) -> None:
    """A rule, or the config, has lost the exception that had let it through."""
    with its.story(HELLO) as story, await its.accept() as upstream:
        await read_exactly(upstream, len(HELLO))
        its.proxy.adopt(changed(its, ALLOW, networks="192.168.0.0/16"))
        assert await read_to_end(story.client) == b""
        await story.end()
        record = its.assert_over(story, Reason.POLICY_CHANGED)
    assert record.detail == "127.0.0.1 is in 127.0.0.0/8 Loopback, RFC 1122 section 3.2.1.3"


async def test_a_static_destination_is_forbidden_by_no_network(its: World) -> None:
    """It was not when it was dialled, and is not when it is judged again."""
    config = its.config
    hosts = {ServerName(GOOD): (TcpAddress("127.0.0.1", its.origin.getsockname()[1]),)}
    static = replace(config, upstream=replace(config.upstream, hosts=hosts))
    its.proxy.adopt(Snapshot(static, its.proxy.snapshot.engine, its.proxy.snapshot.guard))
    with its.story(HELLO) as story, await its.accept() as upstream:
        await read_exactly(upstream, len(HELLO))
        its.proxy.adopt(changed(its, ALLOW, networks="192.168.0.0/16"))
        await turns()
        story.client.send(b"still here")
        assert await read_exactly(upstream, 10) == b"still here"
        upstream.close()
        story.client.close()
        await story.end()


@pytest.mark.parametrize(
    ("rules", "outcome"),
    {
        "refused": ((REFUSING,), (Reason.RULE, REFUSAL, False, DENYING)),
        "allowed": ((ALLOW,), (Reason.DONE, "", True, ALLOWING)),
    }.values(),
    ids=("refused", "allowed"),
)
async def test_between_decision_and_relay_it_is_judged_by_the_newest(
    its: World, rules: tuple[Rule, ...], outcome: tuple[Reason, str, bool, Ground]
) -> None:
    """Refused, it gets the alert of one that was refused at once, and no byte of it reaches the origin."""
    resolved: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    async def lookup() -> Answer:
        return await resolved

    its.names.lookups[GOOD] = lookup
    with its.story(HELLO) as story:
        await turns()
        its.proxy.adopt(changed(its, *rules))
        resolved.set_result(Answer(("127.0.0.1",), 60.0))
        with await its.accept() as upstream:
            is_allowed = outcome[0] is Reason.DONE
            if not is_allowed:
                assert await read_to_end(story.client) == Alert.ACCESS_DENIED.record
            story.client.close()
            assert await read_to_end(upstream) == (HELLO if is_allowed else b"")
        await story.end()
        record = its.assert_over(story, outcome[0])
    assert outcome == (record.reason, record.detail, record.allowed, record.ground)


async def test_no_connection_keeps_an_old_policy(its: World) -> None:
    """A hundred reloads of a large policy while connections live must not add up."""
    its.proxy.adopt(changed(its, ALLOW))
    old = weakref.ref(its.proxy.snapshot.engine)
    with its.story(HELLO) as story, await its.accept() as upstream:
        await read_exactly(upstream, len(HELLO))
        its.proxy.adopt(changed(its, ALLOW))
        await turns()
        assert (None, 1) == (old(), len(its.proxy.live))
        upstream.close()
        story.client.close()
        await story.end()


# ---- Refused and failed ----


class Case(NamedTuple):
    """What a client sends, what the world is like, and how the story must end."""

    said: bytes
    reason: Reason
    alert: Alert
    detail: str
    door: Door = PLAIN
    peer: Peer = CLIENT
    has_room: bool = True
    limit: int = 100
    passes: float = 0.0  # seconds, until it ends
    lookup: Lookup | None = None
    is_reset: bool = False


def finding(*addresses: str) -> Lookup:
    async def find() -> Answer:
        return Answer(addresses, 60.0)

    return find


def failing(error: Exception) -> Lookup:
    async def fail() -> Answer:
        raise error

    return fail


def unresolved(kind: FailureKind) -> Lookup:
    return failing(ResolutionError(ServerName(GOOD), kind, "said the server"))


UNRESOLVED = f"{GOOD} cannot be resolved: said the server"

CASES: dict[str, Case] = {
    "there is no room": Case(
        HELLO, Reason.CONNECTION_LIMIT, Alert.ACCESS_DENIED, "limits.connections are open", has_room=False
    ),
    "there is no room, and the client is silent": Case(
        b"", Reason.CONNECTION_LIMIT, Alert.ACCESS_DENIED, "limits.connections are open", has_room=False
    ),
    "too many of its source wait": Case(
        HELLO[:9],
        Reason.CONNECTION_LIMIT,
        Alert.ACCESS_DENIED,
        "192.0.2.7 has limits.undecided_per_source connections that wait to be judged",
        limit=0,
    ),
    "a stranger injects a header": Case(
        proxy_header(SLEEP) + HELLO,
        Reason.UNTRUSTED_PEER,
        Alert.ACCESS_DENIED,
        "198.51.100.9 is not among the listener's trusted_peers",
        door=BEHIND_ENVOY,
        peer=STRANGER,
    ),
    "the header is malformed": Case(
        b"PROXY TCP9\r\n" + HELLO, Reason.BAD_PROXY_HEADER, Alert.ACCESS_DENIED, "", door=BEHIND_ENVOY
    ),
    "it is not TLS": Case(b"GET / HTTP/1.1\r\n\r\n", Reason.NOT_TLS, Alert.ACCESS_DENIED, ""),
    "the hello is malformed": Case(
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", Reason.MALFORMED_HELLO, Alert.ACCESS_DENIED, ""
    ),
    "the hello is too large": Case(
        build_client_hello(GOOD, padding=5000), Reason.HELLO_TOO_LARGE, Alert.ACCESS_DENIED, ""
    ),
    "the hello names nobody": Case(
        build_client_hello(None),
        Reason.NO_SNI,
        Alert.UNRECOGNIZED_NAME,
        "the ClientHello has no server_name extension",
    ),
    "the hello names an address": Case(build_client_hello("192.0.2.1"), Reason.SNI_IS_IP, Alert.UNRECOGNIZED_NAME, ""),
    "the hello names no name": Case(build_client_hello("not a name"), Reason.INVALID_SNI, Alert.UNRECOGNIZED_NAME, ""),
    "the hello does not come": Case(
        HELLO[:20],
        Reason.HELLO_TIMEOUT,
        Alert.INTERNAL_ERROR,
        "no complete ClientHello within 10s",
        passes=10.0 + TICK,
    ),
    "the client gives up": Case(
        HELLO[:20],
        Reason.CLIENT_CLOSED,
        Alert.INTERNAL_ERROR,
        "the client reset the connection: Connection reset by peer",
        is_reset=True,
    ),
    "a rule denies": Case(
        hello_for("denied.wikipedia.org"),
        Reason.RULE,
        Alert.ACCESS_DENIED,
        "rbac_access_denied_matched_policy[wikipedia-rule[none]]",
    ),
    "no rule allows": Case(
        hello_for("example.org"),
        Reason.DEFAULT,
        Alert.ACCESS_DENIED,
        "rbac_access_denied_matched_policy[none]",
    ),
    "the name does not exist": Case(
        HELLO,
        Reason.DNS_NXDOMAIN,
        Alert.UNRECOGNIZED_NAME,
        UNRESOLVED,
        lookup=unresolved(FailureKind.NXDOMAIN),
    ),
    "the name servers are silent": Case(
        HELLO,
        Reason.DNS_TIMEOUT,
        Alert.INTERNAL_ERROR,
        UNRESOLVED,
        lookup=unresolved(FailureKind.TIMEOUT),
    ),
    "the name servers fail": Case(
        HELLO, Reason.DNS_FAILED, Alert.INTERNAL_ERROR, UNRESOLVED, lookup=unresolved(FailureKind.FAILED)
    ),
    "the name points inside": Case(
        HELLO,
        Reason.DESTINATION_FORBIDDEN,
        Alert.ACCESS_DENIED,
        "10.1.2.3 is in 10.0.0.0/8 Private-Use, RFC 1918; 169.254.169.254 is in 169.254.0.0/16 Link Local, RFC 3927",
        lookup=finding("10.1.2.3", "169.254.169.254"),
    ),
    "nobody listens": Case(hello_for("refusing.wikipedia.org"), Reason.CONNECT_REFUSED, Alert.INTERNAL_ERROR, ""),
    "nobody answers": Case(
        hello_for("silent.wikipedia.org"),
        Reason.CONNECT_TIMEOUT,
        Alert.INTERNAL_ERROR,
        "",
        passes=5.0 + TICK,
    ),
    "there is no way": Case(
        hello_for("unreachable.wikipedia.org"),
        Reason.CONNECT_FAILED,
        Alert.INTERNAL_ERROR,
        "unreachable.wikipedia.org: 224.0.0.1:443 network is unreachable",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_how_a_connection_ends_that_is_not_served(case: str) -> None:
    """One final line with the reason, one alert that fits it, and an end: never a reset that overtakes the alert."""
    given = CASES[case]
    with world(given.limit) as its:
        if given.lookup is not None:
            its.names.lookups[GOOD] = given.lookup
        with its.story(given.said, door=given.door, peer=given.peer, has_room=given.has_room) as story:
            await turns(20)
            if given.is_reset:
                cut(story.client)
            else:
                its.clock.advance(given.passes)
                assert given.alert.record == await read_to_end(story.client)
                story.client.close()
            await story.end()
            record = its.assert_over(story, given.reason)
            assert (given.detail or record.detail) == record.detail
            assert record.detail


async def test_a_refusal_knows_as_much_as_was_learned(its: World) -> None:
    """The name of a hello that was refused for it, escaped where it is not fit for a log; and what had come."""
    hello = build_client_hello(b"n\xc3\xb6 name")
    with its.story(proxy_header(SLEEP), hello, door=BEHIND_ENVOY) as story:
        await read_to_end(story.client)
        story.client.close()
        await story.end()
        record = its.assert_over(story, Reason.INVALID_SNI)
    assert (r"n\xc3\xb6 name", parse_principal(SLEEP), "10.1.2.3", len(hello), "TLSv1.3") == (
        record.server_name,
        record.identity,
        record.source_ip,
        record.received,
        record.tls_version,
    )
    assert (record.allowed, record.ground, record.destination_ip) == (False, NO_GROUND, "")


async def test_a_denied_name_is_never_resolved(its: World) -> None:
    for name in ("denied.wikipedia.org", "example.org"):
        with its.story(hello_for(name)) as story:
            await read_to_end(story.client)
            story.client.close()
            await story.end()
    assert its.names.asked == []


async def test_a_fault_of_ours_costs_one_connection(its: World) -> None:
    """The line says internal, and what; the client hears that it is over, and the next one is served."""
    its.names.lookups["faulty.wikipedia.org"] = failing(RuntimeError("a fault of ours"))
    with its.story(hello_for("faulty.wikipedia.org")) as story:
        with contextlib.suppress(ConnectionResetError):
            await read_to_end(story.client)
        story.client.close()
        await story.end()
        assert its.assert_over(story, Reason.INTERNAL).detail == "RuntimeError: a fault of ours"
    with its.story(HELLO) as story:
        with await its.accept() as upstream:
            assert await read_exactly(upstream, len(HELLO)) == HELLO
            story.client.close()
            assert await read_to_end(upstream) == b""
        await story.end()
        its.assert_over(story, Reason.DONE, lines=2)


# ---- Cancelled ----


@contextlib.asynccontextmanager
async def phase(its: World, name: str) -> AsyncIterator[Story]:
    """A story that waits in the phase of that name."""
    async with PHASES[name](its) as story:
        await turns(20)
        assert not story.telling.done()
        yield story


Phase = Callable[[World], "contextlib.AbstractAsyncContextManager[Story]"]


def waiting_for_more(*said: bytes, door: Door = PLAIN) -> Phase:
    """A story that waits for what the client says next, or for an answer about what it has said."""

    @contextlib.asynccontextmanager
    async def wait(its: World) -> AsyncIterator[Story]:
        with its.story(*said, door=door) as story:
            yield story

    return wait


@contextlib.asynccontextmanager
async def resolving(its: World) -> AsyncIterator[Story]:
    its.names.lookups[GOOD] = asyncio.get_running_loop().create_future
    with its.story(HELLO) as story:
        yield story


@contextlib.asynccontextmanager
async def relaying(its: World) -> AsyncIterator[Story]:
    with its.story(HELLO) as story, await its.accept() as upstream:
        await read_exactly(upstream, len(HELLO))
        yield story


@contextlib.asynccontextmanager
async def relaying_without_a_reader(its: World) -> AsyncIterator[Story]:
    with its.story(HELLO) as story, await its.accept() as upstream:
        await read_exactly(upstream, len(HELLO))
        for _ in range(100):
            fill(story.client)
            await asyncio.sleep(0)
        yield story


@contextlib.asynccontextmanager
async def half_closed(its: World) -> AsyncIterator[Story]:
    with its.story(HELLO) as story, await its.accept() as upstream:
        story.client.shutdown(socket.SHUT_WR)
        assert await read_to_end(upstream) == HELLO
        yield story


@contextlib.asynccontextmanager
async def passing_a_reset_on(its: World) -> AsyncIterator[Story]:
    """The origin was reset, and the client has not yet taken what it had said before."""
    with its.story(HELLO, buffers=4096) as story:
        story.downstream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        upstream = await its.accept()
        await read_exactly(upstream, len(HELLO))
        upstream.send(bytes(64 * 1024))
        await until(lambda: its.count(slot_of(BYTES, "sent")) == 64 * 1024, "the answer")
        cut(upstream)
        await until(lambda: its.lines[0].record.reason is Reason.UPSTREAM_RESET, "the end of the relay")
        yield story


PHASES: dict[str, Phase] = {
    "waiting for the PROXY header": waiting_for_more(door=BEHIND_ENVOY),
    "waiting for the rest of it": waiting_for_more(proxy_header(SLEEP)[:30], door=BEHIND_ENVOY),
    "waiting for the hello behind it": waiting_for_more(proxy_header(SLEEP), door=BEHIND_ENVOY),
    "waiting for the hello": waiting_for_more(),
    "waiting for the rest of the hello": waiting_for_more(HELLO[:50]),
    "resolving": resolving,
    "dialling": waiting_for_more(hello_for("silent.wikipedia.org")),
    "relaying": relaying,
    "relaying to one who does not read": relaying_without_a_reader,
    "relaying one way only": half_closed,
    "hanging up": waiting_for_more(hello_for("denied.wikipedia.org")),
    "passing a reset on": passing_a_reset_on,
}
# What ended a connection before its drain did remains the reason.
DECIDED = {"hanging up": Reason.RULE, "passing a reset on": Reason.UPSTREAM_RESET}


@pytest.mark.parametrize("name", PHASES)
async def test_a_story_that_is_cancelled_leaves_nothing(its: World, name: str) -> None:
    """Wherever it waits: one final line, no socket, no timer, no slot; and the client hears the end."""
    async with phase(its, name) as story:
        story.telling.cancel()
        await story.end()
        record = its.assert_over(story, DECIDED.get(name, Reason.DRAIN))
        if name not in DECIDED:
            assert record.detail == "the proxy stopped before the connection was over"
        with contextlib.suppress(ConnectionResetError):
            await read_to_end(story.client)


async def test_a_story_may_be_cancelled_in_any_turn(its: World) -> None:
    """From its first step to its end; also while two things happen at once."""
    story_count = 60
    for number in range(story_count):
        with its.story(proxy_header(SLEEP), HELLO, door=BEHIND_ENVOY) as story, contextlib.ExitStack() as stack:
            await asyncio.sleep(0)
            for _ in range(number // 2):
                with contextlib.suppress(BlockingIOError):
                    stack.enter_context(its.origin.accept()[0])
                if number % 2 and number > 20:
                    story.client.close()
                await asyncio.sleep(0)
            story.telling.cancel()
            await story.end()
            assert number + 1 == len(its.lines.finals)
            assert story.downstream.fileno() == -1
        # What the kernel has connected although nobody wants it any more.
        await turns(3)
        with contextlib.suppress(BlockingIOError):
            while True:
                its.origin.accept()[0].close()
    assert (story_count, 0) == (its.count(slot_of(ACCEPTED)), its.count(slot_of(ACTIVE)))
    assert sum(its.board.workers[0].undecided) == 0
    assert {line.reason for line in its.lines.finals} <= {Reason.DRAIN, Reason.DONE, Reason.CLIENT_RESET}
