"""The access log: what happened to each connection, one JSON object a line, with the names that Istio's logs use.

Lines are gathered and written together, at the latest `_DELAY` after the first. A write never waits: what the sink
does not take is kept up to a bound, and past that dropped and counted.
"""

import asyncio
import errno
import fcntl
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import orjson

from sniproxy.config.model import Gateway
from sniproxy.identity.spiffe import Identity
from sniproxy.outcome import Event
from sniproxy.policy.model import Ground
from sniproxy.record import Record

_LEVELS = {Event.OPEN: "info", Event.CLOSE: "info", Event.DENY: "error", Event.FAIL: "warning"}
_UNKNOWN = "unknown"
_MAX_DETAIL = 512
_MAX_ALPN = 128
_MAX_POD = 253  # Kubernetes: a pod's name is a DNS subdomain


class _Bounds(NamedTuple):
    """How many bytes of JSON a text may take. The principal is never cut."""

    name: int
    namespace: int
    policy: int
    rule: int
    detail: int
    alpn: int


_WHOLE = _Bounds(*[1 << 16] * 6)
# A line longer than PIPE_BUF could be torn. Where one comes, its texts are cut to these: enough for every name that is
# one, and together with the rest within PIPE_BUF.
_TIGHT = _Bounds(name=300, namespace=63, policy=128, rule=128, detail=224, alpn=64)

_DELAY = 0.05  # seconds
_MAX_BATCH = 64 * 1024
_MAX_WAITING = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """What every line says of this proxy: Mixer's instance, and the gateway as the source."""

    instance: str
    source: str
    pod: str

    @classmethod
    def of(cls, gateway: Gateway, environment: Mapping[str, str]) -> "LogIdentity":
        pod = environment.get("POD_NAME") or environment.get("HOSTNAME") or socket.gethostname()
        pod = pod.encode("ascii", "replace").decode()[:_MAX_POD]
        source = gateway.labels.get("app", _UNKNOWN)
        return cls(f"egress-access.logentry.{gateway.namespace}", source, pod)


class LineFormat:
    """Turns records into JSON lines.

    A line is put together from pieces of JSON: what is the same in all lines is encoded once, what recurs (callers,
    rules, offers) is remembered, and every text is quoted by orjson unless we wrote it ourselves.
    """

    def __init__(self, identity: LogIdentity, process: str) -> None:
        self._identity = identity
        instance, source, pod = map(_quoted, (identity.instance, identity.source, identity.pod))
        self._heads = {event: f'{{"level":"{level}","time":"' for event, level in _LEVELS.items()}
        self._events = {
            event: f'","instance":{instance},"connectionEvent":"{event.value}","connectionId":"{process}-'
            for event in _LEVELS
        }
        self._gateway = f'"source":{source},"sourceName":{pod},"sourceWorkload":{source},"sourceIp":"'
        self._second = 0
        self._second_text = ""

    def line(self, record: Record, event: Event, now: float) -> bytes:
        """One line of at most PIPE_BUF bytes, for `event` at the time `now` of the record's clock."""
        time_text = self._timestamp()
        line = self._render(record, event, now, time_text, _WHOLE)
        if len(line) > select.PIPE_BUF:
            line = self._render(record, event, now, time_text, _TIGHT)
        return line

    def _render(self, record: Record, event: Event, now: float, time_text: str, most: _Bounds) -> bytes:
        if event is Event.OPEN:
            duration, reason = "0", ""
        else:
            duration, reason = f"{now - record.began:.3f}", record.reason.word
        decision = "allow" if record.allowed else "deny" if event is Event.DENY else "none"
        detail = _quoted(record.detail[:_MAX_DETAIL], most.detail) if record.detail else '""'
        return (
            f"{self._heads[event]}{time_text}{self._events[event]}{record.number}"
            f'","requestedServerName":{_quoted_again(record.server_name or _UNKNOWN, most.name)},'
            f"{_caller_fields(record.identity, most.namespace)},"
            f'{self._gateway}{record.source_ip or _UNKNOWN}","destinationIp":"{record.destination_ip or _UNKNOWN}",'
            f'"destinationPort":{record.destination_port},"destinationApp":"","protocol":"tcp",'
            f'"receivedBytes":{record.received},"sentBytes":{record.sent},"connectionDuration":"{duration}s",'
            f'"decision":"{decision}",{_ground_fields(record.ground, most.policy, most.rule)},"reason":"{reason}",'
            f'"responseCodeDetails":{detail},{_offer_fields(record.tls_version, record.alpn, most.alpn)}}}\n'
        ).encode()

    def worker_lost(self, worker: int, connections: int) -> bytes:
        """The supervisor's line for the connections of a worker that died."""
        return orjson.dumps(
            {
                "level": "error",
                "time": self._timestamp(),
                "instance": self._identity.instance,
                "connectionEvent": "worker_lost",
                "worker": worker,
                "connections": connections,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )

    def _timestamp(self) -> str:
        """RFC 3339 with microseconds, in UTC. The text of a second is made once."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int((now - second) * 1e6):06d}Z"


def _quoted(text: str, most: int = 1 << 16) -> str:
    """As much of `text` as takes at most `most` bytes in JSON, as a JSON string."""
    quoted = orjson.dumps(text)
    return (quoted if len(quoted) - 2 <= most else orjson.dumps(_cut(text, most))).decode()


def _cut(text: str, most: int) -> str:
    """As much of `text` as takes at most `most` bytes in JSON, where a character takes one to six."""
    size = 0
    for end, char in enumerate(text):
        size += len(orjson.dumps(char)) - 2
        if size > most:
            return text[:end]
    return text


_quoted_again = lru_cache(maxsize=2048)(_quoted)


@lru_cache(maxsize=2048)
def _caller_fields(identity: Identity, most: int) -> str:
    namespace = _quoted(identity.namespace_label, most)
    return f'"sourcePrincipal":{_quoted(str(identity))},"sourceNamespace":{namespace}'


@lru_cache(maxsize=2048)
def _ground_fields(ground: Ground, most_policy: int, most_rule: int) -> str:
    return f'"policy":{_quoted(ground.policy, most_policy)},"rule":{_quoted(ground.rule, most_rule)}'


@lru_cache(maxsize=512)
def _offer_fields(tls_version: str, alpn: tuple[str, ...], most: int) -> str:
    offer = ",".join(alpn)[:_MAX_ALPN]
    return f'"tlsVersion":"{tls_version or _UNKNOWN}","alpn":{_quoted(offer, most)}'


class Sink:
    """Writes batches of whole lines to one file, pipe, terminal or socket, and never waits for it.

    A pipe that several workers share gets at most PIPE_BUF bytes in a write, for longer ones tear each other's lines
    (pipe(7)); a file opened for appending takes any size at once.
    """

    def __init__(self, path: str, on_dropped: Callable[[float], None]) -> None:
        self._fd = _open_sink(path)
        mode = os.fstat(self._fd).st_mode
        self._max_write = _MAX_BATCH if stat.S_ISREG(mode) else select.PIPE_BUF
        self._lines: list[bytes] = []
        self._waiting = 0
        self._torn = b""  # what a write left of its batch
        # A socket that others share stays as it is, and is asked not to wait at each write.
        self._socket = socket.socket(fileno=self._fd) if stat.S_ISSOCK(mode) else None
        self._is_broken = False  # the sink has the beginning of a line whose end was dropped
        self._on_dropped = on_dropped
        self.failure = ""

    @property
    def waiting(self) -> int:
        return self._waiting

    def add(self, line: bytes) -> None:
        if self._waiting + len(line) > _MAX_WAITING:
            self._on_dropped(1)
            return
        self._lines.append(line)
        self._waiting += len(line)

    def flush(self) -> None:
        """Write what the sink takes now."""
        while self._lines or self._torn:
            batch, count = self._next_batch()
            try:
                written = self._write(batch)
            except BlockingIOError:
                return
            except OSError as error:
                self._drop_all(os.strerror(error.errno or errno.EIO))
                return
            self.failure = ""
            del self._lines[:count]
            self._torn = batch[written:]
            self._waiting -= written
            self._is_broken = bool(self._torn) and batch[written - 1 : written] != b"\n"

    def _write(self, batch: bytes) -> int:
        """How many bytes of the batch are written, 1 at least; BlockingIOError where that would mean to wait."""
        if self._is_broken and not self._torn:
            # Not the end that it was to have; but the next line begins a line of its own.
            self._write_some(b"\n")
            self._is_broken = False
        return self._write_some(batch)

    def _write_some(self, data: bytes) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT) if self._socket else os.write(self._fd, data)

    def _next_batch(self) -> tuple[bytes, int]:
        """The bytes of the next write, and how many whole lines they take."""
        if self._torn:
            return self._torn, 0
        size = count = 0
        for line in self._lines:
            size += len(line)
            if size > self._max_write and count:
                break
            count += 1
        return b"".join(self._lines[:count]), count

    def _drop_all(self, failure: str) -> None:
        self.failure = failure
        self._on_dropped(len(self._lines) + self._torn.count(b"\n"))
        self._lines.clear()
        self._torn = b""
        self._waiting = 0

    def close(self) -> None:
        self.flush()
        if self._waiting:
            self._drop_all("the log was closed before its reader took every line")
        if self._socket:
            self._socket.close()
        else:
            os.close(self._fd)


def _open_sink(path: str) -> int:
    """A descriptor that never makes a writer wait, where the kernel offers one.

    /dev/stdout and /dev/stderr are the descriptors that we inherited. O_NONBLOCK belongs to the open file, which
    others may share, so that a pipe is opened anew rather than changed under them.
    """
    inherited = {"/dev/stdout": 1, "/dev/stderr": 2}.get(path)
    if inherited is None:
        # A pipe is opened for reading too, so that there always is a reader: opening it never waits, or fails, for one.
        mode = os.O_RDWR | os.O_NONBLOCK if _is_fifo(path) else os.O_WRONLY
        return os.open(path, mode | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    if stat.S_ISFIFO(os.fstat(inherited).st_mode):
        try:
            return os.open(f"/proc/self/fd/{inherited}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            pass  # a pipe of another user's: writes may wait for its reader
    return fcntl.fcntl(inherited, fcntl.F_DUPFD_CLOEXEC, 3)


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


class AccessLog:
    """A worker's log: lines of the events that the config asks for, flushed by its event loop."""

    def __init__(self, form: LineFormat, sink: Sink, events: frozenset[str], loop: asyncio.AbstractEventLoop) -> None:
        self._form = form
        self._sink = sink
        self._wanted = {event: event.value in events for event in Event}
        self._loop = loop
        self._is_due = False

    def write(self, record: Record, event: Event, now: float) -> None:
        if not self._wanted[event]:
            return
        self._sink.add(self._form.line(record, event, now))
        if self._sink.waiting >= _MAX_BATCH:
            self._sink.flush()
        elif not self._is_due:
            self._is_due = True
            self._loop.call_later(_DELAY, self._flush)

    def _flush(self) -> None:
        self._sink.flush()
        self._is_due = self._sink.waiting > 0
        if self._is_due:
            self._loop.call_later(_DELAY, self._flush)

    def close(self) -> None:
        self._sink.close()
