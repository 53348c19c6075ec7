"""The generation that the workers are brought to, kept to be asked about."""

import asyncio
import os
from collections import Counter

from sniproxy.policy.engine import Engine
from sniproxy.policy.explain import explain
from sniproxy.policy.model import Request
from sniproxy.reload.channel import Inbox
from sniproxy.reload.generation import Generation

# Explaining reads every rule, which takes a while with many. One at a time; and of those who wait, not more than these.
_MAX_WAITING = 16


class BusyError(Exception):
    """Too many ask at once."""


class InForce:
    """The newest generation, from the supervisor's hand."""

    def __init__(self, generation: Generation, inbox: Inbox) -> None:
        self.generation = generation
        self._inbox = inbox
        self._engine: Engine | None = None
        self._files: dict[str, int] | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        inbox.confirm(generation.number)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take each new one as it comes."""
        self._inbox.watch(loop, self._take)

    def _take(self, generation: Generation) -> None:
        os.close(self.generation.policy)
        self.generation = generation
        self._engine = self._files = None
        self._inbox.confirm(generation.number)

    async def explain(self, request: Request) -> dict[str, object]:
        """What the policy in force decides, and why. Raises BusyError."""
        request = request._replace(port=self.generation.config.upstream.port)
        if self._waiting >= _MAX_WAITING:
            raise BusyError
        self._waiting += 1
        try:
            async with self._turn:
                explanation = await asyncio.to_thread(explain, self._its_engine(), request)
        finally:
            self._waiting -= 1
        return explanation.as_json()

    async def rules_by_file(self) -> dict[str, int]:
        """How many rules each file has; those that have none are not named."""
        async with self._turn:
            if self._files is None:
                number = self.generation.number
                files = await asyncio.to_thread(_rules_by_file, self._its_engine())
                if number != self.generation.number:
                    return files
                self._files = files
            return self._files

    def _its_engine(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self.generation.compiled())
        return self._engine


def _rules_by_file(engine: Engine) -> dict[str, int]:
    return dict(Counter(rule.ground.file for rule in engine.rules()))
