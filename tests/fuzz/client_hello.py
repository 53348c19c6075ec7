"""The ClientHello reader on whatever a TCP connection brings."""

from collections.abc import Iterable

from sniproxy.names import parse_server_name
from sniproxy.wire.client_hello import ClientHello, HelloError, HelloFault, NoServerName
from sniproxy.wire.hello_records import ClientHelloReader, read_client_hello, read_whole_client_hello
from sniproxy.wire.need_more import NEED_MORE
from tests.fuzz.dice import cut, dice_for, prefixes
from tests.fuzz.server_name import check_name
from tests.wire.reading import Outcome, read

LIMIT = 4096  # small, so that the limit is met
# A sentence quotes a name of at most 255 bytes, of which each may be written as \xNN.
_LONGEST_DETAIL = 255 * 4 + 200
_USABLE = {HelloFault.NO_SNI, HelloFault.SNI_IS_IP, HelloFault.INVALID_SNI}


def fuzz(data: bytes) -> None:
    dice = dice_for(data)
    reader = ClientHelloReader(LIMIT)
    whole = verdict(reader, [data])
    assert whole == verdict(ClientHelloReader(LIMIT), cut(data, dice))
    assert whole == verdict(ClientHelloReader(LIMIT), [memoryview(data)])
    _check_prefixes(data, whole)
    if isinstance(whole, ClientHello):
        check_hello(whole)
        _check_end(data, whole, reader.received)
    elif whole is NEED_MORE:
        assert reader.received == len(data) < LIMIT
        _check_close(reader)
    _check_fast_path(data, whole)


def verdict(reader: ClientHelloReader, segments: Iterable[bytes | memoryview]) -> Outcome:
    """What a reader says of these segments; HelloError is the only way to refuse."""
    try:
        return read(reader, segments)
    except HelloError as error:
        check_detail(error)
        return error.fault


def check_detail(error: HelloError) -> None:
    """Safe to log, and bounded."""
    assert error.detail.isprintable()
    assert 0 < len(error.detail) <= _LONGEST_DETAIL


def check_hello(hello: ClientHello) -> None:
    """What the rest of the program takes for granted of a hello that was read."""
    assert isinstance(hello.raw_server_name, NoServerName) or 1 <= len(hello.raw_server_name) <= 255
    assert 0 < len(hello.tls_version) <= 7
    assert all(protocol and protocol.isascii() and protocol.isprintable() for protocol in hello.alpn)
    assert sum(map(len, hello.alpn)) <= 256 * 4
    try:
        name = hello.server_name()
    except HelloError as error:
        check_detail(error)
        assert error.fault in _USABLE
        return
    assert isinstance(hello.raw_server_name, bytes)
    assert name == parse_server_name(hello.raw_server_name)
    check_name(name)


def _check_prefixes(data: bytes, whole: Outcome) -> None:
    """Need more, then the verdict; and never another one."""
    decided = False
    for prefix in prefixes(data, dice_for(data)):
        answer = verdict(ClientHelloReader(LIMIT), [prefix])
        assert answer == whole if decided else answer in (NEED_MORE, whole)
        decided = answer is not NEED_MORE


def _check_end(data: bytes, hello: ClientHello, end: int) -> None:
    """The hello ends exactly where the reader says, and that is also what the limit counts."""
    assert verdict(ClientHelloReader(LIMIT), [data[: end - 1]]) is NEED_MORE
    assert verdict(ClientHelloReader(end), [data[:end]]) == hello
    assert verdict(ClientHelloReader(end - 1), [data]) is HelloFault.TOO_LARGE


def _check_close(reader: ClientHelloReader) -> None:
    try:
        reader.close()
    except HelloError as error:
        assert error.fault is HelloFault.TRUNCATED
        check_detail(error)


def _check_fast_path(data: bytes, whole: Outcome) -> None:
    """It may leave the work to the reader, and never says anything else."""
    try:
        answer: Outcome = read_whole_client_hello(data, LIMIT)
        assert answer is NEED_MORE or answer == read_client_hello(data, LIMIT)
    except HelloError as error:
        answer = error.fault
    assert answer in (NEED_MORE, whole)
