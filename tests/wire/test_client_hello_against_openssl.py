"""The property that the proxy stands on: OpenSSL, as the server behind, sees the name that we judged."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.wire.client_hello import ClientHello, HelloError, NoServerName, read_client_hello
from sniproxy.wire.need_more import NEED_MORE
from tests.wire.build import (
    ALPN,
    KEY_SHARE,
    SERVER_NAME,
    TLS_1_2,
    TLS_1_3,
    Extension,
    alpn_extension,
    as_records,
    hello_message,
    supported_versions_extension,
    u16,
    vector16,
)


def openssl_hello(name: str, protocols: list[str], maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> bytes:
    """The first flight of an OpenSSL client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = maximum
    context.set_alpn_protocols(protocols)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


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
    assert ClientHello(b"en.wikipedia.org", TLS_1_2, versions, ("h2", "http/1.1"), ech=False) == hello
    assert highest == hello.tls_version
    assert "en.wikipedia.org" == hello.server_name()


class Refused(Enum):
    """OpenSSL sent an alert before it looked at the name."""

    REFUSED = "refused"


@dataclass
class Server:
    """An OpenSSL server that reports the name it saw in a hello, once it has accepted the hello."""

    context: ssl.SSLContext

    def __post_init__(self) -> None:
        self.seen: str | Refused | None = Refused.REFUSED
        self.context.sni_callback = self._note

    def _note(self, _: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        self.seen = name
        return ssl.ALERT_DESCRIPTION_ACCESS_DENIED  # enough seen: spare the key exchange

    def name_in(self, hello: bytes) -> str | Refused | None:
        self.seen = Refused.REFUSED
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(hello)
        with pytest.raises(ssl.SSLError):
            self.context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
        return self.seen


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("example.org").configure_cert(context)
    yield Server(context)
    context.sni_callback = None


def name_we_judge(hello: bytes) -> str | None:
    """The raw name, if we would let the hello pass; normalising is no business of OpenSSL's."""
    try:
        answer = read_client_hello(hello)
        if answer is NEED_MORE:
            return None
        answer.server_name()
    except HelloError:
        return None
    assert not isinstance(answer.raw_server_name, NoServerName)
    return answer.raw_server_name.decode()


def check_agreement(server: Server, hello: bytes) -> None:
    """Whoever refuses is right; where both accept, there is one name."""
    ours = name_we_judge(hello)
    theirs = server.name_in(hello)
    if ours is not None and theirs is not Refused.REFUSED:
        assert theirs == ours


# What Python itself makes of a name that is no ASCII is of no interest here.
ignore_undecodable = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CLIENT_HELLO = openssl_hello("en.wikipedia.org", ["h2", "http/1.1"])


def test_the_server_sees_the_name_of_an_untouched_hello(server: Server) -> None:
    """The witness works: it accepts what is right, and refuses two names."""
    assert "en.wikipedia.org" == server.name_in(CLIENT_HELLO)
    name = SERVER_NAME, vector16(b"\x00\x00\x01a")
    assert "a" == server.name_in(hello_of(name))
    assert Refused.REFUSED == server.name_in(hello_of(name, name))


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
    hello = bytearray(CLIENT_HELLO)
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


@ignore_undecodable
@settings(deadline=None, max_examples=400)
@given(hello=replacements() | unusual_hellos())
def test_openssl_never_sees_another_name_than_we_do(server: Server, hello: bytes) -> None:
    """The key property: a name is judged, and that name is served, or nobody is."""
    check_agreement(server, hello)
