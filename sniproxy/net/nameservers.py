"""Asking name servers: one question of one name, until a server has a usable answer.

The servers are asked one after the other, a while apart and sooner when one fails, twice each. An earlier question
stays open while later ones are asked: the first usable reply wins.

dnspython makes and reads the messages, of replies only what is `worth_reading`; the sockets are our own. Replies that
do not fit the question (identifier, question, source address) are passed over, so that who guesses has to guess all of
it (RFC 5452). A question takes one socket. A worker has `question_sockets` of them, which are no connection's, and
further questions wait: a client chooses the names, and names that nobody answers for must not take the descriptors of
others.
"""

import asyncio
import resource
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, SocketKind, socket
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from sniproxy.config.units import DNS_PORT, TcpAddress
from sniproxy.names import ServerName
from sniproxy.net.dns_cache import FAILURE_TTL, MAX_ADDRESSES, Answer, Failure, FailureKind, Outcome
from sniproxy.wire.dns_reply import DnsReplyError, worth_reading

# RFC 9520 section 3.1 allows three questions to one server; the second one mends a lost datagram.
ATTEMPTS_PER_SERVER = 2

# Of what a worker may have open, an eighth is for questions, and no more than this.
MAX_QUESTION_SOCKETS = 1024

# DNS flag day 2020: the largest reply that is not fragmented anywhere.
EDNS_PAYLOAD = 1232

# Of a datagram, and of a message by TCP: a length of 16 bits.
_LARGEST = 65535

# resolv.conf(5), MAXNS.
MAX_SYSTEM_NAMESERVERS = 3

# The others are about the server that gives them, and another server may know better.
_RCODES_ABOUT_NAMES = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)


class Nameservers:
    """Asks `servers`, each question within `timeout` seconds, with so many `sockets` at most."""

    def __init__(self, servers: Sequence[TcpAddress], timeout: float, sockets: int) -> None:
        self._servers = servers
        self._timeout = timeout
        self._max_sockets = sockets
        self._sockets = asyncio.Semaphore(sockets)

    async def ask(self, name: ServerName, rdtype: dns.rdatatype.RdataType) -> Outcome:
        """What the name servers say about one family; an Answer may have no addresses."""
        failures: list[Failure] = []
        busy = f"; all {self._max_sockets} sockets for questions were in use" if self._sockets.locked() else ""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._first_usable(self._attempts(name, rdtype), failures)
        except TimeoutError:
            silence = f"no answer within {self._timeout:g} s{busy}"
            return Failure(FailureKind.TIMEOUT, _sentence(silence, failures), FAILURE_TTL)

    def _attempts(self, name: ServerName, rdtype: dns.rdatatype.RdataType) -> Iterator[Coroutine[Any, Any, Outcome]]:
        for attempt in range(ATTEMPTS_PER_SERVER):
            for server in self._servers:
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
            await cancelled(waiting)

    @property
    def _stagger(self) -> float:
        """So that each server has had its turn when half of the timeout is over."""
        return self._timeout / max(4, ATTEMPTS_PER_SERVER * len(self._servers))


def _sentence(beginning: str, failures: Iterable[Failure]) -> str:
    details = dict.fromkeys(failure.detail for failure in failures)
    return "; ".join(filter(None, (beginning, *details)))


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel, and wait until their sockets are closed."""
    ending = [task for task in tasks if task.cancel()]
    await asyncio.gather(*ending, return_exceptions=True)


async def _exchange(
    sockets: asyncio.Semaphore, server: TcpAddress, name: ServerName, rdtype: dns.rdatatype.RdataType, *, edns: bool
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


async def _by_udp(server: TcpAddress, query: dns.message.Message) -> dns.message.Message:
    """The first datagram that is a reply to `query`, which may be cut. Raises OSError."""
    loop, identifier = asyncio.get_running_loop(), query.id.to_bytes(2, "big")
    # A connected socket of its own for each question: the kernel picks a random source port and drops what
    # other hosts send, and an ICMP error ends the wait at once.
    with _socket(server, SOCK_DGRAM) as sock:
        sock.connect((server.host, server.port))
        sock.send(query.to_wire())
        while True:
            data = await loop.sock_recv(sock, _LARGEST)
            # The identifier first, so that a flood of wrong guesses costs next to nothing.
            if data[:2] == identifier:
                with suppress(dns.exception.DNSException, DnsReplyError):
                    return _read(data, query)
            await asyncio.sleep(0)  # nor does it hold the loop


async def _by_tcp(server: TcpAddress, query: dns.message.Message) -> dns.message.Message:
    """The whole reply (RFC 1035 section 4.2.2). Raises dns.exception.DNSException, DnsReplyError, OSError, EOFError."""
    loop = asyncio.get_running_loop()
    with _socket(server, SOCK_STREAM) as sock:
        await loop.sock_connect(sock, (server.host, server.port))
        await loop.sock_sendall(sock, query.to_wire(prepend_length=True))
        length = int.from_bytes(await _exactly(sock, 2), "big")
        reply = _read(await _exactly(sock, length), query)
    if reply.flags & dns.flags.TC:
        raise DnsReplyError("the reply is cut even by TCP")
    return reply


def _socket(server: TcpAddress, kind: SocketKind) -> socket:
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


def _outcome(reply: dns.message.Message, server: TcpAddress) -> Outcome:
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


def system_nameservers(path: Path = Path("/etc/resolv.conf")) -> tuple[TcpAddress, ...]:
    """The name servers of resolv.conf(5); as there, the one on this host when it names none."""
    found: list[TcpAddress] = []
    with suppress(FileNotFoundError):
        for words in map(str.split, path.read_text(errors="replace").splitlines()):
            if words[:1] == ["nameserver"]:
                with suppress(ValueError, IndexError):
                    found.append(TcpAddress(str(ip_address(words[1])), DNS_PORT))
    return tuple(found[:MAX_SYSTEM_NAMESERVERS]) or (TcpAddress("127.0.0.1", DNS_PORT),)
