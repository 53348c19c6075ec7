"""A bound on what it takes to read a DNS reply, whoever wrote it.

A library that reads a reply makes several objects of each record, of each label of its names, and some keep a class
for ever of each record type that they do not know. So a reply of 64 KiB by TCP costs its reader half a second, and
memory that it never gets back. `worth_reading` gives what such a library may be given: the reply from its beginning
up to the first record that is

- behind MAX_RECORDS others, or behind MAX_LABELS labels of names,
- or one that ends beyond MAX_BYTES,
- or one of a class that was not asked for, or of a type that no answer to a question for addresses has.

The counts in the header then say how many records are left. A reply without such a record stays as it is, and so a
reply that a real server sends is read as if this were not here.

What a record says is not looked at, apart from the names in it. Knows no socket: bytes in, bytes out.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice, repeat

__all__ = ["MAX_BYTES", "MAX_LABELS", "MAX_RECORDS", "DnsReplyError", "worth_reading"]

# Four times what a resolver keeps: the addresses, their aliases, the signatures of both, and the SOA.
MAX_RECORDS = 256

# Of all names together, compression pointers included: eight a record. Without it one name of 127 labels, which
# every record points to, would cost as much as thousands of records.
MAX_LABELS = 8 * MAX_RECORDS

# As far as a compression pointer reaches (RFC 1035 section 4.1.4).
MAX_BYTES = 1 << 14

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")  # type, class, time to live, length of the data
_MAX_QUESTION = 255 + 4  # RFC 1035 section 2.3.4, type and class
_TRUNCATED = 0x0200
_IN, _OPT, _TSIG = 1, 41, 250
_WITHOUT_CLASS = (_OPT, _TSIG)  # where others have it, OPT has a size, and TSIG has ANY

# Of the types that are read, where in their data names begin, and how many. Signatures (RFC 4034, RFC 5155) come from
# servers that send them unasked. NSEC3 and DS have no name in the wire's form.
_NAMES = {
    1: (0, 0),  # A
    2: (0, 1),  # NS
    5: (0, 1),  # CNAME
    6: (0, 2),  # SOA
    28: (0, 0),  # AAAA
    39: (0, 1),  # DNAME
    _OPT: (0, 0),
    43: (0, 0),  # DS
    46: (18, 1),  # RRSIG
    47: (0, 1),  # NSEC
    50: (0, 0),  # NSEC3
    _TSIG: (0, 1),  # for who reads it to refuse: nobody asked for a signature
}


class DnsReplyError(ValueError):
    """These bytes are no reply to a question: `str` is a clause for the log."""


def worth_reading(wire: bytes) -> bytes:
    """The part of the reply `wire` to read. Raises DnsReplyError for one that is malformed up to there.

    Of a reply that says that it is truncated that is the header and the question: it may be cut anywhere.
    """
    try:
        return _Walk(wire).worth_reading()
    except (struct.error, IndexError):
        raise DnsReplyError("the reply ends too early") from None


class _Enough(Exception):  # noqa: N818 - nothing is wrong
    """What comes now is not to be read."""


class _Walk:
    """One reply. `labels` is how many more may be read."""

    def __init__(self, wire: bytes) -> None:
        self._wire = wire
        self._labels = MAX_LABELS

    def worth_reading(self) -> bytes:
        wire = self._wire
        identifier, flags, questions, *counts = _HEADER.unpack_from(wire)
        end = self._behind_question(questions)
        kept = [0, 0, 0]
        if not flags & _TRUNCATED:
            with suppress(_Enough):
                for section, after in self._records(end, counts):
                    kept[section] += 1
                    end = after
            if kept == counts:
                return wire
        return _HEADER.pack(identifier, flags, questions, *kept) + wire[_HEADER.size : end]

    def _behind_question(self, questions: int) -> int:
        if not questions:
            return _HEADER.size
        if questions > 1:  # RFC 9619
            raise DnsReplyError("the reply has several questions")
        try:
            end = self._behind_name(_HEADER.size) + 4
        except _Enough:
            end = len(self._wire)
        if end > _HEADER.size + _MAX_QUESTION:
            raise DnsReplyError("the question is too long")
        if end > len(self._wire):
            raise DnsReplyError("the reply ends too early")
        return end

    def _records(self, at: int, counts: list[int]) -> Iterator[tuple[int, int]]:
        """The section and the end of each record that is worth reading."""
        sections = chain.from_iterable(repeat(section, count) for section, count in enumerate(counts))
        for section in islice(sections, MAX_RECORDS):
            at = self._behind_record(at)
            yield section, at

    def _behind_record(self, at: int) -> int:
        """Where the record that begins here ends."""
        at = self._behind_name(at)
        rdtype, rdclass, _, length = _RECORD.unpack_from(self._wire, at)
        at += _RECORD.size
        end: int = at + length
        if end > len(self._wire):
            raise DnsReplyError("the reply ends too early")
        if end > MAX_BYTES or rdtype not in _NAMES or (rdclass != _IN and rdtype not in _WITHOUT_CLASS):
            raise _Enough
        offset, names = _NAMES[rdtype]
        at += offset
        for _ in range(names):
            at = self._behind_name(at)
        if at > end:
            raise DnsReplyError("the data of a record are too short")
        return end

    def _behind_name(self, at: int) -> int:
        """Where the name that begins here ends."""
        wire, end, begin, limit = self._wire, 0, at, len(self._wire)
        while length := wire[at]:
            if not self._labels:
                raise _Enough
            self._labels -= 1
            if length >= 0xC0:
                end = end or at + 2
                limit, begin = begin, (length & 0x3F) << 8 | wire[at + 1]
                at = begin
            elif length < 0x40:
                at += length + 1
            else:
                raise DnsReplyError("a label is of a kind that there is not")
            # RFC 1035 section 4.1.4: a pointer leads to a name that is before it, whole.
            if not _HEADER.size <= at < limit:
                raise DnsReplyError("a compression pointer leads to no name before it" if end else "a name has no end")
        return end or at + 1
