"""Server names: what is one, and what only looks like one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.names import MAX_LENGTH, InvalidNameError, NameFault, parse_server_name

LABEL_63 = "a" * 63
LONGEST = ".".join([LABEL_63, LABEL_63, LABEL_63, "a" * 61])

NAMES = {
    "a name": (b"en.wikipedia.org", "en.wikipedia.org"),
    "a name in capitals": (b"EN.Wikipedia.ORG", "en.wikipedia.org"),
    "a dot at the end": (b"en.wikipedia.org.", "en.wikipedia.org"),
    "one label": (b"localhost", "localhost"),
    "underscores, which real names have": (b"_sip._tls.my_host.example", "_sip._tls.my_host.example"),
    "hyphens inside": (b"a--b.xn--bcher-kva.de", "a--b.xn--bcher-kva.de"),
    "digits before the last label": (b"1.2.3.4.in-addr.arpa", "1.2.3.4.in-addr.arpa"),
    "a last label that only begins with a digit": (b"a.1x", "a.1x"),
    "a last label that only begins like a hexadecimal number": (b"a.0xg", "a.0xg"),
    "a label of 63 letters": (f"{LABEL_63}.org".encode(), f"{LABEL_63}.org"),
    "a name of 253 letters": (LONGEST.encode(), LONGEST),
    "a name of 253 letters with a dot at the end": (f"{LONGEST}.".encode(), LONGEST),
}


@pytest.mark.parametrize(("raw", "name"), NAMES.values(), ids=NAMES)
def test_is_a_name(raw: bytes, name: str) -> None:
    assert parse_server_name(raw) == name


ADDRESSES = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "2130706433",
    "0x7f.1",
    "0x7f000001",
    "0X7F.0.0.1",
    "0177.0.0.1",
    "1",
    "0x",
    "a.b.1",
    "999.999.999.999",
    "::1",
    "[::1]",
    "2001:DB8::1",
    "::ffff:127.0.0.1",
    "fe80::1%eth0",
]


@pytest.mark.parametrize("text", ADDRESSES)
def test_every_spelling_of_an_address_is_an_address(text: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        parse_server_name(text.encode())
    assert caught.value.fault is NameFault.IP_ADDRESS


INVALID = {
    "nothing": b"",
    "a dot": b".",
    "two dots at the end": b"a.org..",
    "a dot in front": b".a.org",
    "an empty label": b"a..org",
    "a hyphen in front": b"-a.org",
    "a hyphen at the end of a label": b"a-.org",
    "a label of 64 letters": b"a" * 64 + b".org",
    "a name of 254 letters": f"a{LONGEST}".encode(),
    "a space": b"a b.org",
    "a star": b"*.a.org",
    "a port": b"en.wikipedia.org:443",
    "a URL": b"https://en.wikipedia.org",
    "a path": b"a.org/b",
    "a new line": b"a.org\n",
    "NUL": b"a.org\0.b.org",
    "UTF-8": "bücher.de".encode(),
    "a letter that becomes ASCII in lower case": "\u212a.org".encode(),
    "a byte that is no letter": b"a\xff.org",
    "digits of another script": "\u0661.org".encode(),
}


@pytest.mark.parametrize("raw", INVALID.values(), ids=INVALID)
def test_is_no_name(raw: bytes) -> None:
    with pytest.raises(InvalidNameError) as caught:
        parse_server_name(raw)
    assert caught.value.fault is NameFault.INVALID


def test_the_error_quotes_what_was_sent_so_that_it_breaks_no_line() -> None:
    with pytest.raises(InvalidNameError) as caught:
        parse_server_name(b"a\n\x1b\xff")
    assert str(caught.value) == "'a\\n\\x1bÿ' is not a DNS host name"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_name_or_refused(raw: bytes) -> None:
    """What is a name stays the same name when it is parsed again, whatever its case and with a dot behind it."""
    try:
        name = parse_server_name(raw)
    except InvalidNameError:
        return
    assert len(name) <= MAX_LENGTH
    assert {parse_server_name(text.encode()) for text in (name, name.upper(), f"{name}.")} == {name}
