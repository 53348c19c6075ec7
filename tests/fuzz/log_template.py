"""The template of an access log line, and the line that it makes of a connection with a hostile name.

The input is the template up to the first NUL, and what the client sent behind it.
"""

import re
import select

from sniproxy.config.log_template import VARIABLES, parse_template
from sniproxy.observe.text_lines import EnvoyLines, NginxLines
from sniproxy.outcome import Event, Reason
from tests.fuzz.text import text_of
from tests.fuzz.units import attempt
from tests.observe.records import as_recorded, refused

_IN_BRACKETS = NginxLines('[$ssl_preread_server_name] "$detail"', "pod")


def fuzz(data: bytes) -> None:
    written, _, sent = data.partition(b"\0")
    template = text_of(written)
    pieces = attempt(parse_template, template)
    if pieces is None:
        template = "$ssl_preread_server_name $ssl_preread_alpn_protocols $detail"
    else:
        rewritten = "".join(f"${{{piece.text}}}" if piece.is_variable else piece.text for piece in pieces)
        assert len(rewritten) > 1024 or pieces == parse_template(rewritten)
        assert all(piece.text in VARIABLES for piece in pieces if piece.is_variable)
    record = refused(Reason.INVALID_SNI)
    record.server_name = as_recorded(sent)
    record.alpn = (text_of(sent),)
    record.detail = text_of(sent)
    for format_ in (NginxLines(template, "pod"), EnvoyLines()):
        check_line(format_.line(record, Event.DENY, record.began + 1))
    in_brackets = _IN_BRACKETS.line(record, Event.DENY, record.began + 1)
    assert re.fullmatch(rb'\[[^][" ]+\] "[^"]+"\n', in_brackets), "what was sent ends what stands around it"


def check_line(line: bytes) -> None:
    """One line, that no terminal and no parser takes for anything else, written at once."""
    assert line.endswith(b"\n")
    assert line[:-1].decode().isprintable()
    assert len(line) <= select.PIPE_BUF
