"""One worker: its event loop, what it is built of, and how it stops.

`run_worker` is the composition root: the only place that knows every part. It builds them, accepts until it is told
to drain (SIGTERM, or the end of the supervisor), lets live connections finish for a while, and returns.
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
from sniproxy.connection import Proxy, Snapshot
from sniproxy.identity.evidence import TlvTypes
from sniproxy.identity.spiffe import UNKNOWN
from sniproxy.intake import Door, HeaderMode
from sniproxy.ledger import Ledger
from sniproxy.net.listener import Acceptor, Peer, Trust
from sniproxy.net.pipes import PipePool
from sniproxy.net.readiness import Readiness
from sniproxy.net.resolver import Family, Resolver, ResolverSettings
from sniproxy.net.strand import Strand, Turns
from sniproxy.net.timers import TimerWheel
from sniproxy.observe.access_log import AccessLog, LineFormat, LogIdentity, Sink
from sniproxy.observe.metrics import ACTIVE, Meter, slot_of
from sniproxy.observe.scoreboard import Scoreboard, UndecidedCounts

_log = structlog.get_logger()

# For all workers together: well within what pipe-user-pages-soft gives an unprivileged user, and two descriptors each.
_PIPES = 96

_HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """Everything that a worker inherits from the supervisor."""

    number: int
    snapshot: Snapshot
    listening: Sequence[tuple[Listener, socket.socket]]
    board: Scoreboard
    connection_limit: int
    lifeline: int  # readable, at its end, when the supervisor is gone


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, asyncio's own where it is not: the same program, slower."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run_worker(task: WorkerTask) -> None:
    """Serve until told to stop. To be called in a process of its own."""
    # Connections make no cycles; what is collected is rare garbage of errors, so look for it rarely.
    gc.set_threshold(50_000, 20, 100)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_Worker(task).run())


class _Worker:
    def __init__(self, task: WorkerTask) -> None:
        self._task = task
        self._config: Config = task.snapshot.config
        self._row = task.board.workers[task.number]
        self._meter = Meter(self._row)
        self._connections: set[Strand] = set()
        self._all_ended = asyncio.Event()
        self._draining = asyncio.Event()
        self._active_slots = [row.slots for row in task.board.workers]
        self._active = slot_of(ACTIVE)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        config, task = self._config, self._task
        loop.add_signal_handler(signal.SIGTERM, self._draining.set)
        loop.add_reader(task.lifeline, self._draining.set)

        readiness = Readiness(loop, TimerWheel(loop))
        pipes = PipePool(max(4, _PIPES // len(task.board.workers)))
        sink = Sink(config.access_log.path, self._meter.log_dropped)
        form = LineFormat(LogIdentity.of(config.policy.gateway, os.environ), f"{os.getpid():x}-{os.urandom(3).hex()}")
        log = AccessLog(form, sink, config.access_log.events, loop)
        resolver = Resolver(_resolver_settings(config), _DnsObserver(self._meter))
        ledger = Ledger(log, self._meter)
        undecided = UndecidedCounts(task.board.workers, self._row, config.limits.undecided_per_source)
        proxy = Proxy(task.snapshot, resolver, readiness, pipes, ledger, undecided)

        turns = Turns(loop)
        acceptors = [self._acceptor(listener, sock, proxy, turns, loop) for listener, sock in task.listening]
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
            await self._drain(config.timeouts.drain)
        finally:
            beat.cancel()
            await resolver.close()
            log.close()
            pipes.close()
            readiness.close()

    def _acceptor(
        self, listener: Listener, sock: socket.socket, proxy: Proxy, turns: Turns, loop: asyncio.AbstractEventLoop
    ) -> Acceptor:
        door = _door(listener)

        def serve(downstream: socket.socket, peer: Peer) -> None:
            connection = Strand(proxy.serve(downstream, peer, door, has_room=self._has_room()), turns, self._ended)
            self._connections.add(connection)
            connection.run()

        return Acceptor(sock, loop, serve, lambda peer: proxy.ledger.shed(peer.ip))

    def _ended(self, connection: Strand) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_ended.set()

    def _has_room(self) -> bool:
        """Whether all workers together hold fewer connections than the limit."""
        active = self._active
        return sum([slots[active] for slots in self._active_slots]) < self._task.connection_limit

    async def _drain(self, seconds: float) -> None:
        """Let live connections finish, then end the rest."""
        if not self._connections:
            return
        _log.info("draining", connections=len(self._connections), seconds=seconds)
        self._all_ended.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_ended.wait(), seconds)
            return
        rest = list(self._connections)
        for connection in rest:
            connection.cancel()
        await self._all_ended.wait()
        _log.warning("drain time is over", closed=len(rest))

    async def _heartbeat(self) -> None:
        while True:
            self._meter.beat()
            await asyncio.sleep(_HEARTBEAT_SECONDS)


def _door(listener: Listener) -> Door:
    tlvs = listener.identity.tlvs
    return Door(
        HeaderMode(listener.proxy_protocol),
        Trust(listener),
        TlvTypes(tlvs.principal, tlvs.requested_server_name),
        listener.identity.static or UNKNOWN,
    )


def _resolver_settings(config: Config) -> ResolverSettings:
    settings = config.upstream.resolver
    return ResolverSettings(
        nameservers=settings.nameservers,
        family=Family(settings.family),
        timeout=settings.timeout,
        min_ttl=settings.min_ttl,
        max_ttl=settings.max_ttl,
        negative_ttl=settings.negative_ttl,
        stale_ttl=settings.stale_ttl,
        cache_size=settings.cache_size,
    )


class _DnsObserver:
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
        self._meter.dns_seconds(seconds)
