"""The operational log: JSON for what collects it, text for a person."""

import json
from collections.abc import Iterator

import pytest
import structlog

from sniproxy.observe.log import configure


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """structlog is afterwards as it was."""
    yield
    structlog.reset_defaults()


def test_an_event_is_a_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    log = structlog.get_logger()
    log.info("listening", addresses=["127.0.0.1:8443"], workers=2)
    log.warning("a line\nof two")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "listening", "level": "info", "addresses": ["127.0.0.1:8443"], "workers": 2}
    assert (second["event"], second["level"]) == ("a line\nof two", "warning")


def test_an_exception_is_told_with_its_traceback_in_the_same_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    try:
        raise ValueError("spilt milk")
    except ValueError:
        structlog.get_logger().exception("connection failed", connection=7)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: spilt milk")


def test_a_person_at_a_terminal_gets_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure(to_terminal=True)
    structlog.get_logger().info("listening", workers=2)
    said = capsys.readouterr().err
    assert "listening" in said
    assert not said.startswith("{")
