"""The bytes that a client of the benchmark sends: a PROXY protocol v2 header and a TLS ClientHello.

Both are built by hand so that every machine sends the same bytes: what `ssl` would write changes with the
OpenSSL under it (since 3.5 a hello carries a post-quantum key share and is three times as long). The hello is
the one that OpenSSL 3.0 writes, padded to the same 517 bytes; no key exchange ever completes with it.
"""

import ipaddress
import struct

HELLO_BYTES = 517  # what OpenSSL pads a hello to (RFC 7685), and so the commonest size on the wire
PRINCIPAL = "spiffe://cluster.local/ns/default/sa/bench"
PRINCIPAL_TLV = 0xD0  # the type that Istio's ztunnel uses for the caller's SPIFFE ID

_RECORD_HEADER = 5
_CIPHERS = (0x1302, 0x1303, 0x1301, 0xC02C, 0xC030, 0xC02B, 0xC02F, 0xCCA9, 0xCCA8, 0x00FF)
_GROUPS = (0x001D, 0x0017, 0x001E, 0x0019, 0x0018)
_SIGNATURES = (0x0403, 0x0503, 0x0603, 0x0807, 0x0808, 0x0809, 0x080A, 0x080B, 0x0804, 0x0805, 0x0806)
_PADDING = 21


def _sized(width: int, body: bytes) -> bytes:
    """A TLS vector: the body behind its length in `width` bytes."""
    return len(body).to_bytes(width, "big") + body


def _extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!H", kind) + _sized(2, body)


def _words(values: tuple[int, ...]) -> bytes:
    return struct.pack(f"!{len(values)}H", *values)


def _extensions(name: str, alpn: tuple[str, ...]) -> bytes:
    host = _sized(2, b"\x00" + _sized(2, name.encode("ascii")))
    protocols = b"".join(_sized(1, protocol.encode("ascii")) for protocol in alpn)
    return b"".join(
        (
            _extension(0, host),  # server_name
            _extension(11, _sized(1, b"\x00\x01\x02")),  # ec_point_formats
            _extension(10, _sized(2, _words(_GROUPS))),  # supported_groups
            _extension(35, b""),  # session_ticket
            _extension(16, _sized(2, protocols)),  # ALPN
            _extension(22, b""),  # encrypt_then_mac
            _extension(23, b""),  # extended_master_secret
            _extension(13, _sized(2, _words(_SIGNATURES))),  # signature_algorithms
            _extension(43, _sized(1, _words((0x0304, 0x0303)))),  # supported_versions: 1.3, 1.2
            _extension(45, _sized(1, b"\x01")),  # psk_key_exchange_modes
            _extension(51, _sized(2, b"\x00\x1d" + _sized(2, bytes(range(32))))),  # key_share: x25519
        )
    )


def client_hello(name: str, alpn: tuple[str, ...] = ("h2", "http/1.1")) -> bytes:
    """One TLS record that holds a ClientHello (RFC 8446, 4.1.2) for `name`, of `HELLO_BYTES` bytes."""
    fixed = b"\x03\x03" + bytes(32) + _sized(1, bytes(32)) + _sized(2, _words(_CIPHERS)) + _sized(1, b"\x00")
    extensions = _extensions(name, alpn)
    unpadded = _RECORD_HEADER + 4 + len(fixed) + 2 + len(extensions)
    padding = HELLO_BYTES - unpadded - 4  # 4: the padding extension's own header
    if padding < 0:
        raise ValueError(f"a hello for {name!r} does not fit {HELLO_BYTES} bytes")
    body = fixed + _sized(2, extensions + _extension(_PADDING, bytes(padding)))
    return b"\x16\x03\x01" + _sized(2, b"\x01" + _sized(3, body))


def proxy_header(source: str, destination: str, destination_port: int, principal: str = PRINCIPAL) -> bytes:
    """A PROXY protocol v2 header for TCP over IPv4 with the principal in a TLV, as a gateway sends it."""
    tlv = bytes((PRINCIPAL_TLV,)) + _sized(2, principal.encode("ascii"))
    body = (
        ipaddress.IPv4Address(source).packed
        + ipaddress.IPv4Address(destination).packed
        + struct.pack("!HH", 40000, destination_port)
        + tlv
    )
    return b"\r\n\r\n\x00\r\nQUIT\n" + b"\x21\x11" + _sized(2, body)
