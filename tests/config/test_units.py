"""The values that configs are written in, and how to write the wrong ones right."""

from collections.abc import Callable
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.units import (
    TcpAddress,
    Uid,
    UnixAddress,
    parse_address,
    parse_duration,
    parse_endpoint,
    parse_name,
    parse_nameserver,
    parse_namespace,
    parse_network,
    parse_positive_duration,
    parse_size,
    parse_tcp_address,
    parse_trusted_peer,
    show,
)

Parser = Callable[[object], object]

VALID: list[tuple[Parser, object, object]] = [
    (parse_duration, "250ms", 0.25),
    (parse_duration, "1.5s", 1.5),
    (parse_duration, "5m", 300.0),
    (parse_duration, "1h", 3600.0),
    (parse_duration, "0s", 0.0),
    (parse_duration, "8784h", 366 * 24 * 3600.0),
    (parse_size, 4096, 4096),
    (parse_size, "512B", 512),
    (parse_size, "64KiB", 65536),
    (parse_size, "1MiB", 1048576),
    (parse_network, "10.0.0.0/8", ip_network("10.0.0.0/8")),
    (parse_network, "fd00::/8", ip_network("fd00::/8")),
    (parse_network, "192.0.2.1", ip_network("192.0.2.1/32")),
    (parse_name, "EN.Wikipedia.org.", "en.wikipedia.org"),
    (parse_name, "a_b.example", "a_b.example"),
    (parse_tcp_address, "127.0.0.1:8443", TcpAddress("127.0.0.1", 8443)),
    (parse_tcp_address, "[::1]:8443", TcpAddress("::1", 8443)),
    (parse_tcp_address, "[2001:DB8:0::1]:1", TcpAddress("2001:db8::1", 1)),
    (parse_tcp_address, "0.0.0.0:0", TcpAddress("0.0.0.0", 0)),
    (parse_endpoint, "127.0.0.1:9443", TcpAddress("127.0.0.1", 9443)),
    (parse_address, "unix:/run/sniproxy/sni.sock", UnixAddress("/run/sniproxy/sni.sock")),
    (parse_address, "127.0.0.1:8443", TcpAddress("127.0.0.1", 8443)),
    (parse_address, "unix:/" + "x" * 106, UnixAddress("/" + "x" * 106)),
    (parse_trusted_peer, "uid:1337", Uid(1337)),
    (parse_trusted_peer, "uid:4294967294", Uid(4294967294)),
    (parse_trusted_peer, "127.0.0.0/8", ip_network("127.0.0.0/8")),
    (parse_nameserver, "8.8.8.8", TcpAddress("8.8.8.8", 53)),
    (parse_nameserver, "8.8.8.8:5353", TcpAddress("8.8.8.8", 5353)),
    (parse_nameserver, "2001:db8::1", TcpAddress("2001:db8::1", 53)),
    (parse_nameserver, "[2001:db8::1]:5353", TcpAddress("2001:db8::1", 5353)),
    (parse_namespace, "istio-system", "istio-system"),
    (parse_namespace, "n" * 63, "n" * 63),
]


@pytest.mark.parametrize(("parse", "written", "value"), VALID)
def test_reads(parse: Parser, written: object, value: object) -> None:
    assert parse(written) == value


DURATION = "is no duration; write a number with its unit: 250ms, 10s, 5m or 1h"
SIZE = "is no size; write a number of bytes, or one with KiB or MiB: 64KiB"
NETWORK = "is no network; write it as 10.0.0.0/8 or fd00::/8"
ADDRESS = 'is no address; write an IP address and a port: 127.0.0.1:8443 or "[::1]:8443"'
SOCKET = "is no absolute path of a socket; write it as unix:/run/sniproxy/sni.sock"
USER = "names no user; write the user's number: uid:1337"
NAMESERVER = "is no nameserver; write its IP address, with a port if it is not 53: 8.8.8.8 or 8.8.8.8:5353"
NAMESPACE = "is no namespace; write up to 63 lower-case letters, digits and '-': default"
IP = "is an IP address, and a server name is a DNS host name (RFC 6066 section 3); write it as en.wikipedia.org"
NAME = "is not a DNS host name; write it as en.wikipedia.org"

INVALID: list[tuple[Parser, object, str]] = [
    (parse_duration, 10, f"10 {DURATION}"),
    (parse_duration, 1.5, f"1.5 {DURATION}"),
    (parse_duration, True, f"true {DURATION}"),
    (parse_duration, None, f"nothing {DURATION}"),
    (parse_duration, ["1s"], f"a list {DURATION}"),
    (parse_duration, "10", f"'10' {DURATION}"),
    (parse_duration, "10 s", f"'10 s' {DURATION}"),
    (parse_duration, "-1s", f"'-1s' {DURATION}"),
    (parse_duration, "1d", f"'1d' {DURATION}"),
    (parse_duration, "1e3s", f"'1e3s' {DURATION}"),
    (parse_duration, "\u0661s", f"'\u0661s' {DURATION}"),
    (parse_duration, "9" * 99 + "h", f"'{'9' * 60}'... {DURATION}"),
    (parse_duration, "8785h", "'8785h' is longer than a year; write at most 8784h"),
    (parse_positive_duration, "0ms", "'0ms' is no time at all; write a longer one"),
    (parse_size, -1, f"-1 {SIZE}"),
    (parse_size, True, f"true {SIZE}"),
    (parse_size, "64KB", f"'64KB' {SIZE}"),
    (parse_size, "4096", f"'4096' {SIZE}"),
    (parse_size, "9" * 5000 + "KiB", f"'{'9' * 60}'... {SIZE}"),
    (parse_network, "nonsense", f"'nonsense' {NETWORK}"),
    (parse_network, "", f"'' {NETWORK}"),
    (parse_network, "10.0.0.0/33", f"'10.0.0.0/33' {NETWORK}"),
    (parse_network, 10, f"10 {NETWORK}"),
    (parse_network, "10.0.0.1/8", "'10.0.0.1/8' has bits set behind its prefix; write 10.0.0.0/8"),
    (parse_name, "*.x.org", f"'*.x.org' {NAME}"),
    (parse_name, "a.org:443", f"'a.org:443' {NAME}"),
    (parse_name, "bücher.de", f"'bücher.de' {NAME}"),
    (parse_name, "127.0.0.1", f"'127.0.0.1' {IP}"),
    (parse_name, "[::1]", f"'[::1]' {IP}"),
    (parse_name, 3, "3 is no host name; write it as en.wikipedia.org, in quotes if it is a number"),
    (parse_tcp_address, "localhost:8443", f"'localhost:8443' {ADDRESS}"),
    (parse_tcp_address, "127.0.0.1", f"'127.0.0.1' {ADDRESS}"),
    (parse_tcp_address, 8443, f"8443 {ADDRESS}"),
    (parse_tcp_address, ":8443", f"':8443' {ADDRESS}"),
    (parse_tcp_address, "*:8443", f"'*:8443' {ADDRESS}"),
    (parse_tcp_address, "::1:8443", f"'::1:8443' {ADDRESS}"),
    (parse_tcp_address, "127.0.0.1:65536", f"'127.0.0.1:65536' {ADDRESS}"),
    (parse_tcp_address, "127.0.0.1:\u0661", f"'127.0.0.1:\u0661' {ADDRESS}"),
    (parse_endpoint, "127.0.0.1:0", "'127.0.0.1:0' has the port 0, where nothing can listen; write the real one"),
    (parse_address, "unix:run/sni.sock", f"'unix:run/sni.sock' {SOCKET}"),
    (parse_address, "unix:/run/", f"'unix:/run/' {SOCKET}"),
    (parse_address, "unix:/a\0b", f"'unix:/a\\x00b' {SOCKET}"),
    (
        parse_address,
        "unix:/" + "x" * 107,
        f"'unix:/{'x' * 54}'... is longer than the 107 bytes that a Unix socket's path may have; shorten it",
    ),
    (parse_trusted_peer, "uid:root", f"'uid:root' {USER}"),
    (parse_trusted_peer, "uid:4294967295", f"'uid:4294967295' {USER}"),
    (parse_trusted_peer, "everyone", f"'everyone' {NETWORK}"),
    (parse_nameserver, "dns.google", f"'dns.google' {NAMESERVER}"),
    (parse_nameserver, "8.8.8.8:0", f"'8.8.8.8:0' {NAMESERVER}"),
    (parse_nameserver, 8, f"8 {NAMESERVER}"),
    (parse_nameserver, "", f"'' {NAMESERVER}"),
    (parse_nameserver, "1.1.1.1:", f"'1.1.1.1:' {NAMESERVER}"),
    (parse_nameserver, "1.1.1.1:65536", f"'1.1.1.1:65536' {NAMESERVER}"),
    (parse_nameserver, "[::1]", f"'[::1]' {NAMESERVER}"),
    (parse_nameserver, "[::1]53", f"'[::1]53' {NAMESERVER}"),
    (parse_nameserver, "[::1", f"'[::1' {NAMESERVER}"),
    (parse_nameserver, "::1]:53", f"'::1]:53' {NAMESERVER}"),
    (parse_namespace, "Default", f"'Default' {NAMESPACE}"),
    (parse_namespace, "n" * 64, f"'{'n' * 60}'... {NAMESPACE}"),
    (parse_namespace, 3, f"3 {NAMESPACE}"),
]


@pytest.mark.parametrize(("parse", "written", "message"), INVALID)
def test_refuses_with_the_mend(parse: Parser, written: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        parse(written)
    assert str(caught.value) == message


PARSERS = sorted({parse for parse, _, _ in VALID}, key=lambda parse: parse.__name__)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())


@given(st.sampled_from(PARSERS), VALUES)
def test_any_value_is_read_or_refused_in_a_short_line(parse: Parser, value: object) -> None:
    """Whatever a file holds, a parser raises nothing but ValueError, and quotes no more than a line has room for."""
    try:
        parse(value)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    assert message.isprintable()
    assert len(message) < 600


@given(st.integers(0, 65535), st.ip_addresses())
def test_an_address_is_written_as_it_is_read(port: int, ip: object) -> None:
    host = str(ip)
    address = TcpAddress(host, port)
    assert parse_tcp_address(str(address)) == address


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "nothing"),
        (True, "true"),
        (False, "false"),
        ({"a": 1}, "a mapping"),
        ([1], "a list"),
        ("x", "'x'"),
        ("a\nb", "'a\\nb'"),
        ("x" * 61, f"'{'x' * 60}'..."),
        (0, "0"),
        (1, "1"),
    ],
)
def test_values_are_shown_in_words_of_yaml(value: object, shown: str) -> None:
    assert show(value) == shown
