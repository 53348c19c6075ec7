"""The fields of policy documents, read for people: every value knows where it stands and what it is called.

A `Value` is a node of a YAML file with its path. What it should be is asked of it (`keys`, `each`, `text`, `choice`);
where it is something else, the answer is empty and the problem is noted, so that a reader goes on and finds the
rest. Nothing that was read counts once there is a problem.

Policy files have up to a hundred thousand rules. That is why documents are read by hand here, in one pass and with
no values between the node and the rule, while the config goes through pydantic; both say the same sentences.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

from sniproxy.config.load import dotted, unknown_key, wrong_kind
from sniproxy.config.units import show
from sniproxy.config.yaml_source import BadInputError, Node, Problem

T = TypeVar("T")

# A file can hold millions of mistakes, and nobody reads more than the first ones.
MAX_NOTES = 1000


class TooMuchError(BadInputError):
    """There is no use in reading on."""


@dataclass(slots=True)
class Notes:
    """What is wrong with the files read so far, and what is only doubtful."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def problem(self, file: str, line: int, message: str) -> None:
        """Raises TooMuchError once there are too many."""
        self.problems.append(Problem(file, line, message))
        if len(self.problems) >= MAX_NOTES:
            self.stop(file, line, f"reading stops here, at {MAX_NOTES:,} problems; mend these first")

    def stop(self, file: str, line: int, message: str) -> NoReturn:
        """Give up reading, for a last reason. Raises TooMuchError."""
        raise TooMuchError([*self.problems, Problem(file, line, message)])

    def warn(self, file: str, line: int, message: str) -> None:
        if len(self.warnings) < MAX_NOTES:
            self.warnings.append(Problem(file, line, message))


class Value:
    """A value of a document. `line` is that of its key, or its own in a list."""

    __slots__ = ("file", "line", "node", "notes", "path")

    def __init__(self, node: Node, line: int, path: tuple[str | int, ...], file: str, notes: Notes) -> None:
        self.node = node
        self.line = line
        self.path = path
        self.file = file
        self.notes = notes

    @classmethod
    def of_document(cls, node: Node, file: str, notes: Notes) -> "Value":
        return cls(node, node.line, (), file, notes)

    def __str__(self) -> str:
        """As problems call it: rules[0].sni."""
        return dotted(self.path)

    def refuse(self, sentence: str) -> None:
        """Note the problem that this value `sentence`: "must be text", say."""
        self.notes.problem(self.file, self.line, f"{self} {sentence}".strip())

    def warn(self, sentence: str) -> None:
        self.notes.warn(self.file, self.line, f"{self} {sentence}".strip())

    def at(self, key: str) -> "Value | None":
        """The value at a key of a mapping, unless there is none."""
        node = self.node.value.get(key) if isinstance(self.node.value, dict) else None
        if node is None or node.value is None:
            return None
        return Value(node, node.key_line, (*self.path, key), self.file, self.notes)

    def keys(
        self, known: Sequence[str], required: Iterable[str] = (), nullable: Sequence[str] = (), *, others: bool = False
    ) -> "dict[str, Value]":
        """The values of a mapping, by key.

        Keys that are not known, unless `others` may be there, and those that are lacking are refused, and so are those
        without a value that are not `nullable`.
        """
        values = self.node.value
        if not isinstance(values, dict):
            self.refuse(self._kind("a mapping of keys"))
            return {}
        path, file, notes = self.path, self.file, self.notes
        found = {}
        for key, node in values.items():
            line = node.key_line
            if key not in known:
                if others:
                    continue
                notes.problem(file, line, unknown_key((*path, key), list(known)))
            elif node.value is None:
                if key not in nullable:
                    notes.problem(file, line, f"{dotted((*path, key))} has no value; give it one, or drop it")
            else:
                found[key] = Value(node, line, (*path, key), file, notes)
        for key in required:
            if key not in values:
                self.refuse(f"lacks the key '{key}'; add it")
        return found

    def texts(self) -> "dict[str, Value]":
        """The values of a mapping with any keys, which must be text."""
        values = self.node.value
        found = self.keys(tuple(values) if isinstance(values, dict) else ())
        return {key: value for key, value in found.items() if value.is_text()}

    def is_text(self) -> bool:
        if isinstance(self.node.value, str):
            return True
        self.refuse(self._kind("text"))
        return False

    def items(self) -> "Iterator[Value]":
        """The entries of a list, which may be empty."""
        for number, node in enumerate(self._list()):
            value = Value(node, node.line, (*self.path, number), self.file, self.notes)
            if node.value is None:
                value.refuse("has no value; give it one, or drop it")
            else:
                yield value

    def each(self, parse: Callable[[object], T]) -> tuple[T, ...]:
        """What `parse`, which raises ValueError, makes of the entries of a list, which may not be empty."""
        nodes = self._list()
        if not nodes and isinstance(self.node.value, list):
            self.refuse("is empty; fill it, or drop it")
        try:
            return tuple([parse(node.value) for node in nodes])
        except ValueError:
            for value in self.items():
                value.parsed(parse)
            return ()

    def parsed(self, parse: Callable[[object], T]) -> T | None:
        """What `parse` makes of the value, or None where it raises ValueError."""
        try:
            return parse(self.node.value)
        except ValueError as error:
            self.notes.problem(self.file, self.line, f"{self}: {error}")
            return None

    def text(self) -> str:
        """The value, if it is text and not empty."""
        if not self.is_text():
            return ""
        text = str(self.node.value)
        if not text:
            self.refuse("is empty; fill it, or drop it")
        return text

    def choice(self, *choices: str) -> str:
        """The value, if it is one of `choices`."""
        text = self.node.value
        if isinstance(text, str) and text in choices:
            return text
        self.refuse(f"must be {listed(choices)}, not {show(text)}")
        return ""

    def whole(self, least: int, most: int) -> int:
        """The value, if it is a whole number within these bounds, or else 0."""
        number = self.node.value
        if not isinstance(number, int) or isinstance(number, bool):
            self.refuse(self._kind("a whole number"))
            return 0
        if least <= number <= most:
            return number
        bound = f"at least {least}" if number < least else f"at most {most}"
        self.refuse(f"must be {bound}, not {number}")
        return 0

    def _list(self) -> list[Node]:
        if isinstance(self.node.value, list):
            return self.node.value
        self.refuse(self._kind("a list"))
        return []

    def _kind(self, expected: str) -> str:
        return wrong_kind(expected, self.node.value)


def parse_text(value: object) -> str:
    """For `each`: text that is not empty."""
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is not text; put it in quotes")
    if not value:
        raise ValueError("empty text; write a value, or drop it")
    return value


def nearest(word: str, known: Collection[str]) -> str:
    """The mend for a word that is none of the known ones."""
    close = difflib.get_close_matches(word[:100], known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"write {listed(sorted(known))}"


def listed(words: Sequence[str]) -> str:
    """As a sentence has it: allow, deny or audit."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
