"""The metrics: one catalogue that says what there is, the meter by which a worker counts, and the sums over all.

Every slot of the scoreboard is laid out from the catalogue, in its order; so is the exposition, and so is the table
in the docs. A label takes only words that we chose or that an operator wrote into a policy, never what a client sent.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from sniproxy.net.relay import Tally
from sniproxy.observe.scoreboard import Labels, Row, Scoreboard
from sniproxy.outcome import Event, Reason


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of time series. `values` are all that its label may be; () is a family of one series."""

    name: str
    kind: Kind
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    is_least: bool = False  # of all workers, instead of their sum

    @property
    def slots(self) -> int:
        if self.kind is Kind.HISTOGRAM:
            return len(self.buckets) + 2  # one more for +Inf, one for the sum
        return max(1, len(self.values))


_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LIFETIME = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0)


def _words(event: Event) -> tuple[str, ...]:
    return tuple(reason.word for reason in Reason if reason.event is event)


ACCEPTED = Metric("sniproxy_connections_accepted", Kind.COUNTER, "Connections accepted from downstream.")
OPENED = Metric("sniproxy_connections_opened", Kind.COUNTER, "Connections allowed and connected to their upstream.")
FAILED = Metric(
    "sniproxy_connections_failed",
    Kind.COUNTER,
    "Connections that could not be served.",
    "reason",
    _words(Event.FAIL),
)
CLOSED = Metric(
    "sniproxy_connections_closed",
    Kind.COUNTER,
    "Served connections that are over.",
    "reason",
    _words(Event.CLOSE),
)
LOST = Metric("sniproxy_connections_lost", Kind.COUNTER, "Connections that a worker took with it when it died.")
ACTIVE = Metric("sniproxy_connections_active", Kind.GAUGE, "Connections accepted and not yet over.")
BYTES = Metric("sniproxy_bytes", Kind.COUNTER, "Bytes relayed.", "direction", ("received", "sent"))
HELLO_SECONDS = Metric(
    "sniproxy_client_hello_seconds", Kind.HISTOGRAM, "From accept to the whole ClientHello.", buckets=_FAST
)
DNS_SECONDS = Metric(
    "sniproxy_dns_seconds", Kind.HISTOGRAM, "DNS lookups that the cache could not answer.", buckets=_FAST
)
CONNECT_SECONDS = Metric(
    "sniproxy_connect_seconds",
    Kind.HISTOGRAM,
    "From the decision's addresses to a connected upstream.",
    buckets=_FAST,
)
CONNECTION_SECONDS = Metric(
    "sniproxy_connection_seconds",
    Kind.HISTOGRAM,
    "From accept to close, of served connections.",
    buckets=_LIFETIME,
)
DNS_CACHE = Metric(
    "sniproxy_dns_cache_requests",
    Kind.COUNTER,
    "Names looked for in the cache.",
    "result",
    ("hit", "miss", "stale"),
)
LOG_DROPPED = Metric("sniproxy_access_log_dropped_lines", Kind.COUNTER, "Access log lines that could not be written.")
SHED = Metric("sniproxy_connections_shed", Kind.COUNTER, "Connections closed at accept for want of descriptors.")
RESTARTS = Metric("sniproxy_worker_restarts", Kind.COUNTER, "Workers started again after they died.")
GENERATION = Metric(
    "sniproxy_config_generation",
    Kind.GAUGE,
    "The config and policy that every worker has taken, counted from 1.",
    is_least=True,
)
RELOAD_SUCCESS = Metric(
    "sniproxy_config_last_reload_success",
    Kind.GAUGE,
    "Whether the config and policies on disk could be read last time.",
)
RELOAD_TIME = Metric(
    "sniproxy_config_last_reload_timestamp_seconds", Kind.GAUGE, "When the config in force was read, in Unix time."
)
LIMIT = Metric(
    "sniproxy_connections_limit", Kind.GAUGE, "How many connections may be active at once, in all workers together."
)
RULES = Metric("sniproxy_policy_rules", Kind.GAUGE, "Rules of the policy that was read last.")
WARNINGS = Metric(
    "sniproxy_policy_warnings", Kind.GAUGE, "What `sniproxy check` warns of in the policy that was read last."
)
HEARTBEAT = Metric("sniproxy_worker_heartbeat", Kind.GAUGE, "Internal.")
SERVING = Metric("sniproxy_worker_serving", Kind.GAUGE, "Internal.")

CATALOGUE = (
    ACCEPTED,
    OPENED,
    FAILED,
    CLOSED,
    LOST,
    ACTIVE,
    BYTES,
    HELLO_SECONDS,
    DNS_SECONDS,
    CONNECT_SECONDS,
    CONNECTION_SECONDS,
    DNS_CACHE,
    LOG_DROPPED,
    SHED,
    RESTARTS,
    GENERATION,
    RELOAD_SUCCESS,
    RELOAD_TIME,
    LIMIT,
    RULES,
    WARNINGS,
    HEARTBEAT,
    SERVING,
)
# Slots that only the program itself reads.
INTERNAL = frozenset({HEARTBEAT, SERVING})

# Refusals are counted by policy and rule, which come and go with policies: they have a table of their own.
DENIED = Metric("sniproxy_connections_denied", Kind.COUNTER, "Connections refused.")
WOULD_DENY = Metric(
    "sniproxy_connections_would_deny", Kind.COUNTER, "Connections that monitor mode let pass, and would be refused."
)
DENIED_LABELS = ("policy", "rule", "reason")
# Each has a table of its own on the scoreboard, in this order.
LABELLED = (DENIED, WOULD_DENY)

_FIRST_SLOT: dict[Metric, int] = {}
for _metric in CATALOGUE:
    _FIRST_SLOT[_metric] = sum(metric.slots for metric in _FIRST_SLOT)
SLOTS = sum(metric.slots for metric in CATALOGUE)


def slot_of(metric: Metric, value: str = "") -> int:
    """The slot of a counter or gauge, or of one value of its label."""
    return _FIRST_SLOT[metric] + (metric.values.index(value) if value else 0)


def new_scoreboard(workers: int) -> Scoreboard:
    return Scoreboard(workers, SLOTS, [len(DENIED_LABELS)] * len(LABELLED))


Increment = Callable[[float], None]


class Counter(Tally):
    """One slot of a worker's row, which has what was added once the row is settled.

    To write it there, by way of a memoryview, costs what thirty additions do here.
    """

    __slots__ = ("_is_settled", "_slot", "_unsettled", "value")

    def __init__(self, row: Row, slot: int, unsettled: "list[Counter]") -> None:
        self.value: float = row.slots[slot]  # a successor goes on where its predecessor ended
        self._slot = slot
        self._unsettled = unsettled
        self._is_settled = True

    def add(self, amount: float) -> None:
        self.value += amount
        if self._is_settled:
            self._is_settled = False
            self._unsettled.append(self)

    def settle(self, slots: "memoryview[float]") -> None:
        """Write it into the row."""
        slots[self._slot] = self.value
        self._is_settled = True


class Histogram:
    """The buckets of one histogram in one worker's row, and the sum of what was observed."""

    __slots__ = ("_bounds", "_counts", "_first", "_total")

    def __init__(self, bounds: Sequence[float], counters: list[Counter]) -> None:
        self._bounds = list(bounds)
        self._first = self._bounds[0]
        self._counts = counters[:-1]
        self._total = counters[-1]

    def observe(self, value: float) -> None:
        bucket = 0
        if value > self._first:  # which is where nearly all are
            for bound in self._bounds:
                if value <= bound:
                    break
                bucket += 1
        self._counts[bucket].add(1.0)
        self._total.add(value)


class Meter:
    """Counts into one worker's row.

    Of connections the row is right at the end of each round: the limit holds for all workers together, and what a
    worker takes with it when it is killed must add up. Everything else is right whenever it was settled.
    """

    def __init__(self, row: Row) -> None:
        self._row = row
        self._unsettled: list[Counter] = []
        self._unsettled_connections: list[Counter] = []
        self._denied, self._would_deny = (row.labelled(table) for table in range(len(LABELLED)))
        self._failed = self._by_reason(FAILED, Event.FAIL)
        self._closed = self._by_reason(CLOSED, Event.CLOSE)
        self._accepted = self._of_connections(ACCEPTED)
        self._active = self._of_connections(ACTIVE)
        self._opened = self._of_connections(OPENED)
        self.received = self._counter(BYTES, "received")
        self.sent = self._counter(BYTES, "sent")
        # For who is to know no more of the metrics than that there is something to count.
        self.shed: Increment = self._counter(SHED).add
        self.log_dropped: Increment = self._counter(LOG_DROPPED).add
        self.dns_cache_hit: Increment = self._counter(DNS_CACHE, "hit").add
        self.dns_cache_miss: Increment = self._counter(DNS_CACHE, "miss").add
        self.dns_cache_stale: Increment = self._counter(DNS_CACHE, "stale").add
        self.hello_seconds = self._histogram(HELLO_SECONDS)
        self.dns_seconds = self._histogram(DNS_SECONDS)
        self.connect_seconds = self._histogram(CONNECT_SECONDS)
        self.connection_seconds = self._histogram(CONNECTION_SECONDS)

    def _counter(self, metric: Metric, value: str = "") -> Counter:
        return Counter(self._row, slot_of(metric, value), self._unsettled)

    def _of_connections(self, metric: Metric, value: str = "") -> Counter:
        return Counter(self._row, slot_of(metric, value), self._unsettled_connections)

    def _by_reason(self, metric: Metric, event: Event) -> dict[Reason, Counter]:
        return {reason: self._of_connections(metric, reason.word) for reason in Reason if reason.event is event}

    def _histogram(self, metric: Metric) -> Histogram:
        first = _FIRST_SLOT[metric]
        counters = [Counter(self._row, slot, self._unsettled) for slot in range(first, first + metric.slots)]
        return Histogram(metric.buckets, counters)

    @property
    def active(self) -> float:
        """This worker's connections, at this moment."""
        return self._active.value

    @property
    def is_settled(self) -> bool:
        """Whether the row has everything that was counted, of connections or not."""
        return not self._unsettled and not self._unsettled_connections

    def settle_connections(self) -> None:
        """Write into the row, for all to see, what was counted of connections."""
        self._write(self._unsettled_connections)

    def settle(self) -> None:
        """Write everything that was counted."""
        self.settle_connections()
        self._write(self._unsettled)

    def _write(self, counters: list[Counter]) -> None:
        if not counters:
            return
        slots = self._row.slots
        for counter in counters:
            counter.settle(slots)
        counters.clear()

    def accepted(self) -> None:
        self._accepted.add(1.0)
        self._active.add(1.0)

    def opened(self) -> None:
        self._opened.add(1.0)

    def ended(self, reason: Reason, policy: str, rule: str) -> None:
        """One accepted connection is over, and counted as exactly one of denied, failed and closed."""
        self._active.add(-1.0)
        counter = self._closed.get(reason) or self._failed.get(reason)
        if counter is not None:
            counter.add(1.0)
        else:
            self._denied.add((policy, rule, reason.word))

    def would_deny(self, policy: str, rule: str, reason: Reason) -> None:
        """Monitor mode has let a connection pass."""
        self._would_deny.add((policy, rule, reason.word))

    # What a worker says of itself is in its row at once.

    def beat(self) -> None:
        """This worker is alive, now."""
        self._row.slots[slot_of(HEARTBEAT)] = time.monotonic()

    def in_force(self, generation: int) -> None:
        """This worker judges by `generation`."""
        self._row.slots[slot_of(GENERATION)] = float(generation)

    def serving(self, *, yes: bool) -> None:
        self._row.slots[slot_of(SERVING)] = float(yes)


@dataclass(frozen=True, slots=True)
class Sample:
    """One family, summed over all workers: its series, and for a histogram the counts of buckets and the sum."""

    metric: Metric
    series: tuple[tuple[Labels, float], ...]
    bucket_counts: tuple[float, ...] = ()
    total: float = 0.0


def read_samples(board: Scoreboard) -> Iterator[Sample]:
    """Every family of the catalogue, as it stands now."""
    for metric in CATALOGUE:
        if metric in INTERNAL:
            continue
        first = _FIRST_SLOT[metric]
        sums = [board.total(slot) for slot in range(first, first + metric.slots)]
        if metric.kind is Kind.HISTOGRAM:
            yield Sample(metric, (), tuple(sums[:-1]), sums[-1])
        elif metric.values:
            yield Sample(metric, tuple(((value,), count) for value, count in zip(metric.values, sums, strict=True)))
        elif metric.is_least:
            yield Sample(metric, (((), min(row.slots[first] for row in board.workers)),))
        else:
            yield Sample(metric, (((), sums[0]),))


def labelled_totals(board: Scoreboard, metric: Metric) -> Sequence[tuple[Labels, float]]:
    """The series of one of `LABELLED`, sorted."""
    totals = board.labelled_totals(LABELLED.index(metric)).items()
    return sorted((labels, count) for labels, count in totals if count or labels[0] != "other")
