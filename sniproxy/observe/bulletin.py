"""A bulletin: a page of shared memory on which one process writes what others may read, over and over.

No lock: in front of the text stand its length and its checksum, and who reads while it is being written finds that they
do not agree, and reads again. A writer that dies in the middle leaves a page that says nothing.
"""

import zlib

SIZE = 256 * 1024  # bytes; of memory that is never touched, none is taken
_HEAD = 8
ROOM = SIZE - _HEAD

_ATTEMPTS = 5


def write(memory: memoryview, text: bytes) -> None:
    """Replace what stands there. `text` has at most ROOM bytes."""
    memory[_HEAD : _HEAD + len(text)] = text
    memory[:_HEAD] = _head_of(text)


def read(memory: memoryview) -> bytes:
    """What stands there; b"" if nothing does, or nothing whole."""
    for _ in range(_ATTEMPTS):
        head = bytes(memory[:_HEAD])
        size = int.from_bytes(head[:4], "little")
        text = bytes(memory[_HEAD : _HEAD + size])
        if size <= ROOM and head == _head_of(text):
            return text
    return b""


def _head_of(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little")
