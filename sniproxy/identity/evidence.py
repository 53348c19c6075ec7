"""Who is calling: from the evidence in a PROXY header to one identity, or to the reason why there is none.

Evidence is what a trusted proxy in front says of its client, in up to three ways:

1. a TLV with the SPIFFE ID itself (Envoy, ztunnel);
2. a client certificate in PP2_TYPE_SSL, with a SPIFFE ID as its only URI name (ghostunnel, HAProxy);
3. the static principal of a listener, which says it of every connection.

No evidence at all gives UNKNOWN, and that is no error: rules that ask for an identity will not hold. Evidence
that is malformed, that comes twice, or that disagrees with other evidence is an error: someone is confused or
lying, and no reading of it is safe. The common name of a certificate is never evidence.

Whether the peer may say any of this is the listener's question, settled before anyone asks here.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from sniproxy.identity.certificate import CertificateError, uri_sans
from sniproxy.identity.spiffe import UNKNOWN, Identity, InvalidSpiffeIdError, Principal, parse_principal
from sniproxy.memo import Memo
from sniproxy.wire.proxy_protocol import (
    NOT_SENT,
    TYPE_SSL,
    NotSent,
    ProxyHeader,
    ProxyHeaderError,
    Tlv,
    parse_ssl_tlv,
)

# What Envoy writes for a value that it does not have, %DOWNSTREAM_PEER_URI_SAN% before the handshake for one.
_ABSENT: Final = frozenset({b"", b"-"})


class IdentityError(ValueError):
    """The evidence is no good, so the connection is to be refused; the message is one sentence: why."""


class TlvTypes(NamedTuple):
    """Which TLV carries which attribute; the defaults are ztunnel's 0xD0 and PP2_TYPE_AUTHORITY."""

    principal: int = 0xD0
    requested_server_name: int = 0x02


class Established(NamedTuple):
    """What is known of the caller. `requested_server_name`: the SNI of the outer TLS connection, unparsed."""

    principal: Identity
    requested_server_name: bytes | NotSent


def establish(header: ProxyHeader, types: TlvTypes, static: Identity = UNKNOWN) -> Established:
    """Weigh the evidence of one connection. Raises IdentityError."""
    tlvs = () if header.local else header.tlvs  # a LOCAL connection is the sender's own, and nobody's client
    evidence = (tlvs, types, static)
    return _common_evidence.of(evidence) if header.size <= _COMMON_HEADER else _weigh(evidence)


def _weigh(evidence: tuple[tuple[Tlv, ...], TlvTypes, Identity]) -> Established:
    tlvs, types, static = evidence
    sent = _single_tlvs(tlvs, (types.principal, types.requested_server_name, TYPE_SSL))
    principal = _agreed(
        _claimed(sent.get(types.principal, b"")),
        _certified(sent[TYPE_SSL]) if TYPE_SSL in sent else UNKNOWN,
        static,
    )
    server_name = sent.get(types.requested_server_name, b"")
    return Established(principal, NOT_SENT if server_name in _ABSENT else server_name)


# A workload sends the same evidence with each of its connections. The bound is on what the cache can come to hold.
_COMMON_HEADER: Final = 512
_common_evidence: Final = Memo(_weigh, 2048)


def _single_tlvs(tlvs: Iterable[Tlv], types: tuple[int, ...]) -> dict[int, bytes]:
    """The TLVs of these types, by type. With two of one type, which one counts would depend on the reader."""
    found: dict[int, bytes] = {}
    for kind, value in tlvs:
        if kind in types:
            if kind in found:
                raise IdentityError(f"the PROXY header has more than one TLV of type 0x{kind:02x}")
            found[kind] = value
    return found


def _claimed(value: bytes) -> Identity:
    return UNKNOWN if value in _ABSENT else _principal(value)


@lru_cache(maxsize=4096)
def _principal(value: bytes) -> Principal:
    """The SPIFFE ID in a TLV.

    Envoy joins the URI names of a certificate that has several with commas. No SPIFFE ID has a comma, so they
    are refused here without being looked for; X509-SVID.md section 2 allows one and no more.
    """
    try:
        return parse_principal(value.decode("ascii"))
    except UnicodeDecodeError:
        raise IdentityError("the principal in the PROXY header is not ASCII text") from None
    except InvalidSpiffeIdError as error:
        raise IdentityError(f"the principal in the PROXY header is malformed: {error}") from None


def _certified(value: bytes) -> Identity:
    """The SPIFFE ID of the client certificate in a PP2_TYPE_SSL TLV, if the sender has verified one."""
    try:
        ssl = parse_ssl_tlv(value)
        if not ssl.certificate_verified or isinstance(ssl.client_certificate, NotSent):
            return UNKNOWN
        return _spiffe_san(uri_sans(ssl.client_certificate))
    except (ProxyHeaderError, CertificateError, InvalidSpiffeIdError) as error:
        raise IdentityError(str(error)) from error


def _spiffe_san(uris: tuple[str, ...]) -> Identity:
    """The SPIFFE ID, the only URI in an SVID (X509-SVID.md section 2); another kind of URI is no evidence."""
    if len(uris) > 1:
        raise IdentityError(f"the client certificate has {len(uris)} URI names, and exactly one can be its identity")
    # RFC 3986 section 3.1: schemes are case-insensitive. SPIFFE:// too claims to be an ID, and is malformed.
    if not uris or not uris[0].lower().startswith("spiffe:"):
        return UNKNOWN
    return parse_principal(uris[0])


def _agreed(*identities: Identity) -> Identity:
    """The identity that all evidence names; what is UNKNOWN has no say."""
    named = {identity for identity in identities if identity is not UNKNOWN}
    if len(named) > 1:
        raise IdentityError(f"the evidence disagrees: {' and '.join(sorted(map(str, named)))}")
    return named.pop() if named else UNKNOWN
