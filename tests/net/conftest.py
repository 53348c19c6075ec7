"""Everything here that needs an event loop runs twice: under asyncio's own, and under uvloop."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories() -> Mapping[str, LoopFactory]:
    """The hook of pytest-asyncio for the loops that a test is parametrized by."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
