"""Named tuples made quickly are what they would be if they were made slowly."""

from typing import NamedTuple

from sniproxy.quick import make


class Point(NamedTuple):
    x: int
    y: int = 0


def test_it_is_of_its_own_type_and_equal_to_one_made_by_its_name() -> None:
    point = make(Point, (1, 2))

    assert (type(point), point, point.y) == (Point, Point(1, 2), 2)
