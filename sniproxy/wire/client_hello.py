"""The ClientHello: the handshake message, and the server name in it.

`parse_client_hello` turns one whole handshake message into a `ClientHello`; `ClientHello.server_name` gives the name to
decide on, or says why there is none. The records that carry the message are those of `hello_records`.

The server behind must see the same name that we saw, and we never hear what it saw. So every field on the way
to the name is read strictly, by the letter of the RFC and never more kindly than OpenSSL: each vector fills
its space exactly, no extension comes twice, the name list holds one host name and nothing else. What two
readers could take in two ways is refused. Fields that lead nowhere (cipher suites, key shares) are stepped
over unread.

This file knows no socket, clock, log or configuration.
"""

import struct
from enum import Enum
from typing import TYPE_CHECKING, Final

from sniproxy.memo import Memo
from sniproxy.names import InvalidNameError, NameFault, ServerName, parse_server_name
from sniproxy.value import Value
from sniproxy.wire.u16 import u16

if TYPE_CHECKING:
    # The integer of a register, where this is compiled; there is nothing to import where it is not.
    from mypy_extensions import i64

# RFC 8446 section 4, the handshake message.
CLIENT_HELLO: Final = 1
MESSAGE_HEADER: Final = 4

# https://www.iana.org/assignments/tls-extensiontype-values
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_SUPPORTED_VERSIONS: Final = 43
_ENCRYPTED_CLIENT_HELLO: Final = 0xFE0D

_BITS: Final = 62  # of an i64 that has no sign

_HOST_NAME: Final = 0  # RFC 6066 section 3, NameType
_MAX_HOST_NAME: Final = 255  # OpenSSL's TLSEXT_MAXLEN_host_name: the longest DNS name there is

_VERSION_NAMES: Final = {
    0x0300: "SSLv3",
    0x0301: "TLSv1.0",
    0x0302: "TLSv1.1",
    0x0303: "TLSv1.2",
    0x0304: "TLSv1.3",
}

_LEGACY_VERSION_AT: Final = MESSAGE_HEADER
_SESSION_ID_AT: Final = _LEGACY_VERSION_AT + 2 + 32  # behind the version and the random
_NAME_AT: Final = 5  # in a server_name extension: behind the list's length, and the name's type and length


class HelloFault(Enum):
    """What is wrong with a ClientHello, for a program; HelloError.detail is for a person."""

    NOT_TLS = "the connection does not begin with a TLS handshake"
    SSLV2 = "the ClientHello is in SSL 2.0 format"
    TRUNCATED = "the connection ended before the ClientHello did"
    TOO_LARGE = "the ClientHello is larger than the limit"
    MALFORMED = "the ClientHello breaks the rules of TLS"
    NO_SNI = "the ClientHello names no server"
    DUPLICATE_SNI = "the ClientHello names more than one server"
    SNI_IS_IP = "the server name is an IP address"
    INVALID_SNI = "the server name is not a DNS host name"


class HelloError(ValueError):
    """The bytes are no ClientHello, or none with a usable server name. The fault is the client's.

    `detail` is one sentence made of the facts at hand, bounded in length and safe to log.
    """

    def __init__(self, fault: HelloFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail


def malformed(detail: str) -> HelloError:
    """The error of bytes that break the rules of TLS."""
    return HelloError(HelloFault.MALFORMED, detail)


class NoServerName(Enum):
    """Why a well-formed ClientHello has no server name."""

    NO_EXTENSIONS = "the ClientHello has no extensions, so no server_name"
    NO_EXTENSION = "the ClientHello has no server_name extension"


class ClientHello(Value):
    """What the client says before anyone answers.

    raw_server_name: the host_name of the server_name extension as sent, 1 to 255 bytes, or why there is none.
    legacy_version: the field of that name; the truth only where supported_versions is absent.
    supported_versions: the offered versions in the client's order, without GREASE.
    alpn: the offered protocols without GREASE, printable ASCII; those within the extension's first 256 bytes.
    ech: there is an encrypted_client_hello extension, real or GREASE; the two are made to look alike.
    """

    __slots__ = ("alpn", "ech", "legacy_version", "raw_server_name", "supported_versions")

    def __init__(
        self,
        raw_server_name: bytes | NoServerName,
        legacy_version: int,
        supported_versions: tuple[int, ...],
        alpn: tuple[str, ...],
        *,
        ech: bool,
    ) -> None:
        self.raw_server_name: Final = raw_server_name
        self.legacy_version: Final = legacy_version
        self.supported_versions: Final = supported_versions
        self.alpn: Final = alpn
        self.ech: Final = ech

    def fields(self) -> tuple[object, ...]:
        return self.raw_server_name, self.legacy_version, self.supported_versions, self.alpn, self.ech

    def server_name(self) -> ServerName:
        """The name to decide on. Raises HelloError: NO_SNI, SNI_IS_IP or INVALID_SNI."""
        raw = self.raw_server_name
        if isinstance(raw, NoServerName):
            raise HelloError(HelloFault.NO_SNI, raw.value)
        try:
            return parse_server_name(raw)
        except InvalidNameError as error:
            fault = HelloFault.SNI_IS_IP if error.fault is NameFault.IP_ADDRESS else HelloFault.INVALID_SNI
            raise HelloError(fault, f"the server name {error}") from None

    @property
    def tls_version(self) -> str:
        """The highest version offered: "TLSv1.3"; "0x0305" for one without a name, "0x0000" for GREASE alone."""
        return _highest_versions.of(self.supported_versions)


def _highest_version(versions: tuple[int, ...]) -> str:
    highest = max(versions, default=0)
    return _VERSION_NAMES.get(highest) or f"0x{highest:04x}"


_highest_versions: Final = Memo(_highest_version, 256)  # as for _offered_versions


def parse_client_hello(message: bytes) -> ClientHello:
    """The ClientHello in `message`, one whole handshake message with its four-byte header.

    Raises HelloError: MALFORMED, DUPLICATE_SNI, or INVALID_SNI for a name too long to be one.
    """
    # Reading past the end raises, since `message` is exact: as strict as a check before each field, and cheaper.
    try:
        return _parse_message(message)
    except IndexError:
        raise malformed("the ClientHello ends in the middle of a field") from None


def _parse_message(message: bytes) -> ClientHello:
    length = message[1] << 16 | u16(message, 2)
    if message[0] != CLIENT_HELLO or length != len(message) - MESSAGE_HEADER:
        raise malformed("the handshake header does not fit the message behind it")
    legacy_version = u16(message, _LEGACY_VERSION_AT)
    start = _find_extensions(message)
    if start == len(message):  # RFC 5246 section 7.4.1.2: extensions are there if bytes follow the compression methods
        return ClientHello(NoServerName.NO_EXTENSIONS, legacy_version, (legacy_version,), (), ech=False)
    server_name, alpn, versions, ech = _locate_bodies(message, start)
    return ClientHello(
        _server_name(_body(message, server_name)) if server_name else NoServerName.NO_EXTENSION,
        legacy_version,
        _offered_versions.of(_body(message, versions)) if versions else (legacy_version,),
        _alpn(_body(message, alpn)) if alpn else (),
        ech=ech > 0,
    )


def _find_extensions(message: bytes) -> int:
    """Where the extensions begin: past legacy_session_id, cipher_suites and compression_methods."""
    session_id_length = message[_SESSION_ID_AT]
    if session_id_length > 32:  # RFC 8446 section 4.1.2: legacy_session_id<0..32>
        raise malformed(f"the session id has {session_id_length} bytes, and 32 are the most")
    at = _SESSION_ID_AT + 1 + session_id_length
    cipher_suites = u16(message, at)
    if not cipher_suites or cipher_suites % 2:  # section 4.1.2: CipherSuite cipher_suites<2..2^16-2>, two bytes each
        raise malformed(f"the cipher suites have {cipher_suites} bytes, and must have a positive even number")
    at += 2 + cipher_suites
    compression_methods = message[at]
    if not compression_methods:  # section 4.1.2: legacy_compression_methods<1..2^8-1>
        raise malformed("the list of compression methods is empty")
    at += 1 + compression_methods
    if at > len(message):
        raise malformed("the compression methods reach past the end of the ClientHello")
    return at


def _locate_bodies(message: bytes, start: int) -> tuple[int, int, int, int]:  # noqa: C901 - see below
    """Where the bodies of server_name, ALPN, supported_versions and encrypted_client_hello begin; 0 where one is not.

    The length of a body stands in the two bytes before it. The hot loop of this file, as bare as it can be: a client
    sends a dozen extensions, an attacker 16,000.
    """
    end: i64 = len(message)
    at: i64 = start + 2
    if at + u16(message, start) != end:
        raise malformed("the extensions do not end where the ClientHello does")
    server_name: i64 = 0
    alpn: i64 = 0
    versions: i64 = 0
    ech: i64 = 0
    common: i64 = 0  # the types so far: a bit for each of the low ones, which is nearly all that there are
    others: set[int] | None = None
    while at < end:
        kind: i64 = message[at] << 8 | message[at + 1]
        length: i64 = message[at + 2] << 8 | message[at + 3]
        if kind < _BITS:
            is_again = common >> kind & 1 > 0
            common |= 1 << kind
        else:
            if others is None:
                others = set()
            is_again = kind in others
            others.add(kind)
        if is_again:  # RFC 8446 section 4.2: no more than one of each type. Readers differ in which they take
            raise _duplicate(kind)
        at += 4
        if kind == _SERVER_NAME:
            server_name = at
        elif kind == _ALPN:
            alpn = at
        elif kind == _SUPPORTED_VERSIONS:
            versions = at
        elif kind == _ENCRYPTED_CLIENT_HELLO:
            ech = at
        at += length
    if at != end:
        raise malformed("an extension reaches past the end of the ClientHello")
    return server_name, alpn, versions, ech


def _body(message: bytes, at: int) -> bytes:
    return message[at : at + u16(message, at - 2)]


def _server_name(body: bytes) -> bytes:
    """The one host_name in a server_name extension (RFC 6066 section 3).

    OpenSSL takes a list of one host_name and refuses all else. So do we: no other name type was ever defined,
    and a reader that skips one and a reader that does not will disagree.
    """
    if len(body) < _NAME_AT:
        raise malformed(f"the server_name extension has {len(body)} bytes, too few for a name")
    name_length = u16(body, 3)
    name = body[_NAME_AT:]
    if u16(body, 0) != len(body) - 2:
        raise malformed("the server name list does not fill its extension")
    if body[2] != _HOST_NAME:
        raise malformed(f"the server name is of type {body[2]}, and only host_name (0) exists")
    if name_length != len(name):
        raise _not_one_name(name, name_length)
    if not name:  # section 3: opaque HostName<1..2^16-1>
        raise malformed("the server name is empty")
    if len(name) > _MAX_HOST_NAME:
        raise HelloError(HelloFault.INVALID_SNI, f"the server name has {len(name)} bytes, and a DNS name 255 at most")
    return name


def _not_one_name(names: bytes, first_length: int) -> HelloError:
    """Why `names` is not one name of `first_length` bytes: there is another entry, or a wrong length."""
    if names[first_length : first_length + 1] == bytes((_HOST_NAME,)):  # section 3: one name of each type at most
        return HelloError(HelloFault.DUPLICATE_SNI, "the server_name extension holds more than one host name")
    return malformed("the server name does not fill its list")


def _versions(body: bytes) -> tuple[int, ...]:
    """The versions in a supported_versions extension (RFC 8446 section 4.2.1), without GREASE."""
    length = body[0]
    if length != len(body) - 1 or not length or length % 2:  # ProtocolVersion versions<2..254>, two bytes each
        raise malformed("the supported_versions extension is not a list of versions")
    versions = struct.unpack_from(f"!{length // 2}H", body, 1)
    return tuple(version for version in versions if not _is_grease(version))


_offered_versions: Final = Memo(_versions, 256)  # clients send a handful of offers; the length byte bounds a key


def _is_grease(value: int) -> bool:
    """RFC 8701 section 2: 0x0A0A, 0x1A1A ... 0xFAFA are offered to be ignored."""
    return value & 0x0F0F == 0x0A0A and value >> 8 == value & 0xFF


_ALPN_REPORTED: Final = 256  # bytes of the extension: what is kept of an offer is bounded, for it lives in the log


def _alpn(body: bytes) -> tuple[str, ...]:
    return _common_alpn.of(body) if len(body) <= 64 else _parse_alpn(body)


def _parse_alpn(body: bytes) -> tuple[str, ...]:
    """The protocols in an application_layer_protocol_negotiation extension (RFC 7301 section 3.1)."""
    end = len(body)
    if u16(body, 0) != end - 2 or end == 2:  # ProtocolName protocol_name_list<2..2^16-1>
        raise malformed("the ALPN extension is not a list of protocols")
    protocols = []
    at = 2
    while at < end:
        start, at = at + 1, at + 1 + body[at]
        if at == start or at > end:  # opaque ProtocolName<1..2^8-1>
            raise malformed("an ALPN protocol is empty or reaches past the end of its list")
        if at <= _ALPN_REPORTED and not _is_grease_protocol(body[start:at]):
            protocols.append(_printable(body[start:at]))
    return tuple(protocols)


_common_alpn: Final = Memo(_parse_alpn, 256)  # of short offers only, so that a client cannot make it large


def _is_grease_protocol(name: bytes) -> bool:
    """RFC 8701 section 2: the two-byte names 0A0A, 1A1A ... FAFA."""
    return len(name) == 2 and _is_grease(u16(name, 0))


def _printable(name: bytes) -> str:
    """`name` in printable ASCII, other bytes escaped: RFC 7301 allows any byte, a line of a log does not."""
    return name.decode("latin-1").encode("unicode_escape").decode("ascii")


def _duplicate(kind: int) -> HelloError:
    if kind == _SERVER_NAME:
        return HelloError(HelloFault.DUPLICATE_SNI, "the ClientHello has more than one server_name extension")
    return malformed(f"the ClientHello has more than one extension of type {kind}")
