"""Patterns, and the keys under which an index finds them.

Every pattern has one `key`, and every value has the tuple of keys whose patterns match it: a name or an identity
is looked up under each of its keys, and no rule is scanned. Both sides of that agreement stand in this file.

    *.wikipedia.org     key ".wikipedia.org"    found by en.wikipedia.org, which has the keys
                                                en.wikipedia.org  .wikipedia.org  .org  *
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NewType

from sniproxy.config.units import show
from sniproxy.identity.spiffe import Identity, InvalidSpiffeIdError, Principal, parse_principal
from sniproxy.names import InvalidNameError, ServerName, parse_server_name

Key = NewType("Key", str)

# Any name; any identity that is known.
STAR = Key("*")
# Any identity, known or not: what a rule has that asks for none.
ANYONE = Key("")


@dataclass(frozen=True, slots=True)
class NamePattern:
    """An exact server name, `*.suffix` (every name under it, at any depth, and not itself), or `*`."""

    key: Key

    def __str__(self) -> str:
        return f"*{self.key}" if self.key.startswith(".") else self.key

    def matches(self, name: ServerName) -> bool:
        if self.key.startswith("."):
            return name.endswith(self.key)
        return self.key in (STAR, name)


def parse_name_pattern(text: str) -> NamePattern:
    """Raises ValueError with the mend."""
    if text == "*":
        return NamePattern(STAR)
    exact = text.removeprefix("*.")
    if "*" in exact:
        mend = "a star stands alone, or first with a dot behind it: *.wikipedia.org"
        raise ValueError(f"{show(text)} is no pattern; {mend}")
    try:
        name = parse_server_name(exact.encode("utf-8", "replace"))
    except InvalidNameError as error:
        raise ValueError(f"{show(text)} {error.fault.value}; {_mend(exact)}") from None
    return NamePattern(Key(name if exact == text else f".{name}"))


def _mend(exact: str) -> str:
    if not exact.isascii():
        return "write a name outside ASCII in its xn-- form"
    if ":" in exact or "/" in exact:
        return "write the name alone, without a scheme, a port or a path: en.wikipedia.org"
    return "write en.wikipedia.org, *.wikipedia.org or *"


@lru_cache(maxsize=4096)
def name_keys(name: ServerName) -> tuple[Key, ...]:
    """Every key whose pattern matches `name`, the most particular first."""
    suffixes = []
    dot = name.find(".")
    while dot >= 0:
        suffixes.append(Key(name[dot:]))
        dot = name.find(".", dot + 1)
    return (Key(name), *suffixes, STAR)


@dataclass(frozen=True, slots=True)
class IdentityPattern:
    """An exact principal, all below a path (`cluster.local/ns/default/*`), or `*`: any that is known."""

    key: Key

    def __str__(self) -> str:
        return self.key

    def matches(self, identity: Identity) -> bool:
        if not isinstance(identity, Principal):
            return False
        if self.key.endswith("/*"):
            return str(identity).startswith(self.key[:-1])
        return self.key in (STAR, str(identity))


def parse_identity_pattern(text: str) -> IdentityPattern:
    """Raises ValueError with the mend."""
    if text == "*":
        return IdentityPattern(STAR)
    exact = text.removesuffix("/*")
    if "*" in exact:
        raise ValueError(f"{show(text)} is no pattern; a star stands alone, or last: cluster.local/ns/default/*")
    try:
        principal = str(parse_principal(exact))
    except InvalidSpiffeIdError as error:
        raise ValueError(f"{error}; write it as cluster.local/ns/default/sa/sleep") from None
    return IdentityPattern(Key(principal if exact == text else f"{principal}/*"))


def namespace_key(namespace: str) -> Key:
    """The key of a rule that asks for a namespace, or with `*` for any. No principal holds an @ (SPIFFE ID, 2)."""
    return Key(f"@{namespace}")


@lru_cache(maxsize=4096)
def identity_keys(identity: Identity) -> tuple[Key, ...]:
    """Every key whose pattern matches `identity`, the most particular first."""
    if not isinstance(identity, Principal):
        return (ANYONE,)
    text = str(identity)
    folders = []
    slash = text.rfind("/")
    while slash >= 0:
        folders.append(Key(f"{text[:slash]}/*"))
        slash = text.rfind("/", 0, slash)
    namespaces = (namespace_key(identity.namespace), namespace_key("*")) if identity.namespace else ()
    return (Key(text), *folders, *namespaces, STAR, ANYONE)


def namespace_matches(pattern: str, identity: Identity) -> bool:
    """No identity is in no namespace, so that not even `*` matches it."""
    return isinstance(identity, Principal) and bool(identity.namespace) and pattern in ("*", identity.namespace)
