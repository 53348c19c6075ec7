"""The live connections of a worker: who is judged again, when, and what it costs."""

import asyncio
import sys
import tracemalloc
from dataclasses import dataclass, field
from typing import cast

import pytest

from sniproxy.live import Connection, LiveConnections
from sniproxy.net.calls import Socket
from sniproxy.net.relay import Relay
from sniproxy.outcome import Reason
from sniproxy.policy.model import NO_GROUND, Denied
from sniproxy.record import Record
from tests.net.loopback import turns


@dataclass
class Relayed:
    """A relay that keeps what it was stopped for."""

    stopped: list[Reason] = field(default_factory=list)

    def stop(self, reason: Reason) -> None:
        self.stopped.append(reason)


def added(connections: LiveConnections, number: int) -> tuple[Connection, Relayed]:
    live, relay = Connection(cast(Socket, None), Record(number, "10.1.2.3", 0.0)), Relayed()
    live.relay = cast(Relay, relay)
    connections.add(live)
    return live, relay


def odd(live: Connection) -> Denied | None:
    """A policy that refuses every other connection."""
    return Denied(Reason.RULE, NO_GROUND, f"{live.record.number} is odd") if live.record.number % 2 else None


async def test_those_that_are_refused_end_and_the_rest_is_not_touched() -> None:
    connections = LiveConnections(asyncio.get_running_loop())
    both = [added(connections, number) for number in range(1000)]
    connections.rejudge(odd)
    await turns(50)
    for live, relay in both:
        is_odd = live.record.number % 2 == 1
        assert relay.stopped == [Reason.POLICY_CHANGED] * is_odd
        assert live.record.detail == (f"{live.record.number} is odd" if is_odd else "")


async def test_they_are_judged_a_slice_a_turn() -> None:
    """So that nobody waits for all of them: so many decisions, and fewer ends."""
    connections = LiveConnections(asyncio.get_running_loop())
    for number in range(1000):
        added(connections, number)
    judged: list[int] = []

    def count(live: Connection) -> None:
        judged.append(live.record.number)

    connections.rejudge(count)
    counts = []
    while len(judged) < 1000:
        counts.append(len(judged))
        await turns(1)
    assert counts == [200, 400, 600, 800]
    assert sorted(judged) == list(range(1000))
    relays = [added(connections, 1)[1] for _ in range(100)]
    connections.rejudge(odd)
    assert sum(bool(relay.stopped) for relay in relays) <= 32
    await turns(50)
    assert all(relay.stopped for relay in relays)


async def test_who_has_gone_meanwhile_is_not_judged() -> None:
    connections = LiveConnections(asyncio.get_running_loop())
    both = [added(connections, number) for number in range(1, 500, 2)]
    connections.rejudge(odd)
    gone = [relay for live, relay in both if not relay.stopped]
    for live, relay in both:
        if not relay.stopped:
            connections.discard(live)
    await turns(20)
    assert (len(gone), [relay.stopped for relay in gone]) == (218, [[]] * 218)


async def test_a_newer_policy_takes_the_place_of_one_that_is_being_judged_by() -> None:
    """What the older would have refused, and had not come to, is the newer's to judge."""
    connections = LiveConnections(asyncio.get_running_loop())
    both = [added(connections, 1) for _ in range(1000)]
    connections.rejudge(odd)
    connections.rejudge(lambda _: None)
    await turns(20)
    assert sum(bool(relay.stopped) for _, relay in both) == 32


async def test_without_any_there_is_nothing_to_do() -> None:
    connections = LiveConnections(asyncio.get_running_loop())
    connections.rejudge(odd)
    await turns(5)
    assert len(connections) == 0


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="sizes are CPython's")
async def test_a_connection_costs_less_than_250_bytes_here() -> None:
    connections = LiveConnections(asyncio.get_running_loop())
    records = [Record(number, "10.1.2.3", 0.0) for number in range(10_000)]
    relay = cast(Relay, Relayed())
    tracemalloc.start()
    for record in records:
        connection = Connection(cast(Socket, None), record)
        connection.relay = relay
        connections.add(connection)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(records) < 250
