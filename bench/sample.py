"""What a workload is made of: how much work a sample is, what is read off it, and what is wrong with it."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from bench.measure import Usage, metered
from bench.processes import Cores
from bench.proxies import Proxy, Setting
from bench.stage import GB, Load, LoadResult, Problem, Sizes

CORE_LIMIT = 0.90  # a core busier than this is taken to be full
FOREIGN_LIMIT = 0.05  # of the proxy's core, taken by something else
FOREIGN = "something else used the proxy's core"

# Beside two sockets a connection: what a proxy opens at its start, and what is being closed.
_SPARE_DESCRIPTORS = 500


@dataclass(frozen=True)
class Target:
    """What sniproxy must reach: at most so many times what the peer `of` costs, or without one at most so much."""

    limit: float
    of: str | None = None


@dataclass(frozen=True)
class Metric:
    """One row of the report; lower is better."""

    key: str
    title: str
    unit: str
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Scale:
    """How much work a sample is; numbers are of connections where nothing else is said."""

    rounds: int
    starts: int  # of the same proxy, of which a sample is the mean where proxies take turns
    slices: int  # in which it is taken, of all starts together
    short: int
    short_warm_up: int
    pages: int  # of 100 KB
    files: int  # of 10 MB
    idle: int
    words: int  # round trips on idle connections
    storm: int
    crowd: int  # at each level, or three times as many as there are at a time
    levels: tuple[int, ...]
    rate: int
    latency_seconds: int
    round_trips: int
    rules: int
    sizes: Sizes

    def within(self, descriptors: int) -> "Scale":
        """As much of it as a proxy with so many descriptors can hold."""
        most = (descriptors - _SPARE_DESCRIPTORS) // 2
        levels = tuple(level for level in self.levels if level <= most)
        return replace(self, idle=min(self.idle, most), storm=min(self.storm, most), levels=levels)


FULL = Scale(
    rounds=5,
    starts=2,
    slices=8,
    short=20_000,
    short_warm_up=2_000,
    pages=4_000,
    files=100,
    idle=8_000,
    words=2_400,
    storm=5_000,
    crowd=10_000,
    levels=(10, 100, 1_000, 8_000),
    rate=2_000,
    latency_seconds=10,  # five rounds of it are 100,000 connections
    round_trips=10_000,
    rules=100_000,
    sizes=Sizes(stream=2 * GB, warm=GB // 5, duplex=GB),
)
QUICK = Scale(
    rounds=1,
    starts=1,
    slices=2,
    short=5_000,
    short_warm_up=1_000,
    pages=1_000,
    files=30,
    idle=2_000,
    words=800,
    storm=2_000,
    crowd=3_000,
    levels=(10, 100, 1_000),
    rate=2_000,
    latency_seconds=2,
    round_trips=5_000,
    rules=10_000,
    sizes=Sizes(stream=GB, warm=GB // 10, duplex=GB // 2),
)


@dataclass
class Sample:
    """What one round of one workload says of one proxy."""

    values: dict[str, float]
    problems: list[Problem] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def disturbed(self) -> bool:
        """Whether another program got in the way: no fault of the proxy's, and worth another try."""
        return any(problem.kind == FOREIGN for problem in self.problems)


Start = Callable[[Setting], contextlib.AbstractContextManager[Proxy]]


@contextlib.contextmanager
def started_anew(start: Start, scale: Scale, setting: Setting) -> Iterator[list[Proxy]]:
    """The same proxy, several times: where its memory happens to be makes one start cost 5 % more than another."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(start(setting)) for _ in range(scale.starts)]


K = TypeVar("K")
T = TypeVar("T")
# Work that is done in slices: at each `yield` others may have theirs.
Turns = Generator[None, None, T]
Run = Callable[[Start, Scale], Turns[Sample]]


def in_turns(works: Mapping[K, Turns[T]]) -> Turns[dict[K, T]]:
    """All of these works, a slice of each in turn, and what came of them. What goes wrong in one ends them all.

    Every second time the last is the first: what a slice leaves behind is not always the same one's to bear.
    """
    order, done = list(works), dict[K, T]()
    try:
        while len(done) < len(works):
            for key in order:
                if key in done:
                    continue
                try:
                    next(works[key])
                except StopIteration as end:
                    done[key] = end.value
            order.reverse()
            yield
    finally:
        for work in works.values():
            work.close()
    return {key: done[key] for key in works}


def finished(work: Turns[T]) -> T:
    """Let it have all its turns at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


@dataclass(frozen=True)
class Workload:
    """`run` starts the proxies that it wants, each of them fresh, and measures them. `ours` is for sniproxy alone."""

    name: str
    metrics: tuple[Metric, ...]
    run: Run
    by_default: bool = True
    ours: bool = False


def usage_problems(usage: Usage, cores: Cores, proxy_cores: Sequence[int]) -> list[Problem]:
    """Why the figures of a measured block might not be the proxy's own.

    Both cores full is no problem: proxy and load generator were as fast as each other, and the proxy was never
    short of work. Nor is a load generator that shares its core with a proxy that may run everywhere.
    """
    if not cores.apart:
        return [Problem("no core of its own", "proxy and load generator shared one")]
    found = []
    if cores.load not in proxy_cores and usage.load_core_busy > CORE_LIMIT >= usage.proxy_core_busy:
        busy = f"its core {usage.load_core_busy:.0%} busy, the proxy's {usage.proxy_core_busy:.0%}"
        found.append(Problem("the load generator was the bottleneck", busy))
    if usage.foreign_share > FOREIGN_LIMIT:
        found.append(Problem(FOREIGN, f"{usage.foreign_share:.0%}"))
    return found


@dataclass
class Metered:
    """A block of work on a proxy: what it cost, and once it is over what was wrong."""

    usage: Usage
    problems: list[Problem] = field(default_factory=list)


@contextlib.contextmanager
def metered_proxy(proxy: Proxy) -> Iterator[Metered]:
    """Meter the proxy over the block."""
    cores = proxy.stage.cores
    with metered(proxy.pid, proxy_cores=proxy.cores, load_core=cores.load) as usage:
        result = Metered(usage)
        yield result
    result.problems += usage_problems(usage, cores, proxy.cores)


@dataclass(frozen=True)
class Measured:
    """One load, what it saw, and what it cost the proxy."""

    load: Load
    result: LoadResult
    usage: Usage
    problems: list[Problem]

    @property
    def us_each(self) -> float:
        """CPU of the proxy a connection, in microseconds."""
        return self.usage.seconds / self.load.count * 1e6

    def ms_per_gb(self, size: float) -> float:
        """The same a GB, of `size` bytes in all, in milliseconds."""
        return self.usage.seconds * 1e3 / (size / GB)

    @property
    def raw(self) -> dict[str, Any]:
        return {"load": asdict(self.result), "usage": asdict(self.usage)}

    def sample(self, **values: float) -> Sample:
        return Sample(values, self.problems, self.raw)


def measure(proxy: Proxy, load: Load) -> Measured:
    with metered_proxy(proxy) as block:
        result = proxy.load(load)
    return Measured(load, result, block.usage, result.problems(load) + block.problems)


def measure_in_turns(proxies: Sequence[Proxy], load: Load, slices: int) -> Turns[Measured]:
    """The same in so many slices, shared out to the starts of one proxy, and before each of them a turn for the others.

    What slows the machine down for a second or two so meets all of them, and what a slice was disturbed by matters as
    much as it lasted.
    """
    parts = []
    for number in range(slices):
        yield
        parts.append(measure(proxies[number * len(proxies) // slices], load.slice(number, slices)))
    result, usage = LoadResult.joined([part.result for part in parts]), Usage.joined([part.usage for part in parts])
    whole = replace(load, count=load.count // slices * slices)
    problems = result.problems(whole) + usage_problems(usage, proxies[0].stage.cores, proxies[0].cores)
    return Measured(whole, result, usage, problems)


def together(values: dict[str, float], parts: dict[str, Measured]) -> Sample:
    """A sample of several loads, each under its name."""
    problems = [Problem(each.kind, f"{name}: {each.detail}") for name, part in parts.items() for each in part.problems]
    return Sample(values, problems, {name: part.raw for name, part in parts.items()})


def greatest_growth(values: Sequence[float]) -> float:
    """How many times the first value the greatest is."""
    return max(values) / values[0]
