"""The connections of a worker: what each has in its hands, and those that are live, to be judged again.

A connection is live from the moment that its bytes flow until it is over. When the policy changes the live ones are
judged a slice a turn of the event loop: neither the bytes of those that stay nor new connections wait for all of them.
"""

import asyncio
from collections.abc import Callable

import structlog

from sniproxy.limits import Lease
from sniproxy.net.calls import Socket
from sniproxy.net.relay import Relay
from sniproxy.outcome import Reason
from sniproxy.policy.model import Denied
from sniproxy.record import Record

_log = structlog.get_logger()

# In one turn: a few hundred microseconds of decisions, and as many connections ended as take two milliseconds.
_SLICE = 200
_ENDS = 32


class Connection:
    """What the story of one connection holds, and its finisher gives back."""

    __slots__ = ("downstream", "head", "is_static", "lease", "outer_name", "record", "relay", "upstream")

    def __init__(self, downstream: Socket, record: Record) -> None:
        self.downstream = downstream
        self.record = record
        self.outer_name = ""  # the SNI of the tunnel that it came through
        self.is_static = False  # its address is from the config, and no network forbids it
        self.lease: Lease | None = None  # its share of what a rule allows
        self.head = b""  # what was read from downstream before there was an upstream
        self.upstream: Socket | None = None
        self.relay: Relay | None = None

    def take_head(self) -> bytes:
        """The bytes to begin with; kept no longer, for an idle connection owns no buffer."""
        head, self.head = self.head, b""
        return head

    def stop(self, detail: str) -> None:
        """End it, for the policy has changed."""
        self.record.detail = detail
        if self.relay is not None:
            self.relay.stop(Reason.POLICY_CHANGED)


# How a connection would be refused today; None if it would not.
Refusal = Callable[[Connection], Denied | None]


class LiveConnections:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._live: set[Connection] = set()
        self._waiting: list[Connection] = []  # to be judged

    def __len__(self) -> int:
        return len(self._live)

    def add(self, connection: Connection) -> None:
        self._live.add(connection)

    def discard(self, connection: Connection) -> None:
        self._live.discard(connection)

    def rejudge(self, refusal: Refusal) -> None:
        """End each connection that `refusal` finds refused. Takes the place of a judging that is under way."""
        self._waiting = list(self._live)
        self._judge_slice(self._waiting, refusal, 0, 0)

    def _judge_slice(self, waiting: list[Connection], refusal: Refusal, closed: int, kept: int) -> None:
        if waiting is not self._waiting:
            return
        before = closed
        for _ in range(min(_SLICE, len(waiting))):
            connection = waiting.pop()
            if connection not in self._live:
                continue
            denied = refusal(connection)
            if denied is None:
                kept += 1
                continue
            connection.stop(denied.detail)
            closed += 1
            if closed - before == _ENDS:
                break
        if waiting:
            self._loop.call_soon(self._judge_slice, waiting, refusal, closed, kept)
        elif closed:
            _log.info("live connections were closed by the new policy", closed=closed, kept=kept)
