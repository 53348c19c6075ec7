"""The access log of a worker: who gets which lines, when, and where."""

import asyncio
import contextlib
import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sniproxy.config.model import AccessLog as Settings
from sniproxy.config.model import Gateway, LogEvent, Sample
from sniproxy.net.clock import BEAT
from sniproxy.observe.access_log import AccessLog, write_worker_lost
from sniproxy.observe.lines import LogIdentity
from sniproxy.outcome import Event, Reason
from sniproxy.policy.model import NO_GROUND, DryRun
from sniproxy.record import Record
from tests.net.clock import HandClock
from tests.net.loopback import open_descriptors
from tests.observe.records import IDENTITY, refused, relayed

ALL: frozenset[LogEvent] = frozenset({"open", "close", "deny", "fail"})


def its_logs(*settings: Settings, clock: HandClock, dropped: list[float] | None = None) -> AccessLog:
    count = (lambda _: None) if dropped is None else dropped.append
    return AccessLog(settings, IDENTITY, "p", count, clock)


def worker_log(path: Path, clock: HandClock, *events: LogEvent) -> AccessLog:
    return its_logs(Settings(path=str(path), events=frozenset(events or ALL)), clock=clock)


def test_lines_are_written_together_a_little_later(tmp_path: Path) -> None:
    clock, path = HandClock(), tmp_path / "log"
    log = worker_log(path, clock)
    for _ in range(3):
        log.write(relayed(), Event.CLOSE, 101.0)
    assert (path.read_bytes(), clock.scheduled) == (b"", 1)
    clock.advance(1.5 * BEAT)
    assert (path.read_bytes().count(b"\n"), clock.scheduled) == (3, 0)
    log.close()


def test_what_is_told_late_is_told_in_order_and_as_it_was(tmp_path: Path) -> None:
    """A connection that is over when its opening is told."""
    clock, path = HandClock(), tmp_path / "log"
    log = worker_log(path, clock)
    record = Record(7, "10.1.2.3", 100.0)
    record.head_size = 280
    log.write(record, Event.OPEN, 100.1)
    record.received, record.sent = 298, 4711
    record.end(Reason.CLIENT_RESET)
    log.write(record, Event.CLOSE, 101.0)
    clock.advance(1.5 * BEAT)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(line["connectionEvent"], line["receivedBytes"], line["sentBytes"], line["reason"]) for line in lines] == [
        ("open", 280, 0, ""),
        ("close", 298, 4711, "client_reset"),
    ]
    log.close()


def test_a_line_that_cannot_be_made_is_told_and_counted_and_keeps_no_other_from_being_written(tmp_path: Path) -> None:
    clock, path, dropped = HandClock(), tmp_path / "log", list[float]()
    log = its_logs(Settings(path=str(path), events=ALL), clock=clock, dropped=dropped)
    broken = relayed()
    del broken.source_ip
    for record in (relayed(), broken, relayed()):
        log.write(record, Event.CLOSE, 101.0)
    with capture_logs() as told:
        clock.advance(1.5 * BEAT)
    assert (path.read_bytes().count(b"\n"), clock.scheduled, dropped) == (2, 0, [1])
    assert [(each["log_level"], each["path"], each["connection"]) for each in told] == [("error", str(path), 7)]
    log.close()


def test_a_line_that_one_log_cannot_make_is_in_the_others(tmp_path: Path) -> None:
    clock, whole, part = HandClock(), tmp_path / "whole", tmp_path / "part"
    log = its_logs(
        Settings(path=str(part), events=ALL),
        Settings(path=str(whole), format="nginx", template="$status", events=ALL),
        clock=clock,
    )
    broken = relayed()
    del broken.source_ip
    log.write(broken, Event.CLOSE, 101.0)
    log.close()
    assert (part.read_bytes(), whole.read_bytes().count(b"\n")) == (b"", 1)


def test_many_lines_do_not_wait(tmp_path: Path) -> None:
    clock, path = HandClock(), tmp_path / "log"
    log = worker_log(path, clock)
    for _ in range(200):
        log.write(relayed(), Event.CLOSE, 101.0)
    assert path.stat().st_size > 64 * 1024
    log.close()


def test_events_that_nobody_wants_are_not_written(tmp_path: Path) -> None:
    clock, path = HandClock(), tmp_path / "log"
    log = worker_log(path, clock, "deny")
    for event in Event:
        log.write(relayed(), event, 101.0)
    log.close()
    assert [json.loads(text)["connectionEvent"] for text in path.read_text().splitlines()] == ["deny"]


def test_a_log_that_is_changed_goes_on_elsewhere_and_loses_nothing(tmp_path: Path) -> None:
    """What was written before is in the old file, what comes after in the new one, in its own form."""
    clock, old, new = HandClock(), tmp_path / "old", tmp_path / "new"
    log = worker_log(old, clock)
    log.write(relayed(), Event.CLOSE, 101.0)
    other = LogIdentity.of(Gateway(namespace="other"), {})
    log.change([Settings(path=str(new), events=frozenset({"deny"}))], other)
    log.write(relayed(), Event.CLOSE, 101.0)
    log.write(refused(), Event.DENY, 101.0)
    clock.advance(1.5 * BEAT)
    lines = [json.loads(path.read_bytes()) for path in (old, new)]
    assert [(line["connectionEvent"], line["instance"].rpartition(".")[2]) for line in lines] == [
        ("close", "istio-system"),
        ("deny", "other"),
    ]
    log.close()


def test_a_log_that_cannot_be_changed_goes_on_as_it_was(tmp_path: Path) -> None:
    clock, path = HandClock(), tmp_path / "log"
    log = worker_log(path, clock)
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        log.change([Settings(path=str(tmp_path / "new")), Settings(path=str(tmp_path / "no" / "log"))], IDENTITY)
    assert open_descriptors() == before
    log.write(relayed(), Event.CLOSE, 101.0)
    log.close()
    assert path.read_bytes().count(b"\n") == 1


def test_a_pipe_that_a_new_config_keeps_keeps_what_waits_for_it(tmp_path: Path) -> None:
    """Only what is no longer named is closed."""
    clock, path, dropped = HandClock(), tmp_path / "log", list[float]()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = its_logs(Settings(path=str(path)), clock=clock, dropped=dropped)
    for _ in range(200):
        log.write(relayed(), Event.CLOSE, 101.0)
    log.change([Settings(path=str(path), events=frozenset({"deny"}))], IDENTITY)
    received = b""
    while clock.scheduled:
        received += os.read(reader, 1 << 20)
        clock.advance(1.5 * BEAT)
    received += os.read(reader, 1 << 20)
    assert (received.count(b"\n"), dropped) == (200, [])
    os.close(reader)
    log.close()


def test_several_sinks_each_have_their_events_and_their_format(tmp_path: Path) -> None:
    every, nginx, envoy = (tmp_path / name for name in ("every", "nginx", "envoy"))
    log = its_logs(
        Settings(path=str(every)),
        Settings(path=str(nginx), format="nginx", events=frozenset({"close", "deny"})),
        Settings(path=str(envoy), format="envoy", events=frozenset({"deny"})),
        clock=HandClock(),
    )
    for event, record in ((Event.OPEN, relayed()), (Event.CLOSE, relayed()), (Event.DENY, refused())):
        log.write(record, event, 101.0)
    log.close()
    assert [json.loads(text)["connectionEvent"] for text in every.read_text().splitlines()] == ["open", "close", "deny"]
    assert [text.split("]")[-1].split()[0] for text in nginx.read_text().splitlines()] == ["200", "403"]
    assert "rbac_access_denied_matched_policy[policy.yaml-rule[no-english]]" in envoy.read_text()
    assert envoy.read_text().count("\n") == 1


def test_one_sink_that_fails_costs_another_no_line(tmp_path: Path) -> None:
    path, dropped = tmp_path / "log", list[float]()
    log = its_logs(Settings(path="/dev/full"), Settings(path=str(path)), clock=HandClock(), dropped=dropped)
    for _ in range(3):
        log.write(relayed(), Event.CLOSE, 101.0)
    log.close()
    assert (path.read_bytes().count(b"\n"), sum(dropped)) == (3, 3)


def numbers(path: Path, event: str) -> list[int]:
    """The connections that a log tells of."""
    lines = map(json.loads, path.read_text().splitlines())
    return [int(line["connectionId"].rpartition("-")[2]) for line in lines if line["connectionEvent"] == event]


def test_a_sample_is_even_and_who_is_in_the_smaller_one_is_in_the_larger(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = its_logs(Settings(path=str(path), sample=Sample(open=0.1, close=0.01)), clock=HandClock())
    for number in range(1, 10_001):
        record = relayed()
        record.number = number
        for event in (Event.OPEN, Event.CLOSE):
            log.write(record, event, 101.0)
    log.close()
    opened, closed = numbers(path, "open"), numbers(path, "close")
    assert (990 <= len(opened) <= 1010, 95 <= len(closed) <= 105) == (True, True)
    assert set(closed) <= set(opened)


def changed(reason: Reason) -> Record:
    record = relayed()
    record.end(reason)
    return record


def monitored() -> Record:
    record = relayed()
    record.dry_run = DryRun(True, Reason.RULE, NO_GROUND)
    return record


def audited() -> Record:
    record = relayed()
    record.audit = NO_GROUND
    return record


NEVER_SAMPLED = {
    "a refusal": (refused(), Event.DENY),
    "a failure": (refused(Reason.DNS_TIMEOUT), Event.FAIL),
    "a live connection that a new policy refuses": (changed(Reason.POLICY_CHANGED), Event.CLOSE),
    "a live connection that asks for another name": (changed(Reason.SNI_CHANGED), Event.CLOSE),
    "what monitor mode lets pass": (monitored(), Event.OPEN),
    "what an audit rule asks for": (audited(), Event.CLOSE),
}


@pytest.mark.parametrize(("record", "event"), NEVER_SAMPLED.values(), ids=NEVER_SAMPLED)
def test_what_a_sample_always_has(record: Record, event: Event, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = its_logs(Settings(path=str(path), sample=Sample(open=0.0, close=0.0)), clock=HandClock())
    log.write(relayed(), Event.OPEN, 101.0)
    log.write(record, event, 101.0)
    log.close()
    assert path.read_bytes().count(b"\n") == 1


def test_after_a_rename_the_log_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    log = its_logs(Settings(path=str(path)), Settings(path="/dev/null"), clock=HandClock())
    log.write(relayed(), Event.OPEN, 101.0)
    path.rename(old)
    with capture_logs() as logs:
        log.reopen()
    log.write(relayed(), Event.CLOSE, 101.0)
    log.close()
    assert (len(numbers(old, "open")), len(numbers(path, "close"))) == (1, 1)
    assert logs == [{"event": "access log reopened", "log_level": "info", "path": str(path)}]


def test_what_cannot_be_reopened_goes_on_and_is_told(tmp_path: Path) -> None:
    gone, stays = tmp_path / "folder" / "log", tmp_path / "log"
    gone.parent.mkdir()
    log = its_logs(Settings(path=str(gone)), Settings(path=str(stays)), clock=HandClock())
    gone.parent.rename(tmp_path / "moved")
    stays.rename(tmp_path / "log.1")
    with capture_logs() as logs:
        log.reopen()
    log.write(relayed(), Event.OPEN, 101.0)
    log.close()
    assert [len(numbers(path, "open")) for path in (tmp_path / "moved" / "log", stays)] == [1, 1]
    assert [line["event"] for line in logs] == [
        "cannot reopen the access log; the old one goes on",
        "access log reopened",
    ]


def test_the_end_of_a_loss_is_told_without_another_line(tmp_path: Path) -> None:
    """The log looks again and again, until the loss is over, and then no more."""
    clock, path = HandClock(), tmp_path / "log"
    log = worker_log(path, clock)
    (sink,) = log.sinks
    sink.losses.add(1, "for the test")
    log.write(relayed(), Event.OPEN, 101.0)
    clock.advance(1.5 * BEAT)
    assert clock.scheduled == 1
    sink.losses.may_end = False
    clock.advance(1.5 * BEAT)
    assert clock.scheduled == 0
    log.close()


def test_a_lost_worker_is_told_wherever_ends_are_told(tmp_path: Path) -> None:
    """In each log's own format; and one that cannot be written keeps no other from it."""
    paths = [tmp_path / name for name in ("json", "nginx", "envoy", "denials")]
    settings = [
        Settings(path=str(tmp_path)),
        Settings(path=str(paths[0])),
        Settings(path=str(paths[1]), format="nginx"),
        Settings(path=str(paths[2]), format="envoy"),
        Settings(path=str(paths[3]), events=frozenset({"deny"})),
    ]
    write_worker_lost(settings, IDENTITY, 2, 17)
    told = json.loads(paths[0].read_text())
    assert (told["connectionEvent"], told["worker"], told["connections"]) == ("worker_lost", 2, 17)
    for path in paths[1:3]:
        assert path.read_text().partition("] ")[2] == "worker_lost: worker 2, 17 connections\n"
    assert not paths[3].exists()


async def test_a_reader_that_was_slow_gets_the_rest_by_and_by(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog([Settings(path=str(path))], IDENTITY, "p", lambda _: None, asyncio.get_running_loop())
    for _ in range(300):
        log.write(relayed(), Event.CLOSE, 101.0)
    received = b""
    async with asyncio.timeout(20):
        while received.count(b"\n") < 300:
            with contextlib.suppress(BlockingIOError):
                received += os.read(reader, 1 << 20)
            await asyncio.sleep(0)
    assert len({len(text) for text in received.splitlines()}) == 1
    os.close(reader)
    log.close()
