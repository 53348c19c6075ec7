"""The access log: what a line says, that nothing breaks one, and that writing it never waits."""

import asyncio
import json
import os
import re
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.model import Gateway
from sniproxy.identity.spiffe import MAX_LENGTH, SCHEME, parse_principal
from sniproxy.observe.access_log import AccessLog, LineFormat, LogIdentity, Sink
from sniproxy.outcome import Event, Reason
from sniproxy.policy.model import NO_GROUND, Ground
from sniproxy.record import Record

POD = "istio-egressgateway-with-sni-proxy-7c4f7868fb-rc8pr"
GATEWAY = Gateway(labels={"app": "istio-egressgateway-with-sni-proxy"})
IDENTITY = LogIdentity.of(GATEWAY, {"POD_NAME": POD})
MIB = 1 << 20


def relayed() -> Record:
    """A connection that was allowed, served and closed."""
    record = Record(7, "10.1.2.3", 100.0)
    record.opened = 100.1
    record.identity = parse_principal("cluster.local/ns/default/sa/sleep-us")
    record.server_name = "en.wikipedia.org"
    record.tls_version = "TLSv1.3"
    record.alpn = ("h2", "http/1.1")
    record.allowed = True
    record.ground = Ground("policy.yaml", "us-wikipedia", "/etc/policy.yaml", 3)
    record.destination_ip, record.destination_port = "208.80.154.224", 443
    record.received, record.sent = 298, 4711
    record.end(Reason.DONE)
    return record


def refused(reason: Reason = Reason.RULE) -> Record:
    record = relayed()
    record.opened, record.allowed, record.destination_ip, record.destination_port = 0.0, False, "", 0
    record.end(reason, "rbac_access_denied_matched_policy[policy.yaml-rule[no-english]]")
    return record


def line(record: Record, event: Event, now: float = 100.6) -> bytes:
    return LineFormat(IDENTITY, "1f-abc123").line(record, event, now)


def told(record: Record, event: Event) -> dict[str, Any]:
    """A line, read back."""
    fields: dict[str, Any] = json.loads(line(record, event))
    return fields


# The product's list of fields, in its order.
FIELDS = (
    "level time instance connectionEvent connectionId requestedServerName sourcePrincipal sourceNamespace source "
    "sourceName sourceWorkload sourceIp destinationIp destinationPort destinationApp protocol receivedBytes sentBytes "
    "connectionDuration decision policy rule reason responseCodeDetails tlsVersion alpn"
)


@pytest.mark.parametrize("event", Event)
def test_every_line_has_the_same_fields_in_the_same_order(event: Event) -> None:
    assert " ".join(told(relayed(), event)) == FIELDS


def test_the_line_of_a_connection_that_was_served() -> None:
    fields = told(relayed(), Event.CLOSE)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", fields.pop("time"))
    assert fields == {
        "level": "info",
        "instance": "egress-access.logentry.istio-system",
        "connectionEvent": "close",
        "connectionId": "1f-abc123-7",
        "requestedServerName": "en.wikipedia.org",
        "sourcePrincipal": "cluster.local/ns/default/sa/sleep-us",
        "sourceNamespace": "default",
        "source": "istio-egressgateway-with-sni-proxy",
        "sourceName": POD,
        "sourceWorkload": "istio-egressgateway-with-sni-proxy",
        "sourceIp": "10.1.2.3",
        "destinationIp": "208.80.154.224",
        "destinationPort": 443,
        "destinationApp": "",
        "protocol": "tcp",
        "receivedBytes": 298,
        "sentBytes": 4711,
        "connectionDuration": "0.600s",
        "decision": "allow",
        "policy": "policy.yaml",
        "rule": "us-wikipedia",
        "reason": "done",
        "responseCodeDetails": "",
        "tlsVersion": "TLSv1.3",
        "alpn": "h2,http/1.1",
    }


def test_what_is_not_known_says_so() -> None:
    """A connection that ended before its hello."""
    record = Record(1, "", 100.0)
    record.end(Reason.HELLO_TIMEOUT, "no complete ClientHello within 10s")
    said = ("requestedServerName", "sourcePrincipal", "sourceNamespace", "sourceIp", "destinationIp", "tlsVersion")
    fields = told(record, Event.FAIL)
    assert {name: fields[name] for name in said} == dict.fromkeys(said, "unknown")
    assert (fields["policy"], fields["rule"], fields["alpn"]) == (NO_GROUND.policy, NO_GROUND.rule, "")


def test_a_principal_of_no_namespace_has_an_unknown_one() -> None:
    record = relayed()
    record.identity = parse_principal("example.org/host/web-1")
    fields = told(record, Event.CLOSE)
    assert (fields["sourcePrincipal"], fields["sourceNamespace"]) == ("example.org/host/web-1", "unknown")


EVENTS: dict[str, tuple[Record, Event, tuple[str, str, str]]] = {
    "open": (relayed(), Event.OPEN, ("info", "allow", "")),
    "close": (relayed(), Event.CLOSE, ("info", "allow", "done")),
    "a refusal is an error": (refused(), Event.DENY, ("error", "deny", "rule")),
    "a failure before the decision is a warning": (
        refused(Reason.CLIENT_CLOSED),
        Event.FAIL,
        ("warning", "none", "client_closed"),
    ),
}


@pytest.mark.parametrize(("record", "event", "expected"), EVENTS.values(), ids=EVENTS)
def test_level_decision_and_reason(record: Record, event: Event, expected: tuple[str, str, str]) -> None:
    fields = told(record, event)
    assert (fields["level"], fields["decision"], fields["reason"]) == expected


def test_a_line_of_opening_has_no_duration_yet() -> None:
    assert told(relayed(), Event.OPEN)["connectionDuration"] == "0s"


SEED_GREPS = {
    "seed 4, event": ('"connectionEvent":"open"', Event.OPEN),
    "seed 4, pod": ('"sourceName":"istio-egressgateway', Event.OPEN),
    "seed 4, host": ("wikipedia.org", Event.OPEN),
    "the log entry by its instance": ("egress-access.logentry.istio-system", Event.OPEN),
    "the caller by its principal": ('"sourcePrincipal":"cluster.local/ns/default/sa/sleep-us"', Event.OPEN),
    "seed 3, errors": ('"level":"error"', Event.DENY),
}


@pytest.mark.parametrize(("pattern", "event"), SEED_GREPS.values(), ids=SEED_GREPS)
def test_the_greps_of_the_seeds_find_their_lines(pattern: str, event: Event) -> None:
    assert pattern in line(relayed(), event).decode()


def test_who_the_log_says_it_is() -> None:
    environments: list[dict[str, str]] = [{"POD_NAME": "a", "HOSTNAME": "b"}, {"HOSTNAME": "b"}, {}]
    assert [LogIdentity.of(Gateway(namespace="edge"), environment) for environment in environments] == [
        LogIdentity("egress-access.logentry.edge", "unknown", pod) for pod in ("a", "b", socket.gethostname())
    ]


def test_a_lost_worker_has_a_line_of_its_own() -> None:
    fields = json.loads(LineFormat(IDENTITY, "supervisor").worker_lost(2, 17))
    del fields["time"]
    assert fields == {
        "level": "error",
        "instance": "egress-access.logentry.istio-system",
        "connectionEvent": "worker_lost",
        "worker": 2,
        "connections": 17,
    }


def as_recorded(raw: bytes) -> str:
    """An SNI as the story puts it into a record."""
    return raw.decode("ascii", "backslashreplace")


HOSTILE = {
    "a new line": b'a\n{"level":"info"}',
    "a carriage return": b"a\rb",
    "quotes": b'","decision":"allow","x":"',
    "a backslash": b"a\\",
    "NUL": b"\0",
    "an escape sequence of a terminal": b"\x1b[2J",
    "bytes that are no UTF-8": b"\xff\xfe\x80",
    "a line separator of Unicode": "\u2028".encode(),
}


@pytest.mark.parametrize("sni", HOSTILE.values(), ids=HOSTILE)
def test_no_name_breaks_its_line(sni: bytes) -> None:
    record = refused(Reason.INVALID_SNI)
    record.server_name = as_recorded(sni)
    text = line(record, Event.DENY).decode()
    assert [char for char in text if not char.isprintable()] == ["\n"]
    assert text.endswith("\n")
    assert json.loads(text)["requestedServerName"] == as_recorded(sni)


@given(
    sni=st.binary(min_size=1, max_size=255), detail=st.text(), rule=st.text(max_size=128), alpn=st.text(max_size=300)
)
def test_every_line_is_one_json_object_within_pipe_buf(sni: bytes, detail: str, rule: str, alpn: str) -> None:
    """A longer one could be torn by another worker's (pipe(7))."""
    record = refused()
    record.server_name = as_recorded(sni)
    record.ground = Ground("p.yaml", rule, "p.yaml", 1)
    record.alpn = (alpn,)
    record.end(Reason.RULE, detail)
    written = line(record, Event.DENY)
    assert len(written) <= select.PIPE_BUF
    assert (written.count(b"\n"), " ".join(json.loads(written))) == (1, FIELDS)


def longest(char: str) -> Record:
    """Everything at its bound, in characters of which JSON makes much."""
    record = relayed()
    namespace = "n" * (MAX_LENGTH - len(f"{SCHEME}td/ns//sa/a"))
    record.identity = parse_principal(f"td/ns/{namespace}/sa/a")
    record.server_name = char * 255
    record.ground = Ground(char * 255, char * 128, "/etc/p.yaml", 1)
    record.source_ip = record.destination_ip = "2001:db8:1111:2222:3333:4444:5555:6666"
    record.alpn = (char * 300,)
    record.received = record.sent = 2**63
    record.end(Reason.DESTINATION_FORBIDDEN, char * 2000)
    return record


@pytest.mark.parametrize("char", ["a", "\\", "\x01", "\U0001d400"])
def test_the_longest_line_stays_within_pipe_buf_and_keeps_the_principal(char: str) -> None:
    record = longest(char)
    pod = LogIdentity.of(Gateway(namespace="n" * 63, labels={"app": "a" * 63}), {"POD_NAME": "p" * 1000})
    written = LineFormat(pod, "ffffffff-abcdef").line(record, Event.DENY, 1e9)
    fields = json.loads(written)
    assert len(written) <= select.PIPE_BUF
    assert fields["sourcePrincipal"] == str(record.identity)
    assert char * 10 in fields["requestedServerName"]
    assert char * 10 in fields["rule"]


def test_a_name_that_is_one_is_never_cut() -> None:
    record = longest("a")
    record.server_name = ".".join(["a" * 63] * 4)[:253]
    assert told(record, Event.DENY)["requestedServerName"] == record.server_name


# The sink.


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


def numbered(number: int, size: int = 1000) -> bytes:
    return f"{number:09d}".encode().ljust(size - 1, b".") + b"\n"


def test_a_file_gets_every_line_behind_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    sink = Sink(str(path), Dropped())
    lines = [numbered(number) for number in range(500)]
    for each in lines:
        sink.add(each)
    sink.close()
    assert path.read_bytes() == b"old\n" + b"".join(lines)


def test_a_log_is_not_for_everybody(tmp_path: Path) -> None:
    Sink(str(tmp_path / "log"), Dropped()).close()
    assert (tmp_path / "log").stat().st_mode & 0o027 == 0


def test_a_slow_reader_makes_nobody_wait_and_gets_whole_lines(pipe: Pipe) -> None:
    """What the pipe does not take waits, up to one MiB; past that, lines are dropped and counted."""
    dropped = Dropped()
    sink = Sink(str(pipe.path), dropped)
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
    sinks = [Sink(str(pipe.path), Dropped()) for _ in range(2)]
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
    sink = Sink(str(tmp_path / "log"), Dropped())
    sink.add(b"early\n")
    sink.flush()
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    assert (os.read(reader, 100), sink.waiting, sink.failure) == (b"early\n", 0, "")
    os.close(reader)
    sink.close()


def test_what_still_waits_at_the_end_is_counted(pipe: Pipe) -> None:
    dropped = Dropped()
    sink = Sink(str(pipe.path), dropped)
    for number in range(500):
        sink.add(numbered(number))
    sink.close()
    assert dropped.lines == 500 - pipe.read().count(b"\n") > 0


def test_a_full_device_costs_lines_and_says_why() -> None:
    dropped = Dropped()
    sink = Sink("/dev/full", dropped)
    for number in range(3):
        sink.add(numbered(number))
    sink.flush()
    assert (dropped.lines, sink.waiting, sink.failure) == (3, 0, "No space left on device")
    sink.close()


@dataclass
class Disk:
    """Stands in for `os.write`: takes so many bytes of each write, and "full" is no room."""

    takes: list[int | str]
    content: bytes = b""

    def __call__(self, _fd: int, data: bytes) -> int:
        most = self.takes.pop(0) if self.takes else len(data)
        if isinstance(most, str):
            raise OSError(28, most)
        self.content += data[:most]
        return min(most, len(data))


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
    sink = Sink(str(tmp_path / "log"), dropped)
    monkeypatch.setattr(os, "write", disk)
    for each in (b"one\n", b"two\n", b"six\n"):
        sink.add(each)
    sink.flush()
    if sink.failure:
        sink.add(b"new\n")
        sink.flush()
    assert (disk.content, dropped.lines, sink.waiting) == (content, lost, 0)
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
    sink = Sink("/dev/stdout", dropped)
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
    sink = Sink("/dev/stdout", Dropped())
    for number in range(100):
        sink.add(numbered(number))
    sink.flush()
    assert (sink.waiting > 0, os.get_blocking(writer)) == (True, True)
    sink.close()
    os.close(reader)
    os.close(writer)


# The log of a worker.


class Clock:
    """Stands in for the event loop: keeps what it was asked to call later."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(self, _delay: float, call: Callable[[], None]) -> None:
        self.due.append(call)

    def pass_time(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()


def worker_log(path: Path, clock: Clock, *events: str) -> AccessLog:
    loop: Any = clock
    form = LineFormat(IDENTITY, "p")
    return AccessLog(form, Sink(str(path), Dropped()), frozenset(events or tuple(Event)), loop)


def test_lines_are_written_together_a_little_later(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "log"
    log = worker_log(path, clock)
    for _ in range(3):
        log.write(relayed(), Event.CLOSE, 101.0)
    assert (path.read_bytes(), len(clock.due)) == (b"", 1)
    clock.pass_time()
    assert (path.read_bytes().count(b"\n"), clock.due) == (3, [])
    log.close()


def test_many_lines_do_not_wait(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "log"
    log = worker_log(path, clock)
    for _ in range(200):
        log.write(relayed(), Event.CLOSE, 101.0)
    assert path.stat().st_size > 64 * 1024
    log.close()


def test_events_that_nobody_wants_are_not_written(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "log"
    log = worker_log(path, clock, "deny")
    for event in Event:
        log.write(relayed(), event, 101.0)
    log.close()
    assert [json.loads(text)["connectionEvent"] for text in path.read_text().splitlines()] == ["deny"]


async def test_a_reader_that_was_slow_gets_the_rest_by_and_by(pipe: Pipe) -> None:
    log = AccessLog(
        LineFormat(IDENTITY, "p"), Sink(str(pipe.path), Dropped()), frozenset(Event), asyncio.get_running_loop()
    )
    for _ in range(300):
        log.write(relayed(), Event.CLOSE, 101.0)
    received = b""
    async with asyncio.timeout(20):
        while received.count(b"\n") < 300:
            received += pipe.read()
            await asyncio.sleep(0)
    assert {len(text) for text in received.splitlines()} == {len(line(relayed(), Event.CLOSE)) - len("1f-abc123")}
    log.close()
