"""What goes upstream until the server has chosen: any hello that names the server that was judged, and no other."""

import itertools
import random
import ssl
from collections.abc import Callable, Iterator

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.names import ServerName
from sniproxy.wire.hello_retry import RETRY, ChangedHelloError, HelloWatch
from tests.wire.build import as_records, build_client_hello, hello_message, server_name_extension, vector16

NAME = ServerName("one.example.org")
LIMIT = 16384
HELLO = build_client_hello(NAME)
ANOTHER = build_client_hello("two.example.org")
CHOSEN = random.Random(1).randbytes(32)


def record(kind: int, fragment: bytes, version: bytes = b"\x03\x03") -> bytes:
    return bytes((kind,)) + version + vector16(fragment)


CHANGE_CIPHER_SPEC = record(20, b"\x01")
WARNING = record(21, bytes((1, 112)))
EARLY_DATA = record(23, random.Random(2).randbytes(700))


def server_hello(random_bytes: bytes, rest: bytes = bytes(40)) -> bytes:
    """The handshake message."""
    body = b"\x03\x03" + random_bytes + rest
    return b"\x02" + len(body).to_bytes(3, "big") + body


RETRY_REQUEST = record(22, server_hello(RETRY))
CHOICE = record(22, server_hello(CHOSEN))


def watching(answer: bytes = b"", head: bytes = HELLO) -> HelloWatch:
    """A watch that has seen the first hello, and `answer` of the server."""
    watch = HelloWatch(NAME, LIMIT)
    assert head == watch.begin(head)
    if answer:
        watch.note(answer)
    return watch


def one_by_one(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def passed(watch: HelloWatch, data: bytes) -> bytes:
    """What goes upstream of `data`, which comes byte by byte. Who asks stops asking when the watch is over."""
    return b"".join([byte if watch.is_over else watch.pass_on(byte) for byte in one_by_one(data)])


# ---- The server ----


CHOICES = {
    "a ServerHello": CHOICE,
    "a ServerHello with its certificate in one record": record(22, server_hello(CHOSEN) + bytes(4000)),
    "a ServerHello in records of one byte": as_records(server_hello(CHOSEN), 1),
    "a ServerHello behind a warning": WARNING + CHOICE,
    "a ServerHello behind a retry": RETRY_REQUEST + CHOICE,
    "a ServerHello behind a retry and a ChangeCipherSpec": RETRY_REQUEST + CHANGE_CIPHER_SPEC + CHOICE,
    "a ServerHello in the record of a retry": record(22, server_hello(RETRY) + server_hello(CHOSEN)),
    "a ServerHello behind a retry in records of seven bytes": as_records(server_hello(RETRY), 7) + CHOICE,
    "what is no ServerHello": record(22, b"\x0b\x00\x00\x04abcd"),
    "a banner": b"220 ready\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
}
REQUESTS = {
    "nothing": b"",
    "a warning": WARNING,
    "a retry": RETRY_REQUEST,
    "a retry and a ChangeCipherSpec": RETRY_REQUEST + CHANGE_CIPHER_SPEC,
    "a retry behind a warning": WARNING + RETRY_REQUEST,
    "a retry in records of one byte": as_records(server_hello(RETRY), 1),
    "a retry in records of seven bytes": as_records(server_hello(RETRY), 7),
    "a retry whose random begins behind what looks like another": record(22, server_hello(RETRY)[:20])
    + record(22, server_hello(RETRY)[20:]),
    "two retries": RETRY_REQUEST * 2,
    "all but the last byte of the random": CHOICE[:42],
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_watch_is_over_when_the_server_says(case: str) -> None:
    """Whole, and byte by byte; what it says behind that does not matter."""
    assert watching(CHOICES[case]).is_over
    assert watching(CHOICES[case] + b"more").is_over
    watch = watching()
    for byte in one_by_one(CHOICES[case]):
        watch.note(byte)
    assert watch.is_over


@pytest.mark.parametrize("case", REQUESTS)
def test_the_watch_goes_on_after(case: str) -> None:
    """Whole, and byte by byte: another name is refused, and the same one passes."""
    whole, in_crumbs = watching(REQUESTS[case]), watching()
    for byte in one_by_one(REQUESTS[case]):
        in_crumbs.note(byte)
    for watch in (whole, in_crumbs):
        assert not watch.is_over
        assert HELLO == watch.pass_on(HELLO)
        with pytest.raises(ChangedHelloError):
            watch.pass_on(ANOTHER)


@given(st.sampled_from(sorted(CHOICES)), st.data())
@settings(max_examples=100)
def test_it_does_not_matter_how_the_answer_is_cut(case: str, data: st.DataObject) -> None:
    answer = CHOICES[case]
    cuts = sorted({0, len(answer), *data.draw(st.lists(st.integers(0, len(answer)), max_size=6))})
    watch = watching()
    for start, end in itertools.pairwise(cuts):
        watch.note(answer[start:end])
    assert watch.is_over


# ---- The client ----


PASSES = {
    "the same name": HELLO,
    "the same name in capitals": build_client_hello("ONE.example.ORG"),
    "a ChangeCipherSpec before it": CHANGE_CIPHER_SPEC + HELLO,
    "early data before it": CHANGE_CIPHER_SPEC + EARLY_DATA * 3 + HELLO,
    "a hello in two records": build_client_hello(NAME, fragment_size=100),
    "a hello in records of one byte": build_client_hello(NAME, fragment_size=1),
    "what follows it": HELLO + CHANGE_CIPHER_SPEC + EARLY_DATA,
    "one hello behind another": HELLO * 3,
    "a hello of the largest size": build_client_hello(NAME, padding=LIMIT),
    "an alert": record(21, b"\x02\x28"),
    "an empty record of early data": record(23, b"") + HELLO,
    "early data whose length looks like the type of a handshake": record(23, bytes(0x1603)) + HELLO,
}


def no_server_name() -> bytes:
    return as_records(hello_message([(10, b"\x00\x02\x00\x17")]))


def another(name: bytes) -> Callable[[], bytes]:
    return lambda: as_records(hello_message([server_name_extension(name)]))


BEHIND = "a ClientHello behind the first"
REFUSED = {
    "another name": (
        another(b"two.example.org"),
        f"{BEHIND} names 'two.example.org', and the first 'one.example.org'",
    ),
    "a longer name": (
        another(b"one.example.org.uk"),
        f"{BEHIND} names 'one.example.org.uk', and the first 'one.example.org'",
    ),
    "no name": (no_server_name, f"{BEHIND}: the ClientHello has no server_name extension"),
    "an address": (
        another(b"::1"),
        f"{BEHIND}: the server name '::1' is an IP address, and a server name is a DNS host name (RFC 6066 section 3)",
    ),
    "what is no name": (another(b"a\n b"), rf"{BEHIND}: the server name 'a\n b' is not a DNS host name"),
    "two names": (
        lambda: as_records(hello_message([server_name_extension(NAME, "two.example.org")])),
        f"{BEHIND}: the server_name extension holds more than one host name",
    ),
    "another message": (
        lambda: record(22, b"\x10\x00\x00\x02ab"),
        f"{BEHIND}: the first handshake message is of type 16, not a ClientHello (1)",
    ),
    "another message in the same record": (
        lambda: record(22, hello_message([server_name_extension(NAME)]) * 2),
        f"{BEHIND}: another handshake message follows the ClientHello in its record",
    ),
    "an empty record before it": (
        lambda: record(22, b"") + HELLO,
        f"{BEHIND}: a handshake record of 0 bytes (1 to 16384 are allowed)",
    ),
    "another record within it": (
        lambda: build_client_hello(NAME, fragment_size=100)[:105] + CHANGE_CIPHER_SPEC,
        f"{BEHIND}: a record of type 20 interrupts the ClientHello",
    ),
    "a record of another version": (
        lambda: b"\x16\x04\x00" + HELLO[3:],
        f"{BEHIND}: the first record is of version 4, and TLS is version 3",
    ),
    "a hello that is too large": (
        lambda: build_client_hello(NAME, padding=LIMIT + 1),
        f"{BEHIND}: the ClientHello does not end within {LIMIT} bytes",
    ),
}
BEFORE = {"nothing": b"", "a ChangeCipherSpec": CHANGE_CIPHER_SPEC, "early data": EARLY_DATA, "the same": HELLO}


@pytest.mark.parametrize("case", PASSES)
def test_what_passes(case: str) -> None:
    """Whole, byte by byte, and together with the first hello; nothing is held then."""
    data = PASSES[case]
    for watch in (watching(), watching(RETRY_REQUEST)):
        assert (data, 0) == (watch.pass_on(data), watch.held)
    watch = watching()
    assert (data, 0) == (passed(watch, data), watch.held)
    watching(head=HELLO + data)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_why(case: str, before: str) -> None:
    """Whatever passes before it, and whether the server has asked for it or not. `held` has what did not go on."""
    make, detail = REFUSED[case]
    data = BEFORE[before] + make()
    for watch in (watching(), watching(RETRY_REQUEST)):
        with pytest.raises(ChangedHelloError) as refused:
            watch.pass_on(data)
        assert (detail, detail, len(data)) == (refused.value.detail, watch.detail, watch.held)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("case", REFUSED)
def test_nothing_of_it_has_passed_when_it_comes_byte_by_byte(case: str, before: str) -> None:
    """But all that came before it."""
    make, detail = REFUSED[case]
    watch, went = watching(RETRY_REQUEST), bytearray()
    with pytest.raises(ChangedHelloError) as refused:
        for byte in one_by_one(BEFORE[before] + make()):
            went += watch.pass_on(byte)
    assert (detail, BEFORE[before]) == (refused.value.detail, bytes(went))


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_with_the_first_hello(case: str) -> None:
    """A client that does not wait to be asked."""
    make, detail = REFUSED[case]
    for first in (HELLO, build_client_hello(NAME, fragment_size=100)):
        head, watch = first + make(), HelloWatch(NAME, LIMIT)
        with pytest.raises(ChangedHelloError):
            watch.begin(head)
        assert (detail, len(head)) == (watch.detail, watch.held)


@pytest.mark.parametrize("first", [HELLO, build_client_hello(NAME, fragment_size=100)], ids=["one record", "many"])
def test_the_first_hello_is_not_judged_again(first: bytes) -> None:
    """It has been, perhaps by a limit that was larger then."""
    watch = HelloWatch(NAME, 10)
    assert first + CHANGE_CIPHER_SPEC == watch.begin(first + CHANGE_CIPHER_SPEC)
    assert not watch.held


@pytest.mark.parametrize("size", [1, 5, 6, 100, len(HELLO) - 1])
def test_a_hello_is_held_until_it_is_whole(size: int) -> None:
    watch = watching(RETRY_REQUEST)
    assert (b"", size) == (watch.pass_on(HELLO[:size]), watch.held)
    assert (HELLO, 0) == (watch.pass_on(HELLO[size:]), watch.held)


def test_a_hello_that_is_under_way_when_the_server_chooses_is_judged_all_the_same() -> None:
    """What is held must not be lost, and the name in it not pass."""
    for whole in (HELLO, ANOTHER):
        watch = watching()
        assert watch.pass_on(whole[:50]) == b""
        watch.note(CHOICE)
        watch.note(b"more")
        assert not watch.is_over
        if whole is HELLO:
            assert (HELLO, True) == (watch.pass_on(HELLO[50:]), watch.is_over)
        else:
            with pytest.raises(ChangedHelloError):
                watch.pass_on(ANOTHER[50:])


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 50, b"\x13\x03\x03\x00\x01a", b"\x80\x2e\x01"])
def test_what_is_no_record_of_tls_ends_the_watch(data: bytes) -> None:
    """And passes, with all that is behind it: any server ends the connection there."""
    for before in (b"", CHANGE_CIPHER_SPEC, HELLO):
        watch = watching()
        assert (before + data + ANOTHER, True) == (watch.pass_on(before + data + ANOTHER), watch.is_over)
        assert before + data + ANOTHER == passed(watching(), before + data + ANOTHER)


# ---- What lets the watch end ----


class Handshake:
    """OpenSSL as client and as server, up to the flight that the client answers the server's first one with."""

    def __init__(self, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, *, retries: bool) -> None:
        self.served: list[str] = []
        context, trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority = trustme.CA()
        authority.issue_cert(NAME).configure_cert(context)
        authority.configure_trust(trust)
        context.maximum_version = maximum
        if retries:
            context.set_ecdh_curve("secp384r1")  # the client offers a key for x25519
        context.sni_callback = lambda _tls, name, _context: self.served.append(str(name))
        self._to_client, self._to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        from_client, from_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trust.wrap_bio(self._to_client, from_client, server_hostname=NAME)
        self._server = context.wrap_bio(self._to_server, from_server, server_side=True)
        assert not self._goes_on(client)
        self.first = from_client.read()
        assert self.hears(self.first)
        self.answer = from_server.read()
        self._to_client.write(self.answer)
        self._goes_on(client)
        self.second = from_client.read()

    @staticmethod
    def _goes_on(side: ssl.SSLObject) -> bool:
        """Whether it needs no more."""
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def hears(self, data: bytes) -> bool:
        """Whether the server goes on after this, or waits for more. If not, it has ended the connection."""
        self._to_server.write(data)
        try:
            self._goes_on(self._server)
        except ssl.SSLError:
            return False
        return True


def another_name(flight: bytes) -> bytes:
    assert NAME.encode() in flight
    return flight.replace(NAME.encode(), b"two.example.org")


def test_openssl_serves_the_second_name_after_a_retry() -> None:
    """The witness works: this is what the watch is for, and it refuses it."""
    its = Handshake(retries=True)
    assert its.hears(another_name(its.second))
    assert [NAME, "two.example.org"] == its.served
    watch = watching(its.answer, its.first)
    with pytest.raises(ChangedHelloError):
        watch.pass_on(another_name(its.second))


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_openssl_ends_the_connection_at_a_hello_behind_its_choice(maximum: ssl.TLSVersion) -> None:
    its = Handshake(maximum, retries=False)
    assert watching(its.answer, its.first).is_over
    assert not its.hears(another_name(its.first))
    assert [NAME] == its.served


@pytest.mark.parametrize("first_byte", [*range(20), *range(28, 256)])
def test_openssl_ends_the_connection_at_what_is_no_record_of_tls(first_byte: int) -> None:
    """After a retry that it has asked for, whatever hello is behind it."""
    its = Handshake(retries=True)
    strange = record(first_byte, b"strange")
    watch = watching(its.answer, its.first)
    assert (strange, True) == (watch.pass_on(strange), watch.is_over)
    assert not its.hears(strange + another_name(its.second))
    assert [NAME] == its.served


@given(st.data())
@settings(max_examples=100)
def test_it_does_not_matter_how_the_hello_is_cut(data: st.DataObject) -> None:
    """Into records and into reads: what passes is a prefix, and all of it in the end; or none of the other hello."""
    size, name = data.draw(st.integers(1, 300)), data.draw(st.sampled_from([str(NAME), "two.example.org"]))
    before = data.draw(st.sampled_from(sorted(BEFORE)))
    stream = BEFORE[before] + build_client_hello(name, fragment_size=size)
    cuts = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=8))})
    watch, went = watching(RETRY_REQUEST), b""
    try:
        for start, end in itertools.pairwise(cuts):
            went += watch.pass_on(stream[start:end])
            assert (went, end) == (stream[: len(went)], len(went) + watch.held)
        assert (stream, str(NAME)) == (went, name)
    except ChangedHelloError:
        assert (name != NAME, BEFORE[before].startswith(went)) == (True, True)
