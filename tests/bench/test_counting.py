"""The benchmark of counting counts as the proxy does."""

import asyncio

from bench.counting import new_ledger, serve
from sniproxy.observe.metrics import ACCEPTED, ACTIVE, BYTES, CLOSED, CONNECTION_SECONDS, OPENED, slot_of


async def test_each_connection_is_counted_from_its_accept_to_its_end() -> None:
    ledger, row = new_ledger(asyncio.get_running_loop())
    serve(ledger, 100)
    counts = [row.slots[slot_of(metric)] for metric in (ACCEPTED, OPENED, ACTIVE)]
    assert counts == [100, 100, 0]
    assert row.slots[slot_of(CLOSED, "done")] == 100
    assert row.slots[slot_of(BYTES, "sent")] == 100_000
    first = slot_of(CONNECTION_SECONDS)
    assert sum(row.slots[first : first + len(CONNECTION_SECONDS.buckets) + 1]) == 100
