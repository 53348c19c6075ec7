"""Who is calling, by the TLVs of a PROXY header. The input is the block of TLVs."""

from sniproxy.identity.evidence import Established, IdentityError, TlvTypes, establish
from sniproxy.identity.spiffe import UNKNOWN, Identity, Principal, parse_principal
from sniproxy.wire.proxy_protocol import NoAddress, ProxyHeader, Tlv
from tests.fuzz.proxy_header import check_sentence
from tests.fuzz.tlvs import header_with

_TYPES = TlvTypes()
_STATIC = parse_principal("cluster.local/ns/default/sa/static")
_LONG = 10_000  # a size from which nothing is remembered

REFUSED = "refused"


def fuzz(data: bytes) -> None:
    header = header_with(data)
    if header is None:
        return
    found = _weigh(header)
    assert found == _weigh(changed(header, size=_LONG))
    assert found == _weigh(changed(header, tlvs=header.tlvs[::-1]))
    assert found == _weigh(header, TlvTypes(principal=_TYPES.principal))
    _check_static(header, found)
    _check_doubled(header)
    local = changed(header, local=True)
    assert isinstance(nobody := _weigh(local), Established)
    assert nobody.principal is UNKNOWN
    if isinstance(found, Established) and isinstance(found.principal, Principal):
        assert found.principal == parse_principal(str(found.principal))


def changed(
    header: ProxyHeader, *, size: int = 0, local: bool = False, tlvs: tuple[Tlv, ...] | None = None
) -> ProxyHeader:
    source = NoAddress.LOCAL if local else header.source
    tlvs = header.tlvs if tlvs is None else tlvs
    return ProxyHeader(size or header.size, header.version, local=local, source=source, tlvs=tlvs)


def _weigh(header: ProxyHeader, types: TlvTypes = _TYPES, static: Identity = UNKNOWN) -> Established | str:
    try:
        return establish(header, types, static)
    except IdentityError as error:
        check_sentence(error)
        return REFUSED


def _check_static(header: ProxyHeader, found: Established | str) -> None:
    """The principal of the listener never loses to evidence, and never wins against it."""
    with_static = _weigh(header, static=_STATIC)
    if isinstance(with_static, Established):
        assert with_static.principal == _STATIC
        assert isinstance(found, Established)
        assert found.principal in (UNKNOWN, _STATIC)
    elif isinstance(found, Established):
        assert found.principal not in (UNKNOWN, _STATIC)


def _check_doubled(header: ProxyHeader) -> None:
    for tlv in header.tlvs:
        if tlv.type in (*_TYPES, 0x20):
            assert _weigh(changed(header, tlvs=(*header.tlvs, Tlv(tlv.type, b"")))) == REFUSED
