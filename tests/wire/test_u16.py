"""Integers of two bytes, the greater one first."""

import pytest

from sniproxy.wire.u16 import u16


def test_it_reads_two_bytes_the_greater_one_first() -> None:
    assert [0x0102, 0x02FF, 0xFF00] == [u16(b"\x01\x02\xff\x00", at) for at in range(3)]


@pytest.mark.parametrize("at", [3, 4])
def test_past_the_end_there_is_none(at: int) -> None:
    with pytest.raises(IndexError):
        u16(b"\x01\x02\xff\x00", at)
