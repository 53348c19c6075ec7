"""A ClientHello by hand, and what a reader says of bytes, however they are cut."""

from collections.abc import Iterable, Iterator

from sniproxy.wire.client_hello import ClientHello, HelloError, HelloFault
from sniproxy.wire.hello_records import ClientHelloReader
from sniproxy.wire.need_more import NEED_MORE, NeedMore
from tests.wire.build import TLS_1_2, TLS_1_3

LIMIT = 65536

# A ClientHello by hand, so that the builder is not its own witness.
EXAMPLE = bytes.fromhex(
    "16 0301 0068"  # record: handshake, version 3.1 for old servers, 104 bytes
    "01 000064"  # handshake: ClientHello, 100 bytes
    "0303"  # legacy_version
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"  # random
    "04 cafebabe"  # legacy_session_id
    "0004 1301c02b"  # two cipher suites
    "01 00"  # one compression method, null
    "0033"  # extensions, 51 bytes
    "0000 0010 000e 00 000b 6578616d706c652e6f7267"  # server_name: a list of one host_name, "example.org"
    "0010 000e 000c 02 6832 08 687474702f312e31"  # ALPN: "h2", "http/1.1"
    "002b 0005 04 0304 0303"  # supported_versions: 1.3, 1.2
    "dada 0000"  # GREASE
)
EXAMPLE_HELLO = ClientHello(
    raw_server_name=b"example.org",
    legacy_version=TLS_1_2,
    supported_versions=(TLS_1_3, TLS_1_2),
    alpn=("h2", "http/1.1"),
    ech=False,
)

Outcome = ClientHello | NeedMore | HelloFault


def read(reader: ClientHelloReader, segments: Iterable[bytes | memoryview]) -> ClientHello | NeedMore:
    """What `reader` makes of these TCP segments. Raises HelloError."""
    for segment in segments:
        answer = reader.feed(segment)
        if answer is not NEED_MORE:
            return answer
    return NEED_MORE


def outcome(*segments: bytes | memoryview, limit: int = LIMIT) -> Outcome:
    """What a fresh reader says of these TCP segments."""
    try:
        return read(ClientHelloReader(limit), segments)
    except HelloError as error:
        return error.fault


def singly(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def check_every_split(expected: Outcome, data: bytes) -> None:
    """The answer does not depend on how TCP cut the bytes, nor on where they lie in memory."""
    assert expected == outcome(data)
    assert expected == outcome(memoryview(bytearray(data)))
    assert expected == outcome(*singly(data))
    for at in range(len(data)):
        assert expected == outcome(data[:at], data[at:])
