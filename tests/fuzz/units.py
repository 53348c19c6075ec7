"""The values of config and policy files: each parser takes text or says in one line why not."""

from collections.abc import Callable
from typing import Any, TypeVar

from sniproxy.config import units
from tests.fuzz.text import text_of

T = TypeVar("T")

# What these parsers make of a text is written as a text that they take for the same.
_WITH_A_CANONICAL_TEXT: tuple[Callable[[Any], object], ...] = (
    units.parse_network,
    units.parse_name,
    units.parse_name_pattern,
    units.parse_tcp_address,
    units.parse_endpoint,
    units.parse_address,
    units.parse_trusted_peer,
    units.parse_nameserver,
    units.parse_namespace,
    units.parse_label,
)


def fuzz(data: bytes) -> None:
    text = text_of(data)
    for parse in _WITH_A_CANONICAL_TEXT:
        value = attempt(parse, text)
        assert value is None or value == parse(str(value))
    seconds = attempt(units.parse_duration, text)
    assert seconds is None or 0 <= seconds <= units.MAX_DURATION
    assert attempt(units.parse_positive_duration, text) == (seconds or None)
    size = attempt(units.parse_size, text)
    assert size is None or size == units.parse_size(size) >= 0


def attempt(parse: Callable[[str], T], text: str) -> T | None:
    """What `parse` makes of a text. A ValueError must be its own sentence, on one line, and no codec's."""
    try:
        return parse(text)
    except ValueError as error:
        assert not isinstance(error, UnicodeError)
        assert str(error).isprintable()
        assert 0 < len(str(error)) < 1000
        return None
