"""CRC32C, the Castagnoli checksum of PROXY protocol v2 (its section 2.2.3, after RFC 4960 appendix B).

Byte by byte through a table, in Python: a header is a hundred bytes or two, few senders add a checksum, and
zlib.crc32 has another polynomial. Ten microseconds are not worth a dependency.
"""

_REVERSED_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41, least significant bit first


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_REVERSED_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_table_entry(byte) for byte in range(256))


def crc32c(data: bytes) -> int:
    """The checksum of `data`, an unsigned 32-bit number."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
