"""SPIFFE IDs: the names of workloads, parsed once and compared as values.

A `Principal` is one workload, in Istio's form the text `cluster.local/ns/default/sa/sleep-us`. A caller that
has shown no identity is `UNKNOWN`, which is of another type on purpose: it has no namespace and no trust
domain that a rule could match, and mypy makes everyone who asks for them say what happens to it.

The rules are those of https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md, section 2, read as
go-spiffe reads them: nothing is normalised, what is not in the canonical form is refused.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final

SCHEME: Final = "spiffe://"
MAX_LENGTH: Final = 2048  # bytes, scheme included (section 2.3)
MAX_TRUST_DOMAIN: Final = 255  # section 2.3

_SMALL: Final = (1 << 60) - 1  # an integer that mypyc keeps in a register

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+", re.ASCII)  # section 2.1: no userinfo and no port either
_PATH_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+", re.ASCII)  # section 2.2


class InvalidSpiffeIdError(ValueError):
    """This text is no SPIFFE ID; the message is one sentence, bounded in length, that says why."""

    def __init__(self, text: str, reason: str) -> None:
        shown = text if len(text) <= 100 else text[:100] + "..."
        super().__init__(f"{shown!r} is not a SPIFFE ID: {reason}")


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated workload. Made by `parse_principal` only, so its parts are known to be valid.

    `path` is empty or begins with a slash. `namespaces` are what stands behind each /ns/ of the path and before a
    further segment, as Istio's policies find them; almost every path has one or none, and `namespace`, for logs, is
    the first. `service_account` comes from a path that is exactly /ns/NAMESPACE/sa/ACCOUNT, as Istio writes it, and is
    empty for every other. `text` is the form of Istio's policies and logs, without a scheme, and `encoded` its bytes.
    """

    trust_domain: str
    path: str
    namespaces: tuple[str, ...] = field(init=False, repr=False, compare=False)
    namespace: str = field(init=False, repr=False, compare=False)
    service_account: str = field(init=False, repr=False, compare=False)
    text: str = field(init=False, repr=False, compare=False)
    encoded: bytes = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive once what every connection asks for."""
        namespaces = namespaces_of(self.path)
        object.__setattr__(self, "namespaces", namespaces)
        object.__setattr__(self, "namespace", namespaces[0] if namespaces else "")
        object.__setattr__(self, "service_account", _service_account(self.path))
        object.__setattr__(self, "text", self.trust_domain + self.path)
        object.__setattr__(self, "encoded", self.text.encode())
        object.__setattr__(self, "_hash", hash(self.text) & _SMALL)

    def __hash__(self) -> int:
        """By the text, worked out once: principals are looked up for every connection."""
        return self._hash

    def __reduce__(self) -> tuple[Callable[[str], "Principal"], tuple[str]]:
        """Pickled as its text, for what is frozen cannot be filled in; and nothing unparsed comes back."""
        return parse_principal, (self.text,)

    def __str__(self) -> str:
        return self.text

    @property
    def namespace_label(self) -> str:
        """The namespace for a log, where an absent one is "unknown"."""
        return self.namespace or UNKNOWN.namespace_label


class Unknown(Enum):
    """A type of one value: no identity was shown, and no rule that asks for one holds."""

    UNKNOWN = "unknown"

    __hash__ = object.__hash__  # Enum's own is a function in Python

    def __str__(self) -> str:
        return self.value

    @property
    def namespace_label(self) -> str:
        """The namespace for a log. Not a namespace to match: somebody may have one called "unknown"."""
        return self.value


UNKNOWN: Final = Unknown.UNKNOWN

Identity = Principal | Unknown


@lru_cache(maxsize=4096)  # a proxy meets the same workloads again and again, and all share one value
def parse_principal(text: str) -> Principal:
    """The principal in `text`, with or without "spiffe://". Raises InvalidSpiffeIdError."""
    name = text.removeprefix(SCHEME)
    if len(SCHEME) + len(name) > MAX_LENGTH:
        raise InvalidSpiffeIdError(text, f"it is longer than {MAX_LENGTH} bytes")
    trust_domain, slash, path = name.partition("/")
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        raise InvalidSpiffeIdError(text, "a trust domain has lower-case letters, digits, '.', '-' and '_'")
    if len(trust_domain) > MAX_TRUST_DOMAIN:
        raise InvalidSpiffeIdError(text, f"its trust domain is longer than {MAX_TRUST_DOMAIN} bytes")
    if slash:
        _check_path(text, path)
    return Principal(trust_domain, slash + path)


def _check_path(text: str, path: str) -> None:
    for segment in path.split("/"):
        if not segment:
            raise InvalidSpiffeIdError(text, "its path has an empty segment or a slash at the end")
        if segment in (".", ".."):
            raise InvalidSpiffeIdError(text, "its path has a relative segment")
        if not _PATH_SEGMENT.fullmatch(segment):
            raise InvalidSpiffeIdError(text, "a path has letters, digits, '.', '-' and '_' between its slashes")


def namespaces_of(text: str) -> tuple[str, ...]:
    """The namespaces of a principal, or of a path, in order: Istio finds them with the pattern .*/ns/NAMESPACE/.*

    (istio/istio, pilot/pkg/security/authz/model/generator.go, srcNamespaceGenerator)
    """
    segments = text.split("/")[1:]
    found = (name for marker, name in itertools.pairwise(segments[:-1]) if marker == "ns")
    return tuple(dict.fromkeys(found))


def _service_account(path: str) -> str:
    match path.split("/"):
        case ["", "ns", _, "sa", service_account]:
            return service_account
        case _:
            return ""
