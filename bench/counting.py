"""`python -m bench.counting`: what counting a connection costs, for the metrics and for the page of latest connections.

A user cannot switch the metrics off, so what they cost is timed here and not in the proxy: the ledger's four calls in
the life of a connection that is served, and those by which DNS and the relay count, with an access log that wants no
line. The record of the connection is made in it too, so that the figure is a little too high.

Time is the process's own. A figure is the median over the rounds, and the collector is off, as in `timeit`. Nothing
of this benchmark is imported, so that the interpreter and the package of a proxy under test can run it.
"""

import argparse
import asyncio
import gc
import json
import statistics
import time

from sniproxy.config.model import AccessLog as Settings
from sniproxy.identity.spiffe import parse_principal
from sniproxy.ledger import Ledger
from sniproxy.observe.access_log import AccessLog
from sniproxy.observe.lines import LogIdentity
from sniproxy.observe.metrics import Meter, new_scoreboard
from sniproxy.observe.recent import Recent
from sniproxy.observe.scoreboard import Row
from sniproxy.outcome import Reason
from sniproxy.policy.model import Ground

CONNECTIONS = 10_000
ROUNDS = 15

_GROUND = Ground("policy.yaml", "bench", "/etc/sniproxy/policy.yaml", 4)
_PRINCIPAL = parse_principal("cluster.local/ns/default/sa/bench")
_NAMES = tuple(f"{letter}.bench.example" for letter in "abcdefghij")


def new_ledger(loop: asyncio.AbstractEventLoop) -> tuple[Ledger, Row]:
    """As a worker has it, but for the lines; and the row that it counts in."""
    row = new_scoreboard(1).workers[0]
    meter = Meter(row)
    settings = Settings(path="/dev/null", events=frozenset())
    log = AccessLog([settings], LogIdentity("bench", "bench", "bench"), "bench", meter.log_dropped, loop)
    return Ledger(log, meter, Recent(row)), row


def serve(ledger: Ledger, connections: int) -> None:
    """All that is counted of connections that are served."""
    meter, done = ledger.meter, Reason.DONE
    for number in range(connections):
        record = ledger.begin("10.0.0.1")
        record.identity = _PRINCIPAL
        record.server_name = _NAMES[number % len(_NAMES)]
        record.ground = _GROUND
        ledger.hello_read(record)
        meter.dns_cache_hit(1.0)
        ledger.opened(record, record.began)
        meter.received.add(517)
        meter.sent.add(1000)
        record.end(done)
        ledger.finish(record)
        meter.settle()  # far more often than a worker does


def microseconds(rounds: int, connections: int = CONNECTIONS) -> float:
    """For one connection."""
    loop = asyncio.new_event_loop()
    try:
        ledger, _ = new_ledger(loop)
        serve(ledger, connections)
        took = []
        gc.disable()
        for _ in range(rounds):
            start = time.process_time_ns()
            serve(ledger, connections)
            took.append(time.process_time_ns() - start)
    finally:
        gc.enable()
        loop.close()
    return statistics.median(took) / connections / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.counting", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument("--json", action="store_true", help="the figure as JSON, for `python -m bench`")
    arguments = parser.parse_args()
    each = microseconds(arguments.rounds)
    print(json.dumps({"metrics_us": each}) if arguments.json else f"counting a connection takes {each:.2f} us of CPU")


if __name__ == "__main__":
    main()
