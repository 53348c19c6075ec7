"""The property that the proxy stands on: OpenSSL, as the server behind, sees the name that we judged.

And where OpenSSL goes along with a hello that we refuse, docs/client-hello.md gives the reason: its table is read here,
and each of its rows is shown to be true.
"""

import random
import re
import ssl
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.intake import refused_hello
from sniproxy.wire.client_hello import ClientHello, HelloError, HelloFault, NoServerName
from sniproxy.wire.hello_records import ClientHelloReader, read_client_hello
from sniproxy.wire.need_more import NEED_MORE, NeedMore
from tests.fuzz import hellos
from tests.support.openssl import Server, Unseen, openssl_hello
from tests.wire.build import (
    ALPN,
    KEY_SHARE,
    PADDING,
    SERVER_NAME,
    TLS_1_2,
    TLS_1_3,
    Extension,
    alpn_extension,
    as_records,
    hello_message,
    server_name_extension,
    supported_versions_extension,
    u16,
    vector16,
)

LIMIT = 65536
DOC = Path(__file__).parent.parent.parent / "docs" / "client-hello.md"


@pytest.mark.parametrize(
    ("maximum", "versions", "highest"),
    [
        (ssl.TLSVersion.TLSv1_2, (TLS_1_2,), "TLSv1.2"),
        (ssl.TLSVersion.TLSv1_3, (TLS_1_3, TLS_1_2), "TLSv1.3"),
    ],
)
def test_what_an_openssl_client_asks_for_is_what_we_read(
    maximum: ssl.TLSVersion, versions: tuple[int, ...], highest: str
) -> None:
    """Name, protocols and versions, from TLS 1.2 and from TLS 1.3."""
    hello = read_client_hello(openssl_hello("en.wikipedia.org", ["h2", "http/1.1"], maximum))
    assert isinstance(hello, ClientHello)
    assert ClientHello(b"en.wikipedia.org", TLS_1_2, versions, ("h2", "http/1.1"), ech=False) == hello
    assert highest == hello.tls_version
    assert "en.wikipedia.org" == hello.server_name()


@pytest.fixture(scope="module")
def server() -> Server:
    return Server.new()


# ---- The key property ----


def judged(hello: bytes) -> bytes | HelloError | NeedMore:
    """The name that we would let pass, as it was sent; normalising is no business of OpenSSL's."""
    try:
        answer = read_client_hello(hello, LIMIT)
        if answer is NEED_MORE:
            return answer
        answer.server_name()
    except HelloError as refusal:
        return refusal
    assert not isinstance(answer.raw_server_name, NoServerName)
    return answer.raw_server_name


def check_agreement(server: Server, hello: bytes) -> None:
    """Whoever refuses is right; where both accept, there is one name. And where we wait, nobody is served yet."""
    ours = judged(hello)
    theirs = server.name_in(hello)
    if isinstance(ours, bytes):
        assert isinstance(theirs, Unseen) or theirs == ours
    elif ours is NEED_MORE:
        assert isinstance(theirs, Unseen)


CLIENT_HELLO = openssl_hello("en.wikipedia.org", ["h2", "http/1.1"])
RECORDED = hellos.recorded()


def test_the_server_sees_the_name_of_an_untouched_hello(server: Server) -> None:
    """The witness works: it accepts what is right, waits for the rest of it, and refuses two names."""
    for hello in (CLIENT_HELLO, *RECORDED.values()):
        assert b"en.wikipedia.org" == server.name_in(hello)
        assert Unseen.WAITING is server.name_in(hello[:-1])
    name = SERVER_NAME, vector16(b"\x00\x00\x01a")
    assert b"a" == server.name_in(hello_of(name))
    assert None is server.name_in(hello_of())
    assert Unseen.REFUSED is server.name_in(hello_of(name, name))


def hello_of(*extensions: Extension, fragment_size: int = 2**14) -> bytes:
    """A hello that OpenSSL goes along with, but for these extensions."""
    needed = [
        supported_versions_extension([TLS_1_3]),
        (KEY_SHARE, vector16(u16(29) + vector16(b"\x09" + bytes(31)))),
        (10, vector16(u16(29))),
        (13, vector16(u16(0x0804) + u16(0x0403))),
    ]
    return as_records(hello_message([*extensions, *needed]), fragment_size)


def test_the_fields_that_decide_agree_at_every_single_byte(server: Server) -> None:
    """Each byte of the server_name extension set to a few values that lengths and types are made of."""
    hello = bytearray(hello_of((SERVER_NAME, vector16(b"\x00" + vector16(b"a.example"))), alpn_extension(["h2"])))
    start = hello.index(b"a.example") - 9
    for at in range(start, start + 30):
        original = hello[at]
        for value in {0, 1, 2, 3, 9, 12, 14, 0x2E, 0x61, original ^ 1, original + 1}:
            hello[at] = value
            check_agreement(server, bytes(hello))
        hello[at] = original


@st.composite
def replacements(draw: st.DrawFn) -> bytes:
    hello = bytearray(draw(st.sampled_from(sorted(RECORDED.values()))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(hello) - 1))
        hello[at] = draw(st.integers(0, 127))
    return bytes(hello)


NAME_ENTRIES = st.tuples(st.sampled_from([0, 0, 0, 1]), st.sampled_from([b"a", b"b.example", b"", b"a\x00b"]))


@st.composite
def server_name_bodies(draw: st.DrawFn) -> bytes:
    """Lists of names with, now and then, a length that is off by one or bytes that belong nowhere."""
    off_by = st.sampled_from([0, 0, 0, 1, -1])
    names = b""
    for name_type, name in draw(st.lists(NAME_ENTRIES, min_size=1, max_size=2)):
        names += bytes((name_type,)) + u16(max(0, len(name) + draw(off_by))) + name
    return u16(max(0, len(names) + draw(off_by))) + names + draw(st.sampled_from([b"", b"", b"", b"\x00"]))


@st.composite
def unusual_hellos(draw: st.DrawFn) -> bytes:
    """Hellos with well-framed extensions and a server name that is right, wrong, absent or there twice."""
    kinds = draw(st.lists(st.sampled_from([SERVER_NAME, SERVER_NAME, ALPN, 21, 0x1A1A, 65000]), max_size=4))
    extensions = [
        (kind, draw(server_name_bodies()) if kind == SERVER_NAME else draw(st.binary(max_size=6))) for kind in kinds
    ]
    return hello_of(*extensions, fragment_size=draw(st.sampled_from([7, 50, 2**14])))


@settings(deadline=None, max_examples=400)
@given(hello=replacements() | unusual_hellos())
def test_openssl_never_sees_another_name_than_we_do(server: Server, hello: bytes) -> None:
    """The key property: a name is judged, and that name is served, or nobody is."""
    check_agreement(server, hello)


@pytest.mark.parametrize("client", RECORDED)
def test_no_change_of_a_real_hello_makes_openssl_see_another_name(server: Server, client: str) -> None:
    """Thousands of hellos, each wrong in one to three places that `hellos` knows to be worth trying."""
    for hello in changed_hellos(client):
        check_agreement(server, hello)


def changed_hellos(client: str) -> Iterator[bytes]:
    """Always the same; every kind of change alone, in many ways, and then some together."""
    dice = random.Random(client)
    for change in hellos.CHANGES:
        for _ in range(60):
            hello = hellos.dissect(RECORDED[client])
            change(hello, dice)
            yield hello.encoded()
    for _ in range(2500):
        yield hellos.changed(RECORDED[client], dice, changes=dice.choice((2, 2, 3)))


# What these change is on the way to the name. The others change what is stepped over, which OpenSSL may mind.
ON_THE_WAY = (
    hellos.another_name,
    hellos.names_in_one_list,
    hellos.bytes_of_the_name_extension,
    hellos.cut_name_extension,
    hellos.a_second_name_extension,
    hellos.an_extension_twice,
    hellos.other_protocols,
    hellos.a_session_id,
    hellos.a_record_version,
    hellos.a_handshake_type,
    hellos.bytes_behind,
    hellos.records,
    hellos.a_record_between,
    hellos.one_more_hello,
)


@pytest.mark.parametrize("change", ON_THE_WAY, ids=lambda change: change.__name__)
def test_the_way_to_the_name_is_read_as_strictly_as_openssl_reads_it(server: Server, change: hellos.Change) -> None:
    """What OpenSSL refuses there, we refuse: another server might not."""
    for client, recorded in RECORDED.items():
        dice = random.Random(client)
        for _ in range(100):
            hello = hellos.dissect(recorded)
            change(hello, dice)
            if server.name_in(hello.encoded()) is Unseen.REFUSED:
                assert isinstance(judged(hello.encoded()), HelloError)


def test_a_second_hello_after_a_retry_may_name_another_server() -> None:
    """Why docs/client-hello.md has a section on it. If OpenSSL begins to compare the names, that can be said there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("example.org").configure_cert(context)
    context.set_ecdh_curve("prime256v1")  # OpenSSL's clients offer a key for x25519, and are asked to try again
    seen: list[str | None] = []
    context.sni_callback = lambda _object, name, _context: seen.append(name)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    from_client, from_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = client_context.wrap_bio(to_client, from_client, server_hostname="one.example.org")
    side = context.wrap_bio(to_server, from_server, server_side=True)
    for step in (client, side, client, side):
        with pytest.raises(ssl.SSLWantReadError):
            step.do_handshake()
        to_server.write(
            from_client.read().replace(b"one.example.org", b"two.example.org" if seen else b"one.example.org")
        )
        to_client.write(from_server.read())
    context.sni_callback = None
    assert ["one.example.org", "two.example.org"] == seen


# ---- The documented list ----


class Row(NamedTuple):
    """A refusal in the table of docs/client-hello.md."""

    sentence: str
    reason: str
    openssl: str

    @property
    def pattern(self) -> re.Pattern[str]:
        def meaning(word: re.Match[str]) -> str:
            return PLACEHOLDERS[word[0]]

        return re.compile(re.sub(rf"\b(?:{'|'.join(PLACEHOLDERS)})\b", meaning, re.escape(self.sentence)), re.DOTALL)


PLACEHOLDERS = {"0xNN": "0x[0-9a-f]{2}", "N": "[0-9]+", "NAME": "['\"].*['\"]", "PROTOCOL": ".+"}


def documented() -> list[Row]:
    table = re.findall(r"^\| `(.+?)` \| `(\w+)` \| [^|]+ \| (\w+) \|$", DOC.read_text(), re.MULTILINE)
    return [Row(*cells) for cells in table]


ROWS = documented()
PATTERNS = [(row, row.pattern) for row in ROWS]

SSL_2 = bytes.fromhex("802e 01 0301 0015 0000 0010" + "00002f 000035 00000a 0000ff 000005 000004 010080" + "00" * 16)


def with_padding(size: int) -> bytes:
    return as_records(
        hello_message([server_name_extension("a.example"), (PADDING, bytes(size))], cipher_suites=b"\x13\x01" * 9000)
    )


# What changes of real hellos do not come to.
OTHERS = (
    SSL_2,
    with_padding(60_000),
    b"GET / HTTP/1.1\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x15\x03\x01\x00\x02\x02\x28",
)


def test_every_refusal_is_documented_with_its_reason_and_with_what_openssl_does(server: Server) -> None:
    """The rows are exact: each is met, none is missing, and where OpenSSL accepts what we refuse, its row says so."""
    met: dict[Row, set[str]] = defaultdict(set)
    for hello in (*OTHERS, *(hello for client in RECORDED for hello in changed_hellos(client))):
        ours = judged(hello)
        if isinstance(ours, HelloError):
            met[row_of(ours)].add(what_openssl_does(server, hello))
    for unfinished in (b"", CLIENT_HELLO[:100]):
        met[row_of(closed(unfinished))].add(what_openssl_does(server, unfinished))
    assert {row: row.openssl for row in ROWS} == {row: loudest(met[row]) for row in ROWS}


def row_of(refusal: HelloError) -> Row:
    rows = [row for row, pattern in PATTERNS if pattern.fullmatch(refusal.detail)]
    assert [refused_hello(refusal).reason.word] == [row.reason for row in rows], refusal.detail
    return rows[0]


def closed(received: bytes) -> HelloError:
    reader = ClientHelloReader(LIMIT)
    assert NEED_MORE is reader.feed(received)
    with pytest.raises(HelloError) as truncated:
        reader.close()
    return truncated.value


def what_openssl_does(server: Server, hello: bytes) -> str:
    return {Unseen.REFUSED: "refuses", Unseen.WAITING: "waits"}.get(server.name_in(hello), "accepts")  # type: ignore[arg-type]


def loudest(answers: set[str]) -> str:
    """What a row must say: that it accepts some, or else that it refuses some, or else that it waits."""
    return next((answer for answer in ("accepts", "refuses", "waits") if answer in answers), "is never met")


def test_every_fault_has_a_row() -> None:
    """No way to refuse is left out of the table."""
    assert {refused_hello(HelloError(fault, "")).reason.word for fault in HelloFault} == {row.reason for row in ROWS}
