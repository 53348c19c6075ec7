"""`python -m bench.reload`: short connections at a fixed rate while 100,000 rules are read anew, and while not.

The proxy has one core to itself, which its reader has to share; everything else is on the other. A round loads the same
rate twice: with nothing going on, and for as long as a reload takes. What counts is the ratio of the p99s in one round.
"""

import argparse
import itertools
import re
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bench.processes import Cores
from bench.proxies import RECIPES, Proxy, started
from bench.stage import SHORT_NAMES, Load, MissingToolError, Sizes, staged

RULES = 100_000
RATE = 1_000
QUIET_SECONDS = 5
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


class Subject:
    """The running proxy, and how to change its policy."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._folder = next(proxy.stage.directory.glob("sniproxy-*"))
        found = re.search(r'admin: \{address: "(.*)"\}', (self._folder / "sniproxy.yaml").read_text())
        self._metrics = f"http://{found[1] if found else ''}/metrics"

    def generation(self) -> float:
        with urllib.request.urlopen(self._metrics) as answer:  # noqa: S310 - our own address
            found = re.search(r"^sniproxy_config_generation (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def change(self, text: str) -> None:
        """As an editor does: another file takes the place of this one."""
        new = self._folder / "policy.yaml.new"
        new.write_text(text)
        new.rename(self._folder / "policy.yaml")

    def load(self, seconds: float) -> float:
        """The p99 of `seconds` of the rate, in microseconds."""
        load = Load(SHORT_NAMES, count=int(RATE * seconds), rate=RATE)
        result = self._proxy.load(load)
        if problems := result.problems(load):
            raise SystemExit(f"bench: {problems}")
        return result.p99_us

    def reload(self, text: str) -> float:
        """Seconds until `text` is in force."""
        before, began = self.generation(), time.monotonic()
        self.change(text)
        while self.generation() == before:
            if time.monotonic() - began > DEADLINE:
                raise SystemExit("bench: the new policy did not take effect")
            time.sleep(0.1)
        return time.monotonic() - began

    def load_during_reload(self, text: str) -> tuple[float, float]:
        """The median p99 of the pieces of load, and the seconds that the reload took."""
        with ThreadPoolExecutor(1) as pool:
            reload = pool.submit(self.reload, text)
            pieces = list(self._pieces(reload.done))
            return statistics.median(pieces), reload.result()

    def _pieces(self, is_over: Callable[[], bool]) -> Iterator[float]:
        while not is_over():
            yield self.load(PIECE_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.reload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rules", type=int, default=RULES)
    arguments = parser.parse_args()
    recipe = RECIPES["sniproxy"]
    program = recipe.find()
    if program is None:
        print(f"bench: sniproxy is not built: {recipe.obtain}", file=sys.stderr)
        return 1
    versions = itertools.count()
    try:
        with (
            staged(Cores.of_this_machine(), Sizes(1, 1), proxy_protocol=True) as stage,
            started(recipe, program, stage) as proxy,
        ):
            subject = Subject(proxy)
            seconds = subject.reload(policy(arguments.rules, next(versions)))
            print(f"{arguments.rules:,} rules are in force after {seconds:.1f} s")
            subject.load(QUIET_SECONDS)
            ratios = []
            for number in range(arguments.rounds):
                quiet = statistics.median(subject.load(PIECE_SECONDS) for _ in range(QUIET_SECONDS))
                busy, seconds = subject.load_during_reload(policy(arguments.rules, next(versions)))
                ratios.append(busy / quiet)
                during = f"during a reload of {seconds:.1f} s {busy:.0f} us"
                print(f"round {number + 1}: p99 {quiet:.0f} us, {during}: {busy / quiet:.2f}", flush=True)
    except MissingToolError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"p99 during a reload: {statistics.median(ratios):.2f} x that without")
    return 0


if __name__ == "__main__":
    sys.exit(main())
