"""The PROXY protocol, both versions, on whatever a TCP connection brings."""

from ipaddress import ip_address

from sniproxy.wire.need_more import NEED_MORE, NeedMore
from sniproxy.wire.proxy_protocol import (
    MAX_HEADER,
    NoAddress,
    ProxyHeader,
    ProxyHeaderError,
    SocketAddress,
    Tlv,
    encode_proxy_header,
    read_proxy_header,
)
from tests.fuzz.dice import dice_for, prefixes

REFUSED = "refused"

Verdict = ProxyHeader | NeedMore | str


def fuzz(data: bytes) -> None:
    whole = verdict(data)
    decided = False
    for prefix in prefixes(data, dice_for(data)):
        answer = verdict(prefix)
        assert answer == whole if decided else answer in (NEED_MORE, whole)
        decided = answer is not NEED_MORE
    if isinstance(whole, ProxyHeader):
        _check_end(data, whole)
        check_header(whole)
    elif whole is NEED_MORE:
        assert len(data) < MAX_HEADER


def verdict(data: bytes) -> Verdict:
    try:
        return read_proxy_header(data)
    except ProxyHeaderError as error:
        check_sentence(error)
        return REFUSED


def check_sentence(error: Exception) -> None:
    """One line, safe to log, and bounded: two identities of 2,048 bytes are the most that is quoted."""
    assert str(error).isprintable()
    assert 0 < len(str(error)) < 6000


def check_header(header: ProxyHeader) -> None:
    """The address is canonical, and what we would send for it reads the same."""
    assert header.version in (1, 2)
    assert not header.local or (header.source, header.tlvs) == (NoAddress.LOCAL, ())
    assert isinstance(header.source, NoAddress) or header.source == str(ip_address(header.source))
    for checksum in (False, True):
        _check_round_trip(header, checksum=checksum)


def _check_round_trip(header: ProxyHeader, *, checksum: bool) -> None:
    end = header.source if isinstance(header.source, NoAddress) else SocketAddress(header.source, 443)
    encoded = encode_proxy_header(end, end, header.tlvs, checksum=checksum)
    if len(encoded) <= MAX_HEADER and not header.local:
        expected = ProxyHeader(len(encoded), 2, source=header.source, tlvs=header.tlvs)
        assert read_proxy_header(encoded) == expected


def _check_end(data: bytes, header: ProxyHeader) -> None:
    """The client's own bytes begin where the header says, and are not looked at."""
    assert 0 < header.size <= min(len(data), MAX_HEADER)
    assert verdict(data[: header.size - 1]) is NEED_MORE
    assert verdict(data[: header.size]) == header
    assert verdict(data[: header.size] + b"PROXY \x16\x03\x01") == header
    assert sum(3 + len(value) for _, value in header.tlvs) < header.size
    assert all(isinstance(tlv, Tlv) for tlv in header.tlvs)
