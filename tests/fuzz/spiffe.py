"""SPIFFE IDs: one spelling for one workload."""

import pickle
import re

from sniproxy.identity.spiffe import InvalidSpiffeIdError, Principal, parse_principal
from tests.fuzz.proxy_header import check_sentence
from tests.fuzz.text import text_of

# SPIFFE-ID.md section 2, and how Istio finds namespaces (srcNamespaceGenerator).
_ID = re.compile(r"[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)*", re.ASCII)


def fuzz(data: bytes) -> None:
    text = text_of(data)
    name = text.removeprefix("spiffe://")
    is_id = _ID.fullmatch(name) is not None and len(name) <= 2039
    try:
        principal = parse_principal(text)
    except InvalidSpiffeIdError as error:
        check_sentence(error)
        assert not is_id
        return
    assert is_id
    assert name == str(principal) == principal.encoded.decode("ascii")
    assert principal == parse_principal(str(principal)) == parse_principal(f"spiffe://{principal}")
    assert principal == pickle.loads(pickle.dumps(principal))  # noqa: S301 - of our own making
    _check_namespaces(principal)


def _check_namespaces(principal: Principal) -> None:
    """Each is what Istio's regular expression would find, and no segment that it would find is missing."""
    asked = set(principal.path.split("/"))
    assert {it for it in asked if it and re.search(f"/ns/{re.escape(it)}/", principal.text)} == {*principal.namespaces}
    assert principal.namespace == next(iter(principal.namespaces), "")
    exact = re.fullmatch(r"/ns/([^/]+)/sa/([^/]+)", principal.path)
    assert principal.service_account == (exact[2] if exact else "")
