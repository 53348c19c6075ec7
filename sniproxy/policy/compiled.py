"""A rulebook as one flat run of bytes, which all workers share and none unpacks.

`compile_rulebook` writes it, and `Compiled` reads it, wherever it is mapped. To adopt one is to read its header and
settings: what a decision looks at is read where it lies, and nothing is made for the rest.

    header      magic, version, and where the parts begin
    records     the nodes of the index, each under its key, and behind them the rules as they were
    slots       a hash table of the nodes, open addressing, 4 bytes a slot: some of the place, the rest of the hash
    places      where each rule is, for those who want to see them all
    settings    what holds for all rules, with the node at the top of the index

A record is a tuple written by `marshal`, whose reader is the quickest there is. It must not read what strangers wrote,
and never does: our own process made the run, and handed it over in memory. Every record of the index begins with its
key and with the place that the key belongs to, a number for each split and form. Both are compared, so that hashes
may collide.

    leaf        key, place, kind, number of the rule, question, what else a decision needs, where the next entry is
    split       key, place, attribute, the shapes and places of the keys below it, the rest
    value       key, place: one of many values of a condition
"""

import ipaddress
import marshal
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from mmap import mmap
from typing import Any
from zlib import crc32

from sniproxy.config.units import Network
from sniproxy.policy.index import KINDS, Entry, Leaf, Node, Split, build_index, kind_of
from sniproxy.policy.match import (
    EXACT,
    FORMS,
    SEPARATORS,
    UNDER,
    Key,
    check_of,
    cut,
    encoded,
    key_of,
    namespaces_in,
    passes,
)
from sniproxy.policy.model import (
    Action,
    Attribute,
    Clause,
    Condition,
    EchPolicy,
    Ground,
    OuterSni,
    Per,
    Rule,
    Rulebook,
    RuleLimits,
)

MAGIC = b"sniproxy"
VERSION = 1
# magic, version, length of all; how many slots there are, how many a hash can point to, how many bits of them are a
# place, how many rules there are; where slots, places and settings begin; and a checksum of all that and the settings
_HEADER = struct.Struct("<8sIQIIIIIII")
_CHECKSUM = struct.Struct("<I")
_MOST_BYTES = 1 << 32  # what 32 bits can point to

# Places in slots count units of so many bytes, in bits; nodes that are looked up begin at one.
_UNIT = 3

# Marshal without references, which depend on who else holds an object: the same rulebook gives the same bytes.
_MARSHAL = 2

Record = Any  # what marshal gives back: tuples of numbers, texts, bytes and None

_ATTRIBUTES = tuple(Attribute)
_NUMBERS = {attribute: number for number, attribute in enumerate(_ATTRIBUTES)}
_SEPARATORS = tuple(SEPARATORS.get(attribute, b"") for attribute in _ATTRIBUTES)
_NAMESPACE = _NUMBERS[Attribute.NAMESPACE]

# More values than this have a place of their own, where they are looked up; so many are compared one by one.
MANY = 8

# What a clause asks: whether an attribute is one of some texts, for which the number of the attribute stands; whether
# the principal has a namespace in it; whether an attribute is among values, by checks and keys; or nothing at all. With
# NOT added, the answer should be no.
HAS, AMONG, NOTHING = range(len(_ATTRIBUTES), len(_ATTRIBUTES) + 3)
NOT = 8
Question = tuple[int, Record]  # and what to compare with

# Where a key belongs to, of one shape.
Place = tuple[int, int, int]  # form, measure, and a number that no other place has


class BadRulebookError(ValueError):
    """These bytes are no compiled rulebook that this version can read."""


def compile_rulebook(rulebook: Rulebook) -> bytes:
    """The bytes that an engine is made of. The same rulebook gives the same bytes.

    100,000 rules take seconds, half of them the garbage collector's: a process that does nothing else should switch
    it off. Raises BadRulebookError for more than can be written.
    """
    return _Writer().run(rulebook)


class _Writer:
    def __init__(self) -> None:
        self._bytes = bytearray(_HEADER.size + _CHECKSUM.size)
        self._keys: list[tuple[int, int]] = []  # hashes, and where the records are
        self._last_place = 0
        self._files: dict[str, int] = {}  # by their numbers, for most rules share theirs with many
        self._splits: dict[int, Record] = {}
        self._last_leaf: Leaf | None = None
        self._last_record: Record = None
        self._tables: dict[tuple[Attribute, tuple[str, ...]], Record] = {}

    def run(self, book: Rulebook) -> bytes:
        index = build_index(book)  # kept while its splits are known by their identity
        for rule in book.rules:
            self._files.setdefault(rule.ground.file, len(self._files))
        root = self._unkeyed(index)
        places = array("I", [self._add(_rule_record(rule, self._files)) for rule in book.rules])
        self._align()
        bits = (len(self._bytes) >> _UNIT).bit_length()
        slots, homes = _hash_table(self._keys, bits), _homes(len(self._keys))
        slots_at = self._append(slots.tobytes())
        places_at = self._append(places.tobytes())
        settings = marshal.dumps(_settings_record(book, tuple(self._files), root), _MARSHAL)
        settings_at = self._append(settings)
        parts = len(slots), homes, bits, len(places), slots_at, places_at, settings_at
        header = _HEADER.pack(MAGIC, VERSION, len(self._bytes), *parts)
        header += _CHECKSUM.pack(crc32(settings, crc32(header)))
        self._bytes[: len(header)] = header
        return bytes(self._bytes)

    def _append(self, part: bytes) -> int:
        where = len(self._bytes)
        if where + len(part) >= _MOST_BYTES:
            raise BadRulebookError("the compiled rules take more than 4 GiB; split the policy")
        self._bytes += part
        return where

    def _align(self) -> None:
        self._bytes += bytes(-len(self._bytes) % (1 << _UNIT))

    def _add(self, record: Record) -> int:
        return self._append(marshal.dumps(record, _MARSHAL))

    def _add_key(self, place: int, key: Key, record: Record) -> None:
        place += key.form
        self._align()
        where = self._add((key.text, place, *record))
        self._keys.append((crc32(key.text, place), where))

    def _new_places(self, keys: Iterable[Key]) -> tuple[int, tuple[Place, ...]]:
        """A number, to which the form of a key is added for its place; and all places of such keys."""
        self._last_place += FORMS
        shapes = sorted({key.shape for key in keys})
        return self._last_place, tuple((form, measure, self._last_place + form) for form, measure in shapes)

    def _unkeyed(self, node: Node | None) -> Record:
        """A node that is not looked up, but stands in another record."""
        return None if node is None else (b"", 0, *self._node(node))

    def _node(self, node: Node) -> Record:
        """Keys of one rule come one after the other, and lead to one leaf; and few splits have several keys."""
        if isinstance(node, Split):
            if id(node) not in self._splits:
                self._splits[id(node)] = self._split(node)
            return self._splits[id(node)]
        if node is not self._last_leaf:
            self._last_leaf, self._last_record = node, self._leaf(node)
        return self._last_record

    def _split(self, split: Split) -> Record:
        place, places = self._new_places(split.children)
        for key, node in split.children.items():
            self._add_key(place, key, self._node(node))
        return _NUMBERS[split.attribute], places, self._unkeyed(split.rest)

    def _leaf(self, leaf: Leaf) -> Record:
        following = 0
        for entry in reversed(leaf[1:]):
            following = self._add((b"", 0, *self._entry(entry), following))
        return *self._entry(leaf[0]), following

    def _entry(self, entry: Entry) -> Record:
        """What is cheap to ask is asked first, and stands apart, for most clauses ask no more."""
        asked = sorted(self._questions(entry.conditions), key=lambda question: question[0])
        (asks, operand), *more = asked or [(NOTHING, None)]
        return entry.kind, entry.number, asks, operand, tuple(more), *_consequence_record(entry.rule, self._files)

    def _questions(self, conditions: Clause) -> Iterator[Question]:
        for attribute, values, not_values in conditions:
            if values:
                yield self._question(attribute, values)
            if not_values:
                asks, operand = self._question(attribute, not_values)
                yield asks + NOT, operand

    def _question(self, attribute: Attribute, values: tuple[str, ...]) -> Question:
        """Whether the attribute is among some values."""
        if len(values) > MANY:
            return AMONG, self._table(attribute, values)
        checks = tuple(check_of(attribute, value) for value in values)
        if all(form == EXACT for form, _ in checks):
            return _NUMBERS[attribute], tuple(text for _, text in checks)
        if len(values) == 1 and attribute is Attribute.NAMESPACE and "*" not in values[0]:
            return HAS, encoded(f"/ns/{values[0]}/")
        return AMONG, (_NUMBERS[attribute], checks, ())

    def _table(self, attribute: Attribute, values: tuple[str, ...]) -> Record:
        """Checks for the values that have no key, and the places of those that have one."""
        table = self._tables.get((attribute, values))
        if table is None:
            keys = {value: key for value in values if (key := key_of(attribute, value))}
            checks = tuple(check_of(attribute, value) for value in values if value not in keys)
            place, places = self._new_places(keys.values())
            for key in dict.fromkeys(keys.values()):
                self._add_key(place, key, ())
            table = self._tables[attribute, values] = _NUMBERS[attribute], checks, places
        return table


def _hash_table(keys: Sequence[tuple[int, int]], bits: int) -> "array[int]":
    """A third of it is in use. It ends in an empty slot, so that no search runs out of it.

    A slot is small, so that what is looked at for every decision stays near the processor: the `bits` of a place, and
    above them the upper bits of a hash, which are enough to pass by almost all others.
    """
    homes = _homes(len(keys))
    slots = array("I", bytes(4 * (homes + len(keys) + 1)))
    end = homes
    for hashed, where in keys:
        index = hashed % homes
        while slots[index]:
            index += 1
        slots[index] = hashed >> bits << bits | where >> _UNIT
        end = max(end, index + 1)
    return slots[: end + 1]


def _homes(keys: int) -> int:
    """How many slots a hash can point to: odd, so that all its bits have a say."""
    return 3 * keys | 1


# The records beside those of nodes.


def _consequence_record(rule: Rule, files: dict[str, int]) -> Record:
    ground, limits = rule.ground, rule.limits
    return (
        ground.policy,
        ground.rule,
        files[ground.file],
        ground.line,
        (tuple(map(str, rule.allow_networks)), (*limits[:3], limits.per.value) if limits else None)
        if rule.allow_networks or limits
        else None,
    )


def _consequence(record: Record) -> tuple[tuple[Network, ...], RuleLimits | None]:
    """What the permit of a rule opens, and its limits."""
    if record is None:
        return (), None
    networks, limits = record
    if limits is None:
        return tuple(map(_network, networks)), None
    connections, rate, burst, per = limits
    return tuple(map(_network, networks)), RuleLimits(connections, rate, burst, Per(per))


_network = lru_cache(maxsize=1024)(ipaddress.ip_network)


def _rule_record(rule: Rule, files: dict[str, int]) -> Record:
    clauses = tuple(tuple((_NUMBERS[it.attribute], *it[1:]) for it in clause) for clause in rule.clauses)
    return *_consequence_record(rule, files), rule.action.value, rule.is_monitored, clauses


def _rule(record: Record, files: Sequence[str]) -> Rule:
    policy, rule, file, line, consequence, action, is_monitored, clauses = record
    return Rule(
        Ground(policy, rule, files[file], line),
        Action(action),
        tuple(tuple(Condition(_ATTRIBUTES[number], *sides) for number, *sides in clause) for clause in clauses),
        is_monitored,
        *_consequence(consequence),
    )


def _settings_record(book: Rulebook, files: tuple[str, ...], root: Record) -> Record:
    asked = {it.attribute for rule in book.rules for it in chain.from_iterable(rule.clauses)}
    return (
        book.default.value,
        book.monitor,
        book.require_identity,
        book.ech.value,
        (book.outer_sni.must_equal, book.outer_sni.patterns),
        book.registry_only,
        tuple(sorted(set(map(kind_of, book.rules)))),
        tuple(sorted(_NUMBERS[attribute] for attribute in asked)),
        files,
        root,
    )


# Reading.

_loads = marshal.loads

# A named tuple made by the tuple's own constructor costs a third of one made by its own.
_new = tuple.__new__

# An entry of a leaf that holds, as it was written; or none.
Found = Record | None


def number_of(entry: Record) -> int:
    """The number of its rule, from 0 in the order of the rulebook."""
    number: int = entry[3]
    return number


class Compiled:
    """A compiled rulebook, read where it lies.

    `settings` is the rulebook without its rules; `kinds` are those of its rules, whether or not they can hold; `asks`
    are the attributes that any of them asks for. Raises BadRulebookError for bytes that are something else.
    """

    def __init__(self, run: bytes | memoryview | mmap) -> None:
        view = memoryview(run).cast("B").toreadonly()
        slots, self._homes, bits, rules, slots_at, places_at, settings_at = _checked(view)
        self._view = view
        self._slots = view[slots_at : slots_at + 4 * slots].cast("I")
        self._mask = (1 << bits) - 1  # of the place in a slot
        self._places = view[places_at : places_at + 4 * rules].cast("I")
        default, monitor, identity, ech, outer_sni, registry, kinds, asked, files, root = _loads(view[settings_at:])
        self._files = files
        self._roots = [root] if root is not None else []
        self.kinds = frozenset(kinds)
        self.asks = frozenset(_ATTRIBUTES[number] for number in asked)
        self.settings = Rulebook(
            default=Action(default),
            monitor=monitor,
            require_identity=identity,
            ech=EchPolicy(ech),
            outer_sni=OuterSni(*outer_sni),
            registry_only=registry,
        )

    @property
    def rule_count(self) -> int:
        return len(self._places)

    def rules(self) -> Iterator[Rule]:
        return (_rule(_loads(self._view[place:]), self._files) for place in self._places)

    def ground(self, entry: Record) -> Ground:
        return _new(Ground, (entry[7], entry[8], self._files[entry[9]], entry[10]))

    def consequence(self, entry: Record) -> tuple[Ground, tuple[Network, ...], RuleLimits | None]:
        """The ground of a decision by this entry, what its permit opens, and its limits."""
        ground = _new(Ground, (entry[7], entry[8], self._files[entry[9]], entry[10]))
        return (ground, *_consequence(entry[11])) if entry[11] else (ground, (), None)

    def first(  # noqa: C901, PLR0912, PLR0915 - the docstring says why
        self, name: bytes, principal: bytes, address: bytes, port: bytes
    ) -> list[Found]:
        """The first entry of each kind that holds for a request: by kind, and None where none does.

        This is the path of every decision, and all in one piece, with names looked up right here and fields taken by
        their numbers: a function for each thing, or a name for each field, takes half as long again.
        """
        best: list[Found] = [None] * KINDS
        subjects = name, principal, principal, address, port
        slots, homes, mask, view = self._slots, self._homes, self._mask, self._view
        nodes = self._roots[:]
        for node in nodes:  # to which it adds
            if len(node) > 5:
                # A leaf, whose entries follow each other.
                asks = node[4]
                if asks < HAS:
                    does_hold = subjects[asks] in node[5]
                elif asks == HAS:
                    does_hold = principal.find(node[5]) >= 0  # `in` would try it as a number first
                else:
                    does_hold = asks == NOTHING or self._is_so(asks, node[5], subjects)
                if does_hold and node[6]:
                    for asks, operand in node[6]:
                        if asks >= HAS:
                            does_hold = self._is_so(asks, operand, subjects)
                        elif subjects[asks] not in operand:
                            does_hold = False
                        if not does_hold:
                            break
                if does_hold:
                    former = best[node[2]]
                    if former is None or node[3] < former[3]:
                        best[node[2]] = node
                if node[12]:
                    nodes.append(_loads(view[node[12] :]))
                continue
            _, _, attribute, places, rest = node
            if rest is not None:
                nodes.append(rest)
            if attribute:
                nodes += self._under(attribute, places, subjects)
                continue
            for form, measure, place in places:
                if form == EXACT:
                    key = name
                elif form == UNDER:
                    labels = name.rsplit(b".", measure)
                    if len(labels) <= measure:
                        continue
                    key = name[len(labels[0]) :]
                else:
                    nodes += self._under(attribute, ((form, measure, place),), subjects)
                    continue
                hashed = crc32(key, place)
                index = hashed % homes
                while slot := slots[index]:
                    if slot ^ hashed <= mask:  # their upper bits are the same
                        record = _loads(view[(slot & mask) << _UNIT :])
                        if record[0] == key and record[1] == place:
                            nodes.append(record)
                            break
                    index += 1
        return best

    def _under(self, attribute: int, places: Iterable[Place], subjects: Sequence[bytes]) -> list[Record]:
        """What is under the keys that an attribute has in these places."""
        subject = subjects[attribute]
        records = []
        for owner in namespaces_in(subject) if attribute == _NAMESPACE else (subject,):
            for form, measure, place in places:
                key = owner if form == EXACT else cut((form, measure), owner, _SEPARATORS[attribute])
                record = self._find(key, place) if key else None
                if record is not None:
                    records.append(record)
        return records

    def _find(self, key: bytes, place: int) -> Record | None:
        hashed = crc32(key, place)
        index = hashed % self._homes
        while slot := self._slots[index]:
            if slot ^ hashed <= self._mask:
                record = _loads(self._view[(slot & self._mask) << _UNIT :])
                if record[0] == key and record[1] == place:
                    return record
            index += 1
        return None

    def _is_so(self, asks: int, operand: Record, subjects: Sequence[bytes]) -> bool:
        """The answer to one question."""
        if asks >= NOT:
            return not self._is_so(asks - NOT, operand, subjects)
        if asks < HAS:
            return subjects[asks] in operand
        if asks == HAS:
            return operand in subjects[_NAMESPACE]
        attribute, checks, places = operand
        subject = subjects[attribute]
        return any(passes(check, subject) for check in checks) or bool(self._under(attribute, places, subjects))


def _checked(view: memoryview) -> tuple[int, ...]:
    """The numbers of the header."""
    if len(view) < _HEADER.size + _CHECKSUM.size or bytes(view[: len(MAGIC)]) != MAGIC:
        raise BadRulebookError("these bytes are no compiled rulebook")
    _, version, size, *parts = _HEADER.unpack_from(view)
    if version != VERSION:
        raise BadRulebookError(
            f"the rulebook was compiled in format {version}, and this version reads format {VERSION}"
        )
    if size != len(view):
        raise BadRulebookError(f"the compiled rulebook should have {size} bytes, and has {len(view)}")
    (checksum,) = _CHECKSUM.unpack_from(view, _HEADER.size)
    if crc32(view[parts[-1] :], crc32(view[: _HEADER.size])) != checksum:
        raise BadRulebookError("the compiled rulebook is damaged")
    return tuple(parts)
