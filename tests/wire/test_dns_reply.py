"""What of a DNS reply is read: all of what servers send, and of what is meant to cost something no more than a part."""

import random
import struct
import sys
from collections.abc import Callable
from types import FrameType

import dns.exception
import dns.flags
import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.wire.dns_reply import MAX_BYTES, MAX_LABELS, MAX_RECORDS, DnsReplyError, worth_reading
from tests.support.dns_server import Asked
from tests.support.hostile_replies import (
    AAAA,
    CHAOS,
    CNAME,
    MALFORMED,
    OPT,
    SOA,
    A,
    chain,
    header,
    mutated,
    question,
    record,
    rich_reply,
)

NAME = "www.test"
QUERY = dns.message.make_query(f"{NAME}.", "A", use_edns=0, payload=1232, id=0x1234)
ASKED = Asked(NAME, "A", "udp", QUERY)
ZONE = "test. 60 SOA ns.test. root.test. 1 3600 600 86400 30"
NSEC, RRSIG, UNKNOWN = 47, 46, 1000

SEVERAL_QUESTIONS = "the reply has several questions"
NO_NAME = "a compression pointer leads to no name before it"

ADDRESS = f"{NAME}. 60 A 8.8.8.8"
SIGNATURE = "A 8 2 60 20300101000000 20200101000000 1 test. AAAA"
DENIAL = [
    "test. 60 RRSIG SOA" + SIGNATURE[1:],
    "a.test. 60 NSEC x.test. A RRSIG",
    "a.test. 60 RRSIG NSEC" + SIGNATURE[1:],
    "test. 60 DS 1 8 2 " + 64 * "0",
    "aaaa.test. 60 NSEC3 1 0 1 AB 2t7b4g4vsa5smi47k61mv5bv1a22bojr A",
]
AS_SERVERS_SEND_THEM = {
    "an address": ASKED.reply(ADDRESS),
    "a chain of aliases": ASKED.reply(*chain(NAME, 10, "8.8.8.8")),
    "a name below another that is an alias": ASKED.reply(
        "test. 60 DNAME example.", f"{NAME}. 60 CNAME www.example.", "www.example. 60 A 8.8.8.8"
    ),
    "many addresses": ASKED.reply(*(f"{NAME}. 60 A 8.8.8.{host}" for host in range(255))),
    "servers beside it": ASKED.reply(ADDRESS, authority=["test. 9 NS ns.test."], additional=["ns.test. 9 AAAA ::1"]),
    "no addresses": ASKED.reply(soa=ZONE),
    "a denial": ASKED.reply(rcode=dns.rcode.NXDOMAIN, soa=ZONE),
    "a denial that is signed": ASKED.reply(rcode=dns.rcode.NXDOMAIN, soa=ZONE, authority=DENIAL),
    "an answer that is signed": ASKED.reply(ADDRESS, f"{NAME}. 60 RRSIG {SIGNATURE}"),
    "a failure": ASKED.reply(rcode=dns.rcode.SERVFAIL),
    "a header alone": header(ASKED, 0, 0, 0, 0, flags=0x8182),
    "an extended rcode": ASKED.reply(rcode=dns.rcode.BADVERS),
}


def reply(answer: bytes, count: int, *, additional: int = 0) -> bytes:
    """A reply whose records stand in `answer`."""
    return header(ASKED, 1, count - additional, 0, additional) + question(ASKED) + answer


def address(number: int, owner: bytes = b"\xc0\x0c") -> bytes:
    return record(struct.pack("!I", 0x08000000 + number), owner=owner)


@pytest.mark.parametrize("what", AS_SERVERS_SEND_THEM)
def test_what_servers_send_is_read_as_it_is(what: str) -> None:
    wire = AS_SERVERS_SEND_THEM[what]
    assert worth_reading(wire) == wire


def test_of_too_many_records_the_first_are_read() -> None:
    records = [address(number) for number in range(3500)]
    assert worth_reading(reply(b"".join(records), 3500)) == reply(b"".join(records[:MAX_RECORDS]), MAX_RECORDS)
    exactly = reply(b"".join(records[:MAX_RECORDS]), MAX_RECORDS)
    assert worth_reading(exactly) == exactly


NOT_ASKED_FOR = {
    "an unknown type": record(b"", rdtype=UNKNOWN),
    "text": record(b"\4text", rdtype=16),
    "another class": record(b"\1a\0\0\7").replace(struct.pack("!HH", A, 1), struct.pack("!HH", A, CHAOS)),
}


@pytest.mark.parametrize("what", NOT_ASKED_FOR)
def test_what_was_not_asked_for_ends_the_reading(what: str) -> None:
    """What stands before it is read, and what stands behind it is not."""
    wire = reply(address(1) + NOT_ASKED_FOR[what] + address(2), 3)
    assert worth_reading(wire) == reply(address(1), 1)


def test_labels_are_counted_through_pointers() -> None:
    """One long name that every record points to costs what it costs each time."""
    labels = 100
    alias = record(b"\1a" * labels + b"\0", rdtype=CNAME)
    target = 12 + len(question(ASKED)) + 12  # where the name in the alias begins
    more = [address(number, struct.pack("!H", 0xC000 | target)) for number in range(100)]
    part = worth_reading(reply(alias + b"".join(more), 101))
    kept = (MAX_LABELS - len(("www", "test")) - len(("www", "test", "pointer")) - labels) // (labels + 1)
    assert part == reply(alias + b"".join(more[:kept]), 1 + kept)


def test_records_that_end_too_far_behind_are_not_read() -> None:
    """Where no pointer leads: 16 KiB of options or bitmaps are enough of them."""
    large = record(bytes(MAX_BYTES // 2), rdtype=RRSIG)
    assert worth_reading(reply(address(1) + 2 * large, 3)) == reply(address(1) + large, 2)


def test_sections_are_counted_by_themselves() -> None:
    wire = header(ASKED, 1, 1, 1, 2) + question(ASKED) + 2 * address(1) + address(2) + NOT_ASKED_FOR["text"]
    part = dns.message.from_wire(worth_reading(wire))
    assert [len(section) for section in (part.answer, part.authority, part.additional)] == [1, 1, 1]


def test_a_truncated_reply_is_read_to_its_question() -> None:
    """It may be cut anywhere, and nothing of it is used."""
    whole = bytearray(ASKED.reply(ADDRESS))
    whole[2] |= dns.flags.TC >> 8
    begin = 12 + len(question(ASKED))
    for end in range(begin, len(whole) + 1):
        part = dns.message.from_wire(worth_reading(bytes(whole[:end])))
        assert (part.question, part.answer, part.opt) == (QUERY.question, [], None)


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_malformed_stays_so(kind: str) -> None:
    """Here or in dnspython: no part of it passes for a reply."""
    with pytest.raises((DnsReplyError, dns.exception.DNSException)):
        _respond(worth_reading(MALFORMED[kind](ASKED)))


def _respond(wire: bytes) -> None:
    if not QUERY.is_response(dns.message.from_wire(wire)):
        raise DnsReplyError("the reply is to another question")


def test_at_every_prefix_it_is_no_reply() -> None:
    whole = ASKED.reply(*chain(NAME, 3, "8.8.8.8"), soa=ZONE)
    for end in range(len(whole)):
        with pytest.raises((DnsReplyError, dns.exception.DNSException)):
            _respond(worth_reading(whole[:end]))


TOO_MUCH = {
    "several questions": header(ASKED, 2, 0, 0, 0) + 2 * question(ASKED),
    "a question of thousands of labels": header(ASKED, 1, 0, 0, 0) + b"\1a" * 3 * MAX_LABELS + b"\0\0\1\0\1",
    "a question of 256 bytes": header(ASKED, 1, 0, 0, 0) + b"\1a" * 128 + b"\0\0\1\0\1",
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_question_of_ours_it_cannot_be(what: str) -> None:
    with pytest.raises(DnsReplyError, match="question"):
        worth_reading(TOO_MUCH[what])


def flat(message: dns.message.Message) -> list[list[str]]:
    """The records of each section, in their order."""
    return [[records.to_text() for records in section] for section in message.sections]


def read(wire: bytes) -> dns.message.Message:
    return dns.message.from_wire(wire, one_rr_per_rrset=True)


def assert_the_same_but_for_what_is_cut(wire: bytes) -> None:
    """dnspython reads the same records of the part as of the whole, up to where the part ends."""
    part = worth_reading(wire)
    if part is not wire:
        for some, every in zip(flat(read(part)), flat(read(wire)), strict=True):
            assert some == every[: len(some)]


OWNERS = st.sampled_from([NAME, "test", "a.b.c.test", "other.example", "x" * 63 + ".test"])
RECORDS = st.one_of(
    st.ip_addresses(v=4).map(lambda ip: f"A {ip}"),
    st.ip_addresses(v=6).map(lambda ip: f"AAAA {ip}"),
    OWNERS.map(lambda name: f"CNAME {name}."),
    OWNERS.map(lambda name: f"NS {name}."),
    OWNERS.map(lambda name: f"SOA {name}. root.{name}. 1 2 3 4 5"),
    st.sampled_from(["TXT text", "TYPE1000 \\# 0", "SVCB 1 . port=53", "MX 1 a.test."]),
)
LINES = st.lists(st.tuples(OWNERS, RECORDS).map(lambda it: f"{it[0]}. 60 {it[1]}"), max_size=12)


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(answer=LINES, authority=LINES, additional=LINES)
def test_it_is_read_as_without_bounds(answer: list[str], authority: list[str], additional: list[str]) -> None:
    """Whatever a server puts together; and without what is of no use, every byte."""
    wire = ASKED.reply(*answer, authority=authority, additional=additional)
    assert_the_same_but_for_what_is_cut(wire)
    if not any(f" {rdtype} " in line for line in answer + authority + additional for rdtype in _OF_NO_USE):
        assert worth_reading(wire) is wire


_OF_NO_USE = ("TXT", "TYPE1000", "SVCB", "MX")


def test_only_what_no_server_sends_is_refused_where_dnspython_reads_it() -> None:
    """Seeded mutations of a reply with a bit of everything: several questions, and names that are in the header."""
    dice, right, taken = random.Random(2), rich_reply(ASKED), 0
    for _ in range(1500):
        wire = mutated(right, dice)
        try:
            read(wire)
        except dns.exception.DNSException:
            continue
        refusal = refusal_of(wire)
        assert refusal in ("", SEVERAL_QUESTIONS, NO_NAME)
        if not refusal:
            assert_the_same_but_for_what_is_cut(wire)
            taken += 1
    assert taken > 100


def refusal_of(wire: bytes) -> str:
    try:
        worth_reading(wire)
    except DnsReplyError as error:
        return str(error)
    return ""


def test_a_name_is_not_read_from_the_header() -> None:
    """dnspython would; but the header is ours where something was cut, and no name begins there (RFC 1035)."""
    with pytest.raises(DnsReplyError, match=NO_NAME):
        worth_reading(reply(address(1, b"\xc0\x06"), 1))


def _costly() -> dict[str, bytes]:
    """Replies of up to 64 KiB that are right in every byte, and would have dnspython make up to 50 million calls."""
    target = struct.pack("!H", 0xC000 | 12 + len(question(ASKED)) + 12)
    long = record(b"\1a" * 126 + b"\0", rdtype=CNAME)
    soas = (record(2 * target + struct.pack("!5I", *range(number, number + 5)), rdtype=SOA) for number in range(500))
    windows = b"\0" + b"".join(bytes([window, 1, 1]) for window in range(256))
    return {
        "thousands of addresses": reply(b"".join(map(address, range(4000))), 4000),
        "thousands of IPv6 addresses": reply(
            b"".join(record(struct.pack("!4I", 0, 0, 0, number), rdtype=AAAA) for number in range(2300)), 2300
        ),
        "thousands of unknown types": reply(b"".join(record(b"", rdtype=number) for number in range(300, 5700)), 5400),
        "one long name in all places": reply(long + b"".join(soas), 501),
        "bitmaps": reply(80 * record(windows, rdtype=NSEC), 80),
        "thousands of options": reply(
            record(struct.pack("!HH", 12, 0) * 16000, rdtype=OPT, owner=b"\0"), 1, additional=1
        ),
    }


COSTLY = _costly()


@pytest.mark.parametrize("what", COSTLY)
def test_what_it_takes_to_read_a_reply_is_bounded(what: str) -> None:
    """In calls, which a busy machine does not change."""
    part = worth_reading(COSTLY[what])
    assert calls_of(lambda: worth_reading(COSTLY[what])) < 10 * MAX_RECORDS
    assert calls_of(lambda: dns.message.from_wire(part)) < 1_000_000


def calls_of(work: Callable[[], object]) -> int:
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls
