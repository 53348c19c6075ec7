"""The bytes of the benchmark's client are real: OpenSSL and a reading of the specifications agree with them."""

import ssl
import struct

import pytest

from bench.hello import HELLO_BYTES, PRINCIPAL, client_hello, proxy_header


@pytest.mark.parametrize("name", ["a.bench.example", "upload.bench.example"])
def test_openssl_reads_the_server_name(name: str) -> None:
    """OpenSSL parses the whole hello and calls back with its SNI; then it has no certificate to answer with."""
    seen: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, server_name, _context: seen.append(server_name)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(client_hello(name))
    with pytest.raises(ssl.SSLError):
        server.do_handshake()
    assert seen == [name]


@pytest.mark.parametrize("name", ["a.bench.example", "a-longer-name.bench.example"])
def test_every_hello_has_the_same_size(name: str) -> None:
    assert len(client_hello(name)) == HELLO_BYTES


def test_a_name_too_long_for_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        client_hello("a" * 300)


def test_the_proxy_header_carries_addresses_and_the_principal() -> None:
    """PROXY protocol v2: signature, version 2 and PROXY, TCP over IPv4, the length of the rest, then a TLV."""
    header = proxy_header("10.0.0.1", "10.1.0.1", 443)
    signature, command, family, length = struct.unpack_from("!12sBBH", header)
    assert signature == b"\r\n\r\n\0\r\nQUIT\n"
    assert (command, family, length) == (0x21, 0x11, len(header) - 16)
    assert header[16:24] == bytes((10, 0, 0, 1, 10, 1, 0, 1))
    kind, size = struct.unpack_from("!BH", header, 28)
    assert (kind, header[31 : 31 + size]) == (0xD0, PRINCIPAL.encode())
    assert len(header) == 31 + size
