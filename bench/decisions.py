"""`python -m bench.decisions`: what a decision costs among 10, 1,000 and 100,000 rules, and what holding them costs.

A decision is timed as the proxy pays for it when it does not remember the request: `Engine.decide`, which remembers the
last 4,096, is asked 12,288 different ones in turn, again and again, so that none is remembered when it comes again.
They are touched just before, 256 at a time, for a proxy has a request in its caches: it has just made it. What is
needed of the rules is found wherever memory has it.

Half of the requests are of a rule, and allowed or denied by it; a quarter have a name of a rule and are from another
caller; a quarter ask for a name that no rule has. The rules have one to three names, exact or `*.suffix`, and one
principal or namespace each; one in ten denies. Both formats have the same rules, each in the form that its reader
gives it, and Istio's have a port besides.

The sizes take turns within a round, so that what slows the machine down slows all of them. A cell is the median over
the rounds, and the least and the greatest; the ratio is that of 100,000 rules to 10 in the same round, and of these
the median. Time is the process's own, so that a core shared with others counts only by what it does to the caches; and
the collector is off, as in `timeit`.
"""

import argparse
import gc
import mmap
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from sniproxy.identity.spiffe import parse_principal
from sniproxy.names import parse_server_name
from sniproxy.policy.compiled import compile_rulebook
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Action, Attribute, Clause, Condition, Ground, Request, Rule, Rulebook

SIZES = (10, 1_000, 100_000)
REQUESTS = 12_288
BATCH = 256
ROUNDS = 15


@dataclass(frozen=True)
class Asked:
    """What a rule asks for: names, and a principal or a namespace."""

    names: tuple[str, ...]
    principal: str
    namespace: str

    @classmethod
    def of_rule(cls, number: int) -> "Asked":
        names = tuple(
            f"*.zone-{number}-{which}.org" if (number + which) % 3 == 0 else f"www.host-{number}-{which}.example.com"
            for which in range(1 + number % 3)
        )
        namespace = f"team-{number % 500}"
        if number % 2:
            return cls(names, "", namespace)
        return cls(names, f"cluster.local/ns/{namespace}/sa/workload-{number % 5_000}", "")

    @property
    def who(self) -> Condition:
        if self.principal:
            return Condition(Attribute.PRINCIPAL, (self.principal,))
        return Condition(Attribute.NAMESPACE, (self.namespace,))

    def a_name(self, dice: random.Random) -> str:
        return dice.choice(self.names).replace("*", f"h{dice.randrange(1_000_000)}")

    def a_caller(self, dice: random.Random) -> str:
        return self.principal or f"cluster.local/ns/{self.namespace}/sa/workload-{dice.randrange(5_000)}"


def own_rule(number: int) -> Rule:
    asked = Asked.of_rule(number)
    ground = Ground("policy.yaml", f"rule-{number}", "/etc/sniproxy/policy.yaml", 2 + number * 5)
    return Rule(ground, action(number), ((Condition(Attribute.SNI, asked.names), asked.who),))


def istio_rule(number: int) -> Rule:
    """One `from`, one `to` with a port, and a `when` on connection.sni."""
    asked = Asked.of_rule(number)
    ground = Ground(f"ns[istio-system]-policy[egress-{number}]", "0", "/etc/sniproxy/istio.yaml", 9 + number * 20)
    clause: Clause = (asked.who, Condition(Attribute.PORT, ("443",)), Condition(Attribute.SNI, asked.names))
    return Rule(ground, action(number), (clause,))


def action(number: int) -> Action:
    return Action.DENY if number % 10 == 9 else Action.ALLOW


FORMATS: dict[str, Callable[[int], Rule]] = {"own": own_rule, "istio": istio_rule}


def requests(rules: int) -> Iterator[Request]:
    """Different ones, all of them."""
    dice = random.Random(1)
    seen = set()
    while True:
        asked = Asked.of_rule(dice.randrange(rules))
        stranger = f"cluster.local/ns/team-{dice.randrange(500)}/sa/workload-{dice.randrange(5_000)}"
        name, who = dice.choice(
            [
                (asked.a_name(dice), asked.a_caller(dice)),
                (asked.a_name(dice), asked.a_caller(dice)),
                (asked.a_name(dice), stranger),
                (f"www.nobody-{dice.randrange(1_000_000)}.example.net", stranger),
            ]
        )
        if (name, who) not in seen:
            seen.add((name, who))
            yield Request(parse_server_name(name.encode()), parse_principal(who), "10.1.2.3")


@dataclass
class Subject:
    """One policy: what it took to hold it, and what each round of decisions took, in microseconds a decision."""

    format: str
    rules: int
    compile_seconds: float
    size: int
    adopt_milliseconds: float
    engine: Engine
    requests: list[Request]
    uncached: list[float] = field(default_factory=list)
    remembered: list[float] = field(default_factory=list)


def subject(name: str, rules: int, asked: list[Request]) -> Subject:
    make = FORMATS[name]
    book = Rulebook(tuple(make(number) for number in range(rules)))
    start = time.process_time()
    compiled = compile_rulebook(book)
    took = time.process_time() - start
    memory = mapped(compiled)
    start = time.process_time()
    engine = Engine(memory)
    adopted = time.process_time() - start
    return Subject(name, rules, took, len(compiled), adopted * 1e3, engine, asked)


def mapped(run: bytes) -> mmap.mmap:
    """As a worker gets it: in memory that all of them share."""
    with os.fdopen(os.memfd_create("rules"), "wb") as file:
        file.write(run)
        file.flush()
        return mmap.mmap(file.fileno(), len(run), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)


def microseconds(engine: Engine, asked: list[Request]) -> float:
    """For one decision, on average."""
    decide = engine.decide
    took = 0
    for begin in range(0, len(asked), BATCH):
        batch = asked[begin : begin + BATCH]
        for request in batch:
            hash((request.server_name, request.identity, request.source_ip))
        start = time.process_time_ns()
        for request in batch:
            decide(request)
        took += time.process_time_ns() - start
    return took / len(asked) / 1e3


def measure(subjects: list[Subject], rounds: int) -> None:
    gc.collect()
    gc.disable()
    for _ in range(rounds + 1):  # the first warms up
        for it in subjects:
            it.uncached.append(microseconds(it.engine, it.requests))
            it.remembered.append(microseconds(it.engine, it.requests[-1_000:] * 10))
    for it in subjects:
        del it.uncached[0], it.remembered[0]


def report(subjects: list[Subject]) -> Iterator[str]:
    yield f"{'':14} {'decision, us':>24} {'remembered, us':>18} {'compile, s':>11} {'MB':>7} {'adopt, ms':>10}"
    for it in subjects:
        name = f"{it.format} {it.rules:,}"
        spread = f"{statistics.median(it.uncached):.2f} ({min(it.uncached):.2f} to {max(it.uncached):.2f})"
        hot = f"{statistics.median(it.remembered):.2f}"
        costs = f"{it.compile_seconds:11.2f} {it.size / 1e6:7.1f} {it.adopt_milliseconds:10.2f}"
        yield f"{name:14} {spread:>24} {hot:>18} {costs}"
    for name in FORMATS:
        few, *_, many = (it for it in subjects if it.format == name)
        ratios = [one / other for one, other in zip(many.uncached, few.uncached, strict=True)]
        yield f"{name}: {many.rules:,} rules take {statistics.median(ratios):.2f} x the time of {few.rules}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.decisions", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    arguments = parser.parse_args()
    asked = {rules: list(islice(requests(rules), REQUESTS)) for rules in SIZES}
    subjects = [subject(name, rules, asked[rules]) for name in FORMATS for rules in SIZES]
    measure(subjects, arguments.rounds)
    print("\n".join(report(subjects)))


if __name__ == "__main__":
    main()
