"""Records as stories leave them, and what the log says it is."""

from sniproxy.config.model import Gateway
from sniproxy.identity.spiffe import parse_principal
from sniproxy.observe.lines import LogIdentity
from sniproxy.outcome import Reason
from sniproxy.policy.model import Ground
from sniproxy.record import Record

POD = "istio-egressgateway-with-sni-proxy-7c4f7868fb-rc8pr"
GATEWAY = Gateway(labels={"app": "istio-egressgateway-with-sni-proxy"})
IDENTITY = LogIdentity.of(GATEWAY, {"POD_NAME": POD})


def relayed() -> Record:
    """A connection that was allowed, served and closed."""
    record = Record(7, "10.1.2.3", 100.0)
    record.opened = 100.1
    record.identity = parse_principal("cluster.local/ns/default/sa/sleep-us")
    record.server_name = "en.wikipedia.org"
    record.tls_version = "TLSv1.3"
    record.alpn = ("h2", "http/1.1")
    record.allowed = True
    record.ground = Ground("policy.yaml", "us-wikipedia", "/etc/policy.yaml", 3)
    record.destination_ip, record.destination_port = "208.80.154.224", 443
    record.head_size, record.received, record.sent = 280, 298, 4711
    record.end(Reason.DONE)
    return record


def refused(reason: Reason = Reason.RULE) -> Record:
    record = relayed()
    record.opened, record.allowed, record.destination_ip, record.destination_port = 0.0, False, "", 0
    record.end(reason, "rbac_access_denied_matched_policy[policy.yaml-rule[no-english]]")
    return record


def as_recorded(raw: bytes) -> str:
    """An SNI as the story puts it into a record."""
    return raw.decode("ascii", "backslashreplace")


HOSTILE = {
    "a new line": b'a\n{"level":"info"}',
    "a carriage return": b"a\rb",
    "quotes": b'","decision":"allow","x":"',
    "a backslash": b"a\\",
    "NUL": b"\0",
    "an escape sequence of a terminal": b"\x1b[2J",
    "bytes that are no UTF-8": b"\xff\xfe\x80",
    "a line separator of Unicode": "\u2028".encode(),
}
