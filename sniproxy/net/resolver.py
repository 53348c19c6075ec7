"""From a server name to addresses: a stub resolver with a cache, for one asyncio event loop.

The life of a question:

1. `cached` answers from memory, without a coroutine: nearly every connection ends here.
2. `resolve` joins the lookup of that name which is under way, or begins one. A lookup belongs to nobody: an
asker
   that is cancelled leaves it to the others, and to the cache.
3. A lookup asks for A and AAAA at the same time. As soon as one has addresses the other gets
RESOLUTION_DELAY,
   and then the askers go on; what comes later is still added to the cache. So a family that is slow or broken
   delays nobody, and fails no name that the other family has.
4. For each family the name servers are asked one after the other, STAGGER apart and sooner when one fails,
twice
   each. An earlier question stays open while later ones are asked: the first usable reply wins.

Names are absolute: search domains and ndots are for people at terminals. CNAMEs are followed within a
reply, as a recursive server gives them. What an address is good for is not decided here; see `guard`.

dnspython makes and reads the messages, of replies only what is `worth_reading`; the sockets are our own.
Replies that do not fit the question (identifier, question, source address) are passed over, so that who guesses
has to guess all of it (RFC 5452). A question takes one socket. A worker has `question_sockets` of them, which are
no connection's, and further questions wait: a client chooses the names, and names that nobody answers for must
not take the descriptors of others.
"""

import asyncio
import re
import resource
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain, zip_longest
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, SocketKind, socket
from typing import Any, NamedTuple, Protocol, TypeVar

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from sniproxy.names import ServerName
from sniproxy.net.dns_cache import Answer, DnsCache, Entry, Failure, FailureKind, Outcome
from sniproxy.wire.dns_reply import DnsReplyError, worth_reading

__all__ = [
    "Answer",
    "Failure",
    "FailureKind",
    "Family",
    "Nameserver",
    "ResolutionError",
    "Resolver",
    "ResolverObserver",
    "ResolverSettings",
    "parse_nameserver",
    "question_sockets",
    "system_nameservers",
]

_T = TypeVar("_T")

# RFC 8305 section 3. There only AAAA is waited for; here both are, as the second family is what dialling
# falls back on.
RESOLUTION_DELAY = 0.05

# RFC 9520 section 3.2: failures are remembered for at least 1 second, so that a dead server is not hammered.
FAILURE_TTL = 1.0

# RFC 9520 section 3.1 allows three questions to one server; the second one mends a lost datagram.
ATTEMPTS_PER_SERVER = 2

# Lookups under way, each of up to a few questions; a client chooses the names.
MAX_LOOKUPS = 1000

# Of what a worker may have open, an eighth is for questions, and no more than this.
MAX_QUESTION_SOCKETS = 1024

# Of one answer. The guard keeps fewer; this bounds what a cache entry weighs.
MAX_ADDRESSES = 64

# DNS flag day 2020: the largest reply that is not fragmented anywhere.
EDNS_PAYLOAD = 1232

# Of a datagram, and of a message by TCP: a length of 16 bits.
_LARGEST = 65535

# resolv.conf(5), MAXNS.
MAX_SYSTEM_NAMESERVERS = 3


class Family(Enum):
    """Which addresses are asked for."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    BOTH = "both"


# IPv6 first where both are asked, as RFC 6724 prefers it.
_RECORD_TYPES = {
    Family.IPV4: (dns.rdatatype.A,),
    Family.IPV6: (dns.rdatatype.AAAA,),
    Family.BOTH: (dns.rdatatype.AAAA, dns.rdatatype.A),
}
_WITH_PORT = re.compile(r"(?:\[(?P<ipv6>[^]]+)\]|(?P<ipv4>[^:]+)):(?P<port>[0-9]{1,5})")

# The others are about the server that gives them, and another server may know better.
_RCODES_ABOUT_NAMES = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """`upstream.resolver` of the config. Times are in seconds.

    A name server is "8.8.8.8", "8.8.8.8:53", "2001:4860:4860::8888" or "[2001:4860:4860::8888]:53"; with
    none, those of /etc/resolv.conf are asked. `timeout` bounds a lookup as a whole. The time to live of an
    answer is held within `min_ttl` and `max_ttl`, that of a denial is `negative_ttl` at most. `stale_ttl`
    is for how long after expiry an answer may be used while no name server replies; 0 is never.
    `cache_size` counts names.
    """

    nameservers: tuple[str, ...] = ()
    family: Family = Family.BOTH
    timeout: float = 2.0
    min_ttl: float = 1.0
    max_ttl: float = 300.0
    negative_ttl: float = 5.0
    stale_ttl: float = 0.0
    cache_size: int = 10_000


class Nameserver(NamedTuple):
    """Where questions go: an IP address and a UDP and TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ResolverObserver(Protocol):
    """Told what the resolver does, for the metrics. Each method must return at once and not raise."""

    def hit(self) -> None:
        """A question was answered from memory, be it by a failure."""

    def miss(self) -> None:
        """A question has to wait for a lookup."""

    def stale(self) -> None:
        """A question was answered by a stale answer."""

    def lookup(self, seconds: float, result: str) -> None:
        """A lookup has come to `ok`, or to the value of a FailureKind."""


class _Unobserved:
    def hit(self) -> None: ...
    def miss(self) -> None: ...
    def stale(self) -> None: ...
    def lookup(self, seconds: float, result: str) -> None: ...


class ResolutionError(Exception):
    """`name` has no addresses to give: `kind` for the outcome, `detail` for the log."""

    def __init__(self, name: ServerName, kind: FailureKind, detail: str) -> None:
        super().__init__(f"{name} cannot be resolved: {detail}")
        self.name = name
        self.kind = kind
        self.detail = detail


class Resolver:
    """Resolves names by the name servers of `settings`. Raises ValueError for one that is no address.

    `clock` is monotonic, in seconds, and `sockets` how many there are for questions; tests bring their own.
    """

    def __init__(
        self,
        settings: ResolverSettings,
        observer: ResolverObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        sockets: int | None = None,
    ) -> None:
        self._settings = settings
        self._nameservers = (
            tuple(map(parse_nameserver, settings.nameservers)) if settings.nameservers else system_nameservers()
        )
        self._observer = observer or _Unobserved()
        self._clock = clock
        self._cache = DnsCache(settings.cache_size, settings.stale_ttl)
        if sockets is None:
            sockets = question_sockets(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._max_sockets = sockets
        self._sockets = asyncio.Semaphore(sockets)
        self._lookups: dict[ServerName, asyncio.Task[Entry]] = {}
        self._late: dict[ServerName, asyncio.Task[Entry]] = {}  # what completes an answer
        self._tasks: set[asyncio.Task[Any]] = set()

    def cached(self, name: ServerName) -> Answer | None:
        """The answer in memory; None when the name has to be looked up, by `resolve`.

        Raises ResolutionError for a failure in memory. To be called in the event loop.
        """
        now = self._clock()
        entry = self._cache.find(name, now)
        if entry is None:
            return None
        if entry.recheck_at is None:
            self._observer.hit()
        else:
            self._observer.stale()
            if now >= entry.recheck_at:
                self._look_up_once(name)
        return _answer(name, entry)

    async def resolve(self, name: ServerName) -> Answer:
        """The answer in memory, or from the name servers. Raises ResolutionError."""
        if (answer := self.cached(name)) is not None:
            return answer
        self._observer.miss()
        lookup = self._look_up_once(name)
        if lookup is None:
            entry = self._cache.settle(name, _too_many_lookups(), self._clock())
        else:
            entry = await asyncio.shield(lookup)
        if entry.recheck_at is not None:
            self._observer.stale()
        return _answer(name, entry)

    async def complete(self, name: ServerName, answer: Answer) -> Answer:
        """`answer`, or where a family was not waited for when it was given, what both come to."""
        late = self._late.get(name)
        if late is None:
            return answer
        whole = (await asyncio.shield(late)).outcome
        return whole if isinstance(whole, Answer) else answer

    async def close(self) -> None:
        """End every lookup; who still waits for one is cancelled with it."""
        await _cancel(self._tasks)

    def _look_up_once(self, name: ServerName) -> asyncio.Task[Entry] | None:
        """The lookup of `name` that is under way, or a new one; None when there are too many."""
        if lookup := self._lookups.get(name):
            return lookup
        if len(self._lookups) >= MAX_LOOKUPS:
            return None
        lookup = self._lookups[name] = self._spawn(self._look_up(name))
        lookup.add_done_callback(lambda _: self._lookups.pop(name))
        return lookup

    async def _look_up(self, name: ServerName) -> Entry:
        started = self._clock()
        questions = [self._spawn(self._ask(name, rdtype)) for rdtype in _RECORD_TYPES[self._settings.family]]
        answered = await _in_time(questions)
        now = self._clock()
        outcome = self._combined([question.result() for question in answered])
        self._observer.lookup(now - started, "ok" if isinstance(outcome, Answer) else outcome.kind.value)
        if len(answered) < len(questions):
            self._add_the_late(name, questions, now)
        return self._cache.settle(name, outcome, now)

    def _add_the_late(self, name: ServerName, questions: Sequence[asyncio.Task[Outcome]], since: float) -> None:
        """Without it, a name would keep the faster family alone until it expires, reachable or not."""

        async def add() -> Entry:
            return self._cache.settle(name, self._combined(await asyncio.gather(*questions)), since)

        late = self._late[name] = self._spawn(add())
        late.add_done_callback(lambda _: self._late.pop(name) if self._late.get(name) is late else None)

    def _combined(self, outcomes: Sequence[Outcome]) -> Outcome:
        """What the families together come to.

        1. Addresses of any family are an answer, whatever became of the other.
        2. NXDOMAIN is about the name, so it holds for every family (RFC 8020). But only after each had its
           say: there are servers that give it for AAAA where A exists (RFC 4074 section 4.2).
        3. A failure leaves open whether there are addresses.
        4. The name exists, and has none.
        """
        settings = self._settings
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        if found := [answer for answer in answers if answer.addresses]:
            ttl = min(answer.ttl for answer in found)
            return Answer(_alternating(found), min(max(ttl, settings.min_ttl), settings.max_ttl))
        denials = [failure for failure in failures if failure.kind is FailureKind.NXDOMAIN]
        failure = next(iter((*denials, *failures)), None) or _no_data(answers)
        if failure.kind is FailureKind.NXDOMAIN:
            return replace(failure, ttl=min(failure.ttl, settings.negative_ttl))
        return failure

    async def _ask(self, name: ServerName, rdtype: dns.rdatatype.RdataType) -> Outcome:
        """What the name servers say about one family, within the timeout; an Answer may have no addresses."""
        failures: list[Failure] = []
        busy = f"; all {self._max_sockets} sockets for questions were in use" if self._sockets.locked() else ""
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._first_usable(self._attempts(name, rdtype), failures)
        except TimeoutError:
            silence = f"no answer within {self._settings.timeout:g} s{busy}"
            return Failure(FailureKind.TIMEOUT, _sentence(silence, failures), FAILURE_TTL)

    def _attempts(self, name: ServerName, rdtype: dns.rdatatype.RdataType) -> Iterator[Coroutine[Any, Any, Outcome]]:
        for attempt in range(ATTEMPTS_PER_SERVER):
            for server in self._nameservers:
                # RFC 6891 section 6.2.2: the second time without EDNS, which offends some middleboxes.
                yield _exchange(self._sockets, server, name, rdtype, edns=attempt == 0)

    async def _first_usable(self, attempts: Iterator[Coroutine[Any, Any, Outcome]], failures: list[Failure]) -> Outcome:
        """The first usable outcome of attempts that begin when the one before fails or takes too long."""
        waiting: set[asyncio.Task[Outcome]] = set()
        are_all = False
        try:
            while True:
                # Who has asked already does not ask again while others wait for a socket to ask at all.
                if not waiting or not self._sockets.locked():
                    attempt = next(attempts, None)
                    if attempt is not None:
                        waiting.add(asyncio.create_task(attempt))
                    elif not waiting:
                        return Failure(FailureKind.FAILED, _sentence("", failures), FAILURE_TTL)
                    are_all = attempt is None
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=None if are_all else self._stagger,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for outcome in (task.result() for task in done):
                    if isinstance(outcome, Answer) or outcome.kind is FailureKind.NXDOMAIN:
                        return outcome
                    failures.append(outcome)
        finally:
            await _cancel(waiting)

    @property
    def _stagger(self) -> float:
        """So that each server has had its turn when half of the timeout is over."""
        return self._settings.timeout / max(4, ATTEMPTS_PER_SERVER * len(self._nameservers))

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """A task that `close` ends. The loop itself holds tasks by weak references only."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _answer(name: ServerName, entry: Entry) -> Answer:
    outcome = entry.outcome
    if isinstance(outcome, Failure):
        raise ResolutionError(name, outcome.kind, outcome.detail)
    return outcome


def _addresses(outcome: Outcome) -> tuple[str, ...]:
    return outcome.addresses if isinstance(outcome, Answer) else ()


async def _in_time(questions: Sequence[asyncio.Task[Outcome]]) -> list[asyncio.Task[Outcome]]:
    """Those that are answered when it is time to go on, in the order asked; RFC 8305 section 3."""
    done, waiting = await asyncio.wait(questions, return_when=asyncio.FIRST_COMPLETED)
    if waiting:
        has_addresses = any(_addresses(question.result()) for question in done)
        await asyncio.wait(waiting, timeout=RESOLUTION_DELAY if has_addresses else None)
    return [question for question in questions if question.done()]


def _alternating(answers: Iterable[Answer]) -> tuple[str, ...]:
    """The families in turn (RFC 8305 section 4), so that whoever takes the first few has some of each."""
    turns = zip_longest(*(answer.addresses for answer in answers))
    return tuple(address for address in chain.from_iterable(turns) if address)[:MAX_ADDRESSES]


def _no_data(answers: Iterable[Answer]) -> Failure:
    ttl = min(answer.ttl for answer in answers)
    return Failure(FailureKind.NXDOMAIN, "the name exists and has no addresses (NODATA)", ttl)


def _too_many_lookups() -> Failure:
    return Failure(FailureKind.FAILED, f"{MAX_LOOKUPS} lookups are under way", ttl=0)


def _sentence(beginning: str, failures: Iterable[Failure]) -> str:
    details = dict.fromkeys(failure.detail for failure in failures)
    return "; ".join(filter(None, (beginning, *details)))


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel, and wait until their sockets are closed."""
    cancelled = [task for task in tasks if task.cancel()]
    await asyncio.gather(*cancelled, return_exceptions=True)


async def _exchange(
    sockets: asyncio.Semaphore, server: Nameserver, name: ServerName, rdtype: dns.rdatatype.RdataType, *, edns: bool
) -> Outcome:
    """One question to one name server, by UDP, and by TCP when the reply is too long for that.

    The seam to dnspython and to the sockets: their exceptions end here.
    """
    try:
        query = dns.message.make_query(f"{name}.", rdtype, use_edns=edns, payload=EDNS_PAYLOAD)
        async with sockets:
            reply = await _by_udp(server, query)
            if reply.flags & dns.flags.TC:
                reply = await _by_tcp(server, query)
        return _outcome(reply, server)
    except (dns.exception.DNSException, DnsReplyError, OSError, EOFError) as error:
        return Failure(FailureKind.FAILED, f"{server}: {str(error) or type(error).__name__}", FAILURE_TTL)


async def _by_udp(server: Nameserver, query: dns.message.Message) -> dns.message.Message:
    """The first datagram that is a reply to `query`, which may be cut. Raises OSError."""
    loop, identifier = asyncio.get_running_loop(), query.id.to_bytes(2, "big")
    # A connected socket of its own for each question: the kernel picks a random source port and drops what
    # other hosts send, and an ICMP error ends the wait at once.
    with _socket(server, SOCK_DGRAM) as sock:
        sock.connect(server)
        sock.send(query.to_wire())
        while True:
            data = await loop.sock_recv(sock, _LARGEST)
            # The identifier first, so that a flood of wrong guesses costs next to nothing.
            if data[:2] == identifier:
                with suppress(dns.exception.DNSException, DnsReplyError):
                    return _read(data, query)
            await asyncio.sleep(0)  # nor does it hold the loop


async def _by_tcp(server: Nameserver, query: dns.message.Message) -> dns.message.Message:
    """The whole reply (RFC 1035 section 4.2.2). Raises dns.exception.DNSException, DnsReplyError, OSError, EOFError."""
    loop = asyncio.get_running_loop()
    with _socket(server, SOCK_STREAM) as sock:
        await loop.sock_connect(sock, server)
        await loop.sock_sendall(sock, query.to_wire(prepend_length=True))
        length = int.from_bytes(await _exactly(sock, 2), "big")
        reply = _read(await _exactly(sock, length), query)
    if reply.flags & dns.flags.TC:
        raise DnsReplyError("the reply is cut even by TCP")
    return reply


def _socket(server: Nameserver, kind: SocketKind) -> socket:
    """A plain socket: uvloop forgets to close one that it makes for a question that is cancelled meanwhile."""
    sock = socket(AF_INET6 if ":" in server.host else AF_INET, kind)
    sock.setblocking(False)
    return sock


async def _exactly(sock: socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), bytearray()
    while len(data) < size:
        some = await loop.sock_recv(sock, size - len(data))
        if not some:
            raise EOFError("the connection ended too early")
        data += some
    return bytes(data)


def _read(wire: bytes, query: dns.message.Message) -> dns.message.Message:
    """The reply to `query`. Raises dns.exception.DNSException and DnsReplyError for what is none.

    dnspython has no bound on what reading costs, and keeps a class of each record type that it meets.
    """
    reply = dns.message.from_wire(worth_reading(wire))
    if not query.is_response(reply):
        raise DnsReplyError("the reply is to another question")
    return reply


def _outcome(reply: dns.message.Message, server: Nameserver) -> Outcome:
    rcode = reply.rcode()
    if rcode not in _RCODES_ABOUT_NAMES or not isinstance(reply, dns.message.QueryMessage):
        return Failure(FailureKind.FAILED, f"{server} answered {dns.rcode.to_text(rcode)}", FAILURE_TTL)
    if _knows_nothing(reply):
        return Failure(FailureKind.FAILED, f"{server} neither answered nor denied", FAILURE_TTL)
    # The time to live is the least along the chain; of a denial, also the SOA's own and its minimum (RFC 2308
    # section 5).
    chained = reply.resolve_chaining()
    if rcode == dns.rcode.NXDOMAIN:
        return Failure(FailureKind.NXDOMAIN, f"{server} answered NXDOMAIN", chained.minimum_ttl)
    addresses = tuple(record.address for record in chained.answer or ())
    return Answer(addresses[:MAX_ADDRESSES], chained.minimum_ttl)


def _knows_nothing(reply: dns.message.QueryMessage) -> bool:
    """Whether an empty reply is a referral, or another of a server that does not resolve for us, and no denial.

    RFC 2308 section 2.2 tells the two apart by the SOA. Without one, whoever is authoritative or recursive is
    believed all the same.
    """
    is_empty = reply.rcode() == dns.rcode.NOERROR and not reply.answer
    denies = any(records.rdtype == dns.rdatatype.SOA for records in reply.authority)
    return is_empty and not denies and not reply.flags & (dns.flags.AA | dns.flags.RA)


def question_sockets(descriptors: int) -> int:
    """How many sockets there are for questions where so many descriptors may be open in a worker."""
    if descriptors == resource.RLIM_INFINITY:
        return MAX_QUESTION_SOCKETS
    return max(1, min(MAX_QUESTION_SOCKETS, descriptors // 8))


def parse_nameserver(text: str) -> Nameserver:
    """A name server as the config writes it, see ResolverSettings. Raises ValueError."""
    with suppress(ValueError):
        return Nameserver(str(ip_address(text)), 53)
    match = _WITH_PORT.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{text!r} is not the address of a name server")
    address = IPv6Address(match["ipv6"]) if match["ipv6"] else IPv4Address(match["ipv4"])
    return Nameserver(str(address), int(match["port"]))


def system_nameservers(path: Path = Path("/etc/resolv.conf")) -> tuple[Nameserver, ...]:
    """The name servers of resolv.conf(5); as there, the one on this host when it names none."""
    found: list[Nameserver] = []
    with suppress(FileNotFoundError):
        for words in map(str.split, path.read_text(errors="replace").splitlines()):
            if words[:1] == ["nameserver"]:
                with suppress(ValueError, IndexError):
                    found.append(Nameserver(str(ip_address(words[1])), 53))
    return tuple(found[:MAX_SYSTEM_NAMESERVERS]) or (Nameserver("127.0.0.1", 53),)
