"""Replies of name servers that mean harm, made of the question that they answer.

`MALFORMED` has them by what is wrong with them, `mutated` makes more by the seed.
"""

import random
import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from itertools import pairwise
from typing import Any

import dns.opcode

from tests.support.dns_server import Asked

FORGED = "203.0.113.66"  # what a forged reply has for an address
QUESTION = 12  # where the question begins: behind the header, RFC 1035 section 4.1.1
A, CNAME, SOA, AAAA, OPT, TSIG = 1, 5, 6, 28, 41, 250
IN, CHAOS = 1, 3


def header(asked: Asked, *counts: int, flags: int = 0x8180) -> bytes:
    return struct.pack("!HHHHHH", asked.query.id, flags, *counts)


def question(asked: Asked, rdtype: int = A, rdclass: int = IN) -> bytes:
    name = asked.query.question[0].name.to_wire()
    assert name is not None
    return name + struct.pack("!HH", rdtype, rdclass)


def record(data: bytes, *, rdtype: int = A, owner: bytes = b"\xc0\x0c", length: int | None = None) -> bytes:
    """A record of the name that was asked for, unless `owner` says otherwise; `length` may be a lie."""
    return owner + struct.pack("!HHIH", rdtype, IN, 60, len(data) if length is None else length) + data


def with_record(data: bytes = b"\x08\x08\x08\x08", **changes: Any) -> Callable[[Asked], bytes]:
    """A reply with this record alone in its answer."""
    return lambda asked: header(asked, 1, 1, 0, 0) + question(asked) + record(data, **changes)


def with_counts(*counts: int) -> Callable[[Asked], bytes]:
    """A reply with one question and one address, and other numbers of them in its header."""
    return lambda asked: header(asked, *counts) + question(asked) + record(b"\x08\x08\x08\x08")


def cut(end: int) -> Callable[[Asked], bytes]:
    return lambda asked: asked.reply(f"{asked.name}. 60 A {FORGED}")[:end]


def asked_for(rdtype: int, rdclass: int) -> Callable[[Asked], bytes]:
    """A reply to a question of another type or class, with an address."""
    return lambda asked: (
        header(asked, 1, 1, 0, 0) + question(asked, rdtype, rdclass) + record(IPv4Address(FORGED).packed)
    )


def with_opcode(opcode: dns.opcode.Opcode) -> Callable[[Asked], bytes]:
    def reply(asked: Asked) -> bytes:
        message = bytearray(asked.reply(f"{asked.name}. 60 A {FORGED}"))
        message[2] |= opcode << 3
        return bytes(message)

    return reply


def two_options(asked: Asked) -> bytes:
    """RFC 6891 section 6.1.1: more than one OPT is a format error."""
    option = record(b"", rdtype=OPT, owner=b"\0")
    return header(asked, 1, 1, 0, 2) + question(asked) + record(IPv4Address(FORGED).packed) + 2 * option


def signed_by_nobody(asked: Asked) -> bytes:
    signature = record(b"\0" + bytes(16), rdtype=TSIG, owner=b"\0")
    return header(asked, 1, 1, 0, 1) + question(asked) + record(IPv4Address(FORGED).packed) + signature


def label_of_64_bytes(asked: Asked) -> bytes:
    return with_record(owner=b"\x40" + bytes(64) + b"\0")(asked)


def name_of_256_bytes(asked: Asked) -> bytes:
    return with_record(owner=(b"\x3f" + b"a" * 63) * 4 + b"\0")(asked)


# Each has the right identifier, and most offer an address.
MALFORMED: dict[str, Callable[[Asked], bytes]] = {
    "nothing": lambda _asked: b"",
    "cut in its header": cut(11),
    "cut in its question": cut(QUESTION + 3),
    "cut behind its question": cut(-16),
    "cut in its address": cut(-1),
    "more answers counted than there are": with_counts(1, 9, 0, 0),
    "fewer answers counted than there are": with_counts(1, 0, 0, 0),
    "65,535 of everything": with_counts(*[0xFFFF] * 4),
    "no question counted": with_counts(0, 1, 0, 0),
    "two questions": lambda asked: (
        header(asked, 2, 1, 0, 0) + question(asked) + question(asked, AAAA) + record(b"\x08\x08\x08\x08")
    ),
    "a question of another type": asked_for(CNAME, IN),
    "a question of another class": asked_for(A, CHAOS),
    "another operation: NOTIFY": with_opcode(dns.opcode.NOTIFY),
    "another operation: UPDATE": with_opcode(dns.opcode.UPDATE),
    "a pointer to itself": lambda asked: with_record(owner=struct.pack("!H", 0xC000 | QUESTION + len(question(asked))))(
        asked
    ),
    "pointers to each other": lambda asked: with_record(
        owner=struct.pack("!HH", 0xC000 | QUESTION + len(question(asked)) + 2, 0xC000 | QUESTION + len(question(asked)))
    )(asked),
    "a pointer beyond the end": with_record(owner=b"\xff\xff"),
    "a reserved kind of label": with_record(owner=b"\x80a\0"),
    "a label that is too long": label_of_64_bytes,
    "a name that is too long": name_of_256_bytes,
    "an address of three bytes": with_record(b"\x08\x08\x08"),
    "an address of five bytes": with_record(b"\x08\x08\x08\x08\x08"),
    "an address of no bytes": with_record(b""),
    "an IPv6 address for an IPv4 one": with_record(bytes(16)),
    "data beyond the end": with_record(length=0xFFFF),
    "an alias with something behind it": with_record(b"\1a\xc0\x0cjunk", rdtype=CNAME),
    "an alias that ends early": with_record(b"\5a", rdtype=CNAME),
    "an SOA without its numbers": with_record(b"\0\0", rdtype=SOA),
    "two sets of EDNS options": two_options,
    "signed by nobody that we know": signed_by_nobody,
}


def of_unknown_types(asked: Asked, rdclass: int) -> bytes:
    """64 KiB of records without data, each of another type that nobody knows, all of this class."""
    records = [b"\xc0\x0c" + struct.pack("!HHIH", rdtype, rdclass, 60, 0) for rdtype in range(1000, 6400)]
    return header(asked, 1, 0, 0, len(records)) + question(asked) + b"".join(records)


def chain(name: str, length: int, address: str) -> tuple[str, ...]:
    """Records: aliases from `name` on, one after the other, and an address at their end."""
    names = [name, *(f"a{number}.test" for number in range(length))]
    aliases = [f"{name}. 60 CNAME {target}." for name, target in pairwise(names)]
    return (*aliases, f"{names[-1]}. 60 A {address}")


def mutated(wire: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, cut out or put in, behind the identifier."""
    data = bytearray(wire)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(2, len(data) + 1)
        match dice.randrange(5):
            case 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del data[at : at + dice.randint(1, 8)]
            case 2:
                data[at:at] = dice.randbytes(dice.randint(1, 8))
            case 3:
                data[at : at + 2] = struct.pack("!H", 0xC000 | dice.randrange(len(data) + 8))  # a pointer
            case _:
                data[at : at + 1] = bytes([data[at] ^ 1 << dice.randrange(8)]) if at < len(data) else b""
    return bytes(data)


def rich_reply(asked: Asked) -> bytes:
    """A reply with a bit of everything that has a structure of its own."""
    return asked.reply(
        f"{asked.name}. 60 CNAME a.test.",
        "a.test. 30 CNAME b.test.",
        "b.test. 20 A 8.8.8.8",
        "b.test. 20 A 8.8.4.4",
        soa="test. 60 SOA ns.test. root.test. 1 3600 600 86400 60",
        authority=["test. 60 NS ns.test."],
        additional=[
            "ns.test. 60 AAAA 2001:db8::53",
            "x.test. 60 SVCB 1 . alpn=h2 port=53 ipv4hint=1.1.1.1",
            "x.test. 60 TXT text",
            "x.test. 60 NSEC b.test. A AAAA",
            "x.test. 60 CAA 0 issue ca.test",
            "x.test. 60 NAPTR 1 1 a b c .",
            "x.test. 60 APL 1:10.0.0.0/8",
            "x.test. 60 LOC 42 21 54 N 71 06 18 W -24m 30m",
        ],
    )
