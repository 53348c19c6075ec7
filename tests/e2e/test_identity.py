"""Who is calling: by PROXY headers from trusted peers, by certificates, by listeners; and nobody else's word."""

import datetime
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from sniproxy.wire.proxy_protocol import (
    CLIENT_CERT_CONN,
    CLIENT_SSL,
    SUBTYPE_SSL_CLIENT_CERT,
    SUBTYPE_SSL_CN,
    NoAddress,
    Tlv,
    encode_proxy_header,
    encode_ssl_tlv,
)
from tests.e2e.conftest import allowing
from tests.support.clients import PRINCIPAL, ask, fetch, hello_for, proxy_header, sleep_principal
from tests.support.origins import NAMES, Authority, page_of
from tests.support.proxy import running_proxy

US, CANADA = sleep_principal("sleep-us"), sleep_principal("sleep-canada")
EN = "en.wikipedia.org"

BY_CALLER = {
    "rules": [
        {"name": "us", "action": "allow", "principals": [US], "sni": [EN, "es.wikipedia.org"]},
        {"name": "canada", "action": "allow", "principals": [CANADA], "sni": [EN, "fr.wikipedia.org"]},
    ]
}
TRUSTED = {"address": "127.0.0.1:0", "proxy_protocol": "required", "trusted_peers": ["127.0.0.0/8"]}


def served_or_refused(address: tuple[str, int] | str, authority: Authority, name: str, header: bytes) -> str:
    try:
        assert fetch(address, name, authority.client_context(), header) == page_of(name)
    except OSError:
        return "refused"
    return "served"


def test_two_workloads_and_four_wikipedias(tmp_path: Path, wikipedias: dict[str, Any], authority: Authority) -> None:
    """sleep-us reaches en and es only, sleep-canada en and fr only; the log names caller, namespace and rule."""
    config = {"listeners": [TRUSTED], "upstream": {"hosts": wikipedias}}
    with running_proxy(tmp_path, config, BY_CALLER) as proxy:
        got = {
            (who, name): served_or_refused(proxy.address, authority, name, proxy_header(sleep_principal(who)))
            for who in ("sleep-us", "sleep-canada")
            for name in NAMES
        }
        lines = proxy.wait_for_finals(8)
    assert {pair for pair, result in got.items() if result == "served"} == {
        ("sleep-us", "en.wikipedia.org"),
        ("sleep-us", "es.wikipedia.org"),
        ("sleep-canada", "en.wikipedia.org"),
        ("sleep-canada", "fr.wikipedia.org"),
    }
    told = {(line["sourcePrincipal"], line["sourceNamespace"], line["sourceIp"]) for line in lines}
    assert told == {(US, "default", "10.1.2.3"), (CANADA, "default", "10.1.2.3")}
    assert sorted(line["rule"] for line in lines) == ["canada", "canada", *["none"] * 4, "us", "us"]


SVID = f"spiffe://{US}"
TWO = f"spiffe://{US},spiffe://{CANADA}"
REFUSED_HEADERS = {
    "two principal TLVs": proxy_header(US, extra=[Tlv(PRINCIPAL, SVID.encode())]),
    "several URI SANs joined by commas": proxy_header(extra=[Tlv(PRINCIPAL, TWO.encode())]),
    "a principal with a newline": proxy_header(extra=[Tlv(PRINCIPAL, b"spiffe://cluster.local/ns/a\n/sa/b")]),
    "a principal of 4 KiB": proxy_header(extra=[Tlv(PRINCIPAL, b"spiffe://cluster.local/" + b"a" * 4096)]),
    "a header of 60 KiB": proxy_header(extra=[Tlv(0xEE, bytes(60_000))]),
    "a wrong checksum": proxy_header(US, extra=[Tlv(0x03, b"\1\2\3\4")]),
    "a header that is a byte short": proxy_header(US)[:-1],
    "no header but a hello": b"",
}


@pytest.mark.parametrize("what", REFUSED_HEADERS)
def test_a_forged_or_malformed_header_ends_the_connection(
    tmp_path: Path, wikipedias: dict[str, Any], what: str
) -> None:
    """Refused as bad_proxy_header, with a sentence that says why, and no identity in the log."""
    config = {"listeners": [TRUSTED], "upstream": {"hosts": wikipedias}}
    with running_proxy(tmp_path, config, BY_CALLER) as proxy:
        # Behind a header that is a byte short, the hello's first byte is taken for its last.
        assert ask(proxy.address, REFUSED_HEADERS[what], hello_for(EN)) == "access_denied"
        line = proxy.wait_for_finals(1)[0]
    assert (line["reason"], line["sourcePrincipal"]) == ("bad_proxy_header", "unknown")
    assert line["responseCodeDetails"]


def test_nobody_but_a_trusted_peer_may_say_who_is_calling(tmp_path: Path, wikipedias: dict[str, Any]) -> None:
    """Its header is not stripped and passed on, and not believed: the connection is refused."""
    stranger = {**TRUSTED, "trusted_peers": ["192.0.2.0/24"]}
    with running_proxy(tmp_path, {"listeners": [stranger], "upstream": {"hosts": wikipedias}}, BY_CALLER) as proxy:
        assert ask(proxy.address, proxy_header(US), hello_for(EN)) == "access_denied"
        line = proxy.wait_for_finals(1)[0]
    assert (line["reason"], line["sourcePrincipal"], line["sourceIp"]) == ("untrusted_peer", "unknown", "127.0.0.1")


def test_without_proxy_protocol_a_header_is_no_tls(tmp_path: Path, wikipedias: dict[str, Any]) -> None:
    """A listener never guesses: where headers are off, one is not read."""
    with running_proxy(tmp_path, {"upstream": {"hosts": wikipedias}}, BY_CALLER) as proxy:
        assert ask(proxy.address, proxy_header(US), hello_for(EN)) == "access_denied"
        assert proxy.wait_for_finals(1)[0]["reason"] == "not_tls"


UNKNOWN_CALLERS = {
    "no TLV": proxy_header(),
    "a TLV of -": proxy_header(extra=[Tlv(PRINCIPAL, b"-")]),
    "an empty TLV": proxy_header(extra=[Tlv(PRINCIPAL, b"")]),
    "a LOCAL header": encode_proxy_header(NoAddress.LOCAL, NoAddress.LOCAL, []),
    "a version 1 header": b"PROXY TCP4 10.1.2.3 10.0.0.1 40000 443\r\n",
}


@pytest.mark.parametrize("what", UNKNOWN_CALLERS)
def test_an_unknown_caller_matches_no_rule_that_asks_for_one(
    tmp_path: Path, wikipedias: dict[str, Any], what: str
) -> None:
    """`-` and empty mean unknown; unknown is logged as such and refused by default."""
    config = {"listeners": [TRUSTED], "upstream": {"hosts": wikipedias}}
    with running_proxy(tmp_path, config, BY_CALLER) as proxy:
        assert ask(proxy.address, UNKNOWN_CALLERS[what], hello_for(EN)) == "access_denied"
        line = proxy.wait_for_finals(1)[0]
    assert (line["reason"], line["sourcePrincipal"], line["sourceNamespace"]) == ("default", "unknown", "unknown")


def test_a_verified_client_certificate_is_evidence_and_its_common_name_is_not(
    tmp_path: Path, wikipedias: dict[str, Any], authority: Authority
) -> None:
    """PP2_TYPE_SSL counts with verify 0 and the client-certificate bits; then the URI SAN is the identity."""
    bits = CLIENT_SSL | CLIENT_CERT_CONN
    certificate = Tlv(SUBTYPE_SSL_CLIENT_CERT, _svid(SVID))
    headers = {
        "a verified SVID": encode_ssl_tlv(bits, 0, [certificate]),
        "not verified": encode_ssl_tlv(bits, 1, [certificate]),
        "no certificate on the connection": encode_ssl_tlv(CLIENT_SSL, 0, [certificate]),
        "a common name only": encode_ssl_tlv(bits, 0, [Tlv(SUBTYPE_SSL_CN, US.encode())]),
    }
    config = {"listeners": [TRUSTED], "upstream": {"hosts": wikipedias}}
    with running_proxy(tmp_path, config, BY_CALLER) as proxy:
        got = {
            what: served_or_refused(proxy.address, authority, EN, proxy_header(extra=[tlv]))
            for what, tlv in headers.items()
        }
        proxy.wait_for_finals(4)
        disagreeing = proxy_header(CANADA, extra=[headers["a verified SVID"]])
        assert ask(proxy.address, disagreeing, hello_for(EN)) == "access_denied"
        assert proxy.wait_for_finals(5)[-1]["reason"] == "bad_proxy_header"
    assert got == {
        "a verified SVID": "served",
        "not verified": "refused",
        "no certificate on the connection": "refused",
        "a common name only": "refused",
    }


def _svid(uri: str) -> bytes:
    """A certificate with one URI SAN, in DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    nobody = x509.Name([])
    today = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(nobody, nobody, key.public_key(), 1, today, today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    )  # fmt: skip
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_local_listener_has_a_static_principal(
    tmp_path: Path, wikipedias: dict[str, Any], authority: Authority
) -> None:
    """identity.static is the principal of every connection."""
    local = {"address": "127.0.0.1:0", "identity": {"static": f"spiffe://{US}"}}
    with running_proxy(tmp_path, {"listeners": [local], "upstream": {"hosts": wikipedias}}, BY_CALLER) as proxy:
        got = [served_or_refused(proxy.address, authority, name, b"") for name in NAMES]
        assert {line["sourcePrincipal"] for line in proxy.wait_for_finals(4)} == {US}
    assert got == ["served", "refused", "served", "refused"]


def test_a_unix_socket_trusts_a_user(tmp_path: Path, wikipedias: dict[str, Any], authority: Authority) -> None:
    """trusted_peers by SO_PEERCRED; the socket's mode is 0660 and its file goes with the proxy."""
    path = str(tmp_path / "sni.sock")
    listener = {"address": f"unix:{path}", "proxy_protocol": "required", "trusted_peers": [f"uid:{os.getuid()}"]}
    with running_proxy(tmp_path, {"listeners": [listener], "upstream": {"hosts": wikipedias}}, BY_CALLER) as proxy:
        assert os.stat(path).st_mode & 0o777 == 0o660
        assert served_or_refused(path, authority, EN, proxy_header(US)) == "served"
        assert proxy.wait_for_finals(1)[0]["sourcePrincipal"] == US
    assert not os.path.exists(path)


def test_a_unix_socket_refuses_another_user(tmp_path: Path, wikipedias: dict[str, Any]) -> None:
    """A uid that is not trusted is refused, with the uid in the log."""
    path = str(tmp_path / "sni.sock")
    listener = {"address": f"unix:{path}", "proxy_protocol": "required", "trusted_peers": ["uid:4242"]}
    with running_proxy(tmp_path, {"listeners": [listener], "upstream": {"hosts": wikipedias}}, BY_CALLER) as proxy:
        assert ask(path, proxy_header(US), hello_for(EN)) == "access_denied"
        line = proxy.wait_for_finals(1)[0]
    assert line["reason"] == "untrusted_peer"
    assert line["responseCodeDetails"].startswith(f"uid:{os.getuid()} ")


def test_several_listeners_at_once_each_with_its_own_identity(
    tmp_path: Path, wikipedias: dict[str, Any], authority: Authority
) -> None:
    """IPv4, IPv6 and a Unix socket beside each other."""
    path = str(tmp_path / "sni.sock")
    listeners: list[dict[str, Any]] = [
        {"address": "127.0.0.1:0", "identity": {"static": US}},
        {"address": "[::1]:0", "identity": {"static": CANADA}},
        {"address": f"unix:{path}", "identity": {"static": CANADA}},
    ]
    with running_proxy(tmp_path, {"listeners": listeners, "upstream": {"hosts": wikipedias}}, BY_CALLER) as proxy:
        six = int(proxy.addresses[1].rpartition(":")[2])
        addresses: list[tuple[str, int] | str] = [proxy.address, ("::1", six), path]
        got = []
        for number, address in enumerate(addresses, 1):
            answer = served_or_refused(address, authority, "es.wikipedia.org", b"")
            got.append((answer, proxy.wait_for_finals(number)[-1]["sourcePrincipal"]))
    assert got == [("served", US), ("refused", CANADA), ("refused", CANADA)]


def test_require_identity_refuses_the_unknown(tmp_path: Path, wikipedias: dict[str, Any]) -> None:
    """policy.require_identity, before any rule is looked at."""
    config = {"upstream": {"hosts": wikipedias}, "policy": {"require_identity": True}}
    with running_proxy(tmp_path, config, allowing("*")) as proxy:
        assert ask(proxy.address, hello_for(EN)) == "access_denied"
        assert proxy.wait_for_finals(1)[0]["reason"] == "identity_required"


def test_a_peer_that_resets_is_no_fault_of_ours(tmp_path: Path, wikipedias: dict[str, Any]) -> None:
    """A reset before the hello is the client's, and leaves its line."""
    with running_proxy(tmp_path, {"listeners": [TRUSTED], "upstream": {"hosts": wikipedias}}, BY_CALLER) as proxy:
        sock = socket.create_connection(proxy.address)
        sock.sendall(proxy_header(US))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        assert proxy.wait_for_finals(1)[0]["reason"] == "client_closed"
