"""The reader, as a real process."""

import os
import select
import signal
from pathlib import Path

import pytest

from sniproxy.policy.engine import Engine
from sniproxy.reload import reader as reader_module
from sniproxy.reload.generation import Generation, Reading, Source, Unreadable
from sniproxy.reload.reader import Reader, ReaderFailedError
from tests.net.loopback import open_descriptors


def outcome_of(reader: Reader) -> tuple[Reading | Unreadable, int]:
    while not reader.is_over():
        select.select([reader], [], [])
    return reader.outcome()


def test_it_reads_and_says_what_it_read(tmp_path: Path) -> None:
    """A config that is larger than a pipe, too."""
    hosts = "".join(f"    host{number}.example.org: ['127.0.0.1:9']\n" for number in range(5000))
    (tmp_path / "config.yaml").write_text(f"policy: {{files: [policy.yaml]}}\nupstream:\n  hosts:\n{hosts}")
    (tmp_path / "policy.yaml").write_text("rules: [{name: a, action: deny, sni: [a.org]}]\n")
    before = open_descriptors()
    reading, policy = outcome_of(Reader(Source(tmp_path / "config.yaml")))
    assert isinstance(reading, Reading)
    assert (len(reading.config.upstream.hosts), reading.rules) == (5000, 1)
    engine = Engine(Generation(1, reading.config, 1, policy).compiled())
    assert [rule.ground.rule for rule in engine.rules()] == ["a"]
    del engine
    os.close(policy)
    assert before == open_descriptors()


def test_it_says_what_is_wrong(tmp_path: Path) -> None:
    reading, policy = outcome_of(Reader(Source(tmp_path / "nope.yaml")))
    os.close(policy)
    assert isinstance(reading, Unreadable)
    assert [problem.message for problem in reading.problems] == ["cannot be read: no such file or directory"]


def fail(_source: Source) -> tuple[Reading, bytes]:
    raise MemoryError


def die(_source: Source) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("read", "cause"), [(fail, "exit 1"), (die, "signal SIGKILL")])
def test_its_death_is_an_error_with_the_cause(read: object, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "read", read)
    before = open_descriptors()
    with pytest.raises(ReaderFailedError, match=f"the process that reads the files died .{cause}"):
        outcome_of(Reader(Source()))
    assert before == open_descriptors()


def test_it_can_be_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is doing: nothing of it is left, neither a process nor a descriptor."""
    monkeypatch.setattr(reader_module, "read", lambda _: select.select([], [], []))
    before = open_descriptors()
    reader = Reader(Source())
    assert not reader.is_over()
    reader.abandon()
    assert before == open_descriptors()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_it_lets_go_of_what_is_its_parents(tmp_path: Path) -> None:
    """In its own process: what it closes there stays open here."""
    mark = tmp_path / "mark"
    reader = Reader(Source(), mark.touch)
    os.close(outcome_of(reader)[1])
    assert mark.exists()


def test_it_is_nice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who serve come first."""
    said = tmp_path / "niceness"

    def tell(_source: Source) -> tuple[Unreadable, bytes]:
        said.write_text(str(os.nice(0)))
        raise MemoryError

    monkeypatch.setattr(reader_module, "read", tell)
    with pytest.raises(ReaderFailedError):
        outcome_of(Reader(Source()))
    assert int(said.read_text()) == 19
