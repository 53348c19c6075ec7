"""The records that carry a ClientHello, from the bytes of RFC 8446 to the handshake message."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.wire.client_hello import ClientHello, HelloError, HelloFault
from sniproxy.wire.hello_records import ClientHelloReader, read_client_hello, read_whole_client_hello
from sniproxy.wire.need_more import NEED_MORE
from tests.wire.build import (
    KEY_SHARE,
    TLS_1_2,
    TLS_1_3,
    Extension,
    alpn_extension,
    as_records,
    build_client_hello,
    hello_message,
    server_name_extension,
    u16,
    vector16,
)
from tests.wire.reading import EXAMPLE, EXAMPLE_HELLO, LIMIT, check_every_split, outcome, singly

# ---- What is read ----


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


def test_the_reader_counts_the_bytes_of_the_hello() -> None:
    """`received` is what belongs to the hello, record headers included, and not what follows."""
    whole, cut = ClientHelloReader(LIMIT), ClientHelloReader(LIMIT)
    whole.feed(EXAMPLE + b"\x17\x03\x03")
    for segment in singly(EXAMPLE):
        cut.feed(segment)
    assert (len(EXAMPLE), len(EXAMPLE)) == (whole.received, cut.received)


def test_a_hello_in_one_record_is_read_without_a_reader() -> None:
    """`read_whole_client_hello` takes what nearly all send, and leaves all else to a reader, the wrong too."""
    assert EXAMPLE_HELLO == read_whole_client_hello(EXAMPLE, LIMIT)
    assert EXAMPLE_HELLO == read_whole_client_hello(EXAMPLE + b"\x17", len(EXAMPLE))
    for left in (b"", EXAMPLE[:-1], as_records(EXAMPLE[5:], 100), b"GET / HTTP/1.1\r\n\r\n"):
        assert NEED_MORE == read_whole_client_hello(left, LIMIT)
    assert NEED_MORE == read_whole_client_hello(EXAMPLE, len(EXAMPLE) - 1)


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


# ---- What is refused ----

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
