"""The PROXY protocol reader, its checksum, and the encoder that the demonstration and the tests send with."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.wire.need_more import NEED_MORE
from sniproxy.wire.proxy_protocol import (
    CLIENT_CERT_CONN,
    CLIENT_CERT_SESS,
    CLIENT_SSL,
    MAX_HEADER,
    NOT_SENT,
    SUBTYPE_SSL_CLIENT_CERT,
    SUBTYPE_SSL_CN,
    SUBTYPE_SSL_VERSION,
    TYPE_NOOP,
    NoAddress,
    ProxyHeader,
    ProxyHeaderError,
    SocketAddress,
    SslInfo,
    Tlv,
    encode_proxy_header,
    encode_ssl_tlv,
    parse_ssl_tlv,
    read_proxy_header,
)

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
CLIENT = SocketAddress("10.1.2.3", 4711)
GATEWAY = SocketAddress("10.0.0.1", 8443)

# What a gateway's Envoy sends: its client's addresses, the SPIFFE ID in 0xD0, the outer server name in 0x02.
SPIFFE_ID = b"spiffe://cluster.local/ns/default/sa/sleep-us"
ENVOY = SIGNATURE + (
    bytes.fromhex(
        "21"  # version 2, PROXY
        "11 003c"  # TCP over IPv4; 60 bytes follow
        "0a010203 0a000001 1267 20fb"  # 10.1.2.3, 10.0.0.1, ports 4711 and 8443
        "d0 002d"  # TLV 0xD0, 45 bytes
    )
    + SPIFFE_ID
)
ENVOY_HEADER = ProxyHeader(
    size=76,
    version=2,
    source="10.1.2.3",
    tlvs=(Tlv(0xD0, SPIFFE_ID),),
)


# What HAProxy 2.6 sent with `send-proxy-v2-ssl-cn proxy-v2-options crc32c,authority`, for a client whose
# certificate has the common name "sleep-us": a checksum that is not of our making.
HAPROXY = SIGNATURE + bytes.fromhex(
    "21 11 003d"  # version 2, PROXY, TCP over IPv4; 61 bytes follow
    "7f000001 7f000001 8694 ed51"  # 127.0.0.1 twice, ports 34452 and 60753
    "03 0004 9c425d24"  # CRC32C
    "02 000a 67772e6578616d706c65"  # authority: "gw.example"
    "20 001a 07 00000000"  # SSL: a certificate in this connection and its session, verified
    "21 0007 544c5376312e33"  # version: "TLSv1.3"
    "22 0008 736c6565702d7573"  # common name: "sleep-us"
)
HAPROXY_HEADER = ProxyHeader(
    size=77,
    version=2,
    source="127.0.0.1",
    tlvs=(Tlv(0x02, b"gw.example"), Tlv(0x20, HAPROXY[51:])),
)


def v2(version_and_command: int, family: int, block: bytes = b"") -> bytes:
    return SIGNATURE + bytes((version_and_command, family)) + len(block).to_bytes(2, "big") + block


def check_all_prefixes(expected: ProxyHeader, data: bytes) -> None:
    """Every prefix needs more, and what follows the header is left alone."""
    for end in range(len(data)):
        assert NEED_MORE is read_proxy_header(data[:end])
    for trailing in (b"", b"\x16\x03\x01", b"\r\n", SIGNATURE):
        assert expected == read_proxy_header(data + trailing)


# ---- Version 2 ----

TCP4_BLOCK = bytes.fromhex("0a010203 0a000001 1267 20fb")
TCP6_BLOCK = bytes.fromhex(
    "20010db8000000000000000000000001 00000000000000000000ffff0a000001 ffff 0000"  # 2001:db8::1, ::ffff:10.0.0.1
)

ACCEPTED = {
    "Envoy's header, with an identity": (ENVOY, ENVOY_HEADER),
    "HAProxy's header, with a checksum": (HAPROXY, HAPROXY_HEADER),
    "TCP over IPv4": (v2(0x21, 0x11, TCP4_BLOCK), ProxyHeader(28, 2, source="10.1.2.3")),
    "TCP over IPv6, in canonical text": (
        v2(0x21, 0x21, TCP6_BLOCK[:16] * 2 + TCP6_BLOCK[32:]),
        ProxyHeader(52, 2, source="2001:db8::1"),
    ),
    "a Unix socket, whose paths say nothing": (
        v2(0x21, 0x31, bytes(216) + b"\xd0\x00\x01a"),
        ProxyHeader(236, 2, source=NoAddress.UNIX, tlvs=(Tlv(0xD0, b"a"),)),
    ),
    "an unspecified family, which may have TLVs": (
        v2(0x21, 0x00, b"\xd0\x00\x01a"),
        ProxyHeader(20, 2, source=NoAddress.UNKNOWN, tlvs=(Tlv(0xD0, b"a"),)),
    ),
    "LOCAL, as health checks have it": (
        v2(0x20, 0x00),
        ProxyHeader(16, 2, local=True, source=NoAddress.LOCAL),
    ),
    "LOCAL with a block, which is skipped unread": (
        v2(0x20, 0xFF, TCP4_BLOCK + b"\xd0\x00\x01a?"),
        ProxyHeader(33, 2, local=True, source=NoAddress.LOCAL),
    ),
    "padding, which is dropped": (
        v2(0x21, 0x11, TCP4_BLOCK + b"\x04\x00\x00" + b"\xd0\x00\x01a" + b"\x04\x00\x02??"),
        ProxyHeader(40, 2, source="10.1.2.3", tlvs=(Tlv(0xD0, b"a"),)),
    ),
    "a type twice, for others to judge": (
        v2(0x21, 0x11, TCP4_BLOCK + b"\xd0\x00\x01a" + b"\xd0\x00\x00"),
        ProxyHeader(35, 2, source="10.1.2.3", tlvs=(Tlv(0xD0, b"a"), Tlv(0xD0, b""))),
    ),
    "TCP4 of version 1": (
        b"PROXY TCP4 10.1.2.3 10.0.0.1 4711 8443\r\n",
        ProxyHeader(40, 1, source="10.1.2.3"),
    ),
    "TCP6 of version 1, in canonical text": (
        b"PROXY TCP6 2001:DB8:0::1 ::1 65535 0\r\n",
        ProxyHeader(38, 1, source="2001:db8::1"),
    ),
    "UNKNOWN of version 1": (
        b"PROXY UNKNOWN\r\n",
        ProxyHeader(15, 1, source=NoAddress.UNKNOWN),
    ),
    "UNKNOWN with anything behind it": (
        b"PROXY UNKNOWN ffff::1 rubbish\xff\r\n",
        ProxyHeader(32, 1, source=NoAddress.UNKNOWN),
    ),
    "a line of 107 bytes": (
        b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n",
        ProxyHeader(107, 1, source=NoAddress.UNKNOWN),
    ),
}


@pytest.mark.parametrize(("data", "expected"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_header_is_read_at_its_last_byte(data: bytes, expected: ProxyHeader) -> None:
    """Whole, byte by byte, and with the client's own bytes behind it."""
    check_all_prefixes(expected, data)


def test_an_ipv4_mapped_address_is_left_as_ipv6() -> None:
    """Whether ::ffff:10.0.0.1 is 10.0.0.1 is for the rules to say, not for the wire."""
    header = read_proxy_header(v2(0x21, 0x21, TCP6_BLOCK[16:32] * 2 + TCP6_BLOCK[32:]))
    assert isinstance(header, ProxyHeader)
    assert isinstance(header.source, str)
    assert header.source.startswith("::ffff:")


REFUSED = {
    "TLS, where a header must be": (b"\x16\x03\x01", "begins with"),
    "nearly a signature": (SIGNATURE[:-1] + b"\x00", "begins with"),
    "nearly the word": (b"PROXI", "begins with"),
    "the word without its space": (b"PROXY\r\n", "begins with"),
    "version 1 in binary": (v2(0x11, 0x11, TCP4_BLOCK), "version and command 0x11"),
    "version 3": (v2(0x31, 0x11, TCP4_BLOCK), "version and command 0x31"),
    "an unassigned command": (v2(0x22, 0x11, TCP4_BLOCK), "version and command 0x22"),
    "UDP over IPv4": (v2(0x21, 0x12, TCP4_BLOCK), "datagrams"),
    "UDP over IPv6": (v2(0x21, 0x22, TCP6_BLOCK), "datagrams"),
    "a Unix datagram socket": (v2(0x21, 0x32, bytes(216)), "datagrams"),
    "an unknown family": (v2(0x21, 0x41, TCP4_BLOCK), "family and protocol 0x41"),
    "IPv4 without a protocol": (v2(0x21, 0x10, TCP4_BLOCK), "family and protocol 0x10"),
    "half an IPv4 address": (v2(0x21, 0x11, TCP4_BLOCK[:-1]), "too short for its addresses"),
    "half an IPv6 address": (v2(0x21, 0x21, TCP6_BLOCK[:-1]), "too short for its addresses"),
    "half a Unix path": (v2(0x21, 0x31, bytes(215)), "too short for its addresses"),
    "half a TLV's head": (v2(0x21, 0x11, TCP4_BLOCK + b"\xd0\x00"), "middle of a TLV"),
    "half a TLV's value": (v2(0x21, 0x11, TCP4_BLOCK + b"\xd0\x00\x02a"), "past the end"),
    "a byte behind the last TLV": (v2(0x21, 0x11, TCP4_BLOCK + b"\xd0\x00\x01aa"), "middle of a TLV"),
    "a header larger than the bound, before it is there": (
        SIGNATURE + b"\x21\x11" + (MAX_HEADER - 15).to_bytes(2, "big"),
        "16385 bytes, and 16384 are the most",
    ),
    "a LOCAL header larger than the bound": (SIGNATURE + b"\x20\x00\xff\xff", "are the most"),
    "a checksum of three bytes": (v2(0x21, 0x11, TCP4_BLOCK + b"\x03\x00\x03abc"), "exactly one checksum"),
    "two checksums": (v2(0x21, 0x11, TCP4_BLOCK + b"\x03\x00\x04abcd" * 2), "exactly one checksum"),
    "a wrong checksum": (v2(0x21, 0x11, TCP4_BLOCK + b"\x03\x00\x04abcd"), "checksum .* is wrong"),
    "a line of 108 bytes": (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "CRLF within 107 bytes"),
    "107 bytes and no end": (b"PROXY UNKNOWN " + b"x" * 93, "CRLF within 107 bytes"),
    "a line that ends in LF alone": (b"PROXY TCP4 10.1.2.3 10.0.0.1 1 2\n", "CRLF"),
    "an unknown protocol": (b"PROXY UDP4 10.1.2.3 10.0.0.1 1 2\r\n", "not TCP4, TCP6 or UNKNOWN"),
    "a protocol in lower case": (b"PROXY tcp4 10.1.2.3 10.0.0.1 1 2\r\n", "not TCP4, TCP6 or UNKNOWN"),
    "UNKNOWN with a letter more": (b"PROXY UNKNOWNS\r\n", "not TCP4, TCP6 or UNKNOWN"),
    "no protocol": (b"PROXY \r\n", "not TCP4, TCP6 or UNKNOWN"),
    "a field too few": (b"PROXY TCP4 10.1.2.3 10.0.0.1 1\r\n", "3 fields"),
    "a field too many": (b"PROXY TCP4 10.1.2.3 10.0.0.1 1 2 3\r\n", "5 fields"),
    "two spaces": (b"PROXY TCP4  10.1.2.3 10.0.0.1 1 2\r\n", "5 fields"),
    "IPv6 in TCP4": (b"PROXY TCP4 ::1 ::1 1 2\r\n", "no address"),
    "IPv4 in TCP6": (b"PROXY TCP6 10.1.2.3 10.0.0.1 1 2\r\n", "no address"),
    "an address with a leading zero": (b"PROXY TCP4 10.01.2.3 10.0.0.1 1 2\r\n", "no address"),
    "an address of three parts": (b"PROXY TCP4 10.2.3 10.0.0.1 1 2\r\n", "no address"),
    "an address with a zone": (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "no address"),
    "a name for an address": (b"PROXY TCP4 localhost 10.0.0.1 1 2\r\n", "no address"),
    "a port with a leading zero": (b"PROXY TCP4 10.1.2.3 10.0.0.1 01 2\r\n", "no port"),
    "a port with a sign": (b"PROXY TCP4 10.1.2.3 10.0.0.1 +1 2\r\n", "no port"),
    "a port too large": (b"PROXY TCP4 10.1.2.3 10.0.0.1 1 65536\r\n", "no port"),
    "an empty port": (b"PROXY TCP4 10.1.2.3 10.0.0.1 1 \r\n", "no port"),
    "a port that is no ASCII": ("PROXY TCP4 10.1.2.3 10.0.0.1 1 ٣\r\n".encode(), "no port"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_header_is_refused(data: bytes, reason: str) -> None:
    """No field is guessed, and none is skipped: an identity depends on them."""
    for trailing in (b"", b"\x16\x03\x01"):
        with pytest.raises(ProxyHeaderError, match=reason):
            read_proxy_header(data + trailing)


# ---- The checksum (section 2.2.3) ----


@pytest.mark.parametrize("tlvs", [[], [Tlv(0xD0, SPIFFE_ID)], [Tlv(0xD0, b""), Tlv(TYPE_NOOP, b"??")]])
def test_a_right_checksum_is_accepted_and_dropped(tlvs: list[Tlv]) -> None:
    """It protects the header and tells nobody anything further."""
    header = read_proxy_header(encode_proxy_header(CLIENT, GATEWAY, tlvs, checksum=True))
    assert isinstance(header, ProxyHeader)
    assert tuple(tlv for tlv in tlvs if tlv.type != TYPE_NOOP) == header.tlvs


# Not the heads of the TLVs: another type has another meaning, another length is found out before the checksum.
@pytest.mark.parametrize("at", [*range(16, 28), *range(31, 35), *range(38, 48), *range(51, 56)])
def test_a_checksum_finds_a_flipped_bit(at: int) -> None:
    """In the addresses, in the checksum itself, in a name, in what is said of a certificate."""
    data = bytearray(HAPROXY)
    data[at] ^= 0x10
    with pytest.raises(ProxyHeaderError, match="checksum"):
        read_proxy_header(bytes(data))


# ---- PP2_TYPE_SSL (section 2.2.6) ----


def test_an_ssl_tlv_is_taken_apart() -> None:
    """As ghostunnel sends it: flags, verification, version, common name, the certificate itself."""
    tlv = encode_ssl_tlv(
        CLIENT_SSL | CLIENT_CERT_CONN,
        0,
        [
            Tlv(SUBTYPE_SSL_VERSION, b"TLS 1.3"),
            Tlv(SUBTYPE_SSL_CN, b"sleep-us"),
            Tlv(SUBTYPE_SSL_CLIENT_CERT, b"\x30\x00"),
            Tlv(0x23, b"a cipher, which nobody asks for"),
        ],
    )
    assert 0x20 == tlv.type
    assert SslInfo(3, 0, b"TLS 1.3", b"sleep-us", b"\x30\x00") == parse_ssl_tlv(tlv.value)


def test_haproxy_tells_of_a_verified_certificate() -> None:
    """But not its SPIFFE ID: HAProxy sends the common name alone."""
    info = parse_ssl_tlv(HAPROXY_HEADER.tlvs[1].value)
    assert SslInfo(7, 0, b"TLSv1.3", b"sleep-us", NOT_SENT) == info
    assert info.certificate_verified


def test_what_an_ssl_tlv_leaves_out_is_not_sent() -> None:
    """Absence is a value of its own, not an empty string."""
    assert SslInfo(1, 1, NOT_SENT, NOT_SENT, NOT_SENT) == parse_ssl_tlv(b"\x01\x00\x00\x00\x01")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "0 bytes"),
        (b"\x01\x00\x00\x00", "4 bytes"),
        (b"\x01\x00\x00\x00\x00\x21", "middle of a TLV"),
        (b"\x01\x00\x00\x00\x00\x21\x00\x02a", "past the end"),
        (b"\x01\x00\x00\x00\x00" + b"\x28\x00\x01a" * 2, "two sub-TLVs of one type"),
        (b"\x01\x00\x00\x00\x00" + b"\x99\x00\x00" * 2, "two sub-TLVs of one type"),
    ],
)
def test_a_malformed_ssl_tlv_is_refused(value: bytes, reason: str) -> None:
    """Which of two certificates counts must not depend on the reader."""
    with pytest.raises(ProxyHeaderError, match=reason):
        parse_ssl_tlv(value)


@pytest.mark.parametrize(
    ("client", "verify", "verified"),
    [
        (CLIENT_SSL | CLIENT_CERT_CONN, 0, True),
        (CLIENT_SSL | CLIENT_CERT_SESS, 0, True),
        (CLIENT_SSL | CLIENT_CERT_CONN | CLIENT_CERT_SESS, 0, True),
        (CLIENT_SSL | CLIENT_CERT_CONN, 1, False),
        (CLIENT_SSL | CLIENT_CERT_CONN, 0xFFFFFFFF, False),
        (CLIENT_SSL, 0, False),
        (CLIENT_CERT_CONN | CLIENT_CERT_SESS, 0, False),
        (0, 0, False),
    ],
)
def test_a_certificate_is_verified_when_all_fields_say_so(client: int, verify: int, verified: bool) -> None:
    """TLS, a certificate in this connection or its session, and a verification without error."""
    assert verified is parse_ssl_tlv(encode_ssl_tlv(client, verify).value).certificate_verified


# ---- The encoder ----


def test_the_encoder_writes_what_envoy_writes() -> None:
    """Byte by byte."""
    assert ENVOY == encode_proxy_header(CLIENT, GATEWAY, [Tlv(0xD0, SPIFFE_ID)])


@pytest.mark.parametrize(
    ("source", "destination"),
    [(CLIENT, SocketAddress("::1", 1)), (CLIENT, NoAddress.LOCAL), (NoAddress.UNIX, NoAddress.LOCAL)],
)
def test_the_encoder_refuses_ends_of_two_kinds(
    source: SocketAddress | NoAddress, destination: SocketAddress | NoAddress
) -> None:
    """A header has one family for both of its addresses."""
    with pytest.raises(ValueError, match=re.escape(str(source)) + "|10.1.2.3"):
        encode_proxy_header(source, destination)


# ---- Properties ----

PORTS = st.integers(0, 65535)
IPV4 = st.builds(SocketAddress, st.ip_addresses(v=4).map(str), PORTS)
IPV6 = st.builds(SocketAddress, st.ip_addresses(v=6).map(str), PORTS)
ENDS = st.tuples(IPV4, IPV4) | st.tuples(IPV6, IPV6) | st.sampled_from(NoAddress).map(lambda end: (end, end))
TLVS = st.lists(
    st.builds(Tlv, st.integers(0, 255).filter(lambda kind: kind not in (3, 4)), st.binary(max_size=50)),
    max_size=4,
)


@settings(deadline=None)
@given(ends=ENDS, tlvs=TLVS, checksum=st.booleans(), trailing=st.binary(max_size=20))
def test_what_is_encoded_is_read(
    ends: tuple[SocketAddress | NoAddress, SocketAddress | NoAddress],
    tlvs: list[Tlv],
    checksum: bool,
    trailing: bytes,
) -> None:
    """The reader undoes the encoder, whatever follows."""
    source, destination = ends
    data = encode_proxy_header(source, destination, tlvs, checksum=checksum)
    local = source is NoAddress.LOCAL
    client = source if isinstance(source, NoAddress) else source.ip
    expected = ProxyHeader(len(data), 2, local=local, source=client, tlvs=() if local else tuple(tlvs))
    assert expected == read_proxy_header(data + trailing)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A good header with a few bytes replaced, removed or put in."""
    header = bytearray(draw(st.sampled_from([data for data, _ in ACCEPTED.values()])))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(header)))
        end = min(len(header), start + draw(st.integers(0, 3)))
        header[start:end] = draw(st.binary(max_size=3))
    return bytes(header)


@settings(deadline=None, max_examples=500)
@given(mutations() | st.binary(max_size=60).map(lambda tail: SIGNATURE + tail) | st.binary(max_size=120))
def test_no_bytes_raise_anything_but_a_proxy_header_error(data: bytes) -> None:
    """And what is read never reaches past the bytes that were there."""
    try:
        header = read_proxy_header(data)
    except ProxyHeaderError:
        return
    assert header is NEED_MORE or header.size <= len(data)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_ssl_tlv_raises_anything_but_a_proxy_header_error(value: bytes) -> None:
    """The value of a TLV is as foreign as the header around it."""
    try:
        parse_ssl_tlv(value)
    except ProxyHeaderError:
        return
