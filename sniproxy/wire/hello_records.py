"""The TLS records that carry a ClientHello.

`ClientHelloReader` puts the handshake message together, however the client cut it into records and TCP cut those again,
and raises as soon as a byte is seen that no ClientHello can have there. The message is `client_hello`'s to read.

The time is linear in the bytes fed, however small the pieces; the memory is bounded by the limit. This file
knows no socket, clock, log or configuration.
"""

from typing import Final, NoReturn

from sniproxy.wire.client_hello import (
    CLIENT_HELLO,
    MESSAGE_HEADER,
    ClientHello,
    HelloError,
    HelloFault,
    malformed,
    parse_client_hello,
)
from sniproxy.wire.need_more import NEED_MORE, NeedMore
from sniproxy.wire.u16 import u16

# RFC 8446 section 5.1, the record layer.
_HANDSHAKE: Final = 22
_RECORD_HEADER: Final = 5
_MAX_FRAGMENT: Final = 2**14
_MAJOR_VERSION: Final = 3  # of every record from SSL 3.0 to TLS 1.3

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
        if message[0] != CLIENT_HELLO:
            raise malformed(f"the first handshake message is of type {message[0]}, not a ClientHello (1)")
        if len(message) >= MESSAGE_HEADER:
            self._message_size = MESSAGE_HEADER + int.from_bytes(message[1:MESSAGE_HEADER], "big")
            self._check_nothing_follows()

    def _check_nothing_follows(self) -> None:
        """RFC 8446 section 5.1 lets a record go on with the next handshake message. But a client has none
        before it is answered, and what a server makes of it is nothing that we judged.
        """
        if self._message_size and len(self._message) + self._fragment_left > self._message_size:
            raise malformed("another handshake message follows the ClientHello in its record")


def read_client_hello(data: bytes, limit: int = 65536) -> ClientHello | NeedMore:
    """The ClientHello at the start of `data`, in one call. Raises HelloError."""
    return ClientHelloReader(limit).feed(data)


def _whole_message(data: bytes, limit: int) -> bytes:
    """The handshake message, if `data` begins with one record that holds a whole ClientHello; else no bytes.

    The fast path: nearly every hello is one record in one segment. It takes only what is right at a glance,
    and leaves all judging to the slow path. The one copy costs less than carrying an offset through the
    parser, and frees the caller's buffer.
    """
    if len(data) < _RECORD_HEADER + MESSAGE_HEADER:
        return b""
    fragment = u16(data, 3)
    end = _RECORD_HEADER + fragment
    whole = (
        data[0] == _HANDSHAKE
        and data[1] == _MAJOR_VERSION
        and fragment <= _MAX_FRAGMENT
        and data[5] == CLIENT_HELLO
        and data[6] << 16 | u16(data, 7) == fragment - MESSAGE_HEADER
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
    if header[2] == CLIENT_HELLO:
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
        raise malformed(f"a record of type {header[0]} interrupts the ClientHello")
    if len(header) > 1 and header[1] != _MAJOR_VERSION:
        raise malformed(f"a record of version {header[1]} interrupts the ClientHello")


def _fragment_length(header: bytearray) -> int:
    length = u16(bytes(header), 3)
    if not 0 < length <= _MAX_FRAGMENT:  # RFC 8446 section 5.1: no empty handshake fragments, 2^14 bytes at most
        raise malformed(f"a handshake record of {length} bytes (1 to {_MAX_FRAGMENT} are allowed)")
    return length
