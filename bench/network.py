"""The network that a run has to itself.

A network namespace of its own (network_namespaces(7)) has a loopback with nobody else's connections, filters and
settings. One setting decides figures: TCP's congestion control. BBR, to which some machines are set, holds packets back
with a timer each; over loopback there is no bandwidth to find out and nothing to be gentle to, so that the timers are
all that it adds, and they come to more than the proxies do. A run has the kernel's default, cubic, or where the kernel
lets no namespace choose that, reno: neither has timers, and without loss they do the same.

It takes privileges. Without them a run has the machine's network as it is.
"""

import ctypes
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.stage import MissingToolError

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>; os.unshare came with Python 3.12
_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_UNPACED = ("cubic", "reno")


@dataclass(frozen=True)
class Network:
    """Where a run takes place."""

    is_its_own: bool
    congestion_control: str

    def __str__(self) -> str:
        whose = "a network namespace of its own" if self.is_its_own else "the machine's own network"
        return f"{whose}, TCP {self.congestion_control}"


def machine_network() -> Network:
    """The network as it is."""
    return Network(False, _CONGESTION_CONTROL.read_text().strip())


def own_network() -> Network:
    """Move this process, and with it all that it starts, to a network of its own, if it may."""
    libc = ctypes.CDLL(None, use_errno=True)
    ip = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if ip is None:
        raise MissingToolError("ip", "iproute2")
    if libc.unshare(_CLONE_NEWNET) != 0:
        return machine_network()
    subprocess.run([ip, "link", "set", "lo", "up"], check=True)
    for name in _UNPACED:
        with suppress(OSError):
            _CONGESTION_CONTROL.write_text(name)
            break
    return Network(True, machine_network().congestion_control)
