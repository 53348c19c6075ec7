"""Sinks: whatever they are, nobody waits for one, and what is lost is counted and told."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sniproxy.observe.sinks import FileSink, Losses, Sink, open_sink

MIB = 1 << 20


@dataclass
class Dropped:
    """Counts what a sink says that it dropped."""

    lines: float = 0.0

    def __call__(self, count: float) -> None:
        self.lines += count


@dataclass
class Pipe:
    """A named pipe, and its slow reader."""

    path: Path
    reader: int = field(init=False)

    def __post_init__(self) -> None:
        os.mkfifo(self.path)
        self.reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self) -> bytes:
        """All that is there now."""
        chunks = []
        try:
            while chunk := os.read(self.reader, 65536):
                chunks.append(chunk)
        except BlockingIOError:
            pass
        return b"".join(chunks)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path / "log")
    yield pipe
    os.close(pipe.reader)


@dataclass
class Clock:
    """Stands in for `time.monotonic`."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def new_sink(path: str, dropped: Dropped, clock: Clock | None = None) -> FileSink:
    return FileSink(path, Losses(path, dropped, clock or Clock()))


def numbered(number: int, size: int = 1000) -> bytes:
    return f"{number:09d}".encode().ljust(size - 1, b".") + b"\n"


def test_a_file_gets_every_line_behind_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    sink = new_sink(str(path), Dropped())
    lines = [numbered(number) for number in range(500)]
    for each in lines:
        sink.add(each)
    sink.close()
    assert path.read_bytes() == b"old\n" + b"".join(lines)


def test_a_log_is_not_for_everybody(tmp_path: Path) -> None:
    new_sink(str(tmp_path / "log"), Dropped()).close()
    assert (tmp_path / "log").stat().st_mode & 0o027 == 0


def test_a_slow_reader_makes_nobody_wait_and_gets_whole_lines(pipe: Pipe) -> None:
    """What the pipe does not take waits, up to one MiB; past that, lines are dropped and counted."""
    dropped = Dropped()
    sink = new_sink(str(pipe.path), dropped)
    sent = 3000
    for number in range(sent):
        sink.add(numbered(number))
        sink.flush()
    assert MIB - 1000 <= sink.waiting <= MIB
    received = b""
    while sink.waiting:
        received += pipe.read()
        sink.flush()
    received += pipe.read()
    lines = received.splitlines(keepends=True)
    assert lines == [numbered(number) for number in range(len(lines))]
    assert (dropped.lines, sink.failure) == (sent - len(lines), "")
    sink.close()


def test_the_lines_of_two_workers_are_not_torn(pipe: Pipe) -> None:
    sinks = [new_sink(str(pipe.path), Dropped()) for _ in range(2)]
    received = b""
    for number in range(2000):
        for sink in sinks:
            sink.add(numbered(number, 1500))
            sink.flush()
        received += pipe.read() if number % 7 == 0 else b""
    while any(sink.waiting for sink in sinks):
        received += pipe.read()
        for sink in sinks:
            sink.flush()
    received += pipe.read()
    lines = received.splitlines(keepends=True)
    assert sorted(lines) == sorted(2 * [numbered(number, 1500) for number in range(2000)])
    for sink in sinks:
        sink.close()


def test_a_pipe_that_nobody_reads_can_be_opened(tmp_path: Path) -> None:
    """A reader that starts later, or again, gets what the pipe kept for it."""
    os.mkfifo(tmp_path / "log")
    sink = new_sink(str(tmp_path / "log"), Dropped())
    sink.add(b"early\n")
    sink.flush()
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    assert (os.read(reader, 100), sink.waiting, sink.failure) == (b"early\n", 0, "")
    os.close(reader)
    sink.close()


def test_what_still_waits_at_the_end_is_counted(pipe: Pipe) -> None:
    dropped = Dropped()
    sink = new_sink(str(pipe.path), dropped)
    for number in range(500):
        sink.add(numbered(number))
    sink.close()
    assert dropped.lines == 500 - pipe.read().count(b"\n") > 0


def test_a_full_device_costs_lines_and_says_why() -> None:
    dropped = Dropped()
    sink = new_sink("/dev/full", dropped)
    for number in range(3):
        sink.add(numbered(number))
    sink.flush()
    assert (dropped.lines, sink.waiting, sink.failure) == (3, 0, "No space left on device")
    sink.close()


@dataclass
class Disk:
    """Stands in for `os.write`: takes so many bytes of each write, and "full" is no room."""

    takes: list[int | str]
    write: Callable[[int, bytes], int] = os.write

    def __call__(self, fd: int, data: bytes) -> int:
        most = self.takes.pop(0) if self.takes else len(data)
        if isinstance(most, str):
            raise OSError(28, most)
        return self.write(fd, data[:most])


DISKS: dict[str, tuple[list[int | str], bytes, int]] = {
    "takes all at once": ([], b"one\ntwo\nsix\n", 0),
    "takes a part, and then the rest": ([5], b"one\ntwo\nsix\n", 0),
    "takes byte by byte": ([1] * 11, b"one\ntwo\nsix\n", 0),
    "takes nothing": (["full"], b"new\n", 3),
    "takes whole lines, and then is full": ([4, "full"], b"one\nnew\n", 2),
    "takes a part of a line, and then is full": ([5, "full"], b"one\nt\nnew\n", 2),
    "takes a part of a line, and then is full, and still is": ([5, "full", "full"], b"one\nt", 3),
}


@pytest.mark.parametrize(("takes", "content", "lost"), DISKS.values(), ids=DISKS)
def test_a_disk_that(
    takes: list[int | str], content: bytes, lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """loses no more than it must: each line that was dropped is counted, and the next begins on a line of its own."""
    disk, dropped = Disk(takes), Dropped()
    sink = new_sink(str(tmp_path / "log"), dropped)
    monkeypatch.setattr(os, "write", disk)
    for each in (b"one\n", b"two\n", b"six\n"):
        sink.add(each)
    sink.flush()
    if sink.failure:
        sink.add(b"new\n")
        sink.flush()
    assert ((tmp_path / "log").read_bytes(), dropped.lines, sink.waiting) == (content, lost, 0)
    sink.close()


@pytest.mark.parametrize("first", [0, 1], ids=["by the one that tore it", "by the other one"])
def test_a_line_that_is_torn_is_ended_once(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers share a file on a disk that is full: whoever writes first again must not go on in the torn line."""
    dropped = Dropped()
    sinks = [new_sink(str(tmp_path / "log"), dropped) for _ in range(2)]
    monkeypatch.setattr(os, "write", Disk([2, "full", "full"]))
    for sink in sinks:
        sink.add(b"lost\n")
        sink.flush()
    for sink in (sinks[first], sinks[1 - first]):
        sink.add(b"new\n")
        sink.flush()
    assert ((tmp_path / "log").read_bytes(), dropped.lines) == (b"lo\nnew\nnew\n", 2)
    for sink in sinks:
        sink.close()


def test_no_line_is_ended_in_a_pipe_that_tore_none(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = Dropped()
    sink = new_sink(str(pipe.path), dropped)
    monkeypatch.setattr(os, "write", Disk(["full"]))
    for each in (b"lost\n", b"new\n"):
        sink.add(each)
        sink.flush()
    assert (pipe.read(), dropped.lines) == (b"new\n", 1)
    sink.close()


def test_a_file_that_may_come_costs_lines_until_it_does(tmp_path: Path) -> None:
    dropped = Dropped()
    path = tmp_path / "later" / "log"
    sink = open_sink(str(path), dropped, may_come=True)
    for _ in range(2):
        sink.add(b"early\n")
        sink.flush()
    assert (dropped.lines, sink.failure) == (2, "No such file or directory")
    path.parent.mkdir()
    sink.add(b"one\n")
    sink.flush()
    assert (path.read_bytes(), dropped.lines, sink.failure) == (b"one\n", 2, "")
    sink.close()


def test_a_file_that_may_come_is_found_by_reopening(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "later" / "log"), Dropped(), may_come=True)
    with pytest.raises(FileNotFoundError):
        sink.reopen()
    (tmp_path / "later").mkdir()
    assert (sink.reopen(), sink.reopen()) == (True, False)
    sink.close()


def test_a_file_that_never_came_is_closed_all_the_same(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "never" / "log"), Dropped(), may_come=True)
    sink.close()


@pytest.fixture
def as_stdout() -> Iterator[Callable[[int], None]]:
    """Makes a descriptor our standard output, until the test is over."""
    kept = os.dup(1)

    def replace(fd: int) -> None:
        os.dup2(fd, 1)

    yield replace
    os.dup2(kept, 1)
    os.close(kept)


def test_a_socket_for_standard_output_is_not_waited_for(as_stdout: Callable[[int], None]) -> None:
    """As systemd gives one. It is shared, so it stays a blocking one for the others."""
    ours, theirs = socket.socketpair()
    as_stdout(ours.fileno())
    dropped = Dropped()
    sink = new_sink("/dev/stdout", dropped)
    for number in range(3000):
        sink.add(numbered(number))
        sink.flush()
    assert (sink.waiting > 0, dropped.lines > 0, os.get_blocking(ours.fileno())) == (True, True, True)
    sink.close()
    ours.close()
    theirs.close()


def test_a_pipe_for_standard_output_is_opened_anew(as_stdout: Callable[[int], None]) -> None:
    reader, writer = os.pipe()
    as_stdout(writer)
    sink = new_sink("/dev/stdout", Dropped())
    for number in range(100):
        sink.add(numbered(number))
    sink.flush()
    assert (sink.waiting > 0, os.get_blocking(writer)) == (True, True)
    sink.close()
    os.close(reader)
    os.close(writer)


def test_a_reader_of_standard_output_that_is_gone_costs_lines_alone(
    as_stdout: Callable[[int], None],
) -> None:
    reader, writer = os.pipe()
    as_stdout(writer)
    dropped = Dropped()
    sink = new_sink("/dev/stdout", dropped)
    os.close(reader)
    sink.add(b"lost\n")
    sink.flush()
    assert (dropped.lines, sink.failure) == (1, "Broken pipe")
    sink.close()
    os.close(writer)


def test_a_pipe_that_cannot_be_opened_anew_is_asked_before_each_write(
    as_stdout: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of another user's, which the descriptor that we inherited is the only way to."""

    def refuse(path: str, *_: object) -> int:
        raise PermissionError(13, "Permission denied", path)

    reader, writer = os.pipe()
    as_stdout(writer)
    with monkeypatch.context() as context:
        context.setattr(os, "open", refuse)
        sink = new_sink("/dev/stdout", Dropped())
    for number in range(100):
        sink.add(numbered(number))
    sink.flush()
    assert (sink.waiting > 0, sink.failure, os.get_blocking(writer)) == (True, "", True)
    sink.close()
    os.close(reader)
    os.close(writer)


class TestAfterARename:
    def test_the_next_line_is_in_the_new_file(self, tmp_path: Path) -> None:
        """And every line before it in the old one."""
        path, old = tmp_path / "log", tmp_path / "log.1"
        sink = new_sink(str(path), Dropped())
        sink.add(b"before\n")
        path.rename(old)
        assert sink.reopen()
        sink.add(b"after\n")
        sink.close()
        assert (old.read_bytes(), path.read_bytes()) == (b"before\n", b"after\n")

    def test_a_file_that_is_where_it_was_stays_open(self, tmp_path: Path) -> None:
        sink = new_sink(str(tmp_path / "log"), Dropped())
        assert not sink.reopen()
        sink.add(b"a line\n")
        sink.close()
        assert (tmp_path / "log").read_bytes() == b"a line\n"

    def test_without_a_new_file_the_old_one_goes_on(self, tmp_path: Path) -> None:
        folder, moved = tmp_path / "folder", tmp_path / "moved"
        folder.mkdir()
        sink = new_sink(str(folder / "log"), Dropped())
        folder.rename(moved)
        with pytest.raises(FileNotFoundError):
            sink.reopen()
        sink.add(b"a line\n")
        sink.close()
        assert (moved / "log").read_bytes() == b"a line\n"

    def test_a_pipe_that_is_read_slowly_keeps_what_waits(self, pipe: Pipe) -> None:
        dropped = Dropped()
        sink = new_sink(str(pipe.path), dropped)
        for number in range(200):
            sink.add(numbered(number))
        assert not sink.reopen()
        received = b""
        while sink.waiting:
            received += pipe.read()
            sink.flush()
        received += pipe.read()
        assert (received.count(b"\n"), dropped.lines) == (200, 0)
        sink.close()

    def test_standard_output_has_no_other_name(self) -> None:
        sink = new_sink("/dev/stdout", Dropped())
        assert not sink.reopen()
        sink.close()


def test_a_loss_is_told_when_it_begins_and_when_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, however many lines and writes it takes, and however often a line passes in between."""
    clock, path = Clock(), str(tmp_path / "log")
    disk = Disk(["full", "full", 1 << 16, "full"])
    sink = new_sink(path, Dropped(), clock)
    monkeypatch.setattr(os, "write", disk)
    with capture_logs() as logs:
        for _ in range(6):
            sink.add(b"a line\n")
            sink.add(b"and another\n")
            sink.flush()
        assert sink.losses.may_end
        clock.now += 1.0
        sink.flush()
        sink.flush()
    assert logs == [
        {
            "event": "access log lines are being dropped",
            "log_level": "warning",
            "path": path,
            "cause": "no space left on device",
        },
        {"event": "access log lines are written again", "log_level": "info", "path": path, "dropped": 6},
    ]
    assert (Path(path).read_bytes().count(b"\n"), sink.losses.may_end) == (6, False)
    sink.close()


def test_a_slow_reader_is_told_once(pipe: Pipe) -> None:
    clock = Clock()
    sink = new_sink(str(pipe.path), Dropped(), clock)
    with capture_logs() as logs:
        for number in range(3000):
            sink.add(numbered(number))
            sink.flush()
            clock.now += 1.0
        while sink.waiting:
            pipe.read()
            sink.flush()
    assert [line["event"] for line in logs] == [
        "access log lines are being dropped",
        "access log lines are written again",
    ]
    assert logs[0]["cause"] == "its reader is too slow"
    sink.close()


# Syslog.


@dataclass
class Syslog:
    """A syslog daemon on a socket of its own, which reads when it is told to."""

    path: Path
    daemon: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.daemon = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.daemon.bind(str(self.path))
        self.daemon.setblocking(False)

    def stop(self) -> None:
        self.daemon.close()
        self.path.unlink()

    def read(self) -> list[bytes]:
        """The datagrams that are there now."""
        datagrams = []
        try:
            while True:
                datagrams.append(self.daemon.recv(65536))
        except BlockingIOError:
            return datagrams


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[Syslog]:
    syslog = Syslog(tmp_path / "dev-log")
    yield syslog
    syslog.daemon.close()


def syslog_sink(path: Path, dropped: Dropped) -> Sink:
    return open_sink(f"syslog:{path}", dropped)


def test_a_syslog_gets_a_datagram_a_line_with_its_severity(syslog: Syslog) -> None:
    """local7 is facility 23 (RFC 3164, section 4.1.1)."""
    sink = syslog_sink(syslog.path, Dropped())
    for level in ("error", "warning", "info"):
        sink.add(f"a line of {level}\n".encode(), level)
    sink.close()
    stamp = r"[A-Z][a-z]{2} [ 1-3][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2}"
    for datagram, (level, priority) in zip(
        syslog.read(), {"error": 187, "warning": 188, "info": 190}.items(), strict=True
    ):
        expected = rf"<{priority}>{stamp} sniproxy\[{os.getpid()}\]: a line of {level}"
        assert re.fullmatch(expected, datagram.decode())


def test_a_syslog_that_is_missing_costs_lines_until_it_comes(tmp_path: Path) -> None:
    dropped = Dropped()
    sink = syslog_sink(tmp_path / "dev-log", dropped)
    sink.add(b"lost\n", "info")
    sink.flush()
    assert (dropped.lines, sink.failure) == (1, "No such file or directory")
    syslog = Syslog(tmp_path / "dev-log")
    sink.add(b"taken\n", "info")
    sink.close()
    assert [datagram[-6:] for datagram in syslog.read()] == [b" taken"]
    assert (dropped.lines, sink.failure) == (1, "")
    syslog.daemon.close()


def test_a_syslog_that_is_started_again_loses_nothing(syslog: Syslog) -> None:
    dropped = Dropped()
    sink = syslog_sink(syslog.path, dropped)
    sink.add(b"first\n", "info")
    sink.flush()
    syslog.stop()
    syslog.start()
    sink.add(b"second\n", "info")
    sink.flush()
    assert [datagram[-7:] for datagram in syslog.read()] == [b" second"]
    assert dropped.lines == 0
    sink.close()


def test_a_syslog_that_does_not_read_makes_nobody_wait(syslog: Syslog) -> None:
    dropped = Dropped()
    sink = syslog_sink(syslog.path, dropped)
    for number in range(2000):
        sink.add(numbered(number), "info")
        sink.flush()
    assert MIB - 2000 <= sink.waiting <= MIB
    received = []
    while sink.waiting:
        received += syslog.read()
        sink.flush()
    received += syslog.read()
    assert len(received) + dropped.lines == 2000
    assert [int(line.partition(b": ")[2][:9]) for line in received] == list(range(len(received)))
    sink.close()


def test_what_a_syslog_has_not_read_at_the_end_is_counted(syslog: Syslog) -> None:
    dropped = Dropped()
    sink = syslog_sink(syslog.path, dropped)
    for number in range(500):
        sink.add(numbered(number), "info")
    sink.close()
    assert dropped.lines == 500 - len(syslog.read()) > 0


def test_a_line_that_is_too_long_for_a_datagram_is_dropped_alone(syslog: Syslog) -> None:
    dropped = Dropped()
    sink = syslog_sink(syslog.path, dropped)
    sink.add(b"." * 500_000, "info")
    sink.add(b"short\n", "info")
    sink.flush()
    assert (dropped.lines, len(syslog.read()), sink.waiting) == (1, 1, 0)
    sink.close()


def test_a_syslog_needs_no_reopening(syslog: Syslog) -> None:
    sink = syslog_sink(syslog.path, Dropped())
    assert not sink.reopen()
    sink.close()
