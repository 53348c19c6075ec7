"""Sections: a dataclass is read from a mapping, field by field, and then looked at as a whole."""

from dataclasses import dataclass, field
from typing import Literal, Self

import pytest

from sniproxy.config.fields import Notes, Value
from sniproxy.config.section import Section, choice, each, parsed, read_by, setting, text, whole
from sniproxy.config.units import parse_duration
from sniproxy.config.yaml_source import parse_documents

Color = Literal["red", "green"]


@dataclass(frozen=True, slots=True)
class Inner(Section):
    least: int = setting(1, whole(0, 9))
    most: int = setting(5, whole(0, 9))

    def checked(self, value: Value) -> Self:
        if self.least > self.most:
            value.towards("least").wrong("is above the most; lower it")
        return self


@dataclass(frozen=True, slots=True)
class Outer(Section):
    name: str = field(metadata=read_by(text(str.upper)))
    color: Color = setting("red", choice(Color))
    wait: float | None = setting(3.0, parsed(parse_duration), nullable=True)
    waits: tuple[float, ...] = setting((), each(parse_duration))
    inner: Inner = setting(Inner(), Inner.read)

    def checked(self, value: Value) -> Self:
        if self.color == "green" and self.waits:
            value.wrong("green does not wait; drop waits")
        return self


def read(yaml: str) -> tuple[Outer | None, list[str]]:
    """The section in a file f, and its problems."""
    (root,) = parse_documents(yaml.encode(), "f")
    notes = Notes()
    return Outer.read(Value.of_document(root, "f", notes)), [str(problem) for problem in notes.problems]


READ = {
    "the keys that must be there, and else the defaults": ("name: a", Outer("A")),
    "every key": (
        "{name: a, color: green, wait: 1s, waits: [], inner: {least: 2, most: 3}}",
        Outer("A", "green", 1.0, (), Inner(2, 3)),
    ),
    "lists": ("{name: a, waits: [1s, 2s]}", Outer("A", waits=(1.0, 2.0))),
    "a key without a value, where that is one": ("{name: a, wait: null}", Outer("A", wait=None)),
}


@pytest.mark.parametrize(("yaml", "section"), READ.values(), ids=READ)
def test_reads(yaml: str, section: Outer) -> None:
    assert read(yaml) == (section, [])


REFUSED = {
    "no mapping": ("[]", ["f:1: must be a mapping of keys, not a list"]),
    "a key that lacks": ("{}", ["f:1: lacks the key 'name'; add it"]),
    "a key that is none": ("{name: a, colour: red}", ["f:1: unknown key 'colour'; did you mean 'color'?"]),
    "no value, where that is none": ("{name: a, color: }", ["f:1: color has no value; give it one, or drop it"]),
    "every wrong value": (
        "name: 3\ncolor: blue\nwait: 3\nwaits: [x]\ninner: {least: 10, most: x}\n",
        [
            "f:1: name must be text, not 3; put it in quotes",
            "f:2: color must be red or green, not 'blue'",
            "f:3: wait: 3 is no duration; write a number with its unit: 250ms, 10s, 5m or 1h",
            "f:4: waits[0]: 'x' is no duration; write a number with its unit: 250ms, 10s, 5m or 1h",
            "f:5: inner.least must be at most 9, not 10",
            "f:5: inner.most must be a whole number, not 'x'",
        ],
    ),
    "an empty text": ("name: ''", ["f:1: name is empty; fill it, or drop it"]),
    "values that do not fit together": (
        "{name: a, inner: {least: 6}}",
        ["f:1: inner.least: is above the most; lower it"],
    ),
    "values that do not fit together, at the top": (
        "{name: a, color: green, waits: [1s]}",
        ["f:1: green does not wait; drop waits"],
    ),
    "a part that is wrong, before the whole is looked at": (
        "{name: a, color: green, waits: [1s], inner: {least: x}}",
        ["f:1: inner.least must be a whole number, not 'x'"],
    ),
}


@pytest.mark.parametrize(("yaml", "problems"), REFUSED.values(), ids=REFUSED)
def test_refuses(yaml: str, problems: list[str]) -> None:
    """All problems are noted, and nothing is returned that could be taken for a section."""
    assert read(yaml) == (None, problems)
