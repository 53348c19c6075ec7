"""Intake: the first bytes of a connection, until they say who calls and what for.

Reads the PROXY header where the listener requires one, then the ClientHello, and keeps every byte behind the header
to be replayed to the upstream. A connection whose bytes are all there, which is nearly every one, never waits and is
never counted; one that has to wait takes an undecided slot of its source, and gives it back when it is judged.
"""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address
from typing import Final

from sniproxy.identity.evidence import IdentityError, TlvTypes, establish
from sniproxy.identity.spiffe import Identity
from sniproxy.net.calls import Socket
from sniproxy.net.listener import Peer, Trust
from sniproxy.net.readiness import Readiness
from sniproxy.observe.scoreboard import UndecidedCounts
from sniproxy.outcome import ConnectionEndedError, Reason
from sniproxy.value import Value
from sniproxy.wire.client_hello import ClientHello, HelloError, HelloFault
from sniproxy.wire.hello_records import ClientHelloReader, read_whole_client_hello
from sniproxy.wire.need_more import NEED_MORE, NeedMore
from sniproxy.wire.proxy_protocol import (
    NOT_SENT,
    NoAddress,
    NotSent,
    ProxyHeaderError,
    read_proxy_header,
)

# One read. A hello with post-quantum key shares has about 1,800 bytes; larger ones take another turn.
_READ_SIZE: Final = 16 * 1024

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


class Caller(Value):
    """Who is calling. `outer_name` is the SNI of the TLS connection that brought this one, if that is known."""

    __slots__ = ("identity", "outer_name", "source_ip")

    def __init__(self, identity: Identity, source_ip: str, outer_name: bytes | NotSent) -> None:
        self.identity: Final = identity
        self.source_ip: Final = source_ip
        self.outer_name: Final = outer_name

    def fields(self) -> tuple[object, ...]:
        return self.identity, self.source_ip, self.outer_name


class Intake:
    """The reading of one connection up to its hello: a buffer, and what can be read from it so far.

    Ask `caller`, then `client_hello`; as long as either answers NEED_MORE, await `more`.
    """

    __slots__ = (
        "_behind_header",
        "_deadline",
        "_ended",
        "_holds_slot",
        "_peer",
        "_reader",
        "_readiness",
        "_seconds",
        "_sock",
        "_source",
        "_undecided",
        "_unread",
        "replay",
    )

    def __init__(
        self,
        sock: Socket,
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
        self._ended = False
        self._behind_header = False
        self._reader: ClientHelloReader | None = None
        self._unread = b""  # what has come and has not been looked at, or makes no whole header yet
        self.replay: bytes | bytearray = b""  # the bytes behind the PROXY header that have been looked at

    @property
    def received(self) -> int:
        """How many bytes have come from behind the PROXY header."""
        return len(self.replay) + len(self._unread) if self._behind_header else 0

    @property
    def head(self) -> bytes:
        """What goes upstream first."""
        return self.replay if isinstance(self.replay, bytes) else bytes(self.replay)

    def begin(self) -> None:
        """Take what came with the connection: nearly always all there is to come. Raises ConnectionEndedError."""
        chunk = self._receive()
        if chunk is not None:
            self._unread = chunk
            self._ended = not chunk

    def caller(self, door: Door) -> Caller | NeedMore:
        """Who is calling, by the PROXY header or by the listener. Raises ConnectionEndedError."""
        peer = self._peer
        if door.header is HeaderMode.NONE:
            self._behind_header = True
            return Caller(door.static, peer.ip, NOT_SENT)
        if not door.trust.has(peer):
            raise ConnectionEndedError(
                Reason.UNTRUSTED_PEER, f"{peer.source} is not among the listener's trusted_peers"
            )
        try:
            header = read_proxy_header(self._unread)
        except ProxyHeaderError as malformed:
            raise ConnectionEndedError(Reason.BAD_PROXY_HEADER, str(malformed)) from None
        if header is NEED_MORE:
            return header
        self._unread = self._unread[header.size :]
        self._behind_header = True
        try:
            established = establish(header, door.tlvs, door.static)
        except IdentityError as error:
            raise ConnectionEndedError(Reason.BAD_PROXY_HEADER, str(error)) from None
        source_ip = peer.ip if isinstance(header.source, NoAddress) else _plain_ip(header.source)
        self._count_by(source_ip or peer.source)
        return Caller(established.principal, source_ip, established.requested_server_name)

    def client_hello(self, limit: int) -> ClientHello | NeedMore:
        """The ClientHello, of at most `limit` bytes. Raises ConnectionEndedError."""
        chunk, self._unread = self._unread, b""
        if self.replay:
            self.replay += chunk
        else:
            self.replay = chunk
        try:
            if self._reader is None:
                hello = read_whole_client_hello(chunk, limit)
                if hello is not NEED_MORE:
                    return hello
                self._reader = ClientHelloReader(limit)
            return self._reader.feed(chunk)
        except HelloError as error:
            raise refused_hello(error) from None

    async def more(self) -> None:
        """Wait for the next bytes, within the time of the hello. Raises ConnectionEndedError, also at the end."""
        chunk = b"" if self._ended else await self._next()
        if not chunk:
            raise self._closed_early()
        if self.replay and isinstance(self.replay, bytes):
            self.replay = bytearray(self.replay)  # it grows from here on, by one byte at a time if it must
        self._unread += chunk

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
        """What comes next; b"" is the end."""
        self._take_slot()
        chunk = self._receive()  # nobody watched the socket yet
        while chunk is None:
            try:
                await self._readiness.edge(self._sock.fileno(), self._deadline)
            except TimeoutError:
                detail = f"no complete ClientHello within {self._seconds:g}s"
                raise ConnectionEndedError(Reason.HELLO_TIMEOUT, detail) from None
            chunk = self._receive()
        return chunk

    def _closed_early(self) -> ConnectionEndedError:
        """The client has closed, and what we wait for has not come."""
        if self._reader is None:
            told = f"after {len(self._unread)} bytes of the PROXY header" if self._unread else "before its PROXY header"
            return ConnectionEndedError(Reason.CLIENT_CLOSED, f"the client closed {told}")
        try:
            self._reader.close()
        except HelloError as error:
            return refused_hello(error)

    def _take_slot(self) -> None:
        if self._holds_slot:
            return
        if not self._undecided.enter(self._source):
            detail = f"{self._source} has limits.undecided_per_source connections that wait to be judged"
            raise ConnectionEndedError(Reason.CONNECTION_LIMIT, detail)
        self._holds_slot = True
        # One deadline for PROXY header and hello together.
        self._deadline = self._deadline or self._readiness.timers.after(self._seconds)

    def _count_by(self, source: str) -> None:
        """From here on the connection counts for the client behind the trusted peer, and no more for the peer."""
        self.release()
        self._source = source

    def release(self) -> None:
        """The connection is judged, or over: give its slot back."""
        if self._holds_slot:
            self._holds_slot = False
            self._undecided.leave(self._source)


def _plain_ip(ip: str) -> str:
    """An IPv4-mapped address as the IPv4 address that rules are written for."""
    if not ip.startswith("::ffff:"):
        return ip
    mapped = IPv6Address(ip).ipv4_mapped
    return ip if mapped is None else str(mapped)
