"""Remembering what a function made of a value, in bounded memory.

As functools.lru_cache does, for a fourth of what it costs: that one keeps its values in the order of their use, and
moves each that it finds. Here nothing is in order, and a table that is full begins anew: whoever fills it with values
of his own makes all others be worked out once more.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Argument = TypeVar("Argument", bound=Hashable)
Result = TypeVar("Result")


class Memo(Generic[Argument, Result]):
    """The results of `function`, which never are None, of `most` arguments. What it raises is not remembered."""

    __slots__ = ("_function", "_most", "_results")

    def __init__(self, function: Callable[[Argument], Result], most: int) -> None:
        self._function = function
        self._most = most
        self._results: dict[Argument, Result] = {}

    def of(self, argument: Argument) -> Result:
        result = self._results.get(argument)
        return self._work_out(argument) if result is None else result

    def _work_out(self, argument: Argument) -> Result:
        result = self._function(argument)
        if len(self._results) >= self._most:
            self._results.clear()
        self._results[argument] = result
        return result
