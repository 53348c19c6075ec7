"""The hellos behind the first: until the server has chosen, every one of them names the server that was judged.

A TLS 1.3 server may ask for another ClientHello, by a HelloRetryRequest. By RFC 8446 section 4.1.2 its server name is
that of the first, but servers do not compare the two, and OpenSSL serves the second. So a client that may reach one
name could ask for another, in a second hello that it sends when it is asked, or before, on the chance that it will be.

A `HelloWatch` sees both directions. It passes the server's bytes by, and looks in them for the ServerHello that is no
HelloRetryRequest: from there on a ClientHello in clear text is an error for any server, and the watch is over. Until
then it lets through of the client's bytes what has no name in it, which are the records that are no handshake (a
ChangeCipherSpec, early data, an alert), and holds a hello until it is whole and names the same server.

Both sides are walked by record and by message, so that it does not matter how they are cut. Where either sends what is
no record of TLS the watch is over, too: RFC 8446 section 5 has its peer end the connection there.

What is held is bounded by the limit of a hello. This file knows no socket, clock, log or configuration.
"""

from typing import Final

from sniproxy.names import ServerName
from sniproxy.wire.client_hello import HelloError
from sniproxy.wire.hello_records import ClientHelloReader
from sniproxy.wire.need_more import NEED_MORE
from sniproxy.wire.u16 import u16

# RFC 8446 section 5.1, the record layer. Its legacy_version is "ignored for all purposes", also here.
_RECORD_HEADER: Final = 5
_HANDSHAKE: Final = 22
# https://www.iana.org/assignments/tls-parameters: from change_cipher_spec (20) to return_routability_check (27)
_FIRST_TYPE: Final = 20
_LAST_TYPE: Final = 27

# RFC 8446 sections 4 and 4.1.3: msg_type, length, legacy_version, random.
_SERVER_HELLO: Final = 2
_RANDOM_AT: Final = 6
_RANDOM_END: Final = _RANDOM_AT + 32
_MESSAGE_HEADER: Final = 4

# Section 4.1.3: the random of a ServerHello that is a HelloRetryRequest, SHA-256 of "HelloRetryRequest".
RETRY: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


class ChangedHelloError(ValueError):
    """A hello behind the first does not name the server that was judged. The fault is the client's.

    `detail` is one sentence made of the facts at hand, bounded in length and safe to log.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class HelloWatch:
    """Watches one connection. Give it each side's bytes in their order, until it `is_over`.

    `name` is the server name that was judged, and `limit` how many bytes a hello may have, record headers included.
    """

    __slots__ = ("_answer", "_has_chosen", "_hello", "_limit", "_name", "_reader", "_records", "detail", "held")

    def __init__(self, name: ServerName, limit: int) -> None:
        self.held = 0  # bytes of the client that may not go on, or not yet
        self.detail = ""  # why it has raised
        self._name = name
        self._limit = limit
        self._records: _Records | None = None  # of the client, behind the first hello
        self._reader: ClientHelloReader | None = None  # of the hello that is under way
        self._hello: bytes | bytearray = b""  # what it has read
        self._answer: _Answer | None = None  # of a server that did not choose at once
        self._has_chosen = False

    @property
    def is_over(self) -> bool:
        """There is nothing to look for any more, and nothing is held."""
        return self._has_chosen and self._reader is None

    def begin(self, head: bytes) -> bytes:
        """What may go upstream of the client's first bytes, which begin with the hello that was judged.

        Raises ChangedHelloError.
        """
        if len(head) == _RECORD_HEADER + u16(head, 3):
            return head  # that hello and nothing else, as nearly always
        first = ClientHelloReader(len(head))
        first.feed(head)
        self.held = first.received
        behind = self.pass_on(head[first.received :])
        self.held -= first.received
        return head[: first.received] + behind

    def pass_on(self, data: bytes) -> bytes:
        """What may go upstream now, when `data` has come from the client. Raises ChangedHelloError."""
        self.held += len(data)
        passed = self._walk(data)
        self.held -= len(passed)
        return passed

    def note(self, data: bytes | memoryview) -> None:
        """Look at the server's next bytes, which go on as they are."""
        if self._has_chosen:
            return
        if self._answer is None:
            if not _FIRST_TYPE <= data[0] <= _LAST_TYPE or _is_choice(data):
                self._has_chosen = True
                return
            self._answer = _Answer()
        self._has_chosen = self._answer.has_chosen(bytes(data))

    def _walk(self, data: bytes) -> bytes:
        if self._records is None:
            self._records = _Records()
        records, passed, at = self._records, bytearray(), 0
        while at < len(data):
            if self._reader is not None or (records.are_between and data[at] == _HANDSHAKE):
                at = self._read_hello(data, at)
                if self._reader is None:
                    passed += self._hello
                    self._hello = b""
                continue
            start, at = at, records.step(data, at)
            passed += data[start:at]
            if not records.are_tls:
                self._has_chosen = True
                return bytes(passed + data[at:])
        return bytes(passed)

    def _read_hello(self, data: bytes, at: int) -> int:
        """Read the hello that is under way, from `at` to its end or that of `data`. Whole, it leaves no reader."""
        if self._reader is None:
            self._reader = ClientHelloReader(self._limit)
            self._hello = bytearray()
        reader, rest = self._reader, data[at:]
        before = reader.received
        try:
            hello = reader.feed(rest)
            if hello is NEED_MORE:
                self._hello += rest
                return len(data)
            name = hello.server_name()
        except HelloError as error:
            raise self._refused(f"a ClientHello behind the first: {error.detail}") from None
        if name != self._name:
            raise self._refused(f"a ClientHello behind the first names {name!r}, and the first {self._name!r}")
        taken = reader.received - before
        self._hello += rest[:taken]
        self._reader = None
        return at + taken

    def _refused(self, detail: str) -> ChangedHelloError:
        self.detail = detail
        return ChangedHelloError(detail)


class _Records:
    """A walk through the records of one side, as they come."""

    __slots__ = ("_header", "left")

    def __init__(self) -> None:
        self._header = bytearray()  # of the record under way, as far as it has come
        self.left = 0  # bytes of it that are still to come

    @property
    def are_between(self) -> bool:
        """Whether the next byte begins a record."""
        return not self.left and len(self._header) in (0, _RECORD_HEADER)

    @property
    def are_tls(self) -> bool:
        """Whether the record under way has a type that TLS knows."""
        return _FIRST_TYPE <= self._header[0] <= _LAST_TYPE

    @property
    def are_handshake(self) -> bool:
        return self._header[0] == _HANDSHAKE

    def step(self, data: bytes, at: int) -> int:
        """Go from `at` to the end of the header or of the fragment that is there, or of `data`."""
        if self.left:
            end = min(at + self.left, len(data))
            self.left -= end - at
            return end
        header = self._header
        if len(header) == _RECORD_HEADER:
            header.clear()
        end = min(at + _RECORD_HEADER - len(header), len(data))
        header += data[at:end]
        if len(header) == _RECORD_HEADER:
            self.left = u16(bytes(header), 3)
        return end


def _is_choice(data: bytes | memoryview) -> bool:
    """Whether a server's first bytes are those of a ServerHello that is no HelloRetryRequest, as nearly always."""
    return (
        len(data) >= _RECORD_HEADER + _RANDOM_END
        and data[0] == _HANDSHAKE
        and (data[3] << 8 | data[4]) >= _RANDOM_END
        and data[_RECORD_HEADER] == _SERVER_HELLO
        and data[_RECORD_HEADER + _RANDOM_AT : _RECORD_HEADER + _RANDOM_END] != RETRY
    )


class _Answer:
    """The slow path: a server asks for a retry, or what it says comes in pieces, or behind a warning."""

    __slots__ = ("_message", "_records", "_skip")

    def __init__(self) -> None:
        self._records = _Records()
        self._message = bytearray()  # the beginning of the handshake message under way, up to its random
        self._skip = 0  # bytes behind that, which tell nothing

    def has_chosen(self, data: bytes) -> bool:
        """Whether `data` brings anything but requests for a retry: the server's choice, or what is no TLS."""
        records, at = self._records, 0
        while at < len(data):
            is_fragment = records.left > 0
            start, at = at, records.step(data, at)
            if not records.are_tls:
                return True
            if is_fragment and records.are_handshake and self._is_choice(data[start:at]):
                return True
        return False

    def _is_choice(self, fragment: bytes) -> bool:
        while fragment:
            if self._skip:
                skipped = min(self._skip, len(fragment))
                self._skip -= skipped
                fragment = fragment[skipped:]
                continue
            message = self._message
            missing = _RANDOM_END - len(message)
            message += fragment[:missing]
            fragment = fragment[missing:]
            if message[0] != _SERVER_HELLO:
                return True
            if len(message) == _RANDOM_END:
                if message[_RANDOM_AT:] != RETRY:
                    return True
                length = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
                self._skip = max(0, length - _RANDOM_END)
                message.clear()
        return False
