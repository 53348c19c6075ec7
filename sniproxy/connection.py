"""The story of a connection, from accept to close.

`Proxy.serve` tells it in one function, phase by phase: who is calling, what they ask for, whether they may, where it
is, and the bytes. Whatever happens, every path leads to one finisher, so that each accepted connection has exactly
one final log line and one count.
"""

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass

import structlog

from sniproxy.config.model import Config
from sniproxy.intake import Door, Intake, refused_hello
from sniproxy.ledger import Ledger
from sniproxy.names import ServerName
from sniproxy.net.dial import Connected, dial
from sniproxy.net.dns_cache import Answer, FailureKind
from sniproxy.net.guard import Endpoint, Guard
from sniproxy.net.listener import Peer
from sniproxy.net.pipes import PipePool
from sniproxy.net.readiness import Readiness
from sniproxy.net.relay import Relay
from sniproxy.net.resolver import ResolutionError, Resolver
from sniproxy.net.sockets import cut_off, hang_up, reset
from sniproxy.net.strand import turn
from sniproxy.observe.scoreboard import UndecidedCounts
from sniproxy.outcome import ConnectionEndedError, Event, Reason
from sniproxy.policy.engine import EchPolicy, Engine
from sniproxy.policy.model import Denied, Permit, Request
from sniproxy.record import Record
from sniproxy.wire.alert import Alert
from sniproxy.wire.client_hello import ClientHello, HelloError

_log = structlog.get_logger()

_RESETS = {Reason.CLIENT_RESET, Reason.UPSTREAM_RESET}
_DNS_REASONS = {
    FailureKind.NXDOMAIN: Reason.DNS_NXDOMAIN,
    FailureKind.TIMEOUT: Reason.DNS_TIMEOUT,
    FailureKind.FAILED: Reason.DNS_FAILED,
}
_NAMELESS = {Reason.NO_SNI, Reason.SNI_IS_IP, Reason.INVALID_SNI, Reason.DNS_NXDOMAIN}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a connection is judged by: frozen, and replaced as a whole."""

    config: Config
    engine: Engine
    guard: Guard


@dataclass(slots=True)
class Proxy:
    """What the stories of one worker have in common."""

    snapshot: Snapshot
    resolver: Resolver
    readiness: Readiness
    pipes: PipePool
    ledger: Ledger
    undecided: UndecidedCounts

    async def serve(self, downstream: socket.socket, peer: Peer, door: Door, *, has_room: bool) -> None:
        """The life of one accepted connection. Owns `downstream`, and never raises."""
        snapshot, config = self.snapshot, self.snapshot.config
        record = self.ledger.begin(peer.ip)
        intake = Intake(downstream, peer, self.readiness, self.undecided, config.timeouts.client_hello)
        upstream: Connected | None = None
        try:
            if not has_room:
                raise ConnectionEndedError(Reason.CONNECTION_LIMIT, "limits.connections are open")

            # Who is calling?
            caller = await intake.caller(door)
            record.identity = caller.identity
            record.source_ip = caller.source_ip

            # What do they ask for?
            hello = await intake.client_hello(config.limits.client_hello_bytes)
            record.received = intake.received
            self.ledger.hello_read(record)
            server_name = _note_hello(record, hello)

            # May they?
            decision = snapshot.engine.decide(Request(server_name, caller.identity, caller.source_ip, hello.ech))
            intake.release()
            record.ground = decision.ground
            if isinstance(decision, Denied):
                raise ConnectionEndedError(decision.reason, decision.detail)
            record.allowed = True
            if hello.ech and snapshot.engine.rulebook.ech is EchPolicy.LOG:
                record.detail = "the hello offers ECH: the real name may be another"

            # Where is it?
            endpoints = await self._destinations(decision.permit, snapshot)
            await turn()
            connecting = time.monotonic()
            upstream = await dial(decision.permit, endpoints, config.upstream.connect_timeout, self.readiness)
            record.destination_ip, record.destination_port = upstream.endpoint.host, upstream.endpoint.port
            self.ledger.opened(record, connecting)

            # The bytes.
            await self._relay(record, downstream, upstream, intake)
        except ConnectionEndedError as ended:
            record.received = intake.received
            record.end(ended.reason, ended.detail)
            await self._refuse(downstream, ended.reason)
        except asyncio.CancelledError:
            # Only the end of a drain cancels us.
            record.end(Reason.DRAIN, "the proxy stopped before the connection was over")
        except Exception as error:
            # A fault of ours costs one connection, and not the worker with all the others.
            record.end(Reason.INTERNAL, f"{type(error).__name__}: {error}")
            _log.exception("connection failed", connection=record.number)
            if not record.opened:
                await self._refuse(downstream, Reason.INTERNAL)
        finally:
            intake.release()
            self._close(downstream)
            if upstream is not None:
                self._close(upstream.socket)
            self.ledger.finish(record)

    async def _destinations(self, permit: Permit, snapshot: Snapshot) -> tuple[Endpoint, ...]:
        """The endpoints that may be dialled for this permit: resolved, or static, and vetted."""
        upstream, guard = snapshot.config.upstream, snapshot.guard
        static = upstream.hosts.get(permit.server_name)
        if static is not None:
            vetted = guard.vet_static((address.host, address.port) for address in static)
        else:
            answer = await self._resolve(permit.server_name)
            vetted = guard.vet(answer.addresses, upstream.port, permit.allow_networks)
        if not vetted.endpoints:
            raise ConnectionEndedError(Reason.DESTINATION_FORBIDDEN, "; ".join(vetted.refusals))
        return vetted.endpoints

    async def _resolve(self, name: ServerName) -> Answer:
        try:
            answer = self.resolver.cached(name)
            return answer if answer is not None else await self.resolver.resolve(name)
        except ResolutionError as error:
            raise ConnectionEndedError(_DNS_REASONS[error.kind], str(error)) from None

    async def _relay(self, record: Record, downstream: socket.socket, upstream: Connected, intake: Intake) -> None:
        meter = self.ledger.meter
        idle = self.snapshot.config.timeouts.idle
        relay = Relay(downstream, upstream.socket, self.readiness, self.pipes, idle, meter.received, meter.sent)
        try:
            reason = await relay.run(intake.take_replay(), upstream.events)
        finally:
            record.received, record.sent = relay.received, relay.sent
        record.end(reason)
        if reason in _RESETS:
            # A drain that ends meanwhile has nothing to add: the record has its reason.
            with contextlib.suppress(asyncio.CancelledError):
                await reset(upstream.socket if reason is Reason.CLIENT_RESET else downstream)

    async def _refuse(self, downstream: socket.socket, reason: Reason) -> None:
        """Say with a TLS alert that nothing will come, so that the client's error names the cause."""
        alert = _alert(reason).record
        if reason is Reason.CONNECTION_LIMIT:
            cut_off(downstream, alert)
            return
        with contextlib.suppress(asyncio.CancelledError):  # here, too
            await hang_up(downstream, alert, self.readiness)

    def _close(self, sock: socket.socket) -> None:
        self.readiness.forget(sock.fileno())
        sock.close()


def _note_hello(record: Record, hello: ClientHello) -> ServerName:
    """Write down what the hello says. Raises ConnectionEndedError if it names no server, or not as it should."""
    record.tls_version = hello.tls_version
    record.alpn = hello.alpn
    record.ech = hello.ech
    try:
        server_name = hello.server_name()
    except HelloError as error:
        if isinstance(hello.raw_server_name, bytes):
            record.server_name = hello.raw_server_name.decode("ascii", "backslashreplace")
        raise refused_hello(error) from None
    record.server_name = server_name
    return server_name


def _alert(reason: Reason) -> Alert:
    if reason in _NAMELESS:
        return Alert.UNRECOGNIZED_NAME
    return Alert.ACCESS_DENIED if reason.event is Event.DENY else Alert.INTERNAL_ERROR
