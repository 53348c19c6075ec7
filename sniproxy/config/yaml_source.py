"""YAML files read for people: every value knows its line, and every surprise of YAML is an error.

PyYAML's parser gives events; this module builds the values from them itself, because that is where lines are
known, where duplicate keys, deep nesting and alias bombs are seen before they cost anything, and where scalars
can be read by the YAML 1.2 core schema. In 1.2 `off`, `no` and `on` are strings, so that `ech: off` and a rule
named `no` mean what they say; a field that wants a boolean takes those words too (as Go's yaml.v3 does).

Knows nothing of what the files mean.
"""

import re
from collections.abc import Collection, Iterable, Iterator
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
        """One line, whatever the file says and is called."""
        return f"{printable(self.file)}:{self.line}: {printable(self.message)}"


def printable(text: str) -> str:
    """`text` with every character that a line or a terminal could take for something else escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class BadInputError(Exception):
    """Files that a user wrote cannot be used; `problems` lists every reason found, by file and line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.file, problem.line))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(slots=True)
class Node:
    """A value and where it stands. `keys` has the line of each key of a mapping.

    `size` and `height` count the values in it, all of them and the deepest of them, with aliases written out.
    """

    value: "Scalar | list[Node] | dict[str, Node]"
    line: int
    size: int = 1
    height: int = 1
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
        cause = (error.strerror or str(error)).lower()
        raise BadInputError([Problem(str(path), 1, f"cannot be read: {cause}")]) from None
    if len(text) > MAX_BYTES:
        raise BadInputError([Problem(str(path), 1, f"is larger than {MAX_BYTES >> 20} MiB; split it")])
    return parse_documents(text, str(path))


def parse_documents(text: bytes, file: str) -> list[Node]:
    """The documents in `text`; `file` is what problems call it. Raises BadInputError."""
    try:
        return list(_Builder(file, yaml.parse(text.decode(), Loader=_LOADER)).documents())
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise BadInputError([Problem(file, line, "is not UTF-8 text; save it as UTF-8")]) from None
    except yaml.MarkedYAMLError as error:
        raise BadInputError([_syntax_problem(error, text.decode(), file)]) from None
    except yaml.reader.ReaderError:
        raise BadInputError([_forbidden_character(text.decode(), file)]) from None


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    lines = text.splitlines()
    mark = error.problem_mark or error.context_mark
    if mark and mark.line >= len(lines) and error.context_mark:
        line = min(error.context_mark.line + 1, max(1, len(lines)))
        return Problem(file, line, "is not YAML: the file ends before what begins here; close its bracket or quote")
    line = mark.line + 1 if mark else 1
    written = lines[line - 1] if line <= len(lines) else ""
    fitting = (mend for pattern, mend in _MENDS if pattern.search(written))
    mend = next(fitting, "check the indentation, colons, brackets and quotes of this line and those before it")
    return Problem(file, line, f"is not YAML: {error.problem}; {mend}")


_MENDS = (
    (re.compile(r"(?:^|[\[{,:\-])\s*\*"), 'quote names that begin with a star: ["*.example.org"]'),
    (re.compile(r"\[[0-9a-fA-F]*:[0-9a-fA-F:.]*\]"), 'quote addresses that begin with a bracket: "[::1]:8443"'),
    (re.compile(r"^\s*\t"), "indent with spaces, never with tabs"),
)


def _forbidden_character(text: str, file: str) -> Problem:
    # Where it is the parser does not say: it counts bytes.
    found = _FORBIDDEN.search(text)
    if found is None:
        return Problem(file, 1, "has a character that YAML forbids; remove it")
    line = text.count("\n", 0, found.start()) + 1
    return Problem(file, line, f"has the character U+{ord(found[0]):04X}, which YAML forbids; remove it")


# What YAML 1.2.2 section 5.1 (c-printable) leaves out.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufeff\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(slots=True)
class _Frame:
    """A collection that is still being read: the key that waits for its value, and the name it will answer to."""

    node: Node
    anchor: str | None
    key: str | None = None

    @property
    def wants_key(self) -> bool:
        return self.key is None and isinstance(self.node.value, dict)


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
                is_key = bool(stack) and stack[-1].wants_key
                node, anchor = self._leaf(event, is_key=is_key), getattr(event, "anchor", None)
            # A name is known only once its value is whole, so no value can hold itself.
            if anchor is not None and not isinstance(event, yaml.AliasEvent):
                self._anchors[anchor] = node
            if not stack:
                return node
            self._put(stack[-1], node)
        raise AssertionError("the parser ended inside a document")

    def _open(self, event: yaml.CollectionStartEvent, depth: int) -> _Frame:
        line = _line(event)
        self._check_tag(event, _COLLECTION_TAGS)
        if depth == MAX_DEPTH:
            raise self._too_deep(line)
        empty: list[Node] | dict[str, Node] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
        return _Frame(Node(empty, line), event.anchor)

    def _put(self, frame: _Frame, node: Node) -> None:
        parent = frame.node
        parent.size += node.size
        if parent.size > MAX_VALUES:
            raise self._bad(node.line, f"stands for more than {MAX_VALUES:,} values; split the file, or use no aliases")
        parent.height = max(parent.height, node.height + 1)
        if parent.height > MAX_DEPTH:
            raise self._too_deep(node.line)
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif frame.key is None:
            frame.key = self._key(parent, node)
        elif isinstance(parent.value, dict):
            parent.value[frame.key] = node
            frame.key = None

    def _key(self, parent: Node, node: Node) -> str:
        key = node.value
        if not isinstance(key, str):
            raise self._bad(node.line, "has a key that is no name; write names before colons")
        if key in parent.keys:
            first = parent.keys[key]
            raise self._bad(node.line, f"key '{key[:100]}' stands here again, first on line {first}; keep one")
        parent.keys[key] = node.line
        return key

    def _leaf(self, event: yaml.Event, *, is_key: bool) -> Node:
        """A scalar or an alias. Keys are text as they are written: `no: 1` has the key "no"."""
        line = _line(event)
        if isinstance(event, yaml.ScalarEvent):
            self._check_tag(event, _TEXT_TAGS)
            is_plain = event.tag is None and event.implicit[0] and not is_key
            return Node(resolve_scalar(event.value) if is_plain else str(event.value), line)
        anchor = getattr(event, "anchor", "")
        target = self._anchors.get(anchor)
        if target is None:
            mend = 'quote a name that begins with a star: ["*.example.org"]'
            raise self._bad(line, f"'*{anchor}' is a YAML alias of nothing before it; {mend}")
        return Node(target.value, line, target.size, target.height, target.keys)

    def _check_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, harmless: Collection[str]) -> None:
        if event.tag not in (None, "!", *harmless):
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            raise self._bad(_line(event), f"has the YAML tag {tag[:100]}; remove the tag")

    def _too_deep(self, line: int) -> BadInputError:
        return self._bad(line, f"is nested more than {MAX_DEPTH} deep; close brackets that you opened")

    def _bad(self, line: int, message: str) -> BadInputError:
        return BadInputError([Problem(self._file, line, message)])


_TEXT_TAGS = ("tag:yaml.org,2002:str",)
_COLLECTION_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


# YAML 1.2.2 section 10.3.2, the core schema.
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")


def resolve_scalar(text: str) -> Scalar:
    """A plain scalar's value by the YAML 1.2 core schema.

    But `.inf` and `.nan` are text, since no value here may be one, and so are numbers of absurd length.
    """
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
