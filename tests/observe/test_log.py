"""The operational log: JSON for what collects it, text for a person."""

import json
import os
from collections.abc import Iterator

import pytest
import structlog

from sniproxy.observe.log import Stream, configure


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """structlog is afterwards as it was."""
    yield
    structlog.reset_defaults()


def test_an_event_is_a_json_object_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    configure()
    log = structlog.get_logger()
    log.info("listening", addresses=["127.0.0.1:8443"], workers=2)
    log.warning("a line\nof two")
    first, second = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "listening", "level": "info", "addresses": ["127.0.0.1:8443"], "workers": 2}
    assert (second["event"], second["level"]) == ("a line\nof two", "warning")


def test_an_exception_is_told_with_its_traceback_in_the_same_line(capfd: pytest.CaptureFixture[str]) -> None:
    configure()
    try:
        raise ValueError("spilt milk")
    except ValueError:
        structlog.get_logger().exception("connection failed", connection=7)
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: spilt milk")


def test_a_person_at_a_terminal_gets_text(capfd: pytest.CaptureFixture[str]) -> None:
    configure(to_terminal=True)
    structlog.get_logger().info("listening", workers=2)
    said = capfd.readouterr().err
    assert "listening" in said
    assert not said.startswith("{")


class TestNobodyWaitsForItsReader:
    def test_what_a_full_pipe_does_not_take_is_lost(self) -> None:
        """And what comes after begins on a line of its own."""
        reader, writer = os.pipe()
        stream = Stream(writer)
        for _ in range(2000):
            stream.write("x" * 99 + "\n")
        full = os.read(reader, 1 << 20)
        assert 0 < len(full) < 2000 * 100
        stream.write("later\n")
        assert os.read(reader, 1 << 20) == b"later\n"
        os.close(reader)
        os.close(writer)

    def test_a_line_that_was_torn_is_ended_before_the_next(self) -> None:
        reader, writer = os.pipe()
        stream = Stream(writer)
        stream.write("x" * 1_000_000 + "\n")
        torn = os.read(reader, 1 << 20)
        stream.write("later\n")
        assert (set(torn), os.read(reader, 1 << 20)) == (set(b"x"), b"\nlater\n")
        os.close(reader)
        os.close(writer)

    def test_a_reader_that_is_gone_is_no_error(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        Stream(writer).write("to nobody\n")
        os.close(writer)

    def test_a_full_disk_is_no_error(self) -> None:
        full = os.open("/dev/full", os.O_WRONLY)
        Stream(full).write("to nowhere\n")
        os.close(full)
