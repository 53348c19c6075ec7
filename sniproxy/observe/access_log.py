"""The access log: what happened to each connection, told to every sink that wants to know it.

What is to be told waits for the next beat, to be told and written together: the first line fetches the code that makes
lines into the CPU's nearest caches, and the others have it there. Formats are in `lines` and `text_lines`, and what a
sink does with a line in `sinks`.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from sniproxy.config.model import AccessLog as Settings
from sniproxy.net.clock import Clock, call_on_beat
from sniproxy.observe.lines import JsonLines, LineFormat, LogIdentity, level_of
from sniproxy.observe.sinks import MAX_BATCH, Sink, open_sink
from sniproxy.observe.text_lines import EnvoyLines, NginxLines
from sniproxy.outcome import Event, Reason
from sniproxy.record import Record
from sniproxy.usual import OPEN

_log = structlog.get_logger()


def new_format(settings: Settings, identity: LogIdentity, process: str) -> LineFormat:
    """What turns records into the lines of one log. `process` begins each connection's id."""
    if settings.format == "nginx":
        return NginxLines(settings.template, process)
    return EnvoyLines() if settings.format == "envoy" else JsonLines(identity, process)


# So many are told without waiting for the beat, which would keep clients waiting for longer the more it has to tell.
_ENOUGH: Final = 16

# Refused when they were open already.
_REFUSED_LATE = {Reason.POLICY_CHANGED, Reason.SNI_CHANGED}


class _Outlet:
    """A sink, its format, and which lines it wants."""

    def __init__(self, settings: Settings, sink: Sink, form: LineFormat) -> None:
        self.sink = sink
        self.form = form
        self.events = settings.events
        self._shares = {Event.OPEN: settings.sample.open, Event.CLOSE: settings.sample.close}
        self._is_sampled = min(self._shares.values()) < 1.0

    def tell(self, record: Record, event: Event, now: float) -> None:
        """Add the line of `event` to the sink, unless a sample leaves it out."""
        if self._is_sampled and not self._keeps(record, event):
            return
        self.sink.add(self.form.line(record, event, now), level_of(record, event))
        if self.sink.waiting >= MAX_BATCH:
            self.sink.flush()

    def _keeps(self, record: Record, event: Event) -> bool:
        """Whether the sample has this line. What was refused, or would be, is always in it.

        Connections are spread evenly by their numbers, so that it is known beforehand which ones it will be; and of
        two shares the larger one has every connection of the smaller: what has a `close` line has its `open` line.
        """
        share = self._shares.get(event, 1.0)
        if share >= 1.0 or record.dry_run is not None or record.audit is not None:
            return True
        if event is Event.CLOSE and record.reason in _REFUSED_LATE:
            return True
        return place_of(record.number) < share


def place_of(number: int) -> float:
    """A place from 0 to 1 for a number; any run of numbers is spread evenly (Knuth 6.4: Fibonacci hashing)."""
    return (number * 2654435769 & 0xFFFFFFFF) / 4294967296.0


class AccessLog:
    """A worker's log, flushed at the beats of its clock.

    A sink that cannot be opened at the start drops its lines until it can be: no connection waits for a log, nor for
    a worker that is to have one.
    """

    def __init__(
        self,
        settings: Sequence[Settings],
        identity: LogIdentity,
        process: str,
        on_dropped: Callable[[float], None],
        clock: Clock,
    ) -> None:
        self._process = process
        self._on_dropped = on_dropped
        self._clock = clock
        self._is_due = False
        self._untold: list[tuple[Record, Event, float]] = []
        self._sinks: dict[str, Sink] = {}
        self._change(settings, identity, may_come=True)

    @property
    def sinks(self) -> list[Sink]:
        return list(self._sinks.values())

    def change(self, settings: Sequence[Settings], identity: LogIdentity) -> None:
        """Go on like this. The lines so far go where they were to go. Raises OSError, and goes on as before."""
        self._tell()
        self._change(settings, identity, may_come=False)

    def _change(self, settings: Sequence[Settings], identity: LogIdentity, *, may_come: bool) -> None:
        sinks: dict[str, Sink] = {}
        try:
            for each in settings:
                sinks[each.path] = self._sinks.get(each.path) or open_sink(
                    each.path, self._on_dropped, may_come=may_come
                )
        except OSError:
            _close_all(sinks, but=self._sinks)
            raise
        _close_all(self._sinks, but=sinks)
        self._sinks = sinks
        outlets = [_Outlet(each, sinks[each.path], new_format(each, identity, self._process)) for each in settings]
        self._wanting = {event: [one for one in outlets if event.value in one.events] for event in Event}

    def write(self, record: Record, event: Event, now: float) -> None:
        """Tell of `event`, which is `now` by the record's clock, at the next beat at the latest."""
        if not self._wanting[event]:
            return
        self._untold.append((record, event, now))
        if not self._is_due:
            self._is_due = True
            call_on_beat(self._clock, self._flush)
        if len(self._untold) >= _ENOUGH and event is not OPEN:  # whose client waits for what comes next
            self._tell()

    def _tell(self) -> None:
        """Make lines of what waits."""
        for record, event, now in self._untold:
            for outlet in self._wanting[event]:
                try:
                    outlet.tell(record, event, now)
                except Exception:
                    # A fault of ours costs one line of one log, and neither the others nor what comes after them.
                    _log.exception("a line of the access log is lost", path=outlet.sink.path, connection=record.number)
                    self._on_dropped(1)
        self._untold.clear()

    def _flush(self) -> None:
        self._is_due = False
        self._tell()
        sinks = self.sinks
        for sink in sinks:
            sink.flush()
        self._is_due = any(sink.waiting or sink.losses.may_end for sink in sinks)
        if self._is_due:
            call_on_beat(self._clock, self._flush)

    def reopen(self) -> None:
        """Go on in new files where the old ones were renamed, as logrotate does it."""
        self._tell()
        for sink in self._sinks.values():
            try:
                if sink.reopen():
                    _log.info("access log reopened", path=sink.path)
            except OSError as error:
                _log.error("cannot reopen the access log; the old one goes on", path=sink.path, error=str(error))

    def close(self) -> None:
        self._tell()
        _close_all(self._sinks, but={})


def _close_all(sinks: dict[str, Sink], *, but: dict[str, Sink]) -> None:
    for path, sink in sinks.items():
        if path not in but:
            sink.close()


def write_worker_lost(settings: Sequence[Settings], identity: LogIdentity, worker: int, connections: int) -> None:
    """Tell of a worker's end wherever the ends of its connections would have been told."""
    for each in settings:
        if "close" in each.events:
            with contextlib.suppress(OSError):  # what we could write once
                sink = open_sink(each.path, lambda _: None)
                sink.add(new_format(each, identity, "supervisor").worker_lost(worker, connections), "error")
                sink.close()
