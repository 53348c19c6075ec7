"""Real programs that the tests talk to. One that is missing skips its tests, and says so; in CI it fails them."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NoReturn

import pytest

_PACKAGES = {"cc": "gcc", "curl": "curl", "openssl": "openssl", "dnsmasq": "dnsmasq-base", "ip": "iproute2"}


def find_program(name: str) -> str:
    """The path of an installed program. Skips the test, or with CI=true fails it, where it is missing."""
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    return program or _miss(name, _PACKAGES[name])


def c_compiler() -> list[str]:
    """The command that compiles C for this Python. What is missing for that is told as of a program."""
    compiler = find_program("cc")
    # gcc alone brings no header of C's own library.
    preprocess = subprocess.run([compiler, "-E", "-"], input=b"#include <stdlib.h>", capture_output=True, check=False)
    if preprocess.returncode:
        _miss("stdlib.h", "libc6-dev")
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").is_file():
        _miss(f"{headers}/Python.h", "python3-dev")
    return [compiler, "-isystem", headers]


def _miss(what: str, package: str) -> NoReturn:
    message = f"{what} is not installed (Debian package {package})"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
