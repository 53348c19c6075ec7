"""Where paths lead: the entries that decide it, and what the files are."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sniproxy.reload.places import Step, look, steps


def plain(home: Path) -> None:
    (home / "policy.yaml").write_text("a")


def linked(home: Path) -> None:
    (home / "real").mkdir()
    (home / "real" / "a.yaml").write_text("a")
    (home / "policy.yaml").symlink_to("real/a.yaml")


def configmap(home: Path) -> None:
    """As the kubelet lays out a volume."""
    (home / "..2024_01").mkdir()
    (home / "..2024_01" / "policy.yaml").write_text("a")
    (home / "..data").symlink_to("..2024_01")
    (home / "policy.yaml").symlink_to("..data/policy.yaml")


def folder(home: Path) -> None:
    (home / "d").mkdir()
    for name in ("b.yaml", "a.yaml", ".hidden.yaml", "c.txt"):
        (home / "d" / name).write_text(name)


def circle(home: Path) -> None:
    (home / "policy.yaml").symlink_to("policy.yaml")


WAYS: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "a file": (plain, "policy.yaml", ["policy.yaml!"]),
    "a file that is not there": (lambda _: None, "policy.yaml", ["policy.yaml!"]),
    "a file in a folder that is not there": (lambda _: None, "d/policy.yaml", ["d"]),
    "a link": (linked, "policy.yaml", ["policy.yaml!", "real", "real/a.yaml!"]),
    "a volume of a ConfigMap": (
        configmap,
        "policy.yaml",
        ["policy.yaml!", "..data", "..2024_01", "..2024_01/policy.yaml!"],
    ),
    "a glob": (folder, "d/*.yaml", ["d", "d/*.yaml!", "d/a.yaml!", "d/b.yaml!"]),
    "a glob of folders": (folder, "*/a.yaml", ["*", "d", "d/a.yaml!"]),
    "a way up and down": (folder, "d/../d/a.yaml", ["d", "d", "d/a.yaml!"]),
}


@pytest.mark.parametrize("case", WAYS)
def test_the_entries_that_decide_what_a_path_names(tmp_path: Path, case: str) -> None:
    """Every name, link and glob on the way; `!` marks those where the file itself may be."""
    lay_out, path, expected = WAYS[case]
    lay_out(tmp_path)
    found = [step for step in steps(str(tmp_path / path)) if step.directory.startswith(str(tmp_path))]
    shown = [os.path.relpath(os.path.join(step.directory, step.entry), tmp_path) for step in found]
    assert [name + "!" * step.is_last for name, step in zip(shown, found, strict=True)] == expected


def test_the_way_begins_at_the_root(tmp_path: Path) -> None:
    """Any folder on it may be replaced by another."""
    plain(tmp_path)
    way = list(steps(str(tmp_path / "policy.yaml")))
    assert [step.entry for step in way] == [*tmp_path.parts[1:], "policy.yaml"]
    assert way[0].directory == "/"


def test_a_relative_path_is_one_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(steps("policy.yaml")) == list(steps(str(tmp_path / "policy.yaml")))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    circle(tmp_path)
    assert len(list(steps(str(tmp_path / "policy.yaml")))) < 50


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        ("a.yaml", "a.yaml", True),
        ("a.yaml", "a.yaml~", False),
        ("*.yaml", "a.yaml", True),
        ("*.yaml", ".a.yaml", False),
        (".*.yaml", ".a.yaml", True),
        ("[ab].yaml", "b.yaml", True),
        ("*.yaml", "A.YAML", False),
    ],
)
def test_a_step_is_about_the_names_that_glob_finds(entry: str, name: str, *, expected: bool) -> None:
    assert Step("/", entry, is_last=True).has(name) is expected


def test_a_look_sees_when_a_file_is_another(tmp_path: Path) -> None:
    """A new file of the same name, size and time is not the same."""
    plain(tmp_path)
    path = tmp_path / "policy.yaml"
    before = look([str(path)])
    assert before == look([str(path)])
    other = tmp_path / "other"
    other.write_text("b")
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)
    assert before != look([str(path)])


def test_a_look_sees_what_a_glob_finds_and_what_is_missing(tmp_path: Path) -> None:
    """Folders are no files; a path that names nothing is told, a glob that finds nothing is not."""
    folder(tmp_path)
    (tmp_path / "d" / "folder.yaml").mkdir()
    found = look([str(tmp_path / "d" / "*.yaml"), str(tmp_path / "nope.yaml"), str(tmp_path / "e" / "*")])
    assert {Path(path).name: signature is not None for path, signature in found.items()} == {
        "a.yaml": True,
        "b.yaml": True,
        "folder.yaml": False,
        "nope.yaml": False,
    }
