"""TLVs, as the block at the end of a PROXY header and as the value of PP2_TYPE_SSL."""

from sniproxy.wire.need_more import NEED_MORE
from sniproxy.wire.proxy_protocol import (
    CLIENT_CERT_CONN,
    CLIENT_CERT_SESS,
    CLIENT_SSL,
    NOT_SENT,
    SUBTYPE_SSL_CLIENT_CERT,
    SUBTYPE_SSL_CN,
    SUBTYPE_SSL_VERSION,
    TYPE_CRC32C,
    TYPE_NOOP,
    NoAddress,
    ProxyHeader,
    ProxyHeaderError,
    Tlv,
    encode_proxy_header,
    encode_ssl_tlv,
    encode_tlvs,
    parse_ssl_tlv,
    read_proxy_header,
)
from tests.fuzz.proxy_header import check_header, check_sentence

_EMPTY = encode_proxy_header(NoAddress.UNKNOWN, NoAddress.UNKNOWN)


def header_with(block: bytes) -> ProxyHeader | None:
    """The header that ends in these TLVs, if there can be such a one."""
    if len(block) > 0xFFFF:
        return None
    try:
        header = read_proxy_header(_EMPTY[:-2] + len(block).to_bytes(2, "big") + block)
    except ProxyHeaderError as error:
        check_sentence(error)
        return None
    assert header is not NEED_MORE
    return header


def fuzz(data: bytes) -> None:
    header = header_with(data)
    if header is not None:
        check_header(header)
        _check_nothing_lost(data, header)
    _check_ssl(data)


def _check_nothing_lost(block: bytes, header: ProxyHeader) -> None:
    """Every byte is in a TLV that is handed on, or in one that is dealt with."""
    kinds = {kind for kind, _ in header.tlvs}
    assert not kinds & {TYPE_CRC32C, TYPE_NOOP}
    encoded = encode_tlvs(header.tlvs)
    assert encoded == block or (len(encoded) <= len(block) - 3 and bytes((TYPE_NOOP,)) in block) or b"\x03" in block


def _check_ssl(data: bytes) -> None:
    try:
        ssl = parse_ssl_tlv(data)
    except ProxyHeaderError as error:
        check_sentence(error)
        return
    if ssl.certificate_verified:
        assert ssl.verify == 0
        assert ssl.client & CLIENT_SSL
        assert ssl.client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS)
    fields = {
        SUBTYPE_SSL_VERSION: ssl.version,
        SUBTYPE_SSL_CN: ssl.common_name,
        SUBTYPE_SSL_CLIENT_CERT: ssl.client_certificate,
    }
    sent = [Tlv(kind, value) for kind, value in fields.items() if value is not NOT_SENT and isinstance(value, bytes)]
    assert parse_ssl_tlv(encode_ssl_tlv(ssl.client, ssl.verify, sent).value) == ssl
    assert all(encode_tlvs([tlv]) in data for tlv in sent)
    assert not any(_is_ssl(data + encode_tlvs([tlv])) for tlv in sent), "a sub-TLV that comes twice"


def _is_ssl(data: bytes) -> bool:
    try:
        parse_ssl_tlv(data)
    except ProxyHeaderError:
        return False
    return True
