"""The TLS ClientHello: the records that carry it, the message, and the server name in it.

Three layers, each a page:

- `ClientHelloReader` puts the handshake message together from TLS records, however the client cut them and
  TCP cut those again. It raises as soon as a byte is seen that no ClientHello can have there.
- `parse_client_hello` turns one whole handshake message into a `ClientHello`.
- `ClientHello.server_name` gives the name to decide on, or says why there is none.

The server behind must see the same name that we saw, and we never hear what it saw. So every field on the way
to the name is read strictly, by the letter of the RFC and never more kindly than OpenSSL: each vector fills
its space exactly, no extension comes twice, the name list holds one host name and nothing else. What two
readers could take in two ways is refused. Fields that lead nowhere (cipher suites, key shares) are stepped
over unread.

The time is linear in the bytes fed, however small the pieces; the memory is bounded by the limit. This file
knows no socket, clock, log or configuration.
"""

import struct
from enum import Enum
from typing import TYPE_CHECKING, Final, NoReturn

from sniproxy.memo import Memo
from sniproxy.names import InvalidNameError, NameFault, ServerName, parse_server_name
from sniproxy.value import Value
from sniproxy.wire.need_more import NEED_MORE, NeedMore
from sniproxy.wire.u16 import u16

if TYPE_CHECKING:
    # The integer of a register, where this is compiled; there is nothing to import where it is not.
    from mypy_extensions import i64

# RFC 8446 section 5.1, the record layer.
_HANDSHAKE: Final = 22
_RECORD_HEADER: Final = 5
_MAX_FRAGMENT: Final = 2**14
_MAJOR_VERSION: Final = 3  # of every record from SSL 3.0 to TLS 1.3

# RFC 8446 section 4, the handshake message.
_CLIENT_HELLO: Final = 1
_MESSAGE_HEADER: Final = 4

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

_LEGACY_VERSION_AT: Final = _MESSAGE_HEADER
_SESSION_ID_AT: Final = _LEGACY_VERSION_AT + 2 + 32  # behind the version and the random
_NAME_AT: Final = 5  # in a server_name extension: behind the list's length, and the name's type and length

# What else arrives on a TLS port, by its first bytes.
_FOREIGN = {
    b"PROXY": "a PROXY protocol header, which this listener does not expect",
    b"\r\n\r\n\x00": "a PROXY protocol header, which this listener does not expect",
    b"SSH-2": "SSH",
    **dict.fromkeys(
        (b"GET /", b"POST ", b"PUT /", b"HEAD ", b"DELET", b"OPTIO", b"PATCH", b"TRACE", b"CONNE", b"PRI *"),
        "plain HTTP",
    ),
}


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


# ---- The message ----


def parse_client_hello(message: bytes) -> ClientHello:
    """The ClientHello in `message`, one whole handshake message with its four-byte header.

    Raises HelloError: MALFORMED, DUPLICATE_SNI, or INVALID_SNI for a name too long to be one.
    """
    # Reading past the end raises, since `message` is exact: as strict as a check before each field, and cheaper.
    try:
        return _parse_message(message)
    except IndexError:
        raise _malformed("the ClientHello ends in the middle of a field") from None


def _parse_message(message: bytes) -> ClientHello:
    length = message[1] << 16 | u16(message, 2)
    if message[0] != _CLIENT_HELLO or length != len(message) - _MESSAGE_HEADER:
        raise _malformed("the handshake header does not fit the message behind it")
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
        raise _malformed(f"the session id has {session_id_length} bytes, and 32 are the most")
    at = _SESSION_ID_AT + 1 + session_id_length
    cipher_suites = u16(message, at)
    if not cipher_suites or cipher_suites % 2:  # section 4.1.2: CipherSuite cipher_suites<2..2^16-2>, two bytes each
        raise _malformed(f"the cipher suites have {cipher_suites} bytes, and must have a positive even number")
    at += 2 + cipher_suites
    compression_methods = message[at]
    if not compression_methods:  # section 4.1.2: legacy_compression_methods<1..2^8-1>
        raise _malformed("the list of compression methods is empty")
    at += 1 + compression_methods
    if at > len(message):
        raise _malformed("the compression methods reach past the end of the ClientHello")
    return at


def _locate_bodies(message: bytes, start: int) -> tuple[int, int, int, int]:  # noqa: C901 - see below
    """Where the bodies of server_name, ALPN, supported_versions and encrypted_client_hello begin; 0 where one is not.

    The length of a body stands in the two bytes before it. The hot loop of this file, as bare as it can be: a client
    sends a dozen extensions, an attacker 16,000.
    """
    end: i64 = len(message)
    at: i64 = start + 2
    if at + u16(message, start) != end:
        raise _malformed("the extensions do not end where the ClientHello does")
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
        raise _malformed("an extension reaches past the end of the ClientHello")
    return server_name, alpn, versions, ech


def _body(message: bytes, at: int) -> bytes:
    return message[at : at + u16(message, at - 2)]


def _server_name(body: bytes) -> bytes:
    """The one host_name in a server_name extension (RFC 6066 section 3).

    OpenSSL takes a list of one host_name and refuses all else. So do we: no other name type was ever defined,
    and a reader that skips one and a reader that does not will disagree.
    """
    if len(body) < _NAME_AT:
        raise _malformed(f"the server_name extension has {len(body)} bytes, too few for a name")
    name_length = u16(body, 3)
    name = body[_NAME_AT:]
    if u16(body, 0) != len(body) - 2:
        raise _malformed("the server name list does not fill its extension")
    if body[2] != _HOST_NAME:
        raise _malformed(f"the server name is of type {body[2]}, and only host_name (0) exists")
    if name_length != len(name):
        raise _not_one_name(name, name_length)
    if not name:  # section 3: opaque HostName<1..2^16-1>
        raise _malformed("the server name is empty")
    if len(name) > _MAX_HOST_NAME:
        raise HelloError(HelloFault.INVALID_SNI, f"the server name has {len(name)} bytes, and a DNS name 255 at most")
    return name


def _not_one_name(names: bytes, first_length: int) -> HelloError:
    """Why `names` is not one name of `first_length` bytes: there is another entry, or a wrong length."""
    if names[first_length : first_length + 1] == bytes((_HOST_NAME,)):  # section 3: one name of each type at most
        return HelloError(HelloFault.DUPLICATE_SNI, "the server_name extension holds more than one host name")
    return _malformed("the server name does not fill its list")


def _versions(body: bytes) -> tuple[int, ...]:
    """The versions in a supported_versions extension (RFC 8446 section 4.2.1), without GREASE."""
    length = body[0]
    if length != len(body) - 1 or not length or length % 2:  # ProtocolVersion versions<2..254>, two bytes each
        raise _malformed("the supported_versions extension is not a list of versions")
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
        raise _malformed("the ALPN extension is not a list of protocols")
    protocols = []
    at = 2
    while at < end:
        start, at = at + 1, at + 1 + body[at]
        if at == start or at > end:  # opaque ProtocolName<1..2^8-1>
            raise _malformed("an ALPN protocol is empty or reaches past the end of its list")
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
    return _malformed(f"the ClientHello has more than one extension of type {kind}")


def _malformed(detail: str) -> HelloError:
    return HelloError(HelloFault.MALFORMED, detail)


# ---- The records ----


def read_whole_client_hello(data: bytes, limit: int) -> ClientHello | NeedMore:
    """The ClientHello, if `data` begins with one record that holds all of it, as nearly every connection does.

    NEED_MORE leaves the rest, and what is wrong, to a `ClientHelloReader`. Raises HelloError.
    """
    message = _whole_message(data, limit)
    return parse_client_hello(message) if message else NEED_MORE


class ClientHelloReader:
    """Takes the downstream's first bytes as they come, until they make a ClientHello.

    `limit` is where the hello must end at the latest, in bytes from the start, record headers included. After
    a ClientHello or a HelloError the reader is spent. Records behind the hello (early data, ChangeCipherSpec)
    are not looked at: the caller has all the bytes, and `hello_retry` sees to what goes upstream of them.
    """

    __slots__ = ("_fragment_left", "_limit", "_message", "_message_size", "_record_header", "received")

    def __init__(self, limit: int) -> None:
        self.received = 0  # bytes of the hello so far, record headers included
        self._limit = limit
        self._record_header = bytearray()  # of the record that is beginning
        self._fragment_left = 0  # bytes of the record under way that are still to come
        self._message = bytearray()
        self._message_size = 0  # 0 while the handshake header is incomplete

    def feed(self, data: bytes | memoryview) -> ClientHello | NeedMore:
        """The ClientHello, once `data` completes it. Raises HelloError as soon as it cannot become one."""
        if not self.received and (message := _whole_message(bytes(data), self._limit)):
            self.received = _RECORD_HEADER + len(message)
            return parse_client_hello(message)
        return self._assemble(memoryview(data))

    def close(self) -> NoReturn:
        """The downstream has closed, and there is no ClientHello yet: raises HelloError TRUNCATED."""
        if not self.received:
            raise HelloError(HelloFault.TRUNCATED, "the client closed without sending a byte")
        raise HelloError(HelloFault.TRUNCATED, f"the client closed after {self.received} bytes of its ClientHello")

    def _assemble(self, data: memoryview) -> ClientHello | NeedMore:
        """The slow path: the hello comes in pieces, or is wrong."""
        while len(data):
            taken = self._take_fragment(data) if self._fragment_left else self._take_record_header(data)
            self.received += taken
            missing = self._message_size - len(self._message) if self._message_size else 1  # or more
            if self.received + missing > self._limit:
                raise HelloError(HelloFault.TOO_LARGE, f"the ClientHello does not end within {self._limit} bytes")
            if not missing:
                return parse_client_hello(bytes(self._message))
            data = data[taken:]
        return NEED_MORE

    def _take_record_header(self, data: memoryview) -> int:
        header = self._record_header
        taken = min(_RECORD_HEADER - len(header), len(data))
        header += data[:taken]
        if self._message:
            _check_later_record(header)
        else:
            _check_first_record(header)
        if len(header) == _RECORD_HEADER:
            self._fragment_left = _fragment_length(header)
            header.clear()
            self._check_nothing_follows()
        return taken

    def _take_fragment(self, data: memoryview) -> int:
        taken = min(self._fragment_left, len(data))
        self._message += data[:taken]
        self._fragment_left -= taken
        if not self._message_size:
            self._read_message_header()
        return taken

    def _read_message_header(self) -> None:
        message = self._message
        if message[0] != _CLIENT_HELLO:
            raise _malformed(f"the first handshake message is of type {message[0]}, not a ClientHello (1)")
        if len(message) >= _MESSAGE_HEADER:
            self._message_size = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
            self._check_nothing_follows()

    def _check_nothing_follows(self) -> None:
        """RFC 8446 section 5.1 lets a record go on with the next handshake message. But a client has none
        before it is answered, and what a server makes of it is nothing that we judged.
        """
        if self._message_size and len(self._message) + self._fragment_left > self._message_size:
            raise _malformed("another handshake message follows the ClientHello in its record")


def read_client_hello(data: bytes, limit: int = 65536) -> ClientHello | NeedMore:
    """The ClientHello at the start of `data`, in one call. Raises HelloError."""
    return ClientHelloReader(limit).feed(data)


def _whole_message(data: bytes, limit: int) -> bytes:
    """The handshake message, if `data` begins with one record that holds a whole ClientHello; else no bytes.

    The fast path: nearly every hello is one record in one segment. It takes only what is right at a glance,
    and leaves all judging to the slow path. The one copy costs less than carrying an offset through the
    parser, and frees the caller's buffer.
    """
    if len(data) < _RECORD_HEADER + _MESSAGE_HEADER:
        return b""
    fragment = u16(data, 3)
    end = _RECORD_HEADER + fragment
    whole = (
        data[0] == _HANDSHAKE
        and data[1] == _MAJOR_VERSION
        and fragment <= _MAX_FRAGMENT
        and data[5] == _CLIENT_HELLO
        and data[6] << 16 | u16(data, 7) == fragment - _MESSAGE_HEADER
        and end <= len(data)
        and end <= limit
    )
    return data[_RECORD_HEADER:end] if whole else b""


def _check_first_record(header: bytearray) -> None:
    """Refuse what is no TLS at the first byte that shows it; `header` may be incomplete."""
    first = header[0]
    if first & 0x80:
        _check_sslv2(header)
    elif first != _HANDSHAKE:
        raise _not_tls(header)
    elif len(header) > 1 and header[1] != _MAJOR_VERSION:
        raise HelloError(HelloFault.NOT_TLS, f"the first record is of version {header[1]}, and TLS is version 3")


def _check_sslv2(header: bytearray) -> None:
    """RFC 5246 appendix E.2: a two-byte length with the high bit set, then msg_type 1."""
    if len(header) < 3:
        return
    if header[2] == _CLIENT_HELLO:
        raise HelloError(HelloFault.SSLV2, "the ClientHello is in SSL 2.0 format, which cannot name a server")
    raise _not_tls(header)


def _not_tls(header: bytearray) -> HelloError:
    guess = _FOREIGN.get(bytes(header))
    if guess:
        return HelloError(HelloFault.NOT_TLS, f"the connection looks like {guess}")
    return HelloError(HelloFault.NOT_TLS, f"the connection begins with the byte 0x{header[0]:02x}, and TLS with 0x16")


def _check_later_record(header: bytearray) -> None:
    """RFC 8446 section 5.1: no other record comes between the records of one handshake message."""
    if header[0] != _HANDSHAKE:
        raise _malformed(f"a record of type {header[0]} interrupts the ClientHello")
    if len(header) > 1 and header[1] != _MAJOR_VERSION:
        raise _malformed(f"a record of version {header[1]} interrupts the ClientHello")


def _fragment_length(header: bytearray) -> int:
    length = u16(bytes(header), 3)
    if not 0 < length <= _MAX_FRAGMENT:  # RFC 8446 section 5.1: no empty handshake fragments, 2^14 bytes at most
        raise _malformed(f"a handshake record of {length} bytes (1 to {_MAX_FRAGMENT} are allowed)")
    return length
