"""The story of a connection, from accept to close.

`Proxy.serve` tells how it goes: connect, relay, end. `_connect` has the phases up to the first byte for the upstream:
who is calling, what they ask for, whether they may, and where it is. Whatever happens, every path leads to one
finisher, so that each accepted connection has exactly one final log line and one count.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

import structlog

from sniproxy.config.model import Config
from sniproxy.config.units import TcpAddress
from sniproxy.intake import Door, Intake, refused_hello
from sniproxy.ledger import Ledger
from sniproxy.limits import Limiter, OverLimit
from sniproxy.live import Connection, LiveConnections
from sniproxy.names import ServerName
from sniproxy.net.calls import Socket
from sniproxy.net.dial import Connected, dial
from sniproxy.net.dns_cache import Answer, FailureKind
from sniproxy.net.guard import Endpoint, Guard, Vetted
from sniproxy.net.listener import Peer
from sniproxy.net.pipes import PipePool
from sniproxy.net.readiness import Readiness
from sniproxy.net.relay import Relay
from sniproxy.net.resolver import ResolutionError, Resolver
from sniproxy.net.sockets import cut_off, hang_up, reset
from sniproxy.net.strand import Pending, turn
from sniproxy.observe.scoreboard import UndecidedCounts
from sniproxy.outcome import ConnectionEndedError, Event, Reason
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Decision, Denied, EchPolicy, Permit
from sniproxy.record import Record
from sniproxy.wire.alert import Alert
from sniproxy.wire.client_hello import ClientHello, HelloError
from sniproxy.wire.hello_retry import HelloWatch
from sniproxy.wire.need_more import NEED_MORE
from sniproxy.wire.proxy_protocol import NotSent

_log = structlog.get_logger()

# What a name stands for: the answer of DNS, or what the config says.
Addresses = Answer | tuple[TcpAddress, ...]

_RESETS = {Reason.CLIENT_RESET, Reason.UPSTREAM_RESET}
_DNS_REASONS = {
    FailureKind.NXDOMAIN: Reason.DNS_NXDOMAIN,
    FailureKind.TIMEOUT: Reason.DNS_TIMEOUT,
    FailureKind.FAILED: Reason.DNS_FAILED,
}
_NAMELESS = {Reason.NO_SNI, Reason.SNI_IS_IP, Reason.INVALID_SNI, Reason.DNS_NXDOMAIN}

# Of the forbidden addresses of a mixed answer, in the log.
_DROPPED_TOLD = 3


class Snapshot:
    """What a connection is judged by, and what the config has for it at hand. Replaced as a whole; times in seconds."""

    def __init__(self, config: Config, engine: Engine, guard: Guard) -> None:
        upstream, timeouts = config.upstream, config.timeouts
        self.engine: Final = engine
        self.guard: Final = guard
        self.hosts: Final = dict(upstream.hosts)
        self.port: Final = upstream.port
        self.connect_timeout: Final = upstream.connect_timeout
        self.hello_timeout: Final = timeouts.client_hello
        self.idle_timeout: Final = timeouts.idle
        self.hello_bytes: Final = config.limits.client_hello_bytes
        self.rejudges: Final = config.policy.rejudge


@dataclass(slots=True)
class Proxy:
    """What the stories of one worker have in common."""

    snapshot: Snapshot
    resolver: Resolver
    readiness: Readiness
    pipes: PipePool
    ledger: Ledger
    undecided: UndecidedCounts
    limiter: Limiter
    live: LiveConnections

    async def serve(self, downstream: Socket, peer: Peer, door: Door, *, has_room: bool) -> None:
        """The life of one accepted connection. Owns `downstream`, and never raises."""
        record = self.ledger.begin(peer.ip)
        connection = Connection(downstream, record)
        try:
            if not has_room:
                raise ConnectionEndedError(Reason.CONNECTION_LIMIT, "limits.connections are open")
            upstream = await self._connect(connection, peer, door)
            record.end(await self._relay(connection, upstream))
            if record.reason in _RESETS:
                # A drain that ends meanwhile has nothing to add: the record has its reason.
                with contextlib.suppress(asyncio.CancelledError):
                    await reset(upstream.socket if record.reason is Reason.CLIENT_RESET else downstream)
        except ConnectionEndedError as ended:
            record.end(ended.reason, ended.detail)
        except asyncio.CancelledError:
            # Only the end of a drain cancels us.
            record.end(Reason.DRAIN, "the proxy stopped before the connection was over")
        except Exception as error:
            # A fault of ours costs one connection, and not the worker with all the others.
            record.end(Reason.INTERNAL, f"{type(error).__name__}: {error}")
            _log.exception("connection failed", connection=record.number)
        try:
            if not record.opened and record.reason is not Reason.DRAIN:
                await self._refuse(downstream, record.reason)
        finally:
            self._finish(connection)

    async def _connect(self, connection: Connection, peer: Peer, door: Door) -> Connected:
        """From the first byte to a connected upstream. Raises ConnectionEndedError where a phase is the last."""
        snapshot, record = self.snapshot, connection.record
        intake = Intake(connection.downstream, peer, self.readiness, self.undecided, snapshot.hello_timeout)
        try:
            intake.begin()
            await turn()

            # Who is calling?
            while (caller := intake.caller(door)) is NEED_MORE:
                await intake.more()
            record.identity, record.source_ip = caller.identity, caller.source_ip
            connection.outer_name = _text(caller.outer_name)

            # What do they ask for?
            while (hello := intake.client_hello(snapshot.hello_bytes)) is NEED_MORE:
                await intake.more()
            self.ledger.hello_read(record)
            server_name = _note_hello(record, hello)

            # May they?
            permit = self._judge(connection, snapshot)
            intake.release()

            # Where is it?
            addresses = self._at_hand(server_name, snapshot) or await self._resolve(server_name)
            connection.is_static = not isinstance(addresses, Answer)
            vetted = _vet(addresses, permit, snapshot)
            if not vetted.endpoints and isinstance(addresses, Answer):
                # The family that came first may be forbidden as a whole, where the other one is not.
                vetted = _vet(await self.resolver.complete(server_name, addresses), permit, snapshot)
            endpoints = _note_dropped(record, vetted)
            await turn()
            upstream = await dial(permit, endpoints, snapshot.connect_timeout, self.readiness)
            connection.upstream = upstream.socket
            record.destination_ip, record.destination_port = upstream.endpoint.host, upstream.endpoint.port
            if snapshot is not self.snapshot:
                self._judge_again(connection)
        finally:
            record.received = record.head_size = intake.received
            intake.release()
        connection.head = intake.head
        self.ledger.opened(record, upstream.since)
        return upstream

    def _judge(self, connection: Connection, snapshot: Snapshot) -> Permit:
        """Leave to connect, and what was decided in the record. Raises ConnectionEndedError."""
        record = connection.record
        decision = _decision(connection, snapshot)
        record.ground, record.dry_run, record.audit = decision.ground, decision.dry_run, decision.audit
        if isinstance(decision, Denied):
            raise ConnectionEndedError(decision.reason, decision.detail)
        if decision.limits is not None:
            lease = self.limiter.enter(decision.ground, decision.limits, record.identity)
            if isinstance(lease, OverLimit):
                raise ConnectionEndedError(Reason.RATE_LIMITED, lease.detail)
            connection.lease = lease
        record.allowed = True
        if record.ech and snapshot.engine.settings.ech is EchPolicy.LOG:
            record.note = "the hello offers ECH: the real name may be another"
        return decision.permit

    def adopt(self, snapshot: Snapshot) -> None:
        """Judge by `snapshot` from now on, and what is live once more where the policy says so."""
        self.snapshot = snapshot
        if snapshot.rejudges:
            self.live.rejudge(self._refusal)

    def _judge_again(self, connection: Connection) -> None:
        """The policy has changed since the decision. Raises ConnectionEndedError where it would be another today."""
        denied = self._refusal(connection)
        if denied is not None:
            connection.record.allowed, connection.record.ground = False, denied.ground
            raise ConnectionEndedError(denied.reason, denied.detail)

    def _refusal(self, connection: Connection) -> Denied | None:
        """How a connection that is under way would be refused by the snapshot in force, if it would be."""
        snapshot, record = self.snapshot, connection.record
        decision = _decision(connection, snapshot)
        if isinstance(decision, Denied):
            return decision
        if connection.is_static:
            return None
        allow_networks = decision.permit.allow_networks
        vetted = snapshot.guard.vet((record.destination_ip,), record.destination_port, allow_networks)
        if vetted.endpoints:
            return None
        return Denied(Reason.DESTINATION_FORBIDDEN, decision.ground, "; ".join(vetted.refusals))

    def _at_hand(self, name: ServerName, snapshot: Snapshot) -> Addresses | None:
        """The addresses that the config or the cache has for `name`."""
        static = snapshot.hosts.get(name)
        if static is not None:
            return static
        try:
            return self.resolver.cached(name)
        except ResolutionError as error:
            raise _unresolved(error) from None

    async def _resolve(self, name: ServerName) -> Answer:
        try:
            return await self.resolver.resolve(name)
        except ResolutionError as error:
            raise _unresolved(error) from None

    def _relay(self, connection: Connection, upstream: Connected) -> Pending[Reason]:
        """Let the bytes flow: to the reason for which they end."""
        meter, snapshot = self.ledger.meter, self.snapshot
        relay = Relay(
            connection.downstream,
            upstream.socket,
            self.readiness,
            self.pipes,
            snapshot.idle_timeout,
            meter.received,
            meter.sent,
        )
        connection.relay = relay
        self.live.add(connection)
        watch = HelloWatch(ServerName(connection.record.server_name), snapshot.hello_bytes)
        return relay.start(connection.take_head(), upstream.events, watch)

    def _finish(self, connection: Connection) -> None:
        """Give everything back, and tell the end."""
        record = connection.record
        self.live.discard(connection)
        if connection.lease is not None:
            connection.lease.leave()
        if connection.relay is not None:
            connection.relay.close()
            record.received, record.sent = connection.relay.received, connection.relay.sent
            record.detail = connection.relay.detail or record.detail
        self._close(connection.downstream)
        if connection.upstream is not None:
            self._close(connection.upstream)
        self.ledger.finish(record)

    async def _refuse(self, downstream: Socket, reason: Reason) -> None:
        """Say with a TLS alert that nothing will come, so that the client's error names the cause."""
        alert = _alert(reason).record
        if reason is Reason.CONNECTION_LIMIT:
            cut_off(downstream, alert)
            return
        with contextlib.suppress(asyncio.CancelledError):  # here, too
            await hang_up(downstream, alert, self.readiness)

    def _close(self, sock: Socket) -> None:
        self.readiness.forget(sock.fileno())
        sock.close()


def _unresolved(error: ResolutionError) -> ConnectionEndedError:
    return ConnectionEndedError(_DNS_REASONS[error.kind], str(error))


def _vet(addresses: Addresses, permit: Permit, snapshot: Snapshot) -> Vetted:
    """What may be dialled for this permit."""
    if isinstance(addresses, Answer):
        return snapshot.guard.vet(addresses.addresses, snapshot.port, permit.allow_networks)
    return snapshot.guard.vet_static((address.host, address.port) for address in addresses)


def _note_dropped(record: Record, vetted: Vetted) -> tuple[Endpoint, ...]:
    """The endpoints that are left, and in the record those that are not. Raises ConnectionEndedError if none is."""
    refusals = vetted.refusals
    if not vetted.endpoints:
        raise ConnectionEndedError(Reason.DESTINATION_FORBIDDEN, "; ".join(refusals))
    if refusals:
        # A name that points outside and inside at once is how DNS rebinding looks, so the log tells of it.
        more = f"; and {len(refusals) - _DROPPED_TOLD} more" if len(refusals) > _DROPPED_TOLD else ""
        dropped = "; ".join(refusals[:_DROPPED_TOLD])
        record.note = "; ".join(filter(None, (record.note, f"not dialled: {dropped}{more}")))
    return vetted.endpoints


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


def _decision(connection: Connection, snapshot: Snapshot) -> Decision:
    record = connection.record
    name = ServerName(record.server_name)
    return snapshot.engine.decision(
        name, record.identity, record.source_ip, record.ech, connection.outer_name, snapshot.port
    )


def _text(outer_name: bytes | NotSent) -> str:
    """The SNI of the tunnel as policy sees it, whatever bytes it has."""
    return outer_name.decode("latin-1") if isinstance(outer_name, bytes) else ""


def _alert(reason: Reason) -> Alert:
    if reason in _NAMELESS:
        return Alert.UNRECOGNIZED_NAME
    return Alert.ACCESS_DENIED if reason.event is Event.DENY else Alert.INTERNAL_ERROR
