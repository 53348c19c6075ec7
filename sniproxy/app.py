"""One worker: its event loop, what it is built of, and how it stops.

`run_worker` is the composition root: the only place that knows every part. It builds them, accepts until it is told
to drain (SIGTERM, or the end of the supervisor), lets live connections finish for a while, and returns.

Meanwhile it takes each new generation of config and policy between two events, so that no connection sees half of it.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from sniproxy.config.model import Config, Listener
from sniproxy.config.units import Network
from sniproxy.connection import Proxy, Snapshot
from sniproxy.identity.evidence import TlvTypes
from sniproxy.identity.spiffe import UNKNOWN
from sniproxy.intake import Door, HeaderMode
from sniproxy.ledger import Ledger
from sniproxy.limits import LimitTable
from sniproxy.live import LiveConnections
from sniproxy.net.calls import Socket
from sniproxy.net.clock import call_on_beat
from sniproxy.net.event_loop import EventLoop
from sniproxy.net.guard import Endpoint, Guard
from sniproxy.net.listener import Acceptor, Peer, Trust
from sniproxy.net.pipes import PipePool
from sniproxy.net.readiness import Readiness
from sniproxy.net.resolver import Resolver, ResolverObserver
from sniproxy.net.strand import Strand
from sniproxy.net.timers import TimerWheel
from sniproxy.observe.access_log import AccessLog
from sniproxy.observe.lines import LogIdentity
from sniproxy.observe.metrics import ACTIVE, Meter, slot_of
from sniproxy.observe.recent import Recent
from sniproxy.observe.scoreboard import Scoreboard, UndecidedCounts
from sniproxy.policy.engine import Engine
from sniproxy.processes import heed_no_more
from sniproxy.reload.channel import Inbox
from sniproxy.reload.generation import Generation

_log = structlog.get_logger()

# For all workers together: well within what pipe-user-pages-soft gives an unprivileged user, and two descriptors each.
_PIPES = 96

_HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """Everything that a worker inherits from the supervisor."""

    number: int
    generation: Generation
    inbox: Inbox  # where the next ones come from
    sockets: Sequence[socket.socket]  # of the config's listeners, in their order
    own_endpoints: Sequence[Endpoint]  # where this proxy listens
    board: Scoreboard
    limits: LimitTable
    lifeline: int  # readable, at its end, when the supervisor is gone


def run_worker(task: WorkerTask) -> None:
    """Serve until told to stop. To be called in a process of its own."""
    # Connections make no cycles; what is collected is rare garbage of errors, so look for it rarely.
    gc.set_threshold(50_000, 20, 100)
    structlog.contextvars.bind_contextvars(worker=task.number)
    loop = EventLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_Worker(task, loop).run())


class _Worker:
    _config: Config  # what is in force, and what was made from it
    _connection_limit: int
    _doors: list[Door]
    _log: AccessLog
    _proxy: Proxy

    def __init__(self, task: WorkerTask, loop: EventLoop) -> None:
        self._task = task
        self._loop = loop
        self._row = task.board.workers[task.number]
        self._meter = Meter(self._row)
        self._recent = Recent(self._row)
        self._undecided = UndecidedCounts(task.board.workers, self._row)
        self._connections: set[Strand] = set()
        self._all_ended: asyncio.Event | None = None  # while connections are drained
        self._draining = asyncio.Event()
        self._others = [row.slots for row in task.board.workers if row is not self._row]
        self._active = slot_of(ACTIVE)
        self._is_settling = False  # at the next beat
        self._process = f"{os.getpid():x}-{os.urandom(3).hex()}"
        self._retiring: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop, task, config = self._loop, self._task, self._task.generation.config
        loop.add_signal_handler(signal.SIGTERM, self._draining.set)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_log)
        loop.add_reader(task.lifeline, self._draining.set)

        rounds = loop.rounds
        readiness = Readiness(rounds, TimerWheel(rounds, rounds.on_fault))
        pipes = PipePool(max(4, _PIPES // len(task.board.workers)))
        self._log = AccessLog(config.access_log, _log_identity(config), self._process, self._meter.log_dropped, rounds)
        snapshot = Snapshot(config, _engine(task.generation), self._guard(config))
        ledger = Ledger(self._log, self._meter, self._recent)
        live = LiveConnections(loop)
        limiter = task.limits.limiter(task.number)
        resolver = self._resolver(config)
        self._proxy = Proxy(snapshot, resolver, readiness, pipes, ledger, self._undecided, limiter, live)
        self._settle(task.generation)
        task.inbox.watch(loop, self._change_to)

        rounds.on_end = self._end_round
        acceptors = [self._acceptor(number, sock) for number, sock in enumerate(task.sockets)]
        for acceptor in acceptors:
            acceptor.start()
        self._meter.serving(yes=True)
        beat = asyncio.create_task(self._heartbeat())
        try:
            await self._draining.wait()
            loop.remove_reader(task.lifeline)
            self._meter.serving(yes=False)
            for acceptor in acceptors:
                acceptor.drain()
            await self._drain(self._config.timeouts.drain)
        finally:
            loop.remove_reader(task.inbox.fileno())
            beat.cancel()
            await self._proxy.resolver.close()
            self._log.close()
            self._meter.settle()
            pipes.close()
            heed_no_more()

    def _acceptor(self, number: int, sock: socket.socket) -> Acceptor:
        proxy, turns, on_end = self._proxy, self._loop.rounds.turns, self._ended

        def serve(downstream: Socket, peer: Peer) -> None:
            story = proxy.serve(downstream, peer, self._doors[number], has_room=self._has_room())
            connection = Strand(story, turns, on_end)
            self._connections.add(connection)
            connection.run()

        return Acceptor(sock, proxy.readiness, serve, lambda peer: proxy.ledger.shed(peer.ip))

    # Generations.

    def _change_to(self, generation: Generation) -> None:
        """Take a generation, whole and at once."""
        before, config, proxy = self._config, generation.config, self._proxy
        if config.upstream.resolver != before.upstream.resolver:
            self._retire(proxy.resolver, before.upstream.resolver.timeout)
            proxy.resolver = self._resolver(config)
        if (config.access_log, config.policy.gateway) != (before.access_log, before.policy.gateway):
            self._change_log(config)
        # A guard remembers what it has judged: one that would be the same stays.
        guard = proxy.snapshot.guard if _networks(config) == _networks(before) else self._guard(config)
        proxy.adopt(Snapshot(config, _engine(generation), guard))
        self._settle(generation)

    def _settle(self, generation: Generation) -> None:
        """What is read from the config in force, and the word that it is."""
        config = self._config = generation.config
        self._connection_limit = generation.connection_limit
        self._doors = [_door(listener) for listener in config.listeners]
        self._undecided.limit = config.limits.undecided_per_source
        self._meter.in_force(generation.number)
        self._task.inbox.confirm(generation.number)

    def _guard(self, config: Config) -> Guard:
        return Guard(*_networks(config), self._task.own_endpoints)

    def _resolver(self, config: Config) -> Resolver:
        return Resolver(config.upstream.resolver, _DnsObserver(self._meter))

    def _retire(self, resolver: Resolver, timeout: float) -> None:
        """Close a resolver once nobody can wait for it: its lookups end within their timeout."""

        async def close_later() -> None:
            await asyncio.sleep(2 * timeout)
            await resolver.close()

        retiring = asyncio.create_task(close_later())
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    def _change_log(self, config: Config) -> None:
        try:
            self._log.change(config.access_log, _log_identity(config))
        except OSError as error:
            _log.error("cannot write the new access log; the old one goes on", error=str(error))

    def _reopen_log(self) -> None:
        self._log.reopen()

    def _end_round(self) -> None:
        """Tell what was counted: of connections now, and of everything else at the next beat."""
        self._meter.settle_connections()
        if not self._is_settling and not self._meter.is_settled:
            self._is_settling = True
            call_on_beat(self._loop.rounds, self._settle_counts)

    def _settle_counts(self) -> None:
        self._is_settling = False
        self._meter.settle()

    # Connections.

    def _ended(self, connection: Strand) -> None:
        self._connections.discard(connection)
        if self._all_ended is not None and not self._connections:
            self._all_ended.set()

    def _has_room(self) -> bool:
        """Whether all workers together hold fewer connections than the limit."""
        active = self._meter.active
        for slots in self._others:
            active += slots[self._active]
        return active < self._connection_limit

    async def _drain(self, seconds: float) -> None:
        """Let live connections finish, then end the rest."""
        if not self._connections:
            return
        _log.info("draining", connections=len(self._connections), seconds=seconds)
        all_ended = self._all_ended = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(all_ended.wait(), seconds)
            return
        rest = list(self._connections)
        for connection in rest:
            connection.cancel()
        await all_ended.wait()
        _log.warning("drain time is over", closed=len(rest))

    async def _heartbeat(self) -> None:
        while True:
            self._meter.beat()
            self._recent.publish()
            await asyncio.sleep(_HEARTBEAT_SECONDS)


def _engine(generation: Generation) -> Engine:
    """The engine over a policy that was handed to us; its descriptor is needed no more."""
    try:
        return Engine(generation.compiled())
    finally:
        os.close(generation.policy)


def _log_identity(config: Config) -> LogIdentity:
    return LogIdentity.of(config.policy.gateway, os.environ)


def _networks(config: Config) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
    """What the guard is made of."""
    return config.upstream.allow_networks, config.upstream.deny_networks


def _door(listener: Listener) -> Door:
    tlvs = listener.identity.tlvs
    return Door(
        HeaderMode(listener.proxy_protocol),
        Trust(listener),
        TlvTypes(tlvs.principal, tlvs.requested_server_name),
        listener.identity.static or UNKNOWN,
    )


class _DnsObserver(ResolverObserver):
    """Tells the metrics what the resolver does."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def hit(self) -> None:
        self._meter.dns_cache_hit(1.0)

    def miss(self) -> None:
        self._meter.dns_cache_miss(1.0)

    def stale(self) -> None:
        self._meter.dns_cache_stale(1.0)

    def lookup(self, seconds: float, result: str) -> None:  # noqa: ARG002 - failures are counted by reason
        self._meter.dns_seconds.observe(seconds)
