"""The part of a DNS reply that is read: bounded, a beginning of the reply, and refused for a reason that holds."""

import struct

import dns.exception
import dns.message

from sniproxy.wire.dns_reply import MAX_BYTES, MAX_RECORDS, DnsReplyError, worth_reading
from tests.fuzz.proxy_header import check_sentence

_OURS = ("several questions", "leads to no name", "question is too long")  # which dnspython may let pass


def fuzz(data: bytes) -> None:
    try:
        part = worth_reading(data)
    except DnsReplyError as error:
        check_sentence(error)
        assert not is_read(data) or any(words in str(error) for words in _OURS)
        return
    assert worth_reading(part) == part
    is_read(part)
    if part is data:
        return
    assert len(part) <= MAX_BYTES
    assert part[12:] == data[12 : len(part)]
    before, after = (struct.unpack_from("!HHH", wire, 6) for wire in (data, part))
    assert part[:6] == data[:6]
    assert all(some <= every for some, every in zip(after, before, strict=True))
    assert sum(after) <= MAX_RECORDS


def is_read(wire: bytes) -> bool:
    """Whether dnspython takes it. It raises nothing else, which is what the resolver relies on."""
    try:
        dns.message.from_wire(wire)
    except dns.exception.DNSException:
        return False
    return True
