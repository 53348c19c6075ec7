"""What a running proxy takes from a new config."""

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from sniproxy.config.model import Admin, Config, Limits, Listener, Timeouts
from sniproxy.config.units import TcpAddress
from sniproxy.reload.settle import settle

FIRST, SECOND, THIRD = (TcpAddress("127.0.0.1", port) for port in (1, 2, 3))
SHORT = Timeouts(idle=1.0)
RUNNING = Config(listeners=(Listener(address=FIRST), Listener(address=SECOND)), workers=2)


def trusting(address: TcpAddress) -> Listener:
    return Listener(address=address, proxy_protocol="required", trusted_peers=(ip_network("127.0.0.0/8"),))


def changed(**update: Any) -> Config:
    return replace(RUNNING, **update)


CASES: dict[str, tuple[Config, Config, tuple[str, ...]]] = {
    "nothing": (RUNNING, RUNNING, ()),
    "timeouts and limits": (
        changed(timeouts=SHORT, limits=Limits(connections=7)),
        changed(timeouts=SHORT, limits=Limits(connections=7)),
        (),
    ),
    "what a listener asks for": (
        changed(listeners=(Listener(address=FIRST), trusting(SECOND))),
        changed(listeners=(Listener(address=FIRST), trusting(SECOND))),
        (),
    ),
    "the order of listeners": (changed(listeners=(Listener(address=SECOND), Listener(address=FIRST))), RUNNING, ()),
    "a listener that is gone": (
        changed(listeners=(trusting(SECOND),)),
        changed(listeners=(Listener(address=FIRST), trusting(SECOND))),
        ("listeners: 127.0.0.1:1 is gone, and goes on as it was until the restart",),
    ),
    "a listener that is new": (
        changed(listeners=(*RUNNING.listeners, Listener(address=THIRD))),
        RUNNING,
        ("listeners: 127.0.0.1:3 is new, and listens after the restart",),
    ),
    "the number of workers": (
        changed(workers=3, timeouts=SHORT),
        changed(timeouts=SHORT),
        ("workers: 3 takes the place of 2 after the restart",),
    ),
    "the admin addresses": (
        changed(admin=Admin(address=None, metrics_address=THIRD)),
        RUNNING,
        (
            "admin.address: none takes the place of 127.0.0.1:9402 after the restart",
            "admin.metrics_address: 127.0.0.1:3 takes the place of none after the restart",
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_in_force_after_a_change_of(case: str) -> None:
    """Each key that needs a restart is named and keeps its value; all the rest is taken."""
    wanted, in_force, told = CASES[case]
    assert settle(RUNNING, wanted) == (in_force, told)


def test_listeners_of_any_free_port_are_matched_one_by_one() -> None:
    free = TcpAddress("127.0.0.1", 0)
    running = changed(listeners=(Listener(address=free), Listener(address=free)))
    wanted = changed(listeners=(Listener(address=free), trusting(free)))
    assert settle(running, wanted) == (wanted, ())
