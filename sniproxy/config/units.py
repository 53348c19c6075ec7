"""The values that config and policy files are written in, each parsed once, with its mend in the error.

Every parser takes what YAML gave (or a value that is parsed already) and raises ValueError with a sentence that
says what is wrong and how to write it.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainValidator

from sniproxy.names import InvalidNameError, ServerName, parse_server_name

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)(B|KiB|MiB)")
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
# A timer of a year is a typing error; and a float must stay exact.
MAX_DURATION = 366 * 24 * 3600.0


def parse_duration(value: object) -> float:
    """Seconds, from "250ms", "10s", "5m" or "1h"."""
    if isinstance(value, float):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no duration; write a number with its unit: 250ms, 10s, 5m or 1h")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_DURATION:
        raise ValueError(f"{value!r} is longer than a year")
    return seconds


def parse_positive_duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"{value!r} must be longer than nothing")
    return seconds


def parse_size(value: object) -> int:
    """Bytes, from "4096", "64KiB" or "1MiB"."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no size; write bytes, or a number with KiB or MiB: 64KiB")
    return int(match[1]) * _BYTES[match[2]]


def parse_network(value: object) -> Network:
    """An IP network, from "10.0.0.0/8", or the single address in "192.0.2.1"."""
    if isinstance(value, Network):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no network; write it as 10.0.0.0/8 or fd00::/8")
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        pass
    try:
        loose = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"{value!r} is no network; write it as 10.0.0.0/8 or fd00::/8") from None
    raise ValueError(f"{value!r} has bits set behind its prefix; write {loose}")


def parse_name(value: object) -> ServerName:
    """One exact DNS host name."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no host name; write it as en.wikipedia.org, in quotes if it is a number")
    try:
        return parse_server_name(value.encode())
    except InvalidNameError as error:
        raise ValueError(f"{error}; write it as en.wikipedia.org") from None


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where to listen or to connect: an IP address in its canonical spelling, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix stream socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress

# sockaddr_un.sun_path has 108 bytes, the last one NUL (unix(7)).
_MAX_UNIX_PATH = 107


def parse_tcp_address(value: object) -> TcpAddress:
    """An IP address and port: "127.0.0.1:8443", "[::1]:8443", "0.0.0.0:8443"."""
    if isinstance(value, TcpAddress):
        return value
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        colon = ""
    if not colon or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{value!r} is no address; write an IP address and a port: 127.0.0.1:8443 or [::1]:8443")
    return TcpAddress(str(ip), int(port))


def parse_address(value: object) -> Address:
    """A TCP address, or "unix:/path"."""
    if isinstance(value, UnixAddress):
        return value
    if not isinstance(value, str) or not value.startswith("unix:"):
        return parse_tcp_address(value)
    path = value.removeprefix("unix:")
    if not path.startswith("/"):
        raise ValueError(f"{value!r} must be an absolute path: unix:/run/sniproxy/sni.sock")
    if len(path.encode()) > _MAX_UNIX_PATH:
        raise ValueError(f"{value!r} is longer than the {_MAX_UNIX_PATH} bytes that a Unix socket's path may have")
    return UnixAddress(path)


@dataclass(frozen=True, slots=True)
class Uid:
    """A peer on a Unix socket, by the user that SO_PEERCRED names."""

    uid: int

    def __str__(self) -> str:
        return f"uid:{self.uid}"


def parse_trusted_peer(value: object) -> Network | Uid:
    """Who may inject an identity: a network, or "uid:1337" on a Unix socket."""
    if isinstance(value, Uid):
        return value
    if isinstance(value, str) and value.startswith("uid:"):
        uid = value.removeprefix("uid:")
        if not re.fullmatch(r"\d{1,10}", uid):
            raise ValueError(f"{value!r} names no user; write its number: uid:1337")
        return Uid(int(uid))
    return parse_network(value)


def parse_nameserver(value: object) -> str:
    """A DNS server: "8.8.8.8", "8.8.8.8:53", "2001:db8::1" or "[2001:db8::1]:53", kept as written."""
    if isinstance(value, str):
        try:
            ipaddress.ip_address(value)
        except ValueError:
            try:
                return str(parse_tcp_address(value))
            except ValueError:
                pass
        else:
            return value
    raise ValueError(f"{value!r} is no nameserver; write its IP address, with a port if it is not 53: 8.8.8.8")


Duration = Annotated[float, PlainValidator(parse_duration)]
PositiveDuration = Annotated[float, PlainValidator(parse_positive_duration)]
Size = Annotated[int, PlainValidator(parse_size)]
AnyNetwork = Annotated[Network, PlainValidator(parse_network)]
HostName = Annotated[ServerName, PlainValidator(parse_name)]
EndpointAddress = Annotated[TcpAddress, PlainValidator(parse_tcp_address)]
ListenAddress = Annotated[Address, PlainValidator(parse_address)]
TrustedPeer = Annotated[Network | Uid, PlainValidator(parse_trusted_peer)]
Nameserver = Annotated[str, PlainValidator(parse_nameserver)]
