"""A link between two network namespaces that delays packets, loses them, and can be cut.

It is made of two TUN devices and a thread that carries IP packets from one to the other, so that it needs nothing of
the kernel but those: the queueing discipline that could do it, netem, is a module that many kernels come without.
What is impaired are packets, and so it is real TCP that retransmits, reorders and gives up.
"""

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.netns import Namespace, namespace

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000

_DEVICE = "tun0"
_MTU = 1500

NEAR = "10.77.0.1"
# What the far side has.
FAR = tuple(f"10.78.0.{number}" for number in range(1, 3))
# Where packets go over the link. The far side is a router to the second network, in which there is nothing.
_FAR_NETWORKS = ("10.78.0.0/16", "10.79.0.0/16")


@dataclass
class Link:
    """How packets fare, from now on. Times are in seconds, `loss` is a share of all packets either way."""

    near: Namespace
    far: Namespace
    dice: random.Random
    delay: float = 0.0
    jitter: float = 0.0  # more than no delay, up to this; it also reorders
    loss: float = 0.0
    is_cut: bool = False
    passed: int = 0
    lost: int = 0

    def far_route(self, kind: str, address: str) -> None:
        """What the router at the far end does with packets to an address: `blackhole`, `unreachable`, `prohibit`."""
        self.far.ip("route", "add", kind, address)

    def has_lost_one(self) -> bool:
        if self.is_cut or self.dice.random() < self.loss:
            self.lost += 1
            return True
        self.passed += 1
        return False


def _tun(inside: Namespace) -> int:
    try:
        with inside.entered():
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        pytest.skip(f"TUN devices are not to be had: {error.strerror}")
    inside.ip("link", "set", "dev", _DEVICE, "mtu", str(_MTU), "up")
    return device


def _carry(link: Link, devices: tuple[int, int], stop: int) -> None:
    """Take packets from either device to the other, when it is time, until `stop` is readable."""
    across = {devices[0]: devices[1], devices[1]: devices[0]}
    under_way: list[tuple[float, int, int, bytes]] = []
    poll = select.poll()
    for descriptor in (*devices, stop):
        poll.register(descriptor, select.POLLIN)
    number = 0
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) * 1000 + 0.5 if under_way else None
        ready = [descriptor for descriptor, _ in poll.poll(wait)]
        if stop in ready:
            return
        for device in ready:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = os.read(device, 2 * _MTU)
                    if not link.has_lost_one():
                        number += 1
                        due = time.monotonic() + link.delay + link.dice.random() * link.jitter
                        heapq.heappush(under_way, (due, number, across[device], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(under_way)
            with contextlib.suppress(BlockingIOError):  # its queue is full: that happens to packets
                os.write(device, packet)


@contextlib.contextmanager
def linked(seed: int) -> Iterator[Link]:
    """Two new namespaces with a link between them. The far side has the addresses FAR, and is a router."""
    with namespace() as near, namespace() as far:
        link = Link(near, far, random.Random(seed))
        devices = (_tun(near), _tun(far))
        near.ip("addr", "add", NEAR, "dev", _DEVICE)
        for network in _FAR_NETWORKS:
            near.ip("route", "add", network, "dev", _DEVICE)
        for address in FAR:
            far.ip("addr", "add", address, "dev", "lo")
        far.ip("route", "add", NEAR, "dev", _DEVICE)
        far.forward()
        stop, stopper = os.pipe()
        carrier = threading.Thread(target=_carry, args=(link, devices, stop), daemon=True)
        carrier.start()
        try:
            yield link
        finally:
            os.close(stopper)
            carrier.join()
            for descriptor in (stop, *devices):
                os.close(descriptor)
