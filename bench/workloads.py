"""The work that every proxy is given, and what is read off it.

A workload takes a fresh proxy, warms it up and measures once, or starts it several times and measures in slices
between which the other proxies have theirs; it returns a sample: one value a metric, what was wrong, and the raw
figures. Each round of a run gives each proxy one sample of each workload.

    short      connections as fast as they go, 32 at a time: CPU of the proxy a connection
    100kb      the same with answers of 100 KB
    10mb       four at a time with answers of 10 MB: CPU of the proxy a GB
    stream     one connection that brings down a GB or more: CPU of the proxy a GB
    upload     the same upwards (not in the default run)
    duplex     one connection, a GB both ways at once: CPU of the proxy a GB, counted both ways
    idle       thousands of connections that have had their answer and stay open: memory of the proxy each, and CPU
               while one in a hundred speaks; and the memory of all its processes before they came
    latency    connections due at a fixed rate, the same for all and far below what any proxy can take
    roundtrip  one open connection, a small message there and back: time over that of a direct connection
    storm      thousands of connections at once, to a proxy that had none: time until all are served, CPU each
    refused    connections with a name that is not allowed, as fast as they go: CPU each
    crowd      10 to 8,000 connections at a time, as fast as they go: whether the CPU of a connection stays the same
    workers    one worker and two, with the same load and with as much each: whether the CPU of a connection stays
               the same, and how evenly connections spread
    shared     the same on both cores, of which one is the load's too
    log        sniproxy alone: what log and metrics cost
    reload     sniproxy alone, and not in the default run: what 100,000 rules cost that are read anew under load

Memory: the proxy first serves a few hundred short connections one at a time, so that what it loads or
allocates once is there; then its PSS is read, the idle connections are opened, and once it is quiet the PSS
is read again. The difference is divided by the count. The warm-up has to be small: a proxy that had already
held thousands of connections would hide the growth in memory that it keeps for later. Tables that a proxy
sizes at its start, but touches only in use, are charged as they are touched.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench.admin import scraped
from bench.measure import pss, settle
from bench.processes import on_cores
from bench.proxies import COMMON, REPOSITORY, Proxy, ProxyError, Setting
from bench.reload import Subject
from bench.sample import (
    FULL,
    Metric,
    Run,
    Sample,
    Scale,
    Start,
    Target,
    Turns,
    Workload,
    greatest_growth,
    in_turns,
    measure,
    measure_in_turns,
    metered_proxy,
    started_anew,
    together,
)
from bench.stage import DENIED_NAME, KB, MB, SHORT_NAMES, Load

ONE_IN = 100  # idle connections speaks,
WORDS_A_SECOND = 10  # so often
AT_A_TIME = 32  # connections, where nothing else is said


def _at_once(run: Callable[[Start, Scale], Sample]) -> Run:
    """A workload that gives no turns. What another program disturbed is taken again, once, whatever the figures."""

    def sample(start: Start, scale: Scale) -> Turns[Sample]:
        yield
        taken = run(start, scale)
        return run(start, scale) if taken.disturbed else taken

    return sample


def _on_one(run: Callable[[Proxy, Scale], Sample]) -> Run:
    """The same, of one proxy that is as all are."""

    def sample(start: Start, scale: Scale) -> Sample:
        with start(COMMON) as proxy:
            return run(proxy, scale)

    return _at_once(sample)


def _on_one_in_turns(run: Callable[[list[Proxy], Scale], Turns[Sample]]) -> Run:
    """A workload of one proxy that is as all are, started several times, while others have their turns."""

    def sample(start: Start, scale: Scale) -> Turns[Sample]:
        with started_anew(start, scale, COMMON) as proxies:
            return (yield from run(proxies, scale))

    return sample


def _warm(proxies: Iterable[Proxy], scale: Scale) -> None:
    for proxy in proxies:
        proxy.load(Load(SHORT_NAMES, count=scale.short_warm_up, concurrency=AT_A_TIME))


def _touch(proxy: Proxy) -> None:
    """Have it load and allocate what it does once, and nothing that a crowd would need."""
    proxy.load(Load(SHORT_NAMES, count=300))


# ---------------------------------------------------------------- bytes


def _short(proxies: list[Proxy], scale: Scale) -> Turns[Sample]:
    _warm(proxies, scale)
    measured = yield from measure_in_turns(proxies, _shorts(scale), scale.slices)
    return measured.sample(short_cpu=measured.us_each)


def _shorts(scale: Scale, at_a_time: int = AT_A_TIME) -> Load:
    return Load(SHORT_NAMES, count=scale.short, concurrency=at_a_time)


def _pages(proxy: Proxy, scale: Scale) -> Sample:
    names = ("100kb.bench.example",)
    proxy.load(Load(names, count=scale.pages // 10, expect=100 * KB, concurrency=AT_A_TIME))
    measured = measure(proxy, Load(names, count=scale.pages, expect=100 * KB, concurrency=AT_A_TIME))
    return measured.sample(page_cpu=measured.us_each)


def _files(proxy: Proxy, scale: Scale) -> Sample:
    names = ("10mb.bench.example",)
    proxy.load(Load(names, count=scale.files // 10, expect=10 * MB, concurrency=4))
    measured = measure(proxy, Load(names, count=scale.files, expect=10 * MB, concurrency=4))
    return measured.sample(file_cpu=measured.ms_per_gb(10 * MB * scale.files))


def _stream(proxy: Proxy, scale: Scale) -> Sample:
    proxy.load(Load(("warm.bench.example",), count=1, expect=scale.sizes.warm))
    measured = measure(proxy, Load(("stream.bench.example",), count=1, expect=scale.sizes.stream))
    return measured.sample(stream_cpu=measured.ms_per_gb(scale.sizes.stream))


def _upload(proxy: Proxy, scale: Scale) -> Sample:
    load = Load(("upload.bench.example",), count=1, upload=scale.sizes.stream)
    proxy.load(load)
    measured = measure(proxy, load)
    return measured.sample(upload_cpu=measured.ms_per_gb(scale.sizes.stream))


def _duplex(proxy: Proxy, scale: Scale) -> Sample:
    size = scale.sizes.duplex
    proxy.load(Load(("warm.bench.example",), count=1, expect=scale.sizes.warm))
    measured = measure(proxy, Load(("duplex.bench.example",), count=1, expect=size, upload=size))
    return measured.sample(duplex_cpu=measured.ms_per_gb(2 * size))


# ---------------------------------------------------------------- open connections


def _idle(proxy: Proxy, scale: Scale) -> Sample:
    names = ("echo.bench.example",)
    _touch(proxy)
    with proxy.holding(Load(names, count=1, hold=True)):
        pass
    at_rest = _settled_pss(proxy)
    speakers = max(1, scale.idle // ONE_IN)
    load = Load(
        names,
        count=scale.idle,
        concurrency=AT_A_TIME,
        hold=True,
        words=scale.words,
        word_rate=speakers * WORDS_A_SECOND,
        speakers=speakers,
    )
    with proxy.holding(load) as held:
        loaded = _settled_pss(proxy)
        with metered_proxy(proxy) as speech:
            unsaid = held.speak()
    values = {
        "idle_memory": (loaded - at_rest) / load.count / 1024,
        "idle_cpu": speech.usage.seconds / scale.words * 1e6,
        "rest_memory": at_rest / MB,
    }
    result = held.result
    raw = {"load": asdict(result), "usage": asdict(speech.usage), "pss_at_rest": at_rest, "pss_loaded": loaded}
    return Sample(values, result.problems(load) + unsaid + speech.problems, raw)


def _settled_pss(proxy: Proxy) -> int:
    settle(proxy.pid)
    return pss(proxy.pid)


def _roundtrip(proxy: Proxy, scale: Scale) -> Sample:
    load = Load(("echo.bench.example",), count=1, pings=scale.round_trips)
    proxy.load(Load(load.names, count=1, pings=scale.round_trips // 10))
    direct = proxy.stage.load(load, proxy.stage.origin(load.names[0]))
    measured = measure(proxy, load)
    values = {
        "roundtrip_added": measured.result.p50_us - direct.p50_us,
        "roundtrip_cpu": measured.usage.seconds / load.pings * 1e6,
    }
    return Sample(values, direct.problems(load) + measured.problems, {**measured.raw, "direct": asdict(direct)})


# ---------------------------------------------------------------- many connections


def _latency(proxies: list[Proxy], scale: Scale) -> Turns[Sample]:
    for proxy in proxies:
        proxy.load(Load(SHORT_NAMES, count=scale.rate, rate=scale.rate))
    load = Load(SHORT_NAMES, count=scale.rate * scale.latency_seconds, rate=scale.rate)
    measured = yield from measure_in_turns(proxies, load, scale.slices)
    return measured.sample(
        latency_p50=measured.result.p50_us,
        latency_p99=measured.result.p99_us,
        latency_p999=measured.result.p999_us,
        paced_cpu=measured.us_each,
    )


def _storm(proxy: Proxy, scale: Scale) -> Sample:
    _touch(proxy)
    measured = measure(proxy, Load(SHORT_NAMES, count=scale.storm, concurrency=scale.storm))
    return measured.sample(storm_time=measured.result.seconds * 1e3, storm_cpu=measured.us_each)


def _refused(proxy: Proxy, scale: Scale) -> Sample:
    refusals = Load((DENIED_NAME,), count=scale.short, expect=0, concurrency=AT_A_TIME, refused=True)
    proxy.load(Load((DENIED_NAME,), count=scale.short_warm_up, expect=0, concurrency=AT_A_TIME, refused=True))
    measured = measure(proxy, refusals)
    return measured.sample(refused_cpu=measured.us_each)


def _crowd(proxy: Proxy, scale: Scale) -> Sample:
    _warm([proxy], scale)
    parts = {
        level: measure(proxy, Load(SHORT_NAMES, count=max(scale.crowd, 3 * level), concurrency=level))
        for level in scale.levels
    }
    values = {f"crowd_{level}": part.us_each for level, part in parts.items()}
    growth = {"crowd_growth": greatest_growth(list(values.values()))}
    return together(values | growth, {f"{level} at a time": part for level, part in parts.items()})


# ---------------------------------------------------------------- other settings


def _workers(start: Start, scale: Scale, name: str, *, everywhere: bool) -> Turns[Sample]:
    """Two workers have the load that one has, and then as much each.

    What they cost for being two is in both, and in the first also what it costs that each has half the connections to
    do at once. With `everywhere` what the ksoftirqd of either core does counts. Metrics begin with `name`.
    """
    with (
        started_anew(start, scale, Setting(everywhere=everywhere)) as one,
        started_anew(start, scale, Setting(workers=2, everywhere=everywhere)) as two,
    ):
        _warm(one + two, scale)
        parts = yield from in_turns(
            {
                "1": measure_in_turns(one, _shorts(scale), scale.slices),
                "2": measure_in_turns(two, _shorts(scale), scale.slices),
                "each": measure_in_turns(two, _shorts(scale, 2 * AT_A_TIME), scale.slices),
            }
        )
        spread = {}
        if two[0].recipe.ours:
            for proxy in two:
                settle(proxy.pid)
            spread = {f"{name}_spread": max(busiest_share(proxy.log, 2) for proxy in two) * 100}
    values = {f"{name}_{load}": part.us_each for load, part in parts.items()}
    growth = {
        f"{name}_growth": parts["2"].us_each / parts["1"].us_each,
        f"{name}_scaling": parts["each"].us_each / parts["1"].us_each,
    }
    return together(values | growth | spread, parts)


def _workers_workload(name: str, where: str, *, everywhere: bool) -> Workload:
    return Workload(
        name,
        (
            Metric(f"{name}_1", f"CPU per connection, 1 worker, {where}", "us"),
            Metric(f"{name}_2", f"CPU per connection, 2 workers, {where}", "us"),
            Metric(f"{name}_each", "the same, each with the load of one", "us"),
            Metric(f"{name}_growth", f"2 workers to 1 worker, {where}", "x", (Target(1.1),)),
            Metric(f"{name}_scaling", "the same, each with the load of one", "x"),
            Metric(f"{name}_spread", "the busier worker's connections", "%", (Target(55.0),)),
        ),
        partial(_workers, name=name, everywhere=everywhere),
    )


def busiest_share(log: Path, workers: int) -> float:
    """Of the connections in sniproxy's log, what share the worker had that had most: 1/workers is even.

    A connection's id is that of its process, a dash, and a number.
    """
    ids = (json.loads(line)["connectionId"] for line in log.read_bytes().splitlines())
    counts = Counter(each.rpartition("-")[0] for each in ids)
    if len(counts) > workers:
        raise ValueError(f"the connections of {len(counts)} processes, and there were {workers} workers")
    return max(counts.values()) / counts.total()


def _log(start: Start, scale: Scale) -> Turns[Sample]:
    """With everything on and the metrics read once a second, and with no log and the metrics unread.

    That connections are counted cannot be switched off. `bench.counting` times it, and its figure is taken off what is
    measured without log. Each is started once: one whose metrics are read costs the core in the other's turns, too.
    """
    with start(COMMON) as on, start(Setting(log=False)) as off:
        _warm([on, off], scale)
        with scraped(on):
            parts = yield from in_turns(
                {
                    "on": measure_in_turns([on], _shorts(scale), scale.slices),
                    "off": measure_in_turns([off], _shorts(scale), scale.slices),
                }
            )
    counting = _counting(off)
    cost = parts["on"].us_each / (parts["off"].us_each - counting)
    values = {"log_on": parts["on"].us_each, "log_off": parts["off"].us_each, "counting": counting, "log_cost": cost}
    return together(values, parts)


def _counting(proxy: Proxy) -> float:
    """Microseconds that counting a connection takes, on this proxy's interpreter and package."""
    if proxy.recipe.python is None:
        raise ProxyError(proxy.recipe.name, "is not ours")
    command = [*proxy.recipe.python(proxy.program), str(REPOSITORY / "bench" / "counting.py"), "--json"]
    done = subprocess.run(on_cores([proxy.stage.cores.proxy], command), stdout=subprocess.PIPE, check=True)
    return float(json.loads(done.stdout)["metrics_us"])


def _reload(start: Start, scale: Scale) -> Sample:
    with start(COMMON) as proxy:
        subject = Subject(proxy, scale.rules)
        subject.begin()
        found = subject.round()
    return Sample({"reload_seconds": found.seconds, "reload_p99": found.ratio}, found.problems, asdict(found))


_GB_TARGETS = (Target(0.35, of="nginx"), Target(0.7, of="envoy"))

_WORKLOADS = (
    Workload(
        "short",
        (Metric("short_cpu", "CPU per short connection", "us", (Target(1.0, of="nginx"),)),),
        _on_one_in_turns(_short),
    ),
    Workload("100kb", (Metric("page_cpu", "CPU per connection of 100 KB", "us"),), _on_one(_pages)),
    Workload("10mb", (Metric("file_cpu", "CPU per GB, 10 MB each", "ms"),), _on_one(_files)),
    Workload("stream", (Metric("stream_cpu", "CPU per GB, one stream", "ms", _GB_TARGETS),), _on_one(_stream)),
    Workload("upload", (Metric("upload_cpu", "CPU per GB uploaded", "ms"),), _on_one(_upload), by_default=False),
    Workload("duplex", (Metric("duplex_cpu", "CPU per GB, both ways at once", "ms"),), _on_one(_duplex)),
    Workload(
        "idle",
        (
            Metric("idle_memory", "memory per idle connection", "KiB", (Target(3.0),)),
            Metric("idle_cpu", "CPU per round trip, 1 in 100 speaks", "us"),
            Metric("rest_memory", "memory at rest (PSS)", "MB", (Target(60.0),)),
        ),
        _on_one(_idle),
    ),
    Workload(
        "latency",
        (
            Metric("latency_p50", "short connection, p50", "us"),
            Metric("latency_p99", "short connection, p99", "us", (Target(1.0, of="nginx"),)),
            Metric("latency_p999", "short connection, p99.9", "us"),
            Metric("paced_cpu", "CPU per short connection at that rate", "us"),
        ),
        _on_one_in_turns(_latency),
    ),
    Workload(
        "roundtrip",
        (
            Metric("roundtrip_added", "added time of a round trip, p50", "us", (Target(1.1, of="nginx"),)),
            Metric("roundtrip_cpu", "CPU per round trip", "us"),
        ),
        _on_one(_roundtrip),
    ),
    Workload(
        "storm",
        (
            Metric("storm_time", "a storm of connections, until served", "ms"),
            Metric("storm_cpu", "CPU per connection of the storm", "us"),
        ),
        _on_one(_storm),
    ),
    Workload("refused", (Metric("refused_cpu", "CPU per refused connection", "us"),), _on_one(_refused)),
    Workload(
        "crowd",
        (
            *(Metric(f"crowd_{level}", f"CPU per connection, {level:,} at a time", "us") for level in FULL.levels),
            Metric("crowd_growth", "the greatest of these to that of 10", "x", (Target(1.15),)),
        ),
        _on_one(_crowd),
    ),
    _workers_workload("workers", "on one core", everywhere=False),
    _workers_workload("shared", "on both cores", everywhere=True),
    Workload(
        "log",
        (
            Metric("log_on", "CPU per connection, metrics read each second", "us"),
            Metric("log_off", "CPU per connection without access log", "us"),
            Metric("counting", "of it counting, by micro-benchmark", "us"),
            Metric("log_cost", "log and metrics to neither", "x", (Target(1.15),)),
        ),
        _log,
        ours=True,
    ),
    Workload(
        "reload",
        (
            Metric("reload_seconds", "a reload of the rules, under load", "s"),
            Metric("reload_p99", "p99 meanwhile to that without", "x"),
        ),
        _at_once(_reload),
        by_default=False,
        ours=True,
    ),
)
WORKLOADS = {workload.name: workload for workload in _WORKLOADS}
DEFAULT_WORKLOADS = tuple(workload.name for workload in _WORKLOADS if workload.by_default)
