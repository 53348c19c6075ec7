"""What a target must choose, it chooses by its input: the same bytes always fail in the same way."""

import random
import zlib
from collections.abc import Iterator


def dice_for(data: bytes) -> random.Random:
    return random.Random(zlib.crc32(data))


def cut(data: bytes, dice: random.Random, most: int = 8) -> Iterator[bytes]:
    """`data` in pieces, as TCP might bring it."""
    places = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randrange(most + 1)))
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:end]


def prefixes(data: bytes, dice: random.Random) -> Iterator[bytes]:
    """All of the short ones, where the decisions fall, and some of the others."""
    ends = {*range(min(len(data), 64) + 1), *(dice.randrange(len(data) + 1) for _ in range(12)), len(data)}
    for end in sorted(ends):
        yield data[:end]
