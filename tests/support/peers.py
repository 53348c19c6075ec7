"""Real programs that the tests talk to. One that is missing skips its tests, and says so; in CI it fails them."""

import os
import shutil

import pytest

_PACKAGES = {"curl": "curl", "openssl": "openssl", "dnsmasq": "dnsmasq-base", "ip": "iproute2"}


def find_program(name: str) -> str:
    """The path of an installed program. Skips the test, or with CI=true fails it, where it is missing."""
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is not None:
        return program
    message = f"{name} is not installed (Debian package {_PACKAGES[name]})"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
