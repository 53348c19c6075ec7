"""Network namespaces of a test's own: what happens in them reaches nobody else, and they go with the test.

A namespace belongs to a thread, and threads and processes that it starts are born into it. So whatever is opened or
started while it is entered is inside: sockets, origins, and the proxy itself.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.peers import find_program

_CLONE_NEWNET = 0x40000000  # sched.h

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@dataclass(frozen=True)
class Namespace:
    """An open descriptor of a namespace, which lives as long as that, or as anything inside."""

    descriptor: int

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is inside."""
        outside = _own_namespace()
        _check(_libc.setns(self.descriptor, _CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc.setns(outside, _CLONE_NEWNET))
            os.close(outside)

    def ip(self, *arguments: str) -> None:
        """ip(8), inside."""
        with self.entered():
            subprocess.run([find_program("ip"), *arguments], check=True)

    def forward(self) -> None:
        """Be a router, and one that sends its ICMP errors as they come (icmp(7), icmp_ratelimit)."""
        with self.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A new namespace that has its loopback. Skips the test where the machine does not let us."""
    find_program("ip")
    outside = _own_namespace()
    try:
        try:
            _check(_libc.unshare(_CLONE_NEWNET))
        except PermissionError:
            pytest.skip("network namespaces want root")
        new = Namespace(_own_namespace())
        _check(_libc.setns(outside, _CLONE_NEWNET))
    finally:
        os.close(outside)
    try:
        new.ip("link", "set", "lo", "up")
        yield new
    finally:
        os.close(new.descriptor)


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
