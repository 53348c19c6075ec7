"""`sniproxy top`: what it draws, within the window, and that no name can steer the terminal."""

import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sniproxy.cli import run_command
from sniproxy.config.units import TcpAddress, UnixAddress
from sniproxy.observe.admin.answers import overview
from sniproxy.observe.admin.history import History
from sniproxy.observe.admin.in_force import InForce
from sniproxy.observe.metrics import Meter, new_scoreboard
from sniproxy.observe.recent import Recent
from sniproxy.outcome import Reason
from sniproxy.policy.model import Ground
from sniproxy.record import Record
from sniproxy.reload.channel import new_channel
from sniproxy.top import NoAnswerError, ask, lines_of, show_live, show_once
from tests.reload.readings import generation
from tests.support.origins import origin

HOSTILE = "\x1b[2J\x1b]0;owned\x07.example.org"


@pytest.fixture
def told() -> Iterator[dict[str, Any]]:
    """What the admin address of one worker tells, which has refused a name that is a control sequence."""
    board = new_scoreboard(1)
    meter, recent = Meter(board.workers[0]), Recent(board.workers[0])
    record = Record(1, "10.1.2.3", 0.0)
    record.server_name, record.ground = HOSTILE, Ground("p.yaml", "none-of-it", "p.yaml", 7)
    record.end(Reason.RULE)
    meter.accepted()
    meter.accepted()
    meter.serving(yes=True)
    meter.ended(Reason.RULE, "p.yaml", "none-of-it")
    meter.settle()
    recent.ended(record, 1.0)
    recent.publish()
    history = History(board)
    history.take()
    outbox, inbox = new_channel()
    in_force = InForce(generation(), inbox)
    yield json.loads(json.dumps(overview(board, in_force, history)))
    os.close(in_force.generation.policy)
    outbox.close()
    inbox.close()


def test_what_it_draws(told: dict[str, Any]) -> None:
    text = "\n".join(lines_of(told, 200, 50))
    for part in (
        "generation 1   enforce",
        "active 1 of 0   workers 1",
        "refused 1 (0.0/s)",
        "REFUSED MOST: NAMES",
        "none-of-it of p.yaml p.yaml:7",
    ):
        assert part in text


def test_no_name_steers_the_terminal(told: dict[str, Any]) -> None:
    """It is shown escaped, once among the most frequent and once among the latest."""
    lines = lines_of(told, 200, 50)
    assert all(line.isprintable() for line in lines)
    assert sum("\\x1b[2J" in line for line in lines) == 2


@pytest.mark.parametrize("width", [1, 20, 80])
@pytest.mark.parametrize("height", [1, 5, 24])
def test_it_fits_the_window(width: int, height: int, told: dict[str, Any]) -> None:
    lines = lines_of(told, width, height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)


def test_a_worker_that_is_stuck_or_accepts_nothing_is_named(told: dict[str, Any]) -> None:
    worker = told["workers"][0]
    worker["serving"] = False
    assert "workers 1, not accepting: [0]" in lines_of(told, 80, 50)[1]
    worker["stuck"] = True
    assert "workers 1, stuck: [0]" in lines_of(told, 80, 50)[1]


def test_rates_are_those_of_the_last_two_samples(told: dict[str, Any]) -> None:
    told["history"]["samples"] = [[0, 0, 0, 0, 0], [10, 0, 100, 0, 0], [12, 0, 107, 1, 0]]
    assert "(3.5/s)   refused 1 (0.5/s)   failed 0 (0.0/s)" in lines_of(told, 80, 50)[2]


# Asking.


def http_answer(status: str, body: str) -> Any:
    def answer(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    return answer


def test_one_look_prints_everything(told: dict[str, Any]) -> None:
    out = io.StringIO()
    with origin(http_answer("200 OK", json.dumps(told))) as port:
        show_once(TcpAddress("127.0.0.1", port), out)
    assert out.getvalue().splitlines() == lines_of(told, 10_000, 10_000)


def test_a_live_look_leaves_the_terminal_as_it_was(told: dict[str, Any]) -> None:
    """Also when the proxy is gone meanwhile, which it says."""
    out, ends = io.StringIO(), iter([False, True])
    answers = iter([http_answer("200 OK", json.dumps(told)), http_answer("500 Gone", "")])
    with origin(lambda sock: next(answers)(sock)) as port:  # noqa: PLW0108 - the next one, each time
        show_live(TcpAddress("127.0.0.1", port), out, lambda _: next(ends))
    assert out.getvalue().startswith("\x1b[?1049h")
    assert out.getvalue().count("refused 1 (0.0/s)") == 2
    assert "what is shown is old" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h\x1b[?1049l")


def test_without_an_admin_address_there_is_nothing_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sniproxy.yaml").write_text("admin: {address: null}\n")
    assert run_command(["top", "--config", str(tmp_path / "sniproxy.yaml")]) == 1
    assert capsys.readouterr().err == "sniproxy: admin.address is null: there is nothing to ask\n"


def test_who_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoAnswerError, match=r"no answer from unix:.*/nobody: no such file or directory"):
        ask(UnixAddress(str(tmp_path / "nobody")))


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        ("404 Not Found", "", "answers 404: is it admin.address of a sniproxy"),
        ("200 OK", "<html>", "no answer from"),
    ],
)
def test_an_answer_of_somebody_else_is_none(status: str, body: str, expected: str) -> None:
    with origin(http_answer(status, body)) as port, pytest.raises(NoAnswerError, match=expected):
        ask(TcpAddress("127.0.0.1", port))
