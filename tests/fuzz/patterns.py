"""Patterns of names and of identities: canonical, and matching nothing that they do not name."""

from sniproxy.config.units import parse_name, parse_name_pattern
from sniproxy.identity.spiffe import UNKNOWN, parse_principal
from sniproxy.names import parse_server_name
from sniproxy.policy.match import holds, parse_identity_pattern
from sniproxy.policy.model import Attribute, Condition, Request
from tests.fuzz.server_name import check_name
from tests.fuzz.text import text_of
from tests.fuzz.units import attempt

_NAME = parse_server_name(b"other.example")


def fuzz(data: bytes) -> None:
    text = text_of(data)
    _check_name_pattern(text)
    _check_identity_pattern(text)


def _check_name_pattern(text: str) -> None:
    pattern = attempt(parse_name_pattern, text)
    name = attempt(parse_name, text)
    assert name is None or name == pattern
    if pattern is None:
        return
    assert pattern == parse_name_pattern(pattern)
    suffix = pattern.removeprefix("*.")
    if pattern == "*":
        assert _matches_name(pattern, _NAME)
        return
    check_name(suffix)
    assert _matches_name(pattern, suffix) is (pattern == suffix)
    if len(suffix) < 200 and len(suffix.partition(".")[0]) < 60:
        assert _matches_name(pattern, f"a.b.{suffix}") is (pattern != suffix)
        assert not _matches_name(pattern, f"evil{suffix}")


def _matches_name(pattern: str, name: str) -> bool:
    request = Request(parse_server_name(name.encode()), UNKNOWN, "")
    return holds(Condition(Attribute.SNI, (pattern,)), request)


def _check_identity_pattern(text: str) -> None:
    pattern = attempt(parse_identity_pattern, text)
    if pattern is None:
        return
    assert pattern == parse_identity_pattern(pattern)
    if pattern == "*":
        return
    exact = parse_principal(pattern.removesuffix("/*"))
    assert _matches_caller(pattern, str(exact)) is (pattern == str(exact))
    if len(str(exact)) < 2000:
        assert _matches_caller(pattern, f"{exact}/a") is (pattern != str(exact))
        assert not _matches_caller(pattern, f"{exact}a")


def _matches_caller(pattern: str, principal: str) -> bool:
    condition = Condition(Attribute.PRINCIPAL, (pattern,))
    assert not holds(condition, Request(_NAME, UNKNOWN, ""))
    if len(principal) > 2039 or len(principal.partition("/")[0]) > 255:
        return False
    return holds(condition, Request(_NAME, parse_principal(principal), ""))
