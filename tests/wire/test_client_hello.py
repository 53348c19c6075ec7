"""The ClientHello, from the message of RFC 8446 to the name that a policy judges."""

from pathlib import Path

import pytest

from sniproxy.names import ServerName
from sniproxy.wire.client_hello import (
    ClientHello,
    HelloError,
    HelloFault,
    NoServerName,
    parse_client_hello,
)
from sniproxy.wire.hello_records import read_client_hello
from tests.wire.build import (
    ALPN,
    ENCRYPTED_CLIENT_HELLO,
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
from tests.wire.reading import EXAMPLE, EXAMPLE_HELLO, check_every_split, outcome

DATA = Path(__file__).parent.parent / "data" / "client_hello"


def hello_with(*extensions: Extension) -> bytes:
    return as_records(hello_message(extensions))


# ---- What is read ----


def test_every_field_of_the_example_is_read() -> None:
    """Its bytes say what its value says, however they are cut."""
    check_every_split(EXAMPLE_HELLO, EXAMPLE)


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


# ---- What is refused ----

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
