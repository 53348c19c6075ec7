"""Access log lines as text, for those who come from nginx or from Envoy: in the words and the order that they grep for.

Whatever comes from outside is written in printable ASCII, as nginx does it: every other byte, and each character that
has a meaning in the line, stands as \\xXX. What is not known is "-".
"""

import re
import select
import time
from collections.abc import Callable
from functools import lru_cache

from sniproxy.config.log_template import parse_template
from sniproxy.config.units import host_and_port
from sniproxy.identity.spiffe import UNKNOWN, Identity
from sniproxy.observe.lines import (
    Clock,
    LineFormat,
    decision_of,
    detail_of,
    level_of,
    received_by,
    sent_by,
    wall_time,
)
from sniproxy.outcome import Event, Reason
from sniproxy.record import Record

_NOTHING = "-"
_MAX_NAME = 1024  # bytes, as written: a name of 253 letters, or 256 bytes that are none
_MAX_DETAIL = 512
_MAX_LITTLE = 128

# nginx's $status of a session (ngx_stream_core_module), and Envoy's flags (%RESPONSE_FLAGS% of its access logs).
STATUS = {
    Reason.RULE: "403",
    Reason.DEFAULT: "403",
    Reason.REGISTRY: "403",
    Reason.NO_SNI: "400",
    Reason.SNI_IS_IP: "400",
    Reason.INVALID_SNI: "400",
    Reason.NOT_TLS: "400",
    Reason.MALFORMED_HELLO: "400",
    Reason.HELLO_TOO_LARGE: "400",
    Reason.SNI_MISMATCH: "403",
    Reason.ECH: "403",
    Reason.IDENTITY_REQUIRED: "403",
    Reason.UNTRUSTED_PEER: "403",
    Reason.BAD_PROXY_HEADER: "400",
    Reason.DESTINATION_FORBIDDEN: "403",
    Reason.RATE_LIMITED: "503",
    Reason.CONNECTION_LIMIT: "503",
    Reason.HELLO_TIMEOUT: "400",
    Reason.CLIENT_CLOSED: "400",
    Reason.DNS_NXDOMAIN: "502",
    Reason.DNS_TIMEOUT: "502",
    Reason.DNS_FAILED: "502",
    Reason.CONNECT_REFUSED: "502",
    Reason.CONNECT_TIMEOUT: "502",
    Reason.CONNECT_FAILED: "502",
    Reason.INTERNAL: "500",
    Reason.DONE: "200",
    Reason.CLIENT_RESET: "200",
    Reason.UPSTREAM_RESET: "502",
    Reason.IDLE_TIMEOUT: "200",
    Reason.POLICY_CHANGED: "403",
    Reason.SNI_CHANGED: "403",
    Reason.DRAIN: "200",
}
FLAGS = {
    # Envoy's RBAC filter sets no flag: its phrase tells.
    Reason.RULE: "-",
    Reason.DEFAULT: "-",
    Reason.SNI_MISMATCH: "-",
    Reason.ECH: "-",
    Reason.IDENTITY_REQUIRED: "-",
    Reason.UNTRUSTED_PEER: "-",
    # NR: no route, or no filter chain, for such a name.
    Reason.REGISTRY: "NR",
    Reason.NO_SNI: "NR",
    Reason.SNI_IS_IP: "NR",
    Reason.INVALID_SNI: "NR",
    # DPE: the downstream peer does not keep to the protocol.
    Reason.NOT_TLS: "DPE",
    Reason.MALFORMED_HELLO: "DPE",
    Reason.HELLO_TOO_LARGE: "DPE",
    Reason.BAD_PROXY_HEADER: "DPE",
    Reason.SNI_CHANGED: "DPE",
    # UH: no upstream host is left that may be used.
    Reason.DESTINATION_FORBIDDEN: "UH",
    Reason.RATE_LIMITED: "RL",
    Reason.CONNECTION_LIMIT: "OM",
    # DT: something took longer than it may.
    Reason.HELLO_TIMEOUT: "DT",
    Reason.CLIENT_CLOSED: "DC",
    Reason.DNS_NXDOMAIN: "DF",
    Reason.DNS_TIMEOUT: "DF",
    Reason.DNS_FAILED: "DF",
    Reason.CONNECT_REFUSED: "UF",
    Reason.CONNECT_TIMEOUT: "UF",
    Reason.CONNECT_FAILED: "UF",
    Reason.INTERNAL: "LR",
    Reason.DONE: "-",
    Reason.CLIENT_RESET: "DC",
    Reason.UPSTREAM_RESET: "UR",
    Reason.IDLE_TIMEOUT: "SI",
    # LR: we have ended it.
    Reason.POLICY_CHANGED: "LR",
    Reason.DRAIN: "LR",
}

# Printable ASCII without what separates, quotes and escapes: a word has no space and no bracket either.
_NOT_IN_A_WORD = re.compile(r"[^!#-Z^-~]")
_NOT_IN_A_PHRASE = re.compile(r"[^ !#-\[\]-~]")


def _escape(match: re.Match[str]) -> str:
    return "".join([f"\\x{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass")])


@lru_cache(maxsize=2048)
def _word(text: str, most: int = _MAX_NAME) -> str:
    """`text` as one word of a line."""
    return _NOT_IN_A_WORD.sub(_escape, text[:most])[:most] or _NOTHING


@lru_cache(maxsize=2048)
def _phrase(text: str) -> str:
    """`text` as it may stand between quotes."""
    return _NOT_IN_A_PHRASE.sub(_escape, text[:_MAX_DETAIL])[:_MAX_DETAIL] or _NOTHING


@lru_cache(maxsize=2048)
def _principal(identity: Identity) -> str:
    return _NOTHING if identity is UNKNOWN else str(identity)  # only characters of a word, and never cut


def _whole(text: str) -> bytes:
    """A line: what is longer than can be written at once loses its end."""
    return text.encode()[: select.PIPE_BUF - 1].decode(errors="ignore").encode() + b"\n"


def _upstream(record: Record) -> str:
    """IP:PORT of where the connection went."""
    return host_and_port(record.destination_ip, record.destination_port) if record.destination_ip else _NOTHING


_Value = Callable[[Record, Event, float], str]


class NginxLines(LineFormat):
    """Lines by a template with nginx's variables; the default template is that of the nginx proxy before us."""

    def __init__(self, template: str, process: str) -> None:
        self._process = process
        self._local = Clock("%d/%b/%Y:%H:%M:%S %z", local=True)
        self._iso = Clock("%Y-%m-%dT%H:%M:%S%z", local=True)
        values = self._values()
        self._pieces: list[tuple[str, _Value | None]] = [
            (piece.text, values[piece.text] if piece.is_variable else None) for piece in parse_template(template)
        ]

    def _values(self) -> dict[str, _Value]:
        """What each variable stands for."""
        return {
            "remote_addr": lambda record, _event, _now: record.source_ip or _NOTHING,
            "time_local": lambda _record, _event, now: self._local.text(wall_time(now)),
            "protocol": lambda _record, _event, _now: "TCP",
            "ssl_preread_server_name": lambda record, _event, _now: _word(record.server_name),
            # nginx's own word for a session whose status is not known yet.
            "status": lambda record, event, _now: "000" if event is Event.OPEN else STATUS[record.reason],
            "bytes_sent": lambda record, event, _now: str(sent_by(record, event)),
            "bytes_received": lambda record, event, _now: str(received_by(record, event)),
            "session_time": lambda record, _event, now: f"{now - record.began:.3f}",
            "time_iso8601": lambda _record, _event, now: _with_colon(self._iso.text(wall_time(now))),
            "msec": lambda _record, _event, now: f"{wall_time(now):.3f}",
            "connection": lambda record, _event, _now: f"{self._process}-{record.number}",
            "upstream_addr": lambda record, _event, _now: _upstream(record),
            "ssl_preread_protocol": lambda record, _event, _now: record.tls_version or _NOTHING,
            "ssl_preread_alpn_protocols": lambda record, _event, _now: _word(",".join(record.alpn), _MAX_LITTLE),
            "event": lambda _record, event, _now: event.value,
            "level": lambda record, event, _now: level_of(record, event),
            "principal": lambda record, _event, _now: _principal(record.identity),
            "decision": lambda record, event, _now: decision_of(record, event),
            "policy": lambda record, _event, _now: _word(record.ground.policy),
            "rule": lambda record, _event, _now: _word(record.ground.rule),
            "reason": lambda record, event, _now: _NOTHING if event is Event.OPEN else record.reason.word,
            "detail": lambda record, event, _now: _phrase(detail_of(record, event)),
        }

    def line(self, record: Record, event: Event, now: float) -> bytes:
        return _whole("".join([text if value is None else value(record, event, now) for text, value in self._pieces]))

    def worker_lost(self, worker: int, connections: int) -> bytes:
        return _whole(f"[{self._local.text(time.time())}] worker_lost: worker {worker}, {connections} connections")


def _with_colon(stamp: str) -> str:
    """ISO 8601's zone as nginx writes it, +00:00, which strftime(3) does not."""
    return f"{stamp[:-2]}:{stamp[-2:]}"


class EnvoyLines(LineFormat):
    """Envoy's default line as Istio's proxies write it of a TCP connection.

    [%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS%
    %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED%
    %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%"
    "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS%
    %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%
    (https://istio.io/latest/docs/tasks/observability/logs/access-log/)
    """

    def __init__(self) -> None:
        self._utc = Clock("%Y-%m-%dT%H:%M:%S")

    def line(self, record: Record, event: Event, now: float) -> bytes:
        flags, detail, duration = "-", _NOTHING, "-"
        if event is not Event.OPEN:
            flags = FLAGS[record.reason]
            detail = _details(record.detail or ("" if record.reason is Reason.DONE else record.reason.word))
            duration = str(int((now - record.began) * 1000))
        upstream, name = _upstream(record), _word(record.server_name)
        cluster = f"outbound|{record.destination_port}||{name}" if record.destination_ip else _NOTHING
        return _whole(
            f'[{self._timestamp(wall_time(record.began))}] "- - -" 0 {flags} - {detail} "-" '
            f"{received_by(record, event)} {sent_by(record, event)} {duration} "
            f'- "-" "-" "-" "-" "{upstream}" {cluster} - - '
            f"{record.source_ip or _NOTHING} {name} -"
        )

    def worker_lost(self, worker: int, connections: int) -> bytes:
        return _whole(f"[{self._timestamp(time.time())}] worker_lost: worker {worker}, {connections} connections")

    def _timestamp(self, at: float) -> str:
        return f"{self._utc.text(at)}.{int(at % 1 * 1000):03d}Z"


def _details(text: str) -> str:
    """Details without a space, as Envoy writes them."""
    return _phrase(text.replace(" ", "_"))
