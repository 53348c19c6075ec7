"""What is known of one connection: filled in as its story learns it, told once at the end."""

from sniproxy.identity.spiffe import UNKNOWN, Identity
from sniproxy.outcome import Reason
from sniproxy.policy.model import NO_GROUND, DryRun, Ground
from sniproxy.usual import INTERNAL


class Record:
    """The facts of one connection. Times are of the monotonic clock, in seconds; 0.0 is "not yet".

    `server_name` is the valid name, or as much of what the client sent as is fit to show, or "" while it is unknown.
    Once it is opened, only its end adds to it: `reason`, `detail`, `received` and `sent`.
    """

    __slots__ = (
        "allowed",
        "alpn",
        "audit",
        "began",
        "destination_ip",
        "destination_port",
        "detail",
        "dry_run",
        "ech",
        "ground",
        "head_size",
        "identity",
        "note",
        "number",
        "opened",
        "reason",
        "received",
        "sent",
        "server_name",
        "source_ip",
        "tls_version",
    )

    def __init__(self, number: int, source_ip: str, began: float) -> None:
        self.number = number
        self.source_ip = source_ip
        self.began = began
        self.opened = 0.0
        self.identity: Identity = UNKNOWN
        self.server_name = ""
        self.tls_version = ""
        self.alpn: tuple[str, ...] = ()
        self.ech = False
        self.allowed = False
        self.ground: Ground = NO_GROUND
        self.dry_run: DryRun | None = None  # what monitor mode would have changed
        self.audit: Ground | None = None  # the audit rule that holds
        self.destination_ip = ""
        self.destination_port = 0
        self.head_size = 0  # bytes that came before it was opened
        self.note = ""  # what is to be told besides, unless its end has more to tell
        self.received = 0
        self.sent = 0
        self.reason = INTERNAL
        self.detail = ""

    def end(self, reason: Reason, detail: str = "") -> None:
        """The story has ended, and why. `detail` is a sentence of facts; without one, what was noted before stays."""
        self.reason = reason
        self.detail = detail or self.detail or self.note
