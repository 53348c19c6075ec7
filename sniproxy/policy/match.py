"""What the values of conditions mean, twice: plainly, and for an index.

`holds` is the meaning. It looks at one condition and one request, and is written to be read:

    en.wikipedia.org    that name, or principal, alone
    *.wikipedia.org     what ends in .wikipedia.org: every name under it, at any depth, and not itself
    cluster.local/ns/*  what begins with cluster.local/ns/
    *                   whatever is there and not empty; a star elsewhere is a star, so that *a* ends in a*
    prod-*              of a namespace: a star is any run of characters, wherever it stands

An index cannot ask every rule. It finds a value by its `Key`: a form, a measure, and bytes to compare. A request has
at most one key for each form and measure, which `cut` cuts out of it, so that there is one look-up for each form and
measure that rules use, however many rules there are. Almost all patterns begin or end at a border between labels or
segments, and are measured in those; the others are measured in bytes.

    *.wikipedia.org     Key(UNDER, 2, ".wikipedia.org"), which en.wikipedia.org and a.b.wikipedia.org have as well
    *pedia.org          Key(ENDING, 9, "pedia.org")
"""

import ipaddress
import operator
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any, AnyStr, NamedTuple

from sniproxy.config.units import parse_name_pattern, show
from sniproxy.identity.spiffe import InvalidSpiffeIdError, Principal, parse_principal
from sniproxy.policy.model import Attribute, Condition, Request

__all__ = ["holds", "parse_identity_pattern", "parse_name_pattern"]


def parse_identity_pattern(text: str) -> str:
    """An exact principal, all below a path (`cluster.local/ns/default/*`), or `*`: any that is known.

    The answer is what rules hold: without a scheme. Raises ValueError with the mend.
    """
    if text == "*":
        return text
    exact = text.removesuffix("/*")
    if "*" in exact:
        raise ValueError(f"{show(text)} is no pattern; a star stands alone, or last: cluster.local/ns/default/*")
    try:
        principal = str(parse_principal(exact))
    except InvalidSpiffeIdError as error:
        raise ValueError(f"{error}; write it as cluster.local/ns/default/sa/sleep") from None
    return principal if exact == text else f"{principal}/*"


# The meaning.


def holds(condition: Condition, request: Request) -> bool:
    """Whether the attribute is among the values, or there are none, and is not among the `not_values`."""

    def is_among(values: Iterable[str]) -> bool:
        return any(_matches(condition.attribute, value, request) for value in values)

    return (not condition.values or is_among(condition.values)) and not is_among(condition.not_values)


def _matches(attribute: Attribute, value: str, request: Request) -> bool:
    match attribute:
        case Attribute.SNI:
            return _string_matches(value, request.server_name)
        case Attribute.PRINCIPAL:
            return _string_matches(value, principal_text(request))
        case Attribute.NAMESPACE:
            return _namespace_matches(value, principal_text(request))
        case Attribute.SOURCE_IP:
            return _network_matches(value, request.source_ip)
        case Attribute.PORT:
            return value == str(request.port)


def principal_text(request: Request) -> str:
    """The principal as rules write it, and "", which nothing matches, where there is none."""
    return request.identity.text if isinstance(request.identity, Principal) else ""


def _string_matches(pattern: str, text: str) -> bool:
    """As Istio's pilot/pkg/security/authz/matcher/string.go has it, and in its order."""
    if pattern == "*" or not text:
        return bool(text)
    if pattern.startswith("*"):
        return text.endswith(pattern[1:])
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return text == pattern


def _namespace_matches(pattern: str, principal: str) -> bool:
    """As the regular expression `.*/ns/PATTERN/.*` with `.*` for each star, which is how Istio asks.

    That is: the texts between the stars follow each other somewhere in the principal.
    """
    return _has_in_order(principal, _namespace_parts(pattern))


def _namespace_parts(pattern: str) -> list[str]:
    return f"/ns/{pattern}/".split("*")


def _has_in_order(text: AnyStr, parts: Iterable[AnyStr]) -> bool:
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def _network_matches(network: str, source_ip: str) -> bool:
    return source_ip != "" and _address(source_ip) in _network(network)


# Slow to parse, and asked for again and again.
_address = lru_cache(maxsize=64)(ipaddress.ip_address)
_network = lru_cache(maxsize=4096)(ipaddress.ip_network)


# The index.

# How the bytes of a key, or of a check, relate to what they are compared with. Plain numbers, for they are compared for
# every decision, and members of an enum take three times as long.
EXACT = 0  # they are all of it
UNDER = 1  # its last labels or segments, with the separator before them
ENDING = 2  # its last bytes
WITHIN = 3  # its first labels or segments, with the separator behind them
BEGINNING = 4  # its first bytes
NETWORK = 5  # the first bits of an address
# Two that have no key, and can only be tried:
PRESENT = 6  # there is any of it
PARTS = 7  # these texts stand in it, one behind the other

FORMS = 8

# What an index has keys of: a form, and how many labels, segments, bytes or bits. Bits count from 0 for IPv4 and from
# _IPV6 for IPv6.
Shape = tuple[int, int]
_IPV6 = 64

# What an attribute of a request is to an index: the bytes of a text, and of an address those of inet_pton. What is
# absent is empty, and has no keys.
Subject = bytes


class Key(NamedTuple):
    form: int
    measure: int
    text: bytes

    @property
    def shape(self) -> Shape:
        return self.form, self.measure


# A form, and what to compare: a value that is tried, and not looked up.
Check = tuple[int, Any]

# What stands between the labels of a name and the segments of a principal.
SEPARATORS = {Attribute.SNI: b".", Attribute.PRINCIPAL: b"/"}


def encoded(text: str) -> bytes:
    """Texts of rules can be any that YAML can write, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def key_of(attribute: Attribute, value: str) -> Key | None:
    """The key of a value, or None where it can have none: a star, or a namespace that is no plain segment."""
    if attribute is Attribute.SOURCE_IP:
        return _network_key(value)
    if attribute is Attribute.PORT:
        return Key(EXACT, 0, encoded(value))
    if attribute is Attribute.NAMESPACE:
        return None if "*" in value or "/" in value else Key(EXACT, 0, encoded(value))
    return None if value == "*" else _pattern_key(value, SEPARATORS[attribute])


def _pattern_key(value: str, separator: bytes) -> Key:
    text = encoded(value)
    if text.startswith(b"*"):
        ending = text[1:]
        if ending.startswith(separator):
            return Key(UNDER, ending.count(separator), ending)
        return Key(ENDING, len(ending), ending)
    if text.endswith(b"*"):
        beginning = text[:-1]
        if beginning.endswith(separator):
            return Key(WITHIN, beginning.count(separator), beginning)
        return Key(BEGINNING, len(beginning), beginning)
    return Key(EXACT, 0, text)


def _network_key(text: str) -> Key:
    network = _network(text)
    measure = network.prefixlen if network.version == 4 else network.prefixlen + _IPV6
    bits = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
    return Key(NETWORK, measure, _network_bytes(measure, bits))


def _network_bytes(measure: int, bits: int) -> bytes:
    return bits.to_bytes(16, "big") + measure.to_bytes(1, "big")


def cut(shape: Shape, subject: Subject, separator: bytes) -> bytes | None:
    """The key of a subject in one shape, if it has one."""
    form, measure = shape
    if form == EXACT:
        return subject or None
    if form == UNDER:
        parts = subject.rsplit(separator, measure)
        return subject[len(parts[0]) :] if len(parts) > measure else None
    if form == WITHIN:
        parts = subject.split(separator, measure)
        return subject[: len(subject) - len(parts[-1])] if len(parts) > measure else None
    if form == NETWORK:
        return _network_of(measure, subject)
    if len(subject) < measure:
        return None
    return subject[-measure:] if form == ENDING else subject[:measure]


def namespaces_in(principal: Subject) -> list[bytes]:
    """The keys that a principal has by the namespaces it is in: `Principal.namespaces` in bytes."""
    segments = principal.split(b"/")[1:-1]
    return [name for marker, name in pairwise(segments) if marker == b"ns"]


def _network_of(measure: int, address: Subject) -> bytes | None:
    """The network of this size that an address is in."""
    length, size = (measure - _IPV6, 128) if measure >= _IPV6 else (measure, 32)
    if len(address) * 8 != size:
        return None
    return _network_bytes(measure, int.from_bytes(address, "big") >> (size - length))


def check_of(attribute: Attribute, value: str) -> Check:
    """A value, so that `passes` compares as `_matches` does. The subject of a namespace is the principal."""
    if attribute is Attribute.NAMESPACE:
        return PARTS, tuple(map(encoded, _namespace_parts(value)))
    key = key_of(attribute, value)
    return (key.form, key.text) if key else (PRESENT, b"")


def passes(check: Check, subject: Subject) -> bool:
    form, operand = check
    return bool(subject) and _COMPARE[form](subject, operand)


def _is_in_network(address: Subject, network: bytes) -> bool:
    return _network_of(network[-1], address) == network


_COMPARE: tuple[Callable[[Subject, Any], bool], ...] = (
    operator.eq,
    bytes.endswith,
    bytes.endswith,
    bytes.startswith,
    bytes.startswith,
    _is_in_network,
    lambda _subject, _operand: True,
    _has_in_order,
)
