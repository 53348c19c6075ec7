"""What the compiler learns from is what a proxy does: each connection gets what it asks for, or the build ends."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from bench.training import DENIED, ECHO, proxy, visit, visits


@pytest.mark.e2e
def test_all_get_what_they_should(tmp_path: Path) -> None:
    """Answers of every size, refusals, echoes, and a hello in pieces."""

    async def train() -> None:
        async with proxy(tmp_path) as port:
            await visits(port, 64, 8)
            await visit(port, ECHO, words=3)
            await visit(port, "300.training.example", in_pieces=True)

    asyncio.run(train())
    lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert Counter(line["connectionEvent"] for line in lines) == {"open": 64, "close": 64, "deny": 2}
    assert {line["requestedServerName"] for line in lines if line["connectionEvent"] == "deny"} == {DENIED}


@pytest.mark.e2e
def test_one_that_gets_something_else_is_an_error(tmp_path: Path) -> None:
    """A name that no rule allows is answered with an alert."""

    async def train() -> None:
        async with proxy(tmp_path) as port:
            await visit(port, "elsewhere.example")

    with pytest.raises(RuntimeError, match=r"elsewhere\.example: got 7 bytes, and expected 0"):
        asyncio.run(train())
