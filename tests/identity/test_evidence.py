"""From the evidence in a PROXY header to an identity, or to a refusal."""

import pytest

from sniproxy.identity.evidence import Established, IdentityError, TlvTypes, establish
from sniproxy.identity.spiffe import UNKNOWN, Identity, parse_principal
from sniproxy.wire.proxy_protocol import (
    CLIENT_CERT_CONN,
    CLIENT_CERT_SESS,
    CLIENT_SSL,
    NOT_SENT,
    SUBTYPE_SSL_CLIENT_CERT,
    SUBTYPE_SSL_CN,
    TYPE_SSL,
    NoAddress,
    ProxyHeader,
    Tlv,
    encode_ssl_tlv,
)
from tests.identity.certificates import certificate

TYPES = TlvTypes()
SLEEP_ID = "spiffe://cluster.local/ns/default/sa/sleep-us"
OTHER_ID = "spiffe://cluster.local/ns/default/sa/sleep-canada"
SLEEP = parse_principal(SLEEP_ID)
OTHER = parse_principal(OTHER_ID)

CLIENT_CERT = CLIENT_SSL | CLIENT_CERT_CONN
GARBAGE = b"\x30\x03garbage"


def header(*tlvs: Tlv, local: bool = False) -> ProxyHeader:
    return ProxyHeader(28, 2, local=local, source=NoAddress.LOCAL if local else "10.1.2.3", tlvs=tlvs)


def claim(text: str | bytes) -> Tlv:
    """A TLV 0xD0, as Envoy and ztunnel send it."""
    return Tlv(TYPES.principal, text.encode() if isinstance(text, str) else text)


def outer(name: bytes) -> Tlv:
    return Tlv(TYPES.requested_server_name, name)


def ssl_tlv(*sub_tlvs: Tlv, client: int = CLIENT_CERT, verify: int = 0) -> Tlv:
    return encode_ssl_tlv(client, verify, sub_tlvs)


def shown(der: bytes, client: int = CLIENT_CERT, verify: int = 0) -> Tlv:
    """A PP2_TYPE_SSL with a client certificate, as ghostunnel sends it."""
    return ssl_tlv(Tlv(SUBTYPE_SSL_CLIENT_CERT, der), client=client, verify=verify)


ESTABLISHED = {
    "a SPIFFE ID in the TLV is the identity": (header(claim(SLEEP_ID)), UNKNOWN, SLEEP),
    "the TLV may leave the scheme out": (header(claim(SLEEP_ID.removeprefix("spiffe://"))), UNKNOWN, SLEEP),
    "a dash is Envoy's word for nothing": (header(claim("-")), UNKNOWN, UNKNOWN),
    "an empty TLV says nothing": (header(claim("")), UNKNOWN, UNKNOWN),
    "no TLV says nothing": (header(), UNKNOWN, UNKNOWN),
    "TLVs of other types say nothing": (header(Tlv(0xD1, b"x"), Tlv(0xD1, b"y")), UNKNOWN, UNKNOWN),
    "a verified certificate is the identity": (header(shown(certificate(SLEEP_ID))), UNKNOWN, SLEEP),
    "one of the session counts as well": (
        header(shown(certificate(SLEEP_ID), client=CLIENT_SSL | CLIENT_CERT_SESS)),
        UNKNOWN,
        SLEEP,
    ),
    "its DNS names do not matter": (
        header(shown(certificate(SLEEP_ID, dns=("a.example", "b.example")))),
        UNKNOWN,
        SLEEP,
    ),
    "a certificate whose verification failed does not count": (
        header(shown(certificate(SLEEP_ID), verify=1)),
        UNKNOWN,
        UNKNOWN,
    ),
    "nor one that the flags do not speak of": (
        header(shown(certificate(SLEEP_ID), client=CLIENT_SSL)),
        UNKNOWN,
        UNKNOWN,
    ),
    "nor one without TLS": (
        header(shown(certificate(SLEEP_ID), client=CLIENT_CERT_CONN | CLIENT_CERT_SESS)),
        UNKNOWN,
        UNKNOWN,
    ),
    "what does not count may be garbage": (header(shown(GARBAGE, verify=1)), UNKNOWN, UNKNOWN),
    "a common name is never an identity": (
        header(ssl_tlv(Tlv(SUBTYPE_SSL_CN, SLEEP_ID.encode()))),
        UNKNOWN,
        UNKNOWN,
    ),
    "nor is the common name in the certificate": (
        header(shown(certificate(common_name=SLEEP_ID))),
        UNKNOWN,
        UNKNOWN,
    ),
    "nor a DNS name": (header(shown(certificate(dns=("cluster.local",)))), UNKNOWN, UNKNOWN),
    "nor a URI of another kind": (header(shown(certificate("https://cluster.local/a"))), UNKNOWN, UNKNOWN),
    "the static principal is everyone's": (header(), SLEEP, SLEEP),
    "a dash does not contradict it": (header(claim("-")), SLEEP, SLEEP),
    "evidence of three kinds may agree": (header(claim(SLEEP_ID), shown(certificate(SLEEP_ID))), SLEEP, SLEEP),
    "LOCAL carries no identity": (
        header(claim(SLEEP_ID), shown(certificate(SLEEP_ID)), local=True),
        UNKNOWN,
        UNKNOWN,
    ),
    "LOCAL is not even looked at": (header(claim(SLEEP_ID), claim(OTHER_ID), local=True), UNKNOWN, UNKNOWN),
    "LOCAL has the static principal": (header(local=True), SLEEP, SLEEP),
}


@pytest.mark.parametrize(("evidence", "static", "principal"), ESTABLISHED.values(), ids=ESTABLISHED.keys())
def test_an_identity_is_established(evidence: ProxyHeader, static: Identity, principal: Identity) -> None:
    """Each key above is the rule, each value its evidence, static principal and identity."""
    assert Established(principal, NOT_SENT) == establish(evidence, TYPES, static)


REFUSED = {
    "the TLV twice, even with equal values": (
        header(claim(SLEEP_ID), claim(SLEEP_ID)),
        UNKNOWN,
        "more than one TLV of type 0xd0",
    ),
    "the TLV twice, once with a dash": (header(claim("-"), claim(SLEEP_ID)), UNKNOWN, "more than one TLV"),
    "two outer server names": (header(outer(b"a"), outer(b"a")), UNKNOWN, "more than one TLV of type 0x02"),
    "two PP2_TYPE_SSL": (header(ssl_tlv(), ssl_tlv()), UNKNOWN, "more than one TLV of type 0x20"),
    "a TLV that is no SPIFFE ID": (header(claim("https://example.org")), UNKNOWN, "is not a SPIFFE ID"),
    "a TLV that is no ASCII": (header(claim(SLEEP_ID.encode() + b"\xff")), UNKNOWN, "not ASCII"),
    "a TLV with letters beyond ASCII": (header(claim("spiffe://td/ü")), UNKNOWN, "not ASCII"),
    "a TLV that is too long": (header(claim("td/" + "a" * 3000)), UNKNOWN, "longer than 2048 bytes"),
    "a TLV with a NUL at its end": (header(claim(SLEEP_ID + "\0")), UNKNOWN, "is not a SPIFFE ID"),
    "the URI names of a certificate that has two, as Envoy joins them": (
        header(claim(f"{SLEEP_ID},{OTHER_ID}")),
        UNKNOWN,
        "is not a SPIFFE ID",
    ),
    "a certificate with two SPIFFE IDs": (
        header(shown(certificate(SLEEP_ID, OTHER_ID))),
        UNKNOWN,
        "2 URI names",
    ),
    "a certificate with the same SPIFFE ID twice": (
        header(shown(certificate(SLEEP_ID, SLEEP_ID))),
        UNKNOWN,
        "2 URI names",
    ),
    "a certificate with another URI besides": (
        header(shown(certificate(SLEEP_ID, "https://example.org/"))),
        UNKNOWN,
        "2 URI names",
    ),
    "a certificate with a malformed SPIFFE ID": (
        header(shown(certificate("spiffe://cluster.local/a//b"))),
        UNKNOWN,
        "empty segment",
    ),
    "a certificate with a SPIFFE ID in upper case": (
        header(shown(certificate("SPIFFE://cluster.local/a"))),
        UNKNOWN,
        "is not a SPIFFE ID",
    ),
    "a certificate that counts and is garbage": (header(shown(GARBAGE)), UNKNOWN, "unreadable"),
    "a malformed PP2_TYPE_SSL": (header(Tlv(TYPE_SSL, b"\x00")), UNKNOWN, "PP2_TYPE_SSL"),
    "a PP2_TYPE_SSL with two certificates": (
        header(ssl_tlv(*[Tlv(SUBTYPE_SSL_CLIENT_CERT, certificate(SLEEP_ID))] * 2)),
        UNKNOWN,
        "two sub-TLVs",
    ),
    "a TLV and a certificate that disagree": (
        header(claim(SLEEP_ID), shown(certificate(OTHER_ID))),
        UNKNOWN,
        "disagrees: cluster.local/ns/default/sa/sleep-canada and cluster.local/ns/default/sa/sleep-us",
    ),
    "a TLV that disagrees with the static principal": (header(claim(SLEEP_ID)), OTHER, "disagrees"),
    "a certificate that disagrees with the static principal": (
        header(shown(certificate(SLEEP_ID))),
        OTHER,
        "disagrees",
    ),
}


@pytest.mark.parametrize(("evidence", "static", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_evidence_is_refused(evidence: ProxyHeader, static: Identity, reason: str) -> None:
    """Bad evidence is worse than none: the connection is refused, not let in as unknown."""
    with pytest.raises(IdentityError, match=reason) as refused:
        establish(evidence, TYPES, static)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("tlvs", "name"),
    [
        ([outer(b"en.wikipedia.org")], b"en.wikipedia.org"),
        ([claim("-"), outer(b"Outer.Example.")], b"Outer.Example."),
        ([outer(b"-")], NOT_SENT),
        ([outer(b"")], NOT_SENT),
        ([claim(SLEEP_ID)], NOT_SENT),
    ],
)
def test_the_outer_server_name_is_passed_on_as_sent(tlvs: list[Tlv], name: object) -> None:
    """What it must match is the policy's business; a dash and an empty value are none at all."""
    assert name == establish(header(*tlvs), TYPES).requested_server_name


def test_the_types_of_the_tlvs_are_the_configuration_s() -> None:
    """The defaults are then of no meaning."""
    types = TlvTypes(principal=0xE0, requested_server_name=0xE1)
    evidence = header(Tlv(0xE0, SLEEP_ID.encode()), Tlv(0xE1, b"a.example"), claim(OTHER_ID), outer(b"b.example"))
    assert Established(SLEEP, b"a.example") == establish(evidence, types)


def test_a_header_of_version_1_carries_no_evidence() -> None:
    """It has addresses and nothing else."""
    v1 = ProxyHeader(40, 1, source="10.1.2.3")
    assert Established(UNKNOWN, NOT_SENT) == establish(v1, TYPES)
