"""The ClientHello reader and parser, from the bytes of RFC 8446 to the name that a policy judges."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.names import ServerName
from sniproxy.wire.client_hello import (
    ClientHello,
    ClientHelloReader,
    HelloError,
    HelloFault,
    NoServerName,
    parse_client_hello,
    read_client_hello,
)
from sniproxy.wire.need_more import NEED_MORE, NeedMore
from tests.wire.build import (
    ALPN,
    ENCRYPTED_CLIENT_HELLO,
    KEY_SHARE,
    SERVER_NAME,
    SUPPORTED_VERSIONS,
    TLS_1_2,
    TLS_1_3,
    Extension,
    alpn_extension,
    as_records,
    build_client_hello,
    hello_message,
    server_name_extension,
    supported_versions_extension,
    u16,
    vector8,
    vector16,
)

LIMIT = 65536
DATA = Path(__file__).parent.parent / "data" / "client_hello"

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


def outcome(*segments: bytes | memoryview, limit: int = LIMIT) -> Outcome:
    """What a reader says of these TCP segments."""
    reader = ClientHelloReader(limit)
    try:
        for segment in segments:
            answer = reader.feed(segment)
            if answer is not NEED_MORE:
                return answer
    except HelloError as error:
        return error.fault
    return NEED_MORE


def singly(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def check_every_split(expected: Outcome, data: bytes) -> None:
    """The answer does not depend on how TCP cut the bytes, nor on where they lie in memory."""
    assert expected == outcome(data)
    assert expected == outcome(memoryview(bytearray(data)))
    assert expected == outcome(*singly(data))
    for at in range(len(data)):
        assert expected == outcome(data[:at], data[at:])


def hello_with(*extensions: Extension) -> bytes:
    return as_records(hello_message(extensions))


# ---- What is read ----


def test_every_field_of_the_example_is_read() -> None:
    """The bytes above say what the value above says, however they are cut."""
    check_every_split(EXAMPLE_HELLO, EXAMPLE)


def test_every_prefix_of_a_hello_needs_more() -> None:
    """Nothing short of the last byte is taken for a ClientHello, and nothing in it is taken for an error."""
    for end in range(len(EXAMPLE)):
        assert NEED_MORE == outcome(EXAMPLE[:end])
        assert NEED_MORE == outcome(*singly(EXAMPLE[:end]))


@pytest.mark.parametrize(
    "trailing",
    [
        b"\x14\x03\x03\x00\x01\x01",  # ChangeCipherSpec, for middleboxes (RFC 8446 appendix D.4)
        b"\x17\x03\x03\x00\x02ab",  # 0-RTT early data
        b"\x17",
        b"anything",
    ],
)
def test_what_follows_in_another_record_is_ignored(trailing: bytes) -> None:
    """Early data may follow the hello at once; it is the server's to judge."""
    assert EXAMPLE_HELLO == outcome(EXAMPLE + trailing)
    assert EXAMPLE_HELLO == outcome(*singly(EXAMPLE + trailing))


def test_the_builder_agrees_with_the_example() -> None:
    """The builder of the other tests makes the same bytes."""
    message = hello_message(
        [
            server_name_extension("example.org"),
            alpn_extension(["h2", "http/1.1"]),
            supported_versions_extension([TLS_1_3, TLS_1_2]),
            (0xDADA, b""),
        ],
        session_id=bytes.fromhex("cafebabe"),
        cipher_suites=bytes.fromhex("1301c02b"),
    )
    assert EXAMPLE == as_records(message)


def test_a_message_alone_is_parsed_without_records() -> None:
    """`parse_client_hello` takes the handshake message, header included."""
    assert EXAMPLE_HELLO == parse_client_hello(EXAMPLE[5:])


def test_the_reader_counts_the_bytes_of_the_hello() -> None:
    """`received` is what belongs to the hello, record headers included, and not what follows."""
    whole, cut = ClientHelloReader(LIMIT), ClientHelloReader(LIMIT)
    whole.feed(EXAMPLE + b"\x17\x03\x03")
    for segment in singly(EXAMPLE):
        cut.feed(segment)
    assert (len(EXAMPLE), len(EXAMPLE)) == (whole.received, cut.received)


@pytest.mark.parametrize("fragment_size", [1, 2, 3, 4, 5, 100, 103])
def test_a_hello_in_several_records_is_put_together(fragment_size: int) -> None:
    """RFC 8446 section 5.1: a handshake message may be cut into records anywhere, also in its header."""
    check_every_split(EXAMPLE_HELLO, as_records(EXAMPLE[5:], fragment_size))


def test_a_post_quantum_hello_in_two_segments_is_read() -> None:
    """An X25519MLKEM768 share has 1216 bytes, and the hello no longer fits one segment."""
    key_share = (KEY_SHARE, vector16(u16(0x11EC) + vector16(bytes(1216)) + u16(29) + vector16(bytes(32))))
    hello = build_client_hello("pq.example", extra=[key_share])
    expected = ClientHello(b"pq.example", TLS_1_2, (TLS_1_3, TLS_1_2), ("h2", "http/1.1"), ech=False)
    assert expected == outcome(hello[:1400], hello[1400:])
    assert expected == outcome(hello[:1200], hello[1200:1300], hello[1300:])


def test_a_hello_larger_than_a_record_is_read() -> None:
    """A message of 40,000 bytes needs three records of 2^14 bytes at most."""
    hello = build_client_hello("large.example", extra=[(65000, bytes(40000))])
    assert len(hello) > 2 * 2**14
    expected = ClientHello(b"large.example", TLS_1_2, (TLS_1_3, TLS_1_2), ("h2", "http/1.1"), ech=False)
    assert expected == outcome(hello)
    assert expected == outcome(*(hello[at : at + 1460] for at in range(0, len(hello), 1460)))


def test_a_padded_hello_has_the_size_asked_for() -> None:
    """The builder pads as browsers do, to 517 bytes."""
    hello = build_client_hello(padding=517)
    assert 517 == len(hello)
    assert isinstance(read_client_hello(hello), ClientHello)


def captured(name: str) -> bytes:
    """What a real client sent, from tests/data."""
    lines = (DATA / name).read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


@pytest.mark.parametrize(
    ("name", "size", "versions"),
    [
        ("curl-7.88-openssl-3.0.hex", 517, (0x0304, 0x0303, 0x0302, 0x0301)),
        ("go-1.26.hex", 1526, (0x0304, 0x0303)),
    ],
)
def test_the_hello_of_a_real_client_is_read(name: str, size: int, versions: tuple[int, ...]) -> None:
    """curl's hello, and Go's with its post-quantum key share, which takes two segments."""
    hello = captured(name)
    assert size == len(hello)
    expected = ClientHello(b"en.wikipedia.org", TLS_1_2, versions, ("h2", "http/1.1"), ech=False)
    check_every_split(expected, hello)


# ---- Versions, protocols, ECH ----


@pytest.mark.parametrize(
    ("legacy_version", "offered", "highest"),
    [
        (0x0303, (0x0304, 0x0303), "TLSv1.3"),
        (0x0303, (0x0303, 0x0304), "TLSv1.3"),
        (0x0303, (), "TLSv1.2"),
        (0x0302, (), "TLSv1.1"),
        (0x0301, (), "TLSv1.0"),
        (0x0300, (), "SSLv3"),
        (0x0303, (0x0305, 0x0304), "0x0305"),
        (0x0303, (0x1A1A, 0x0304), "TLSv1.3"),
        (0x0303, (0xFAFA,), "0x0000"),
    ],
)
def test_the_version_is_the_highest_offered(legacy_version: int, offered: tuple[int, ...], highest: str) -> None:
    """RFC 8446 section 4.2.1: supported_versions counts where it is there, legacy_version where it is not."""
    extensions = [supported_versions_extension(offered)] if offered else []
    hello = parse_client_hello(hello_message(extensions, legacy_version=legacy_version))
    assert highest == hello.tls_version


def test_without_supported_versions_the_legacy_version_is_the_offer() -> None:
    """A TLS 1.2 client offers one version, and the hello says so."""
    assert (TLS_1_2,) == parse_client_hello(hello_message([])).supported_versions
    assert (TLS_1_2,) == parse_client_hello(hello_message(None)).supported_versions


def test_grease_is_left_out_of_versions_and_protocols() -> None:
    """RFC 8701: values like 0x4A4A are there to be ignored; look-alikes are not."""
    message = hello_message(
        [
            supported_versions_extension([0x4A4A, TLS_1_3, 0x4A5A, 0x0A0A]),
            alpn_extension([b"\x4a\x4a", b"h2", b"\x4a\x5a", b"\x4a\x4a\x4a"]),
        ]
    )
    hello = parse_client_hello(message)
    assert (TLS_1_3, 0x4A5A) == hello.supported_versions
    assert ("h2", "JZ", "JJJ") == hello.alpn


def test_alpn_is_safe_to_log() -> None:
    """Any byte is allowed in a protocol's name; what is not printable ASCII comes out escaped."""
    hello = parse_client_hello(hello_message([alpn_extension([b"a\nb", b"\x00\xff", "é", "\\"])]))
    assert ("a\\nb", "\\x00\\xff", "\\xc3\\xa9", "\\\\") == hello.alpn


def test_only_the_first_protocols_of_a_long_offer_are_kept() -> None:
    """A connection remembers its offer as long as it lives, so 60 KB of it are checked and dropped."""
    offer = [f"p{number:05}" for number in range(8000)]
    hello = parse_client_hello(hello_message([alpn_extension(offer)]))
    assert tuple(offer[:36]) == hello.alpn  # 2 bytes of length, and 36 x 7 are the first 254


def test_ech_is_seen() -> None:
    """An encrypted_client_hello extension is there or not; its content is the server's business."""
    assert parse_client_hello(hello_message([(ENCRYPTED_CLIENT_HELLO, b"\x00garbage")])).ech
    assert not parse_client_hello(hello_message([])).ech


# ---- The server name ----


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"en.wikipedia.org", "en.wikipedia.org"),
        (b"EN.Wikipedia.ORG", "en.wikipedia.org"),
        (b"en.wikipedia.org.", "en.wikipedia.org"),
        (b"_dmarc.under_score.example", "_dmarc.under_score.example"),
        (b"localhost", "localhost"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_a_server_name_is_normalised(raw: bytes, name: str) -> None:
    """`raw_server_name` is what was sent; `server_name()` is what rules are judged by."""
    hello = parse_client_hello(hello_message([server_name_extension(raw)]))
    assert raw == hello.raw_server_name
    assert ServerName(name) == hello.server_name()


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"127.0.0.1", HelloFault.SNI_IS_IP),
        (b"127.1", HelloFault.SNI_IS_IP),
        (b"0x7f.1", HelloFault.SNI_IS_IP),
        (b"2130706433", HelloFault.SNI_IS_IP),
        (b"::1", HelloFault.SNI_IS_IP),
        (b"en.wikipedia.org\x00.evil.example", HelloFault.INVALID_SNI),
        (b"a b", HelloFault.INVALID_SNI),
        (b"a..b", HelloFault.INVALID_SNI),
        (b"*.wikipedia.org", HelloFault.INVALID_SNI),
        (b"\xff\xfe", HelloFault.INVALID_SNI),
        ("bücher.example".encode(), HelloFault.INVALID_SNI),
        (b"a\r\nb", HelloFault.INVALID_SNI),
        (b"a" * 64 + b".example", HelloFault.INVALID_SNI),
        (b".".join([b"abcdefg"] * 31) + b".abcdef", HelloFault.INVALID_SNI),  # 254 bytes
    ],
)
def test_a_name_that_is_no_host_name_is_refused_when_asked_for(raw: bytes, fault: HelloFault) -> None:
    """The hello is well-formed, and can be logged; only the name cannot be used."""
    hello = parse_client_hello(hello_message([server_name_extension(raw)]))
    assert raw == hello.raw_server_name
    with pytest.raises(HelloError) as refused:
        hello.server_name()
    assert fault == refused.value.fault
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize(
    ("message", "absence"),
    [
        (hello_message(None), NoServerName.NO_EXTENSIONS),
        (hello_message([]), NoServerName.NO_EXTENSION),
        (hello_message([alpn_extension(["h2"])]), NoServerName.NO_EXTENSION),
    ],
)
def test_an_absent_name_says_why(message: bytes, absence: NoServerName) -> None:
    """A hello that names no server is well-formed too, until someone asks it for the name."""
    hello = parse_client_hello(message)
    assert absence is hello.raw_server_name
    with pytest.raises(HelloError) as refused:
        hello.server_name()
    assert (HelloFault.NO_SNI, absence.value) == (refused.value.fault, refused.value.detail)


# ---- What is refused in the message ----

TWO_NAMES = server_name_extension("a.example", "b.example")
NAME = server_name_extension("a.example")

MALFORMED_MESSAGES = {
    "an empty server_name extension, which only a server may send": hello_with((SERVER_NAME, b"")),
    "an empty server name list": hello_with((SERVER_NAME, b"\x00\x00")),
    "an empty host name": hello_with(server_name_extension("")),
    "a name list shorter than its extension": hello_with((SERVER_NAME, NAME[1] + b"\x00")),
    "a name list longer than its extension": hello_with((SERVER_NAME, NAME[1][:-1])),
    "a name shorter than its list": hello_with((SERVER_NAME, vector16(b"\x00\x00\x01ab"))),
    "a name longer than its list": hello_with((SERVER_NAME, vector16(b"\x00\x00\x03ab"))),
    "a name of an unknown type": hello_with(server_name_extension("a.example", name_type=1)),
    "a name of an unknown type behind a host name": hello_with(
        (SERVER_NAME, vector16(b"\x00\x00\x01a" + b"\x01\x00\x01b"))
    ),
    "a name of an unknown type before a host name": hello_with(
        (SERVER_NAME, vector16(b"\x01\x00\x01b" + b"\x00\x00\x01a"))
    ),
    "two extensions of one type": hello_with(NAME, (65000, b""), (65000, b"")),
    "two GREASE extensions of one type": hello_with((0x1A1A, b""), NAME, (0x1A1A, b"")),
    "an extension longer than the list": as_records(
        hello_message(None)[:1]
        + (len(hello_message(None)) + 2 + 4 - 4).to_bytes(3, "big")
        + hello_message(None)[4:]
        + vector16(u16(65000) + u16(1))
    ),
    "supported_versions of odd length": hello_with((SUPPORTED_VERSIONS, vector8(b"\x03\x04\x03"))),
    "empty supported_versions": hello_with((SUPPORTED_VERSIONS, vector8(b""))),
    "a supported_versions extension without a byte": hello_with((SUPPORTED_VERSIONS, b"")),
    "supported_versions that do not fill their extension": hello_with((SUPPORTED_VERSIONS, b"\x02\x03\x04\x03\x03")),
    "an empty list of protocols": hello_with((ALPN, b"\x00\x00")),
    "an ALPN extension without a byte": hello_with((ALPN, b"")),
    "an ALPN extension of one byte": hello_with((ALPN, b"\x00")),
    "an empty protocol": hello_with((ALPN, vector16(b"\x02h2\x00"))),
    "a protocol past the end of its list": hello_with((ALPN, vector16(b"\x02h2\x03h3"))),
    "a list of protocols that does not fill its extension": hello_with((ALPN, alpn_extension(["h2"])[1] + b"\x00")),
    "a session id of 33 bytes": as_records(hello_message([NAME], session_id=bytes(33))),
    "no cipher suites": as_records(hello_message([NAME], cipher_suites=b"")),
    "half a cipher suite": as_records(hello_message([NAME], cipher_suites=b"\x13\x01\x13")),
    "no compression methods": as_records(hello_message([NAME], compression_methods=b"")),
}


@pytest.mark.parametrize("data", MALFORMED_MESSAGES.values(), ids=MALFORMED_MESSAGES.keys())
def test_a_malformed_message_is_refused(data: bytes) -> None:
    """One wrong length is enough: the server behind might read it in another way."""
    check_every_split(HelloFault.MALFORMED, data)


@pytest.mark.parametrize(
    "data",
    [
        hello_with(NAME, NAME),
        hello_with(NAME, (65000, b""), server_name_extension("b.example")),
        hello_with(TWO_NAMES),
        hello_with(server_name_extension("a.example", "a.example")),
    ],
)
def test_a_second_server_name_is_refused(data: bytes) -> None:
    """Two names, even equal ones, in two extensions or in one list: nginx takes one, OpenSSL neither."""
    check_every_split(HelloFault.DUPLICATE_SNI, data)


def test_a_name_longer_than_dns_allows_is_refused_at_once() -> None:
    """255 bytes are OpenSSL's limit and ours; a hello never carries more into the log."""
    assert isinstance(outcome(hello_with(server_name_extension("a" * 255))), ClientHello)
    assert HelloFault.INVALID_SNI == outcome(hello_with(server_name_extension("a" * 256)))


def test_a_message_cut_or_lengthened_by_a_byte_is_refused() -> None:
    """The handshake length corrected, so that only the vectors inside tell."""
    body = EXAMPLE[9:]
    for wrong in [*(body[:end] for end in range(len(body))), body + b"\x00"]:
        message = b"\x01" + len(wrong).to_bytes(3, "big") + wrong
        if len(wrong) == body.index(bytes.fromhex("0033 0000")):
            assert NoServerName.NO_EXTENSIONS is parse_client_hello(message).raw_server_name
            continue
        with pytest.raises(HelloError) as refused:
            parse_client_hello(message)
        assert HelloFault.MALFORMED == refused.value.fault


@pytest.mark.parametrize("message", [b"", EXAMPLE[5:-1], EXAMPLE[5:] + b"\x00", b"\x02" + EXAMPLE[6:]])
def test_a_message_that_its_header_does_not_fit_is_refused(message: bytes) -> None:
    """`parse_client_hello` takes exactly one message."""
    with pytest.raises(HelloError) as refused:
        parse_client_hello(message)
    assert HelloFault.MALFORMED == refused.value.fault


# ---- What is refused in the records ----

# Each of these is wrong from its last byte on, and is refused there; the byte before still needs more.
REFUSED_AT_THE_LAST_BYTE = {
    "a letter": (b"G", HelloFault.NOT_TLS),
    "an alert": (b"\x15", HelloFault.NOT_TLS),
    "application data": (b"\x17", HelloFault.NOT_TLS),
    "a record of version 2": (b"\x16\x02", HelloFault.NOT_TLS),
    "DTLS": (b"\x16\xfe", HelloFault.NOT_TLS),
    "an SSL 2.0 ClientHello": (b"\x80\x2e\x01", HelloFault.SSLV2),
    "an SSL 2.0 ServerHello": (b"\x80\x2e\x04", HelloFault.NOT_TLS),
    "an empty record": (b"\x16\x03\x01\x00\x00", HelloFault.MALFORMED),
    "a record one byte too large": (b"\x16\x03\x01\x40\x01", HelloFault.MALFORMED),
    "a ServerHello": (b"\x16\x03\x01\x00\x30\x02", HelloFault.MALFORMED),
    "a hello larger than the limit": (b"\x16\x03\x01\x40\x00\x01\x01\x00\x00", HelloFault.TOO_LARGE),
    "a hello with another message behind it": (b"\x16\x03\x01\x00\x40\x01\x00\x00\x3b", HelloFault.MALFORMED),
    "an alert amid the hello": (b"\x16\x03\x01\x00\x01\x01\x15", HelloFault.MALFORMED),
    "ChangeCipherSpec amid the hello": (b"\x16\x03\x01\x00\x01\x01\x14", HelloFault.MALFORMED),
    "version 2 amid the hello": (b"\x16\x03\x01\x00\x01\x01\x16\x02", HelloFault.MALFORMED),
    "an empty record amid the hello": (b"\x16\x03\x01\x00\x01\x01\x16\x03\x03\x00\x00", HelloFault.MALFORMED),
    "another message behind the hello, in the second record": (
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x30\x16\x03\x03\x00\x31",
        HelloFault.MALFORMED,
    ),
}


@pytest.mark.parametrize(("data", "fault"), REFUSED_AT_THE_LAST_BYTE.values(), ids=REFUSED_AT_THE_LAST_BYTE.keys())
def test_an_error_is_raised_at_the_first_byte_that_shows_it(data: bytes, fault: HelloFault) -> None:
    """Nobody waits ten seconds for the rest of something that cannot become a ClientHello."""
    assert NEED_MORE == outcome(data[:-1])
    assert NEED_MORE == outcome(*singly(data[:-1]))
    check_every_split(fault, data)
    check_every_split(fault, data + bytes(100))


@pytest.mark.parametrize(
    ("data", "guess"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "plain HTTP"),
        (b"CONNECT en.wikipedia.org:443 HTTP/1.1\r\n", "plain HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "plain HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", "a PROXY protocol header"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", "a PROXY protocol header"),
        (b"EHLO example.org\r\n", "0x45"),
        (b"\x00", "0x00"),
        (b"\xff\xff\xff", "0xff"),
    ],
)
def test_other_protocols_are_recognised_in_the_message(data: bytes, guess: str) -> None:
    """An operator who sees `not_tls` wants to know what it was instead."""
    with pytest.raises(HelloError, match=guess) as refused:
        read_client_hello(data)
    assert HelloFault.NOT_TLS == refused.value.fault


# ---- Limits and the end ----


@pytest.mark.parametrize("fragment_size", [2**14, 40])
def test_the_limit_is_the_last_byte_of_the_hello(fragment_size: int) -> None:
    """A hello of exactly `limit` bytes passes, record headers included; bytes behind it do not count."""
    hello = as_records(EXAMPLE[5:], fragment_size)
    assert EXAMPLE_HELLO == outcome(hello, limit=len(hello))
    assert EXAMPLE_HELLO == outcome(hello + bytes(100), limit=len(hello))
    assert EXAMPLE_HELLO == outcome(*singly(hello), limit=len(hello))
    assert HelloFault.TOO_LARGE == outcome(hello, limit=len(hello) - 1)
    assert HelloFault.TOO_LARGE == outcome(*singly(hello), limit=len(hello) - 1)


def test_many_tiny_records_hit_the_limit_by_their_headers() -> None:
    """104 bytes of hello in records of one byte are 624 on the wire."""
    hello = as_records(EXAMPLE[5:], 1)
    assert 624 == len(hello)
    assert EXAMPLE_HELLO == outcome(*singly(hello), limit=624)
    assert HelloFault.TOO_LARGE == outcome(*singly(hello), limit=623)


@pytest.mark.parametrize(
    ("received", "detail"),
    [
        (b"", "the client closed without sending a byte"),
        (EXAMPLE[:3], "the client closed after 3 bytes of its ClientHello"),
        (EXAMPLE[:-1], "the client closed after 108 bytes of its ClientHello"),
    ],
)
def test_a_close_in_the_middle_is_truncation(received: bytes, detail: str) -> None:
    """`close` says how far the client came; a port scanner sends no byte at all."""
    reader = ClientHelloReader(LIMIT)
    assert NEED_MORE is reader.feed(received)
    with pytest.raises(HelloError) as truncated:
        reader.close()
    assert (HelloFault.TRUNCATED, detail) == (truncated.value.fault, truncated.value.detail)


# ---- Properties ----

LABELS = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
EXTRA = st.lists(st.tuples(st.integers(100, 60000), st.binary(max_size=40)), max_size=5, unique_by=lambda pair: pair[0])


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(1, len(data) - 1), max_size=12)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


@settings(deadline=None)
@given(data=st.data(), name=NAMES, protocols=st.lists(LABELS, max_size=4), extra=EXTRA)
def test_any_cut_of_a_valid_hello_reads_the_same(
    data: st.DataObject, name: str, protocols: list[str], extra: list[Extension]
) -> None:
    """Whatever the client puts in, into whatever records it and TCP cut it, comes out."""
    offer = [alpn_extension(protocols)] if protocols else []
    fragments = data.draw(cuts(hello_message([*extra, server_name_extension(name), *offer])))
    wire = b"".join(b"\x16\x03\x01" + vector16(fragment) for fragment in fragments)
    expected = ClientHello(name.encode(), TLS_1_2, (TLS_1_2,), tuple(protocols), ech=False)
    assert expected == outcome(*data.draw(cuts(wire)))


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A valid hello with a few bytes replaced, removed or put in."""
    hello = bytearray(draw(st.sampled_from([EXAMPLE, as_records(EXAMPLE[5:], 40), as_records(EXAMPLE[5:], 1)])))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(hello)))
        end = min(len(hello), start + draw(st.integers(0, 3)))
        hello[start:end] = draw(st.binary(max_size=3))
    return bytes(hello)


@settings(deadline=None, max_examples=500)
@given(mutations() | st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: EXAMPLE[:9] + tail))
def test_no_bytes_raise_anything_but_a_hello_error(data: bytes) -> None:
    """`outcome` catches HelloError alone; and the verdict is the same for one segment and for many."""
    assert outcome(data) == outcome(*singly(data))


@settings(deadline=None)
@given(mutations())
def test_a_verdict_never_changes_with_more_bytes(data: bytes) -> None:
    """What was refused at a prefix stays refused, and what was read stays read."""
    verdicts = [outcome(data[:end]) for end in range(len(data) + 1)]
    final = [verdict for verdict in verdicts if verdict is not NEED_MORE]
    assert [verdicts[-1]] * len(final) == final
