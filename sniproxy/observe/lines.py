"""Access log lines: what each format makes of a record, and JSON, the format that tells the most.

A line is text of ours around what clients, policies and configs have written; whatever that is, a line stays one line,
and its parts stay where they belong.
"""

import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson

from sniproxy.config.model import Gateway
from sniproxy.identity.spiffe import Identity
from sniproxy.memo import Memo
from sniproxy.outcome import Event
from sniproxy.policy.model import DryRun, Ground
from sniproxy.record import Record
from sniproxy.usual import DENY, OPEN, SNI_CHANGED

LEVELS: Final = {Event.OPEN: "info", Event.CLOSE: "info", Event.DENY: "error", Event.FAIL: "warning"}
_UNKNOWN: Final = "unknown"
# Compiled, what is another module's would be looked up by its name each time.
_time: Final = time.time
_monotonic: Final = time.monotonic
_MAX_DETAIL: Final = 512
_MAX_ALPN: Final = 128
_PIPE_BUF: Final = select.PIPE_BUF
_MAX_POD = 253  # Kubernetes: a pod's name is a DNS subdomain


class _Bounds(NamedTuple):
    """How many bytes of JSON a text may take. The principal is never cut."""

    name: int
    namespace: int
    policy: int
    rule: int
    detail: int
    alpn: int
    verdict: int


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


def level_of(record: Record, event: Event) -> str:
    """What monitor mode lets pass is forbidden all the same, and has the level of what is forbidden. So has what was
    served until its client asked for another name.
    """
    if record.dry_run is not None and record.dry_run.would_deny:
        return LEVELS[Event.DENY]
    if event is not OPEN and record.reason is SNI_CHANGED:
        return LEVELS[Event.DENY]
    return LEVELS[event]


def decision_of(record: Record, event: Event) -> str:
    """What the policy said, if it was asked."""
    if record.allowed:
        return "allow"
    return "deny" if event is DENY else "none"


# A line may be told late, when its connection has gone on: that of its opening tells what was known by then.


def received_by(record: Record, event: Event) -> int:
    """Bytes from downstream, by then."""
    return record.head_size if event is OPEN else record.received


def sent_by(record: Record, event: Event) -> int:
    """Bytes to downstream, by then."""
    return 0 if event is OPEN else record.sent


def detail_of(record: Record, event: Event) -> str:
    """What there was to say, by then."""
    return record.note if event is OPEN else record.detail


def wall_time(when: float) -> float:
    """The time `when` of a record's clock, in seconds since the epoch."""
    return _time() - (_monotonic() - when)


class Clock:
    """Wall-clock time as text; that of a second is made once."""

    def __init__(self, form: str, *, local: bool = False) -> None:
        self._form = form
        self._local = local
        self._second = -1
        self._text = ""

    def text(self, at: float) -> str:
        """The time `at`, seconds since the epoch, in the form of strftime(3)."""
        second = int(at)
        if second != self._second:
            self._text = time.strftime(self._form, time.localtime(second) if self._local else time.gmtime(second))
            self._second = second
        return self._text


class LineFormat:
    """Turns records into lines of at most PIPE_BUF bytes, so that no other worker's can tear them (pipe(7))."""

    def line(self, record: Record, event: Event, now: float) -> bytes:
        """The line of `event`, with its end, at the time `now` of the record's clock."""
        raise NotImplementedError

    def worker_lost(self, worker: int, connections: int) -> bytes:
        """The supervisor's line for the connections of a worker that died."""
        raise NotImplementedError


class JsonLines(LineFormat):
    """Lines of JSON, with the names that Istio's logs use.

    A line is put together from pieces of JSON: what is the same in all lines is encoded once, what recurs (names,
    callers, rules, offers) is remembered with all that stands around it, and every text is quoted by orjson unless we
    wrote it ourselves.
    """

    def __init__(self, identity: LogIdentity, process: str) -> None:
        self._identity = identity
        instance, source, pod = map(_quoted, (identity.instance, identity.source, identity.pod))
        self._heads = {level: f'{{"level":"{level}","time":"' for level in LEVELS.values()}
        self._events = {
            event: f'Z","instance":{instance},"connectionEvent":"{event.value}","connectionId":"{process}-'
            for event in LEVELS
        }
        self._gateway = f'"source":{source},"sourceName":{pod},"sourceWorkload":{source},"sourceIp":"'
        self._clock = Clock("%Y-%m-%dT%H:%M:%S")

    def line(self, record: Record, event: Event, now: float) -> bytes:
        at = wall_time(now)
        line = self._render(record, event, now, at, _WHOLE)
        if len(line) > _PIPE_BUF:
            line = self._render(record, event, now, at, _TIGHT)
        return line

    def _render(self, record: Record, event: Event, now: float, at: float, parts: "_Parts") -> bytes:
        """The line of `event`, which happened `at` this time of the wall clock."""
        detail = detail_of(record, event)
        if event is OPEN:
            duration, reason = "0", ""
        else:
            duration, reason = _durations.of(int((now - record.began) * 1000 + 0.5)), record.reason.word
        # Compiled, a list is joined in a third of the time that an f-string of so many parts takes.
        return "".join(
            [
                self._heads[level_of(record, event)],
                self._clock.text(at),
                ".",
                _microseconds(at),
                self._events[event],
                str(record.number),
                parts.names.of(record.server_name or _UNKNOWN),
                parts.callers.of(record.identity),
                self._gateway,
                record.source_ip or _UNKNOWN,
                '","destinationIp":"',
                record.destination_ip or _UNKNOWN,
                '","destinationPort":',
                str(record.destination_port),
                ',"destinationApp":"","protocol":"tcp","receivedBytes":',
                str(received_by(record, event)),
                ',"sentBytes":',
                str(sent_by(record, event)),
                ',"connectionDuration":"',
                duration,
                's","decision":"',
                decision_of(record, event),
                parts.grounds.of(record.ground),
                reason,
                '","responseCodeDetails":',
                _quoted(detail[:_MAX_DETAIL], parts.most.detail) if detail else '""',
                parts.offers.of((record.tls_version, record.alpn)),
                parts.verdicts.of((record.dry_run, record.audit)) if _has_more(record) else "",
                "}\n",
            ]
        ).encode()

    def worker_lost(self, worker: int, connections: int) -> bytes:
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
        """RFC 3339 with microseconds, in UTC."""
        now = _time()
        return f"{self._clock.text(now)}.{_microseconds(now)}Z"


def _microseconds(at: float) -> str:
    """Those of the time `at` that are behind its whole seconds, in six digits."""
    return _digits(int((at - int(at)) * 1e6), 1_000_000)


def _seconds(milliseconds: int) -> str:
    """Milliseconds in seconds, "0.012"."""
    return f"{milliseconds // 1000}.{_digits(milliseconds % 1000, 1000)}"


_durations: Final = Memo(_seconds, 4096)  # most connections are short


def _digits(part: int, whole: int) -> str:
    """`part` of `whole`, a power of ten, with the zeros in front that it has behind a decimal point."""
    return str(whole + part)[1:]


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


def _name_field(name: str, most: int) -> str:
    return f'","requestedServerName":{_quoted(name, most)},'


def _caller_fields(identity: Identity, most: int) -> str:
    namespace = _quoted(identity.namespace_label, most)
    return f'"sourcePrincipal":{_quoted(str(identity))},"sourceNamespace":{namespace},'


def _ground_fields(ground: Ground, most_policy: int, most_rule: int) -> str:
    return f'","policy":{_quoted(ground.policy, most_policy)},"rule":{_quoted(ground.rule, most_rule)},"reason":"'


def _has_more(record: Record) -> bool:
    """Whether there is more to tell than the verdict that was enforced."""
    return record.dry_run is not None or record.audit is not None


def _verdict_fields(dry_run: DryRun | None, audit: Ground | None, most: int) -> str:
    """What monitor mode would have changed, and which audit rule holds: only where there is such a thing."""
    fields = ""
    if dry_run is not None:
        reason = dry_run.reason.word if dry_run.reason is not None else ""
        fields += (
            f',"wouldDeny":{"true" if dry_run.would_deny else "false"}'
            f',"dryRunPolicy":{_quoted(dry_run.ground.policy, most)}'
            f',"dryRunRule":{_quoted(dry_run.ground.rule, most)},"dryRunReason":"{reason}"'
        )
    if audit is not None:
        policy, rule = _quoted(audit.policy, most), _quoted(audit.rule, most)
        fields += f',"auditPolicy":{policy},"auditRule":{rule}'
    return fields


def _offer_fields(tls_version: str, alpn: tuple[str, ...], most: int) -> str:
    offer = ",".join(alpn)[:_MAX_ALPN]
    return f',"tlsVersion":"{tls_version or _UNKNOWN}","alpn":{_quoted(offer, most)}'


class _Parts:
    """The parts of lines that recur, within bounds; each is put together once."""

    def __init__(self, most: _Bounds) -> None:
        self.most = most
        self.names: Memo[str, str] = Memo(lambda name: _name_field(name, most.name), 2048)
        self.callers: Memo[Identity, str] = Memo(lambda identity: _caller_fields(identity, most.namespace), 2048)
        self.grounds: Memo[Ground, str] = Memo(lambda ground: _ground_fields(ground, most.policy, most.rule), 2048)
        self.verdicts: Memo[tuple[DryRun | None, Ground | None], str] = Memo(
            lambda both: _verdict_fields(*both, most.verdict), 2048
        )
        self.offers: Memo[tuple[str, tuple[str, ...]], str] = Memo(lambda offer: _offer_fields(*offer, most.alpn), 512)


_WHOLE: Final = _Parts(_Bounds(*[1 << 16] * 7))
# A line longer than PIPE_BUF could be torn. Where one comes, its texts are cut to these: enough for every name that is
# one, and together with the rest within PIPE_BUF.
_TIGHT: Final = _Parts(_Bounds(name=300, namespace=63, policy=96, rule=96, detail=96, alpn=64, verdict=24))
