"""Templates of access log lines: their pieces, and what is wrong with one."""

import re

import pytest

from sniproxy.config.log_template import DEFAULT_TEMPLATE, VARIABLES, Piece, check_template, parse_template

KNOWN = "the known ones are " + " ".join(f"${name}" for name in VARIABLES)


def variable(name: str) -> Piece:
    return Piece(name, True)


def text(literal: str) -> Piece:
    return Piece(literal, False)


TEMPLATES = {
    "a variable alone": ("$status", [variable("status")]),
    "text alone": ("a line", [text("a line")]),
    "variables with text around them": (
        "[$status] <$detail>",
        [text("["), variable("status"), text("] <"), variable("detail"), text(">")],
    ),
    "a variable in braces, where a letter follows": ("${msec}s", [variable("msec"), text("s")]),
    "two variables side by side": ("$status$reason", [variable("status"), variable("reason")]),
}


@pytest.mark.parametrize(("template", "pieces"), TEMPLATES.values(), ids=TEMPLATES)
def test_the_pieces_of_a_template(template: str, pieces: list[Piece]) -> None:
    assert list(parse_template(template)) == pieces
    assert check_template(template) == template


def test_the_default_is_the_line_of_the_nginx_proxy_before_us() -> None:
    """`log_format log_stream`, to the letter: there is no space behind the name's bracket."""
    assert DEFAULT_TEMPLATE == (
        "$remote_addr [$time_local] $protocol [$ssl_preread_server_name]"
        "$status $bytes_sent $bytes_received $session_time"
    )
    assert [piece.text for piece in parse_template(DEFAULT_TEMPLATE) if piece.is_variable] == list(VARIABLES[:8])


BAD = {
    "nothing": ("", "it has 0 characters; write 1 to 1024"),
    "too much": ("x" * 1025, "it has 1025 characters; write 1 to 1024"),
    "a line break": ("a\nb", "a line of the log is one line; take the line breaks and control characters out"),
    "a misspelt variable": ("$statu", f"'$statu' is no variable; did you mean $status? {KNOWN}"),
    "a variable of nginx's that a proxy by SNI has no use for": (
        "$geoip_org",
        f"'$geoip_org' is no variable; {KNOWN}",
    ),
    "a dollar by itself": ("costs 3$", "'$' is no variable; write $remote_addr or ${remote_addr}"),
    "an open brace": ("${status", "'${status' is no variable; write $remote_addr or ${remote_addr}"),
}


@pytest.mark.parametrize(("template", "message"), BAD.values(), ids=BAD)
def test_what_is_no_template(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_template(template)
