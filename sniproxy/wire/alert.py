"""TLS alert records: how a refused client learns that it was refused, and in which sense.

The proxy never takes part in a handshake, so it sends an alert only in place of a ServerHello: in the clear,
as one record, always fatal, with the close right behind it (RFC 8446 section 6.2).
"""

from enum import Enum

_ALERT_RECORD = 21  # RFC 8446 section 5.1, ContentType
_FATAL = 2  # RFC 8446 section 6, AlertLevel

# RFC 8446 section 5.1: 0x0303 in every record but a first ClientHello. It is what servers themselves put
# on an alert before any version is agreed; OpenSSL, BoringSSL and Go look at the major version alone there,
# also when the client speaks only TLS 1.0. 0x0301 would do, and would look like a ClientHello to some DPI.
_LEGACY_RECORD_VERSION = (3, 3)


class Alert(Enum):
    """The alerts this proxy sends; the value is the AlertDescription (RFC 8446 section 6.2)."""

    ACCESS_DENIED = 49
    INTERNAL_ERROR = 80
    UNRECOGNIZED_NAME = 112

    @property
    def record(self) -> bytes:
        """The seven bytes to send."""
        return bytes((_ALERT_RECORD, *_LEGACY_RECORD_VERSION, 0, 2, _FATAL, self.value))
