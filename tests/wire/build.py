"""Builds ClientHellos, right ones and wrong ones, field by field (RFC 8446 section 4.1.2)."""

from collections.abc import Iterable

SERVER_NAME = 0
ALPN = 16
PADDING = 21
SUPPORTED_VERSIONS = 43
KEY_SHARE = 51
ENCRYPTED_CLIENT_HELLO = 0xFE0D

TLS_1_2 = 0x0303
TLS_1_3 = 0x0304

Extension = tuple[int, bytes]


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def vector8(content: bytes) -> bytes:
    return len(content).to_bytes(1, "big") + content


def vector16(content: bytes) -> bytes:
    return u16(len(content)) + content


def server_name_extension(*names: bytes | str, name_type: int = 0) -> Extension:
    encoded = [name.encode() if isinstance(name, str) else name for name in names]
    return SERVER_NAME, vector16(b"".join(bytes((name_type,)) + vector16(name) for name in encoded))


def alpn_extension(protocols: Iterable[bytes | str]) -> Extension:
    encoded = [name.encode() if isinstance(name, str) else name for name in protocols]
    return ALPN, vector16(b"".join(map(vector8, encoded)))


def supported_versions_extension(versions: Iterable[int]) -> Extension:
    return SUPPORTED_VERSIONS, vector8(b"".join(map(u16, versions)))


def hello_message(
    extensions: Iterable[Extension] | None,
    *,
    legacy_version: int = TLS_1_2,
    session_id: bytes = bytes(32),
    cipher_suites: bytes = bytes.fromhex("130113021303c02bc02f"),
    compression_methods: bytes = b"\x00",
) -> bytes:
    """The handshake message. `extensions=None` leaves even their length out, as TLS 1.2 allows."""
    body = u16(legacy_version) + bytes(range(32))
    body += vector8(session_id) + vector16(cipher_suites) + vector8(compression_methods)
    if extensions is not None:
        body += vector16(b"".join(u16(kind) + vector16(content) for kind, content in extensions))
    return b"\x01" + len(body).to_bytes(3, "big") + body


def as_records(message: bytes, fragment_size: int = 2**14) -> bytes:
    """The message in TLS records of at most `fragment_size` bytes each, the first one of version 3.1."""
    fragments = [message[at : at + fragment_size] for at in range(0, len(message), fragment_size)]
    versions = [b"\x03\x01"] + [b"\x03\x03"] * len(fragments)
    return b"".join(
        b"\x16" + version + vector16(fragment) for version, fragment in zip(versions, fragments, strict=False)
    )


def build_client_hello(
    server_name: bytes | str | None = "en.wikipedia.org",
    alpn: Iterable[bytes | str] = ("h2", "http/1.1"),
    versions: Iterable[int] = (TLS_1_3, TLS_1_2),
    extra: Iterable[Extension] = (),
    padding: int = 0,
    fragment_size: int = 2**14,
) -> bytes:
    """A ClientHello in TLS records. What is empty or None leaves its extension out.

    `padding` is the size, in one record with its header, that a padding extension fills up (RFC 7685).
    """
    extensions: list[Extension] = []
    if server_name is not None:
        extensions.append(server_name_extension(server_name))
    if alpn := tuple(alpn):
        extensions.append(alpn_extension(alpn))
    if versions := tuple(versions):
        extensions.append(supported_versions_extension(versions))
    extensions.extend(extra)
    if padding:
        extensions.append((PADDING, b""))
        missing = padding - len(as_records(hello_message(extensions)))
        extensions[-1] = (PADDING, bytes(max(0, missing)))
    return as_records(hello_message(extensions), fragment_size)
