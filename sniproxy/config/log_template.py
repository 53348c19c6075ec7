"""The template of an access log line in nginx's way: text, with $variables in it.

A variable is written as $name, or as ${name} where a letter follows. What each one says of a connection is the log's
business (observe.text_lines); here is which ones there are, and what is wrong with a template.
"""

import difflib
import re
from typing import NamedTuple

from sniproxy.config.units import show

# The line of the nginx proxy that this one takes the place of, to the letter.
DEFAULT_TEMPLATE = (
    "$remote_addr [$time_local] $protocol [$ssl_preread_server_name]$status $bytes_sent $bytes_received $session_time"
)

# nginx's own (ngx_stream_core_module, ngx_stream_log_module, ngx_stream_ssl_preread_module), then ours.
VARIABLES = (
    "remote_addr",
    "time_local",
    "protocol",
    "ssl_preread_server_name",
    "status",
    "bytes_sent",
    "bytes_received",
    "session_time",
    "time_iso8601",
    "msec",
    "connection",
    "upstream_addr",
    "ssl_preread_protocol",
    "ssl_preread_alpn_protocols",
    "event",
    "level",
    "principal",
    "decision",
    "policy",
    "rule",
    "reason",
    "detail",
)

_MAX_LENGTH = 1024
_PIECE = re.compile(r"\$(?:([A-Za-z0-9_]+)|\{([A-Za-z0-9_]+)\})")


class Piece(NamedTuple):
    """A part of a template: the name of a variable, or text as it stands."""

    text: str
    is_variable: bool


def parse_template(text: str) -> tuple[Piece, ...]:
    """The pieces of a template, in their order. Raises ValueError with what is wrong, and the mend."""
    if not text or len(text) > _MAX_LENGTH:
        raise ValueError(f"it has {len(text)} characters; write 1 to {_MAX_LENGTH}")
    if not text.isprintable():
        raise ValueError("a line of the log is one line; take the line breaks and control characters out")
    pieces, end = [], 0
    for match in _PIECE.finditer(text):
        pieces.append(_literal(text[end : match.start()]))
        pieces.append(Piece(_known(match[1] or match[2]), True))
        end = match.end()
    pieces.append(_literal(text[end:]))
    return tuple(piece for piece in pieces if piece.text)


def check_template(text: str) -> str:
    """`text`, if it is a template."""
    parse_template(text)
    return text


def _literal(text: str) -> Piece:
    if "$" in text:
        raise ValueError(f"{show(text[text.index('$') :])} is no variable; write $remote_addr or ${{remote_addr}}")
    return Piece(text, False)


def _known(name: str) -> str:
    if name in VARIABLES:
        return name
    close = difflib.get_close_matches(name[:100], VARIABLES, n=1)
    guess = f"did you mean ${close[0]}? " if close else ""
    known = " ".join(f"${variable}" for variable in VARIABLES)
    raise ValueError(f"{show(f'${name}')} is no variable; {guess}the known ones are {known}")
