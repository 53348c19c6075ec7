"""The load generator and the origin do what their sources say, checked against each other with no proxy."""

import contextlib
import shutil
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.processes import Cores
from bench.stage import ANSWER_BYTES, KB, MB, Load, LoadResult, MissingToolError, Sizes, Stage, Target, staged

SIZES = Sizes(stream=5_000_000, warm=1_000_000, duplex=3_000_000)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(staged(Cores.of_this_machine(), SIZES, proxy_protocol=False))
        except MissingToolError as error:
            pytest.skip(str(error))
        yield running


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed (util-linux)"),
]


def direct(stage: Stage, load: Load) -> LoadResult:
    return stage.load(load, stage.origin(load.names[0]))


@pytest.mark.parametrize(
    "load",
    [
        Load(("a.bench.example",), count=50, concurrency=8),
        Load(("a.bench.example",), count=50, rate=1000),
        Load(("stream.bench.example",), count=1, expect=SIZES.stream),
        Load(("upload.bench.example",), count=1, upload=SIZES.stream),
        Load(("duplex.bench.example",), count=2, expect=SIZES.duplex, upload=SIZES.duplex, concurrency=2),
        Load(("100kb.bench.example",), count=20, expect=100 * KB, concurrency=4),
        Load(("10mb.bench.example",), count=2, expect=10 * MB, concurrency=2),
        Load(("echo.bench.example",), count=1, pings=100),
        Load(("a.bench.example",), count=1_000, concurrency=1_000),
    ],
    ids=["closed loop", "open loop", "stream", "upload", "duplex", "100 KB", "10 MB", "round trips", "storm"],
)
def test_every_byte_of_the_work_comes(stage: Stage, load: Load) -> None:
    result = direct(stage, load)
    assert result.problems(load) == []
    assert result.samples == (load.pings or load.count)
    assert 0 < result.p50_us <= result.p99_us <= result.max_us


def test_latencies_are_told_in_order(stage: Stage) -> None:
    result = direct(stage, Load(("a.bench.example",), count=50, concurrency=8, tell=True))
    assert (len(result.latencies_us), result.latencies_us[-1]) == (50, result.max_us)
    assert sorted(result.latencies_us) == result.latencies_us
    assert result.p50_us == result.latencies_us[24]


def test_an_answer_that_is_too_short_is_an_error(stage: Stage) -> None:
    load = Load(("a.bench.example",), count=3, expect=ANSWER_BYTES + 1)
    result = direct(stage, load)
    assert (result.ok, result.errors) == (0, {"cut_short": 3})
    assert [problem.kind for problem in result.problems(load)] == ["connections failed", "bytes are missing"]


def test_an_answer_that_is_too_long_is_an_error(stage: Stage) -> None:
    result = direct(stage, Load(("a.bench.example",), count=3, expect=ANSWER_BYTES - 1))
    assert (result.ok, result.errors) == (0, {"too_long": 3})


def test_an_answer_that_never_ends_runs_out_of_time(stage: Stage) -> None:
    """The origin keeps the connection open, and the client waits for its end."""
    result = direct(stage, Load(("echo.bench.example",), count=2, concurrency=2, timeout=1))
    assert (result.ok, result.errors) == (0, {"timeout": 2})


def test_nobody_listening_is_an_error(stage: Stage) -> None:
    result = stage.load(Load(("a.bench.example",), count=2), stage.target(port=1))
    assert result.ok == 0
    assert sum(result.errors.values()) == 2


def test_an_upload_that_is_too_short_for_the_origin_runs_out_of_time(stage: Stage) -> None:
    """Both ways at once: the origin's FIN waits for the last byte that it is due."""
    load = Load(("duplex.bench.example",), count=1, expect=SIZES.duplex, upload=SIZES.duplex - 1, timeout=1)
    result = direct(stage, load)
    assert (result.ok, result.errors) == (0, {"timeout": 1})


def test_connections_are_held_for_as_long_as_the_block(stage: Stage) -> None:
    load = Load(("echo.bench.example",), count=20, concurrency=4, hold=True)
    with stage.holding(load, stage.origin("echo.bench.example")) as held:
        pass
    assert held.result.problems(load) == []


def test_connections_that_are_held_can_speak(stage: Stage) -> None:
    load = Load(("echo.bench.example",), count=20, hold=True, words=30, word_rate=10_000, speakers=4)
    with stage.holding(load, stage.origin("echo.bench.example")) as held:
        assert held.speak() == []
        assert held.speak() == []
    assert held.result.problems(load) == []
    assert held.result.samples == 30


def test_words_that_do_not_come_back_are_missed(stage: Stage) -> None:
    """A short connection is over: the origin has ended it, and echoes nothing."""
    load = Load(("a.bench.example",), count=2, hold=True, words=3, word_rate=10_000, speakers=2)
    with stage.holding(load, stage.origin("a.bench.example")) as held:
        problems = held.speak()
    assert [problem.kind for problem in problems] == ["words are missing"]


REFUSAL = Load(("a.bench.example",), count=3, expect=0, refused=True, timeout=5)
ALERT = bytes.fromhex("15030100020231")


@contextlib.contextmanager
def refusing(answer: bytes, *, reset: bool) -> Iterator[Target]:
    """A server that reads what comes, answers, and ends the connection."""
    linger = struct.pack("ii", 1, 0)  # close(2) then sends RST (socket(7), SO_LINGER)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(REFUSAL.count):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
                    if reset:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        with ThreadPoolExecutor(1) as pool:
            served = pool.submit(serve)
            yield Target(f"127.0.0.1:{listener.getsockname()[1]}", proxy_header=False)
            served.result()


@pytest.mark.parametrize(
    ("answer", "reset"), [(b"", False), (b"", True), (ALERT, False)], ids=["FIN", "RST", "alert and FIN"]
)
def test_a_refusal_is_an_end_without_an_answer(stage: Stage, answer: bytes, reset: bool) -> None:
    with refusing(answer, reset=reset) as target:
        result = stage.load(REFUSAL, target)
    assert result.problems(REFUSAL) == []


@pytest.mark.parametrize("answer", [b"\x00\x01\x02", ALERT + b"\x00"], ids=["an answer", "more than an alert"])
def test_bytes_of_an_answer_are_no_refusal(stage: Stage, answer: bytes) -> None:
    with refusing(answer, reset=False) as target:
        result = stage.load(REFUSAL, target)
    assert (result.ok, result.errors) == (0, {"wrong_bytes": 3})


def test_nobody_listening_is_no_refusal(stage: Stage) -> None:
    result = stage.load(REFUSAL, stage.target(port=1))
    assert (result.ok, result.errors) == (0, {"connect": 3})
