"""What DNS said about names, for as long as it may be believed.

A name has at most one entry: what the last lookup came to. It is in one of three states.

- Fresh: an answer, or a failure, whose time to live has not run out. It is what askers get.
- Spent: its time has run out. It is nothing to go by, and stays only because an answer may yet be needed.
- Stale: a spent answer that came back to life because the name servers failed when it was asked for again (RFC 8767).
  Askers get it at once, and the name servers are tried again behind their backs now and then.

Only silence and errors bring an answer back to life. When a name server says that the name is gone, it is gone.

The cache reads no clock and asks no one: the caller says what time it is, in seconds of one monotonic clock. It holds
`size` names, and forgets the one that was not asked for the longest.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from sniproxy.names import ServerName

# RFC 8767 section 5: a failing server is tried again no more often than every 30 seconds, while stale data serves.
STALE_RECHECK = 30.0

# RFC 9520 section 3.2: failures are remembered for at least 1 second, so that a dead server is not hammered.
FAILURE_TTL = 1.0

# Of one answer. The guard keeps fewer; this bounds what a cache entry weighs.
MAX_ADDRESSES = 64


class FailureKind(Enum):
    """Why a name has no addresses. NXDOMAIN includes the name that exists and has none (NODATA)."""

    NXDOMAIN = "nxdomain"
    TIMEOUT = "timeout"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """Addresses in the order to try them in, good for `ttl` seconds from when they came."""

    addresses: tuple[str, ...]
    ttl: float


@dataclass(frozen=True, slots=True)
class Failure:
    """No addresses: of which kind, the sentence for the log, and for how many seconds not to ask again."""

    kind: FailureKind
    detail: str
    ttl: float


Outcome = Answer | Failure


@dataclass(frozen=True, slots=True)
class Entry:
    """One name's outcome, and until when it is what; `recheck_at` is set for a stale answer only."""

    outcome: Outcome
    usable_until: float
    stale_until: float
    recheck_at: float | None = None


class DnsCache:
    """Entries by name, the least recently used one first. `stale_ttl` is counted from expiry, in seconds."""

    def __init__(self, size: int, stale_ttl: float) -> None:
        self._size = size
        self._stale_ttl = stale_ttl
        self._entries: OrderedDict[ServerName, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: ServerName, now: float) -> Entry | None:
        """The entry of `name` if it is fresh or stale; None when there is nothing to go by."""
        entry = self._entries.get(name)
        if entry is None or now >= entry.usable_until:
            return None
        self._entries.move_to_end(name)
        return entry

    def settle(self, name: ServerName, outcome: Outcome, now: float) -> Entry:
        """Keep what a lookup came to. Returns the entry to go by: after a failure, a stale answer if any."""
        entry = self._revived(name, outcome, now) or self._new(outcome, now)
        if now < max(entry.usable_until, entry.stale_until):
            self._entries[name] = entry
            self._entries.move_to_end(name)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        return entry

    def _new(self, outcome: Outcome, now: float) -> Entry:
        expiry = now + outcome.ttl
        return Entry(outcome, expiry, expiry + self._stale_ttl if isinstance(outcome, Answer) else expiry)

    def _revived(self, name: ServerName, outcome: Outcome, now: float) -> Entry | None:
        if isinstance(outcome, Answer) or outcome.kind is FailureKind.NXDOMAIN:
            return None
        old = self._entries.get(name)
        if old is None or isinstance(old.outcome, Failure) or now >= old.stale_until:
            return None
        return Entry(old.outcome, old.stale_until, old.stale_until, now + STALE_RECHECK)
