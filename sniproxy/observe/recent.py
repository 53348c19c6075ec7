"""What a worker remembers of its connections, for people to look at: the newest, and the most frequent.

On the way of a connection it costs three places in lists. Once a second, if anything happened, the worker writes it all
on its bulletin, where the admin process reads it. Nothing that a client sends makes it grow: there are so many entries
and no more, each text in them is cut, and what is too much for the bulletin is left out, oldest and rarest first. A
successor goes on with the frequencies of a worker that died, as it does with its counts.
"""

import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import orjson

from sniproxy.config.units import host_and_port
from sniproxy.observe import bulletin
from sniproxy.observe.lines import detail_of
from sniproxy.observe.scoreboard import Row
from sniproxy.observe.sketch import KEPT, Counted, Sketch, merged
from sniproxy.outcome import Event
from sniproxy.record import Record
from sniproxy.usual import CLOSE, DENY, OPEN

LATEST = 50  # connections of each event

_MAX_NAME: Final = 255  # characters: a DNS name has 253
_MAX_TEXT: Final = 300

_EVENTS = (Event.OPEN, Event.DENY, Event.FAIL)

# What is counted by frequency, under the names that the page's JSON has for it.
_TOPS = ("openedNames", "openedPrincipals", "refusedNames", "refusedPrincipals")

Entry = dict[str, Any]


class Recent:
    """The memory of one worker, with the bulletin of its row."""

    def __init__(self, row: Row) -> None:
        self._memory = row.bulletin
        self._opened: deque[Record] = deque(maxlen=LATEST)
        self._denied: deque[tuple[float, Record]] = deque(maxlen=LATEST)
        self._failed: deque[tuple[float, Record]] = deque(maxlen=LATEST)
        self._opened_names, self._opened_principals = Sketch(), Sketch()
        self._denied_names, self._denied_principals = Sketch(), Sketch()
        self._is_news = False
        before = _read(row)
        for name, sketch in zip(_TOPS, self._sketches(), strict=True):
            top = before.get(name, [])
            sketch.merge({value: count for value, count, _ in top}, top[0][2] if top else 0)

    def _sketches(self) -> tuple[Sketch, ...]:
        return self._opened_names, self._opened_principals, self._denied_names, self._denied_principals

    def opened(self, record: Record) -> None:
        """A connection was allowed and is connected."""
        self._opened.append(record)
        self._opened_names.add(record.server_name)
        self._opened_principals.add(record.identity)
        self._is_news = True

    def ended(self, record: Record, now: float) -> None:
        """A connection is over, `now` by the record's clock. Those that were served were told of when they opened."""
        # The log has its line: what stays here has a bound.
        record.server_name = record.server_name[:_MAX_NAME]
        record.detail = record.detail[:_MAX_TEXT]
        event = record.reason.event
        if event is CLOSE:
            return
        self._is_news = True
        if event is DENY:
            self._denied.append((now, record))
            self._denied_names.add(record.server_name)
            self._denied_principals.add(record.identity)
        else:
            self._failed.append((now, record))

    def publish(self) -> None:
        """Write it on the bulletin, if there is anything new."""
        if not self._is_news:
            return
        self._is_news = False
        since = time.time() - time.monotonic()
        latest, most = LATEST, KEPT
        while len(text := self._text(since, latest, most)) > bulletin.ROOM:
            latest, most = latest // 2, most // 2
        bulletin.write(self._memory, text)

    def _text(self, since: float, latest: int, most: int) -> bytes:
        said: dict[str, object] = {}
        opened = [(record.opened, record) for record in self._opened]
        for event, records in zip(_EVENTS, (opened, self._denied, self._failed), strict=True):
            newest = list(records)[-latest:] if latest else []
            said[event.value] = [_entry(record, event, since + now) for now, record in newest]
        for name, sketch in zip(_TOPS, self._sketches(), strict=True):
            said[name] = [list(counted) for counted in sketch.top(most)]
        return orjson.dumps(said)


def _entry(record: Record, event: Event, when: float) -> Entry:
    ground = record.ground
    dry_run = record.dry_run
    return {
        "time": round(when, 3),
        "event": event.value,
        "sni": record.server_name,
        "principal": str(record.identity),
        "sourceIp": record.source_ip,
        "destination": host_and_port(ip, record.destination_port) if (ip := record.destination_ip) else "",
        "reason": "" if event is OPEN else record.reason.word,
        "detail": detail_of(record, event)[:_MAX_TEXT],
        "policy": ground.policy[:_MAX_TEXT],
        "rule": ground.rule[:_MAX_TEXT],
        "file": ground.file[-_MAX_TEXT:],
        "line": ground.line,
        "wouldDeny": dry_run is not None and dry_run.would_deny,
    }


def _read(row: Row) -> dict[str, list[Any]]:
    text = bulletin.read(row.bulletin)
    said: dict[str, list[Any]] = orjson.loads(text) if text else {}
    return said


class Remembered:
    """What all workers remember, read once."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._said = [_read(row) for row in rows]

    def latest(self, event: Event, most: int = LATEST) -> list[Entry]:
        """The newest connections that were opened, denied or failed; newest first."""
        entries = [
            {"worker": worker, **entry} for worker, said in enumerate(self._said) for entry in said.get(event.value, ())
        ]
        return sorted(entries, key=lambda entry: -entry["time"])[:most]

    def top(self, most: int) -> dict[str, list[Counted]]:
        """The most frequent names and principals, of what was opened and of what was refused."""
        return {
            name: merged(([Counted(*counted) for counted in said.get(name, ())] for said in self._said), most)
            for name in _TOPS
        }
