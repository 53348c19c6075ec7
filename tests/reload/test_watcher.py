"""Watching real files: what counts as a change, and which files are open."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sniproxy.reload import watcher as watcher_module
from sniproxy.reload.watcher import CannotWatchError, FileWatch, Poller, Watcher, Watching, is_open_for_writing

POLICY = "policy.yaml"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a policy, one with several, and a volume of a ConfigMap."""
    (tmp_path / POLICY).write_text("old")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.yaml").write_text("old")
    (tmp_path / "volume").mkdir()
    publish(tmp_path, "..1")
    (tmp_path / "volume" / POLICY).symlink_to(f"..data/{POLICY}")
    return tmp_path


def publish(home: Path, name: str) -> None:
    """What the kubelet does when a ConfigMap changes: a new folder, and a link that takes the place of the old."""
    volume = home / "volume"
    before = volume / os.readlink(volume / "..data") if (volume / "..data").is_symlink() else None
    (volume / name).mkdir()
    (volume / name / POLICY).write_text(name)
    (volume / "..data_tmp").symlink_to(name)
    (volume / "..data_tmp").rename(volume / "..data")
    if before is not None:
        (before / POLICY).unlink()
        before.rmdir()


@pytest.fixture
def watch(home: Path) -> Iterator[Watcher]:
    watcher = Watcher()
    watcher.aim([str(home / POLICY), str(home / "d" / "*.yaml"), str(home / "volume" / POLICY)])
    yield watcher
    watcher.close()


def saved_by_an_editor(home: Path) -> None:
    """vim: the old file becomes a backup, a new one is written, the backup goes."""
    (home / POLICY).rename(home / f"{POLICY}~")
    (home / POLICY).write_text("new")
    (home / f"{POLICY}~").unlink()


def written_beside_and_renamed(home: Path) -> None:
    (home / "tmp").write_text("new")
    (home / "tmp").rename(home / POLICY)


def replaced_folder(home: Path) -> None:
    (home / "e").mkdir()
    (home / "e" / "a.yaml").write_text("new")
    (home / "d").rename(home / "gone")
    (home / "e").rename(home / "d")


def linked_from_elsewhere(home: Path) -> None:
    (home / "elsewhere").write_text("new")
    (home / POLICY).unlink()
    os.link(home / "elsewhere", home / POLICY)


def write(path: str) -> Callable[[Path], object]:
    return lambda home: (home / path).write_text("new")


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "a plain write": (write(POLICY), {POLICY}),
    "a save by an editor": (saved_by_an_editor, {POLICY}),
    "a rename over it": (written_beside_and_renamed, {POLICY}),
    "a hard link in its place": (linked_from_elsewhere, {POLICY}),
    "a removal": (lambda home: (home / POLICY).unlink(), {POLICY}),
    "a change of its mode": (lambda home: (home / POLICY).chmod(0o600), {POLICY}),
    "a new file that a glob finds": (write("d/b.yaml"), {"d/b.yaml"}),
    "a removal of what a glob finds": (lambda home: (home / "d/a.yaml").unlink(), {"d/a.yaml"}),
    "a folder in the place of another": (replaced_folder, {"d"}),
    "a new version of a ConfigMap": (lambda home: publish(home, "..2"), {"volume/..data"}),
    "a write into the target of a link": (write("volume/..1/policy.yaml"), {"volume/..1/policy.yaml"}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_seen_once_and_leaves_nothing_open(home: Path, watch: Watcher, case: str) -> None:
    change, expected = CHANGES[case]
    change(home)
    assert expected <= {os.path.relpath(path, home) for path in watch.changes()}
    assert ([], set()) == (watch.open_files(), watch.changes())


@pytest.mark.parametrize("case", CHANGES)
def test_what_comes_after_a_change_is_seen_too(home: Path, watch: Watcher, case: str) -> None:
    """The watcher follows the way that a path leads now."""
    CHANGES[case][0](home)
    watch.changes()
    for path in (POLICY, "d/a.yaml", f"volume/{POLICY}"):
        (home / path).write_text("newer")
        real = os.path.relpath((home / path).resolve(), home)
        assert {real} == {os.path.relpath(changed, home) for changed in watch.changes()}, path


NO_CHANGES: dict[str, Callable[[Path], object]] = {
    "a file that nobody named": write("other.yaml"),
    "one that the glob does not find": write("d/a.yaml.swp"),
    "a hidden one": write("d/.a.yaml"),
    "reading": lambda home: (home / POLICY).read_text(),
    "opening and closing without a write": lambda home: (home / POLICY).open("rb").close(),
}


@pytest.mark.parametrize("case", NO_CHANGES)
def test_what_is_no_change(home: Path, watch: Watcher, case: str) -> None:
    NO_CHANGES[case](home)
    assert watch.changes() == set()


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


@pytest.fixture
def alone(watch: Watcher, monkeypatch: pytest.MonkeyPatch) -> Watcher:
    """inotify alone has to know, as for files of another user: the kernel does not tell us who writes them."""
    monkeypatch.setattr(watcher_module, "is_open_for_writing", lambda _: False)
    return watch


def test_a_file_is_open_until_it_is_closed(home: Path, alone: Watcher) -> None:
    with (home / POLICY).open("w") as file:
        file.write("half")
        file.flush()
        alone.changes()
        assert names(alone.open_files()) == [POLICY]
    alone.changes()
    assert alone.open_files() == []


def test_a_new_file_is_open_from_its_creation(home: Path, alone: Watcher) -> None:
    with (home / "d" / "b.yaml").open("w"):
        alone.changes()
        assert names(alone.open_files()) == ["b.yaml"]
    alone.changes()
    assert alone.open_files() == []


def test_a_file_stays_open_when_it_is_renamed_into_place(home: Path, alone: Watcher) -> None:
    with (home / "tmp").open("w") as file:
        file.write("half")
        file.flush()
        (home / "tmp").rename(home / POLICY)
        alone.changes()
        assert names(alone.open_files()) == [POLICY]
        file.write(" and half")
    alone.changes()
    assert alone.open_files() == []


def test_a_file_that_is_gone_is_not_open(home: Path, alone: Watcher) -> None:
    with (home / POLICY).open("w") as file:
        file.write("half")
        file.flush()
        (home / POLICY).unlink()
        alone.changes()
        assert alone.open_files() == []


def test_a_file_whose_place_was_taken_by_a_whole_one_is_not_open(home: Path, alone: Watcher) -> None:
    with (home / POLICY).open("w") as file:
        file.write("half")
        file.flush()
        written_beside_and_renamed(home)
        alone.changes()
        file.write("more of what nobody will read")
        file.flush()
        alone.changes()
        assert alone.open_files() == []


def test_a_file_that_nobody_named_is_not_open(home: Path, alone: Watcher) -> None:
    with (home / "log").open("w") as file:
        file.write("line")
        file.flush()
        assert (set(), []) == (alone.changes(), alone.open_files())


def test_of_the_open_files_that_nobody_named_few_are_remembered(
    home: Path, alone: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "_MAX_STRANGERS", 3)
    with contextlib.ExitStack() as stack:
        for name in (POLICY, *"nopqrstu"):
            file = stack.enter_context((home / name).open("w"))
            file.write("half")
            file.flush()
        alone.changes()
        assert names(alone.open_files()) == [POLICY]
        for name in "NOPQRSTU":
            stack.enter_context((home / name).open("w"))
            (home / name).rename(home.parent / name)
        alone.changes()
        assert names(alone.open_files()) == [POLICY]


def test_the_kernel_tells_of_a_writer_that_was_there_before_us(home: Path) -> None:
    """It opened the file, and has written nothing since we look: no event will tell of it."""
    with (home / POLICY).open("a"):
        watcher = Watcher()
        watcher.aim([str(home / POLICY)])
        assert (True, [str(home / POLICY)]) == (is_open_for_writing(str(home / POLICY)), watcher.open_files())
    assert (False, []) == (is_open_for_writing(str(home / POLICY)), watcher.open_files())
    watcher.close()


def test_on_a_network_file_system_a_refused_lease_says_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and CIFS refuse it where the server has not delegated the file, and would let us wait for ever."""
    monkeypatch.setattr(watcher_module, "_is_remote", lambda _: True)
    with (home / POLICY).open("a"):
        assert not is_open_for_writing(str(home / POLICY))


@pytest.mark.parametrize("path", ["nope", "."])
def test_of_what_is_no_file_nobody_knows_a_writer(home: Path, path: str) -> None:
    assert not is_open_for_writing(str(home / path))


def test_events_that_were_lost_count_as_a_change_of_everything(home: Path, watch: Watcher) -> None:
    """The queue of the kernel is bounded; what is not known to be closed any more is asked of the kernel."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    path = home / POLICY
    for number in range(most // 2 + 10):
        path.chmod(0o600 + number % 2)
        (home / "d" / "a.yaml").chmod(0o600 + number % 2)
    assert str(path) in watch.changes()
    assert watch.changes() == set()


def test_news_that_is_none_is_not_listened_to_all_the_time(home: Path) -> None:
    """A log in the same folder would keep us busy. What matters is seen all the same."""
    clock = Clock()
    watch = Watcher(clock)
    watch.aim([str(home / POLICY)])
    descriptor = watch.descriptor
    assert (descriptor is not None, watch.seconds_left()) == (True, math.inf)
    (home / "log").write_text("line")
    assert (watch.changes(), watch.descriptor, watch.seconds_left()) == (set(), None, 0.1)
    (home / POLICY).write_text("new")
    assert watch.changes() == {str(home / POLICY)}
    clock.now = 0.1
    assert (watch.descriptor, watch.seconds_left()) == (descriptor, math.inf)
    watch.close()


# Where inotify cannot be had.


def test_it_is_an_error_when_the_kernel_has_no_more_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(**_: object) -> object:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(watcher_module, "INotify", none_left)
    with pytest.raises(CannotWatchError, match=r"raise fs\.inotify\.max_user_watches"):
        Watcher()


class Broken:
    """A watcher that fails when it should watch something, or look."""

    descriptor = 7

    def seconds_left(self) -> float:
        return 1.0

    def __init__(self, works: int) -> None:
        self.works = works

    def _fail_in_time(self) -> None:
        self.works -= 1
        if self.works < 0:
            raise CannotWatchError("no more watches")

    def aim(self, _paths: object) -> None:
        self._fail_in_time()

    def changes(self) -> set[str]:
        self._fail_in_time()
        return set()

    def open_files(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("works", [-1, 0, 1])
def test_it_polls_from_the_day_that_it_cannot_watch(home: Path, works: int) -> None:
    """From the start, from the first watch, or later: it says so once, and misses nothing."""
    told: list[str] = []

    def watcher() -> Watching:
        if works < 0:
            raise CannotWatchError("no more watches")
        return Broken(works)

    watch = FileWatch(told.append, watcher)
    watch.aim([str(home / POLICY)])
    expected = {str(home / POLICY)} if works > 0 else set()
    assert expected == watch.changes()
    assert (["no more watches"], None, []) == (told, watch.descriptor, watch.open_files())
    watch.close()


def test_a_poller_looks_once_a_second(home: Path) -> None:
    """What has changed since the look before may still be written; what stayed the same is whole."""
    clock = Clock()
    poller = Poller(clock)
    poller.aim([str(home / POLICY), str(home / "d" / "*.yaml")])
    (home / POLICY).write_text("new")
    (home / "d" / "a.yaml").unlink()
    assert (poller.changes(), poller.seconds_left()) == (set(), 1.0)
    clock.now = 1.0
    assert {POLICY, "a.yaml"} == {Path(path).name for path in poller.changes()}
    assert (names(poller.open_files()), poller.changes()) == ([POLICY], set())
    clock.now = 2.0
    assert (poller.changes(), poller.open_files()) == (set(), [])
    poller.close()
