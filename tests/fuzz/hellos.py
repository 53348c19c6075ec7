"""ClientHellos taken apart, changed where it hurts, and put together again.

A change is a function of a hello and dice. Lengths are computed when the hello is put together, and `lies` says which
of them are wrong and by how much: so a change of one field leaves all others right, and gets past the checks before.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from tests.wire.build import (
    ALPN,
    ENCRYPTED_CLIENT_HELLO,
    PADDING,
    SERVER_NAME,
    SUPPORTED_VERSIONS,
    Extension,
    server_name_extension,
    u16,
    vector8,
)

_DATA = Path(__file__).parent.parent / "data" / "client_hello"
_HANDSHAKE = 22


def recorded() -> dict[str, bytes]:
    """The first flights of real clients, by file name."""
    return {path.stem: _bytes_of(path.read_text()) for path in sorted(_DATA.glob("*.hex"))}


def _bytes_of(text: str) -> bytes:
    return bytes.fromhex("".join(line for line in text.splitlines() if not line.startswith("#")))


@dataclass
class Record:
    """A TLS record; `lie` is added to its length field."""

    fragment: bytes
    kind: int = _HANDSHAKE
    version: int = 0x0301
    lie: int = 0

    def encoded(self) -> bytes:
        return bytes((self.kind,)) + u16(self.version) + u16(_bounded(len(self.fragment) + self.lie, 2)) + self.fragment


@dataclass
class Hello:
    """A ClientHello, field by field; without `extensions` even their length is left out.

    `cuts` are where records begin anew, `between` the records put in, by where: 0 is before the first.
    """

    legacy_version: int
    random: bytes
    session_id: bytes
    cipher_suites: bytes
    compression_methods: bytes
    extensions: list[Extension] | None
    kind: int = 1
    behind: bytes = b""  # bytes of the message behind its extensions
    next_message: bytes = b""  # bytes of the record behind the message
    record_version: int = 0x0301
    cuts: list[int] = field(default_factory=list)
    between: list[tuple[int, Record]] = field(default_factory=list)
    lies: dict[str, int] = field(default_factory=dict)

    def message(self) -> bytes:
        body = u16(self.legacy_version) + self.random
        body += self._vector("session_id", self.session_id, 1)
        body += self._vector("cipher_suites", self.cipher_suites, 2)
        body += self._vector("compression_methods", self.compression_methods, 1)
        if self.extensions is not None:
            encoded = b"".join(
                u16(kind) + self._vector(f"extension {number}", content, 2)
                for number, (kind, content) in enumerate(self.extensions)
            )
            body += self._vector("extensions", encoded, 2)
        return bytes((self.kind,)) + self._vector("message", body + self.behind, 3)

    def encoded(self) -> bytes:
        flight = self.message() + self.next_message
        places = sorted({0, len(flight), *(place for place in self.cuts if 0 < place < len(flight))})
        records = [Record(flight[start:end], version=self.record_version) for start, end in pairwise(places)]
        records[-1].lie = self.lies.get("record", 0)
        for place, record in sorted(self.between, key=lambda pair: pair[0], reverse=True):
            records.insert(place, record)
        return b"".join(record.encoded() for record in records)

    def _vector(self, name: str, content: bytes, size: int) -> bytes:
        return _bounded(len(content) + self.lies.get(name, 0), size).to_bytes(size, "big") + content


def _bounded(length: int, size: int) -> int:
    return max(0, min(length, (1 << 8 * size) - 1))


def dissect(data: bytes) -> Hello:
    """A hello that is right and in one record."""
    rest = memoryview(data)[9:]

    def take(size: int) -> bytes:
        nonlocal rest
        taken, rest = bytes(rest[:size]), rest[size:]
        return taken

    def take_vector(size: int) -> bytes:
        return take(int.from_bytes(take(size), "big"))

    hello = Hello(
        legacy_version=int.from_bytes(take(2), "big"),
        random=take(32),
        session_id=take_vector(1),
        cipher_suites=take_vector(2),
        compression_methods=take_vector(1),
        extensions=[],
        record_version=int.from_bytes(data[1:3], "big"),
    )
    take(2)
    while rest and hello.extensions is not None:
        hello.extensions.append((int.from_bytes(take(2), "big"), take_vector(2)))
    assert hello.encoded() == data, "the bytes are no hello that can be put together again"
    return hello


# Changes.

Dice = random.Random
Change = Callable[[Hello, Dice], None]

# Names that a client may try: valid ones, ones that are none, and those where readers differ.
NAMES = (
    b"a.example",
    b"EN.wikipedia.ORG",
    b"en.wikipedia.org.",
    b"en.wikipedia.org\x00.evil.example",
    b"\x00",
    b"127.0.0.1",
    b"0x7f.1",
    b"::1",
    b"a..b",
    b".",
    b"*.example",
    b"a b",
    b"a\r\nb",
    b"\xff\xfe",
    "bücher.example".encode(),
    b"-a.example",
    b"a" * 63 + b".example",
    b"a" * 64 + b".example",
    b".".join([b"abcdefg"] * 32)[:253],
    b"a" * 255,
    b"a" * 256,
    b"",
)
_OTHER_RECORDS = (
    (22, b""),
    (22, b"\x00"),
    (21, b"\x01\x00"),  # close_notify
    (21, b"\x01\x5a"),  # user_canceled, a warning
    (21, b"\x02\x28"),
    (20, b"\x01"),
    (23, b""),
    (23, b"x"),
    (24, b"\x01\x00\x00"),  # a heartbeat
)
_KINDS = (SERVER_NAME, ALPN, PADDING, SUPPORTED_VERSIONS, ENCRYPTED_CLIENT_HELLO, 0x0A0A, 0x1A1A, 5, 10, 35, 41, 65000)
_NUDGES = (-2, -1, 1, 2, 255, 256)


def _extensions(hello: Hello) -> list[Extension]:
    hello.extensions = hello.extensions or []
    return hello.extensions


def _place_of_name(hello: Hello) -> int:
    kinds = [kind for kind, _ in _extensions(hello)]
    if SERVER_NAME not in kinds:
        hello.extensions = [server_name_extension("a.example"), *_extensions(hello)]
        return 0
    return kinds.index(SERVER_NAME)


def another_name(hello: Hello, dice: Dice) -> None:
    place = _place_of_name(hello)
    _extensions(hello)[place] = server_name_extension(dice.choice(NAMES), name_type=dice.choice((0, 0, 0, 0, 1, 255)))


def names_in_one_list(hello: Hello, dice: Dice) -> None:
    """Two or three entries, of any type, with lengths that may be wrong."""
    place = _place_of_name(hello)
    entries = b""
    for _ in range(dice.randint(0, 3)):
        name = dice.choice(NAMES)
        entries += (
            bytes((dice.choice((0, 0, 1, 255)),)) + u16(_bounded(len(name) + dice.choice((0, 0, 0, -1, 1)), 2)) + name
        )
    wrong = dice.choice((0, 0, 0, -1, 1, 2))
    body = u16(_bounded(len(entries) + wrong, 2)) + entries + dice.choice((b"", b"", b"", b"\x00"))
    _extensions(hello)[place] = (SERVER_NAME, body)


def bytes_of_the_name_extension(hello: Hello, dice: Dice) -> None:
    place = _place_of_name(hello)
    body = bytearray(_extensions(hello)[place][1] or b"\x00")
    at = dice.randrange(min(len(body), 8))
    body[at] = dice.choice((0, 1, 2, 127, 128, 255, body[at] ^ 1))
    _extensions(hello)[place] = (SERVER_NAME, bytes(body))


def cut_name_extension(hello: Hello, dice: Dice) -> None:
    place = _place_of_name(hello)
    body = _extensions(hello)[place][1]
    _extensions(hello)[place] = (SERVER_NAME, body[: dice.randrange(len(body) + 1)])


def a_second_name_extension(hello: Hello, dice: Dice) -> None:
    extensions = _extensions(hello)
    extensions.insert(dice.randint(0, len(extensions)), server_name_extension(dice.choice(NAMES)))


def an_extension_twice(hello: Hello, dice: Dice) -> None:
    extensions = _extensions(hello)
    if extensions:
        extensions.insert(dice.randint(0, len(extensions)), dice.choice(extensions))


def without_an_extension(hello: Hello, dice: Dice) -> None:
    if hello.extensions:
        del hello.extensions[dice.randrange(len(hello.extensions))]


def without_the_name(hello: Hello, _: Dice) -> None:
    hello.extensions = [extension for extension in _extensions(hello) if extension[0] != SERVER_NAME]


def without_extensions(hello: Hello, dice: Dice) -> None:
    hello.extensions = dice.choice((None, []))


def another_order(hello: Hello, dice: Dice) -> None:
    dice.shuffle(_extensions(hello))


def an_unknown_extension(hello: Hello, dice: Dice) -> None:
    extensions = _extensions(hello)
    content = dice.randbytes(dice.choice((0, 1, 2, 5, 40)))
    extensions.insert(dice.randint(0, len(extensions)), (dice.choice(_KINDS), content))


def another_type(hello: Hello, dice: Dice) -> None:
    extensions = _extensions(hello)
    if extensions:
        place = dice.randrange(len(extensions))
        extensions[place] = (dice.choice(_KINDS), extensions[place][1])


def bytes_of_an_extension(hello: Hello, dice: Dice) -> None:
    extensions = _extensions(hello)
    place = dice.randrange(len(extensions)) if extensions else 0
    if extensions and extensions[place][1]:
        kind, content = extensions[place]
        changed = bytearray(content)
        at = dice.randrange(min(len(changed), 6))
        changed[at] = dice.choice((0, 1, 2, 3, 255, changed[at] ^ 1))
        extensions[place] = (kind, bytes(changed))


def other_protocols(hello: Hello, dice: Dice) -> None:
    protocols = [
        dice.choice((b"h2", b"", b"http/1.1", b"\x0a\x0a", b"\x00\n", b"x" * 255)) for _ in range(dice.randint(0, 4))
    ]
    body = b"".join(map(vector8, protocols))
    body = u16(_bounded(len(body) + dice.choice((0, 0, 0, -1, 1)), 2)) + body
    _extensions(hello).append((ALPN, body))
    _without_earlier(hello, ALPN)


def other_versions(hello: Hello, dice: Dice) -> None:
    versions = b"".join(u16(dice.choice((0x0304, 0x0303, 0x0301, 0x0A0A, 0x7F1C))) for _ in range(dice.randint(0, 4)))
    body = bytes((_bounded(len(versions) + dice.choice((0, 0, 0, -1, 1)), 1),)) + versions
    _extensions(hello).append((SUPPORTED_VERSIONS, body))
    _without_earlier(hello, SUPPORTED_VERSIONS)


def _without_earlier(hello: Hello, kind: int) -> None:
    *others, last = _extensions(hello)
    hello.extensions = [*(extension for extension in others if extension[0] != kind), last]


def a_session_id(hello: Hello, dice: Dice) -> None:
    hello.session_id = dice.randbytes(dice.choice((0, 1, 31, 32, 33, 64, 255)))


def cipher_suites(hello: Hello, dice: Dice) -> None:
    extra = dice.choice((b"", b"\x13", b"\x0a\x0a", b"\x00\xff", b"\x56\x00"))
    hello.cipher_suites = dice.choice((b"", hello.cipher_suites)) + extra


def compression_methods(hello: Hello, dice: Dice) -> None:
    hello.compression_methods = dice.choice((b"", b"\x00", b"\x01", b"\x01\x00", b"\x00" * 3, bytes(range(255))))


def a_version(hello: Hello, dice: Dice) -> None:
    hello.legacy_version = dice.choice(
        (0, 0x0002, 0x0200, 0x0300, 0x0301, 0x0302, 0x0303, 0x0304, 0x0305, 0x0400, 0x7F1C)
    )


def a_record_version(hello: Hello, dice: Dice) -> None:
    hello.record_version = dice.choice((0, 0x0200, 0x0300, 0x0301, 0x0303, 0x0304, 0x03FF, 0x0401, 0xFEFD))


def a_handshake_type(hello: Hello, dice: Dice) -> None:
    hello.kind = dice.choice((0, 2, 16, 254, 255))


def a_length(hello: Hello, dice: Dice) -> None:
    """One length, off by a little, whatever it measures."""
    fields = ["session_id", "cipher_suites", "compression_methods", "extensions", "message", "record"]
    fields += [f"extension {number}" for number in range(len(hello.extensions or ()))]
    hello.lies[dice.choice(fields)] = dice.choice(_NUDGES)


def bytes_behind(hello: Hello, dice: Dice) -> None:
    """Within the message, or behind it in its record."""
    extra = dice.choice((b"\x00", b"\x00\x00", b"\x01\x00\x00\x00", b"\x14\x00\x00\x00", dice.randbytes(5)))
    if dice.random() < 0.5:
        hello.behind += extra
    else:
        hello.next_message += extra


def records(hello: Hello, dice: Dice) -> None:
    """Cut anywhere, also within the headers of the message."""
    size = len(hello.message())
    few = [dice.randrange(size) for _ in range(dice.randint(1, 6))]
    hello.cuts += dice.choice((few, [1], [3], [4], [5], list(range(0, size, 7))))


def a_record_between(hello: Hello, dice: Dice) -> None:
    """An empty one, an alert, ChangeCipherSpec, data, a heartbeat; before, amid and behind."""
    if not hello.cuts:
        hello.cuts.append(dice.randrange(1, len(hello.message())))
    kind, fragment = dice.choice(_OTHER_RECORDS)
    version = dice.choice((0x0301, 0x0303, 0x0303, 0x0200))
    hello.between.append((dice.randint(0, len(hello.cuts) + 1), Record(fragment, kind, version)))


def one_more_hello(hello: Hello, dice: Dice) -> None:
    """A second ClientHello behind the first, with another name."""
    second = replace(hello, extensions=[server_name_extension(dice.choice(NAMES))], next_message=b"", lies={})
    hello.next_message = second.message()
    if dice.random() < 0.5:
        hello.cuts.append(len(hello.message()))


CHANGES: tuple[Change, ...] = (
    another_name,
    names_in_one_list,
    bytes_of_the_name_extension,
    cut_name_extension,
    a_second_name_extension,
    an_extension_twice,
    without_an_extension,
    without_the_name,
    without_extensions,
    another_order,
    an_unknown_extension,
    another_type,
    bytes_of_an_extension,
    other_protocols,
    other_versions,
    a_session_id,
    cipher_suites,
    compression_methods,
    a_version,
    a_record_version,
    a_handshake_type,
    a_length,
    bytes_behind,
    records,
    a_record_between,
    one_more_hello,
)


def changed(data: bytes, dice: Dice, changes: int = 1) -> bytes:
    """A hello with so many changes that dice choose."""
    hello = dissect(data)
    for _ in range(changes):
        dice.choice(CHANGES)(hello, dice)
    return hello.encoded()
