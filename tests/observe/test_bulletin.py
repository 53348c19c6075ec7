"""The bulletin: what one process writes, another reads whole or not at all."""

import mmap
from collections.abc import Iterator

import pytest

from sniproxy.observe.bulletin import ROOM, SIZE, read, write


@pytest.fixture
def memory() -> Iterator[memoryview]:
    with mmap.mmap(-1, SIZE) as shared, memoryview(shared) as view:
        yield view


def test_a_new_one_says_nothing(memory: memoryview) -> None:
    assert read(memory) == b""


@pytest.mark.parametrize("text", [b"", b"a", b"long " * 1000, b"x" * ROOM])
def test_what_is_written_is_read(text: bytes, memory: memoryview) -> None:
    write(memory, b"before")
    write(memory, text)
    assert read(memory) == text


def test_a_text_that_is_half_written_is_not_read(memory: memoryview) -> None:
    """Its writer died, or has not come to the end."""
    write(memory, b"the first text")
    memory[8:12] = b"what"
    assert read(memory) == b""


def test_a_head_that_is_nonsense_is_not_believed(memory: memoryview) -> None:
    memory[:8] = b"\xff" * 8
    assert read(memory) == b""
