"""Values of documents: what they are asked for, and the problem that is noted where they are something else."""

from collections.abc import Callable

import pytest

from sniproxy.config import fields
from sniproxy.config.fields import Notes, TooMuchError, Value, listed, nearest, parse_text
from sniproxy.config.yaml_source import parse_documents


def value(text: str, notes: Notes | None = None) -> Value:
    """The value at the key `a` of a file f, on its second line."""
    (root,) = parse_documents(f"# a file\na: {text}\n".encode(), "f")
    found = Value.of_document(root, "f", notes or Notes()).at("a")
    assert found is not None
    return found


READINGS: dict[str, tuple[str, Callable[[Value], object], object]] = {
    "the keys of a mapping": ("{b: 1, c: {d: 2}}", lambda it: sorted(it.keys(("b", "c", "e"))), ["b", "c"]),
    "the keys of a mapping that may have others": (
        "{b: 1, z: 2}",
        lambda it: list(it.keys(("b",), others=True)),
        ["b"],
    ),
    "keys that may be without a value": ("{b: null}", lambda it: it.keys(("b",), nullable=("b",)), {}),
    "the texts of a mapping": ("{b: x}", lambda it: {key: text.text() for key, text in it.texts().items()}, {"b": "x"}),
    "one key": ("{b: x}", lambda it: str(it.at("b")), "a.b"),
    "a key that is not there": ("{b: x}", lambda it: it.at("c"), None),
    "a key without a value": ("{b: null}", lambda it: it.at("b"), None),
    "a key of what is no mapping": ("[b]", lambda it: it.at("b"), None),
    "the entries of a list": ("[x, y]", lambda it: [str(entry) for entry in it.items()], ["a[0]", "a[1]"]),
    "the entries of an empty list": ("[]", lambda it: list(it.items()), []),
    "what is made of each entry": ("[x, y]", lambda it: it.each(parse_text), ("x", "y")),
    "text": ("x", Value.text, "x"),
    "one of some words": ("x", lambda it: it.choice("x", "y"), "x"),
    "off, which other tools made false": ("false", lambda it: it.choice("off", "on"), "off"),
    "a whole number": ("3", lambda it: it.whole(1, 5), 3),
    "a number within bounds": ("3KiB", lambda it: it.within(3072, 1, 4096), 3072),
    "a word for true": ("Yes", Value.flag, True),
    "a word for false": ("'off'", Value.flag, False),
    "an empty list that may be": ("[]", lambda it: it.each(parse_text, may_be_empty=True), ()),
    "what is read of each entry": ("[x, y]", lambda it: it.every(Value.text), ("x", "y")),
    "the values of a mapping with any keys": ("{b: x, c d: y}", lambda it: list(it.pairs()), ["b", "c d"]),
    "a value far below": ("{b: [x, y]}", lambda it: str(it.towards("b", 1)), "a.b[1]"),
    "the last value on the way to one that is not there": ("{b: []}", lambda it: str(it.towards("b", 1, "c")), "a.b"),
}


@pytest.mark.parametrize(("text", "read", "expected"), READINGS.values(), ids=READINGS)
def test_reads(text: str, read: Callable[[Value], object], expected: object) -> None:
    notes = Notes()
    assert read(value(text, notes)) == expected
    assert notes.problems == []


# What is asked of a value that is something else: the answer is empty, and these are the problems.
REFUSED: dict[str, tuple[str, Callable[[Value], object], list[str]]] = {
    "no mapping": ("[]", lambda it: it.keys(("b",)), ["a must be a mapping of keys, not a list"]),
    "an unknown key": ("{bcd: 1}", lambda it: it.keys(("bce",)), ["unknown key 'bcd' in a; did you mean 'bce'?"]),
    "a key that lacks": ("{}", lambda it: it.keys(("b",), required=("b",)), ["a lacks the key 'b'; add it"]),
    "a key without a value": ("{b: }", lambda it: it.keys(("b",)), ["a.b has no value; give it one, or drop it"]),
    "a text that is none": ("{b: 1}", Value.texts, ["a.b must be text, not 1; put it in quotes"]),
    "no list": ("x", lambda it: it.each(parse_text), ["a must be a list, not 'x'; write ['x']"]),
    "a mapping for a list": ("{}", lambda it: list(it.items()), ["a must be a list, not a mapping"]),
    "an empty list": ("[]", lambda it: it.each(parse_text), ["a is empty; fill it, or drop it"]),
    "entries that are none": (
        "[x, 1, '', null]",
        lambda it: it.each(parse_text),
        [
            "a[1]: 1 is not text; put it in quotes",
            "a[2]: empty text; write a value, or drop it",
            "a[3] has no value; give it one, or drop it",
        ],
    ),
    "no text": ("1", Value.text, ["a must be text, not 1; put it in quotes"]),
    "empty text": ("''", Value.text, ["a is empty; fill it, or drop it"]),
    "another word": ("z", lambda it: it.choice("x", "y"), ["a must be x or y, not 'z'"]),
    "a list for a word": ("[x]", lambda it: it.choice("x", "y", "z"), ["a must be x, y or z, not a list"]),
    "no number": ("'3'", lambda it: it.whole(1, 5), ["a must be a whole number, not '3'; take the quotes off"]),
    "true for a number": ("true", lambda it: it.whole(1, 5), ["a must be a whole number, not true"]),
    "another number for true": ("2", Value.flag, ["a must be true or false, not 2"]),
    "a list for true": ("[true]", Value.flag, ["a must be true or false, not a list"]),
    "false for a word": ("false", lambda it: it.choice("x", "y"), ["a must be x or y, not false"]),
    "what stands for too much": ("4KiB", lambda it: it.within(4096, 1, 5), ["a must be at most 5, not '4KiB'"]),
    "no list to read": ("''", lambda it: it.every(Value.text), ["a must be a list, not ''; write ['']"]),
    "an empty list to read": ("[]", lambda it: it.every(Value.text), ["a is empty; fill it, or drop it"]),
    "entries that cannot be read": (
        "[1, null]",
        lambda it: it.every(lambda entry: entry.text() or None),
        ["a[0] must be text, not 1; put it in quotes", "a[1] has no value; give it one, or drop it"],
    ),
    "what is wrong by itself": ("x", lambda it: it.wrong("is not so"), ["a: is not so"]),
    "a number that is too small": ("0", lambda it: it.whole(1, 5), ["a must be at least 1, not 0"]),
    "a number that is too large": ("6", lambda it: it.whole(1, 5), ["a must be at most 5, not 6"]),
}


@pytest.mark.parametrize(("text", "read", "problems"), REFUSED.values(), ids=REFUSED)
def test_refuses(text: str, read: Callable[[Value], object], problems: list[str]) -> None:
    notes = Notes()
    assert not read(value(text, notes))
    assert [str(problem) for problem in notes.problems] == [f"f:2: {problem}" for problem in problems]


def test_there_is_an_end_to_problems_and_to_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MAX_NOTES", 2)
    notes = Notes()
    for line in range(5):
        notes.warn("f", line, "hm")
    notes.problem("f", 1, "no")
    with pytest.raises(TooMuchError) as caught:
        notes.problem("f", 2, "no")
    assert len(notes.warnings) == 2
    assert str(caught.value).splitlines() == [
        "f:1: no",
        "f:2: no",
        "f:2: reading stops here, at 2 problems; mend these first",
    ]


def test_words_are_listed_as_in_a_sentence() -> None:
    assert [listed("a"), listed("ab"), listed("abc")] == ["a", "a or b", "a, b or c"]


def test_the_mend_of_a_word_is_the_nearest_or_all() -> None:
    assert nearest("vlaues", ["values", "key"]) == "did you mean 'values'?"
    assert nearest("zzz", ["values", "key"]) == "write key or values"
