"""Intake: the first bytes of a connection, until they say who calls and what for.

Reads the PROXY header where the listener requires one, then the ClientHello, and keeps every byte behind the header
to be replayed to the upstream. A connection whose bytes are all there, which is nearly every one, never waits and is
never counted; one that has to wait takes an undecided slot of its source, and gives it back when it is judged.
"""

import socket
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address
from typing import NamedTuple

from sniproxy.identity.evidence import IdentityError, TlvTypes, establish
from sniproxy.identity.spiffe import Identity
from sniproxy.net.listener import Peer, Trust
from sniproxy.net.readiness import Readiness
from sniproxy.net.strand import turn
from sniproxy.observe.scoreboard import UndecidedCounts
from sniproxy.outcome import ConnectionEndedError, Reason
from sniproxy.wire.client_hello import ClientHello, ClientHelloReader, HelloError, HelloFault
from sniproxy.wire.need_more import NEED_MORE
from sniproxy.wire.proxy_protocol import (
    NOT_SENT,
    NotSent,
    ProxyHeader,
    ProxyHeaderError,
    SocketAddress,
    read_proxy_header,
)

# One read. A hello with post-quantum key shares has about 1,800 bytes; larger ones take another turn.
_READ_SIZE = 16 * 1024

_HELLO_REASONS = {
    HelloFault.NOT_TLS: Reason.NOT_TLS,
    HelloFault.SSLV2: Reason.NOT_TLS,
    HelloFault.TRUNCATED: Reason.CLIENT_CLOSED,
    HelloFault.TOO_LARGE: Reason.HELLO_TOO_LARGE,
    HelloFault.MALFORMED: Reason.MALFORMED_HELLO,
    HelloFault.DUPLICATE_SNI: Reason.MALFORMED_HELLO,
    HelloFault.NO_SNI: Reason.NO_SNI,
    HelloFault.SNI_IS_IP: Reason.SNI_IS_IP,
    HelloFault.INVALID_SNI: Reason.INVALID_SNI,
}


def refused_hello(error: HelloError) -> ConnectionEndedError:
    """What a hello that cannot be used means for its connection."""
    return ConnectionEndedError(_HELLO_REASONS[error.fault], error.detail)


class HeaderMode(Enum):
    """Whether a listener's connections begin with a PROXY header. It is never guessed."""

    NONE = "off"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Door:
    """A listener, as far as its connections' stories are concerned."""

    header: HeaderMode
    trust: Trust
    tlvs: TlvTypes
    static: Identity


class Caller(NamedTuple):
    """Who is calling. `outer_name` is the SNI of the TLS connection that brought this one, if that is known."""

    identity: Identity
    source_ip: str
    outer_name: bytes | NotSent


class Intake:
    """The reading of one connection up to its hello."""

    __slots__ = (
        "_deadline",
        "_holds_slot",
        "_peer",
        "_readiness",
        "_seconds",
        "_sock",
        "_source",
        "_undecided",
        "received",
        "replay",
    )

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        readiness: Readiness,
        undecided: UndecidedCounts,
        seconds: float,
    ) -> None:
        self._sock = sock
        self._peer = peer
        self._readiness = readiness
        self._undecided = undecided
        self._seconds = seconds
        self._deadline = 0
        self._source = peer.source
        self._holds_slot = False
        self.replay = b""  # the bytes behind the PROXY header, once the hello is whole
        self.received = 0  # how many have come, whole or not

    async def caller(self, door: Door) -> Caller:
        """Who is calling, by the PROXY header or by the listener. Raises ConnectionEndedError."""
        peer = self._peer
        if door.header is HeaderMode.NONE:
            return Caller(door.static, peer.ip, NOT_SENT)
        if not door.trust.has(peer):
            raise ConnectionEndedError(
                Reason.UNTRUSTED_PEER, f"{peer.source} is not among the listener's trusted_peers"
            )
        header = await self._proxy_header()
        try:
            established = establish(header, door.tlvs, door.static)
        except IdentityError as error:
            raise ConnectionEndedError(Reason.BAD_PROXY_HEADER, str(error)) from None
        source_ip = _plain_ip(header.source.ip) if isinstance(header.source, SocketAddress) else peer.ip
        self._count_by(source_ip or peer.source)
        return Caller(established.principal, source_ip, established.requested_server_name)

    async def _proxy_header(self) -> ProxyHeader:
        data = b""
        while True:
            chunk = self._receive()
            if chunk is None:
                chunk = await self._next()
            if not chunk:
                raise ConnectionEndedError(Reason.CLIENT_CLOSED, _closed_early(data, "PROXY header"))
            data += chunk
            await turn()
            try:
                header = read_proxy_header(data)
            except ProxyHeaderError as error:
                raise ConnectionEndedError(Reason.BAD_PROXY_HEADER, str(error)) from None
            if header is not NEED_MORE:
                self.replay = data[header.size :]
                self.received = len(self.replay)
                return header

    async def client_hello(self, limit: int) -> ClientHello:
        """The ClientHello, of at most `limit` bytes. Raises ConnectionEndedError."""
        reader = ClientHelloReader(limit)
        try:
            hello = reader.feed(self.replay) if self.replay else NEED_MORE
            if hello is NEED_MORE:
                hello = await self._rest_of_hello(reader)
        except HelloError as error:
            raise refused_hello(error) from None
        return hello

    async def _rest_of_hello(self, reader: ClientHelloReader) -> ClientHello:
        """The hello, of which what has come so far is not all."""
        read = bytearray(self.replay)
        while True:
            chunk = self._receive()
            if chunk is None:
                chunk = await self._next()
            if not chunk:
                reader.close()
            self.received += len(chunk)
            read += chunk
            await turn()
            hello = reader.feed(chunk)
            if hello is not NEED_MORE:
                self.replay = bytes(read)
                return hello

    def _receive(self) -> bytes | None:
        """What has come already: bytes, b"" for the end, or None for nothing yet."""
        try:
            return self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            detail = f"the client reset the connection: {error.strerror}"
            raise ConnectionEndedError(Reason.CLIENT_CLOSED, detail) from None

    async def _next(self) -> bytes:
        """What comes next, within the time of the hello; b"" is the end."""
        self._take_slot()
        while True:
            try:
                await self._readiness.edge(self._sock.fileno(), self._deadline)
            except TimeoutError:
                detail = f"no complete ClientHello within {self._seconds:g}s"
                raise ConnectionEndedError(Reason.HELLO_TIMEOUT, detail) from None
            chunk = self._receive()
            if chunk is not None:
                return chunk

    def _take_slot(self) -> None:
        if self._holds_slot:
            return
        if not self._undecided.enter(self._source):
            detail = f"{self._source} has limits.undecided_per_source connections that wait to be judged"
            raise ConnectionEndedError(Reason.CONNECTION_LIMIT, detail)
        self._holds_slot = True
        # One deadline for PROXY header and hello together.
        self._deadline = self._deadline or self._readiness.timers.after(self._seconds)

    def take_replay(self) -> bytes:
        """The bytes to replay to the upstream; they are the caller's from here on, and kept no longer."""
        replay, self.replay = self.replay, b""
        return replay

    def _count_by(self, source: str) -> None:
        """From here on the connection counts for the client behind the trusted peer, and no more for the peer."""
        self.release()
        self._source = source

    def release(self) -> None:
        """The connection is judged, or over: give its slot back."""
        if self._holds_slot:
            self._holds_slot = False
            self._undecided.leave(self._source)


def _closed_early(data: bytes, what: str) -> str:
    return (
        f"the client closed after {len(data)} bytes of the {what}" if data else f"the client closed before its {what}"
    )


def _plain_ip(ip: str) -> str:
    """An IPv4-mapped address as the IPv4 address that rules are written for."""
    if not ip.startswith("::ffff:"):
        return ip
    mapped = IPv6Address(ip).ipv4_mapped
    return ip if mapped is None else str(mapped)
