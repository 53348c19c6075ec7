"""The work that every proxy is given, and what is read off it.

A workload takes a fresh proxy, warms it up, measures once, and returns a sample: one value a metric, what was
wrong, and the raw figures. Each round of a run gives each proxy one sample of each workload.

    short      connections as fast as they go, 32 at a time: CPU of the proxy a connection
    stream     one connection that brings down a GB or more: CPU of the proxy a GB
    upload     the same upwards (not in the default run)
    idle       thousands of connections that have had their answer and stay open: memory of the proxy each
    latency    connections due at a fixed rate, the same for all and far below what any proxy can take
    roundtrip  one open connection, a small message there and back: time over that of a direct connection

Memory: the proxy first serves a few hundred short connections one at a time, so that what it loads or
allocates once is there; then its PSS is read, the idle connections are opened, and once it is quiet the PSS
is read again. The difference is divided by the count. The warm-up has to be small: a proxy that had already
held thousands of connections would hide the growth in memory that it keeps for later. Tables that a proxy
sizes at its start, but touches only in use, are charged as they are touched.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.measure import Usage, metered, pss, settle
from bench.proxies import Proxy
from bench.stage import SHORT_NAMES, Load, LoadResult, Problem, Sizes

CORE_LIMIT = 0.90  # a core busier than this is taken to be full
FOREIGN_LIMIT = 0.05  # of the proxy's core, taken by something else
FOREIGN = "something else used the proxy's core"
GB = 10**9


@dataclass(frozen=True)
class Metric:
    """One row of the report; lower is better. `target` is a ratio to nginx, `target_value` a figure."""

    key: str
    title: str
    unit: str
    target: float | None = None
    target_value: float | None = None


@dataclass(frozen=True)
class Scale:
    """How much work a sample is."""

    rounds: int
    short: int
    short_warm_up: int
    idle: int
    rate: int
    latency_seconds: int
    round_trips: int
    sizes: Sizes


FULL = Scale(
    rounds=5,
    short=10_000,
    short_warm_up=2_000,
    idle=4_000,
    rate=2_000,
    latency_seconds=4,
    round_trips=10_000,
    sizes=Sizes(stream=2 * GB, warm=GB // 5),
)
QUICK = Scale(
    rounds=2,
    short=5_000,
    short_warm_up=1_000,
    idle=2_000,
    rate=2_000,
    latency_seconds=2,
    round_trips=5_000,
    sizes=Sizes(stream=GB, warm=GB // 10),
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


@dataclass(frozen=True)
class Workload:
    name: str
    metrics: tuple[Metric, ...]
    run: Callable[[Proxy, Scale], Sample]
    by_default: bool = True


def usage_problems(usage: Usage, *, cores_apart: bool) -> list[Problem]:
    """Why the figures of a measured block might not be the proxy's own.

    Both cores full is no problem: proxy and load generator were as fast as each other, and the proxy was never
    short of work.
    """
    if not cores_apart:
        return [Problem("no core of its own", "proxy and load generator shared one")]
    found = []
    if usage.load_core_busy > CORE_LIMIT >= usage.proxy_core_busy:
        cores = f"its core {usage.load_core_busy:.0%} busy, the proxy's {usage.proxy_core_busy:.0%}"
        found.append(Problem("the load generator was the bottleneck", cores))
    if usage.foreign_share > FOREIGN_LIMIT:
        found.append(Problem(FOREIGN, f"{usage.foreign_share:.0%}"))
    return found


def _metered_load(proxy: Proxy, load: Load) -> tuple[LoadResult, Usage, list[Problem]]:
    cores = proxy.stage.cores
    with metered(proxy.pid, proxy_core=cores.proxy, load_core=cores.load) as usage:
        result = proxy.load(load)
    return result, usage, result.problems(load) + usage_problems(usage, cores_apart=cores.apart)


def _raw(result: LoadResult, usage: Usage) -> dict[str, Any]:
    return {"load": asdict(result), "usage": asdict(usage)}


def _short(proxy: Proxy, scale: Scale) -> Sample:
    proxy.load(Load(SHORT_NAMES, count=scale.short_warm_up, concurrency=32))
    load = Load(SHORT_NAMES, count=scale.short, concurrency=32)
    result, usage, problems = _metered_load(proxy, load)
    return Sample({"short_cpu": usage.seconds / load.count * 1e6}, problems, _raw(result, usage))


def _stream(proxy: Proxy, scale: Scale) -> Sample:
    proxy.load(Load(("warm.bench.example",), count=1, expect=scale.sizes.warm))
    load = Load(("stream.bench.example",), count=1, expect=scale.sizes.stream)
    result, usage, problems = _metered_load(proxy, load)
    return Sample({"stream_cpu": _ms_per_gb(usage, scale)}, problems, _raw(result, usage))


def _upload(proxy: Proxy, scale: Scale) -> Sample:
    load = Load(("upload.bench.example",), count=1, upload=scale.sizes.stream)
    proxy.load(load)
    result, usage, problems = _metered_load(proxy, load)
    return Sample({"upload_cpu": _ms_per_gb(usage, scale)}, problems, _raw(result, usage))


def _ms_per_gb(usage: Usage, scale: Scale) -> float:
    return usage.seconds * 1e3 / (scale.sizes.stream / GB)


def _idle(proxy: Proxy, scale: Scale) -> Sample:
    hold = ("hold.bench.example",)
    proxy.load(Load(SHORT_NAMES, count=300))
    proxy.hold(Load(hold, count=1, hold=True), lambda: None)
    at_rest = _settled_pss(proxy)
    load = Load(hold, count=scale.idle, concurrency=32, hold=True)
    loaded, result = proxy.hold(load, lambda: _settled_pss(proxy))
    raw = {"load": asdict(result), "pss_at_rest": at_rest, "pss_loaded": loaded}
    return Sample({"idle_memory": (loaded - at_rest) / load.count / 1024}, result.problems(load), raw)


def _settled_pss(proxy: Proxy) -> int:
    settle(proxy.pid)
    return pss(proxy.pid)


def _latency(proxy: Proxy, scale: Scale) -> Sample:
    proxy.load(Load(SHORT_NAMES, count=scale.rate, rate=scale.rate))
    load = Load(SHORT_NAMES, count=scale.rate * scale.latency_seconds, rate=scale.rate)
    result, usage, problems = _metered_load(proxy, load)
    values = {
        "latency_p50": result.p50_us,
        "latency_p99": result.p99_us,
        "paced_cpu": usage.seconds / load.count * 1e6,
    }
    return Sample(values, problems, _raw(result, usage))


def _roundtrip(proxy: Proxy, scale: Scale) -> Sample:
    load = Load(("echo.bench.example",), count=1, pings=scale.round_trips)
    proxy.load(Load(load.names, count=1, pings=scale.round_trips // 10))
    direct = proxy.stage.load(load, proxy.stage.origin(load.names[0]))
    result, usage, problems = _metered_load(proxy, load)
    raw = {**_raw(result, usage), "direct": asdict(direct)}
    return Sample({"roundtrip_added": result.p50_us - direct.p50_us}, direct.problems(load) + problems, raw)


_WORKLOADS = (
    Workload("short", (Metric("short_cpu", "CPU per short connection", "us", target=1.0),), _short),
    Workload("stream", (Metric("stream_cpu", "CPU per GB relayed, one stream", "ms", target=0.35),), _stream),
    Workload("upload", (Metric("upload_cpu", "CPU per GB uploaded, one stream", "ms"),), _upload, by_default=False),
    Workload("idle", (Metric("idle_memory", "memory per idle connection", "KiB", target_value=3.0),), _idle),
    Workload(
        "latency",
        (
            Metric("latency_p50", "short connection, p50", "us"),
            Metric("latency_p99", "short connection, p99", "us", target=1.0),
            Metric("paced_cpu", "CPU per short connection at that rate", "us"),
        ),
        _latency,
    ),
    Workload(
        "roundtrip",
        (Metric("roundtrip_added", "added time of a round trip, p50", "us", target=1.1),),
        _roundtrip,
    ),
)
WORKLOADS = {workload.name: workload for workload in _WORKLOADS}
DEFAULT_WORKLOADS = tuple(workload.name for workload in _WORKLOADS if workload.by_default)
