"""Server names: normalised and validated once, at the edge, and trusted everywhere after.

A `ServerName` is a DNS host name in lower case, without a trailing dot, never an IP address in any of the
spellings that a resolver or a browser would take for one. Nothing else in the program lowercases, strips or
checks a name: it asks for a `ServerName`.
"""

import ipaddress
import re
from enum import Enum
from typing import Final, NewType

from sniproxy.memo import Memo

ServerName = NewType("ServerName", str)

# RFC 1035 section 2.3.4: 255 octets on the wire, which leaves 253 for the text without its trailing dot.
MAX_LENGTH = 253

# RFC 952 and 1123 letters, digits and hyphens; and the underscore, which real names use.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)

# A last label that is a number makes the whole name an IPv4 address to inet_aton and to the WHATWG URL
# standard ("ends in a number"): 127.1, 0x7f.1, 2130706433. No top-level domain is numeric (RFC 3696, 2).
_NUMERIC_LABEL = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)", re.ASCII)


class NameFault(Enum):
    """Why some bytes are no server name."""

    IP_ADDRESS = "is an IP address, and a server name is a DNS host name (RFC 6066 section 3)"
    INVALID = "is not a DNS host name"


class InvalidNameError(ValueError):
    """These bytes are no server name; `fault` says in which way."""

    def __init__(self, text: str, fault: NameFault) -> None:
        super().__init__(f"{text!r} {fault.value}")
        self.fault = fault


def parse_server_name(raw: bytes) -> ServerName:
    """The server name in `raw`, the host name of an SNI extension or of a config file. Raises InvalidNameError."""
    return _parsed.of(raw)


def _parse(raw: bytes) -> ServerName:
    text = raw.decode("latin-1")
    name = text.lower().removesuffix(".") if text.isascii() else text
    if _is_ipv6(name) or _NUMERIC_LABEL.fullmatch(name.rpartition(".")[2]):
        raise InvalidNameError(text, NameFault.IP_ADDRESS)
    if len(name) > MAX_LENGTH or not _HOSTNAME.fullmatch(name):
        raise InvalidNameError(text, NameFault.INVALID)
    return ServerName(name)


_parsed: Final = Memo(_parse, 4096)  # a proxy meets the same names again and again


def _is_ipv6(name: str) -> bool:
    """Whether `name` is an IPv6 address, as the DNS or a URL spells it. A name with a port is none."""
    if ":" not in name:
        return False
    try:
        ipaddress.IPv6Address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
