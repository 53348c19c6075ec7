"""`python -m bench.reload`: short connections at a fixed rate while 100,000 rules are read anew, and while not.

The proxy has one core to itself, which its reader has to share; everything else is on the other. A round loads the same
rate twice: with nothing going on, and for as long as a reload takes. What counts is the ratio of the p99s in one round.

`python -m bench --workloads reload` makes one round a sample of it, and keeps it with the others.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench.network import own_network
from bench.processes import Cores
from bench.proxies import RECIPES, Proxy, ProxyError, started
from bench.stage import SHORT_NAMES, Load, MissingToolError, Problem, Sizes, staged

RULES = 100_000
RATE = 1_000
QUIET_SECONDS = 15
PIECE_SECONDS = 1  # of load during a reload: it stops at the first end of a piece after the reload's
DEADLINE = 300.0

ALLOWED = """
rules:
  - {name: bench, action: allow, principals: [cluster.local/ns/default/sa/bench], sni: ["*.bench.example"]}
"""


def policy(rules: int, version: int) -> str:
    """A policy that allows the benchmark, and has so many rules beside; each version differs in one."""
    lines = [
        f"  - {{name: r{number}, action: allow, namespaces: [team-{number % 500}], sni: [host-{number}.example.com]}}\n"
        for number in range(rules - 2)
    ]
    return f"{ALLOWED}{''.join(lines)}  - {{name: version-{version}, action: allow, sni: [v{version}.example.com]}}\n"


@dataclass
class Round:
    """What one round has found: p99s in microseconds, without a reload and during one of so many seconds."""

    quiet: float
    busy: float
    seconds: float
    problems: list[Problem] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return self.busy / self.quiet


class Subject:
    """The running proxy, and how to change its policy."""

    def __init__(self, proxy: Proxy, rules: int) -> None:
        self._proxy = proxy
        self._rules = rules
        self._versions = itertools.count()
        self._problems: list[Problem] = []

    def begin(self) -> float:
        """Bring the rules into force, and warm up. Returns the seconds that the first took."""
        seconds = self._reload()
        self._load(QUIET_SECONDS)
        return seconds

    def round(self) -> Round:
        self._problems = []
        quiet = statistics.median(self._load(PIECE_SECONDS) for _ in range(QUIET_SECONDS))
        with ThreadPoolExecutor(1) as pool:
            reload = pool.submit(self._reload)
            busy = statistics.median(self._pieces(reload.done))
            return Round(quiet, busy, reload.result(), self._problems)

    def _pieces(self, is_over: Callable[[], bool]) -> Iterator[float]:
        """One at least: a small policy is in force before anybody can look."""
        yield self._load(PIECE_SECONDS)
        while not is_over():
            yield self._load(PIECE_SECONDS)

    def _load(self, seconds: float) -> float:
        """The p99 of `seconds` of the rate, in microseconds."""
        load = Load(SHORT_NAMES, count=int(RATE * seconds), rate=RATE)
        result = self._proxy.load(load)
        self._problems += result.problems(load)
        return result.p99_us

    def _reload(self) -> float:
        """Seconds until the next version is in force."""
        text = policy(self._rules, next(self._versions))
        before, began = self._reloads(), time.monotonic()
        self._change(text)
        while self._reloads() == before:
            if time.monotonic() - began > DEADLINE:
                raise ProxyError(self._proxy.recipe.name, "did not take the new policy")
            time.sleep(0.1)
        return time.monotonic() - began

    def _reloads(self) -> int:
        """How many have come into force, by the log: to ask the proxy itself would take it time on its one core."""
        return (self._proxy.directory / "output.log").read_bytes().count(b'"reloaded"')

    def _change(self, text: str) -> None:
        """As an editor does: another file takes the place of this one."""
        new = self._proxy.directory / "policy.yaml.new"
        new.write_text(text)
        new.rename(self._proxy.directory / "policy.yaml")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rules", type=int, default=RULES)
    arguments = parser.parse_args()
    recipe = RECIPES["sniproxy"]
    program = recipe.find()
    if program is None:
        print(f"bench: sniproxy is not built: {recipe.obtain}", file=sys.stderr)
        return 1
    try:
        own_network()
        with (
            staged(Cores.of_this_machine(), Sizes(1, 1, 1), proxy_protocol=True) as stage,
            started(recipe, program, stage) as proxy,
        ):
            subject = Subject(proxy, arguments.rules)
            print(f"{arguments.rules:,} rules are in force after {subject.begin():.1f} s")
            ratios = []
            for number in range(arguments.rounds):
                found = subject.round()
                ratios.append(found.ratio)
                during = f"during a reload of {found.seconds:.1f} s {found.busy:.0f} us"
                print(f"round {number + 1}: p99 {found.quiet:.0f} us, {during}: {found.ratio:.2f}", flush=True)
                for problem in found.problems:
                    print(f"round {number + 1}: {problem.kind}: {problem.detail}", flush=True)
    except (MissingToolError, ProxyError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"p99 during a reload: {statistics.median(ratios):.2f} x that without")
    return 0


if __name__ == "__main__":
    sys.exit(main())
