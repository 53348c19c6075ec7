"""YAML files read for people: every value knows its line, and every surprise of YAML is an error.

PyYAML's parser gives events; this module builds the values from them itself, because that is where lines are
known, where duplicate keys, deep nesting and alias bombs are seen before they cost anything, and where scalars
can be read by the YAML 1.2 core schema. In 1.2 `off`, `no` and `on` are strings, so that `ech: off` and a rule
named `no` mean what they say; a field that wants a boolean takes those words too (as Go's yaml.v3 does).

Knows nothing of what the files mean.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
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
    """A value and where it stands: its own line, and that of the key that it belongs to, if it does.

    `size` and `height` count the values in it, all of them and the deepest of them, with aliases written out.
    """

    value: "Scalar | list[Node] | dict[str, Node]"
    line: int
    size: int = 1
    height: int = 1
    key_line: int = 0

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
            line = child.key_line if isinstance(step, str) else child.line
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
    return list(each_document(path))


def each_document(path: Path) -> Iterator[Node]:
    """The documents of one YAML file, each as it is read: a file has many, and few are needed at once.

    Raises BadInputError, with the line, where the file turns out to be bad.
    """
    try:
        text = _read(path)
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise BadInputError([Problem(str(path), 1, f"cannot be read: {cause}")]) from None
    if len(text) > MAX_BYTES:
        raise BadInputError([Problem(str(path), 1, f"is larger than {MAX_BYTES >> 20} MiB; split it")])
    yield from _documents(text, str(path))


def _read(path: Path) -> bytes:
    """What a file has, or so much of it that it is too much. Raises OSError, as for a pipe without a writer.

    A pipe with one is what a shell makes of <(command); without, the one who waits for a writer may wait for ever.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        descriptor = file.fileno()
        begin = b""
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            with contextlib.suppress(BlockingIOError):
                begin = os.read(descriptor, MAX_BYTES + 1)
                if not begin:
                    raise OSError(errno.EPIPE, "a pipe that nobody writes to")
        os.set_blocking(descriptor, True)
        return begin + file.read(MAX_BYTES + 1 - len(begin))


def parse_documents(text: bytes, file: str) -> list[Node]:
    """The documents in `text`; `file` is what problems call it. Raises BadInputError."""
    return list(_documents(text, file))


def _documents(text: bytes, file: str) -> Iterator[Node]:
    try:
        yield from _Builder(file, yaml.parse(text.decode(), Loader=_LOADER)).documents()
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


class _Frame:
    """A collection that is still being read, the name it will answer to, and the key that waits for its value."""

    __slots__ = ("anchor", "items", "key", "key_line", "mapping", "node")

    def __init__(self, event: yaml.CollectionStartEvent | None, line: int) -> None:
        self.items: list[Node] = []
        self.mapping: dict[str, Node] | None = {} if isinstance(event, yaml.MappingStartEvent) else None
        self.node = Node(self.items if self.mapping is None else self.mapping, line)
        self.anchor = event.anchor if event is not None else None
        self.key: str | None = None
        self.key_line = 0


class _Builder:
    """Builds values from parser events with an explicit stack, so that nesting costs no recursion.

    Files have millions of values, and every step here is taken for each of them.
    """

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
        frame = root = _Frame(None, 0)
        around: list[_Frame] = []
        for event in self._events:
            if isinstance(event, yaml.ScalarEvent):
                node = self._scalar(event, is_key=frame.mapping is not None and frame.key is None)
            elif isinstance(event, yaml.CollectionStartEvent):
                around.append(frame)
                frame = self._open(event, depth=len(around))
                continue
            elif isinstance(event, yaml.CollectionEndEvent):
                node = self._close(frame)
                frame = around.pop()
            else:
                node = self._alias(event)
            if frame is root:
                return node
            self._put(frame, node)
        raise AssertionError("the parser ended inside a document")

    def _open(self, event: yaml.CollectionStartEvent, depth: int) -> _Frame:
        line = _line(event)
        self._check_tag(event, _COLLECTION_TAGS)
        if depth > MAX_DEPTH:
            raise self._too_deep(line)
        return _Frame(event, line)

    def _close(self, frame: _Frame) -> Node:
        # A name is known only once its value is whole, so no value can hold itself.
        if frame.anchor is not None:
            self._anchors[frame.anchor] = frame.node
        return frame.node

    def _put(self, frame: _Frame, node: Node) -> None:
        parent = frame.node
        parent.size += node.size
        if parent.size > MAX_VALUES:
            raise self._bad(node.line, f"stands for more than {MAX_VALUES:,} values; split the file, or use no aliases")
        if node.height >= parent.height:
            parent.height = node.height + 1
            if parent.height > MAX_DEPTH:
                raise self._too_deep(node.line)
        if frame.mapping is None:
            frame.items.append(node)
        elif frame.key is None:
            frame.key = self._key(frame.mapping, node)
            frame.key_line = node.line
        else:
            node.key_line = frame.key_line
            frame.mapping[frame.key] = node
            frame.key = None

    def _key(self, mapping: dict[str, Node], node: Node) -> str:
        key = node.value
        if not isinstance(key, str):
            raise self._bad(node.line, "has a key that is no name; write names before colons")
        if key in mapping:
            where = f"first on line {mapping[key].key_line}"
            raise self._bad(node.line, f"key '{key[:100]}' stands here again, {where}; keep one")
        return key

    def _scalar(self, event: yaml.ScalarEvent, *, is_key: bool) -> Node:
        """Keys are text as they are written: `no: 1` has the key "no"."""
        value: Scalar = event.value
        if event.tag is not None:
            self._check_tag(event, _TEXT_TAGS)
        elif event.implicit[0] and not is_key:
            value = resolve_scalar(event.value)
        node = Node(value, _line(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: yaml.Event) -> Node:
        anchor = getattr(event, "anchor", "")
        target = self._anchors.get(anchor)
        if target is None:
            mend = 'quote a name that begins with a star: ["*.example.org"]'
            raise self._bad(_line(event), f"'*{anchor}' is a YAML alias of nothing before it; {mend}")
        return Node(target.value, _line(event), target.size, target.height)

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
