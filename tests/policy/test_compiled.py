"""The flat form of a rulebook: what is written is read, in any memory, and nothing else is taken for it."""

import gc
import mmap
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sniproxy.identity.spiffe import parse_principal
from sniproxy.names import ServerName
from sniproxy.policy import compiled, index
from sniproxy.policy.compiled import BadRulebookError, Compiled, compile_rulebook
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import (
    Action,
    Allowed,
    Attribute,
    Condition,
    EchPolicy,
    Ground,
    OuterSni,
    Per,
    Request,
    Rule,
    Rulebook,
    RuleLimits,
)
from tests.policy import plain

FULL = Rule(
    Ground("ns[a]-policy[b]", "0", "/etc/\udcff ü.yaml", 7),
    Action.ALLOW,
    (
        (Condition(Attribute.SNI, ("a.org", "*.b.org"), ("x.b.org",)), Condition(Attribute.PORT, ("443",))),
        (Condition(Attribute.SOURCE_IP, ("10.0.0.0/8", "fd00::/8")), Condition(Attribute.NAMESPACE, (), ("ü*",))),
        (),
    ),
    is_monitored=True,
    allow_networks=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
    limits=RuleLimits(3, 0.1, 5, Per.PRINCIPAL),
)
BOOK = Rulebook(
    (FULL, Rule(Ground("p", "r", "f", 0), Action.DENY, ())),
    default=Action.ALLOW,
    monitor=True,
    require_identity=True,
    ech=EchPolicy.DENY,
    outer_sni=OuterSni(True, ("*.a.org",)),
    registry_only=True,
)


def many(count: int) -> Rulebook:
    return Rulebook(
        tuple(
            Rule(
                Ground("p.yaml", f"r{number}", "p.yaml", number),
                Action.ALLOW,
                ((Condition(Attribute.SNI, (f"h{number}.org", f"*.h{number}.org")),),),
            )
            for number in range(count)
        )
    )


def ask(name: str) -> Request:
    return Request(ServerName(name), parse_principal("td/ns/a/sa/b"), "10.0.0.1")


@given(plain.rulebooks())
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read(book: Rulebook) -> None:
    rules = Compiled(compile_rulebook(book))
    assert (replace(rules.settings, rules=tuple(rules.rules())), rules.rule_count) == (book, len(book.rules))


def test_every_field_is_read_back() -> None:
    rules = Compiled(compile_rulebook(BOOK))
    assert replace(rules.settings, rules=tuple(rules.rules())) == BOOK


def mapped(run: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(run))
    memory.write(run)
    return memory


MEMORIES: dict[str, Callable[[bytes], bytes | memoryview | mmap.mmap]] = {
    "its own": bytes,
    "a part of something": lambda run: memoryview(b"x" + run)[1:],
    "a mapping": mapped,
}


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_it_is_read_in_any_memory(memory: Callable[[bytes], bytes | memoryview | mmap.mmap]) -> None:
    decision = Engine(memory(compile_rulebook(many(100)))).decide(ask("a.h42.org"))
    assert isinstance(decision, Allowed)
    assert decision.ground.rule == "r42"


def test_the_same_rulebook_gives_the_same_bytes() -> None:
    """In any process: what is equal need not be handed to the workers again."""
    script = (
        "import hashlib\n"
        "from tests.policy.test_compiled import BOOK, many\n"
        "from sniproxy.policy.compiled import compile_rulebook\n"
        "for book in (BOOK, many(100)):\n"
        "    print(hashlib.sha256(compile_rulebook(book)).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
    assert said != {b""}


def test_to_adopt_it_makes_no_object_a_rule() -> None:
    run = compile_rulebook(many(5_000))
    engine = Engine(run)  # what the first one allocates for good is not counted
    gc.collect()
    before = sys.getallocatedblocks()
    engine = Engine(run)
    assert sys.getallocatedblocks() - before < 200
    assert engine.rule_count == 5_000


def test_an_engine_that_is_dropped_lets_its_memory_go() -> None:
    """At once, and not when the collector comes by: a mapping of 60 MB hangs on it."""
    memory = mapped(compile_rulebook(many(10)))
    engine = Engine(memory)
    engine.decide(ask("h1.org"))
    gc.disable()
    try:
        del engine
        memory.close()  # which raises BufferError while anybody still holds a part of it
    finally:
        gc.enable()


# What the index may do otherwise without deciding otherwise.

STRESS: dict[str, dict[tuple[object, str], object]] = {
    "every hash collides": {(compiled, "crc32"): lambda _data, _start=0: 7},
    "hashes collide often": {(compiled, "crc32"): lambda data, start=0: (len(data) + start) % 5},
    "everything is split, and looked up": {(index, "FEW"): 0, (compiled, "MANY"): 0},
    "nothing is split": {(index, "FEW"): 1_000},
    "nothing is looked up": {(index, "FEW"): 1_000, (compiled, "MANY"): 1_000},
}


@pytest.mark.parametrize("changed", STRESS.values(), ids=STRESS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(book=plain.rulebooks(), requests=st.lists(plain.REQUESTS, min_size=1, max_size=5))
def test_decides_the_same_where(
    changed: dict[tuple[object, str], object], book: Rulebook, requests: list[Request]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), value in changed.items():
            patch.setattr(module, name, value)
        engine = Engine.of(book)
        told = [plain.told(engine.decide(request)) for request in requests]
    assert told == [plain.decided(book, request) for request in requests]


# What is no compiled rulebook.

RUN = compile_rulebook(many(10))

WRONG = {
    "nothing": (b"", "these bytes are no compiled rulebook"),
    "its first word": (b"sniproxy", "these bytes are no compiled rulebook"),
    "something else": (b"#!/bin/sh\n" * 100, "these bytes are no compiled rulebook"),
    "another version's": (
        RUN[:8] + b"\x63\0\0\0" + RUN[12:],
        "the rulebook was compiled in format 99, and this version reads format 1",
    ),
    "all but its end": (RUN[:-1], f"the compiled rulebook should have {len(RUN)} bytes, and has {len(RUN) - 1}"),
    "all and more": (RUN + b"\0", f"the compiled rulebook should have {len(RUN)} bytes, and has {len(RUN) + 1}"),
}


@pytest.mark.parametrize(("run", "sentence"), WRONG.values(), ids=WRONG)
def test_other_bytes_are_refused(run: bytes, sentence: str) -> None:
    with pytest.raises(BadRulebookError) as caught:
        Engine(run)
    assert str(caught.value) == sentence


def test_damage_to_the_header_or_the_settings_is_seen() -> None:
    """Those are all that is looked at before it is adopted."""
    *_, settings_at = compiled._HEADER.unpack_from(RUN)
    for place in (*range(20, compiled._HEADER.size + 4), *range(settings_at, len(RUN))):
        run = bytearray(RUN)
        run[place] ^= 0x55
        with pytest.raises(BadRulebookError, match="damaged"):
            Engine(bytes(run))


def test_what_32_bits_cannot_point_to_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_MOST_BYTES", 1_000)
    with pytest.raises(BadRulebookError, match="the compiled rules take more than 4 GiB; split the policy"):
        compile_rulebook(many(100))
