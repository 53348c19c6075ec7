"""The fields of configs and policy documents, read for people: every value knows where it stands and what it is called.

A `Value` is a node of a YAML file with its path. What it should be is asked of it (`keys`, `each`, `text`, `choice`);
where it is something else, the answer is empty and the problem is noted, so that a reader goes on and finds the
rest. Nothing that was read counts once there is a problem.

Policy files have up to a hundred thousand rules. That is why documents are read by hand here, in one pass and with
no values between the node and the rule.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

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

    def wrong(self, message: object) -> None:
        """Note a problem of this value in a sentence that does not begin with it."""
        self.notes.problem(self.file, self.line, f"{self}: {message}" if self.path else str(message))

    def warn(self, sentence: str) -> None:
        self.notes.warn(self.file, self.line, f"{self} {sentence}".strip())

    def at(self, key: str) -> "Value | None":
        """The value at a key of a mapping, unless there is none."""
        node = self.node.value.get(key) if isinstance(self.node.value, dict) else None
        if node is None or node.value is None:
            return None
        return Value(node, node.key_line, (*self.path, key), self.file, self.notes)

    def towards(self, *path: str | int) -> "Value":
        """The value at a path below this one, or the last one on the way there that is written."""
        value = self
        for step in path:
            node = value.node.child(step)
            if node is None:
                break
            line = node.key_line if isinstance(step, str) else node.line
            value = Value(node, line, (*value.path, step), self.file, self.notes)
        return value

    def keys(
        self,
        known: Collection[str],
        required: Iterable[str] = (),
        nullable: Collection[str] = (),
        *,
        others: bool = False,
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
                    notes.problem(file, line, f"{dotted((*path, key))} {_NO_VALUE}")
            else:
                found[key] = Value(node, line, (*path, key), file, notes)
        for key in required:
            if key not in values:
                self.refuse(f"lacks the key '{key}'; add it")
        return found

    def pairs(self) -> "dict[str, Value]":
        """The values of a mapping with any keys."""
        return self.keys(self.node.value if isinstance(self.node.value, dict) else ())

    def texts(self) -> "dict[str, Value]":
        """The values of a mapping with any keys, which must be text."""
        return {key: value for key, value in self.pairs().items() if value.is_text()}

    def is_text(self) -> bool:
        if isinstance(self.node.value, str):
            return True
        self.refuse(self._kind("text"))
        return False

    def items(self, *, may_be_empty: bool = True) -> "Iterator[Value]":
        """The entries of a list."""
        for number, node in enumerate(self._list(may_be_empty=may_be_empty)):
            value = Value(node, node.line, (*self.path, number), self.file, self.notes)
            if node.value is None:
                value.refuse(_NO_VALUE)
            else:
                yield value

    def each(self, parse: Callable[[object], T], *, may_be_empty: bool = False) -> tuple[T, ...]:
        """What `parse`, which raises ValueError, makes of the entries of a list."""
        nodes = self._list(may_be_empty=may_be_empty)
        try:
            return tuple([parse(node.value) for node in nodes])
        except ValueError:
            for value in self.items():
                value.parsed(parse)
            return ()

    def every(self, read: "Callable[[Value], T | None]", *, may_be_empty: bool = False) -> tuple[T, ...]:
        """What `read` makes of the entries of a list, which notes what is wrong with one and makes None of it."""
        values = self.items(may_be_empty=may_be_empty)
        return tuple([found for value in values if (found := read(value)) is not None])

    def parsed(self, parse: Callable[[object], T]) -> T | None:
        """What `parse` makes of the value, or None where it raises ValueError."""
        try:
            return parse(self.node.value)
        except ValueError as error:
            self.wrong(error)
            return None

    def text(self) -> str:
        """The value, if it is text and not empty."""
        if not self.is_text():
            return ""
        text = str(self.node.value)
        if not text:
            self.refuse(_EMPTY)
        return text

    def choice(self, *choices: str) -> str:
        """The value, if it is one of `choices`; `off` also where YAML 1.1 tooling (Helm, kubectl) made it false."""
        text = "off" if self.node.value is False and "off" in choices else self.node.value
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
        return self.within(number, least, most)

    def within(self, number: int, least: int, most: int) -> int:
        """`number`, which is what the value stands for, if it is within these bounds, or else 0."""
        if least <= number <= most:
            return number
        bound = f"at least {least}" if number < least else f"at most {most}"
        self.refuse(f"must be {bound}, not {show(self.node.value)}")
        return 0

    def flag(self) -> bool:
        """The value, if it is true or false, also in the words of YAML 1.1; or else false."""
        value = self.node.value
        answer = _FLAGS.get(str(value).lower()) if isinstance(value, str | int) else None
        if answer is None:
            self.refuse(self._kind("true or false"))
        return bool(answer)

    def _list(self, *, may_be_empty: bool) -> list[Node]:
        if isinstance(self.node.value, list):
            if not self.node.value and not may_be_empty:
                self.refuse(_EMPTY)
            return self.node.value
        self.refuse(self._kind("a list"))
        return []

    def _kind(self, expected: str) -> str:
        return wrong_kind(expected, self.node.value)


_EMPTY = "is empty; fill it, or drop it"
_NO_VALUE = "has no value; give it one, or drop it"
_FLAGS = {
    **dict.fromkeys(("true", "yes", "on", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "f", "0"), False),
}


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


def wrong_kind(expected: str, value: object) -> str:
    """What is said of a value that is not of the kind that is `expected`."""
    mend = ""
    if expected == "a whole number" and isinstance(value, str) and value.isdecimal():
        mend = "; take the quotes off"
    elif expected == "text" and not isinstance(value, dict | list):
        mend = "; put it in quotes"
    elif expected == "a list" and not isinstance(value, dict | list):
        mend = f"; write [{show(value)}]"
    return f"must be {expected}, not {show(value)}{mend}"


def unknown_key(path: tuple[int | str, ...], known: list[str]) -> str:
    """What is said of a key that is none of the `known` ones."""
    key = str(path[-1])
    close = difflib.get_close_matches(key[:100], known, n=1)
    mend = f"did you mean '{close[0]}'?" if close else f"the keys here are {', '.join(known)}"
    where = f" in {dotted(path[:-1])}" if path[:-1] else ""
    return f"unknown key {show(key)}{where}; {mend}"


def dotted(path: tuple[int | str, ...]) -> str:
    """A path as problems write it: rules[0].sni."""
    text = ""
    for step in path:
        if isinstance(step, int) or not re.fullmatch(r"[\w-]{1,100}", step):
            text += f"[{show(step)}]"
        else:
            text += f".{step}" if text else step
    return text
