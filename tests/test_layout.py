"""The shape of the code: tests mirror the sources, and imports point one way.

wire -> identity -> policy -> reload -> net -> record -> observe -> ... -> connection -> app -> supervisor -> cli
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path.relative_to(ROOT) for path in (ROOT / "sniproxy").rglob("*.py"))
CODE = [path for path in SOURCES if path.name not in ("__init__.py", "__main__.py")]

# Sources whose test does not bear their name, the one that shows them, and why.
SHOWN_BY = {
    "sniproxy/app.py": ("tests/e2e/test_lifecycle.py", "it is the composition root: only the whole shows it"),
    "sniproxy/supervisor.py": ("tests/e2e/test_reload.py", "it forks"),
    "sniproxy/connection.py": ("tests/e2e/test_clients.py", "the story is told by real clients"),
    "sniproxy/intake.py": ("tests/e2e/test_hellos.py", "its cases are byte sequences from a real socket"),
    "sniproxy/demo.py": ("Makefile", "it starts the whole proxy, and is run by `make demo`"),
    "sniproxy/net/relay.py": ("tests/e2e/test_bytes.py", "it moves bytes between real sockets"),
    "sniproxy/usual.py": ("tests/test_outcome.py", "it is other names for what is there"),
    "sniproxy/policy/model.py": ("tests/policy/test_engine.py", "it is words without behaviour, which decisions use"),
}


def mirror(source: Path) -> Path:
    """Where the test of a source belongs."""
    return Path("tests", *source.parts[1:-1], f"test_{source.name}")


@pytest.mark.parametrize("source", CODE, ids=str)
def test_every_source_has_a_test_in_its_place(source: Path) -> None:
    elsewhere = SHOWN_BY.get(source.as_posix())
    places = [mirror(source), *([Path(elsewhere[0])] if elsewhere else [])]
    assert [place for place in places if (ROOT / place).is_file()], f"write {mirror(source)}"


def test_the_list_of_exceptions_has_no_source_that_is_gone() -> None:
    assert SHOWN_BY.keys() <= {source.as_posix() for source in SOURCES}


# A part of the program is a package of it, or one of its modules. Each may import those that stand before it.
ORDER = (
    "memo",
    "names",
    "value",
    "outcome",
    "usual",
    "wire",
    "identity",
    "config",
    "policy",
    "limits",
    "processes",
    "reload",
    "queries",
    "net",
    "record",
    "observe",
    "ledger",
    "intake",
    "live",
    "connection",
    "app",
    "capacity",
    "publisher",
    "supervisor",
    "demo",
    "top",
    "cli",
    "__main__",
)

# Parts that may import less than what stands before them.
ONLY = {
    "wire": {"memo", "names", "value"},
    "identity": {"memo", "names", "wire"},
    "config": {"names", "identity"},
    "policy": {"memo", "names", "outcome", "identity", "config"},
    "processes": set(),
    "reload": {"config", "policy", "processes"},
    "record": {"outcome", "usual", "identity", "policy"},
    "ledger": {"outcome", "usual", "record", "observe"},
    "top": {"config"},
}

# Parts that few may know.
IMPORTED_BY = {
    "ledger": {"connection", "app"},
    "live": {"connection", "app"},
    "connection": {"app", "supervisor"},
    "app": {"supervisor"},
    "publisher": {"supervisor"},
    "supervisor": {"cli"},
    "demo": {"cli"},
    "top": {"cli"},
    "cli": {"__main__"},
    "__main__": set(),
}


def part(module: str) -> str:
    """The part that a module, or a file of the package, belongs to: sniproxy.wire.alert is of wire."""
    return module.split(".")[1] if "." in module else ""


def imports(source: Path) -> Iterator[str]:
    """The modules of this program that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / source).read_text())):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.split(".")[0] == "sniproxy")
            case ast.ImportFrom(level=level, module=module, names=names):
                assert level == 0, f"{source} has a relative import"
                if module == "sniproxy":
                    yield from (f"sniproxy.{name.name}" for name in names if not name.name.startswith("__"))
                elif module and module.startswith("sniproxy."):
                    yield module


def arrows() -> set[tuple[str, str]]:
    """Which part imports which other."""
    return {
        (own, other)
        for source in SOURCES
        if (own := part(".".join(source.with_suffix("").parts))) != "__init__"
        for module in imports(source)
        if (other := part(module)) not in ("", own)
    }


def test_every_part_has_its_place_in_the_order() -> None:
    parts = {part(".".join(source.with_suffix("").parts)) for source in SOURCES} - {"__init__"}
    assert parts == set(ORDER)


def test_imports_point_one_way() -> None:
    assert sorted((own, other) for own, other in arrows() if ORDER.index(other) > ORDER.index(own)) == []


def test_the_inner_parts_know_little() -> None:
    assert sorted((own, other) for own, other in arrows() if own in ONLY and other not in ONLY[own]) == []


def test_the_outer_parts_are_known_to_few() -> None:
    assert (
        sorted((own, other) for own, other in arrows() if other in IMPORTED_BY and own not in IMPORTED_BY[other]) == []
    )


def test_the_sources_import_no_tests_and_no_benchmark() -> None:
    text = "\n".join((ROOT / source).read_text() for source in SOURCES)
    assert [line for line in text.splitlines() if line.startswith(("from tests", "import tests", "from bench"))] == []
