"""A run has a network of its own, with the kernel's settings, where it may."""

import os
import subprocess
import sys

import pytest

from tests.support.netns import namespace

ASK = """
import socket
from bench.network import own_network

print(own_network())
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
    print("loopback")
"""


def asked(*command: str) -> list[str]:
    return subprocess.run(
        [*command, sys.executable, "-c", ASK], capture_output=True, text=True, check=True
    ).stdout.split("\n")


@pytest.mark.e2e
def test_it_has_loopback_and_does_not_pace() -> None:
    with namespace():  # which skips where the machine lets nobody have one
        network, loopback, _ = asked()

    assert network in ("a network namespace of its own, TCP cubic", "a network namespace of its own, TCP reno")
    assert loopback == "loopback"


@pytest.mark.skipif(os.geteuid() != 0, reason="has no privileges to lose")
def test_without_privileges_it_is_the_machines() -> None:
    network, loopback, _ = asked("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")

    assert network.startswith("the machine's own network, TCP ")
    assert loopback == "loopback"
