"""For all tests: in CI nothing is skipped, and what needs an event loop runs under that of a worker."""

import asyncio
import os
from collections.abc import Callable, Generator, Mapping

import pytest

from sniproxy.net.event_loop import EventLoop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories() -> Mapping[str, LoopFactory]:
    """The hook of pytest-asyncio for the loops that a test is parametrized by."""
    return {"worker": EventLoop}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skipped test counts as failed: one whose peer is missing is a test that nobody runs."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
