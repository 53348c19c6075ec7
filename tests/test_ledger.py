"""The ledger: one final line and one count for each accepted connection."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sniproxy.config.model import AccessLog as Settings
from sniproxy.config.model import Gateway
from sniproxy.ledger import Ledger
from sniproxy.observe.access_log import AccessLog
from sniproxy.observe.lines import LogIdentity
from sniproxy.observe.metrics import DENIED, WOULD_DENY, Meter, labelled_totals, new_scoreboard, read_samples
from sniproxy.observe.recent import Recent
from sniproxy.outcome import Reason
from sniproxy.policy.model import DryRun, Ground


class Books:
    """A ledger, with its log in a file and its meter on a scoreboard."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._board = new_scoreboard(1)
        meter = Meter(self._board.workers[0])
        identity = LogIdentity.of(Gateway(), {"POD_NAME": "pod"})
        settings = [Settings(path=str(path))]
        self._log = AccessLog(settings, identity, "p", meter.log_dropped, asyncio.get_running_loop())
        self.ledger = Ledger(self._log, meter, Recent(self._board.workers[0]))

    def lines(self) -> list[dict[str, Any]]:
        """Every line. Closes the log."""
        self._log.close()
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def counts(self) -> dict[str, float]:
        """Every count that is not zero: of a series, or of a histogram."""
        self.ledger.meter.settle()
        told: dict[str, float] = {}
        for sample in read_samples(self._board):
            name = sample.metric.name.removeprefix("sniproxy_")
            told |= {" ".join((name, *labels)): count for labels, count in sample.series}
            told |= {name: sum(sample.bucket_counts)} if sample.bucket_counts else {}
        for name, metric in (("denied", DENIED), ("would_deny", WOULD_DENY)):
            told |= {" ".join((name, *labels)): count for labels, count in labelled_totals(self._board, metric)}
        return {name: count for name, count in told.items() if count}


@pytest.fixture
async def books(tmp_path: Path) -> Books:
    return Books(tmp_path / "log")


async def test_what_monitor_mode_let_pass_is_counted_by_what_would_have_refused_it(books: Books) -> None:
    """Once, at its end, and besides its ordinary count."""
    record = books.ledger.begin("10.1.2.3")
    record.dry_run = DryRun(True, Reason.RULE, Ground("p.yaml", "no-english", "p.yaml", 1))
    books.ledger.opened(record, record.began)
    record.end(Reason.DONE)
    books.ledger.finish(record)
    counts = books.counts()
    assert (1.0, 1.0) == (counts["would_deny p.yaml no-english rule"], counts["connections_closed done"])
    assert not [name for name in counts if name.startswith("denied")]


async def test_what_monitor_mode_would_let_pass_is_counted_as_the_refusal_that_it_was(books: Books) -> None:
    record = books.ledger.begin("10.1.2.3")
    record.dry_run = DryRun(False, None, Ground("p.yaml", "soon", "p.yaml", 1))
    record.end(Reason.DEFAULT)
    books.ledger.finish(record)
    assert {"denied none none default": 1.0} == {name: count for name, count in books.counts().items() if "den" in name}


async def test_a_connection_that_was_served_has_a_line_at_its_opening_and_one_at_its_end(books: Books) -> None:
    record = books.ledger.begin("10.1.2.3")
    books.ledger.hello_read(record)
    books.ledger.opened(record, record.began)
    record.end(Reason.DONE)
    books.ledger.finish(record)
    assert books.counts() == {
        "connections_accepted": 1.0,
        "connections_opened": 1.0,
        "connections_closed done": 1.0,
        "client_hello_seconds": 1.0,
        "connect_seconds": 1.0,
        "connection_seconds": 1.0,
    }
    lines = books.lines()
    assert [(line["connectionEvent"], line["connectionId"]) for line in lines] == [("open", "p-1"), ("close", "p-1")]


async def test_a_connection_that_was_refused_has_one_line(books: Books) -> None:
    record = books.ledger.begin("10.1.2.3")
    record.end(Reason.NO_SNI, "the ClientHello has no server_name extension")
    books.ledger.finish(record)
    assert books.counts() == {"connections_accepted": 1.0, "denied none none no_sni": 1.0}
    assert [(line["connectionEvent"], line["reason"]) for line in books.lines()] == [("deny", "no_sni")]


@pytest.mark.parametrize("reason", Reason)
async def test_whatever_ends_a_connection_it_has_one_final_line_and_one_count(reason: Reason, books: Books) -> None:
    record = books.ledger.begin("10.1.2.3")
    record.end(reason)
    books.ledger.finish(record)
    counts = books.counts()
    assert (len(counts), counts.pop("connections_accepted"), *counts.values()) == (2, 1.0, 1.0)
    assert [(line["connectionEvent"], line["reason"]) for line in books.lines()] == [(reason.event.value, reason.word)]


async def test_connections_are_numbered_as_they_come(books: Books) -> None:
    assert [books.ledger.begin("").number for _ in range(3)] == [1, 2, 3]


async def test_a_connection_without_descriptors_is_accepted_refused_and_counted(books: Books) -> None:
    books.ledger.shed("10.1.2.3")
    assert books.counts() == {
        "connections_accepted": 1.0,
        "connections_shed": 1.0,
        "denied none none connection_limit": 1.0,
    }
    assert [(line["sourceIp"], line["reason"]) for line in books.lines()] == [("10.1.2.3", "connection_limit")]
