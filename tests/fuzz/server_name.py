"""Server names: what is accepted is a host name in its one canonical form, and no address in any spelling."""

import ipaddress
import re
import socket
from collections.abc import Callable

from sniproxy.names import InvalidNameError, parse_server_name

_LABEL = re.compile(r"[a-z0-9_-]{1,63}", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)  # to the URL standard: a name that ends in one is an address


def fuzz(data: bytes) -> None:
    try:
        name = parse_server_name(data)
    except InvalidNameError as error:
        assert str(error).isprintable()
        return
    check_name(name)
    assert name == data.decode("ascii").lower().removesuffix(".")
    for spelling in (name.upper(), f"{name}.", name.swapcase()):
        assert name == parse_server_name(spelling.encode())


def check_name(name: str) -> None:
    """What whoever holds a ServerName relies on."""
    assert name == parse_server_name(name.encode())
    assert 1 <= len(name) <= 253
    labels = name.split(".")
    assert all(_LABEL.fullmatch(label) for label in labels)
    assert not any(label.startswith("-") or label.endswith("-") for label in labels)
    assert not _NUMBER.fullmatch(labels[-1])
    assert not _is_address(name)


def _is_address(name: str) -> bool:
    """By the library's parser, by inet_aton(3), which takes 127.1 and 0x7f.1, and by getaddrinfo(3)."""
    readers: tuple[Callable[[], object], ...] = (
        lambda: ipaddress.ip_address(name),
        lambda: socket.inet_aton(name),
        lambda: socket.getaddrinfo(name, None, flags=socket.AI_NUMERICHOST),
    )
    return any(_succeeds(reader) for reader in readers)


def _succeeds(reader: Callable[[], object]) -> bool:
    try:
        reader()
    except (ValueError, OSError):
        return False
    return True
