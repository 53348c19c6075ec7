"""Values are equal by what they are made of, and show it."""

from typing import Final

from sniproxy.value import Value


class Point(Value):
    __slots__ = ("x", "y")

    def __init__(self, x: int, y: int = 0) -> None:
        self.x: Final = x
        self.y: Final = y

    def fields(self) -> tuple[object, ...]:
        return self.x, self.y


class Vector(Point):
    """Of the same fields, and something else."""

    __slots__ = ()


def test_it_is_equal_to_one_of_its_type_with_the_same_fields() -> None:
    assert [Point(1, 2), Point(1, 3), Vector(1, 2), (1, 2)].count(Point(1, 2)) == 1


def test_equal_ones_are_one_in_a_set() -> None:
    assert len({Point(1), Point(1, 0), Point(0, 1)}) == 2


def test_it_shows_what_it_is_made_of() -> None:
    assert repr(Point(1, 2)) == "Point(1, 2)"
