"""Client certificates for tests, with the names that a test asks for."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

_KEY = ec.generate_private_key(ec.SECP256R1())
SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")  # the extension's OID in DER, 2.5.29.17

_CONSTRUCTED = (0x30, 0xA3)  # SEQUENCE, and the [3] around the extensions
_NOT_BEFORE = datetime(2024, 1, 1, tzinfo=UTC)


def certificate(*uris: str, dns: tuple[str, ...] = (), common_name: str = "") -> bytes:
    """A self-signed certificate in DER; without `uris` and `dns` it has no subject alternative names."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else [])
    builder = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(_KEY.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_BEFORE + timedelta(days=1))
    )
    names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not common_name)
    return builder.sign(_KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def with_doubled_extension(der: bytes, oid: bytes) -> bytes:
    """The values in `der`, with the SEQUENCE that begins with `oid` there twice and the lengths around it put right.

    The signature no longer fits, which nobody here looks at.
    """
    out = b""
    while der:
        value, der = _split_first(der)
        header, content = _split_header(value)
        if oid not in content or value[0] not in _CONSTRUCTED:
            out += value
        elif content.startswith(oid):
            out += value * 2
        else:
            inner = with_doubled_extension(content, oid)
            out += header[:1] + _der_length(len(inner)) + inner
    return out


def _der_length(length: int) -> bytes:
    """In the fewest bytes, as DER demands (X.690 section 10.1)."""
    if length < 0x80:
        return bytes((length,))
    encoded = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(encoded),)) + encoded


def _split_first(der: bytes) -> tuple[bytes, bytes]:
    """The first value in `der`, and the rest."""
    header, _ = _split_header(der)
    length = header[1] if len(header) == 2 else int.from_bytes(header[2:], "big")
    return der[: len(header) + length], der[len(header) + length :]


def _split_header(der: bytes) -> tuple[bytes, bytes]:
    """Tag and length of the first value in `der`, and what follows (X.690 section 8.1.3)."""
    size = 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)
    return der[:size], der[size:]
