"""Memo: what a function made of a value is made once, and there are never more values than it may have."""

import pytest

from sniproxy.memo import Memo


def test_what_was_made_once_is_not_made_again() -> None:
    asked: list[str] = []

    def length(text: str) -> int:
        asked.append(text)
        return len(text)

    lengths = Memo(length, 8)
    assert [lengths.of(text) for text in ("a", "", "bb", "a", "", "bb")] == [1, 0, 2, 1, 0, 2]
    assert asked == ["a", "", "bb"]


def test_it_begins_anew_when_it_is_full() -> None:
    """However many values somebody thinks of: one that recurs is made once more for every nine strangers beside it."""
    asked: list[int] = []

    def negative(number: int) -> int:
        asked.append(number)
        return -number

    negatives = Memo(negative, 10)
    for stranger in range(1, 101):
        assert negatives.of(stranger) == -stranger
        assert negatives.of(0) == 0
    assert asked.count(0) == 1 + 100 // 9


def test_an_error_is_not_remembered() -> None:
    """Whoever asks again is told again."""
    asked: list[str] = []

    def fails(text: str) -> str:
        asked.append(text)
        raise ValueError(text)

    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            Memo(fails, 8).of("x")
    assert asked == ["x", "x"]
