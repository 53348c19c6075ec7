"""Files that people write: a place to put them, and what every complaint about one must be."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sniproxy.config.yaml_source import BadInputError, Problem

# A problem quotes 60 characters of a value, a path of keys of 100 each, and lists the known keys.
_LONGEST_PROBLEM = 10_000


@contextmanager
def file_of(data: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sniproxy-fuzz-") as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        yield path


def line_count(data: bytes) -> int:
    """The most lines that any reader could see, YAML's own and Python's line breaks included."""
    return len(data.decode("utf-8", "replace").splitlines()) + 1


def check_error(error: BadInputError, data: bytes) -> None:
    """There is a problem, and no empty complaint."""
    assert error.problems
    for problem in error.problems:
        check_problem(problem, data)


def check_problem(problem: Problem, data: bytes) -> None:
    """FILE:LINE: what, and the mend: a line that is in the file, and one line for a person, in our own words."""
    assert 1 <= problem.line <= line_count(data), problem
    assert str(problem).isprintable()
    assert len(problem.message) < _LONGEST_PROBLEM
    assert not any(jargon in problem.message for jargon in ("Input should", "Value error", "codec", "object at 0x"))
