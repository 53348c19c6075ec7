"""A shortcut for what is made with every connection."""

from typing import Final

# `Point(1, 2)` of a named tuple calls a function in Python that calls the tuple's constructor. `make(Point, (1, 2))` is
# that call alone, for a third of the cost. Nothing checks that the values are as many as the fields.
make: Final = tuple.__new__
