"""The limits of rules: how many connections a rule has at once, and how many new ones a second, in all workers.

What is limited, a rule or one principal under a rule, has a bucket in memory that all workers share. It holds how
many connections each worker has, and what the rate has used of its burst. A bucket is known by its policy, rule and
principal, never by the numbers of the limits: a reload that changes those goes on with what is in use.

Exact: a connection enters under a lock. It is a record lock of fcntl(2), for those die with their process, wherever
it was killed. Every write on the way leaves the bucket valid, and at worst stricter than it was. To leave takes no
lock, for a worker's count is its own.

Bounded: a bucket has its place in one set of a few, found by a hash with a key of this run, so that nobody can aim
at another's set. One without connections that has used nothing of its burst says nothing, and is given to the next who
asks. With none to give the connection is refused. Rules and principals have tables of their own: however many
principals come, the limits of a rule have their room.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Callable
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

from sniproxy.identity.spiffe import UNKNOWN, Identity
from sniproxy.policy.model import Ground, Per, RuleLimits

Clock = Callable[[], float]

# 8,192 buckets for rules, and as many for principals. With 32 to a set, one set in 10,000 is full where half of all
# buckets are in use (Poisson), and looking through a set is one search in 512 bytes.
_SETS = 256
_BUCKETS_OF_A_SET = 32
_KEY = 16  # bytes: two of a billion keys are the same in one run of 10**20
_FLOAT = 8
_COUNT = 4


class OverLimit(NamedTuple):
    """No: `detail` says in one sentence which limit of which rule is reached, and whose."""

    detail: str


class _Reached(Enum):
    """Which limit a connection found reached."""

    CONNECTIONS = "connections"
    RATE = "rate"
    TABLE = "table"


class Lease:
    """One connection's place under a limit, until it leaves."""

    __slots__ = ("_bucket", "_counts")

    def __init__(self, counts: "memoryview[int]", bucket: int) -> None:
        self._counts = counts
        self._bucket = bucket

    def leave(self) -> None:
        """The connection is over. To be called once, by the worker that let it in."""
        self._counts[self._bucket] -= 1


class LimitTable:
    """The buckets of every limit. Made by the supervisor before the first fork.

    With `sets` of the buckets for rules, and as many for principals.
    """

    def __init__(self, workers: int, sets: int = _SETS) -> None:
        self.sets = sets
        buckets = 2 * sets * _BUCKETS_OF_A_SET
        sizes = [buckets * _KEY, *[buckets * _FLOAT] * 3, *[buckets * _COUNT] * workers]
        memory = memoryview(mmap.mmap(-1, sum(sizes)))
        parts = [memory[sum(sizes[:number]) : sum(sizes[: number + 1])] for number in range(len(sizes))]
        self.keys = parts[0]
        # How much of the burst was used at the time `since`, and when all of it will be there again.
        self.used, self.since, self.full_at = (part.cast("d") for part in parts[1:4])
        self.counts = [part.cast("I") for part in parts[4:]]  # of each worker, which alone writes its own
        self.secret = os.urandom(_KEY)
        # Nothing but the locks is in this file, one byte a set. The memory is not a mapping of it: record locks go
        # when a process closes any descriptor of the file, and a mapping has one of its own.
        self.locks = os.memfd_create("limits")

    def limiter(self, worker: int, clock: Clock = time.monotonic) -> "Limiter":
        """What worker number `worker` asks. The clock is one that all workers share, in seconds."""
        return Limiter(self, worker, clock)

    def close(self) -> None:
        """Give the locks back. A table that lives as long as its process needs no closing."""
        os.close(self.locks)

    def clear(self, worker: int) -> None:
        """A worker has died: forget the connections that it held. What they used of a rate stays used."""
        counts = self.counts[worker]
        for bucket, count in enumerate(counts):
            if count:
                counts[bucket] = 0


class Limiter:
    """Lets one worker's connections in, as far as the limits of their rules go."""

    def __init__(self, table: LimitTable, worker: int, clock: Clock) -> None:
        self._table = table
        self._own = table.counts[worker]
        self._clock = clock

    def enter(self, ground: Ground, limits: RuleLimits, identity: Identity) -> Lease | OverLimit:
        """A place for one more connection that the rule `ground` allows, or why there is none.

        With limits for each principal, all callers without identity are one.
        """
        locks = self._table.locks
        key = _key(self._table.secret, ground, limits.per, identity)
        number = self._set_of(key, limits.per)
        fcntl.lockf(locks, fcntl.LOCK_EX, 1, number)
        try:
            entered = self._enter(number, key, limits)
        finally:
            fcntl.lockf(locks, fcntl.LOCK_UN, 1, number)
        return entered if isinstance(entered, Lease) else OverLimit(_sentence(entered, ground, limits, identity))

    def _set_of(self, key: bytes, per: Per) -> int:
        """The sets of rules come first, then those of principals."""
        number = int.from_bytes(key[:4], "little") % self._table.sets
        return number if per is Per.RULE else self._table.sets + number

    def _enter(self, number: int, key: bytes, limits: RuleLimits) -> "Lease | _Reached":
        """The same in set `number`, which is locked."""
        now = self._clock()
        bucket = self._find(number, key, now)
        if bucket is None:
            return _Reached.TABLE
        if limits.connections and self._connections(bucket) >= limits.connections:
            return _Reached.CONNECTIONS
        if limits.rate and not self._take(bucket, limits, now):
            return _Reached.RATE
        self._own[bucket] += 1
        return Lease(self._own, bucket)

    def _find(self, number: int, key: bytes, now: float) -> int | None:
        """The bucket of `key` in set `number`, or one that is given to it; None if every other is in use."""
        table = self._table
        first = number * _BUCKETS_OF_A_SET
        bucket = _position(bytes(table.keys[first * _KEY : (first + _BUCKETS_OF_A_SET) * _KEY]), key)
        if bucket is not None:
            return first + bucket
        for candidate in range(first, first + _BUCKETS_OF_A_SET):
            if table.full_at[candidate] <= now and not self._connections(candidate):
                table.used[candidate] = 0.0
                # The key comes last: until then the bucket is its former owner's, who has used nothing.
                table.keys[candidate * _KEY : (candidate + 1) * _KEY] = key
                return candidate
        return None

    def _connections(self, bucket: int) -> int:
        return sum([counts[bucket] for counts in self._table.counts])

    def _take(self, bucket: int, limits: RuleLimits, now: float) -> bool:
        """Take one of the burst, to which the rate has added since it was last used; False if there is none."""
        table, burst = self._table, max(1, limits.burst)
        refilled = max(0.0, now - table.since[bucket]) * limits.rate
        # A burst that a reload made smaller is used up at most.
        used = max(0.0, min(table.used[bucket], burst) - refilled) + 1.0
        if used > burst:
            return False
        # In this order, for a worker may be killed between any two: what is left counts more as used, and never less.
        table.full_at[bucket] = now + used / limits.rate
        table.since[bucket] = now
        table.used[bucket] = used
        return True


def _key(secret: bytes, ground: Ground, per: Per, identity: Identity) -> bytes:
    """What tells a bucket from all others: lengths keep two texts from being read as another two."""
    principal = "" if per is Per.RULE or identity is UNKNOWN else str(identity)
    text = f"{len(ground.policy)}:{ground.policy}{len(ground.rule)}:{ground.rule}{principal}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY, key=secret).digest()


def _position(keys: bytes, key: bytes) -> int | None:
    """Which of `keys`, end to end, is `key`."""
    at = keys.find(key)
    while at % _KEY and at >= 0:  # the end of one and the beginning of the next
        at = keys.find(key, at + 1)
    return at // _KEY if at >= 0 else None


def _sentence(reached: _Reached, ground: Ground, limits: RuleLimits, identity: Identity) -> str:
    whose = ""
    if limits.per is Per.PRINCIPAL:
        whose = " for callers without identity" if identity is UNKNOWN else f" for {identity}"
    match reached:
        case _Reached.CONNECTIONS:
            number = "1 connection" if limits.connections == 1 else f"{limits.connections} connections"
            return f"rule {ground.rule} has its {number}{whose}"
        case _Reached.RATE:
            return f"rule {ground.rule} is over its rate of {limits.rate:g}/s{whose}"
        case _Reached.TABLE:
            return f"rule {ground.rule} has limits, and the table of all limits in use has no room{whose}"
