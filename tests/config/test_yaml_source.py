"""YAML as people write it: values with lines, and an error for every surprise."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.yaml_source import (
    MAX_BYTES,
    MAX_DEPTH,
    BadInputError,
    Problem,
    Scalar,
    each_document,
    parse_documents,
    read_documents,
    resolve_scalar,
)


def problems(text: str | bytes) -> list[str]:
    """What is wrong with a file f that holds `text`."""
    with pytest.raises(BadInputError) as caught:
        parse_documents(text if isinstance(text, bytes) else text.encode(), "f")
    return [str(problem) for problem in caught.value.problems]


def plain(text: str) -> object:
    """The one document in `text`."""
    (document,) = parse_documents(text.encode(), "f")
    return document.plain()


# YAML 1.2.2 section 10.3.2, example 10.9 and the table above it.
CORE_SCHEMA: dict[str, Scalar] = {
    "": None,
    "~": None,
    "null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "FALSE": False,
    "0": 0,
    "0o7": 7,
    "0x3A": 58,
    "-19": -19,
    "+12": 12,
    "010": 10,
    "0.": 0.0,
    "-0.0": -0.0,
    ".5": 0.5,
    "+12e03": 12000.0,
    "-2E+05": -200000.0,
    "685.230_15e+03": "685.230_15e+03",
    "off": "off",
    "no": "no",
    "yes": "yes",
    "on": "on",
    "y": "y",
    "12:30:45": "12:30:45",
    "2001-12-15": "2001-12-15",
    "1_000": "1_000",
    "0b101": "0b101",
    "-": "-",
    ".": ".",
    "10s": "10s",
    "8.8.8.8": "8.8.8.8",
}

# Numbers to the core schema, and text to us: no value of ours may be one.
STAYS_TEXT = (".inf", "-.INF", "+.Inf", ".nan", ".NaN", "9" * 40)


@pytest.mark.parametrize(("text", "value"), CORE_SCHEMA.items())
def test_a_plain_scalar_is_what_yaml_1_2_says(text: str, value: Scalar) -> None:
    actual = resolve_scalar(text)
    assert (actual, type(actual)) == (value, type(value))


@pytest.mark.parametrize("text", STAYS_TEXT)
def test_infinities_and_absurd_numbers_stay_text(text: str) -> None:
    assert resolve_scalar(text) == text


@given(st.integers(min_value=-(10**18) + 1, max_value=10**18 - 1))
def test_whole_numbers_are_read_as_they_are_written(number: int) -> None:
    assert resolve_scalar(str(number)) == number


DOCUMENTS: dict[str, tuple[str, object]] = {
    "quoted scalars are text": ("['1', \"true\", '~']", ["1", "true", "~"]),
    "a tag of text makes text": ("[!!str 1, ! 2]", ["1", "2"]),
    "keys are text as they are written": (
        "{1: a, 0: b, no: c, ~: d, 1.0: e}",
        {"1": "a", "0": "b", "no": "c", "~": "d", "1.0": "e"},
    ),
    "an alias stands for a copy": ("{a: &x [1, 2], b: *x}", {"a": [1, 2], "b": [1, 2]}),
    "an alias may be a key": ("[&x a, {*x : 1}]", ["a", {"a": 1}]),
    "tags that say what is there anyway do no harm": ("!!map {a: !!seq [1]}", {"a": [1]}),
    "a byte order mark is no part of the text": ("\ufeffa: 1", {"a": 1}),
    "Windows line ends are line ends": ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    "a tab behind a colon separates": ("a:\t1", {"a": 1}),
    "collections may be empty": ("{a: [], b: {}}", {"a": [], "b": {}}),
}


@pytest.mark.parametrize(("text", "value"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_reads(text: str, value: object) -> None:
    assert plain(text) == value


def test_documents_without_content_are_none() -> None:
    assert [node.plain() for node in parse_documents(b"---\n# nothing\n---\na: 1\n---\n", "f")] == [{"a": 1}]


def test_every_value_knows_its_line() -> None:
    (root,) = parse_documents(b"a:\n  b:\n    - 1\n    - c: 2\n", "f")
    paths: dict[tuple[str | int, ...], int] = {
        (): 1,
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "b", 0): 3,
        ("a", "b", 1, "c"): 4,
        ("a", "nothing", "here"): 1,
    }
    assert {path: root.line_of(path) for path in paths} == paths


STAR = 'quote names that begin with a star: ["*.example.org"]'
LOOK = "check the indentation, colons, brackets and quotes of this line and those before it"
NAMES = "has a key that is no name; write names before colons"

REFUSED: dict[str, tuple[str | bytes, str]] = {
    "indentation by a tab": (
        "a:\n\tb: 1\n",
        "f:2: is not YAML: found character that cannot start any token; indent with spaces, never with tabs",
    ),
    "a star that is not quoted, in a list": (
        "sni: [*.x.org]\n",
        f"f:1: is not YAML: did not find expected alphabetic or numeric character; {STAR}",
    ),
    "a star that is not quoted, as an item": (
        "sni:\n  - *.x.org\n",
        f"f:2: is not YAML: did not find expected alphabetic or numeric character; {STAR}",
    ),
    "a star that reads as an alias": (
        "sni: [*x]\n",
        "f:1: '*x' is a YAML alias of nothing before it; quote a name that begins with a star: [\"*.example.org\"]",
    ),
    "an IPv6 address that is not quoted": (
        "a: [::1]:8443\n",
        'f:1: is not YAML: did not find expected node content; quote addresses that begin with a bracket: "[::1]:8443"',
    ),
    "a bracket that is not closed": (
        "a: 1\nb: [\n",
        "f:2: is not YAML: the file ends before what begins here; close its bracket or quote",
    ),
    "a quote that is not closed": (
        "a: 1\nb: 'x\nc: 2\n",
        "f:2: is not YAML: the file ends before what begins here; close its bracket or quote",
    ),
    "two colons": ("a: b: c\n", f"f:1: is not YAML: mapping values are not allowed in this context; {LOOK}"),
    "a key that stands twice": ("a: 1\nb: 2\na: 3\n", "f:3: key 'a' stands here again, first on line 1; keep one"),
    "a key that stands twice, once in quotes": (
        "true: 1\n'true': 2\n",
        "f:2: key 'true' stands here again, first on line 1; keep one",
    ),
    "a list for a key": ("? [a]\n: b\n", f"f:1: {NAMES}"),
    "an alias of a number for a key": ("[&x 1, {*x : 1}]", f"f:1: {NAMES}"),
    "a value that holds itself": (
        "a: &x [*x]\n",
        "f:1: '*x' is a YAML alias of nothing before it; quote a name that begins with a star: [\"*.example.org\"]",
    ),
    "a tag that builds an object": (
        "a: !!python/object:os.system {}\n",
        "f:1: has the YAML tag !!python/object:os.system; remove the tag",
    ),
    "a tag on a scalar": ("a: !!int 3\n", "f:1: has the YAML tag !!int; remove the tag"),
    "a tag of one's own": ("a: !x [1]\n", "f:1: has the YAML tag !x; remove the tag"),
    "bytes that are not UTF-8": (b"a: 1\nb: \xff\n", "f:2: is not UTF-8 text; save it as UTF-8"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "f:1: is not UTF-8 text; save it as UTF-8"),
    "a control character": ("a: é\nb: \x01\n", "f:2: has the character U+0001, which YAML forbids; remove it"),
    "a control character far behind characters of several bytes": (
        "# " + "é" * 100 + "\na: \x07\n" + "b: 1\n" * 100,
        "f:2: has the character U+0007, which YAML forbids; remove it",
    ),
    "nesting with brackets": (
        "[" * 100_000,
        f"f:1: is nested more than {MAX_DEPTH} deep; close brackets that you opened",
    ),
    "nesting with braces": (
        "{a: " * 100_000,
        f"f:1: is nested more than {MAX_DEPTH} deep; close brackets that you opened",
    ),
    "nesting with dashes": (
        "- " * 100_000,
        f"f:1: is nested more than {MAX_DEPTH} deep; close brackets that you opened",
    ),
    "nesting with aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3000)),
        f"f:{MAX_DEPTH - 1}: is nested more than {MAX_DEPTH} deep; close brackets that you opened",
    ),
    "an alias bomb": (
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 25)),
        "f:7: stands for more than 8,000,000 values; split the file, or use no aliases",
    ),
}


@pytest.mark.parametrize(("text", "problem"), REFUSED.values(), ids=REFUSED)
def test_refuses(text: str | bytes, problem: str) -> None:
    assert problems(text) == [problem]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    expected = {"nothing": "no such file or directory", "folder": "is a directory"}
    for name, cause in expected.items():
        with pytest.raises(BadInputError) as caught:
            read_documents(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}:1: cannot be read: {cause}"


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_pipe_is_read_to_its_end(size: int) -> None:
    """As a shell makes one of <(command): it has a writer, who may take a while."""
    reader, writer = os.pipe()
    with os.fdopen(reader), ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_documents, Path(f"/dev/fd/{reader}"))
        with os.fdopen(writer, "wb") as file:
            file.write(b"key: " + b"x" * size)
        assert reading.result()[0].plain() == {"key": "x" * size}


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    """It would be for ever; and what is empty must not pass for a config that says nothing."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(BadInputError) as caught:
        read_documents(path)
    assert str(caught.value) == f"{path}:1: cannot be read: a pipe that nobody writes to"


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(BadInputError) as caught:
        read_documents(Path("/dev/zero"))
    assert str(caught.value) == f"/dev/zero:1: is larger than {MAX_BYTES >> 20} MiB; split it"


def test_the_documents_of_a_file_come_one_by_one(tmp_path: Path) -> None:
    """What stands before a mistake has been read when the mistake is met."""
    path = tmp_path / "f"
    path.write_text("a: 1\n---\nb: [\n")
    documents = each_document(path)
    assert next(documents).plain() == {"a": 1}
    with pytest.raises(BadInputError):
        next(documents)


def test_a_problem_is_one_line_whatever_the_file_says() -> None:
    problem = Problem("a\nb.yaml", 3, "unknown key 'x\n\x1b[31my'")
    assert str(problem) == r"a\nb.yaml:3: unknown key 'x\n\x1b[31my'"


def test_problems_stand_in_the_order_of_files_and_lines() -> None:
    error = BadInputError([Problem("b", 1, "x"), Problem("a", 10, "x"), Problem("a", 9, "y"), Problem("a", 9, "x")])
    assert str(error).splitlines() == ["a:9: y", "a:9: x", "a:10: x", "b:1: x"]


def read_whole(raw: bytes) -> list[str]:
    """The problems of `raw`, or none once every value of it has been built."""
    try:
        for document in parse_documents(raw, "f"):
            document.plain()
    except BadInputError as error:
        return [str(problem) for problem in error.problems]
    return []


def is_refused_well(told: list[str]) -> bool:
    return all(problem.startswith("f:") and len(problem.splitlines()) == 1 for problem in told)


@given(st.text().map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary())
def test_any_text_is_read_or_refused(raw: bytes) -> None:
    """No file makes the reader raise anything but BadInputError."""
    assert is_refused_well(read_whole(raw))


INDICATORS = [*"[]{}:,&*!|>'\"%@`#-? \n\t~ax1", "&a ", "*a ", "!!str ", "---\n", "<<: "]


@given(st.lists(st.sampled_from(INDICATORS)))
def test_any_heap_of_indicators_is_read_or_refused(pieces: list[str]) -> None:
    assert is_refused_well(read_whole("".join(pieces).encode()))
