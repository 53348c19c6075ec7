"""What the end-to-end tests share: an authority, and the four Wikipedias behind it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.echoing import echo
from tests.support.origins import NAMES, Authority, origin, tls_origin

ALL_BUT_ENGLISH = {
    "rules": [
        {"name": "wikipedia", "action": "allow", "sni": ["*.wikipedia.org"]},
        {"name": "no-english", "action": "deny", "sni": ["en.wikipedia.org"]},
    ]
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder starts real processes."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def wikipedias(authority: Authority) -> Iterator[dict[str, list[str]]]:
    """`upstream.hosts` for the four Wikipedias, each a TLS origin of its own."""
    with contextlib.ExitStack() as stack:
        yield {name: [f"127.0.0.1:{stack.enter_context(tls_origin(authority, name))}"] for name in NAMES}


@pytest.fixture(scope="session")
def echo_port() -> Iterator[int]:
    """The port of an origin that says `ready`, and then every byte again."""
    with origin(echo) as port:
        yield port


def allowing(*names: str) -> dict[str, Any]:
    """A policy that allows these names to everybody."""
    return {"rules": [{"name": "some", "action": "allow", "sni": list(names)}]}
