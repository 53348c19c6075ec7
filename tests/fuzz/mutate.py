"""Inputs that are nearly right, made from one that is. All of it is chosen by dice, so that a number says which.

`of_bytes` knows nothing of its input. `of_hellos` and `of_documents` take it apart, change what a person might have
written, and put it together again; what they cannot take apart is left to `of_bytes`.
"""

import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import yaml

from tests.fuzz import hellos

Dice = random.Random
Mutate = Callable[[bytes, Dice], bytes]

_BYTES = (
    b"\x00",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\n",
    b"\r\n",
    b" ",
    b".",
    b"*",
    b"/",
    b":",
    b"-",
    b"$",
    b"\xc3\xbc",
)


def of_bytes(data: bytes, dice: Dice) -> bytes:
    """A few places replaced, removed, repeated or put in."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        start = dice.randint(0, len(changed))
        end = min(len(changed), start + dice.choice((0, 0, 1, 1, 2, 8)))
        changed[start:end] = dice.choice(
            (b"", dice.choice(_BYTES), dice.randbytes(dice.randint(1, 4)), bytes(changed[start:end]) * 2)
        )
    return bytes(changed)


def of_text(words: tuple[str, ...]) -> Mutate:
    """As `of_bytes`, with whole words now and then."""

    def mutate(data: bytes, dice: Dice) -> bytes:
        if dice.random() < 0.5:
            return of_bytes(data, dice)
        at = dice.randint(0, len(data))
        end = dice.choice((at, len(data), min(len(data), at + dice.randint(0, 10))))
        return data[:at] + dice.choice(words).encode("utf-8", "surrogatepass") + data[end:]

    return mutate


def of_hellos(data: bytes, dice: Dice) -> bytes:
    try:
        return hellos.changed(data, dice, changes=dice.choice((1, 1, 2, 3)))
    except (AssertionError, IndexError):
        return of_bytes(data, dice)


def of_messages(data: bytes, dice: Dice) -> bytes:
    """Of the part of a message that follows its header."""
    wrapped = b"\x16\x03\x01" + (len(data) + 4).to_bytes(2, "big") + b"\x01" + len(data).to_bytes(3, "big") + data
    try:
        hello = hellos.dissect(wrapped)
    except (AssertionError, IndexError):
        return of_bytes(data, dice)
    for _ in range(dice.choice((1, 1, 2, 3))):
        dice.choice(hellos.CHANGES)(hello, dice)
    return hello.message()[4:]


def of_tlvs(data: bytes, dice: Dice) -> bytes:
    """Blocks of type, length and value: one repeated, dropped, moved, put in or of the wrong length."""
    blocks = list(_blocks(data))
    if not blocks or dice.random() < 0.3:
        return of_bytes(data, dice)
    for _ in range(dice.randint(1, 2)):
        place = dice.randrange(len(blocks))
        kind, value = blocks[place]
        changes: tuple[list[tuple[int, bytes]], ...] = (
            [(kind, value), (kind, value)],
            [(dice.choice((0xD0, 0x02, 0x20, 0x03, 0x04, 0x28, 0x22)), value)],
            [(kind, of_bytes(value, dice))],
            [(kind, of_tlvs(value, dice) if len(value) > 8 else b"")],
            [(kind, value), (0x04, bytes(dice.randint(0, 3)))],
        )
        blocks[place : place + 1] = dice.choice(changes)
        dice.shuffle(blocks)
    nudge = dice.choice((0, 0, 0, -1, 1))
    encoded = [bytes((kind,)) + len(value).to_bytes(2, "big") + value for kind, value in blocks if len(value) < 0xFFFF]
    return b"".join(encoded)[: None if nudge >= 0 else nudge] + bytes(max(0, nudge))


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 3:
        size = 3 + int.from_bytes(data[1:3], "big")
        yield data[0], data[3:size]
        data = data[size:]


# YAML documents.

_SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    443,
    65536,
    10**30,
    1.5,
    "",
    " ",
    "*",
    "*.",
    ".",
    "**",
    "*a*",
    "*.example.org",
    "en.wikipedia.org",
    "EN.Wikipedia.org.",
    "bücher.example",
    "127.0.0.1",
    "10.0.0.0/8",
    "10.0.0.1/8",
    "::1",
    "fd00::/8%eth0",
    "spiffe://td/a",
    "cluster.local/ns/default/sa/*",
    "*/ns/a/*",
    "/",
    "a//b",
    "..",
    "-",
    "5/s",
    "0/s",
    "10s",
    "0s",
    "64KiB",
    "off",
    "a\nb",
    "\x00",
    "\u2028",
    "\x1b[2J",
    "\U0001f600",
    "x" * 300,
    "%s%n{}",
    "${x}",
    "$remote_addr",
    "/dev/stdout",
    "unix:/run/a",
    "uid:1",
    [],
    {},
    [[]],
    [None],
    [""],
    {"": ""},
    {"a": None},
)

# What JSON cannot say, and YAML can.
_SYNTAX = (
    b"&a ",
    b"*a",
    b"!!str ",
    b"!!binary ",
    b"!x ",
    b"<<: ",
    b"? ",
    b"- ",
    b"---\n",
    b"...\n",
    b"%YAML 1.1\n",
    b"#",
    b"|\n ",
    b">-\n ",
    b"\t",
    b"\x85",
    b"\xef\xbb\xbf",
    b"'",
    b'"',
    b"[",
    b"}",
    b"[" * 40,
    b"\xff",
    b"[&a [1], *a, *a]",
)


def of_documents(words: tuple[str, ...]) -> Mutate:
    """YAML: values changed in the tree, with `words` as keys and values, or syntax put into the text."""

    def mutate(data: bytes, dice: Dice) -> bytes:
        if dice.random() < 0.25:
            at = dice.randint(0, len(data))
            return data[:at] + dice.choice(_SYNTAX) + data[at:]
        if b"&" in data:
            return of_bytes(data, dice)  # what aliases stand for can be endless
        try:
            documents = list(yaml.load_all(data, Loader=_LOADER))
        except (yaml.YAMLError, ValueError, RecursionError):
            return of_bytes(data, dice)
        for _ in range(dice.choice((1, 1, 2, 4))):
            _change_tree(documents, words, dice)
        return _written(documents, dice)

    return mutate


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _change_tree(documents: list[Any], words: tuple[str, ...], dice: Dice) -> None:
    """Change one value, wherever it is: another one, none, its like, a list of it, twice, or under another key."""
    places = [*_places(documents)]
    if not places:
        documents.append({})
        return
    parent, at = dice.choice(places)
    value = parent[at]
    others = [*_SCALARS, *words, [value], {dice.choice(words): value}]
    action = dice.randrange(6)
    if action == 0:
        del parent[at]
    elif action == 1 and isinstance(parent, dict):
        parent[dice.choice(words)] = parent.pop(at)
    elif action == 2 and isinstance(parent, list):
        parent.insert(at, deepcopy(value))
    elif action == 3 and isinstance(value, dict):
        value[dice.choice(words)] = deepcopy(dice.choice(others))
    elif action == 4 and isinstance(value, list):
        value.append(deepcopy(dice.choice(others)))
    elif action == 5 and isinstance(value, str):
        parent[at] = of_bytes(value.encode(), dice).decode("utf-8", "replace")
    else:
        parent[at] = deepcopy(dice.choice(others))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for at, child in entries:
        yield value, at
        yield from _places(child)


def _written(documents: list[Any], dice: Dice) -> bytes:
    if dice.random() < 0.5:
        return "\n---\n".join(json.dumps(document, default=str, skipkeys=True) for document in documents).encode()
    return yaml.dump_all(documents, Dumper=_DUMPER, allow_unicode=True, sort_keys=False).encode("utf-8", "replace")


_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
