"""A HelloRetryRequest through the real proxy: the second ClientHello is for the name that was judged, or goes nowhere.

OpenSSL's clients offer a key for x25519. The origins here take P-384 alone, and so ask each of them to try again.
"""

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sniproxy.wire.hello_retry import RETRY
from tests.e2e.conftest import allowing
from tests.support.clients import connected, hello_for
from tests.support.origins import Authority, accept_from, origin, origin_in_hand, read_exactly, read_to_end
from tests.support.proxy import PATIENCE, Line, ProxyProcess, running_proxy, wait_until
from tests.wire.build import build_client_hello

ALLOWED, OTHER, BY_HAND = "one.example.org", "two.example.org", "hand.example.org"
LIMIT = 16384
BODY = bytes(range(256)) * 4096

HELLO, ANOTHER = hello_for(BY_HAND), hello_for(OTHER)
RETRY_REQUEST = bytes.fromhex("16 0303 0058 02 000054 0303") + RETRY + bytes(50)
CHANGE_CIPHER_SPEC = bytes.fromhex("140303000101")
EARLY_DATA = bytes.fromhex("1703030040") + bytes(range(64))


class Client:
    """An OpenSSL client that keeps all it is sent, and whose second flight the test may change."""

    def __init__(self, authority: Authority, sock: socket.socket) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = authority.client_context()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=ALLOWED)
        self._sock = sock
        self.sent, self.received = 0, bytearray()

    def flight(self) -> bytes:
        """What it says next, when it has taken what came."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def say(self, data: bytes) -> None:
        self._sock.sendall(data)
        self.sent += len(data)

    def hear(self) -> bool:
        """Whether there was anything to hear."""
        data = self._sock.recv(65536)
        self._incoming.write(data)
        self.received += data
        return bool(data)

    def exchange(self, body: bytes) -> bytes:
        """Shake hands to the end, and have the origin send `body` back."""
        self._go_on(self._tls.do_handshake)
        self._go_on(lambda: self._tls.write(body))
        echoed = bytearray()
        while len(echoed) < len(body):
            self._go_on(lambda: echoed.extend(self._tls.read(65536)))
        return bytes(echoed)

    def _go_on(self, step: Callable[[], object]) -> None:
        is_done = False
        while not is_done:
            try:
                step()
                is_done = True
            except ssl.SSLWantReadError:
                self.say(self._outgoing.read())
                assert self.hear()
        self.say(self._outgoing.read())


@dataclass
class Site:
    """A proxy that lets one name through, to an OpenSSL server that would serve both."""

    proxy: ProxyProcess
    served: list[str | None]  # what the server was asked for, hello by hello
    hand: socket.socket  # where connections for BY_HAND arrive

    @contextlib.contextmanager
    def visit(self, authority: Authority) -> Iterator[Client]:
        self.served.clear()
        with connected(self.proxy.address) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Client(authority, sock)

    def final_of(self, visit: Callable[[], None]) -> Line:
        """The last line of the one connection of a visit."""
        before = self.proxy.wait_until_told()
        visit()
        return self.proxy.wait_for_finals(before + 1)[before]


@pytest.fixture(scope="module", params=["enforce", "monitor"])
def site(
    request: pytest.FixtureRequest, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """In monitor mode, too: that a name stays what it was is no question of the policy."""
    context, served = authority.server_context(ALLOWED, OTHER), list[str | None]()
    context.set_ecdh_curve("secp384r1")
    context.sni_callback = lambda _tls, name, _context: served.append(name)

    def answer(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            while data := tls.recv(65536):
                tls.sendall(data)

    with origin(answer) as port, origin_in_hand() as hand:
        ports = {ALLOWED: port, BY_HAND: hand.getsockname()[1]}
        config = {
            "upstream": {"hosts": {name: [f"127.0.0.1:{port}"] for name, port in ports.items()}},
            "policy": {"mode": request.param},
            "limits": {"client_hello_bytes": LIMIT},
        }
        with running_proxy(tmp_path_factory.mktemp("retry"), config, allowing(*ports)) as proxy:
            yield Site(proxy, served, hand)


# ---- OpenSSL at both ends ----


def whole(flight: bytes) -> list[bytes]:
    return [flight]


def in_crumbs(flight: bytes) -> list[bytes]:
    return [flight[at : at + 1] for at in range(len(flight))]


def in_records(flight: bytes) -> list[bytes]:
    """The hello in records of a hundred bytes."""
    message = flight[len(CHANGE_CIPHER_SPEC) + 5 :]
    fragments = [message[at : at + 100] for at in range(0, len(message), 100)]
    return [CHANGE_CIPHER_SPEC, *(b"\x16\x03\x03" + len(each).to_bytes(2, "big") + each for each in fragments)]


WAYS = (whole, in_crumbs, in_records)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_who_is_asked_to_try_again_and_does_is_served(
    site: Site, authority: Authority, way: Callable[[bytes], list[bytes]]
) -> None:
    """Every byte arrives, however the second hello is cut."""

    def visit() -> None:
        with site.visit(authority) as client:
            client.say(client.flight())
            client.hear()
            assert RETRY in client.received
            for part in way(client.flight()):
                client.say(part)
            client.hear()
            assert client.exchange(BODY) == BODY
            sent.append(client.sent)

    sent: list[int] = []
    final = site.final_of(visit)
    assert [ALLOWED, ALLOWED] == site.served
    assert ("close", ALLOWED, sent[0]) == (
        final["connectionEvent"],
        final["requestedServerName"],
        final["receivedBytes"],
    )
    assert final["reason"] in ("done", "client_reset")  # its session tickets may come when it has gone


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_who_names_another_server_then_is_cut_off(
    site: Site, authority: Authority, way: Callable[[bytes], list[bytes]]
) -> None:
    """The server behind, which would serve it, never sees that name. The line is an error, and the count is of it."""

    def visit() -> None:
        with site.visit(authority) as client:
            client.say(client.flight())
            client.hear()
            flight = client.flight().replace(ALLOWED.encode(), OTHER.encode())
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                for part in way(flight):
                    client.say(part)
                assert not client.hear()

    series = 'sniproxy_connections_closed_total{reason="sni_changed"}'
    before = site.proxy.metrics()[series]
    final = site.final_of(visit)
    assert [ALLOWED] == site.served
    assert ("error", "close", "sni_changed", ALLOWED) == (
        final["level"],
        final["connectionEvent"],
        final["reason"],
        final["requestedServerName"],
    )
    assert final["responseCodeDetails"] == f"a ClientHello behind the first names '{OTHER}', and the first '{ALLOWED}'"
    assert before + 1 == site.proxy.wait_until_idle()[series]


# ---- A hand at both ends ----


PASSES = {
    "nothing": b"",
    "the same name": HELLO,
    "the same name behind early data": CHANGE_CIPHER_SPEC + EARLY_DATA + HELLO,
    "the same name in many records": build_client_hello(BY_HAND, fragment_size=7),
    "an alert": bytes.fromhex("15030300020228"),
    "what is no TLS": b"GET / HTTP/1.1\r\n\r\n" + ANOTHER,
}
# What passes, and what does not.
REFUSED = {
    "another name": (b"", ANOTHER),
    "another name behind a ChangeCipherSpec": (CHANGE_CIPHER_SPEC, ANOTHER),
    "another name behind early data": (CHANGE_CIPHER_SPEC + EARLY_DATA, ANOTHER),
    "another name behind the same": (HELLO, ANOTHER),
    "another name in many records": (b"", build_client_hello(OTHER, fragment_size=7)),
    "no name": (b"", build_client_hello(None)),
    "an address": (b"", build_client_hello("10.0.0.1")),
    "what is no name": (b"", build_client_hello(b'a"\n\xff')),
    "a hello that is too large": (b"", build_client_hello(BY_HAND, padding=LIMIT + 1)),
    "another message": (b"", bytes.fromhex("160303000410000000")),
}


@contextlib.contextmanager
def by_hand(site: Site, first: bytes = HELLO) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end and the origin's of a connection that begins like that."""
    with connected(site.proxy.address) as client:
        client.sendall(first)
        with accept_from(site.hand) as upstream:
            yield client, upstream


@pytest.mark.parametrize("case", PASSES)
def test_what_passes_after_a_retry(site: Site, case: str) -> None:
    """And then all that follows, both ways, once the server has chosen."""
    behind = bytes.fromhex("16 0303 0004 10000000") + BODY
    chosen = RETRY_REQUEST.replace(RETRY, bytes(range(32)))
    with by_hand(site) as (client, upstream):
        assert read_exactly(upstream, len(HELLO)) == HELLO
        upstream.sendall(RETRY_REQUEST)
        assert read_exactly(client, len(RETRY_REQUEST)) == RETRY_REQUEST
        client.sendall(PASSES[case])
        assert read_exactly(upstream, len(PASSES[case])) == PASSES[case]
        upstream.sendall(chosen)
        assert read_exactly(client, len(chosen)) == chosen
        client.sendall(behind)
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(upstream) == behind


@pytest.mark.parametrize("asked", [True, False], ids=["asked to try again", "not asked yet"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_reach_the_origin(site: Site, case: str, *, asked: bool) -> None:
    """Nor if the client does not wait to be asked: the origin would read it when it has asked."""
    passes, refused = REFUSED[case]

    def visit() -> None:
        with by_hand(site) as (client, upstream):
            arrived = read_exactly(upstream, len(HELLO))
            if asked:
                upstream.sendall(RETRY_REQUEST)
                assert read_exactly(client, len(RETRY_REQUEST)) == RETRY_REQUEST
            client.sendall(passes)
            arrived += read_exactly(upstream, len(passes))
            client.sendall(refused)
            assert arrived + read_to_end(upstream) == HELLO + passes
            with contextlib.suppress(ConnectionResetError):
                assert read_to_end(client) == b""

    final = site.final_of(visit)
    assert ("close", "sni_changed") == (final["connectionEvent"], final["reason"])
    assert final["responseCodeDetails"].startswith("a ClientHello behind the first")


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_reach_the_origin_with_the_first_hello(site: Site, case: str) -> None:
    """Nothing does, then."""
    said = HELLO + b"".join(REFUSED[case])

    def visit() -> None:
        with by_hand(site, said) as (_, upstream):
            assert read_to_end(upstream) in (b"", HELLO, HELLO + REFUSED[case][0])

    assert site.final_of(visit)["reason"] == "sni_changed"


def test_a_hello_that_ends_in_the_middle_does_not_arrive_but_its_end_does(site: Site) -> None:
    """The client has stopped talking, and may listen on."""

    def visit() -> None:
        with by_hand(site) as (client, upstream):
            upstream.sendall(RETRY_REQUEST)
            client.sendall(CHANGE_CIPHER_SPEC + ANOTHER[:-1])
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(upstream) == HELLO + CHANGE_CIPHER_SPEC
            upstream.sendall(BODY)
            upstream.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == RETRY_REQUEST + BODY

    final = site.final_of(visit)
    assert ("done", len(HELLO + CHANGE_CIPHER_SPEC + ANOTHER) - 1) == (final["reason"], final["receivedBytes"])


# ---- OpenSSL's programs ----


@contextlib.contextmanager
def s_server(home: Path, authority: Authority) -> Iterator[tuple[int, Path]]:
    """`openssl s_server`, which takes P-384 alone and early data: its port, and the file with all that it says."""
    certificate = authority.ca.issue_cert(ALLOWED)
    certificate.private_key_and_cert_chain_pem.write_to_path(home / "server.pem")
    command = "openssl s_server -4 -accept 127.0.0.1:0 -groups P-384 -early_data -cert server.pem -key server.pem"
    said = home / "server.log"
    with said.open("wb") as output:
        server = subprocess.Popen(command.split(), cwd=home, stdin=subprocess.PIPE, stdout=output, stderr=output)
    try:
        wait_until(lambda: b"ACCEPT" in said.read_bytes(), "a listening s_server")
        (port,) = re.findall(r"ACCEPT \S+:(\d+)\n", said.read_text())
        yield int(port), said
    finally:
        server.kill()
        server.communicate()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing (Debian package openssl)")
def test_early_data_before_a_retry_is_passed_and_the_second_hello_behind_it(
    tmp_path: Path, authority: Authority
) -> None:
    """A client that resumes a session sends early data at once; the retry rejects it, and the session goes on."""
    (tmp_path / "early").write_bytes(b"early " * 1000)
    session = tmp_path / "session"

    def has_session() -> bool:
        return session.exists() and "END SSL SESSION" in session.read_text()

    def visit(address: tuple[str, int], *options: str) -> None:
        command = f"openssl s_client -connect {address[0]}:{address[1]} -servername {ALLOWED} -msg".split()
        before = said.read_bytes().count(b"a line")
        with (tmp_path / "client.log").open("wb") as output:
            client = subprocess.Popen(
                [*command, *options], cwd=tmp_path, stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        assert client.stdin is not None
        try:
            client.stdin.write(b"a line\n")
            client.stdin.flush()
            wait_until(lambda: said.read_bytes().count(b"a line") > before, "what the client says")
            if "-sess_out" in options:
                wait_until(has_session, "a session")
            client.communicate(timeout=PATIENCE)  # the end of its input lets it leave in order
        finally:
            client.kill()

    with s_server(tmp_path, authority) as (port, said):
        config = {"upstream": {"hosts": {ALLOWED: [f"127.0.0.1:{port}"]}}}
        with running_proxy(tmp_path, config, allowing(ALLOWED)) as proxy:
            visit(proxy.address, "-sess_out", "session")
            visit(proxy.address, "-sess_in", "session", "-early_data", "early")
            assert "sni_changed" not in [line["reason"] for line in proxy.wait_for_finals(2)]
    talk = (tmp_path / "client.log").read_text()
    assert (2, "Early data was rejected" in talk) == (len(re.findall(r">>> .* ClientHello", talk)), True)
