"""The values that config and policy files are written in, each parsed once, with its mend in the error.

Every parser takes what YAML gave and raises ValueError with a sentence that says what is wrong and how to write it.
"""

import contextlib
import ipaddress
import os
import re
from dataclasses import dataclass

from sniproxy.names import InvalidNameError, ServerName, parse_server_name

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB)")
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
# A timer of a year is a typing error; and a float must stay exact.
MAX_DURATION = 366 * 24 * 3600.0

_SHOWN = 60  # characters of a wrong value that its problem quotes


def show(value: object) -> str:
    """A wrong value as its problem quotes it: short, on one line, and in YAML's words."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!r}..."
    return repr(value)


def parse_duration(value: object) -> float:
    """Seconds, from "250ms", "10s", "5m" or "1h"."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{show(value)} is no duration; write a number with its unit: 250ms, 10s, 5m or 1h")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_DURATION:
        raise ValueError(f"{show(value)} is longer than a year; write at most 8784h")
    return seconds


def parse_positive_duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"{show(value)} is no time at all; write a longer one")
    return seconds


def parse_size(value: object) -> int:
    """Bytes, from 4096, "64KiB" or "1MiB"."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{show(value)} is no size; write a number of bytes, or one with KiB or MiB: 64KiB")
    return int(match[1]) * _BYTES[match[2]]


def parse_network(value: object) -> Network:
    """An IP network, from "10.0.0.0/8", or the single address in "192.0.2.1"."""
    try:
        loose = ipaddress.ip_network(value if isinstance(value, str) else "", strict=False)
    except ValueError:
        raise ValueError(f"{show(value)} is no network; write it as 10.0.0.0/8 or fd00::/8") from None
    try:
        return ipaddress.ip_network(str(value))
    except ValueError:
        raise ValueError(f"{show(value)} has bits set behind its prefix; write {loose}") from None


def parse_name(value: object) -> ServerName:
    """One exact DNS host name."""
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is no host name; write it as en.wikipedia.org, in quotes if it is a number")
    try:
        return parse_server_name(value.encode("utf-8", "replace"))
    except InvalidNameError as error:
        raise ValueError(f"{show(value)} {error.fault.value}; write it as en.wikipedia.org") from None


def parse_name_pattern(text: str) -> str:
    """An exact server name, `*.suffix` (every name under it, at any depth, and not itself), or `*`."""
    if text == "*":
        return text
    exact = text.removeprefix("*.")
    if "*" in exact:
        mend = "a star stands alone, or first with a dot behind it: *.wikipedia.org"
        raise ValueError(f"{show(text)} is no pattern; {mend}")
    try:
        name = parse_server_name(exact.encode("utf-8", "replace"))
    except InvalidNameError as error:
        raise ValueError(f"{show(text)} {error.fault.value}; {_mend_of_name_pattern(exact)}") from None
    return name if exact == text else f"*.{name}"


def _mend_of_name_pattern(exact: str) -> str:
    if not exact.isascii():
        return "write a name outside ASCII in its xn-- form"
    if ":" in exact or "/" in exact:
        return "write the name alone, without a scheme, a port or a path: en.wikipedia.org"
    return "write en.wikipedia.org, *.wikipedia.org or *"


def host_and_port(host: str, port: int) -> str:
    """An IP address with a port: 192.0.2.1:443, or [2001:db8::1]:443."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where to listen or to connect: an IP address in its canonical spelling, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix stream socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress

# sockaddr_un.sun_path has 108 bytes, the last one NUL (unix(7)).
_MAX_UNIX_PATH = 107

DNS_PORT = 53

_MAX_UID = 2**32 - 2  # -1 is no user (chown(2))

_LABEL = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def parse_tcp_address(value: object) -> TcpAddress:
    """An IP address and port: "127.0.0.1:8443", "[::1]:8443", "0.0.0.0:8443"."""
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        colon = ""
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        mend = 'write an IP address and a port: 127.0.0.1:8443 or "[::1]:8443"'
        raise ValueError(f"{show(value)} is no address; {mend}")
    return TcpAddress(str(ip), int(port))


def parse_endpoint(value: object) -> TcpAddress:
    """A TCP address to connect to, which cannot have the port 0."""
    address = parse_tcp_address(value)
    if address.port == 0:
        raise ValueError(f"{show(value)} has the port 0, where nothing can listen; write the real one")
    return address


def parse_address(value: object) -> Address:
    """A TCP address, or "unix:/path"."""
    if not isinstance(value, str) or not value.startswith("unix:"):
        return parse_tcp_address(value)
    path = value.removeprefix("unix:")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ValueError(f"{show(value)} is no absolute path of a socket; write it as unix:/run/sniproxy/sni.sock")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise ValueError(f"{show(value)} has a character that no path can have; take it out") from None
    if size > _MAX_UNIX_PATH:
        raise ValueError(
            f"{show(value)} is longer than the {_MAX_UNIX_PATH} bytes that a Unix socket's path may have; shorten it"
        )
    return UnixAddress(path)


@dataclass(frozen=True, slots=True)
class Uid:
    """A peer on a Unix socket, by the user that SO_PEERCRED names."""

    uid: int

    def __str__(self) -> str:
        return f"uid:{self.uid}"


def parse_trusted_peer(value: object) -> Network | Uid:
    """Who may inject an identity: a network, or "uid:1337" on a Unix socket."""
    if isinstance(value, str) and value.startswith("uid:"):
        uid = value.removeprefix("uid:")
        if not re.fullmatch(r"[0-9]{1,10}", uid) or int(uid) > _MAX_UID:
            raise ValueError(f"{show(value)} names no user; write the user's number: uid:1337")
        return Uid(int(uid))
    return parse_network(value)


def parse_nameserver(value: object) -> TcpAddress:
    """A DNS server, by UDP and TCP alike: "8.8.8.8", "8.8.8.8:53", "2001:db8::1" or "[2001:db8::1]:53"."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return TcpAddress(str(ipaddress.ip_address(value)), DNS_PORT)
        with contextlib.suppress(ValueError):
            return parse_endpoint(value)
    raise ValueError(
        f"{show(value)} is no nameserver; write its IP address, with a port if it is not 53: 8.8.8.8 or 8.8.8.8:5353"
    )


def parse_namespace(value: object) -> str:
    """A Kubernetes namespace: an RFC 1123 label."""
    if not isinstance(value, str) or not _NAMESPACE.fullmatch(value):
        raise ValueError(f"{show(value)} is no namespace; write up to 63 lower-case letters, digits and '-': default")
    return value


def parse_label(value: object) -> str:
    """The value of a Kubernetes label."""
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise ValueError(f"{show(value)} is no label's value; write up to 63 letters, digits, '-', '_' and '.'")
    return value
