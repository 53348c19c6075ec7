"""The load generator and the origin do what their sources say, checked against each other with no proxy."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest

from bench.processes import Cores
from bench.stage import ANSWER_BYTES, Load, LoadResult, MissingToolError, Sizes, Stage, staged

SIZES = Sizes(stream=5_000_000, warm=1_000_000)


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
        Load(("echo.bench.example",), count=1, pings=100),
    ],
    ids=["closed loop", "open loop", "stream", "upload", "round trips"],
)
def test_every_byte_of_the_work_comes(stage: Stage, load: Load) -> None:
    result = direct(stage, load)
    assert result.problems(load) == []
    assert result.samples == (load.pings or load.count)
    assert 0 < result.p50_us <= result.p99_us <= result.max_us


def test_an_answer_that_is_too_short_is_an_error(stage: Stage) -> None:
    load = Load(("a.bench.example",), count=3, expect=ANSWER_BYTES + 1)
    result = direct(stage, load)
    assert (result.ok, result.errors) == (0, {"cut_short": 3})
    assert [problem.kind for problem in result.problems(load)] == ["connections failed", "bytes are missing"]


def test_an_answer_that_is_too_long_is_an_error(stage: Stage) -> None:
    result = direct(stage, Load(("a.bench.example",), count=3, expect=ANSWER_BYTES - 1))
    assert (result.ok, result.errors) == (0, {"too_long": 3})


def test_an_answer_that_never_ends_runs_out_of_time(stage: Stage) -> None:
    """The origin holds the connection, and the client waits for its end."""
    result = direct(stage, Load(("hold.bench.example",), count=2, concurrency=2, timeout=1))
    assert (result.ok, result.errors) == (0, {"timeout": 2})


def test_nobody_listening_is_an_error(stage: Stage) -> None:
    result = stage.load(Load(("a.bench.example",), count=2), stage.target(port=1))
    assert result.ok == 0
    assert sum(result.errors.values()) == 2


def test_connections_are_held_while_the_reading_is_taken(stage: Stage) -> None:
    load = Load(("hold.bench.example",), count=20, concurrency=4, hold=True)
    value, result = stage.while_holding(load, stage.origin("hold.bench.example"), lambda: "read")
    assert value == "read"
    assert result.problems(load) == []
