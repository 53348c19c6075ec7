"""The PROXY protocol, versions 1 and 2: who connected to the proxy in front of us, and what it knows of them.

`read_proxy_header` takes the first bytes of a connection and gives the header, or asks for more, or refuses.
Whether a header must be there is for the configuration to say, never for these bytes: a receiver that guesses
lets any client forge an identity (section 5). `encode_proxy_header` is the inverse, for version 2.

Strict, because an identity hangs on it: unknown versions, commands and families are refused, lengths are
exact, a checksum that is there must be right. What the TLVs mean is for `sniproxy.identity` to say, and
whether to believe them is for the listener.

Section numbers are those of https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt.
"""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import takewhile
from typing import Final, NamedTuple

from sniproxy.memo import Memo
from sniproxy.value import Value
from sniproxy.wire.crc32c import crc32c
from sniproxy.wire.need_more import NEED_MORE, NeedMore
from sniproxy.wire.u16 import u16

# A version 2 header may claim 64 KiB; one with a client's certificate in it has about 2.
MAX_HEADER: Final = 16 * 1024

TYPE_CRC32C: Final = 0x03
TYPE_NOOP: Final = 0x04
TYPE_SSL: Final = 0x20
SUBTYPE_SSL_VERSION: Final = 0x21
SUBTYPE_SSL_CN: Final = 0x22
SUBTYPE_SSL_CLIENT_CERT: Final = 0x28  # the certificate in DER; newer than most copies of the specification

# Section 2.2.6, the bits of the `client` field.
CLIENT_SSL: Final = 0x01
CLIENT_CERT_CONN: Final = 0x02
CLIENT_CERT_SESS: Final = 0x04

_SERVED_HERE: Final = frozenset({TYPE_CRC32C, TYPE_NOOP})

_V1_START: Final = b"PROXY "
_V1_MAX_LINE: Final = 107  # section 2.1, CRLF included
_V1_PORT = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_V1Family = type[IPv4Address] | type[IPv6Address]
_V1_FAMILIES: Final[dict[bytes, _V1Family]] = {b"TCP4": IPv4Address, b"TCP6": IPv6Address}

_V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED = struct.Struct("!BBH")  # behind the signature: version and command, family and protocol, length
_V2_FIXED_AT: Final = 12
_V2_ADDRESSES_AT: Final = 16
_V2_LOCAL: Final = 0x20
_V2_PROXY: Final = 0x21

_UNSPEC: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNIX_STREAM: Final = 0x31
_DATAGRAMS: Final = frozenset({0x12, 0x22, 0x32})
_IP_SIZES: Final = {_TCP4: 4, _TCP6: 16}  # each of two addresses; a port of two bytes each comes behind them
_UNIX_PATHS: Final = 2 * 108  # of no use here

_TLV = struct.Struct("!BH")
_SSL = struct.Struct("!BI")  # client, verify


class ProxyHeaderError(ValueError):
    """These bytes are no PROXY protocol header that we accept; the text is one sentence that says why."""


class SocketAddress(NamedTuple):
    """One end of a TCP connection, to be encoded; `ip` is the text of an IPv4 or IPv6 address."""

    ip: str
    port: int


class NoAddress(Enum):
    """Why a header has no addresses. The connection's own are then all there is to know."""

    LOCAL = "the connection is the sender's own, a health check for instance"
    UNKNOWN = "the sender did not know or did not say"
    UNIX = "the connection came through a Unix socket"


class Tlv(NamedTuple):
    """One type-length-value vector (section 2.2)."""

    type: int
    value: bytes


class ProxyHeader(Value):
    """A header, and the `size` in bytes after which the client's own data begins.

    `source` is the canonical text of the client's IPv4 or IPv6 address; its port, and where it connected to, are
    checked for their form and not kept. A `local` header carries nothing else. `tlvs` are in the order sent, without
    the checksum and the padding, which are dealt with here. One type may come twice.
    """

    __slots__ = ("local", "size", "source", "tlvs", "version")

    def __init__(
        self, size: int, version: int, *, source: str | NoAddress, tlvs: tuple[Tlv, ...] = (), local: bool = False
    ) -> None:
        self.size: Final = size
        self.version: Final = version
        self.source: Final = source
        self.tlvs: Final = tlvs
        self.local: Final = local

    def fields(self) -> tuple[object, ...]:
        return self.size, self.version, self.source, self.tlvs, self.local


class NotSent(Enum):
    """A type of one value: the sender left this field out."""

    NOT_SENT = "not sent"


NOT_SENT: Final = NotSent.NOT_SENT


@dataclass(frozen=True, slots=True)
class SslInfo:
    """The value of a PP2_TYPE_SSL TLV (section 2.2.6); the sub-TLVs are as sent, unchecked."""

    client: int
    verify: int
    version: bytes | NotSent
    common_name: bytes | NotSent
    client_certificate: bytes | NotSent

    @property
    def certificate_verified(self) -> bool:
        """The sender has seen a client certificate over TLS, and its verification succeeded."""
        presented = self.client & CLIENT_SSL and self.client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS)
        return bool(presented) and self.verify == 0


def read_proxy_header(data: bytes) -> ProxyHeader | NeedMore:
    """The header at the start of `data`. Raises ProxyHeaderError."""
    if data.startswith(_V2_SIGNATURE):
        return _read_v2(data)
    if data.startswith(_V1_START):
        return _read_v1(data)
    if _V2_SIGNATURE.startswith(data) or _V1_START.startswith(data):
        return NEED_MORE
    raise ProxyHeaderError(f"the connection begins with {data[:12]!r}, which is no PROXY protocol header")


# ---- Version 2 (section 2.2) ----


def _read_v2(data: bytes) -> ProxyHeader | NeedMore:
    if len(data) < _V2_ADDRESSES_AT:
        return NEED_MORE
    version_and_command, family = data[_V2_FIXED_AT], data[_V2_FIXED_AT + 1]
    if version_and_command not in (_V2_PROXY, _V2_LOCAL):
        raise ProxyHeaderError(f"unknown PROXY protocol version and command 0x{version_and_command:02x}")
    size = _V2_ADDRESSES_AT + u16(data, _V2_FIXED_AT + 2)
    if size > MAX_HEADER:
        raise ProxyHeaderError(f"the PROXY header has {size} bytes, and {MAX_HEADER} are the most")
    if len(data) < size:
        return NEED_MORE
    if version_and_command == _V2_LOCAL:  # the receiver must "discard the protocol block including the family"
        return ProxyHeader(size, 2, local=True, source=NoAddress.LOCAL)
    header = data[:size]
    source, tlvs_at = _read_source(header, family)
    return ProxyHeader(size, 2, source=source, tlvs=_read_tlvs(header, tlvs_at))


def _read_source(header: bytes, family: int) -> tuple[str | NoAddress, int]:
    """The client's address, and where the TLVs begin: behind the destination's and both ports."""
    if family == _UNSPEC:
        return NoAddress.UNKNOWN, _V2_ADDRESSES_AT
    size = _IP_SIZES.get(family)
    if size is None and family != _UNIX_STREAM:
        raise _unknown_family(family)
    end = _V2_ADDRESSES_AT + (_UNIX_PATHS if size is None else 2 * size + 4)
    if len(header) < end:
        raise ProxyHeaderError("the PROXY header is too short for its addresses")
    if size is None:
        return NoAddress.UNIX, end
    return _addresses.of(header[_V2_ADDRESSES_AT : _V2_ADDRESSES_AT + size]), end


def _unknown_family(family: int) -> ProxyHeaderError:
    if family in _DATAGRAMS:
        return ProxyHeaderError(f"the PROXY header is for datagrams (0x{family:02x}), and TLS runs on streams")
    return ProxyHeaderError(f"unknown PROXY address family and protocol 0x{family:02x}")


def _address_text(packed: bytes) -> str:
    return str(ip_address(packed))


_addresses: Final = Memo(_address_text, 4096)  # the same workloads connect again and again


def _read_tlvs(header: bytes, start: int) -> tuple[Tlv, ...]:
    block = header[start:]
    all_of_them = _common_tlvs.of(block) if len(block) <= _COMMON_BLOCK else _split_tlvs(block)
    if any(kind in _SERVED_HERE for kind, _ in all_of_them):
        return _serve_tlvs(header, start, all_of_them)
    return all_of_them


def _serve_tlvs(header: bytes, start: int, tlvs: tuple[Tlv, ...]) -> tuple[Tlv, ...]:
    """The TLVs that are left when the checksum is verified and the padding dropped."""
    if any(tlv.type == TYPE_CRC32C for tlv in tlvs):
        _verify_checksum(header, start, tlvs)
    return tuple(tlv for tlv in tlvs if tlv.type not in _SERVED_HERE)


def _split_tlvs(block: bytes) -> tuple[Tlv, ...]:
    """The vectors that fill `block` exactly."""
    at, end = 0, len(block)
    tlvs = []
    while at < end:
        if end - at < _TLV.size:
            raise ProxyHeaderError("the PROXY header ends in the middle of a TLV")
        kind, length = _TLV.unpack_from(block, at)
        start = at + _TLV.size
        at = start + length
        if at > end:
            raise ProxyHeaderError(f"the TLV of type 0x{kind:02x} reaches past the end of its block")
        tlvs.append(Tlv(kind, block[start:at]))
    return tuple(tlvs)


# A workload sends the same identity with each of its connections. The bound is on what the cache can come to hold.
_COMMON_BLOCK: Final = 512
_common_tlvs: Final = Memo(_split_tlvs, 2048)


def _verify_checksum(header: bytes, tlvs_at: int, tlvs: tuple[Tlv, ...]) -> None:
    """Section 2.2.3: the checksum is of the whole header, with its own four bytes at zero."""
    checksums = [tlv.value for tlv in tlvs if tlv.type == TYPE_CRC32C]
    if len(checksums) != 1 or len(checksums[0]) != 4:
        raise ProxyHeaderError("the PROXY header needs exactly one checksum, of four bytes")
    before = takewhile(lambda tlv: tlv.type != TYPE_CRC32C, tlvs)
    at = tlvs_at + sum(_TLV.size + len(tlv.value) for tlv in before) + _TLV.size
    if crc32c(header[:at] + bytes(4) + header[at + 4 :]) != int.from_bytes(checksums[0], "big"):
        raise ProxyHeaderError("the checksum of the PROXY header is wrong")


def parse_ssl_tlv(value: bytes) -> SslInfo:
    """The value of a PP2_TYPE_SSL TLV. Raises ProxyHeaderError, also for a sub-TLV that comes twice."""
    if len(value) < _SSL.size:
        raise ProxyHeaderError(f"the PP2_TYPE_SSL TLV has {len(value)} bytes, and {_SSL.size} are the fewest")
    client, verify = _SSL.unpack_from(value)
    tlvs = _split_tlvs(value[_SSL.size :])
    fields = dict(tlvs)
    if len(fields) != len(tlvs):
        raise ProxyHeaderError("the PP2_TYPE_SSL TLV has two sub-TLVs of one type")
    return SslInfo(
        client,
        verify,
        fields.get(SUBTYPE_SSL_VERSION, NOT_SENT),
        fields.get(SUBTYPE_SSL_CN, NOT_SENT),
        fields.get(SUBTYPE_SSL_CLIENT_CERT, NOT_SENT),
    )


# ---- Version 2, the sender's side ----


def encode_proxy_header(
    source: SocketAddress | NoAddress,
    destination: SocketAddress | NoAddress,
    tlvs: Iterable[Tlv] = (),
    *,
    checksum: bool = False,
) -> bytes:
    """A version 2 header: PROXY for two TCP addresses of one family, and for NoAddress what it says.

    With `checksum`, a CRC32C TLV comes last. Raises ValueError for addresses that do not go together.
    """
    command = _V2_LOCAL if source is NoAddress.LOCAL else _V2_PROXY
    family, addresses = _encode_addresses(source, destination)
    block = addresses + encode_tlvs(tlvs)
    if not checksum:
        return _V2_SIGNATURE + _V2_FIXED.pack(command, family, len(block)) + block
    block += encode_tlvs([Tlv(TYPE_CRC32C, bytes(4))])
    unsigned = _V2_SIGNATURE + _V2_FIXED.pack(command, family, len(block)) + block
    return unsigned[:-4] + crc32c(unsigned).to_bytes(4, "big")


def _encode_addresses(source: SocketAddress | NoAddress, destination: SocketAddress | NoAddress) -> tuple[int, bytes]:
    """The family and protocol byte, and the address block."""
    if isinstance(source, NoAddress) or isinstance(destination, NoAddress):
        if source is not destination:
            raise ValueError(f"one address without the other: {source}, {destination}")
        return (_UNIX_STREAM, bytes(_UNIX_PATHS)) if source is NoAddress.UNIX else (_UNSPEC, b"")
    source_ip, destination_ip = ip_address(source.ip), ip_address(destination.ip)
    if source_ip.version != destination_ip.version:
        raise ValueError(f"addresses of two families: {source.ip}, {destination.ip}")
    family = _TCP4 if source_ip.version == 4 else _TCP6
    ports = struct.pack("!HH", source.port, destination.port)
    return family, source_ip.packed + destination_ip.packed + ports


def encode_tlvs(tlvs: Iterable[Tlv]) -> bytes:
    """TLVs as they stand in a header or in the value of a PP2_TYPE_SSL."""
    return b"".join(_TLV.pack(kind, len(value)) + value for kind, value in tlvs)


def encode_ssl_tlv(client: int, verify: int, sub_tlvs: Iterable[Tlv] = ()) -> Tlv:
    """A PP2_TYPE_SSL TLV."""
    return Tlv(TYPE_SSL, _SSL.pack(client, verify) + encode_tlvs(sub_tlvs))


# ---- Version 1 (section 2.1) ----


def _read_v1(data: bytes) -> ProxyHeader | NeedMore:
    end = data.find(b"\n", 0, _V1_MAX_LINE)
    if end < 0 and len(data) < _V1_MAX_LINE:
        return NEED_MORE
    if end < 0 or data[end - 1 : end] != b"\r":
        raise ProxyHeaderError(f"the PROXY line does not end in CRLF within {_V1_MAX_LINE} bytes")
    protocol, _, rest = data[len(_V1_START) : end - 1].partition(b" ")
    if protocol == b"UNKNOWN":  # "the receiver must ignore anything presented before the CRLF is found"
        return ProxyHeader(end + 1, 1, source=NoAddress.UNKNOWN)
    family = _V1_FAMILIES.get(protocol)
    if family is None:
        raise ProxyHeaderError(f"unknown PROXY protocol {protocol!r}: not TCP4, TCP6 or UNKNOWN")
    return ProxyHeader(end + 1, 1, source=_read_v1_source(rest, family))


def _read_v1_source(text: bytes, family: _V1Family) -> str:
    """The client's address. What stands behind it must have its form, too."""
    fields = text.decode("ascii", "replace").split(" ")
    if len(fields) != 4:
        raise ProxyHeaderError(f"the PROXY line has {len(fields)} fields behind its protocol, not 4")
    source, destination, source_port, destination_port = fields
    for port in (source_port, destination_port):
        _check_v1_port(port)
    _v1_address(destination, family)
    return _v1_address(source, family)


def _v1_address(text: str, family: _V1Family) -> str:
    """The canonical form. `ipaddress` refuses leading zeros and signs; it allows a zone, and we do not."""
    try:
        address = family(text)
    except ValueError:
        address = None
    if address is None or "%" in text:
        raise ProxyHeaderError(f"{text!r} in the PROXY line is no address of its family")
    return str(address)


def _check_v1_port(text: str) -> None:
    if not _V1_PORT.fullmatch(text) or int(text) > 65535:
        raise ProxyHeaderError(f"{text!r} in the PROXY line is no port")
