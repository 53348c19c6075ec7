"""From a server name to addresses: a stub resolver with a cache, for one asyncio event loop.

The life of a question:

1. `cached` answers from memory, without a coroutine: nearly every connection ends here.
2. `resolve` joins the lookup of that name which is under way, or begins one. A lookup belongs to nobody: an asker that
   is cancelled leaves it to the others, and to the cache.
3. A lookup asks the name servers for A and AAAA at the same time. As soon as one has addresses the other gets
   RESOLUTION_DELAY, and then the askers go on; what comes later is still added to the cache. So a family that is slow
   or broken delays nobody, and fails no name that the other family has.

Names are absolute: search domains and ndots are for people at terminals. CNAMEs are followed within a reply, as a
recursive server gives them. What an address is good for is not decided here; see `guard`.
"""

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any, TypeVar

import dns.rdatatype

from sniproxy.config.model import ResolverConfig
from sniproxy.names import ServerName
from sniproxy.net.dns_cache import MAX_ADDRESSES, Answer, DnsCache, Entry, Failure, FailureKind, Outcome
from sniproxy.net.nameservers import Nameservers, cancelled, question_sockets, system_nameservers

_T = TypeVar("_T")

# RFC 8305 section 3. There only AAAA is waited for; here both are, as the second family is what dialling falls back on.
RESOLUTION_DELAY = 0.05

# Lookups under way, each of up to a few questions; a client chooses the names.
MAX_LOOKUPS = 1000

# IPv6 first where both are asked, as RFC 6724 prefers it.
_RECORD_TYPES = {
    "ipv4": (dns.rdatatype.A,),
    "ipv6": (dns.rdatatype.AAAA,),
    "both": (dns.rdatatype.AAAA, dns.rdatatype.A),
}


class ResolverObserver:
    """Told what the resolver does, for the metrics; this one keeps it to itself. No method may wait or raise."""

    def hit(self) -> None:
        """A question was answered from memory, be it by a failure."""

    def miss(self) -> None:
        """A question has to wait for a lookup."""

    def stale(self) -> None:
        """A question was answered by a stale answer."""

    def lookup(self, seconds: float, result: str) -> None:
        """A lookup has come to `ok`, or to the value of a FailureKind."""


class ResolutionError(Exception):
    """`name` has no addresses to give: `kind` for the outcome, `detail` for the log."""

    def __init__(self, name: ServerName, kind: FailureKind, detail: str) -> None:
        super().__init__(f"{name} cannot be resolved: {detail}")
        self.name = name
        self.kind = kind
        self.detail = detail


class Resolver:
    """Resolves names by the name servers of `settings`, or where it has none by those of the system.

    `clock` is monotonic, in seconds, and `sockets` how many there are for questions; tests bring their own.
    """

    def __init__(
        self,
        settings: ResolverConfig,
        observer: ResolverObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        sockets: int | None = None,
    ) -> None:
        self._settings = settings
        if sockets is None:
            sockets = question_sockets(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._nameservers = Nameservers(settings.nameservers or system_nameservers(), settings.timeout, sockets)
        self._observer = observer or ResolverObserver()
        self._clock = clock
        self._cache = DnsCache(settings.cache_size, settings.stale_ttl)
        self._lookups: dict[ServerName, asyncio.Task[Entry]] = {}
        self._late: dict[ServerName, asyncio.Task[Entry]] = {}  # what completes an answer
        self._tasks: set[asyncio.Task[Any]] = set()

    def cached(self, name: ServerName) -> Answer | None:
        """The answer in memory; None when the name has to be looked up, by `resolve`.

        Raises ResolutionError for a failure in memory. To be called in the event loop.
        """
        now = self._clock()
        entry = self._cache.find(name, now)
        if entry is None:
            return None
        if entry.recheck_at is None:
            self._observer.hit()
        else:
            self._observer.stale()
            if now >= entry.recheck_at:
                self._look_up_once(name)
        return _answer(name, entry)

    async def resolve(self, name: ServerName) -> Answer:
        """The answer in memory, or from the name servers. Raises ResolutionError."""
        if (answer := self.cached(name)) is not None:
            return answer
        self._observer.miss()
        lookup = self._look_up_once(name)
        if lookup is None:
            entry = self._cache.settle(name, _too_many_lookups(), self._clock())
        else:
            entry = await asyncio.shield(lookup)
        if entry.recheck_at is not None:
            self._observer.stale()
        return _answer(name, entry)

    async def complete(self, name: ServerName, answer: Answer) -> Answer:
        """`answer`, or where a family was not waited for when it was given, what both come to."""
        late = self._late.get(name)
        if late is None:
            return answer
        whole = (await asyncio.shield(late)).outcome
        return whole if isinstance(whole, Answer) else answer

    async def close(self) -> None:
        """End every lookup; who still waits for one is cancelled with it."""
        await cancelled(self._tasks)

    def _look_up_once(self, name: ServerName) -> asyncio.Task[Entry] | None:
        """The lookup of `name` that is under way, or a new one; None when there are too many."""
        if lookup := self._lookups.get(name):
            return lookup
        if len(self._lookups) >= MAX_LOOKUPS:
            return None
        lookup = self._lookups[name] = self._spawn(self._look_up(name))
        lookup.add_done_callback(lambda _: self._lookups.pop(name))
        return lookup

    async def _look_up(self, name: ServerName) -> Entry:
        started = self._clock()
        rdtypes = _RECORD_TYPES[self._settings.family]
        questions = [self._spawn(self._nameservers.ask(name, rdtype)) for rdtype in rdtypes]
        answered = await _in_time(questions)
        now = self._clock()
        outcome = self._combined([question.result() for question in answered])
        self._observer.lookup(now - started, "ok" if isinstance(outcome, Answer) else outcome.kind.value)
        if len(answered) < len(questions):
            self._add_the_late(name, questions, now)
        return self._cache.settle(name, outcome, now)

    def _add_the_late(self, name: ServerName, questions: Sequence[asyncio.Task[Outcome]], since: float) -> None:
        """Without it, a name would keep the faster family alone until it expires, reachable or not."""

        async def add() -> Entry:
            return self._cache.settle(name, self._combined(await asyncio.gather(*questions)), since)

        late = self._late[name] = self._spawn(add())
        late.add_done_callback(lambda _: self._late.pop(name) if self._late.get(name) is late else None)

    def _combined(self, outcomes: Sequence[Outcome]) -> Outcome:
        """What the families together come to.

        1. Addresses of any family are an answer, whatever became of the other.
        2. NXDOMAIN is about the name, so it holds for every family (RFC 8020). But only after each had its
           say: there are servers that give it for AAAA where A exists (RFC 4074 section 4.2).
        3. A failure leaves open whether there are addresses.
        4. The name exists, and has none.
        """
        settings = self._settings
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        if found := [answer for answer in answers if answer.addresses]:
            ttl = min(answer.ttl for answer in found)
            return Answer(_alternating(found), min(max(ttl, settings.min_ttl), settings.max_ttl))
        denials = [failure for failure in failures if failure.kind is FailureKind.NXDOMAIN]
        failure = next(iter((*denials, *failures)), None) or _no_data(answers)
        if failure.kind is FailureKind.NXDOMAIN:
            return replace(failure, ttl=min(failure.ttl, settings.negative_ttl))
        return failure

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """A task that `close` ends. The loop itself holds tasks by weak references only."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _answer(name: ServerName, entry: Entry) -> Answer:
    outcome = entry.outcome
    if isinstance(outcome, Failure):
        raise ResolutionError(name, outcome.kind, outcome.detail)
    return outcome


def _addresses(outcome: Outcome) -> tuple[str, ...]:
    return outcome.addresses if isinstance(outcome, Answer) else ()


async def _in_time(questions: Sequence[asyncio.Task[Outcome]]) -> list[asyncio.Task[Outcome]]:
    """Those that are answered when it is time to go on, in the order asked; RFC 8305 section 3."""
    done, waiting = await asyncio.wait(questions, return_when=asyncio.FIRST_COMPLETED)
    if waiting:
        has_addresses = any(_addresses(question.result()) for question in done)
        await asyncio.wait(waiting, timeout=RESOLUTION_DELAY if has_addresses else None)
    return [question for question in questions if question.done()]


def _alternating(answers: Iterable[Answer]) -> tuple[str, ...]:
    """The families in turn (RFC 8305 section 4), so that whoever takes the first few has some of each."""
    turns = zip_longest(*(answer.addresses for answer in answers))
    return tuple(address for address in chain.from_iterable(turns) if address)[:MAX_ADDRESSES]


def _no_data(answers: Iterable[Answer]) -> Failure:
    ttl = min(answer.ttl for answer in answers)
    return Failure(FailureKind.NXDOMAIN, "the name exists and has no addresses (NODATA)", ttl)


def _too_many_lookups() -> Failure:
    return Failure(FailureKind.FAILED, f"{MAX_LOOKUPS} lookups are under way", ttl=0)
