"""Sections of the config: frozen dataclasses whose fields say how they are read, once, beside their default.

    @dataclass(frozen=True, slots=True)
    class Limits(Section):
        connections: int = setting(20_000, whole(1, 10_000_000))

A reader takes the `Value` at the key of its field and gives what it stands for. Where that is nothing, the reader notes
the problem, and what it gives does not count. Made directly, a section takes what it is given: who writes Python has a
type checker.
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, field, fields
from typing import Any, ClassVar, Self, TypeVar, get_args

from sniproxy.config.fields import Value

T = TypeVar("T")
Reader = Callable[[Value], T | None]


class Section:
    """A mapping of the config: unknown keys are errors, values never change. Its fields are its keys."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @classmethod
    def read(cls, value: Value) -> Self | None:
        """The section that a mapping describes; what it leaves out has its default. None where any of it is wrong."""
        problems = value.notes.problems
        before = len(problems)
        known = {each.name: each for each in fields(cls)}
        required = [name for name, each in known.items() if each.default is each.default_factory is MISSING]
        nullable = [name for name, each in known.items() if each.metadata["nullable"]]
        written = value.keys(known, required, nullable)
        values = {name: known[name].metadata["read"](each) for name, each in written.items()}
        if len(problems) > before:
            return None
        values |= {name: None for name in nullable if name not in written and value.node.child(name) is not None}
        section = cls(**values).checked(value)
        return section if len(problems) == before else None

    def checked(self, value: Value) -> Self:
        """This section, whose values are each right by themselves: a problem that they have together is noted here."""
        del value
        return self


def read_by(read: Reader[Any], *, nullable: bool = False) -> dict[str, Any]:
    """The metadata of a field. Where it is `nullable`, it may stand without a value, and is None then."""
    return {"read": read, "nullable": nullable}


def setting(default: T, read: Reader[T], *, nullable: bool = False) -> T:
    """A field with its default, and what reads it."""
    return field(default=default, metadata=read_by(read, nullable=nullable))


def parsed(parse: Callable[[object], T]) -> Reader[T]:
    """What `parse` makes of a value, or a ValueError."""
    return lambda value: value.parsed(parse)


def text(parse: Callable[[str], T]) -> Reader[T]:
    """What `parse` makes of text that is not empty, or a ValueError."""

    def read(value: Value) -> T | None:
        written = value.text()
        return value.parsed(lambda _: parse(written)) if written else None

    return read


def choice(words: object) -> Reader[Any]:
    """One of the words of a Literal."""
    return lambda value: value.choice(*get_args(words))


def whole(least: int, most: int) -> Reader[int]:
    """A whole number within these bounds."""
    return lambda value: value.whole(least, most)


def each(parse: Callable[[object], T]) -> Reader[tuple[T, ...]]:
    """What `parse` makes of the entries of a list, which may be empty, or a ValueError."""
    return lambda value: value.each(parse, may_be_empty=True)
