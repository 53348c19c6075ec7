"""YAML files read for people: every value knows its line, and every surprise of YAML is an error.

PyYAML's parser gives events; this module builds the values from them itself, because that is where lines are
known, where duplicate keys, deep nesting and alias bombs are seen before they cost anything, and where scalars
can be read by the YAML 1.2 core schema. In 1.2 `off`, `no` and `on` are strings, so that `ech: off` and a rule
named `no` mean what they say; a field that wants a boolean takes those words too (as Go's yaml.v3 does).

Knows nothing of what the files mean.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

MAX_BYTES = 32 * 1024 * 1024
MAX_DEPTH = 32
# Aliases repeat what they name: the bound is on the values that a file stands for, not on those it spells out.
MAX_VALUES = 8_000_000

Scalar = str | int | float | bool | None
Plain = Scalar | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the input, where it stands, and how to mend it."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class BadInputError(Exception):
    """Files that a user wrote cannot be used; `problems` lists every reason found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(slots=True)
class Node:
    """A value and where it stands. `keys` has the line of each key of a mapping."""

    value: "Scalar | list[Node] | dict[str, Node]"
    line: int
    size: int = 1
    keys: dict[str, int] = field(default_factory=dict)

    def plain(self) -> Plain:
        """The bare value, as json.loads would give it."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def line_of(self, path: tuple[str | int, ...]) -> int:
        """The line of the value at `path`, or of the last step of the way there that exists."""
        node, line = self, self.line
        for step in path:
            child = node.child(step)
            if child is None:
                break
            line = node.keys[step] if isinstance(step, str) else child.line
            node = child
        return line

    def child(self, step: str | int) -> "Node | None":
        """The value at a key of a mapping, or at a place of a list, if there is one."""
        if isinstance(self.value, dict) and isinstance(step, str):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            return self.value[step]
        return None


def read_documents(path: Path) -> list[Node]:
    """The documents of one YAML file. Raises BadInputError, with the line."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInputError([Problem(str(path), 1, f"cannot be read: {error.strerror}")]) from None
    if len(text) > MAX_BYTES:
        raise BadInputError([Problem(str(path), 1, f"is larger than {MAX_BYTES >> 20} MiB; split it")])
    return parse_documents(text, str(path))


def parse_documents(text: bytes, file: str) -> list[Node]:
    """The documents in `text`; `file` is what problems call it. Raises BadInputError."""
    try:
        return list(_Builder(file, yaml.parse(text.decode(), Loader=_LOADER)).documents())
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise BadInputError([Problem(file, line, "is not UTF-8 text")]) from None
    except yaml.MarkedYAMLError as error:
        raise BadInputError([_syntax_problem(error, text.decode(), file)]) from None
    except yaml.reader.ReaderError as error:
        line = text.decode().count("\n", 0, error.position) + 1
        raise BadInputError([Problem(file, line, f"has a character that YAML forbids: {error.reason}")]) from None


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    written = lines[line - 1] if line <= len(lines) else ""
    if re.search(r"[\[,:\-]\s*\*", written):
        mend = 'quote names that begin with a star: ["*.example.org"]'
    elif "\t" in written:
        mend = "indent with spaces, never with tabs"
    else:
        mend = "check the indentation, the colons and the quotes around it"
    return Problem(file, line, f"is not YAML: {error.problem}; {mend}")


@dataclass(slots=True)
class _Frame:
    """A collection that is still being read: the key that waits for its value, and the name it will answer to."""

    node: Node
    anchor: str | None
    key: str | None = None


class _Builder:
    """Builds values from parser events with an explicit stack, so that nesting costs no recursion."""

    def __init__(self, file: str, events: Iterator[yaml.Event]) -> None:
        self._file = file
        self._events = events
        self._anchors: dict[str, Node] = {}

    def documents(self) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors.clear()
                document = self._document()
                if document.value is not None:
                    yield document

    def _document(self) -> Node:
        stack: list[_Frame] = []
        for event in self._events:
            if isinstance(event, yaml.CollectionStartEvent):
                stack.append(self._open(event, depth=len(stack)))
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                frame = stack.pop()
                node, anchor = frame.node, frame.anchor
            else:
                node, anchor = self._leaf(event), getattr(event, "anchor", None)
            # A name is known only once its value is whole, so no value can hold itself.
            if anchor is not None and not isinstance(event, yaml.AliasEvent):
                self._anchors[anchor] = node
            if not stack:
                return node
            self._put(stack[-1], node)
        raise AssertionError("the parser ended inside a document")

    def _open(self, event: yaml.CollectionStartEvent, depth: int) -> _Frame:
        line = _line(event)
        if depth == MAX_DEPTH:
            raise self._bad(line, f"is nested more than {MAX_DEPTH} deep")
        empty: list[Node] | dict[str, Node] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
        return _Frame(Node(empty, line), event.anchor)

    def _put(self, frame: _Frame, node: Node) -> None:
        parent = frame.node
        parent.size += node.size
        if parent.size > MAX_VALUES:
            raise self._bad(node.line, f"stands for more than {MAX_VALUES} values")
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif frame.key is None:
            frame.key = self._key(parent, node)
        elif isinstance(parent.value, dict):
            parent.value[frame.key] = node
            frame.key = None

    def _key(self, parent: Node, node: Node) -> str:
        if isinstance(node.value, (list, dict)):
            raise self._bad(node.line, "a key is a collection; keys are names")
        key = node.value if isinstance(node.value, str) else _SPELLING.get(node.value, str(node.value))
        if key in parent.keys:
            first = parent.keys[key]
            raise self._bad(node.line, f"key '{key}' stands here again, first on line {first}; keep one")
        parent.keys[key] = node.line
        return key

    def _leaf(self, event: yaml.Event) -> Node:
        line = _line(event)
        if isinstance(event, yaml.ScalarEvent):
            return Node(self._scalar(event), line)
        anchor = getattr(event, "anchor", "")
        target = self._anchors.get(anchor)
        if target is None:
            mend = 'quote a name that begins with a star: ["*.example.org"]'
            raise self._bad(line, f"'*{anchor}' names no anchor before it; {mend}")
        return Node(target.value, line, target.size, target.keys)

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise self._bad(_line(event), f"has the tag {event.tag}; plain values only")
        is_plain = event.tag is None and event.implicit[0]
        return resolve_scalar(event.value) if is_plain else str(event.value)

    def _bad(self, line: int, message: str) -> BadInputError:
        return BadInputError([Problem(self._file, line, message)])


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


# YAML 1.2.2 section 10.3.2, the core schema.
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_SPELLING: dict[Scalar, str] = {None: "null", True: "true", False: "false"}
_INT = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")


def resolve_scalar(text: str) -> Scalar:
    """A plain scalar's value by the YAML 1.2 core schema."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] in "-+.0123456789":
        if _INT.fullmatch(text):
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if len(text) < 40 and _FLOAT.fullmatch(text):
            return float(text)
    return text
