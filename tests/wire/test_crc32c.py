"""The checksum against the vectors of the RFC that defined its use on the wire."""

import pytest

from sniproxy.wire.crc32c import crc32c

# RFC 3720 appendix B.4, whose bytes are least significant first; and the check value of the CRC catalogue.
VECTORS = {
    "32 bytes of zeros": (bytes(32), 0x8A9136AA),
    "32 bytes of ones": (b"\xff" * 32, 0x62A8AB43),
    "32 incrementing bytes": (bytes(range(32)), 0x46DD794E),
    "32 decrementing bytes": (bytes(reversed(range(32))), 0x113FDB5C),
    "an iSCSI read command": (
        bytes.fromhex(
            "01c00000000000000000000000000000 14000000000004000000001400000018 28000000000000000200000000000000"
        ),
        0xD9963A56,
    ),
    "the nine digits": (b"123456789", 0xE3069283),
    "nothing": (b"", 0),
}


@pytest.mark.parametrize(("data", "checksum"), VECTORS.values(), ids=VECTORS.keys())
def test_the_published_vectors_come_out(data: bytes, checksum: int) -> None:
    """Castagnoli's polynomial, reflected, with all ones before and after."""
    assert checksum == crc32c(data)
