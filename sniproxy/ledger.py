"""The ledger: begins a record for each accepted connection and tells its end exactly once, to log and metrics."""

from time import monotonic
from typing import Final

from sniproxy.observe.access_log import AccessLog
from sniproxy.observe.metrics import Meter
from sniproxy.observe.recent import Recent
from sniproxy.outcome import Reason
from sniproxy.record import Record
from sniproxy.usual import OPEN

# Compiled, a constant of the module's own is at hand, and what it imports from C is looked up by name at each call.
_now: Final = monotonic


class Ledger:
    """What the story of a connection reports to."""

    def __init__(self, log: AccessLog, meter: Meter, recent: Recent) -> None:
        self._log = log
        self.meter = meter
        self.recent = recent
        self._number = 0

    def begin(self, source_ip: str) -> Record:
        self._number += 1
        self.meter.accepted()
        return Record(self._number, source_ip, _now())

    def hello_read(self, record: Record) -> None:
        self.meter.hello_seconds.observe(_now() - record.began)

    def opened(self, record: Record, connecting: float) -> None:
        """The upstream is connected; `connecting` is when dialling began."""
        record.opened = now = _now()
        self.meter.opened()
        self.meter.connect_seconds.observe(now - connecting)
        self._log.write(record, OPEN, now)
        self.recent.opened(record)

    def finish(self, record: Record) -> None:
        """The one end of a record: one line, and one count."""
        now = _now()
        reason = record.reason
        self.meter.ended(reason, record.ground.policy, record.ground.rule)
        if record.dry_run is not None and record.dry_run.reason is not None:
            ground = record.dry_run.ground
            self.meter.would_deny(ground.policy, ground.rule, record.dry_run.reason)
        if record.opened:
            self.meter.connection_seconds.observe(now - record.began)
        self._log.write(record, reason.event, now)
        self.recent.ended(record, now)

    def shed(self, source_ip: str) -> None:
        """A connection that was accepted only to be closed, for want of descriptors."""
        record = self.begin(source_ip)
        self.meter.shed(1)
        record.end(Reason.CONNECTION_LIMIT, "the process has no descriptors left")
        self.finish(record)
