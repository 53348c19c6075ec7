"""Why a connection ended: one vocabulary for the story, the access log and the metrics.

Every accepted connection ends for exactly one `Reason`. The reason alone tells which event its final log line
has: `deny` (we refused it), `fail` (it could not be served) or `close` (it was served, and is over).
"""

from enum import Enum, StrEnum


class Event(StrEnum):
    """What an access log line tells."""

    OPEN = "open"
    CLOSE = "close"
    DENY = "deny"
    FAIL = "fail"


class Reason(Enum):
    """Why a connection ended; its value is the word that logs and metrics use."""

    # Refused by us.
    RULE = "rule", Event.DENY
    DEFAULT = "default", Event.DENY
    REGISTRY = "registry", Event.DENY
    NO_SNI = "no_sni", Event.DENY
    SNI_IS_IP = "sni_is_ip", Event.DENY
    INVALID_SNI = "invalid_sni", Event.DENY
    NOT_TLS = "not_tls", Event.DENY
    MALFORMED_HELLO = "malformed_hello", Event.DENY
    HELLO_TOO_LARGE = "hello_too_large", Event.DENY
    SNI_MISMATCH = "sni_mismatch", Event.DENY
    ECH = "ech", Event.DENY
    IDENTITY_REQUIRED = "identity_required", Event.DENY
    UNTRUSTED_PEER = "untrusted_peer", Event.DENY
    BAD_PROXY_HEADER = "bad_proxy_header", Event.DENY
    DESTINATION_FORBIDDEN = "destination_forbidden", Event.DENY
    RATE_LIMITED = "rate_limited", Event.DENY
    CONNECTION_LIMIT = "connection_limit", Event.DENY

    # Not served, through no decision of ours.
    HELLO_TIMEOUT = "hello_timeout", Event.FAIL
    CLIENT_CLOSED = "client_closed", Event.FAIL
    DNS_NXDOMAIN = "dns_nxdomain", Event.FAIL
    DNS_TIMEOUT = "dns_timeout", Event.FAIL
    DNS_FAILED = "dns_failed", Event.FAIL
    CONNECT_REFUSED = "connect_refused", Event.FAIL
    CONNECT_TIMEOUT = "connect_timeout", Event.FAIL
    CONNECT_FAILED = "connect_failed", Event.FAIL
    INTERNAL = "internal", Event.FAIL

    # Served, and over.
    DONE = "done", Event.CLOSE
    CLIENT_RESET = "client_reset", Event.CLOSE
    UPSTREAM_RESET = "upstream_reset", Event.CLOSE
    IDLE_TIMEOUT = "idle_timeout", Event.CLOSE
    POLICY_CHANGED = "policy_changed", Event.CLOSE
    SNI_CHANGED = "sni_changed", Event.CLOSE
    DRAIN = "drain", Event.CLOSE

    word: str
    event: Event

    def __init__(self, word: str, event: Event) -> None:
        self.word = word
        self.event = event

    # Enum's own is a function in Python, and every connection looks its reason up in a few tables.
    __hash__ = object.__hash__


class ConnectionEndedError(Exception):
    """The story of one connection ends here, before bytes flow: refused or failed, and why.

    `detail` is one sentence of facts for the log's responseCodeDetails; it may quote what a client sent, so
    it is data and never a format.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.word}: {detail}" if detail else reason.word)
        self.reason = reason
        self.detail = detail
