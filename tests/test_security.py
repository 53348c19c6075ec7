"""docs/SECURITY.md promises nothing that no test shows."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "SECURITY.md").read_text()
SHOWN_BY = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", TEXT)))
PROMISES = TEXT.partition("## What the proxy promises")[2].partition("## What it cannot promise")[0]


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("test", SHOWN_BY)
def test_what_shows_a_promise_is_there(test: str) -> None:
    file, _, name = test.partition("::")

    assert (ROOT / file).is_file()
    assert not name or name in functions_in(ROOT / file)


@pytest.mark.parametrize("promise", re.findall(r"^\*\*.+?(?=\n\n)", PROMISES, re.DOTALL | re.MULTILINE))
def test_every_promise_is_shown(promise: str) -> None:
    assert "`tests/" in promise


def test_every_library_that_serves_is_accounted_for() -> None:
    project = (ROOT / "pyproject.toml").read_text().partition("\ndependencies = [")[2].partition("]\n")[0]
    needed = {name.lower().replace("-", "_") for name in re.findall(r'"([\w-]+)>', project)}
    told = {name.lower() for row in re.findall(r"^\| ([\w, ]+?) \|", TEXT, re.MULTILINE) for name in row.split(", ")}

    assert needed <= told
