"""ClientHellos as the network and new clients deliver them: in crumbs, in several records, very large."""

import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.conftest import allowing
from tests.support.clients import TIMEOUT, ask, connected, hello_for
from tests.support.origins import Authority, page_of
from tests.support.proxy import ProxyProcess, running_proxy
from tests.wire.build import ENCRYPTED_CLIENT_HELLO, as_records, build_client_hello, server_name_extension

NAME = "en.wikipedia.org"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, wikipedias: dict[str, Any]) -> Iterator[ProxyProcess]:
    home = tmp_path_factory.mktemp("hellos")
    config = {"upstream": {"hosts": wikipedias}, "timeouts": {"client_hello": "1s"}}
    with running_proxy(home, config, allowing("*.wikipedia.org")) as process:
        yield process


class Session:
    """A TLS client whose flights the test sends as it likes."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)

    def hello(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def fetch(self, sock: socket.socket) -> str:
        """Finish the handshake and read the page."""
        self._go_on(sock, self._tls.do_handshake)
        self._tls.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        page = b""
        while chunk := self._go_on(sock, lambda: self._tls.read(65536)):
            page += chunk
        return page.partition(b"\r\n\r\n")[2].decode()

    def _go_on(self, sock: socket.socket, step: Callable[[], Any]) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                sock.sendall(self._outgoing.read())
                data = sock.recv(65536)
                self._incoming.write(data) if data else self._incoming.write_eof()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            else:
                sock.sendall(self._outgoing.read())
                return result


def test_a_hello_sent_byte_by_byte(proxy: ProxyProcess, authority: Authority) -> None:
    """Every byte in a segment of its own; the handshake then goes on as if nothing had been."""
    session = Session(authority.client_context())
    with connected(proxy.address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in session.hello():
            sock.sendall(bytes([byte]))
        page = session.fetch(sock)
    assert page == page_of(NAME)


def test_a_hello_over_16_kib_in_several_records(proxy: ProxyProcess, authority: Authority) -> None:
    """OpenSSL splits a hello with 20 KiB of ALPN protocols over two records, and its server takes it."""
    context = authority.client_context()
    context.set_alpn_protocols([f"{number:03}{'p' * 200}" for number in range(100)])
    session = Session(context)
    hello = session.hello()
    first_record = 5 + int.from_bytes(hello[3:5], "big")
    assert len(hello) > first_record > 16 * 1024
    with connected(proxy.address) as sock:
        sock.sendall(hello)
        page = session.fetch(sock)
    assert page == page_of(NAME)


def test_a_hello_in_records_of_a_few_bytes(proxy: ProxyProcess, authority: Authority) -> None:
    """The handshake message in records of 7 bytes each: OpenSSL's server reads it, and so do we."""
    session = Session(authority.client_context())
    hello = session.hello()
    with connected(proxy.address) as sock:
        sock.sendall(as_records(hello[5:], 7))
        # The transcript hash covers messages and not records, so the handshake still completes.
        page = session.fetch(sock)
    assert page == page_of(NAME)


REFUSED = {
    "plain HTTP": (b"GET / HTTP/1.1\r\nHost: en.wikipedia.org\r\n\r\n", "access_denied", "not_tls"),
    "SSL 2.0": (b"\x80\x2e\x01\x00\x02" + bytes(43), "access_denied", "not_tls"),
    "no SNI": (build_client_hello(None), "unrecognized_name", "no_sni"),
    "an IPv4 address": (hello_for("127.0.0.1"), "unrecognized_name", "sni_is_ip"),
    "a short IPv4 address": (hello_for("127.1"), "unrecognized_name", "sni_is_ip"),
    "a hexadecimal IPv4 address": (hello_for("0x7f.1"), "unrecognized_name", "sni_is_ip"),
    "an IPv4 address in one number": (hello_for("2130706433"), "unrecognized_name", "sni_is_ip"),
    "a space in the name": (hello_for("en wikipedia.org"), "unrecognized_name", "invalid_sni"),
    "a newline in the name": (hello_for("en.wikipedia.org\n{}"), "unrecognized_name", "invalid_sni"),
    "two names": (
        build_client_hello(NAME, extra=[server_name_extension("evil.org")]),
        "access_denied",
        "malformed_hello",
    ),
    "a name without a rule": (hello_for("example.org"), "access_denied", "default"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_is_refused_with_an_alert_and_its_reason(proxy: ProxyProcess, what: str) -> None:
    """The alert tells the client, the reason tells the log, and nothing else is sent."""
    data, alert, reason = REFUSED[what]
    before = proxy.wait_until_told()
    assert ask(proxy.address, data) == alert
    line = proxy.wait_for_finals(before + 1)[-1]
    assert (line["connectionEvent"], line["reason"], line["level"]) == ("deny", reason, "error")


def test_a_name_with_underscores_is_a_name(proxy: ProxyProcess) -> None:
    """Names with _ are real; this one only has no address."""
    before = proxy.wait_until_told()
    with connected(proxy.address) as sock:
        sock.sendall(hello_for("my_service.wikipedia.org"))
        sock.recv(4096)
    line = proxy.wait_for_finals(before + 1)[-1]
    assert (line["requestedServerName"], line["decision"]) == ("my_service.wikipedia.org", "allow")


def test_a_hello_that_offers_ech_is_noted(proxy: ProxyProcess) -> None:
    """policy.ech: log, the default: served, with a word in the log."""
    before = proxy.wait_until_told()
    with connected(proxy.address) as sock:
        sock.sendall(build_client_hello(NAME, extra=[(ENCRYPTED_CLIENT_HELLO, bytes(32))]))
    line = proxy.wait_for_finals(before + 1)[-1]
    assert (line["decision"], line["responseCodeDetails"]) == (
        "allow",
        "the hello offers ECH: the real name may be another",
    )


def test_a_hello_that_never_ends_is_cut_off_at_its_limit(proxy: ProxyProcess) -> None:
    """limits.client_hello_bytes bounds what a client can make us keep."""
    before = proxy.wait_until_told()
    endless = (
        b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff" + bytes(16380) + (b"\x16\x03\x01\x40\x00" + bytes(16384)) * 4
    )
    assert ask(proxy.address, endless) == "access_denied"
    assert proxy.wait_for_finals(before + 1)[-1]["reason"] == "hello_too_large"


def test_a_slow_hello_runs_out_of_time(proxy: ProxyProcess) -> None:
    """timeouts.client_hello counts for the whole hello, whatever drips in meanwhile."""
    before = proxy.wait_until_told()
    with connected(proxy.address) as sock:
        sock.sendall(hello_for(NAME)[:100])
        sock.settimeout(TIMEOUT)
        assert sock.recv(4096)[:1] == b"\x15"
    line = proxy.wait_for_finals(before + 1)[-1]
    assert (line["connectionEvent"], line["reason"], line["receivedBytes"]) == ("fail", "hello_timeout", 100)


def test_a_client_that_leaves_before_its_hello_is_whole(proxy: ProxyProcess) -> None:
    """A truncated hello is the client's own end, and no refusal."""
    before = proxy.wait_until_told()
    with connected(proxy.address) as sock:
        sock.sendall(hello_for(NAME)[:100])
        sock.shutdown(socket.SHUT_WR)
        sock.recv(4096)
    line = proxy.wait_for_finals(before + 1)[-1]
    assert (line["connectionEvent"], line["reason"]) == ("fail", "client_closed")
